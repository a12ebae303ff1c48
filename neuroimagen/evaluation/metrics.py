"""Numbers from arrays: N-way top-k accuracy (ACC), Inception Score (IS), structural similarity (SSIM), and intervals.

Section "Evaluation Metrics" of the paper (arXiv 2308.02510) names the three and follows Chen et al. 2023 (mind-vis) for
ACC. All functions take plain arrays or tensors; pictures are float in [0, 1]. More: docs/scores.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtr, stdtrit

from neuroimagen.evaluation.networks import SUITE_SIDE, resize

SSIM_SETTINGS = "SSIM: Gaussian window 11 x 11, sigma 1.5, k1 0.01, k2 0.03, data range 1, borders mirrored"
FEWEST = 5  # units (ground-truth pictures) from which there is an interval


@functools.lru_cache(maxsize=32)
def success_by_rank(n_classes: int, n_way: int, top_k: int) -> np.ndarray:
    """Chance of success, (n_classes,) float64, of a truth that `rank` other classes beat: its rank is the index.

    n_way - 1 distractors are drawn without replacement from the other n_classes - 1 classes; success means that fewer
    than top_k of them are among the `rank` better ones: the hypergeometric P(X <= top_k - 1), here from whole numbers.
    """
    others, drawn = n_classes - 1, n_way - 1
    draws = math.comb(others, drawn)
    return np.array(
        [
            sum(math.comb(rank, j) * math.comb(others - rank, drawn - j) for j in range(min(top_k, drawn + 1))) / draws
            for rank in range(n_classes)
        ]
    )


def ranks_of(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How many other classes are at least as probable, for classes (n, T) or (T,) of (n, K) outputs: (n, T) integers.

    A tie counts against the class, so a constant output ranks every class last.
    """
    probabilities = np.ascontiguousarray(probabilities)
    assert np.isfinite(probabilities).all(), "a classifier gave a probability that is not finite"
    classes = np.broadcast_to(classes, (len(probabilities), np.shape(classes)[-1]))
    values = np.ascontiguousarray(np.take_along_axis(probabilities, classes, 1))
    less = torch.searchsorted(torch.from_numpy(np.sort(probabilities, 1)), torch.from_numpy(values)).numpy()
    return probabilities.shape[1] - less - 1  # the class itself is one of those that are not less


def check_n_way(n_classes: int, n_way: int, top_k: int) -> int:
    """The N used: what is asked for, capped at the classes. ValueError: a question that makes no sense."""
    used = min(n_way, n_classes)
    if used < 2:
        raise ValueError(f"n_way is {n_way} and the classifier has {n_classes} classes: both must be at least 2")
    if not 1 <= top_k < used:
        raise ValueError(
            f"top_k={top_k} of {used} classes says nothing (n_way={n_way}, the classifier has {n_classes}): "
            f"give top_k from 1 to {used - 1}"
        )
    return used


class NWay(NamedTuple):
    """Result of `n_way_accuracy`."""

    values: np.ndarray  # (n,) float64: each picture's expected success over all draws of distractors
    n_way: int  # the N used: what was asked for, capped at the classifier's classes
    chance: float  # top_k / N


def n_way_accuracy(probabilities: np.ndarray, truth: np.ndarray, n_way: int = 50, top_k: int = 1) -> NWay:
    """N-way top-k classification accuracy of each picture, in closed form.

    probabilities: (n, K), a classifier's output on the reconstructions. truth: (n,) integers, the class that the same
    classifier gives the ground-truth picture (paper, section "Evaluation Metrics"), or any other class taken as true.
    The published code draws the N - 1 distractors at random, 40 to 1000 times; this is what those draws converge to.
    A tie counts against the picture: a class as probable as the truth ranks before it, so a constant output scores 0.
    ValueError: N or top_k with which the question makes no sense.
    """
    probabilities, truth = np.asarray(probabilities), np.asarray(truth)
    assert probabilities.ndim == 2 and truth.shape == probabilities.shape[:1], (probabilities.shape, truth.shape)
    used = check_n_way(probabilities.shape[1], n_way, top_k)
    rank = ranks_of(probabilities, truth[:, None])[:, 0]
    return NWay(success_by_rank(probabilities.shape[1], used, top_k)[rank], used, top_k / used)


def shuffled_accuracy(probabilities: np.ndarray, truth: np.ndarray, n_way: int = 50, top_k: int = 1) -> float:
    """What `n_way_accuracy` would be on average if the truths were dealt out to the pictures at random.

    probabilities: (n, K), truth: (n,), as there. The exact mean over all permutations of the truths: over all n x n
    pairs of a picture and a truth, its own among them (without these, a perfect decoder of n classes with one picture
    each would get 0, and not the 1/n of guessing). So it is the chance of a decoder that draws the same classes equally
    often, but blindly; `NWay.chance` is that of a guesser among all classes of the classifier, also those that are not
    in the study.
    """
    used = check_n_way(probabilities.shape[1], n_way, top_k)
    classes, which = np.unique(truth, return_inverse=True)  # only these can be dealt out
    success = success_by_rank(probabilities.shape[1], used, top_k)[ranks_of(probabilities, classes)]
    return float(success.mean(0) @ np.bincount(which) / len(truth))


def shuffled_estimate(success: np.ndarray, which: np.ndarray, units: np.ndarray) -> "Estimate":
    """`shuffled_accuracy` with its interval, from success (n, T) of n pictures at each of T truths; which (n,): theirs.

    The interval is a jackknife over units (n,): a bootstrap would repeat a unit and pair its pictures as if different.
    """
    n, (names, unit) = success.shape[1], np.unique(units, return_inverse=True)
    sums = np.stack([np.bincount(unit, column, len(names)) for column in success.T], 1)  # (units, T)
    truths = np.zeros((len(names), n))
    np.add.at(truths, (unit, which), 1)
    counts = truths.sum(1)
    total_s, total_t, total = sums.sum(0), truths.sum(0), counts.sum()
    value = float(total_s @ total_t / total**2)
    if len(names) < FEWEST:
        return Estimate(value, None, None, len(names))
    error = jackknife_error(((total_s - sums) * (total_t - truths)).sum(1) / (total - counts) ** 2)
    return Estimate(value, max(0.0, value - error), min(1.0, value + error), len(names))


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, Eq. 1): 1 = no diversity or no confidence, at most K.

    probabilities: (n, K). With splits > 1: the mean over that many parts, as published code often does, dealt out at
    random by a fixed seed: pictures may come sorted by class. Not comparable between classifiers, numbers of pictures,
    or splits.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not 1 <= splits <= len(p):
        raise ValueError(f"an Inception Score in {splits} splits needs at least as many pictures, there are {len(p)}")
    p = p[np.random.default_rng(0).permutation(len(p))] if splits > 1 else p
    scores = [math.exp(_plogp(part).mean() - _plogp(part.mean(0))) for part in np.array_split(p, splits)]
    return max(1.0, float(np.mean(scores)))  # but for rounding it is at least 1


def _plogp(p: np.ndarray) -> np.ndarray:
    """Sum of p log p over the last axis, 0 log 0 = 0."""
    return (p * np.log(np.where(p > 0, p, 1))).sum(-1)


def inception_estimate(probabilities: np.ndarray, units: np.ndarray, splits: int = 1) -> "Estimate":
    """`inception_score` of (n, K) with its interval, a jackknife of its logarithm over units (n,); with 1 split only.

    No bootstrap: that leaves a third of the pictures out, and fewer different pictures have a lower score. The interval
    is about the score of this number of pictures: many have a higher one.
    """
    value, (names, unit) = inception_score(probabilities, splits), np.unique(units, return_inverse=True)
    if splits > 1 or len(names) < FEWEST:
        return Estimate(value, None, None, len(names))
    p = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(unit, kind="stable")
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    sums, certain = np.add.reduceat(p[order], starts), np.bincount(unit, _plogp(p))
    counts = np.bincount(unit)
    left = (len(p) - counts)[:, None]
    without = (certain.sum() - certain) / left[:, 0] - _plogp(np.maximum(sums.sum(0) - sums, 0) / left)
    factor = math.exp(jackknife_error(without))
    return Estimate(value, max(1.0, value / factor), value * factor, len(names))


def best_of(values: np.ndarray, better: str) -> np.ndarray:
    """(n, samples) -> (n,): each trial's best sample; better: "higher" or "lower"."""
    return values.max(1) if better == "higher" else values.min(1)


def chance_best_of(by_rank: np.ndarray, samples: int) -> float:
    """Mean best of `samples` independent guesses, each of which gets one of the values (K,) with equal probability."""
    share = np.arange(len(by_rank) + 1) / len(by_rank)
    return float(np.sort(by_rank) @ np.diff(share**samples))


def confusion(truth: np.ndarray, guess: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts (n_classes, n_classes) of pairs: row = true class, column = guessed class."""
    return np.bincount(truth * n_classes + guess, minlength=n_classes**2).reshape(n_classes, n_classes)


_WINDOW = [math.exp(-(i**2) / (2 * 1.5**2)) for i in range(6)]  # the middle and one side
_WINDOW = [weight / (_WINDOW[0] + 2 * sum(_WINDOW[1:])) for weight in _WINDOW]


def _blur(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """The Gaussian window along one axis, which shrinks by 10: shifted maps added, a tenth of a convolution's time."""
    n = maps.shape[dim] - 10
    found = maps.narrow(dim, 5, n) * _WINDOW[0]
    for i, weight in enumerate(_WINDOW[1:], 1):
        found.add_(maps.narrow(dim, 5 - i, n) + maps.narrow(dim, 5 + i, n), alpha=weight)
    return found


def _similar(x: torch.Tensor, truths: torch.Tensor, which: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """SSIM (B, C) of channels (B, C, H, W) with rows `which` of truths (m, C, H, W), whose moments are taken once.

    Borders are mirrored, or left out of the mean.
    """
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, these are {tuple(x.shape[-2:])}")

    def blur(maps: torch.Tensor) -> torch.Tensor:
        if mirrored:
            maps = F.pad(maps, (5, 5, 5, 5), mode="reflect")
        return _blur(_blur(maps, -1), -2)

    c1, c2 = 0.01**2, 0.03**2
    my, yy = blur(truths), blur(truths * truths)
    found = []
    few = max(1, 200_000 // x[0].numel())  # at once, so that their maps stay in the cache
    for image, i in zip(x.split(few), which.to(x.device).split(few), strict=True):
        mx, xx, xy = blur(torch.cat([image, image * image, image * truths[i]])).chunk(3)
        both, squares = mx * my[i], mx * mx + my[i] * my[i]
        above = (2 * both + c1) * (2 * (xy - both) + c2)
        found.append((above / ((squares + c1) * (xx + yy[i] - squares + c2))).mean((2, 3)))
    return torch.cat(found)


def _grey(images: torch.Tensor, weights: tuple[float, float, float]) -> torch.Tensor:
    return (images * images.new_tensor(weights).view(1, 3, 1, 1)).sum(1, keepdim=True)


def ssim(images: torch.Tensor, truths: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of picture pairs: (B, 3, H, W) twice, in [0, 1] -> (B, 2).

    Settings: SSIM_SETTINGS. First in colour, the mean of the three channels; then in grey, of luma (ITU-R BT.601).
    which: (B,), the truth of each picture; without it, picture i belongs to truth i.
    """
    assert images.shape[1:] == truths.shape[1:] and images.shape[1] == 3, (images.shape, truths.shape)
    luma = (0.299, 0.587, 0.114)
    images, truths = (torch.cat([x, _grey(x, luma)], 1) for x in (images, truths))
    by_channel = _similar(images, truths, torch.arange(len(images)) if which is None else which, mirrored=True)
    return torch.stack([by_channel[:, :3].mean(1), by_channel[:, 3]], 1)


@functools.lru_cache(maxsize=8)
def _suite_resize(n: int) -> torch.Tensor:
    """The suite's resize of n pixels as a matrix (425, n)."""
    return resize(resize(torch.eye(n)[None, None], SUITE_SIDE, n), 425, n)[0, 0]


def ssim_425(images: torch.Tensor, truths: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
    """Structural similarity with the settings of the MindEye suite; arguments as `ssim` -> (B,).

    `perceptual.ssim_suite`, several times faster: same window and constants as ours, grey, 5 px of border left out.
    """
    weights = (0.2125, 0.7154, 0.0721)  # scikit-image's rgb2gray
    down, across = (_suite_resize(n).to(images) for n in images.shape[-2:])
    x, y = (down @ _grey(z, weights) @ across.T for z in (images, truths))
    return _similar(x, y, torch.arange(len(x)) if which is None else which, mirrored=False)[:, 0]


def pixcorr_425(images: torch.Tensor, truths: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
    """Pearson correlation of all pixels as in the MindEye suite; arguments as `ssim` -> (B,). A blank picture has 0.

    `perceptual.pixcorr` without the large pictures: resizing is linear, so sums over resized pixels are sums over the
    pictures' own, with weights.
    """
    h, w = images.shape[-2:]
    down, across = (_suite_resize(n).to(images).double() for n in (h, w))
    n, rows, columns = 3 * 425 * 425, down.sum(0), across.sum(0)

    def centred(z: torch.Tensor) -> torch.Tensor:  # the resize keeps a constant, so the mean goes before
        return z.double() - (torch.einsum("bchw,h,w->b", z.double(), rows, columns) / n).view(-1, 1, 1, 1)

    def spread(z: torch.Tensor) -> torch.Tensor:  # of both resized pictures' products, the part of one
        return down.T @ down @ z @ (across.T @ across)

    x, y = centred(images), centred(truths)
    sx, sy = spread(x), spread(y)
    y_own = y if which is None else y[which]
    yy = (y * sy).sum((1, 2, 3))
    norms = ((x * sx).sum((1, 2, 3)) * (yy if which is None else yy[which])).clamp(min=0).sqrt()
    blank = norms <= 1e-9 * n
    return torch.where(blank, 0.0, (sx * y_own).sum((1, 2, 3)) / norms.clamp(min=1e-30)).to(images.dtype)


class Estimate(NamedTuple):
    """A mean with its 95 % interval; low and high are None where no interval can be given."""

    value: float
    low: float | None
    high: float | None
    n: int  # independent units (ground-truth pictures)


def jackknife_error(without: np.ndarray) -> float:
    """Half of a 95 % interval, t_.975,u-1 jackknife errors; without (u,): the value with each unit left out."""
    n = len(without)
    return float(stdtrit(n - 1, 0.975) * math.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def expanded_level(n: int) -> float:
    """The lower level of a 95 % percentile bootstrap of n units: Phi(-sqrt(n / (n - 1)) t_.975,n-1), .025 for many.

    Hesterberg 2015 (What Teachers Should Know About the Bootstrap): resamples of few units spread too little.
    """
    return float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))


def bootstrap_means(
    values: np.ndarray, units: np.ndarray, shares: Sequence[bool] = (), resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    """Means of the columns of values (n, m) and their 95 % percentile bootstrap intervals, resampling units (n,).

    Several samples of one trial, and several people's trials of one picture, stand or fall together: so ground-truth
    pictures are resampled, never single reconstructions. All columns see the same resamples, as one matrix product.
    Levels: `expanded_level`; fewer than FEWEST units have no interval. shares: (m,), which columns are shares of
    successes, from 0 to 1: one that is 0 throughout, or 1, has the interval of Clopper and Pearson over units.
    """
    values, (names, unit) = np.asarray(values, dtype=np.float64), np.unique(units, return_inverse=True)
    assert values.ndim == 2 and len(values) == len(unit) > 0, values.shape
    means, n = values.mean(0), len(names)
    if n < FEWEST:
        return [Estimate(float(mean), None, None, n) for mean in means]
    sums = np.stack([np.bincount(unit, column) for column in values.T], 1)
    counts = np.bincount(unit).astype(np.float64)
    rng, found = np.random.default_rng(seed), []
    step = max(1, 4_000_000 // n)  # rows of weights in memory at once
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        found.append(weights @ sums / (weights @ counts)[:, None])
    level = expanded_level(n)
    low, high = np.quantile(np.concatenate(found), (level, 1 - level), axis=0)
    if len(shares):
        least = 0.025 ** (1 / n)  # the lowest rate of which n successes in n come up in 2.5 % of studies
        low = np.where(shares & (values == 1).all(0), least, low)
        high = np.where(shares & (values == 0).all(0), 1 - least, high)
    return [Estimate(float(m), float(a), float(b), n) for m, a, b in zip(means, low, high, strict=True)]
