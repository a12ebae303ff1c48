"""The paper's three numbers: N-way top-k accuracy (ACC), Inception Score (IS) and structural similarity (SSIM).

Section "Evaluation Metrics" of the paper (arXiv 2308.02510) names them and follows Chen et al. 2023 (mind-vis) for ACC.
All functions take plain arrays or tensors; pictures are float in [0, 1].
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

SSIM_SETTINGS = "SSIM: Gaussian window 11 x 11, sigma 1.5, k1 0.01, k2 0.03, data range 1, borders mirrored"


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
    assert np.isfinite(probabilities).all(), "a classifier gave a probability that is not finite"
    n, n_classes = probabilities.shape
    used = min(n_way, n_classes)
    if used < 2:
        raise ValueError(f"n_way is {n_way} and the classifier has {n_classes} classes: both must be at least 2")
    if not 1 <= top_k < used:
        raise ValueError(
            f"top_k={top_k} of {used} classes says nothing (n_way={n_way}, the classifier has {n_classes}): "
            f"give top_k from 1 to {used - 1}"
        )
    at_truth = probabilities[np.arange(n), truth]
    rank = (probabilities >= at_truth[:, None]).sum(1) - 1  # the truth itself is one of those >=
    return NWay(success_by_rank(n_classes, used, top_k)[rank], used, top_k / used)


def shuffled_accuracy(probabilities: np.ndarray, truth: np.ndarray, n_way: int = 50, top_k: int = 1) -> float:
    """What `n_way_accuracy` would be on average if the truths were dealt out to the pictures at random.

    probabilities: (n, K), truth: (n,), as there. The exact mean over all permutations of the truths: over all n x n
    pairs of a picture and a truth, its own among them (without these, a perfect decoder of n classes with one picture
    each would get 0, and not the 1/n of guessing). So it is the chance of a decoder that draws the same classes equally
    often, but blindly; `NWay.chance` is that of a guesser among all classes of the classifier, also those that are not
    in the study.
    """
    used = n_way_accuracy(probabilities, truth, n_way, top_k).n_way  # checks the arguments
    ranks = (
        scipy.stats.rankdata(-np.asarray(probabilities), "max", axis=1).astype(np.int64) - 1
    )  # of every class; ties against
    by_class = success_by_rank(ranks.shape[1], used, top_k)[ranks].mean(0)
    return float(by_class[truth].mean())


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, Eq. 1): 1 = no diversity or no confidence, at most K.

    probabilities: (n, K). With splits > 1: the mean over that many consecutive parts, as published code often does. Not
    comparable between classifiers, numbers of pictures, or splits.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not 1 <= splits <= len(p):
        raise ValueError(f"an Inception Score in {splits} splits needs at least as many pictures, there are {len(p)}")
    scores = []
    for part in np.array_split(p, splits):
        marginal = part.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(marginal)), 0.0)
        scores.append(math.exp(terms.sum(1).mean()))
    return float(np.mean(scores))


def ssim(images: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of picture pairs: (B, 3, H, W) twice, in [0, 1] -> (B, 2).

    Settings: SSIM_SETTINGS. First in colour, the mean of the three channels; then in grey, of luma (ITU-R BT.601).
    """
    assert images.shape == truths.shape and images.shape[1] == 3, (images.shape, truths.shape)
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, these are {tuple(images.shape[-2:])}")
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    images, truths = (torch.cat([x, (x * weights).sum(1, keepdim=True)], 1) for x in (images, truths))
    _, every_pixel = structural_similarity_index_measure(  # channels are compared apart: four at once
        images, truths, gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none",
        return_full_image=True,
    )  # fmt: skip
    by_channel = every_pixel.mean((2, 3))
    return torch.stack([by_channel[:, :3].mean(1), by_channel[:, 3]], 1)


class Estimate(NamedTuple):
    """A mean with its 95 % interval; low and high are None where no interval can be given."""

    value: float
    low: float | None
    high: float | None
    n: int  # independent units (ground-truth pictures)


def bootstrap_mean(values: np.ndarray, units: np.ndarray, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of values (n,) and its 95 % percentile bootstrap interval, resampling whole units (n,).

    Several samples of one trial, and several people's trials of one picture, stand or fall together: so ground-truth
    pictures are resampled, never single reconstructions. With fewer than two units there is no interval.
    """
    values, (names, which) = np.asarray(values, dtype=np.float64), np.unique(units, return_inverse=True)
    assert len(values) == len(which) > 0
    mean, n = float(values.mean()), len(names)
    if n < 2:
        return Estimate(mean, None, None, n)
    sums, counts = np.bincount(which, values), np.bincount(which).astype(np.float64)
    result = scipy.stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Estimate(mean, float(low), float(high), n)
