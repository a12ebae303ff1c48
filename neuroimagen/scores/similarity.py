"""Likeness of pictures to the pictures seen (SSIM, PixCorr), and distances of sets of features (FID, KID).

Pictures are (B, 3, H, W) and (m, 3, H, W) in [0, 1]; pairs (p, 2) are integers, a row of the first and one of the
second each. LPIPS: networks.py. Distances of features: measure.py.
"""

import functools
import math

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F

from neuroimagen.run.collectives import spread
from neuroimagen.scores.networks import SUITE_SIDE, resize, suite_pictures

SUITE_PIXELS = 425
SSIM_SETTINGS = "SSIM: Gaussian window 11 x 11, sigma 1.5, k1 0.01, k2 0.03, data range 1, borders mirrored"
KID_ROWS = 256  # of the kernel matrix at once

_WINDOW = [math.exp(-(i**2) / (2 * 1.5**2)) for i in range(6)]  # the middle and one side
_WINDOW = [weight / (_WINDOW[0] + 2 * sum(_WINDOW[1:])) for weight in _WINDOW]


def _blur(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """The Gaussian window along one axis, which shrinks by 10: shifted maps added, a tenth of a convolution's time."""
    n = maps.shape[dim] - 10
    found = maps.narrow(dim, 5, n) * _WINDOW[0]
    for i, weight in enumerate(_WINDOW[1:], 1):
        found.add_(maps.narrow(dim, 5 - i, n) + maps.narrow(dim, 5 + i, n), alpha=weight)
    return found


def _similar(x: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """SSIM (p, C) of pairs (p, 2), a row of x (B, C, H, W) and one of truths (m, C, H, W) each.

    Moments are taken once of each picture, so a pair costs the blur of a product. Borders are mirrored, or left out of
    the mean.
    """
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, these are {tuple(x.shape[-2:])}")

    if mirrored:  # of a product too, as that of mirrored pictures is mirrored
        x, truths = (F.pad(images, (5, 5, 5, 5), mode="reflect") for images in (x, truths))

    def blur(maps: torch.Tensor) -> torch.Tensor:
        return _blur(_blur(maps, -1), -2)

    def moments(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, square = blur(torch.cat([maps, maps * maps])).chunk(2)
        return mean, mean * mean, square - mean * mean

    few = max(1, 200_000 // x[0].numel())  # at once, so that their maps stay in the cache
    c1, c2, found = 0.01**2, 0.03**2, x.new_empty(len(pairs), x.shape[1])
    mx, mx2, vx = (torch.cat(part) for part in zip(*map(moments, x.split(few)), strict=True))
    mx2, vx = mx2 + c1, vx + c2
    for t, truth in enumerate(truths[:, None]):
        my, my2, vy = moments(truth)
        for mine in (pairs[:, 1] == t).nonzero()[:, 0].split(few):
            i = pairs[mine, 0]
            both = mx[i] * my
            covariance = blur(x[i] * truth).sub_(both)
            above = both.mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
            found[mine] = above.div_((mx2[i] + my2).mul_(vx[i] + vy)).mean((2, 3))
    return found


def _grey(images: torch.Tensor, weights: tuple[float, float, float]) -> torch.Tensor:
    return (images * images.new_tensor(weights).view(1, 3, 1, 1)).sum(1, keepdim=True)


def ssim(images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) with SSIM_SETTINGS -> (p, 2): in colour, the mean of the three channels,
    and in grey, of luma (ITU-R BT.601). That of Eq. 5, with gradients: pixel/losses.py.
    """
    assert images.shape[1:] == truths.shape[1:] and images.shape[1] == 3, (images.shape, truths.shape)
    luma = (0.299, 0.587, 0.114)
    images, truths = (torch.cat([x, _grey(x, luma)], 1) for x in (images, truths))
    by_channel = _similar(images, truths, pairs, mirrored=True)
    return torch.stack([by_channel[:, :3].mean(1), by_channel[:, 3]], 1)


@functools.lru_cache(maxsize=8)
def _suite_resize(n: int) -> torch.Tensor:
    """The MindEye suite's resize of n pixels, by way of 256 to 425, as a matrix (425, n)."""
    return resize(resize(torch.eye(n)[None, None], SUITE_SIDE, n), SUITE_PIXELS, n)[0, 0]


def ssim_425(images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """SSIM with the MindEye suite's settings -> (p,): grey as ITU-R BT.709, 425 px, 5 px of border left out."""
    weights = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray
    down, across = (_suite_resize(n).to(images) for n in images.shape[-2:])
    x, y = (down @ _grey(z, weights) @ across.T for z in (images, truths))
    return _similar(x, y, pairs, mirrored=False)[:, 0]


def pixcorr(images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of all pixels as in the MindEye suite, at 425 px by way of 256 -> (p,); 0 of a blank picture.
    Small ones are never made that large: resizing D is linear, and with D = QR the products of resized pictures are
    those of R z, which are no larger than z.
    """
    h, w = images.shape[-2:]
    if min(h, w) > SUITE_SIDE:  # here the plain way is the faster one
        x, y = (suite_pictures(z, SUITE_PIXELS).flatten(1).double() for z in (images, truths))
        variance, mean = zip(*(torch.var_mean(z, 1, correction=0, keepdim=True) for z in (x, y)), strict=True)
        # Of a picture that is constant but for rounding: 0
        norms = [
            torch.where(v > 1e-12 * u.square(), (v * x.shape[1]).sqrt(), 0.0)[:, 0]
            for v, u in zip(variance, mean, strict=True)
        ]
        x, least = x - mean[0], 0.0  # a centred row is blind to the mean of the other
    else:
        down, across = (_suite_resize(n).to(images).double() for n in (h, w))
        n, rows, columns = 3 * SUITE_PIXELS**2, down.sum(0), across.sum(0)
        down, across = (torch.linalg.qr(z, mode="r").R.float() for z in (down, across))

        def reduced(z: torch.Tensor) -> torch.Tensor:  # the resize keeps a constant, so the mean goes before
            mean = torch.einsum("bchw,h,w->b", z.double(), rows, columns) / n
            return (down @ (z.double() - mean.view(-1, 1, 1, 1)).float() @ across.T).flatten(1)

        x, y = reduced(images), reduced(truths)
        norms, least = [x.norm(dim=1), y.norm(dim=1)], 1e-9 * n
    i, j = pairs.T
    both = norms[0][i] * norms[1][j]
    return torch.where(both <= least, 0.0, (x @ y.T)[i, j] / both.clamp(min=1e-30)).to(images.dtype)


def frechet_distance(features: np.ndarray | torch.Tensor, truths: np.ndarray | torch.Tensor) -> float:
    """FID (Heusel et al. 2017): |difference of means|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)) of (n, D) and (m, D).

    Exact without the root of a matrix, which of small samples is singular: with centred features A and B its trace is
    the sum of the singular values of A B' / sqrt((n - 1)(m - 1)). In float64. ValueError: fewer than two pictures.
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
    of each one's own truth y. The mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) over all pairs x, x' of different
    pictures, as those of one are not independent: unbiased, and 0 of the truths themselves. Float64. Collective: every
    rank; any number of processes finds the same bits. ValueError: reconstructions of fewer than two pictures.
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
