"""Metrics of pictures and features against numpy, scipy, scikit-image and torchmetrics on the same arrays."""

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from PIL import Image
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from neuroimagen.scores import similarity
from neuroimagen.scores.measure import measure
from neuroimagen.scores.networks import resize, suite_pictures
from neuroimagen.scores.similarity import pixcorr, ssim, ssim_425


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def each(n: int) -> torch.Tensor:
    """Picture i and truth i."""
    return torch.arange(n)[:, None].expand(-1, 2)


def test_pictures_go_by_way_of_256_px():
    images = random(1, 3, 300, 200)
    by_hand = torch.nn.functional.interpolate(images, (256, 256), mode="bilinear", antialias=True)
    assert not torch.equal(by_hand, torch.nn.functional.interpolate(images, (256, 256), mode="bilinear"))
    assert torch.equal(suite_pictures(images, 256), by_hand)
    wanted = torch.nn.functional.interpolate(by_hand, (224, 224), mode="bilinear", antialias=True)
    assert torch.equal(suite_pictures(images, 224), wanted)


@pytest.mark.parametrize("height, width", [(48, 48), (24, 40), (264, 280)])
def test_the_suites_numbers_are_numpys_and_scikit_images(height, width):
    truths, which = resize(random(2, 3, 6, 6), height, width), torch.tensor([1, 0, 1])
    share = torch.tensor([0.2, 0.7, 0.7]).view(3, 1, 1, 1)
    images = share * truths[which] + (1 - share) * random(3, 3, height, width, seed=1)
    pairs = torch.stack([torch.arange(3), which], 1)
    x, y = (suite_pictures(z, 425) for z in (images, truths[which]))
    wanted = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(pixcorr(images, truths, pairs), wanted, atol=1e-5)
    np.testing.assert_allclose(pixcorr(images, truths[which], each(3)), wanted, atol=1e-5)
    assert 0 < wanted[0] < wanted[1] < 1 and pixcorr(truths, truths, each(2)).tolist() == pytest.approx([1, 1])
    grey = [rgb2gray(z.permute(0, 2, 3, 1).numpy()) for z in (x, y)]
    wanted = [
        structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for x, y in zip(*grey, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim_425(images, truths, pairs), wanted, atol=2e-5)
    assert torch.equal(ssim(images, truths, pairs), ssim(images, truths[which], each(3)))


@pytest.mark.parametrize("side", [48, 264])
def test_a_blank_picture_correlates_with_nothing(side):
    truths = random(2, 3, side, side)
    blank = torch.full_like(truths, 0.3)
    blank[0, 0, 0, 0] = torch.nextafter(blank[0, 0, 0, 0], torch.tensor(1.0))  # rounding, as a resize leaves it
    assert pixcorr(blank, truths, each(2)).tolist() == [0, 0]


def test_ssim_by_hand():
    a, b = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    c1 = 0.01**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)  # no variance: the luminance term alone
    assert ssim(a, b, each(1)).tolist() == [pytest.approx([expected, expected], rel=1e-5)]  # colour, grey
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise, each(2)).flatten().tolist() == pytest.approx([1] * 4)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(a[..., :8], b[..., :8], each(1))


@pytest.mark.parametrize("grey", [False, True])
def test_ssim_is_wang_2004_with_the_named_settings(grey):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, 24, 24, generator=generator)
    y = (x + 0.3 * torch.rand(2, 3, 24, 24, generator=generator)).clamp(0, 1)

    def reference(u, v):
        def blur(z):  # the 11 x 11 window: a radius of 5 at sigma 1.5
            return scipy.ndimage.gaussian_filter(z, 1.5, radius=5, mode="mirror")

        mu, mv = blur(u), blur(v)
        su, sv, suv = blur(u * u) - mu**2, blur(v * v) - mv**2, blur(u * v) - mu * mv
        return np.mean((2 * mu * mv + 1e-4) * (2 * suv + 9e-4) / ((mu**2 + mv**2 + 1e-4) * (su + sv + 9e-4)))

    for i, value in enumerate(ssim(x, y, each(2))[:, int(grey)].tolist()):
        u, v = x[i].double().numpy(), y[i].double().numpy()
        if grey:
            u, v = (np.tensordot([0.299, 0.587, 0.114], z, 1)[None] for z in (u, v))
        assert value == pytest.approx(np.mean([reference(*pair) for pair in zip(u, v, strict=True)]), abs=1e-4)


def by_loops(features: np.ndarray, truths: np.ndarray, own: int) -> tuple[float, int]:
    """Correlation with the own truth, and how many of the other truths correlate at least as much."""
    r = [np.corrcoef(features, y)[0, 1] for y in truths]
    return r[own], sum(x >= r[own] for x in r) - 1


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_features_are_ranked_as_by_a_loop_over_all_pairs(batch_size, tmp_path):
    """The suite's two-way identification and distances, of features that a picture's first pixel numbers."""
    truths, which = 3 + random(7, 40), [0, 0, 3, 6, 5, 2, 4, 1, 6, 6, 3]
    features = torch.cat([truths, truths[which] + 4 * random(11, 40, seed=2)])
    features[9] = 0.7  # constant: a tie with all
    for n in range(len(features)):
        Image.new("RGB", (16, 16), (n, 0, 0)).save(tmp_path / f"{n}.png")
    paths = [tmp_path / f"{n}.png" for n in range(len(features))]

    def judge(x):
        return {"layer": features[(255 * x[:, 0, 0, 0]).round().long()]}

    rows = {"L": [[path] for path in paths[7:]]}
    found = measure(rows, [paths[t] for t in [*which]], {}, [judge], [], ["layer"], {}, batch_size, torch.device("cpu"))
    # pictures are numbered as they come: only those truths that are shown count
    shown = sorted(set(which))
    keep = [i for i in range(11) if i != 2]
    wanted = [by_loops(features[7 + i].numpy(), truths[shown].numpy(), shown.index(which[i])) for i in keep]
    own, rank = (found.compared(f"{kind} layer", "L")[:, 0] for kind in ("own", "rank"))
    np.testing.assert_allclose(own[keep], [r for r, _ in wanted], atol=2e-6)
    assert rank[keep].tolist() == [n for _, n in wanted] and 0 < max(rank[keep]) < 6
    assert (own[2], rank[2]) == (0, 6)
    assert found.compared("rank layer", "truth").tolist() == [[0]] * 11


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


def test_no_distance_is_negative():
    """Of pictures from themselves; without the guard against rounding about every third of them would be."""
    alike = [random(30, 20, seed=seed) + 5 for seed in range(20)]
    assert min(similarity.frechet_distance(x, x) for x in alike) >= 0


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
