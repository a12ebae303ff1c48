"""EEG to the embeddings of the picture seen, in the spaces of one or several features files."""

import math
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuroimagen.encoders import make_encoder

START = {"infonce": (1 / 0.07, None), "siglip": (10.0, -10.0)}  # logit scale and bias: CLIP's, SigLIP's
LARGEST = 100.0  # logit scale, as in CLIP


class ContrastiveEncoder(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """EEG (batch, n_chans, n_times) -> {name of features file: (batch, D)}, in that file's own units, of any length.

    A backbone, and one linear layer or none (head). They predict offsets from the mean of the train trials' features,
    in units of their spread (`set_targets`); cosines are taken of these offsets (`compared`), true or predicted.
    standardise: none, the features as they are; centre, their mean is subtracted and all are divided by one number,
    the root mean square of what is left; each, every number of a feature is divided by its own standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        targets: dict[str, dict[str, Any]],
        encoder: str = "lstm",
        n_features: int = 128,
        dropout: float = 0.0,
        encoder_width: int | None = None,
        loss: str = "infonce",
        standardise: str = "centre",
        head: str = "linear",
        **options: Any,
    ) -> None:
        """targets: name -> what the features file says of itself, its "width", D, and "place" among them; options: of
        make_encoder."""
        super().__init__()
        targets = dict(sorted(targets.items(), key=lambda item: item[1].get("place", 0)))  # config.json sorts by name
        self.n_chans, self.n_times, self.targets, self.standardise = n_chans, n_times, targets, standardise
        self.widths = [about["width"] for about in targets.values()]
        self.encoder = make_encoder(encoder, n_chans, n_times, n_features, dropout, encoder_width, **options)
        self.output = nn.Linear(n_features, sum(self.widths)) if head == "linear" else nn.Identity()
        self.register_buffer("mean", torch.zeros(sum(self.widths)))
        self.register_buffer("std", torch.ones(sum(self.widths)))
        scale, bias = START[loss]
        self.log_scale = nn.Parameter(torch.full((len(targets),), math.log(scale)))
        self.bias = None if bias is None else nn.Parameter(torch.full((len(targets),), bias))

    def set_targets(self, vectors: Tensor, shown: Tensor) -> None:
        """Measure mean and spread: vectors (n, ΣD) of distinct pictures, shown (n,) in how many train trials each."""
        if self.standardise == "none":
            return
        weights = (shown / shown.sum()).double()
        mean = weights @ vectors.double()
        variance = weights @ (vectors.double() - mean).square()
        variance *= variance > 1e-12 * mean.square()  # of a constant, what the rounding of its mean leaves
        if self.standardise == "centre":
            variance = torch.cat([part.mean().expand(len(part)) for part in variance.split(self.widths)])
        self.mean.copy_(mean)
        self.std.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))

    def offsets(self, vectors: Tensor) -> Tensor:
        """(n, ΣD), features side by side, as what the last layer predicts."""
        return (vectors - self.mean) / self.std

    def named(self, vectors: Tensor) -> dict[str, Tensor]:
        """(n, ΣD) -> name of features file: (n, D)."""
        return dict(zip(self.targets, vectors.split(self.widths, 1), strict=True))

    def compared(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of predictions or true features: unit vectors, whose products are the cosines that the contrast is of."""
        mean, std = (dict(zip(self.targets, x.split(self.widths), strict=True)) for x in (self.mean, self.std))
        return {name: F.normalize((x - mean[name]) / std[name], dim=1) for name, x in embeddings.items()}

    def forward(self, eeg: Tensor, subject: Tensor | None = None, parts: int = 0) -> Any:
        """parts: for training, of which the backbone holds the activations of one at a time; then the offsets
        (batch, ΣD), and logit scale and bias of each target (in it, as ZeRO-3 and DDP want to see what is trained)."""
        if not parts:
            return self.named(self.mean + self.std * self._offsets(eeg, subject))
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST))
        if parts == 1:
            offsets = self._offsets(eeg, subject)
        else:
            cut = zip(eeg.chunk(parts), subject.chunk(parts) if subject is not None else [None] * parts, strict=True)
            offsets = torch.cat([checkpoint(self._offsets, *part, use_reentrant=False) for part in cut])
        return offsets, self.log_scale.exp(), self.bias

    def _offsets(self, eeg: Tensor, subject: Tensor | None) -> Tensor:
        return self.output(self.encoder(eeg, subject))
