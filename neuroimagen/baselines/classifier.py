"""The EEG encoder of both baselines: trained to name the class of the picture, as in Spampinato et al. 2017."""

import torch
from torch import nn

from neuroimagen.encoders import make_encoder


class EegClassifier(nn.Module):
    """EEG (n, n_chans, n_times) -> features (n, n_features) and class scores (n, n_classes)."""

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_classes: int,
        encoder: str = "lstm",
        n_features: int = 128,
        dropout: float = 0.0,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(encoder, n_chans, n_times, n_features, dropout, width)
        self.output = nn.Linear(n_features, n_classes)

    def forward(self, eeg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(eeg)
        return features, self.output(features)
