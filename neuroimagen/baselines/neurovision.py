"""NeuroVision (Khare et al. 2022): a classifier of EEG, followed by a conditional progressive GAN that draws its class.

The GAN is the progressively grown one of Karras et al. 2018: levels of 4, 8, 16 ... px, each faded in; equalised
learning rate, pixel norm, minibatch standard deviation. docs/baselines.md names the source of every choice. Inside,
images lie about [-1, 1]: the output is linear.
"""

import math
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from neuroimagen.baselines.classifier import EegClassifier
from neuroimagen.encoders import make_encoder
from neuroimagen.pixel.saliency import doublings

GROUP = 4  # adjacent trials that share a minibatch standard deviation, so that it does not depend on how a batch is cut


def growth(step: int, phase_steps: int, levels: int) -> tuple[int, float]:
    """(level, α) of a step: level 0 for one phase; then each next level is faded in over one phase, its weight α rising
    to 1, and trained on over another; the last one to the end (Karras et al. 2018, Figure 2 and appendix A.1)."""
    phase, position = divmod(step, phase_steps)
    level = (phase + 1) // 2
    if level >= levels:
        return levels - 1, 1.0
    return level, (position + 1) / phase_steps if phase % 2 else 1.0


class PixelNorm(nn.Module):
    """Karras et al. 2018, section 4.2: each pixel's (or row's) features to mean square 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


pixel_norm = PixelNorm()


def minibatch_stddev(x: torch.Tensor, group: int = GROUP) -> torch.Tensor:
    """Karras et al. 2018, section 3: (n, C, H, W) -> (n, C + 1, H, W); the added channel holds the standard deviation
    over each `group` adjacent rows, averaged over channels and places."""
    n, _, height, width = x.shape
    spread = (x.unflatten(0, (-1, group)).var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, spread.repeat_interleave(group)[:, None, None, None].expand(n, 1, height, width)], 1)


def at_level(images: torch.Tensor, level: int, alpha: float) -> torch.Tensor:
    """Real pictures (n, 3, S, S) as the discriminator sees them at that level and α: their details fade in, too."""
    images = F.adaptive_avg_pool2d(images, 4 * 2**level)
    return images if alpha == 1 else _fade(F.avg_pool2d(images, 2), images, alpha)


def _fade(coarse: torch.Tensor, fine: torch.Tensor, alpha: float) -> torch.Tensor:
    """α of `fine`, the rest of `coarse`, which has half its side."""
    return torch.lerp(F.interpolate(coarse, scale_factor=2.0), fine, alpha)


def _idle(network: Any, pictures: set[int], level: int) -> torch.Tensor:
    """Zero, with a gradient of zero for the layers of other levels: DistributedDataParallel waits for every one."""
    idle = [layer for i, layer in enumerate(network.pictures) if i not in pictures] + list(network.blocks[level:])
    parameters = [p for layer in idle for p in layer.parameters()]
    return 0 * torch.stack([p.sum() for p in parameters]).sum() if parameters else torch.zeros(())


class EqualConv(nn.Module):
    """A convolution (linear layer: of a 1 x 1 map) of weights from N(0, 1), scaled by He's constant when used: the
    equalised learning rate (Karras et al. 2018, section 4.1)."""

    def __init__(self, n_in: int, n_out: int, size: int = 3, padding: int | None = None, gain: float = 2**0.5) -> None:
        super().__init__()
        self.padding = size // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.randn(n_out, n_in, size, size))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.scale = gain / math.sqrt(n_in * size * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def _widths(image_size: int, width: int, max_width: int) -> list[int]:
    """Channels from 4 px to image_size: `width` at image_size, doubled with every halving, at most max_width."""
    return [min(max_width, width * 2**i) for i in range(doublings(image_size), -1, -1)]


class Generator(nn.Module):
    """(z (n, z_dim), classes (n, n_classes) one-hot, level, α) -> images (n, 3, s, s), s = 4 * 2^level."""

    def __init__(self, n_classes: int, z_dim: int, image_size: int, width: int, max_width: int) -> None:
        super().__init__()
        widths, after = _widths(image_size, width, max_width), (nn.LeakyReLU(0.2), pixel_norm)
        self.start = EqualConv(z_dim + n_classes, widths[0] * 16, 1, gain=2**0.5 / 4)
        self.first = nn.Sequential(EqualConv(widths[0], widths[0]), *after)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2.0), EqualConv(a, b), *after, EqualConv(b, b), *after)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.pictures = nn.ModuleList(EqualConv(w, 3, 1, gain=1.0) for w in widths)

    def forward(self, z: torch.Tensor, classes: torch.Tensor, level: int, alpha: float) -> torch.Tensor:
        x = torch.cat([pixel_norm(z), classes.to(z.dtype)], 1)[:, :, None, None]
        x = pixel_norm(F.leaky_relu(self.start(x).flatten(1).unflatten(1, (-1, 4, 4)), 0.2))
        coarse = x = self.first(x)
        for block in self.blocks[:level]:
            coarse, x = x, block(x)
        image, used = self.pictures[level](x), {level}
        if alpha < 1:
            image, used = _fade(self.pictures[level - 1](coarse), image, alpha), {level - 1, level}
        return image + _idle(self, used, level).to(image)


class Discriminator(nn.Module):
    """(images (n, 3, s, s), level, α) -> scores (n,) and class scores (n, n_classes) (Odena et al. 2017, AC-GAN)."""

    def __init__(self, n_classes: int, image_size: int, width: int, max_width: int) -> None:
        super().__init__()
        widths = _widths(image_size, width, max_width)
        self.pictures = nn.ModuleList(EqualConv(3, w, 1) for w in widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(EqualConv(b, b), nn.LeakyReLU(0.2), EqualConv(b, a), nn.LeakyReLU(0.2), nn.AvgPool2d(2))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.last = EqualConv(widths[0] + 1, widths[0])
        self.dense = EqualConv(widths[0], widths[0], 4, padding=0)
        self.output = EqualConv(widths[0], 1 + n_classes, 1, gain=1.0)

    def forward(self, images: torch.Tensor, level: int, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        x, used = F.leaky_relu(self.pictures[level](images), 0.2), {level}
        for i in range(level - 1, -1, -1):
            x = self.blocks[i](x)
            if i == level - 1 and alpha < 1:
                coarse = F.leaky_relu(self.pictures[i](F.avg_pool2d(images, 2)), 0.2)
                x, used = torch.lerp(coarse, x, alpha), {level - 1, level}
        x = F.leaky_relu(self.last(minibatch_stddev(x)), 0.2)
        out = self.output(F.leaky_relu(self.dense(x), 0.2)).flatten(1)
        out = out + _idle(self, used, level).to(out)
        return out[:, 0], out[:, 1:]


class NeuroVision(nn.Module, PyTorchModelHubMixin, library_name="neuroimagen", license="apache-2.0"):
    """What a run of trainers/neurovision.py exports: EEG and noise to pictures by `draw`.

    width: channels at full size, doubled with every halving, at most max_width.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_classes: int,
        encoder: str = "lstm",
        n_features: int = 128,
        dropout: float = 0.0,
        encoder_width: int | None = None,
        z_dim: int = 512,
        image_size: int = 128,
        width: int = 128,
        max_width: int = 512,
        **options: Any,
    ) -> None:
        """options: of make_encoder, where it needs more (EncoderConfig.encoder_options)"""
        super().__init__()
        self.n_chans, self.n_times, self.n_classes = n_chans, n_times, n_classes
        self.z_dim, self.image_size = z_dim, image_size
        backbone = make_encoder(encoder, n_chans, n_times, n_features, dropout, encoder_width, **options)
        self.classifier = EegClassifier(backbone, n_features, n_classes)
        self.generator = Generator(n_classes, z_dim, image_size, width, max_width)

    @torch.no_grad()
    def draw(self, eeg: torch.Tensor, z: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        """EEG (n, n_chans, n_times) and noise N(0, 1) (n, z_dim) -> pictures (n, 3, S, S) in [0, 1], of the class that
        the classifier finds most probable."""
        classes = F.one_hot(self.classifier(eeg, subject)[1].argmax(1), self.n_classes)
        return self.generator(z, classes, doublings(self.image_size), 1.0).add(1).div(2).clamp(0, 1)
