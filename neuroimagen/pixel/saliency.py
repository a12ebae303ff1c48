"""M_p: the generator of the saliency map of silhouette information, and the discriminator that trains it.

M_p(x) = G(z, f_θ(x)), z ~ N(0, I). Both networks are of the DCGAN family; docs/paper.md has the source of every choice.
Sizes are powers of two, 16 px or more; images lie in [-1, 1].
"""

import math

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


def doublings(image_size: int) -> int:
    """How many doublings lead from 4 px to image_size."""
    levels = int(math.log2(max(image_size, 1))) - 2
    if levels < 2 or 4 * 2**levels != image_size:
        raise ValueError(f"image_size must be a power of two of at least 16, not {image_size}")
    return levels


def standardise(features: torch.Tensor) -> torch.Tensor:
    """Each trial's features to mean 0, variance 1 over its entries: of unit length they would drown in the noise."""
    return F.layer_norm(features, features.shape[1:])


class Generator(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """(z (n, z_dim), features (n, n_features)) -> maps (n, 3, image_size, image_size) in [-1, 1].

    Each level doubles the side and adds its own RGB picture to the upsampled one of the level before.
    """

    def __init__(self, n_features: int, z_dim: int = 128, image_size: int = 64, width: int = 32) -> None:
        super().__init__()
        self.n_features, self.z_dim, self.image_size = n_features, z_dim, image_size
        levels = doublings(image_size)
        widths = [width * min(8, 2 ** (levels - i)) for i in range(levels + 1)]  # from 4 px to image_size
        self.start = nn.Linear(z_dim + n_features, widths[0] * 16)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(b, 8), b) for b in widths[1:])
        self.pictures = nn.ModuleList(nn.Conv2d(w, 3, 1) for w in widths)

    def forward(self, z: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(self.start(torch.cat([z, standardise(features)], 1)), 0.2).unflatten(1, (-1, 4, 4))
        picture = self.pictures[0](hidden)
        for conv, norm, to_picture in zip(self.convs, self.norms, self.pictures[1:], strict=True):
            hidden = F.leaky_relu(norm(conv(F.interpolate(hidden, scale_factor=2.0))), 0.2)
            picture = F.interpolate(picture, scale_factor=2.0, mode="bilinear") + to_picture(hidden)
        return torch.tanh(picture)


class Discriminator(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """(images (n, 3, image_size, image_size), features (n, n_features)) -> scores (n,) = ψ(φ(y)) + <V f, φ(y)>."""

    def __init__(self, n_features: int, image_size: int = 64, width: int = 32, spectral: bool = True) -> None:
        super().__init__()
        levels = doublings(image_size)
        wrap = spectral_norm if spectral else (lambda layer: layer)
        widths = [3] + [width * min(8, 2**i) for i in range(levels)]
        self.convs = nn.ModuleList(
            wrap(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.score = wrap(nn.Linear(widths[-1] * 16, 1))
        self.project = wrap(nn.Linear(n_features, widths[-1] * 16, bias=False))

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden = images
        for conv in self.convs:
            hidden = F.leaky_relu(conv(hidden), 0.2)
        hidden = hidden.flatten(1)
        match = (self.project(standardise(features)) * hidden).sum(1) / math.sqrt(hidden.shape[1])
        return self.score(hidden).squeeze(1) + match
