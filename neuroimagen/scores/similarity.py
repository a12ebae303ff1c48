"""The metrics of pictures and of features: PixCorr, SSIM and LPIPS of pairs; two-way identification and correlation
distance (the MindEye suite, Scotti et al. 2023); FID and KID of sets. Networks: networks.py.

Features are (n, D) float32, as `Network.features` gives them. A correlation with a constant row (a blank picture, a
network that says the same of everything) is taken as 0.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from neuroimagen.run.collectives import spread
from neuroimagen.scores.networks import Lpips, suite_pictures

SUITE_PIXELS = 425
Setting = Literal["suite", "own"]
SETTINGS = {
    "suite": "pictures at 256 x 256, then 425 x 425 px (bilinear, antialiased), as the MindEye suite",
    "own": "pictures at their own size",
}
SUITE_SSIM = (
    "SSIM of the MindEye suite: grey as ITU-R BT.709, 425 px, Gaussian sigma 1.5 (11 x 11), population covariance, "
    "data range 1, without the 5 px at the border"
)
_GREY = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray
FID_FEATURES = 2048
KID_ROWS = 256  # of the kernel matrix at once


def _sized(images: torch.Tensor, truths: torch.Tensor, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    if setting == "suite":
        return suite_pictures(images, SUITE_PIXELS), suite_pictures(truths, SUITE_PIXELS)
    if images.shape[1:] != truths.shape[1:]:
        raise ValueError(
            f"pictures of shape {tuple(images.shape)} and {tuple(truths.shape)} cannot be compared at their own size"
        )
    return images, truths


def pixcorr(
    images: torch.Tensor, truths: torch.Tensor, setting: Setting = "suite", pairs: torch.Tensor | None = None
) -> torch.Tensor:
    """Pearson correlation of all values of each picture pair: (B, 3, H, W) twice, in [0, 1] -> (B,). See SETTINGS.

    pairs: (p, 2), a row of images and one of truths; without them, picture i belongs to truth i.
    """
    x, y = (z.flatten(1) for z in _sized(images, truths, setting))
    if pairs is None:
        return 1 - correlation_distance(x, y)
    (x_mean, x_norm), (_, y_norm) = _norms(x.double()), _norms(y.double())
    norms = x_norm[:, None] * y_norm
    products = (x.double() - x_mean[:, None]) @ y.double().T
    found = torch.where(norms > 0, products / norms.clamp_min(1e-300), 0.0)
    return found[pairs[:, 0], pairs[:, 1]].to(images.dtype)


def ssim_suite(images: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """SSIM as the MindEye suite has it (SUITE_SSIM): (B, 3, H, W) twice, in [0, 1] -> (B,). Not that of metrics.py."""
    images, truths = _sized(images, truths, "suite")
    weights = images.new_tensor(_GREY).view(1, 3, 1, 1)
    _, every_pixel = structural_similarity_index_measure(
        (images * weights).sum(1, keepdim=True), (truths * weights).sum(1, keepdim=True),
        gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True,
    )  # fmt: skip
    return every_pixel[:, 0, 5:-5, 5:-5].mean((1, 2))


@torch.inference_mode()
def lpips(
    images: torch.Tensor, truths: torch.Tensor, network: Lpips, pairs: torch.Tensor | None = None
) -> torch.Tensor:
    """Learned perceptual distance at the pictures' own size: (B, 3, H, W) twice, in [0, 1] -> (B,) on the CPU.

    0 = the same. network: `networks.load_lpips`. pairs: as `pixcorr`.
    ValueError: pictures under 35 px, of which AlexNet leaves nothing.
    """
    images, truths = _sized(images, truths, "own")
    if min(images.shape[-2:]) < 35:
        raise ValueError(f"LPIPS needs pictures of at least 35 x 35 pixels, these are {tuple(images.shape[-2:])}")
    device = next(network.parameters()).device
    if pairs is None:
        pairs = torch.arange(len(images))[:, None].expand(-1, 2)
    return network(images.to(device), truths.to(device), pairs.to(device)).cpu()


def _norms(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the rows, and the norms of the rows less their means: 0 for one that is constant but for rounding."""
    variance, mean = torch.var_mean(features, 1, correction=0)
    norms = (variance * features.shape[1]).sqrt()
    return mean, torch.where(variance > 1e-12 * mean.square(), norms, 0.0)


def correlation_distance(features: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """1 - Pearson correlation of each row of (n, D) with the same row of the other -> (n,), from 0 to 2.

    The suite's EffNet-B and SwAV are means of it.
    """
    assert features.shape == truths.shape and features.ndim == 2, (features.shape, truths.shape)
    x, y = features.double(), truths.double()
    (x_mean, x_norm), (_, y_norm) = _norms(x), _norms(y)
    norms = x_norm * y_norm
    products = ((x - x_mean[:, None]) * y).sum(1)  # a centred row is blind to the mean of the other
    return (1 - torch.where(norms > 0, products / norms.clamp_min(1e-300), 0.0).clamp(-1, 1)).to(features.dtype)


class Gallery(NamedTuple):
    """The different ground-truth pictures' features (m, D), prepared for `farther` and `two_way`."""

    features: torch.Tensor
    norms: torch.Tensor

    @staticmethod
    def of(truths: torch.Tensor) -> "Gallery":
        return Gallery(truths, _norms(truths)[1])


def farther(
    features: torch.Tensor, truths: torch.Tensor | Gallery, which: torch.Tensor, batch_size: int = 64
) -> torch.Tensor:
    """How many of the other truths correlate less with each picture than its own truth does: (n,) integers, 0 to m - 1.

    features: (n, D), of reconstructions. truths: (m, D), of the DIFFERENT ground-truth pictures. which: (n,) integers,
    the row of each one's own truth. A tie counts against the picture, so a constant output scores 0. All pairs, no
    random draws. Memory: the arguments and `batch_size` rows more; pictures may as well be given in several calls (then
    make the `Gallery.of(truths)` once).
    """
    truths, spread = truths if isinstance(truths, Gallery) else Gallery.of(truths)
    assert features.ndim == truths.ndim == 2 and features.shape[1] == truths.shape[1], (features.shape, truths.shape)
    assert which.shape == features.shape[:1] and (
        not len(which) or 0 <= int(which.min()) <= int(which.max()) < len(truths)
    )
    found = []
    for part, own in zip(features.split(batch_size), which.split(batch_size), strict=True):
        mean, norms = _norms(part)
        norms = norms[:, None] * spread
        products = (part - mean[:, None]) @ truths.T  # so the many truths need no centred copy
        r = torch.where(norms > 0, products / norms.clamp_min(1e-30), 0.0)
        found.append((r < r.gather(1, own[:, None])).sum(1))
    return torch.cat(found) if found else which.new_zeros(0)


def two_way(features: torch.Tensor, truths: torch.Tensor | Gallery, which: torch.Tensor) -> torch.Tensor:
    """Two-way identification by Pearson correlation over all pairs: share of the other truths that lie farther -> (n,).

    Arguments: `farther`. Chance 0.5. The suite's AlexNet(2), AlexNet(5), Inception and CLIP are means of it. N-way
    retrieval follows from the same ranks: metrics.success_by_rank(m, N, k)[m - 1 - farther(...)].
    ValueError: fewer than two truths.
    """
    m = len(truths.features if isinstance(truths, Gallery) else truths)
    if m < 2:
        raise ValueError(f"two-way identification needs at least two ground-truth pictures, there are {m}")
    return farther(features, truths, which).float() / (m - 1)


def fid_warning(n: int, m: int) -> str | None:
    """What has to be said of an FID from n and m pictures; None from 2,049 on."""
    least = min(n, m)
    if least > FID_FEATURES:
        return None
    return (
        f"FID from {n} and {m} pictures: below {FID_FEATURES + 1} the covariance of {FID_FEATURES} features is "
        "rank-deficient and the number too high; compare it only with numbers from as many pictures, or take KID"
    )


def frechet_distance(features: np.ndarray | torch.Tensor, truths: np.ndarray | torch.Tensor) -> float:
    """FID (Heusel et al. 2017): |difference of means|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) of (n, D) and (m, D).

    Exact without a matrix root: with centred features A and B, the trace of the root is the sum of the singular values
    of A B' / sqrt((n - 1)(m - 1)), which small samples do not upset (published code takes the root of a singular
    matrix). In float64. ValueError: fewer than two pictures. What to say of small samples: `fid_warning`.
    """
    x, y = np.asarray(features, np.float64), np.asarray(truths, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"FID needs at least two pictures on each side, there are {len(x)} and {len(y)}")
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    traces = np.square(a).sum() + np.square(b).sum()
    a, b = (scipy.linalg.qr(z, mode="r")[0][: z.shape[1]] if len(z) > z.shape[1] else z for z in (a, b))  # keeps Z'Z
    root = scipy.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(np.square(x.mean(0) - y.mean(0)).sum() + traces - 2 * root))  # rounding may go below


def kernel_distance(
    features: np.ndarray | torch.Tensor, truths: np.ndarray | torch.Tensor, which: np.ndarray | torch.Tensor
) -> float:
    """KID (Binkowski et al. 2018): squared MMD, kernel k(x, y) = (x.y / D + 1)^3, of reconstructions and their truths.

    features: (n, D), of reconstructions x. truths: (m, D), of the DIFFERENT ground-truth pictures. which: (n,), the row
    of each one's own truth y. The mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) over all pairs x, x' of
    different pictures: a reconstruction and its own truth, or two of one picture, are not independent. So it is
    unbiased, may be below 0, and is 0 of the truths themselves. Float64. Collective: every rank; they share blocks of
    pairs, and any number of processes finds the same bits. ValueError: reconstructions of fewer than two pictures.
    """
    of = torch.as_tensor(which)
    times = torch.bincount(of, minlength=len(truths)).double()
    if int((times > 0).sum()) < 2:
        raise ValueError("KID needs reconstructions of at least two ground-truth pictures")
    z = torch.cat([torch.as_tensor(part).double() for part in (features, truths)])
    of = torch.cat([of, torch.arange(len(truths))])
    weights = torch.cat([torch.ones(len(features)).double(), -times])  # so that the four are one sum over all of z

    def block(start: int) -> float:
        """Of some rows with all from there on; what lies beyond the diagonal counts twice."""
        rows, rest = slice(start, start + KID_ROWS), weights[start:].clone()
        rest[KID_ROWS:] *= 2
        kernel = (z[rows] @ z[start:].T).div_(z.shape[1]).add_(1).pow_(3)
        kernel.masked_fill_(of[rows, None] == of[start:], 0)
        return float(weights[rows] @ (kernel @ rest))

    return sum(spread(block, range(0, len(z), KID_ROWS))) / float(times.sum() ** 2 - times.square().sum())
