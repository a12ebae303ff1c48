"""The metrics of pictures and of features: PixCorr, SSIM and LPIPS of pairs; two-way identification and correlation
distance (the MindEye suite, Scotti et al. 2023); FID and KID of sets. Networks: networks.py.

The suite's SSIM here is not that of metrics.py: grey by ITU-R BT.709 as scikit-image, at 425 px, without the border.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from neuroimagen.evaluation.networks import Lpips, suite_pictures

SUITE_PIXELS = 425
SETTINGS = {
    "suite": "pictures at 256 x 256, then 425 x 425 (bilinear, antialiased), as the MindEye suite",
    "own": "pictures at their own size",
}
FID_FEATURES = 2048


def correlation(features: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of each row of (n, D) with each of (m, D) -> (n, m). A constant row correlates 0 with all."""
    centred = features - features.mean(1, keepdim=True)
    # A centred row is blind to the mean of the other, so the many truths need no centred copy.
    spread = torch.stack([row.double().var(correction=0).mul(len(row)).sqrt() for row in truths]).to(features.dtype)
    norms = centred.norm(dim=1)[:, None] * spread
    return torch.where(norms > 0, centred @ truths.T / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


def pixcorr(images: torch.Tensor, truths: torch.Tensor, setting: Literal["suite", "own"] = "suite") -> torch.Tensor:
    """Pearson correlation of all values of picture pairs: (B, 3, H, W) twice, in [0, 1] -> (B,); see SETTINGS.

    0 if either is of one colour. "own" needs pairs of one size.
    """
    if setting == "suite":
        images, truths = suite_pictures(images, SUITE_PIXELS), suite_pictures(truths, SUITE_PIXELS)
    assert images.shape == truths.shape, (images.shape, truths.shape)
    return 1 - correlation_distance(images.flatten(1), truths.flatten(1))
