"""The audit's tests and intervals: by hand, exactly where there are few orders, at chance where there is nothing."""

import itertools

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from neuroimagen.audit.statistics import (
    PERMUTATIONS,
    accuracy,
    averaged,
    beaten,
    by_stretches,
    identified,
    numbered,
    paired,
    permuted,
)
from neuroimagen.scores.intervals import bootstrap_means


def one_hot(guesses, n=3):
    return np.eye(n)[guesses]


def zeros(n):
    return np.zeros(n, int)


def test_numbered():
    assert numbered(["b", "a", "b", None]).tolist() == [0, 1, 0, 2]


def exact(gains, answers, strata):
    """p, and mean, over every order of the answers that stays within strata."""
    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    values = []
    for orders in itertools.product(*(itertools.permutations(answers[own]) for own in groups)):
        order = answers.copy()
        for own, new in zip(groups, orders, strict=True):
            order[own] = new
        values.append(gains[np.arange(len(order)), order].sum())
    value = gains[np.arange(len(answers)), answers].sum()
    return np.mean(np.array(values) >= value - 1e-9), np.mean(values)


@pytest.mark.parametrize("strata", [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]])
def test_p_is_that_of_all_orders(strata):
    gains, strata = np.random.default_rng(0).random((6, 3)), np.array(strata)
    answers = np.array([0, 1, 2, 0, 1, 1])
    found = permuted(gains, answers, strata)
    p, mean = exact(gains, answers, strata)
    assert abs(found.p - p) < 4 * np.sqrt(max(p * (1 - p), 1e-9) / PERMUTATIONS) + 1e-3
    assert abs(found.null - mean) < 0.02


def test_three_of_three_by_hand():
    found = permuted(np.eye(3) / 3, np.arange(3), zeros(3))
    assert found.value == pytest.approx(1) and abs(found.p - 1 / 6) < 0.02 and round(found.ways) == 6


def test_answers_stay_in_their_stratum():
    """Each stratum has one class, so nothing can change: what tells the strata apart is no evidence."""
    answers, strata = np.repeat([0, 1], 20), np.repeat([0, 1], 20)
    assert permuted(one_hot(answers, 2) / 40, answers, strata)[3] == 1.0
    assert permuted(one_hot(answers, 2) / 40, answers, zeros(40)).p < 0.001


def test_ways_by_hand():
    assert permuted(np.zeros((4, 2)), np.array([0, 0, 1, 1]), zeros(4)).ways == pytest.approx(6)


def test_trials_of_a_picture_are_one_observation():
    """20 trials each of 4 pictures, all right: 80 right trials would be beyond doubt, 4 pictures are not."""
    units = np.repeat(np.arange(4), 20)
    labels = np.repeat([0, 1, 0, 1], 20)
    found = accuracy(one_hot(labels, 2), labels, units, zeros(80), zeros(80))
    assert found["value"] == 1 and found["n"] == 4 and abs(found["p"] - 1 / 6) < 0.02


def test_scores_are_averaged_before_they_are_judged():
    """Two of three trials are wrong, but hardly; the third is right, and sure."""
    scores = np.array([[0.4, 0.6], [0.4, 0.6], [1.0, 0.0], [0.0, 1.0]])
    found = accuracy(scores, np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]), zeros(4), zeros(4))
    assert found["value"] == 1 and found["single"] == pytest.approx((1 / 3 + 1) / 2)


def test_every_class_counts_the_same():
    labels = np.array([0] * 8 + [1, 1])
    found = accuracy(one_hot([0] * 10, 2), labels, np.arange(10), zeros(10), zeros(10))
    assert found["value"] == 0.5 and found["null"] == pytest.approx(0.5)


def test_a_class_that_a_person_saw_alone_is_no_evidence():
    """A static pattern names the person, and each saw other classes: right half of the time, by chance alone."""
    rng = np.random.default_rng(0)
    people = np.repeat([0, 1], 40)
    labels = 2 * rng.integers(2, size=80) + people
    guesses = 2 * rng.integers(2, size=80) + people
    found = accuracy(one_hot(guesses, 4), labels, np.arange(80), people, zeros(80))
    assert found["value"] > 0.35 and abs(found["null"] - 0.5) < 0.03 and found["p"] > 0.05
    naive = permuted(one_hot(guesses, 4) / 80, labels, zeros(80))
    assert naive.p < 0.001 and naive.null == pytest.approx(0.25, abs=0.02)


def test_a_stretch_of_one_class_is_one_observation():
    """Two people, three classes: every trial of a stretch gets the stretch's answer, right in 3 of 6. No evidence."""
    stretch = np.repeat(np.arange(6), 30)
    people, labels = stretch // 3, stretch % 3
    guesses = np.array([0, 1, 0, 2, 1, 0])[stretch]
    scores = one_hot(guesses)
    by_picture = accuracy(scores, labels, np.arange(180), people, zeros(180))
    found = by_stretches(scores, labels, people)
    assert by_picture["p"] < 0.001 and found["value"] == by_picture["value"] == pytest.approx(0.5)
    assert found["p"] > 0.1 and found["n"] == 6
    p, _ = exact(scores[::30] / 6, labels[::30], people[::30])
    assert abs(found["p"] - p) < 0.03


def test_two_intervals_answer_two_questions():
    """All pictures are right in three people and wrong in three others: sure for these people, open for others."""
    people, units = np.repeat(np.arange(6), 30), np.tile(np.arange(30), 6)
    labels = units % 2
    guesses = np.where(people < 3, labels, 1 - labels)
    alone = accuracy(
        one_hot(guesses, 2)[people < 3], labels[people < 3], units[people < 3], people[people < 3], zeros(90)
    )
    assert alone["over_pictures"]["low"] > 0.85 and alone["over_people"]["low"] is None  # of three people there is none
    found = accuracy(one_hot(guesses, 2), labels, units, people, zeros(180))
    assert found["people"] == [1, 1, 1, 0, 0, 0]
    expected = bootstrap_means(np.array(found["people"])[:, None], np.arange(6), [True])[0]
    assert found["over_people"] == expected._asdict() and expected.high - expected.low > 0.6


def test_averages_and_first_rows():
    means, first = averaged(np.array([[1.0], [5.0], [3.0]]), np.array([7, 2, 7]))
    assert means.tolist() == [[5.0], [2.0]] and first.tolist() == [1, 0]


def test_identification_by_hand():
    truths = np.array([[0.0, 1, 2], [2.0, 1, 0], [0.0, 2, 0]])
    table = beaten(truths, truths, zeros(3))
    assert np.diag(table).tolist() == [1, 1, 1] and table[0, 1] == 0
    swapped = beaten(truths[[1, 0, 2]], truths, zeros(3))
    assert np.diag(swapped).tolist() == [0, 0, 1]
    constant = beaten(np.ones((3, 3)), truths, zeros(3))
    assert np.diag(constant).tolist() == [0.5, 0.5, 0.5]


def test_identification_is_among_pictures_of_the_group():
    """Guesses tell the class and nothing else: perfect among all, chance within."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 30)
    truths = rng.standard_normal((60, 20)) + 5 * np.eye(20)[groups]
    guesses = rng.standard_normal((60, 20)) + 50 * np.eye(20)[groups]
    n = np.arange(60)
    within, *_ = identified(guesses, truths, n, zeros(60), groups)
    among_all, *_ = identified(guesses, truths, n, zeros(60), zeros(60))
    assert within["p"] > 0.01 and abs(within["value"] - 0.5) < 0.12
    assert among_all["p"] < 0.001 and among_all["value"] > 0.7
    told, *_ = identified(truths + rng.standard_normal((60, 20)), truths, n, zeros(60), groups)
    assert told["p"] < 0.001 and told["value"] > 0.9


def test_a_group_of_one_tells_nothing():
    found, shares, trial = identified(np.eye(3), np.eye(3), np.arange(3), zeros(3), np.array([0, 0, 1]))
    assert found["n"] == 2 and trial.tolist() == [0, 1]
    assert "why" in identified(np.eye(3), np.eye(3), np.arange(3), zeros(3), np.arange(3))[0]


def test_paired_differences():
    assert paired(np.array([1.0, 2.0, 3.0, 4.0])) == 1 / 16  # of all signs
    assert paired(np.zeros(30)) == 1 and paired(-np.ones(10)) == 1


def test_p_is_uniform_where_there_is_nothing():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 10)
    p = [permuted(one_hot(rng.integers(4, size=40), 4) / 40, labels, zeros(40), seed=i).p for i in range(200)]
    assert 1 <= np.sum(np.array(p) <= 0.05) <= 20


def test_benjamini_hochberg_by_hand():
    """The correction that verdicts.py takes from scipy: p times the number of questions by rank, and rising."""
    assert false_discovery_control([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.04, 0.04])
