"""Views of a picture that leave out what a glance may miss; features of several are averaged.

They change the pixels (3, S, S) in [0, 1] that a tower takes, before they are normalised. Parameters, in px at S = 224
and larger or smaller with S: blur, low_resolution, mosaic and noise of NeuroBridge (feroooooo/NeuroBridge@f3f8e7f,
extract_feature.py: a 15 px kernel, a tenth of the resolution, blocks of 5 px, a deviation of 25 of 255); fovea of UBP
(HaitaoWuTJU/Uncertainty-aware-Blur-Prior, configs/eeg: FoveaBlur of 51 px, exp, system_g 3; its middle level).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _blurred(x: Tensor, kernel: int) -> Tensor:
    """By a Gaussian of `kernel` px at S = 224, of the deviation that OpenCV takes for that many; edges mirrored."""
    radius = round(kernel // 2 * x.shape[-1] / 224)
    sigma = 0.3 * (radius - 1) + 0.8
    weights = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * sigma**2))
    weights /= weights.sum()
    padded = F.pad(x[:, None], [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[:, 0]


def _fovea(x: Tensor, digest: bytes) -> Tensor:
    """Half blurred in the middle, wholly at the corners."""
    away = torch.arange(x.shape[-1]) - x.shape[-1] // 2
    distance = (away[:, None].square() + away.square()).sqrt()
    sharp = 0.5 * torch.exp(-3 * (distance / distance[-1, -1]).clamp(max=1))
    return torch.lerp(_blurred(x, 51), x, sharp)


def _low_resolution(x: Tensor, digest: bytes) -> Tensor:
    small = F.interpolate(x[None], [max(1, x.shape[-1] // 10)] * 2, mode="bilinear", antialias=True)
    return F.interpolate(small, x.shape[-2:], mode="bilinear")[0]


def _mosaic(x: Tensor, digest: bytes) -> Tensor:
    blocks = x.shape[-1] // max(1, round(5 * x.shape[-1] / 224))
    return F.interpolate(F.interpolate(x[None], [blocks] * 2, mode="bilinear"), x.shape[-2:])[0]


def _noise(x: Tensor, digest: bytes) -> Tensor:
    """The same of one picture each time: drawn by the picture's digest."""
    drawn = np.random.default_rng(list(digest)).standard_normal(x.shape, np.float32)
    return (x + 25 / 255 * torch.from_numpy(drawn)).clamp(0, 1)


VIEWS: dict[str, Callable[[Tensor, bytes], Tensor]] = {  # (pixels, SHA-256 of the picture) -> pixels
    "original": lambda x, digest: x,
    "blur": lambda x, digest: _blurred(x, 15),
    "low_resolution": _low_resolution,
    "mosaic": _mosaic,
    "noise": _noise,
    "fovea": _fovea,
}
