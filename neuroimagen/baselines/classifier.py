"""The EEG encoder of both baselines: trained to name the class of the picture, as in Spampinato et al. 2017."""

import torch
from torch import nn


class EegClassifier(nn.Module):
    """EEG (n, n_chans, n_times) -> features (n, n_features) and class scores (n, n_classes)."""

    def __init__(self, encoder: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = nn.Linear(n_features, n_classes)

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(eeg, subject)
        return features, self.output(features)
