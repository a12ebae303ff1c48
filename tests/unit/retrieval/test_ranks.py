"""Ranks, N-way, average precision, hubness, permutations and matching: by hand, by enumeration, by scipy and sklearn.

A similarity matrix S is given as queries S and the gallery I: their products are S.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import label_ranking_average_precision_score

from neuroimagen.retrieval import ranks
from neuroimagen.retrieval.ranks import Gallery, deal, expected, n_way_table, tables
from neuroimagen.scores.metrics import success_by_rank


def searched(likeness, truth, labels=None, group=None, permutations=20):
    """What is found in a similarity matrix (n, m), its metrics, and the gallery."""
    likeness, truth = torch.as_tensor(likeness, dtype=torch.float32), np.array(truth)
    m = likeness.shape[1]
    gallery = Gallery(torch.eye(m), np.arange(m) if labels is None else np.array(labels))
    group = np.zeros(len(truth), int) if group is None else np.array(group)
    found = gallery.search(likeness, truth, deal(np.zeros(m), permutations), group, group.max() + 1)
    return found, gallery.values(found), gallery


def noise(n, m, seed=0, levels=0):
    x = np.random.default_rng(seed).standard_normal((n, m))
    return np.round(x * levels) / levels if levels else x


def test_by_hand():
    """Query 0 has its picture second, query 1 first, query 2 tied with one behind another: rank 2.5 of 4."""
    found, values, _ = searched([[2, 3, 1, 0], [0, 9, 1, 2], [1, 1, 5, 0]], [0, 1, 0])
    assert found["above"].tolist() == [1, 0, 1] and found["tied"].tolist() == [1, 1, 2]
    assert values["rank"].tolist() == [2, 1, 2.5]
    assert values["top1"].tolist() == [0, 1, 0]
    # Of the three others one beats query 0's, so against one of them it wins 2 times of 3; the tie is half of each end.
    assert values["way2"] == pytest.approx([2 / 3, 1, (2 / 3 + 1 / 3) / 2])
    assert values["map"] == pytest.approx([1 / 2, 1, (1 / 2 + 1 / 3) / 2])  # no class has two pictures: reciprocal rank
    assert found["nearest"][0].tolist() == [1, 0, 2, 3]


@given(st.integers(0, 1000), st.sampled_from([0, 1, 2]))
def test_the_rank_is_scipys(seed, levels):
    likeness = noise(7, 9, seed, levels)
    truth = np.random.default_rng(seed).integers(9, size=7)
    _, values, _ = searched(likeness, truth)
    by_scipy = rankdata(-likeness, axis=1)[np.arange(7), truth]  # ties averaged
    assert values["rank"] == pytest.approx(by_scipy)
    _, values, _ = searched(-likeness, truth)
    assert values["rank"] == pytest.approx(10 - by_scipy)  # the negative turns each rank round


def test_n_way_is_what_enumeration_counts():
    m, truth = 7, 3
    for likeness in noise(4, m, levels=1):
        _, values, gallery = searched(likeness[None], [truth])
        others = [j for j in range(m) if j != truth]
        for n in (2, 4):
            wins = []
            for drawn in itertools.combinations(others, n - 1):
                better, even = (sum(op(likeness[j], likeness[truth]) for j in drawn) for op in (np.greater, np.equal))
                wins.append((better == 0) / (1 + even))  # a tie is decided by lot
            assert values[f"way{n}"][0] == pytest.approx(np.mean(wins))
    assert gallery.chance["way2"] == pytest.approx(1 / 2) and gallery.chance["way4"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("m, n", [(5, 2), (60, 50), (200, 200), (200, 4)])
def test_n_way_is_that_of_the_score_book(m, n):
    assert n_way_table(m, n) == pytest.approx(success_by_rank(m, n, 1), abs=1e-12)
    assert n_way_table(m, n)[0] == 1


@given(st.integers(0, 1000))
def test_average_precision_is_sklearns(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 0, 1], rng.integers(0, 3, 6)])
    likeness, truth = noise(6, 9, seed), rng.integers(9, size=6)
    _, values, _ = searched(likeness, truth, labels)
    each = [
        label_ranking_average_precision_score([labels == labels[t]], [row])
        for row, t in zip(likeness, truth, strict=True)
    ]
    assert values["map"] == pytest.approx(each)


def test_average_precision_of_ties_is_the_mean_of_all_orders():
    labels, likeness = np.array([0, 0, 0, 1, 1]), np.array([1.0, 0.0, 1.0, 1.0, 2.0])
    _, values, _ = searched(likeness[None], [0], labels)
    each = []
    for order in itertools.permutations(range(5)):
        if list(likeness[list(order)]) == sorted(likeness, reverse=True):
            right = labels[list(order)] == 0
            each.append(np.mean((np.cumsum(right) / np.arange(1, 6))[right]))
    assert len(each) == math.factorial(3) and values["map"][0] == pytest.approx(np.mean(each))


def test_a_constant_gets_chance_exactly():
    labels = [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    found, values, gallery = searched(np.full((12, 12), 0.25), range(12), labels)
    for name, chance in gallery.chance.items():
        if name not in ("map", "median", "class"):
            assert values[name] == pytest.approx(np.full(12, chance), abs=1e-12), name
    assert np.median(values["rank"]) == gallery.chance["median"] == 6.5
    assert values["map"] == pytest.approx(gallery.chance_of_class[gallery.of_class])
    hubs = ranks.hubness(found["retrieved"][0], gallery.k)
    assert found["retrieved"][0] == pytest.approx(np.full(12, 1.0)) and hubs["skewness"] == 0 == hubs["never"]
    assert ranks.p_values(found["null"][0]) == {"top1": 1, "rank": 1}


def test_pictures_with_equal_features_are_tied_however_many_ask():
    """A matrix product may give equal columns other last bits, by how many rows it has."""
    unit = torch.nn.functional.normalize
    for m in (13, 50, 201):
        torch.manual_seed(m)
        vectors = unit(torch.randn(m, 768), dim=1)
        vectors[m // 2] = vectors[-1] = vectors[0]
        gallery = Gallery(vectors, np.arange(m))
        for n in (1, 40):
            given = np.zeros(n, int), deal(np.zeros(m), 2), np.zeros(n, int), 1
            assert gallery.search(unit(torch.randn(n, 768), dim=1), *given)["tied"].tolist() == [3] * n


def test_chance_is_the_mean_of_all_orders():
    """Every order of four pictures once: the mean of each number over them is its chance."""
    orders = np.array(list(itertools.permutations(range(4))))
    for labels in (None, [0, 0, 0, 1]):
        _, values, gallery = searched(orders, np.zeros(24, int), labels)
        chance = gallery.chance | ({"map": gallery.chance_of_class[0]} if labels else {})
        for name in set(values) - {"class"}:
            assert values[name].mean() == pytest.approx(chance[name]), name


def test_the_truth_and_a_swapped_pair():
    found, values, _ = searched(np.eye(6), range(6))
    assert all((values[name] == 1).all() for name in values)
    swapped = np.eye(6)[[1, 0, 2, 3, 4, 5]]
    _, values, _ = searched(swapped, range(6))
    assert values["top1"].tolist() == [0, 0, 1, 1, 1, 1]


def test_the_class_is_told_by_prototypes():
    """Unit vectors at 0 and 90 degrees in class 0, at 180 in class 1: the prototype of class 0 lies at 45 degrees."""
    angles = np.radians([0, 90, 180])
    vectors = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1), dtype=torch.float32)
    gallery = Gallery(vectors, np.array([0, 0, 1]))
    asked = np.radians([100, 120, 112.5])  # nearer to 45, nearer to 180, and about as far from both
    z = torch.tensor(np.stack([np.cos(asked), np.sin(asked)], 1), dtype=torch.float32)
    found = gallery.search(z, np.array([0, 0, 0]), deal(np.zeros(3), 5), np.zeros(3, int), 1)
    assert found["class"][:2].tolist() == [1, 0] and gallery.chance["class"] == 1 / 2


def test_hubs_by_hand():
    """Of 20 pictures the two nearest count; all ten queries find picture 0, and one of two tied ones half."""
    likeness = np.zeros((10, 20))
    likeness[:, 0], likeness[:, 5], likeness[:, 6] = 3, 1, 1
    found, _, gallery = searched(likeness, [0] * 10)
    assert gallery.k == 2
    assert found["retrieved"][0][[0, 5, 6]].tolist() == [10, 5, 5] and found["retrieved"][0].sum() == 20
    x = found["retrieved"][0]
    hubs = ranks.hubness(x, 2)
    assert hubs["never"] == 17 / 20
    assert hubs["skewness"] == pytest.approx(((x - x.mean()) ** 3).mean() / x.std() ** 3)


def test_permutations_move_pictures_whole_and_within_what_the_same_people_saw():
    seen_by = np.array([0, 1, 0, 1, 1, 0])
    deals = deal(seen_by, 50)
    assert (deals[:, 0] == np.arange(6)).all() and deals.shape == (6, 51)
    assert all(sorted(column) == list(range(6)) for column in deals.T)
    assert (seen_by[deals] == seen_by[:, None]).all()
    assert len({tuple(column) for column in deals.T}) > 20


def test_p_is_that_of_all_permutations():
    """Sums over trials with the places dealt out, against a loop; many trials of few pictures are no evidence."""
    likeness, truth = noise(40, 5, 3), np.repeat(np.arange(5), 8)
    found, _, _ = searched(likeness, truth, permutations=300)
    deals = deal(np.zeros(5), 300)
    right = likeness.argmax(1)
    assert found["null"][0][:, 0].tolist() == [(right == deals[truth, b]).sum() for b in range(301)]
    # All trials of two pictures right, and half of 5! permutations keep neither in place: p cannot be small.
    sure = np.repeat(np.eye(2)[:, [0, 1]], 50, 0)
    found, _, _ = searched(sure, np.repeat([0, 1], 50), permutations=1000)
    assert 0.4 < ranks.p_values(found["null"][0])["top1"] < 0.6
    found, _, _ = searched(np.eye(8), range(8), permutations=1000)
    assert ranks.p_values(found["null"][0])["rank"] < 0.01


def test_groups_and_parts_add_up(monkeypatch):
    likeness, truth, labels = noise(23, 12, 5), np.arange(23) % 12, np.arange(12) // 2
    whole = searched(likeness, truth, labels, group=np.arange(23) % 3 - 1)[0]
    monkeypatch.setattr(ranks, "ROWS", 5)
    parts = searched(likeness, truth, labels, group=np.arange(23) % 3 - 1)[0]
    for name in whole:
        assert parts[name] == pytest.approx(whole[name]), name
    chosen = np.arange(23) % 3 == 1
    alone = searched(likeness[chosen], truth[chosen], labels)[0]
    assert whole["retrieved"][0] == pytest.approx(alone["retrieved"][0])
    assert whole["null"][0] == pytest.approx(alone["null"][0])


def test_sizes_of_the_gallery_and_many_pictures():
    above = np.array([0, 3, 15_999])
    assert expected(n_way_table(16_000, 16_000), above, np.ones(3, int)).tolist() == [1, 0, 0]
    assert all(table.min() >= 0 and (name == "rank" or table.max() <= 1) for name, table in tables(16_000).items())


def test_matching_and_csls_mend_a_hub():
    """Picture 0 is nearest to all. Each is compared with its mean over queries, or given to one query alone."""
    likeness = torch.eye(4) + torch.tensor([1.9, 0, 0, 0])
    assert searched(likeness, range(4))[1]["top1"].tolist() == [1, 0, 0, 0]
    found = ranks.transductive(likeness, torch.eye(4), np.arange(4))
    # Query 1: 2 x 1.9 - (1.9 x 4 + 1) / 4 = 1.65 for picture 0, 2 x 1 - 1 / 4 = 1.75 for its own.
    assert found["csls_top1"].tolist() == found["matched"].tolist() == [1, 1, 1, 1]
    some = ranks.transductive(likeness[1:3], torch.eye(4), np.array([1, 2]))  # a person who saw two of four
    assert some["matched"].sum() == 1, "1.9 + 1 is more than 1 + 1: one of them gets the hub"


def test_matching_is_the_best_of_all_permutations():
    likeness = noise(5, 5, 2)
    best = max(itertools.permutations(range(5)), key=lambda order: sum(likeness[range(5), order]))
    found = ranks.transductive(torch.tensor(likeness), torch.eye(5, dtype=torch.float64), np.arange(5))
    assert found["matched"].tolist() == [float(order == i) for i, order in enumerate(best)]
