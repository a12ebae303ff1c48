"""f_θ, the EEG features that contrastive learning shapes (Eq. 1), and how well they tell the classes apart."""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from neuroimagen.encoders import make_encoder


class FeatureExtractor(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """EEG (batch, n_chans, n_times) -> features (batch, n_features), of unit length if `normalise` (docs/paper.md)."""

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        encoder: str = "lstm",
        n_features: int = 128,
        *,
        dropout: float = 0.0,
        width: int | None = None,
        normalise: bool = True,
        **options: Any,
    ) -> None:
        """options: of make_encoder, where it needs more (EncoderConfig.encoder_options)"""
        super().__init__()
        self.n_chans, self.n_times, self.n_features, self.normalise = n_chans, n_times, n_features, normalise
        self.encoder = make_encoder(encoder, n_chans, n_times, n_features, dropout, width, **options)

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        features = self.encoder(eeg, subject)
        return F.normalize(features, dim=1) if self.normalise else features


ROWS = 256  # compared with all others at once: memory grows with one set of features, not with the product of two


def retrieval_at_1(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose nearest other row has the same label. features (n, d), labels (n,)."""
    if len(features) < 2:
        return float("nan")
    nearest = []
    for first, rows in zip(range(0, len(features), ROWS), features.split(ROWS), strict=True):
        distance = torch.cdist(rows.double(), features.double())
        distance[:, first : first + len(rows)].fill_diagonal_(float("inf"))
        nearest.append(distance.argmin(1))
    return (labels[torch.cat(nearest)] == labels).double().mean().item()


def knn_labels(train: torch.Tensor, train_labels: torch.Tensor, features: torch.Tensor, k: int = 15) -> torch.Tensor:
    """The most frequent label among the k nearest train rows of each row (ties: the smaller label), (n,)."""
    classes, guesses = int(train_labels.max()) + 1, [train_labels[:0]]
    for rows in features.split(ROWS):
        near = train_labels[torch.cdist(rows.double(), train.double()).topk(min(k, len(train)), largest=False).indices]
        guesses.append(F.one_hot(near, classes).sum(1).argmax(1))
    return torch.cat(guesses)


def linear_accuracy(
    train: torch.Tensor, train_labels: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, ridge: float = 1e-2
) -> float:
    """Accuracy of ridge regression of one-hot labels on features, both standardised by train statistics, in closed
    form; `ridge` is a fraction of the number of train rows."""
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
    x = (train.double() - mean) / std
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    sums = x.new_zeros(int(train_labels.max()) + 1, x.shape[1]).index_add_(0, train_labels, x)  # one-hot labels.T @ x
    penalty = ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    penalty[-1, -1] = 1e-9 * len(x)  # the intercept is free
    weights = torch.linalg.solve(x.T @ x + penalty, sums.T)
    z = (features.double() - mean) / std
    scores = torch.cat([z, torch.ones_like(z[:, :1])], 1) @ weights
    return (scores.argmax(1) == labels).double().mean().item()
