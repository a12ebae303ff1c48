"""Metrics of a classifier's outputs (N-way top-k accuracy, AUC, Inception Score), and what reconstructions get blindly.

The accuracy is that of Chen et al. 2023 (mind-vis), whose code draws the N - 1 distractors at random, 40 to 1000 times:
`success_by_rank` is what those draws converge to. Metrics of pictures and of features: similarity.py.
"""

import functools
import math

import numpy as np
import scipy  # whose parts are imported when first used
import torch

from neuroimagen.scores.intervals import FEWEST, Estimate, jackknife, share


@functools.lru_cache(maxsize=32)
def success_by_rank(n_classes: int, n_way: int, top_k: int) -> np.ndarray:
    """Chance of success, (n_classes,) float64, of a truth that `rank` other classes beat: its rank is the index.

    n_way - 1 distractors are drawn without replacement from the other n_classes - 1 classes; success means that fewer
    than top_k of them are among the `rank` better ones: the hypergeometric P(X <= top_k - 1), here from whole numbers.
    """
    others, drawn = n_classes - 1, n_way - 1

    def ways(rank: int) -> int:
        return sum(math.comb(rank, j) * math.comb(others - rank, drawn - j) for j in range(min(top_k, drawn + 1)))

    return np.array([ways(rank) / math.comb(others, drawn) for rank in range(n_classes)])


def ranks_of(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How many other classes are at least as probable, for classes (n, T) or (T,) of (n, K) outputs: (n, T) integers.
    A tie counts against the class: a constant output ranks every class last.
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


def shuffled_estimate(success: np.ndarray, which: np.ndarray, units: np.ndarray) -> Estimate:
    """What the N-way accuracy would be on average if the truths were dealt out to the pictures at random: the chance of
    a decoder that draws the same classes equally often, but blindly.

    From success (n, T) of n pictures at each of T truths; which (n,): theirs. The exact mean over all permutations:
    over all n x n pairs of a picture and a truth, its own among them (without these, a perfect decoder of n classes
    would get 0, not the 1/n of guessing). The interval is a jackknife over units (n,), as a bootstrap would repeat a
    unit and pair its pictures as if different.
    """
    n, (names, unit) = success.shape[1], np.unique(units, return_inverse=True)
    sums = np.stack([np.bincount(unit, column, len(names)) for column in success.T], 1)  # (units, T)
    truths = np.zeros((len(names), n))
    np.add.at(truths, (unit, which), 1)
    counts = truths.sum(1)
    total_s, total_t, total = sums.sum(0), truths.sum(0), counts.sum()
    value = float(total_s @ total_t / total**2)
    without = ((total_s - sums) * (total_t - truths)).sum(1) / np.maximum(total - counts, 1) ** 2
    return share(jackknife(value, without))


def deal(n: int, samples: int, least: int = 2000, seed: int = 0) -> np.ndarray:
    """With which other trials' truths the reconstructions of n trials are compared, to learn what they get blindly:
    (n, samples, k) trials.

    Cyclic shifts of a seeded permutation, other ones for each sample: each is one way to deal out the truths, so every
    reconstruction and every truth counts alike. As many (k) as make `least` pairs, 2 at least and all n - 1 at most
    (means over these are those over all permutations); the shift by none is the trials' own truths.
    """
    k, rng = min(n - 1, max(2, -(-least // (n * samples)))), np.random.default_rng(seed)
    order = rng.permutation(n)
    shifts = np.stack([1 + rng.permutation(n - 1)[:k] for _ in range(samples)])
    return order[(np.argsort(order)[:, None, None] + shifts) % n]


def dealt_estimates(
    own: np.ndarray, dealt: np.ndarray, trials: np.ndarray, units: np.ndarray, better: str = "higher"
) -> tuple[Estimate, Estimate]:
    """What reconstructions would get if the truths were dealt out to them at random, and what they gain over that.

    own (n, samples): of each with its own truth; dealt (n, samples, k): with those of `trials`, see `deal`; units (n,).
    The first is the mean over all permutations, as in `shuffled_estimate`: each reconstruction meets its own truth with
    probability 1/n, any other one with (n - 1)/n, of which `dealt` are all, or a fair sample. The second is by how much
    mean(own) is better. Intervals are jackknives over units, which leave out a unit's reconstructions and its truths.
    """
    n, k = len(own), dealt.shape[2]
    names, unit = np.unique(units, return_inverse=True)
    values = np.concatenate([own[..., None], dealt], 2)
    weights = np.broadcast_to(np.array([1 / n] + [(n - 1) / (n * k)] * k), values.shape)
    picture = np.broadcast_to(unit[:, None, None], values.shape)
    truth = np.concatenate([picture[..., :1], unit[trials]], 2)

    def without(x: np.ndarray) -> np.ndarray:
        """(units + 1,) sums over the pairs that are left without each unit; last, without none."""
        gone = np.bincount(picture.ravel(), x.ravel()) + np.bincount(truth.ravel(), x.ravel())
        same = picture == truth  # counted twice
        gone -= np.bincount(picture[same], x[same], len(names))
        return x.sum() - np.append(gone, 0)

    other = without(weights * values) / np.maximum(without(weights), 1e-300)
    sums, counts = (np.append(np.bincount(unit, x), 0) for x in (own.mean(1), np.ones(n)))
    gain = ((sums.sum() - sums) / np.maximum(n - counts, 1e-300) - other) * (1 if better == "higher" else -1)
    return jackknife(float(other[-1]), other[:-1]), jackknife(float(gain[-1]), gain[:-1])


def best_guess(truth: np.ndarray, by_rank: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(n,): what each trial gets by the best answer that is the same for all: true classes (n,), ranked by how often
    they come. by_rank: `success_by_rank`. weights (n,): of the trials, in a mean that is not over all alike.
    As success falls with the rank, no decoder that is blind to the trial has a higher mean (rearrangement inequality).
    """
    which = np.unique(truth, return_inverse=True)[1]
    rank = np.argsort(np.argsort(-np.bincount(which, weights), kind="stable"), kind="stable")
    return by_rank[rank[which]]


def balanced_estimate(values: np.ndarray, labels: np.ndarray, units: np.ndarray) -> Estimate:
    """Mean over classes of the mean of values (n,) within each, labels (n,); its interval a jackknife over units.
    Of a class without spread (all 0, all 1) the end of Clopper and Pearson's interval over its units is added in
    squares, as independent errors are.
    """
    (classes, label), (names, unit) = (np.unique(x, return_inverse=True) for x in (labels, units))

    def without(x: np.ndarray) -> np.ndarray:  # (units, classes)
        each = np.bincount(unit * len(classes) + label, x, len(names) * len(classes)).reshape(len(names), -1)
        return each.sum(0) - each

    counts = without(np.ones(len(values)))
    means = np.where(counts > 0.5, without(values) / np.maximum(counts, 1), np.nan)
    value = float(np.mean([values[label == c].mean() for c in range(len(classes))]))
    if len(names) < FEWEST:
        return Estimate(value, None, None, len(names))
    _, low, high, n = jackknife(value, np.nanmean(means, 1))
    assert low is not None and high is not None
    below, above = value - low, high - value
    for c in range(len(classes)):
        mine = label == c
        unseen = (1 - 0.025 ** (1 / len(set(unit[mine])))) / len(classes)
        if (values[mine] == 0).all():
            above = math.hypot(above, unseen)
        elif (values[mine] == 1).all():
            below = math.hypot(below, unseen)
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), n)


def auc_estimate(scores: np.ndarray, positive: np.ndarray, units: np.ndarray) -> Estimate:
    """Area under the ROC curve: the share of pairs of a positive and a negative in which the positive has the higher
    score, ties half. scores (n,), positive (n,) bool, of either kind one or more; interval: jackknife over units.
    """
    names, unit = np.unique(units, return_inverse=True)

    def below(kind: np.ndarray) -> np.ndarray:  # share of the other kind
        return (scipy.stats.rankdata(scores)[kind] - scipy.stats.rankdata(scores[kind])) / (~kind).sum()

    shares = np.empty(len(scores))  # of each picture: the pairs won, of those that it is in
    shares[positive], shares[~positive] = below(positive), 1 - below(~positive)
    value = float(shares[positive].mean())
    without = []
    for u in range(len(names)):
        left = (positive == positive[unit == u][0]) & (unit != u)  # the other kind's shares have the same mean
        without.append(shares[left].mean() if left.any() else np.nan)
    if np.isnan(without).any():
        return Estimate(value, None, None, len(names))
    return share(jackknife(value, np.array(without)), min(len(set(unit[kind])) for kind in (positive, ~positive)))


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """exp of the mean KL(p(y|x) || p(y)) of (n, K) (Salimans et al. 2016, Eq. 1): 1 = no diversity or confidence.
    With splits > 1: the mean over that many parts, as published code often does, dealt out by a fixed seed, as pictures
    may come sorted by class.
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


def inception_estimate(probabilities: np.ndarray, units: np.ndarray, splits: int = 1) -> Estimate:
    """`inception_score` of (n, K) with its interval, a jackknife of its logarithm over units (n,); with 1 split only.
    No bootstrap: that leaves a third of the pictures out, and fewer different pictures have a lower score.
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
    _, low, high, _ = jackknife(math.log(value), without)
    assert low is not None and high is not None
    return Estimate(value, max(1.0, math.exp(low)), math.exp(high), len(names))


def chance_best_of(by_rank: np.ndarray, samples: int) -> float:
    """Mean best of `samples` independent guesses, each of which gets one of the values (K,) with equal probability."""
    share = np.arange(len(by_rank) + 1) / len(by_rank)
    return float(np.sort(by_rank) @ np.diff(share**samples))
