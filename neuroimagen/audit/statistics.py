"""Tests and intervals of the audit. Their unit is a picture, a stretch of one class, or a person: never a trial.

Trials of one picture are one observation: what is decoded from them is averaged first. A test permutes the right
answers of units that could have been exchanged, within `strata`. Two intervals stand beside each value and answer two
questions: other pictures for these people, and other people for these pictures (scores/intervals.py).
"""

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import gammaln
from scipy.stats import permutation_test, rankdata

from neuroimagen.scores.intervals import bootstrap_means

PERMUTATIONS = 4999


class Tested(NamedTuple):
    """A value, and the mean and 95 % quantile of what it is over permutations of the right answers.

    p counts the given order as a permutation. ways: how many orders there are; few of them cannot give a small p.
    """

    value: float
    null: float
    null_high: float
    p: float
    n: int  # units
    ways: float


def numbered(things: Iterable[Hashable]) -> np.ndarray:
    """(n,) numbers from 0, in the order of first appearance, that are equal where things are."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(thing, len(known)) for thing in things], int)


def members(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group (n,), in the order of groups."""
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def permuted(gains: np.ndarray, answers: np.ndarray, strata: np.ndarray, seed: int = 0) -> Tested:
    """Is the sum of gains[i, answers[i]] larger than for answers that change places within strata?

    gains (n, k): what unit i adds if k is its answer. answers, strata: (n,) int.
    """
    rng, n = np.random.default_rng(seed), len(answers)
    value, total, log_ways = float(gains[np.arange(n), answers].sum()), np.zeros(PERMUTATIONS), 0.0
    for own in members(strata):
        log_ways += gammaln(len(own) + 1) - gammaln(np.unique(answers[own], return_counts=True)[1] + 1).sum()
        for some in np.split(total, range(500, PERMUTATIONS, 500)):  # the table of all would not be bounded
            some += gains[own, rng.permuted(np.tile(answers[own], (len(some), 1)), axis=1)].sum(1)
    p = (1 + int((total >= value - 1e-9).sum())) / (1 + PERMUTATIONS)
    ways = float(np.exp(min(log_ways, 600.0)))
    return Tested(value, float(total.mean()), float(np.quantile(total, 0.95)), p, n, ways)


def paired(differences: np.ndarray) -> float:
    """p of a mean above 0, where each unit's difference (n,) may as well have had the other sign."""
    if not np.any(differences):
        return 1.0
    resamples: Any = {"permutation_type": "samples", "alternative": "greater", "n_resamples": PERMUTATIONS, "rng": 0}
    return float(permutation_test((differences,), np.mean, **resamples).pvalue)


def averaged(values: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of values (n, ...) over the rows of each unit, in the order of units; and the first row of each."""
    _, first, of = np.unique(units, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), *values.shape[1:]))
    np.add.at(sums, of, values)
    return (sums.T / np.bincount(of)).T, first


def described(tested: Tested, each: np.ndarray, people: list[float]) -> dict[str, Any]:
    """A test with its two intervals, for JSON: of units, whose mean is the value, and of people."""
    units, persons = (bootstrap_means(np.array(v)[:, None], np.arange(len(v)), [True])[0] for v in (each, people))
    return tested._asdict() | {"over_pictures": units._asdict(), "over_people": persons._asdict(), "people": people}


def gained(
    scores: np.ndarray, labels: np.ndarray, units: np.ndarray, vote: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, k) what each unit adds to the balanced accuracy, by answer; (u,) its own, whose mean that is; its first row.

    Of scores (n, k), labels and units (n,) as in `accuracy`.
    """
    means, first = averaged(scores, units)
    counts = np.bincount(labels[first], minlength=scores.shape[1])
    right = np.eye(len(counts))[means.argmax(1)] if vote else means
    table = right / np.maximum(counts, 1) / (counts > 0).sum()
    return table, table[np.arange(len(first)), labels[first]] * len(first), first


def accuracy(
    scores: np.ndarray, labels: np.ndarray, units: np.ndarray, people: np.ndarray, strata: np.ndarray, vote: bool = True
) -> dict[str, Any]:
    """Balanced accuracy of scores (n, k), averaged over the trials of a unit; its test and its intervals.

    labels, units, people, strata: (n,). Units of one stratum that the same people saw are exchangeable. vote: a unit is
    right or wrong by its largest mean score; else its scores are shares of answers, and it is right by their share.
    single: the accuracy of single trials, for comparison.
    """
    seen = np.zeros((units.max() + 1, people.max() + 1), bool)  # which unit by whom
    seen[units, people] = True
    table, each, first = gained(scores, labels, units, vote)
    alike = numbered(zip(strata.tolist(), map(bytes, seen[units]), strict=True))[first]
    by_person = [float(gained(scores[own], labels[own], units[own], vote)[1].mean()) for own in members(people)]
    alone, _ = averaged(scores.argmax(1) == labels, labels)
    return described(permuted(table, labels[first], alike), each, by_person) | {"single": float(alone.mean())}


def by_stretches(scores: np.ndarray, labels: np.ndarray, people: np.ndarray) -> dict[str, Any]:
    """As `accuracy`, where the trials of one class of one person may be one stretch of recording: that is the unit.

    Labels are permuted between the stretches of a person: drift is the same for all trials of a stretch, so they are
    one observation, however many pictures it had.
    """
    answers = np.eye(scores.shape[1])[scores.argmax(1)]
    stretch = numbered(zip(people.tolist(), labels.tolist(), strict=True))
    return accuracy(answers, labels, stretch, people, people, vote=False) | {"unit": "stretch"}


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) Pearson's r of rows (n, d) with rows (m, d); 0 with a constant one."""
    return np.nan_to_num(1 - cdist(a, b, "correlation"))


def beaten(guesses: np.ndarray, truths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n, n) share of the others of its group that truth j beats in its correlation with guess i; 0 outside of it.

    guesses, truths: (n, d). Entry (i, i) is the two-way identification of i among its group.
    """
    likeness, found = correlations(guesses, truths), np.zeros((len(guesses), len(guesses)))
    for own in members(groups):
        found[np.ix_(own, own)] = (rankdata(likeness[np.ix_(own, own)], axis=1) - 1) / max(1, len(own) - 1)
    return found


def identified(
    guesses: np.ndarray, truths: np.ndarray, units: np.ndarray, people: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Two-way identification among pictures of one group, from guesses (n, d) averaged over the trials of a unit.

    Also the share (units,) of each unit, and a trial of it. Groups of one unit are left out; no unit may be left.
    """

    def table(own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means, first = averaged(guesses[own], units[own])
        trial = own[first]
        several = np.bincount(groups[trial])[groups[trial]] > 1
        return beaten(means[several], truths[trial[several]], groups[trial[several]]), trial[several]

    shares, trial = table(np.arange(len(units)))
    each, n = np.diag(shares), np.arange(len(trial))
    if not len(n):
        return {"why": "no class has two pictures in test"}, n, n
    tested = permuted(shares / len(n), n, groups[trial])
    by_person = [np.diag(table(own)[0]) for own in members(people)]
    means = [float(own.mean()) for own in by_person if len(own)]
    return described(tested, each, means or [tested.value]), each, trial
