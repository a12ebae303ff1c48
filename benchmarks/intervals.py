"""How often the score book's 95 % intervals hold the truth: simulated studies of few and of many pictures.

    python benchmarks/intervals.py [STUDIES]        2000

1. Means over pictures: the plain percentile bootstrap, and ours (metrics.bootstrap_means).
2. Inception Score: of this number of pictures, which the interval is about, and of very many.
3. Three people who differ: pictures are resampled and people are not, so an interval is about these three.
"""

import sys

import numpy as np

from neuroimagen.scores.intervals import FEWEST, Estimate, bootstrap_means
from neuroimagen.scores.metrics import inception_estimate, inception_score

DRAW = {  # scores of independent pictures, and their mean over all pictures
    "normal (SSIM)": (lambda rng, shape: rng.normal(0.5, 0.2, shape), 0.5),
    "skewed (gamma of shape 1)": (lambda rng, shape: rng.gamma(1, 0.3, shape), 0.3),
    "right in 50 % (ACC)": (lambda rng, shape: (rng.random(shape) < 0.5) * 1.0, 0.5),
    "right in 90 %": (lambda rng, shape: (rng.random(shape) < 0.9) * 1.0, 0.9),
    "right in 2 %": (lambda rng, shape: (rng.random(shape) < 0.02) * 1.0, 0.02),
}


def ends_of(found: list[Estimate]) -> np.ndarray:
    return np.array([(e.low, e.high) for e in found], dtype=float).T


def held(low: np.ndarray, high: np.ndarray, truth: float) -> str:
    return f"{100 * np.mean((low <= truth) & (truth <= high)):5.1f}"


def plain(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(values)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 2000) / n
    return tuple(np.quantile(weights @ values, (0.025, 0.975), axis=0))


def means(studies: int) -> None:
    print(f"means over pictures: % of {studies} intervals that hold the mean, percentile / ours")
    print(f"{'pictures':<28}" + "".join(f"{n:>16}" for n in (5, 10, 20, 80)))
    for name, (draw, truth) in DRAW.items():
        line = f"{name:<28}"
        for n in (5, 10, 20, 80):
            values = draw(np.random.default_rng(n), (n, studies))
            share = ["right" in name] * studies
            ours = ends_of(bootstrap_means(values, np.arange(n), share))
            line += f"   {held(*plain(values), truth)} / {held(*ours, truth)}"
        print(line)


def inception(studies: int) -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:  # mostly sure of one of 40 classes
        logits = rng.standard_normal((n, 40)) + 6 * np.eye(40)[rng.integers(40, size=n)]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    many = inception_score(draw(200_000))
    print(f"\nInception Score, 40 classes, of many {many:.2f}: % of {studies} intervals that hold that of n, of many")
    for n in (FEWEST, 10, 20, 80):
        expected = np.exp(np.mean([np.log(inception_score(draw(n))) for _ in range(5 * studies)]))
        ends = ends_of([inception_estimate(draw(n), np.arange(n)) for _ in range(studies)])
        print(f"{n:>10} pictures, of n {expected:6.2f}: {held(*ends, expected)}, {held(*ends, many)}")


def people(studies: int, sd: float = 0.7, pictures: int = 80) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(studies):
        p = 1 / (1 + np.exp(-rng.normal(0, sd, 3)))
        values = (rng.random((pictures, 3)) < p).ravel() * 1.0
        found += bootstrap_means(values[:, None], np.arange(pictures).repeat(3), resamples=1000)
    share = held(*ends_of(found), 0.5)
    print(f"\nthree people, log-odds around 0 of sd {sd}, {pictures} pictures: {share} % hold the mean of all people")


if __name__ == "__main__":
    studies = int((sys.argv[1:] or ["2000"])[0])
    means(studies)
    inception(studies)
    people(studies)
