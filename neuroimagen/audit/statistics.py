"""Tests and intervals of the audit. Their unit is a picture, a stretch of one class, or a person: never a trial.

Trials of one picture are one observation: what is decoded from them is averaged first. A test permutes the right
answers of units that could have been exchanged, within `strata`. Two intervals stand beside each value and answer two
questions: other pictures for these people, and other people for these pictures (scores/intervals.py).
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaln
from scipy.stats import permutation_test, rankdata

from neuroimagen.scores.intervals import bootstrap_means

PERMUTATIONS = 4999


class Tested(NamedTuple):
    """A value and what is had by chance: the mean, and the 95 % quantile, over permutations of the right answers.

    p counts the given order as a permutation. ways: how many orders there are; few of them cannot give a small p.
    """

    value: float
    null: float
    null_high: float
    p: float
    n: int  # units
    ways: float


def numbered(things: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """(n,) numbers from 0 that are equal where things are."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(thing, len(known)) for thing in things], int)


def permuted(gains: np.ndarray, answers: np.ndarray, strata: np.ndarray, seed: int = 0) -> Tested:
    """Is the sum of gains[i, answers[i]] larger than for answers that change places within strata?

    gains (n, k): what unit i adds if k is its answer. answers, strata: (n,) int.
    """
    rng, n = np.random.default_rng(seed), len(answers)
    value, total, log_ways = float(gains[np.arange(n), answers].sum()), np.zeros(PERMUTATIONS), 0.0
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        log_ways += gammaln(len(own) + 1) - gammaln(np.unique(answers[own], return_counts=True)[1] + 1).sum()
        for start in range(0, PERMUTATIONS, 500):  # the table of all would not be bounded
            orders = rng.permuted(np.tile(answers[own], (min(500, PERMUTATIONS - start), 1)), axis=1)
            total[start : start + len(orders)] += gains[own, orders].sum(1)
    p = (1 + int((total >= value - 1e-9).sum())) / (1 + PERMUTATIONS)
    return Tested(
        value, float(total.mean()), float(np.quantile(total, 0.95)), p, n, float(np.exp(min(log_ways, 600.0)))
    )


def averaged(values: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of values (n, k) over the rows of each unit, in the order of first appearance; and where each appears."""
    _, first, of = np.unique(units, return_index=True, return_inverse=True)
    means = np.zeros((len(first), values.shape[1]))
    np.add.at(means, of, values)
    order = np.argsort(first)
    return (means / np.bincount(of)[:, None])[order], first[order]


def weights(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """(n_classes,) what a right answer of each class adds to the balanced accuracy: every class counts the same."""
    counts = np.bincount(labels, minlength=n_classes)
    return np.divide(1.0, counts * (counts > 0).sum(), out=np.zeros(n_classes), where=counts > 0)


def accuracy(
    scores: np.ndarray, labels: np.ndarray, units: np.ndarray, people: np.ndarray, strata: np.ndarray
) -> dict[str, Any]:
    """Balanced accuracy of decision scores (n, k) of trials, averaged over the trials of a unit; its test, its intervals.

    labels, units, people, strata: (n,). Units of one stratum, seen by the same people, are exchangeable.
    """
    seen_by: dict[Any, set[Any]] = {}
    for unit, person in zip(units.tolist(), people.tolist(), strict=True):
        seen_by.setdefault(unit, set()).add(person)
    strata = numbered([(s, *sorted(seen_by[u])) for s, u in zip(strata.tolist(), units.tolist(), strict=True)])
    means, first = averaged(scores, units)
    right, worth = np.eye(scores.shape[1])[means.argmax(1)], weights(labels[first], scores.shape[1])
    tested = permuted(right * worth, labels[first], strata[first])
    each = (right * worth)[np.arange(len(first)), labels[first]] * len(first)
    by_person = []
    for person in np.unique(people):
        own = people == person
        mean, at = averaged(scores[own], units[own])
        label = labels[own][at]
        by_person.append(float(((mean.argmax(1) == label) * weights(label, scores.shape[1])[label]).sum()))
    return described(tested, each, by_person)


def described(tested: Tested, each: np.ndarray, by_person: list[float]) -> dict[str, Any]:
    """A test with its two intervals, for JSON: over units, whose mean is the value, and over people."""
    units = bootstrap_means(each[:, None], np.arange(len(each)), [True])[0]
    people = bootstrap_means(np.array(by_person)[:, None], np.arange(len(by_person)), [True])[0]
    return tested._asdict() | {"over_pictures": units._asdict(), "over_people": people._asdict(), "people": by_person}


def by_stretches(scores: np.ndarray, labels: np.ndarray, people: np.ndarray) -> dict[str, Any]:
    """As `accuracy`, where the trials of one class of one person may be one stretch of recording: that is the unit.

    Labels are permuted between the stretches of a person: drift is the same for all trials of a stretch, so they are
    one observation, however many pictures it had.
    """
    stretch = numbered(list(zip(people.tolist(), labels.tolist(), strict=True)))
    means, first = averaged(np.eye(scores.shape[1])[scores.argmax(1)], stretch)
    worth = weights(labels[first], scores.shape[1])
    tested = permuted(means * worth, labels[first], people[first])
    each = (means * worth)[np.arange(len(first)), labels[first]] * len(first)
    person = people[first]
    return described(tested, each, [float(each[person == p].mean()) for p in np.unique(person)])


def beaten(guesses: np.ndarray, truths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n, n) share of the others of its group that truth j beats in its correlation with guess i; 0 outside of it.

    guesses, truths: (n, d). Entry (i, i) is the two-way identification of i among its group.
    """

    likeness, found = correlations(guesses, truths), np.zeros((len(guesses), len(guesses)))
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        table = likeness[np.ix_(own, own)]
        found[np.ix_(own, own)] = (rankdata(table, axis=1) - 1) / max(1, len(own) - 1)
    return found


def paired(differences: np.ndarray) -> float:
    """p of a mean above 0, each unit's difference (n,) keeping or changing its sign."""
    if not np.any(differences):
        return 1.0
    found = permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater", n_resamples=PERMUTATIONS, rng=0
    )
    return float(found.pvalue)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) Pearson's r of rows (n, d) with rows (m, d); 0 with a constant one."""
    return np.asarray(_unit(a) @ _unit(b).T)


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) Pearson's r of each row of a with that of b."""
    return np.asarray((_unit(a) * _unit(b)).sum(1))
