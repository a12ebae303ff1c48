"""95 % intervals over units: ground-truth pictures, or trials where the picture shown is not known (docs/scores.md)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit

FEWEST = 5  # units from which there is an interval


class Estimate(NamedTuple):
    """A mean with its 95 % interval; low and high are None where no interval can be given."""

    value: float
    low: float | None
    high: float | None
    n: int  # independent units


def share(estimate: Estimate, n: int | None = None) -> Estimate:
    """A share, from 0 to 1, of which the interval ends there.
    If it is 0 or 1 nothing has spread, and the interval is that of Clopper and Pearson over n units (all of them).
    """
    value, low, high, units = estimate
    if low is None or high is None:
        return estimate
    least = 0.025 ** (1 / (n or units))  # the lowest rate of which n successes in n come up in 2.5 % of studies
    low, high = least if value == 1 else max(0.0, low), 1 - least if value == 0 else min(1.0, high)
    return Estimate(value, low, high, units)


def jackknife(value: float, without: np.ndarray) -> Estimate:
    """`value` with its 95 % interval, t_.975,u-1 jackknife errors; without (u,): it with each unit left out."""
    n = len(without)
    if n < FEWEST:
        return Estimate(value, None, None, n)
    error = float(stdtrit(n - 1, 0.975) * math.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return Estimate(value, value - error, value + error, n)


def bootstrap_means(
    values: np.ndarray,
    units: np.ndarray,
    shares: Sequence[bool] = (),
    resamples: int = 2000,
    seed: int = 0,
    of: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> list[Estimate]:
    """Means of the columns of values (n, m) and their 95 % percentile bootstrap intervals, resampling units (n,).

    Several samples of one trial, and several people's trials of one picture, stand or fall together: so ground-truth
    pictures are resampled, never single reconstructions. All columns see the same resamples, as one matrix product.
    Fewer than FEWEST units have no interval. shares: (m,), for which columns `share` holds; of: what is estimated, from
    means (some, m) to (some, k).
    """
    values, (names, unit) = np.asarray(values, dtype=np.float64), np.unique(units, return_inverse=True)
    assert values.ndim == 2 and len(values) == len(unit) > 0, values.shape
    means, n = of(values.mean(0)[None])[0], len(names)
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
    # Resamples of few units spread too little; .025 for many (Hesterberg 2015, What Teachers Should Know ...)
    level = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))
    low, high = np.quantile(of(np.concatenate(found)), (level, 1 - level), axis=0)
    estimates = [Estimate(float(mean), float(a), float(b), n) for mean, a, b in zip(means, low, high, strict=True)]
    return [share(e) if is_share else e for e, is_share in zip(estimates, shares or [False] * len(means), strict=True)]
