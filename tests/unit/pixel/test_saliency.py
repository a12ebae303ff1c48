import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.metrics
import torch

from neuroimagen.batches.stream import Batcher
from neuroimagen.pixel.features import (
    ROWS,
    FeatureExtractor,
    knn_labels,
    linear_accuracy,
    retrieval_at_1,
)
from neuroimagen.pixel.saliency import Discriminator, Generator
from neuroimagen.shards.format import ShardSplit


@pytest.mark.parametrize("size", [16, 32, 64])
def test_sizes_and_range(size):
    generator, discriminator = Generator(5, 3, size, width=4), Discriminator(5, size, width=4)
    maps = generator(torch.randn(2, 3), torch.randn(2, 5))
    assert maps.shape == (2, 3, size, size) and maps.abs().max() <= 1
    assert discriminator(maps, torch.randn(2, 5)).shape == (2,)


@pytest.mark.parametrize("size", [0, 8, 24, 65])
def test_a_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        Generator(5, 3, size)
    with pytest.raises(ValueError, match="power of two"):
        Discriminator(5, size)


def test_a_map_depends_on_its_own_noise_and_features_only():
    torch.manual_seed(0)
    generator = Generator(5, 3, 16, width=4)
    z, f = torch.randn(4, 3), torch.randn(4, 5)
    maps = generator(z, f)
    torch.testing.assert_close(generator(z[1:2], f[1:2]), maps[1:2])
    assert (generator(z, f.roll(1, 0)) - maps).abs().max() > 1e-3
    assert (generator(z.roll(1, 0), f) - maps).abs().max() > 1e-3


def test_the_length_of_the_features_does_not_matter_to_the_generator():
    """f_θ may have unit length or not: G sees the same."""
    generator, f = Generator(64, 3, 16, width=4), torch.randn(2, 64)
    z = torch.randn(2, 3)
    torch.testing.assert_close(generator(z, f), generator(z, 5 * f), rtol=1e-3, atol=1e-4)


def test_the_discriminator_judges_the_pair():
    torch.manual_seed(0)
    discriminator = Discriminator(5, 16, width=4)
    images, f = torch.rand(2, 3, 16, 16), torch.randn(2, 5)
    assert (discriminator(images, f) - discriminator(images, f.roll(1, 0))).abs().max() > 1e-4


def test_spectral_normalisation_bounds_every_layer():
    torch.manual_seed(0)
    discriminator = Discriminator(5, 16, width=4)
    for _ in range(30):  # power iterations run in training forwards
        discriminator(torch.rand(2, 3, 16, 16), torch.randn(2, 5))
    for layer in (*discriminator.convs, discriminator.score, discriminator.project):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_models_come_back_from_disk(tmp_path):
    torch.manual_seed(0)
    generator, z, f = Generator(5, 3, 16, width=4), torch.randn(2, 3), torch.randn(2, 5)
    features, eeg = FeatureExtractor(4, 100, "conv", 5, normalise=False, width=8), torch.randn(2, 4, 100)
    generator.save_pretrained(tmp_path / "generator")
    features.save_pretrained(tmp_path / "features")
    torch.testing.assert_close(Generator.from_pretrained(tmp_path / "generator")(z, f), generator(z, f))
    again = FeatureExtractor.from_pretrained(tmp_path / "features")
    torch.testing.assert_close(again(eeg), features(eeg))
    assert (again.n_chans, again.n_times, again.n_features) == (4, 100, 5)


def test_features_have_unit_length_if_asked():
    eeg = torch.randn(3, 4, 100)
    torch.testing.assert_close(FeatureExtractor(4, 100, "conv")(eeg).norm(dim=1), torch.ones(3))
    assert FeatureExtractor(4, 100, "conv", normalise=False)(eeg).norm(dim=1).std() > 1e-3


def test_retrieval_by_hand():
    features = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    # nearest other rows: 0 -> 1, 1 -> 1.5, 1.5 -> 1, 9 -> 1.5
    assert retrieval_at_1(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(2 / 4)


def test_knn_by_hand():
    train, labels = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([2, 2, 1, 1])
    asked = torch.tensor([[0.4], [8.0]])
    # 0.4: neighbours 0, 1, 2 vote 2, 2, 1 -> 2; 8: neighbours 9, 2, 1 vote 1, 1, 2 -> 1
    assert knn_labels(train, labels, asked, k=3).tolist() == [2, 1]


def test_linear_probe_finds_a_line_and_not_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    clusters = torch.eye(4)[labels] * 3 + 5 + torch.randn(400, 4, generator=generator)
    assert linear_accuracy(clusters[:200], labels[:200], clusters[200:], labels[200:]) > 0.85
    noise = torch.randn(400, 4, generator=generator)
    assert linear_accuracy(noise[:200], labels[:200], noise[200:], labels[200:]) < 0.4


def test_more_rows_than_are_compared_at_once():
    """As with all distances at once; 1,654 classes of THINGS make that much memory."""
    generator = torch.Generator().manual_seed(0)
    n = 2 * ROWS + 30
    features, labels = torch.randn(n, 5, generator=generator), torch.arange(n) % 7
    distance = torch.cdist(features.double(), features.double())
    votes = torch.nn.functional.one_hot(labels[distance.topk(9, largest=False).indices], 7).sum(1)
    assert torch.equal(knn_labels(features, labels, features, k=9), votes.argmax(1))
    distance.fill_diagonal_(float("inf"))
    assert retrieval_at_1(features, labels) == (labels[distance.argmin(1)] == labels).double().mean()


class _Told(torch.nn.Module):
    """In place of G: paints the same number everywhere."""

    def forward(self, z: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return torch.full((len(z), 3, 16, 16), -0.5)


def test_validation_compares_pictures_in_0_to_1(study):
    """Maps of one grey, a quarter of the full light: SSIM of the val pictures in [0, 1] by scikit-image."""
    path = Path(__file__).parents[3] / "trainers/pixel_saliency.py"
    spec = importlib.util.spec_from_file_location("pixel_saliency", path)
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    config = trainer.PixelSaliencyConfig(run_dir="", shards=str(study.shards), features="", image_size=16, z_dim=2)
    saved = {}
    run = SimpleNamespace(
        device="cpu", rank=0, world=1, to_device=lambda batch: batch,
        image=lambda name, grid: saved.update({name: grid}),
        accelerator=SimpleNamespace(reduce=lambda values, how: values),
    )  # fmt: skip

    class Same(torch.nn.Module):
        def forward(self, eeg, subject):
            return eeg

    networks = torch.nn.ModuleDict({"generator": _Told(), "features": Same()})
    found = trainer.validate(run, networks, config)

    split = ShardSplit(study.shards, "val")
    pictures = Batcher(split, 16)(np.arange(len(split)))["image"].double().add(1).div(2).numpy()
    kind = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    similar = []
    for picture in pictures:
        x, y = (np.pad(p, ((0, 0), (5, 5), (5, 5)), mode="reflect") for p in (np.full_like(picture, 0.25), picture))
        _, full = skimage.metrics.structural_similarity(x, y, channel_axis=0, full=True, **kind)
        similar.append(full[:, 5:-5, 5:-5].mean())
    assert found["ssim"] == pytest.approx(np.mean(similar), abs=1e-3)
    assert found["ssim_other"] == pytest.approx(found["ssim"], abs=1e-3)  # a flat map knows no picture
    assert saved["truth_and_map"].min() >= 0 and saved["truth_and_map"].max() <= 1
