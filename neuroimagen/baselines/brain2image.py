"""Brain2Image (Kavasidis et al. 2017): LSTM features of EEG, trained by classification, turned into pictures by a
conditional GAN or by a variational autoencoder's decoder.

The GAN is the one of Palazzo et al. 2017 ("Generative adversarial networks conditioned by brain signals"): DCGAN
(Radford et al. 2016) with the matching-aware discriminator of Reed et al. 2016. docs/baselines.md names the source of
every choice. Sizes are powers of two, 16 px or more; inside, images lie in [-1, 1].
"""

import math
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from neuroimagen.baselines.classifier import EegClassifier
from neuroimagen.encoders import make_encoder
from neuroimagen.pixel.saliency import doublings, standardise


def _norm(kind: str, width: int) -> nn.Module:
    if kind not in ("batch", "group"):
        raise ValueError(f"norm must be batch or group, not {kind!r}")
    return {"batch": nn.BatchNorm2d(width), "group": nn.GroupNorm(math.gcd(width, 8), width)}[kind]


def _dcgan_weights(module: nn.Module) -> None:
    """Radford et al. 2016: weights from N(0, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)


def _upsampler(n_inputs: int, image_size: int, width: int, norm: str) -> nn.Sequential:
    """DCGAN's generator, (n, n_inputs, 1, 1) -> (n, 3, image_size, image_size) in [-1, 1]: transposed convolutions."""
    levels = doublings(image_size)
    widths = [width * min(8, 2 ** (levels - 1 - i)) for i in range(levels)]  # from 4 px to image_size / 2
    layers: list[nn.Module] = [nn.ConvTranspose2d(n_inputs, widths[0], 4, bias=False)]
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [_norm(norm, a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False)]
    layers += [_norm(norm, widths[-1]), nn.ReLU(), nn.ConvTranspose2d(widths[-1], 3, 4, stride=2, padding=1), nn.Tanh()]
    return nn.Sequential(*layers).apply(_dcgan_weights)


class Generator(nn.Module):
    """(z (n, z_dim), EEG features (n, n_features)) -> images (n, 3, S, S): both concatenated, then DCGAN."""

    def __init__(self, n_features: int, z_dim: int, image_size: int, width: int, norm: str) -> None:
        super().__init__()
        self.body = _upsampler(z_dim + n_features, image_size, width, norm)

    def forward(self, z: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.body(torch.cat([z, standardise(features)], 1)[:, :, None, None])


class VariationalDecoder(nn.Module):
    """(noise (n, z_dim), EEG features) -> images, and mean and log variance of q(z | EEG), each (n, z_dim).

    The encoder of the VAE reads EEG instead of the picture: z = mean + standard deviation * noise.
    """

    def __init__(self, n_features: int, z_dim: int, image_size: int, width: int, norm: str) -> None:
        super().__init__()
        self.posterior = nn.Linear(n_features, 2 * z_dim)
        self.body = _upsampler(z_dim, image_size, width, norm)

    def forward(self, noise: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.posterior(standardise(features)).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * noise
        return self.body(z[:, :, None, None]), mean, log_variance


class Discriminator(nn.Module):
    """(images (n, 3, S, S), EEG features (k * n, n_features)) -> scores (k * n,): real and of this EEG, or not.

    DCGAN's convolutions to 4 px; there the features, through a layer of their own, join every place (Reed et al. 2016).
    The i-th n rows of the features are judged with the same images. `class_features` (n_classes, n_features) are the
    representative features of each class in `known`, the wrong conditions of training; they live here to be in the
    checkpoints.
    """

    class_features: torch.Tensor
    known: torch.Tensor

    def __init__(self, n_classes: int, n_features: int, image_size: int, width: int, norm: str) -> None:
        super().__init__()
        levels = doublings(image_size)
        widths = [width * min(8, 2**i) for i in range(levels)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False), _norm(norm, b), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.condition = nn.Linear(n_features, n_features)
        self.joint = nn.Sequential(
            nn.Conv2d(widths[-1] + n_features, widths[-1], 1), nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4)
        )
        self.apply(_dcgan_weights)
        self.register_buffer("class_features", torch.zeros(n_classes, n_features))
        self.register_buffer("known", torch.zeros(n_classes, dtype=torch.bool))

    def forward(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden = self.body(images).repeat(len(features) // len(images), 1, 1, 1)
        condition = F.leaky_relu(self.condition(standardise(features)), 0.2)[:, :, None, None]
        return self.joint(torch.cat([hidden, condition.expand(-1, -1, 4, 4)], 1)).flatten()


class Brain2Image(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """What a run of trainers/brain2image.py exports: EEG and noise to pictures by `draw`.

    variant: gan | vae; width: channels at half size, doubled with every halving, at most 8 times.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_classes: int,
        variant: str = "gan",
        encoder: str = "lstm",
        n_features: int = 128,
        dropout: float = 0.0,
        encoder_width: int | None = None,
        z_dim: int = 100,
        image_size: int = 64,
        width: int = 64,
        norm: str = "batch",
        **options: Any,
    ) -> None:
        """options: of make_encoder, where it needs more (EncoderConfig.encoder_options)"""
        super().__init__()
        if variant not in ("gan", "vae"):
            raise ValueError(f"variant must be gan or vae, not {variant!r}")
        self.n_chans, self.n_times, self.n_classes = n_chans, n_times, n_classes
        self.variant, self.z_dim, self.image_size = variant, z_dim, image_size
        backbone = make_encoder(encoder, n_chans, n_times, n_features, dropout, encoder_width, **options)
        self.classifier = EegClassifier(backbone, n_features, n_classes)
        kind = {"gan": Generator, "vae": VariationalDecoder}[variant]
        self.generator = kind(n_features, z_dim, image_size, width, norm)

    @torch.no_grad()
    def draw(self, eeg: torch.Tensor, z: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """EEG (n, n_chans, n_times) and noise N(0, 1) (n, z_dim) -> pictures (n, 3, S, S) in [0, 1]."""
        drawn = self.generator(z, self.classifier(eeg, subject)[0])
        images = drawn if self.variant == "gan" else drawn[0]
        return images.add(1).div(2)
