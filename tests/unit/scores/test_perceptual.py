"""Metrics of pictures and features against numpy, scipy, scikit-image and torchmetrics on the same arrays."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from neuroimagen.scores import similarity
from neuroimagen.scores.metrics import success_by_rank
from neuroimagen.scores.networks import resize, suite_pictures


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three pictures of 48 px that resemble their truths more and more, the last one wholly."""
    truths = resize(random(3, 3, 6, 6), 48, 48)
    share = torch.tensor([0.2, 0.7, 1.0]).view(3, 1, 1, 1)
    return share * truths + (1 - share) * random(3, 3, 48, 48, seed=1), truths


def test_pictures_go_by_way_of_256_px():
    images = random(1, 3, 300, 200)
    by_hand = torch.nn.functional.interpolate(images, (256, 256), mode="bilinear", antialias=True)
    assert not torch.equal(by_hand, torch.nn.functional.interpolate(images, (256, 256), mode="bilinear"))
    assert torch.equal(suite_pictures(images, 256), by_hand)
    wanted = torch.nn.functional.interpolate(by_hand, (224, 224), mode="bilinear", antialias=True)
    assert torch.equal(suite_pictures(images, 224), wanted)


@pytest.mark.parametrize("setting", ["suite", "own"])
def test_pixcorr_is_numpys(setting):
    images, truths = pairs()
    found = similarity.pixcorr(images, truths, setting)
    if setting == "suite":
        images, truths = suite_pictures(images, 425), suite_pictures(truths, 425)
    wanted = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(images.numpy(), truths.numpy(), strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert 0 < found[0] < found[1] < found[2] == pytest.approx(1)


def test_a_blank_picture_correlates_with_nothing():
    truths = random(2, 3, 48, 48)
    blank = torch.full_like(truths, 0.3)
    blank[0, 0, 0, 0] = torch.nextafter(blank[0, 0, 0, 0], torch.tensor(1.0))  # rounding, as a resize leaves it
    assert similarity.pixcorr(blank, truths, "own").tolist() == [0, 0]
    assert similarity.pixcorr(blank, truths, "suite").tolist() == [0, 0]
    assert similarity.two_way(blank.flatten(1), truths.flatten(1), torch.arange(2)).tolist() == [0, 0]
    with pytest.raises(ValueError, match="own size"):
        similarity.pixcorr(truths, random(2, 3, 40, 48), "own")


def test_suite_ssim_is_scikit_images():
    images, truths = pairs()
    found = similarity.ssim_suite(images, truths)
    grey = [rgb2gray(suite_pictures(x, 425).permute(0, 2, 3, 1).numpy()) for x in (images, truths)]
    wanted = [
        structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for x, y in zip(*grey, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_lpips_refuses_pictures_of_which_nothing_is_left():
    small = random(1, 3, 34, 64)
    with pytest.raises(ValueError, match="at least 35 x 35"):
        similarity.lpips(small, small, None)


def by_loops(features: np.ndarray, truths: np.ndarray, which: np.ndarray) -> list[float]:
    """The suite's two-way identification, pair by pair."""
    shares = []
    for x, own in zip(features, which, strict=True):
        at_own = np.corrcoef(x, truths[own])[0, 1]
        wins = [np.corrcoef(x, y)[0, 1] < at_own for j, y in enumerate(truths) if j != own]
        shares.append(sum(wins) / len(wins))
    return shares


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_two_way_is_a_loop_over_all_pairs(batch_size):
    truths = 3 + random(7, 40)
    which = torch.tensor([0, 0, 3, 6, 5, 2, 4, 1, 6, 6, 3])
    features = truths[which] + 4 * random(11, 40, seed=2)
    wanted = by_loops(features.double().numpy(), truths.double().numpy(), which.numpy())
    assert 0 < min(wanted) < max(wanted) == 1  # not all alike
    np.testing.assert_allclose(similarity.two_way(features, truths, which), wanted, atol=1e-6)
    assert similarity.farther(features, truths, which, batch_size).tolist() == [round(6 * share) for share in wanted]


def test_two_way_at_its_ends():
    truths = random(4, 30)
    which = torch.arange(4)
    assert similarity.two_way(truths, truths, which).tolist() == [1, 1, 1, 1]
    assert similarity.two_way(-truths, truths, which).tolist() == [0, 0, 0, 0]
    constant = torch.full((4, 30), 0.7)
    assert similarity.two_way(constant, truths, which).tolist() == [0, 0, 0, 0]  # ties count against
    assert similarity.two_way(truths, constant, which).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="at least two"):
        similarity.two_way(truths[:1], truths[:1], which[:1])


def test_retrieval_follows_from_the_same_ranks():
    truths, which = random(6, 20), torch.tensor([4, 1, 1])
    features = truths[which] + random(3, 20, seed=3)
    behind = len(truths) - 1 - similarity.farther(features, truths, which)
    r = np.corrcoef(features, truths)[:3, 3:]
    for row, own, rank in zip(r, which, behind, strict=True):  # every choice of two distractors among the others
        draws = itertools.combinations([j for j in range(6) if j != own], 2)
        rate = np.mean([all(row[j] < row[own] for j in draw) for draw in draws])
        assert success_by_rank(6, 3, 1)[rank] == pytest.approx(rate)


def test_correlation_distance_is_scipys():
    x, y = random(5, 33), random(5, 33, seed=1)
    wanted = [scipy.spatial.distance.correlation(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(similarity.correlation_distance(x, y), wanted, atol=1e-6)
    assert similarity.correlation_distance(x, -x).tolist() == pytest.approx([2] * 5)
    assert similarity.correlation_distance(x, torch.ones_like(x)).tolist() == [1] * 5


class AsIs(torch.nn.Module):
    """Features go through torchmetrics untouched."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("n, m, width", [(60, 50, 8), (8, 60, 16), (6, 5, 16)])
def test_frechet_distance_is_that_of_torchmetrics_and_of_scipys_root(n, m, width):
    mixed = random(width, width, seed=2)
    x, y = random(n, width).double() @ mixed.double(), 0.3 + random(m, width, seed=1).double()
    found = similarity.frechet_distance(x, y)
    metric = FrechetInceptionDistance(feature=AsIs(width)).set_dtype(torch.float64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    # a root of a singular matrix loses half of the digits
    assert found == pytest.approx(float(metric.compute()), rel=1e-5 if min(n, m) > width else 1e-3)
    a, b = np.cov(x.T), np.cov(y.T)
    half = scipy.linalg.sqrtm(a)
    root = np.sqrt(np.clip(np.linalg.eigvalsh(half.real @ b @ half.real), 0, None)).sum()
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    assert found == pytest.approx(float(apart + np.trace(a) + np.trace(b) - 2 * root), rel=1e-6)


def test_frechet_distance_by_hand():
    # one feature: (difference of means)^2 + (difference of standard deviations)^2 = 9 + (2 - 1)^2
    x, y = np.array([[-2.0], [0.0], [2.0]]), np.array([[2.0], [3.0], [4.0]])
    assert similarity.frechet_distance(x, y) == pytest.approx(10)
    assert similarity.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least two"):
        similarity.frechet_distance(x[:1], y)


def test_small_samples_are_warned_of():
    assert "2000 and 90000" in similarity.fid_warning(2000, 90_000)
    assert similarity.fid_warning(5000, 2048) is not None  # n pictures span n - 1 directions
    assert similarity.fid_warning(5000, 2049) is None


def test_no_distance_is_negative():
    """Of pictures from themselves; without the guard against rounding about every third of them would be."""
    alike = [random(30, 20, seed=seed) + 5 for seed in range(20)]
    assert min(similarity.frechet_distance(x, x) for x in alike) >= 0
    distances = torch.cat([similarity.correlation_distance(x.double(), 3 * x.double()) for x in alike])
    assert distances.min() >= 0 and distances.max() < 1e-12


def kernel_by_loops(x: np.ndarray, y: np.ndarray, which: np.ndarray) -> float:
    """Mean over all pairs of reconstructions of different pictures, one by one."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    found = []
    for i, a in enumerate(which):
        for j, b in enumerate(which):
            if a != b:
                found.append(k(x[i], x[j]) + k(y[a], y[b]) - k(x[i], y[b]) - k(x[j], y[a]))
    return float(np.mean(found))


@pytest.mark.parametrize("rows", [3, 5, 256])
def test_kernel_distance_is_a_loop_over_pairs_of_different_pictures(rows, monkeypatch):
    monkeypatch.setattr(similarity, "KID_ROWS", rows)
    y, which = random(5, 6).double().numpy(), np.array([0, 0, 3, 2, 2, 2, 0, 4, 3])  # of picture 1 there is none
    x = 0.5 * y[which] + 0.6 * random(9, 6, seed=1).double().numpy()
    wanted = kernel_by_loops(x, y, which)
    assert similarity.kernel_distance(x, y, which) == pytest.approx(wanted, rel=1e-9)
    order = np.random.default_rng(0).permutation(9)
    assert similarity.kernel_distance(x[order], y, which[order]) == pytest.approx(wanted, rel=1e-9)
    assert similarity.kernel_distance(y[which], y, which) == pytest.approx(0, abs=1e-14)  # the truths themselves
    with pytest.raises(ValueError, match="at least two ground-truth pictures"):
        similarity.kernel_distance(x[:2], y, which[:2])


def test_kernel_distance_is_that_of_torchmetrics_from_independent_halves():
    """Reconstructions of some pictures against the truths of others, whose mean over random halves it is."""
    y = random(40, 16)
    x = 0.1 + 0.7 * y + 0.3 * random(40, 16, seed=1)
    halves, rng = [], np.random.default_rng(0)
    for _ in range(600):
        a, b = torch.from_numpy(rng.permutation(40)).chunk(2)
        kernels = (poly_kernel(x[a], x[a]), poly_kernel(x[a], y[b]), poly_kernel(y[b], y[b]))
        halves.append(float(maximum_mean_discrepancy(*kernels)))
    value = similarity.kernel_distance(x, y, np.arange(40))
    assert abs(np.mean(halves) - value) < 3.5 * np.std(halves) / 600**0.5 < 0.15 * value


@pytest.mark.parametrize("likeness", [0.0, 0.9])
def test_kernel_distance_of_one_distribution_is_0_on_average(likeness):
    """Three reconstructions of each of 20 pictures, distributed as the pictures are, like their own one or not."""
    rng, which, found = np.random.default_rng(0), np.arange(20).repeat(3), []
    for _ in range(200):
        y = rng.standard_normal((20, 8))
        x = likeness * y[which] + (1 - likeness**2) ** 0.5 * rng.standard_normal((60, 8))
        found.append(similarity.kernel_distance(x, y, which))
    assert abs(np.mean(found)) < 3.5 * np.std(found) / 200**0.5
