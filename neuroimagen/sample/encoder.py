"""M_s: EEG to the prompt embedding that steers the latent diffusion model (Eq. 7)."""

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from neuroimagen.encoders import make_encoder


class SampleEncoder(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """EEG (batch, n_chans, n_times) -> h_clip (batch, n_tokens, width): 77 x 768 for Stable Diffusion 1.x.

    An EEG backbone, two layers of GELU, as a linear function of EEG only shrinks towards the mean of all captions
    (docs/paper.md), and a linear one. That predicts in the train captions' standard deviations about their mean, entry
    by entry (`set_targets`): these differ by orders of magnitude, and the first token never varies. Eq. 7 itself is
    computed on h_clip, in the text encoder's own units.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_tokens: int,
        width: int,
        encoder: str = "lstm",
        n_features: int = 128,
        dropout: float = 0.0,
        encoder_width: int | None = None,
        **options: Any,
    ) -> None:
        """options: of make_encoder, where it needs more (EncoderConfig.encoder_options)"""
        super().__init__()
        self.n_chans, self.n_times, self.n_tokens, self.width = n_chans, n_times, n_tokens, width
        self.encoder = make_encoder(encoder, n_chans, n_times, n_features, dropout, encoder_width, **options)
        self.hidden = nn.Sequential(nn.LayerNorm(n_features), nn.GELU(), nn.Linear(n_features, n_features), nn.GELU())
        self.output = nn.Linear(n_features, n_tokens * width)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.zeros(n_tokens, width))
        self.register_buffer("std", torch.ones(n_tokens, width))

    def set_targets(self, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Centre and scale of the output: mean and standard deviation over trials of the train captions.

        targets (n, n_tokens, width), one for each distinct caption; weights (n,), its share of the train trials.
        """
        mean = torch.einsum("n,nld->ld", weights, targets)
        variance = torch.einsum("n,nld->ld", weights, (targets - mean).square())
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt())

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        offset = self.output(self.hidden(self.encoder(eeg, subject))).unflatten(1, (self.n_tokens, self.width))
        return self.mean + self.std * offset

    def rescaled(self, embedding: torch.Tensor) -> torch.Tensor:
        """h_clip (n, n_tokens, width) at the train captions' root mean square distance from their mean, direction kept:
        Eq. 7 leaves it nearer, which the diffusion model reads as a weaker caption (docs/paper.md)."""
        offset = embedding - self.mean
        length = offset.flatten(1).norm(dim=1).clamp(min=1e-12)
        return self.mean + offset * (self.std.norm() / length)[:, None, None]


def short_embeddings(model: SampleEncoder) -> Callable[..., torch.Tensor]:
    """EEG (B, n_chans, n_times), subject (B,) or None -> (B, n_features + 1) with the very lengths and angles of
    h_clip - mean, (B, L x D_s).

    h_clip - mean = A [hidden; 1] is linear in what the last layer sees, so with A = QR its inner products are those of
    R [hidden; 1]. To compare many trials this takes 513 numbers each instead of Stable Diffusion's 77 x 768 = 59,136.
    """
    with torch.no_grad():
        a = torch.cat([model.output.weight, model.output.bias[:, None]], 1) * model.std.flatten()[:, None]
        r = torch.linalg.qr(a, mode="r").R

    def embed(eeg: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        hidden = model.hidden(model.encoder(eeg, subject))
        return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1) @ r.T

    return embed


def embedding_loss(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Eq. 7: |h_clip - ĥ_clip|², the squared L2 norm over all entries, mean over the batch; both (n, L, D).

    weights (n,): of the trials, 1 on average over the train split (not the batch, so that processes may share one).
    """
    errors = (prediction - target).square().flatten(1).sum(1)
    return (errors if weights is None else weights * errors).mean()


def nearest_caption(prediction: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """Index (n,) of the caption embedding (m, L, D) nearest in squared L2 to each prediction (n, L, D)."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(prediction.flatten(1), captions.flatten(1), compute_mode=exact).argmin(1)
