import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.scores.intervals import bootstrap_means
from neuroimagen.scores.metrics import (
    auc_estimate,
    balanced_estimate,
    best_guess,
    chance_best_of,
    check_n_way,
    deal,
    dealt_estimates,
    inception_estimate,
    inception_score,
    ranks_of,
    shuffled_estimate,
    success_by_rank,
)


def n_way_accuracy(probabilities, truth, n_way=50, top_k=1):
    """(n,): each picture's expected success over all draws of distractors, as the score book has it."""
    classes = probabilities.shape[1]
    return success_by_rank(classes, check_n_way(classes, n_way, top_k), top_k)[
        ranks_of(probabilities, truth[:, None])[:, 0]
    ]


def shuffled_accuracy(probabilities, truth, n_way=50, top_k=1):
    """Exact mean over all permutations of the truths: over all pairs of a picture and a truth."""
    table = success_by_rank(probabilities.shape[1], check_n_way(probabilities.shape[1], n_way, top_k), top_k)
    return table[ranks_of(probabilities, truth)].mean()


def test_n_way_by_hand():
    # 4 classes, 3-way: 2 of the 3 others are drawn. One better class: right if it is not drawn, C(2,2)/C(3,2) = 1/3.
    assert success_by_rank(4, 3, 1) == pytest.approx([1, 1 / 3, 0, 0])
    # top-2 of 3: two better classes fail only if both are drawn, 1 of 3 draws; with three better both drawn are better.
    assert success_by_rank(4, 3, 2) == pytest.approx([1, 1, 2 / 3, 0])
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4]] * 4)
    assert n_way_accuracy(probabilities, np.arange(4), n_way=3) == pytest.approx([0, 0, 1 / 3, 1])


@pytest.mark.parametrize("n_way, top_k", [(2, 1), (3, 1), (4, 2), (5, 3), (6, 1)])
def test_n_way_equals_all_draws(n_way, top_k):
    rng = np.random.default_rng(0)
    probabilities, truth = rng.dirichlet(np.ones(6), 20), rng.integers(6, size=20)
    expected = []
    for p, t in zip(probabilities, truth, strict=True):
        draws = itertools.combinations([c for c in range(6) if c != t], n_way - 1)
        expected.append(np.mean([sum(p[c] > p[t] for c in draw) < top_k for draw in draws]))
    assert n_way_accuracy(probabilities, truth, n_way, top_k) == pytest.approx(expected, abs=1e-12)


def test_n_way_equals_random_trials_of_the_published_procedure():
    rng = np.random.default_rng(1)
    probabilities, truth = rng.random((30, 1000)), rng.integers(1000, size=30)
    probabilities[np.arange(30), truth] = rng.uniform(0.94, 1, 30)  # at most some 60 better: neither sure nor hopeless
    trials = 400
    hits = np.zeros(30)
    for i, (p, t) in enumerate(zip(probabilities, truth, strict=True)):
        others = np.delete(np.arange(1000), t)
        hits[i] = sum(p[rng.choice(others, 49, replace=False)].max() < p[t] for _ in range(trials)) / trials
    closed = n_way_accuracy(probabilities, truth, 50)
    assert 0.1 < closed.mean() < 0.9
    assert np.abs(hits - closed).max() < 4 * math.sqrt(0.25 / trials)
    assert abs(hits.mean() - closed.mean()) < 4 * math.sqrt(0.25 / trials / 30)


@given(st.integers(2, 60), st.data())
def test_chance_is_k_over_n(n_classes, data):
    n_way = data.draw(st.integers(2, n_classes))
    top_k = data.draw(st.integers(1, n_way - 1))
    by_rank = success_by_rank(n_classes, n_way, top_k)
    assert by_rank.mean() == pytest.approx(top_k / n_way)  # every rank equally likely: exactly chance
    reference = scipy.stats.hypergeom.cdf(top_k - 1, n_classes - 1, np.arange(n_classes), n_way - 1)
    assert by_rank == pytest.approx(reference, abs=1e-9)
    assert by_rank[0] == 1 and (np.diff(by_rank) <= 0).all()


def test_ties_count_against():
    assert (n_way_accuracy(np.full((3, 10), 0.1), np.array([0, 4, 9]), 5) == 0).all()
    # Tied with one other of 2: as if that one were better.
    assert n_way_accuracy(np.array([[0.4, 0.4, 0.2]]), np.array([0]), 2) == pytest.approx([1 / 2])


def test_n_is_capped_and_nonsense_refused():
    assert check_n_way(2, 50, 1) == 2
    with pytest.raises(ValueError, match="top_k=2 of 2 classes says nothing"):
        check_n_way(2, 50, 2)
    with pytest.raises(ValueError, match="n_way is 1"):
        check_n_way(2, 1, 1)


def test_shuffled_by_hand():
    # 4 classes, 4-way: right only where the truth is the most probable. Two pictures show class 0, one class 1.
    probabilities, truth = np.eye(4)[[0, 0, 1]] * 0.6 + 0.1, np.array([0, 1, 1])
    # The 9 pairs: pictures of 0 are right with truth 0 (2 pairs), the picture of 1 with both truths 1 (2 pairs).
    assert shuffled_accuracy(probabilities, truth, 4) == pytest.approx(4 / 9)
    # 2-way: one of the 3 others is drawn. A truth that ranks second is right in 2 of 3 draws; ties count against: the
    # three classes of probability 0.1 all rank last, and the result is the same ...
    assert shuffled_accuracy(probabilities, truth, 2) == pytest.approx(4 / 9)
    # ... but without the ties, class 1 is second in the pictures of 0 (4 pairs) and class 0 in that of 1 (1 pair).
    untied = np.array([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1]])
    assert shuffled_accuracy(untied, truth, 2) == pytest.approx((4 + 5 * 2 / 3) / 9)
    # A perfect decoder of a study of 2 classes judged by a classifier of 40: 1/2, while the 40-way chance is 1/40.
    perfect = np.eye(40)[[3, 7] * 5]
    assert shuffled_accuracy(perfect, np.array([3, 7] * 5), 50) == pytest.approx(1 / 2)


@pytest.mark.parametrize("n_way, top_k", [(2, 1), (4, 2), (6, 1), (50, 3)])
def test_shuffled_is_the_mean_over_all_permutations(n_way, top_k):
    rng = np.random.default_rng(2)
    probabilities, truth = rng.dirichlet(np.ones(6), 5).round(1), rng.integers(6, size=5)  # rounded: with ties
    means = [n_way_accuracy(probabilities, truth[list(order)], n_way, top_k).mean()
             for order in itertools.permutations(range(5))]  # fmt: skip
    assert shuffled_accuracy(probabilities, truth, n_way, top_k) == pytest.approx(np.mean(means), abs=1e-12)


def test_inception_score_by_hand():
    assert inception_score(np.full((7, 4), 0.25)) == pytest.approx(1)
    assert inception_score(np.eye(5)) == pytest.approx(5)
    assert inception_score(np.eye(5)[[2, 2, 2]]) == pytest.approx(1)  # sure, but always the same
    # Marginal (.5, .5); each KL = .9 ln(.9/.5) + .1 ln(.1/.5)
    expected = math.exp(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert inception_score(np.array([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(expected)
    assert inception_score(np.eye(4)[[0, 1, 2, 3]], splits=2) == pytest.approx(2)
    by_class = np.eye(10).repeat(2000, 0)  # 10 perfect classes, one after the other: of every part the score is 10
    assert inception_score(by_class, splits=10) == pytest.approx(10, rel=0.005)
    with pytest.raises(ValueError, match="3 splits"):
        inception_score(np.eye(2), splits=3)


def bootstrap_mean(values, units):
    return bootstrap_means(np.asarray(values)[:, None], units)[0]


def test_bootstrap_resamples_pictures_not_reconstructions():
    rng = np.random.default_rng(0)
    by_picture = rng.random(100)
    values, units = by_picture.repeat(9), np.arange(100).repeat(9)  # nine samples of a picture, all alike
    estimate = bootstrap_mean(values, units)
    error = 1.96 * by_picture.std() / 10
    assert estimate.value == pytest.approx(by_picture.mean()) and estimate.n == 100
    assert estimate.high - estimate.low == pytest.approx(2 * error, rel=0.1)
    assert estimate.low < estimate.value < estimate.high
    assert estimate == bootstrap_mean(values, units)  # the seed is fixed
    pretending = bootstrap_mean(values, np.arange(900))
    assert (pretending.high - pretending.low) * 2.5 < estimate.high - estimate.low


def test_bootstrap_edges():
    assert tuple(bootstrap_mean(np.full(10, 0.5), np.arange(10) % 5)) == (0.5, 0.5, 0.5, 5)
    assert tuple(bootstrap_mean([0.0, 1, 1, 1, 1], list("abcdd"))) == (0.8, None, None, 4)  # too few
    uneven = bootstrap_mean([1.0, 1, 1, 1, 1, 1, 0], list("aaabcde"))  # of 3,125 resamples one is all e, 15 all but one
    assert uneven.value == pytest.approx(6 / 7) and (uneven.low, uneven.high) == (0.2, 1)


@pytest.mark.parametrize("n, level", [(5, 0.000954), (10, 0.008551), (20, 0.015881), (80, 0.022588)])
def test_levels_are_wider_for_few(n, level):
    """All resamples of 5, or very many of more, in numpy; levels by scipy.stats from Hesterberg's formula."""
    wanted = scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    assert wanted == pytest.approx(level, abs=1e-6)
    values = np.random.default_rng(n).random(n)
    if n == 5:
        drawn = np.array(list(itertools.product(range(5), repeat=5)))
    else:
        drawn = np.random.default_rng(99).integers(n, size=(50_000, n))
    low, high = np.quantile(values[drawn].mean(1), (wanted, 1 - wanted))
    found = bootstrap_means(values[:, None], np.arange(n), resamples=50_000)[0]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))


@pytest.mark.parametrize("n", [5, 40, 200])
def test_a_share_without_spread_is_clopper_pearsons(n):
    values = np.stack([np.zeros(2 * n), np.ones(2 * n), np.arange(2 * n) // 2 == 1, np.zeros(2 * n)], 1)
    none, all_, one, blank = bootstrap_means(values, np.arange(2 * n) // 2, [True, True, True, False])
    for found, successes in ((none, 0), (all_, n)):  # two samples of a picture are no two pictures
        exact = scipy.stats.binomtest(successes, n).proportion_ci(method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert one.low == 0 < one.high < 1
    # Uneven classes: no rates of 20 and 5 pictures that give this in 2.5 % have a lower mean.
    labels, units = np.repeat([0, 1], [20, 5]), np.arange(25)
    balanced = balanced_estimate(np.ones(25), labels, units)
    a, b = np.meshgrid(np.linspace(0, 1, 1001), np.linspace(0, 1, 1001))
    assert balanced.low == pytest.approx(1 - np.hypot(1 - 0.025 ** (1 / 20), 1 - 0.025 ** (1 / 5)) / 2)
    assert balanced.low < ((a + b) / 2)[a**20 * b**5 >= 0.025].min() and balanced.high == 1
    assert auc_estimate(labels + 0.0, labels > 0, units)[:3] == (1, 0.025 ** (1 / 5), 1)
    assert shuffled_estimate(np.zeros((25, 2)), labels, units)[:3] == (0, 0, 1 - 0.025 ** (1 / 25))
    assert (blank.low, blank.high) == (0, 0)  # no share: a correlation that is 0, say


@pytest.mark.parametrize("n_way, top_k, classes", [(2, 1, 10), (5, 2, 10), (10, 3, 10), (50, 1, 60), (20, 5, 60)])
def test_closed_form_is_what_random_trials_converge_to(n_way, top_k, classes):
    """As MinD-Vis computes it: per trial N - 1 distractors from the other classes, then the top k of the N."""
    rng, trials = np.random.default_rng(7), 3000
    logits, truth = rng.standard_normal((6, classes)), rng.integers(classes, size=6)
    logits[np.arange(6), truth] += [0, 0.5, 1, 1.5, 2, -1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    exact = n_way_accuracy(probabilities, truth, n_way, top_k)
    for p, t, value in zip(probabilities, truth, exact, strict=True):
        others = np.delete(np.arange(classes), t)
        won = 0
        for _ in range(trials):
            candidates = [t, *rng.choice(others, n_way - 1, replace=False)]
            won += t in sorted(candidates, key=lambda c: -p[c])[:top_k]
        assert abs(won / trials - value) <= 4.5 * np.sqrt(value * (1 - value) / trials) + 1e-12


def test_ranks_by_hand():
    p = np.array([[0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert ranks_of(p, np.arange(4)).tolist() == [[0, 2, 2, 3], [3, 3, 3, 3]]  # a tie counts against
    assert ranks_of(p.astype(np.float32), np.array([[1], [0]])).tolist() == [[2], [3]]
    with pytest.raises(AssertionError, match="not finite"):
        ranks_of(p * np.nan, np.arange(4))


def test_chance_of_the_best_by_hand():
    # Two guesses at 1 of 4: 1 - (3/4)^2. Ranks 0, 1/2, 1 of a two-way score, twice: (0 + 3/2 + 5) / 9.
    assert chance_best_of(success_by_rank(4, 4, 1), 2) == pytest.approx(7 / 16)
    assert chance_best_of(np.array([1, 0.5, 0]), 2) == pytest.approx(6.5 / 9)
    assert chance_best_of(np.array([1, 0.5, 0]), 1) == pytest.approx(1 / 2)


def test_inception_score_equals_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.image.inception")
    logits = 3 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    for splits in (1, 4):
        theirs = metrics.InceptionScore(feature=torch.nn.Identity(), splits=splits)
        theirs.features = [logits]  # the score of given outputs: no pictures, no network
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randperm", lambda n: torch.from_numpy(np.random.default_rng(0).permutation(n)))
            mean, _ = theirs.compute()
        assert inception_score(logits.double().softmax(1).numpy(), splits) == pytest.approx(float(mean), rel=1e-5)


def test_jackknife_intervals():
    rng = np.random.default_rng(1)
    p, units = rng.dirichlet(np.full(5, 0.3), 40), np.repeat(np.arange(20), 2)
    found = inception_estimate(p, units)
    without = np.log([inception_score(p[units != u]) for u in range(20)])
    error = 2.093024 * np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())  # t of 19 degrees of freedom
    assert found.value == pytest.approx(inception_score(p)) and found.n == 20
    assert (found.low, found.high) == pytest.approx((found.value * np.exp(-error), found.value * np.exp(error)))
    assert inception_estimate(p, units, splits=2).low is None
    assert inception_estimate(p[:8], units[:8]).low is None and inception_estimate(p[:10], units[:10]).low is not None
    alike = np.full((5, 4), 0.25)
    alike[0] = (0.7, 0.1, 0.1, 0.1)
    assert inception_estimate(alike, np.arange(5)).low == 1  # no score is lower
    truth = rng.integers(5, size=40)
    classes, which = np.unique(truth, return_inverse=True)
    success = success_by_rank(5, 3, 1)[ranks_of(p, classes)]
    found = shuffled_estimate(success, which, units)
    assert found.value == pytest.approx(shuffled_accuracy(p, truth, 3))
    without = np.array([shuffled_accuracy(p[units != u], truth[units != u], 3) for u in range(20)])
    error = 2.093024 * np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert found.high - found.value == pytest.approx(error)


def test_bootstrap_is_scipys():
    """The same interval, within the resampling's own noise, of scipy's bootstrap over sums and counts of pictures."""
    rng = np.random.default_rng(3)
    units = rng.integers(40, size=200)
    values = rng.random(200) + units / 40
    which = np.unique(units, return_inverse=True)[1]
    level = scipy.stats.norm.cdf(-math.sqrt(40 / 39) * scipy.stats.t.ppf(0.975, 39))
    sums, counts = np.bincount(which, values), np.bincount(which).astype(float)
    theirs = scipy.stats.bootstrap(
        (sums, counts), lambda s, c, axis=-1: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=2000, confidence_level=1 - 2 * level, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = bootstrap_means(np.stack([values, 2 * values], 1), units)
    width = theirs.high - theirs.low
    assert (ours[0].low, ours[0].high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)
    assert (ours[1].low, ours[1].high) == pytest.approx((2 * ours[0].low, 2 * ours[0].high))  # the same resamples


def by_permutations(values, mine):
    """Mean of values (n, samples, n) over all ways to deal the truths of trials `mine` out among them."""
    dealt = [values[mine, :, list(order)].mean() for order in itertools.permutations(mine)]
    return np.mean(dealt)


@pytest.mark.parametrize("better, sign", [("higher", 1), ("lower", -1)])
def test_dealt_is_the_mean_over_all_permutations(better, sign):
    rng = np.random.default_rng(0)
    values, units = rng.random((6, 2, 6)), np.array(list("aabcde"))
    dealings = deal(6, 2)
    assert dealings.shape == (6, 2, 5)
    i, s = np.arange(6)[:, None, None], np.arange(2)[:, None]
    own = values[np.arange(6), :, np.arange(6)]
    found = dealt_estimates(own, values[i, s, dealings], dealings, units, better)
    left = [np.flatnonzero(units != unit).tolist() for unit in "abcde"]

    def gain(mine):
        return sign * (own[mine].mean() - by_permutations(values, mine))

    for estimate, wanted in zip(found, (lambda mine: by_permutations(values, mine), gain), strict=True):
        without = np.array([wanted(mine) for mine in left])
        error = scipy.stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
        whole = wanted(list(range(6)))
        assert estimate == pytest.approx((whole, whole - error, whole + error, 5), abs=1e-12)


def test_few_dealings_are_fair_and_all_of_them_permutations():
    n, samples = 90, 3
    dealings = deal(n, samples)
    k = dealings.shape[2]
    assert k < n - 1 and 2000 <= n * samples * k < 2000 + n * samples
    every = dealings.reshape(n, -1)
    assert (np.sort(every, 0) == np.arange(n)[:, None]).all() and (every != np.arange(n)[:, None]).all()
    assert len({tuple(column) for column in dealings[:, 0].T}) == k
    rng = np.random.default_rng(1)
    i, s, units = np.arange(n)[:, None, None], np.arange(samples)[:, None], np.arange(n)
    # The same picture for all, or truths that are all alike: the gain is 0 to the last digit, however few the dealings.
    for values in (rng.random((1, 1, n)), rng.random((n, samples, 1))):
        whole = np.broadcast_to(values, (n, samples, n))
        own = whole[np.arange(n), :, np.arange(n)]
        gain = dealt_estimates(own, whole[i, s, dealings], dealings, units)[1]
        assert gain.value == pytest.approx(0, abs=1e-12) and gain.low < 0 < gain.high
    # Against the mean over all n^2 pairs: off by far less than the interval is wide.
    values = rng.random((n, samples, n)) + rng.random((n, 1, 1)) + rng.random(n)
    own = values[np.arange(n), :, np.arange(n)]
    other, gain = dealt_estimates(own, values[i, s, dealings], dealings, units)
    assert other.value == pytest.approx(values.mean(), abs=0.1 * (other.high - other.low))
    assert gain.value == pytest.approx(own.mean() - values.mean(), abs=0.15 * (gain.high - gain.low))


def test_the_interval_of_a_gain_covers_it():
    """200 studies of 40 pictures whose reconstructions meet their truth 0.1 better than others: 91 to 99 % of them."""
    covered, rng = 0, np.random.default_rng(2)
    for study in range(200):
        dealings = deal(40, 1, least=240, seed=study)
        values = rng.normal(0, 0.2, (40, 1, 40)) + rng.normal(0, 0.2, (40, 1, 1)) + rng.normal(0, 0.2, 40)
        own = values[np.arange(40), :, np.arange(40)] + 0.1
        dealt = values[np.arange(40)[:, None, None], 0, dealings]
        gain = dealt_estimates(own, dealt, dealings, np.arange(40))[1]
        # the mean over all permutations holds each one's own truth once in 40
        covered += gain.low <= 0.1 * 39 / 40 <= gain.high
    assert 182 <= covered <= 198


def test_best_guess_is_the_best_of_all_answers():
    truth, by_rank = np.array([2, 0, 2, 3, 2, 3]), success_by_rank(6, 4, 2)
    answers = [np.mean([by_rank[answer.index(t)] for t in truth]) for answer in itertools.permutations(range(6))]
    assert best_guess(truth, by_rank).mean() == pytest.approx(max(answers))
    weights = np.array([1 / 3, 2, 1 / 3, 1 / 2, 1 / 3, 1 / 2])  # then 0 comes first
    answers = [np.average([by_rank[answer.index(t)] for t in truth], weights=weights)
               for answer in itertools.permutations(range(6))]  # fmt: skip
    assert np.average(best_guess(truth, by_rank, weights), weights=weights) == pytest.approx(max(answers))
    # 386 of one class and 78 of the other: always the first is right in 386 of 464.
    assert best_guess(np.repeat([1, 0], [386, 78]), success_by_rank(2, 2, 1)).mean() == 386 / 464


def test_balanced_accuracy_by_hand_and_its_jackknife():
    values, labels = np.array([1.0, 1, 0, 1, 0, 0.5]), np.array([7, 7, 7, 7, 2, 2])
    units = np.array(list("aabcde"))
    assert balanced_estimate(values, labels, units)[0] == (3 / 4 + 1 / 4) / 2
    rng = np.random.default_rng(4)
    values, units = rng.random(60), rng.integers(20, size=60)
    labels = units % 3  # every unit is of one class

    def by_hand(mine):
        return np.mean([values[mine & (labels == c)].mean() for c in range(3)])

    found = balanced_estimate(values, labels, units)
    without = np.array([by_hand(units != u) for u in np.unique(units)])
    n = len(without)
    error = scipy.stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    assert found == pytest.approx((by_hand(units >= 0), found.value - error, found.value + error, n))


def test_auc_is_mann_whitneys_u():
    rng = np.random.default_rng(5)
    positive = np.arange(40) % 4 > 0
    units = np.where(positive, np.arange(40) // 8, 100 + np.arange(40) // 8)
    scores = (rng.normal(0, 1, 40) + positive).round(1)  # rounded: with ties

    def by_hand(mine):
        a, b = scores[mine & positive], scores[mine & ~positive]
        return np.mean([(x > y) + (x == y) / 2 for x in a for y in b])

    found = auc_estimate(scores, positive, units)
    u = scipy.stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found.value == pytest.approx(u / (30 * 10)) and found.value == pytest.approx(by_hand(positive | True))
    without = np.array([by_hand(units != unit) for unit in np.unique(units)])
    error = scipy.stats.t.ppf(0.975, 9) * np.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum())
    assert (found.low, found.high) == pytest.approx((found.value - error, min(1, found.value + error)))
    assert auc_estimate(np.ones(6), np.arange(6) > 3, np.arange(6))[:3] == (0.5, 0.5, 0.5)
    assert auc_estimate(np.array([1.0, 2]), np.array([False, True]), np.arange(2))[:3] == (1, None, None)


@pytest.mark.parametrize("frequent, rare", [(386, 78), (10, 3)])
def test_balanced_accuracy_of_always_the_frequent_class_has_an_interval(frequent, rare):
    """.5, but neither class has spread: what binomial tests leave open for each class, a half of it each."""
    values, labels = np.r_[np.ones(frequent), np.zeros(rare)], np.r_[np.zeros(frequent, int), np.ones(rare, int)]
    found = balanced_estimate(values, labels, np.arange(frequent + rare))
    lowest = scipy.stats.binomtest(frequent, frequent).proportion_ci(0.95, "exact").low
    highest = scipy.stats.binomtest(0, rare).proportion_ci(0.95, "exact").high
    assert found == pytest.approx((0.5, 0.5 - (1 - lowest) / 2, 0.5 + highest / 2, frequent + rare))


def test_balanced_accuracy_covers_where_one_class_hardly_varies():
    """60 frequent trials named right in 95 %, 10 rare ones in 10 %: the interval holds .525 in nine studies of ten."""
    rng, labels, held = np.random.default_rng(0), np.repeat([0, 1], [60, 10]), 0
    for _ in range(300):
        values = np.r_[rng.random(60) < 0.95, rng.random(10) < 0.1].astype(float)
        _, low, high, _ = balanced_estimate(values, labels, np.arange(70))
        held += low <= 0.525 <= high
    assert held >= 270
