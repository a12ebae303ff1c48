"""Equations 1 to 6 against numbers worked out by hand."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
import torch
import yaml
from torchmetrics.functional.image import structural_similarity_index_measure

from neuroimagen.batches.order import BalancedOrder
from neuroimagen.batches.stream import train_batches
from neuroimagen.pixel import losses

REPO = Path(__file__).parents[3]


def on_a_line(*x):
    return torch.tensor(x, dtype=torch.float32)[:, None].requires_grad_()


# Class 0 at 0 and 1, class 1 at 3 and 7. Squared distances: 0-1: 1, 0-3: 9, 0-7: 49, 1-3: 4, 1-7: 36, 3-7: 16.
LINE, LABELS = (0.0, 1.0, 3.0, 7.0), torch.tensor([0, 0, 1, 1])


def test_eq1_all():
    # β = 5; (anchor, positive, negative), 5 + d(ap) - d(an):
    # 0,1,3: -3   0,1,7: -43   1,0,3: 2   1,0,7: -30   3,7,0: 12   3,7,1: 17   7,3,0: -28   7,3,1: -15
    loss, active = losses.triplet(on_a_line(*LINE), LABELS, 5.0, "all")
    assert loss.item() == pytest.approx((2 + 12 + 17) / 3)
    assert active.item() == pytest.approx(3 / 8)


def test_eq1_hard():
    # farthest positive, nearest negative: anchors 0: 5+1-9<0; 1: 5+1-4 = 2; 3: 5+16-4 = 17; 7: 5+16-36 < 0
    loss, active = losses.triplet(on_a_line(*LINE), LABELS, 5.0, "hard")
    assert loss.item() == pytest.approx((2 + 17) / 4)
    assert active.item() == pytest.approx(2 / 4)


def test_eq1_semi_hard():
    # nearest negative beyond the positive: 0: 9; 1: 4; 7: 36; 3 has none (16 against 9 and 4), so its farthest: 9
    # 5+1-9 < 0; 5+1-4 = 2; 5+16-9 = 12; 5+16-36 < 0
    loss, active = losses.triplet(on_a_line(*LINE), LABELS, 5.0, "semi-hard")
    assert loss.item() == pytest.approx((2 + 12) / 4)
    assert active.item() == pytest.approx(2 / 4)


def test_eq1_gradient():
    # β = 3.5 leaves two anchors: 1 with 3.5 + (1 - 0)² - (1 - 3)², and 3 with 3.5 + (3 - 7)² - (3 - 1)²
    features = on_a_line(*LINE)
    loss, _ = losses.triplet(features, LABELS, 3.5, "hard")
    loss.backward()
    anchor_1 = torch.tensor([-2.0 * 1, 2 * 1 - 2 * (1 - 3), 2 * (1 - 3), 0.0])
    anchor_3 = torch.tensor([0.0, 2 * (3 - 1), 2 * (3 - 7) - 2 * (3 - 1), -2.0 * (3 - 7)])
    torch.testing.assert_close(features.grad.squeeze(1), (anchor_1 + anchor_3) / 4)


@pytest.mark.parametrize("mining", ["all", "semi-hard", "hard"])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_eq1_without_a_single_triplet_is_zero_and_still_has_a_graph(mining, labels):
    features = on_a_line(*LINE)
    loss, active = losses.triplet(features, torch.tensor(labels), 1.0, mining)
    loss.backward()
    assert loss.item() == 0 and active.item() == 0 and features.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "labels, share",
    [([7, 7, 7, 2, 5], 3 / 5), ([0, 0, 1, 1], 1.0), ([0, 0, 0], 0.0), ([0, 1, 2, 3], 0.0), ([4], 0.0)],
)
def test_which_trials_can_be_anchors(labels, share):
    assert losses.share_of_anchors(torch.tensor(labels)).item() == pytest.approx(share)


def test_batches_of_things_hold_triplets():
    """1,654 classes of 36 trials, as one person's train split: the config's batches, and 512 trials at random."""
    config = yaml.safe_load((REPO / "configs/things_eeg2.yaml").read_text())["pixel_features"]
    size, balance = config["global_batch_size"], (config["classes_per_batch"], config["trials_per_class"])
    labels = np.repeat(np.arange(1654), 36)
    order = BalancedOrder(labels, *balance, seed=0)
    for batch in (labels[order(step * size, (step + 1) * size)] for step in range(20)):
        assert sorted(Counter(batch.tolist()).values()) == [4] * 128
    assert losses.check_batch(size, len(labels), 1654, *balance) is None
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        counts = Counter(rng.choice(labels, size, replace=False).tolist())
        found.append(sum(n for n in counts.values() if n > 1))
    said = losses.check_batch(size, len(labels), 1654, 0, 0)
    assert abs(int(said.split("some ")[1].split()[0]) - np.mean(found)) < 6, said  # 133 and 131


@pytest.mark.parametrize(
    "numbers, message",
    [
        ((512, 1000, 1, 0, 0), "global_batch_size=512 of 1 classes: a triplet is"),
        ((2, 1000, 10, 0, 0), "global_batch_size=2 of 10 classes: a triplet is"),
        ((8, 1000, 10, 1, 8), "classes_per_batch=1 x trials_per_class=8: .* both must be at least 2"),
        ((8, 1000, 10, 8, 1), "both must be at least 2"),
    ],
)
def test_a_batch_that_can_hold_no_triplet_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        losses.check_batch(*numbers)


def test_a_batch_without_a_triplet_is_said_once(study, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("pixel_features", REPO / "trainers/pixel_features.py")
    trainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainer)
    config = trainer.PixelFeaturesConfig(
        shards=str(study.shards),
        run_dir=str(tmp_path / "run"),
        encoder="conv",
        encoder_width=4,
        n_features=4,
        global_batch_size=3,
        max_steps=8,
        log_every=1,
        validate_every=0,
    )
    assert trainer.main(config) == 0
    batches = train_batches(study.shards, batch_size=3, seed=0)
    shares = []
    for counts in (Counter(next(batches)["label"].tolist()) for _ in range(8)):
        shares.append(sum(n for n in counts.values() if n > 1) / 3 if len(counts) > 1 else 0.0)
    logged = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [line["anchors"] for line in logged if "anchors" in line] == pytest.approx(shares)
    assert shares.count(0) > 1 and all(line["loss"] == 0 for line, s in zip(logged, shares, strict=False) if s == 0)
    said = capsys.readouterr().err
    assert "of 3 trials drawn at random some 1 have another" in said
    assert said.count("it has no triplet") == 1 and f"step {shares.index(0)}: the batch holds no two trials" in said


def test_eq1_refuses_an_unknown_mining():
    with pytest.raises(ValueError, match="all, semi-hard or hard"):
        losses.triplet(on_a_line(*LINE), LABELS, 1.0, "soft")


def test_eq2_and_eq3_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.5])
    assert losses.hinge_d(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 1.5) / 3)
    assert losses.hinge_g(fake).item() == pytest.approx(2.5 / 3)


def test_eq4_mode_seeking_is_the_mean_ratio_of_mean_absolute_differences():
    image_1 = torch.zeros(2, 3, 4, 4)
    image_2 = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -1.0)])
    z_1, z_2 = torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [4.0, 0.0]])  # distances 1 and 2
    assert losses.mode_seeking(image_1, image_2, z_1, z_2).item() == pytest.approx(-(0.5 / 1 + 1 / 2) / 2, rel=1e-4)


def test_eq4_wants_maps_that_differ():
    image = torch.full((1, 3, 4, 4), 0.1, requires_grad=True)
    losses.mode_seeking(image, torch.zeros(1, 3, 4, 4), torch.zeros(1, 2), torch.ones(1, 2)).backward()
    assert (image.grad < 0).all()  # descending moves the first map further from the second


def test_eq5_of_flat_images_by_hand():
    # no variance: SSIM = (2 μx μy + C1) / (μx² + μy² + C1), C1 = 0.01², of pictures in [0, 1]
    x, y = (torch.full((1, 3, 16, 16), v, dtype=torch.float64) for v in (0.5, -0.5))
    by_hand = (2 * 0.75 * 0.25 + 1e-4) / (0.75**2 + 0.25**2 + 1e-4)
    assert losses.ssim(x.add(1).div(2), y.add(1).div(2)).item() == pytest.approx(by_hand, rel=1e-4)
    assert losses.ssim_loss(x, y).item() == pytest.approx(1 - by_hand, rel=1e-4)
    assert losses.ssim_loss(x, x).item() == pytest.approx(0, abs=1e-5)


def test_eq5_of_a_negative_and_of_a_mean_colour():
    """A photographic negative is unlike its picture wherever there is structure, and less like it than its mean
    colour; scikit-image on [0, 1] says how much."""
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.uniform(-0.9, 0.9, (1, 3, 4, 4))).float()
    picture = torch.nn.functional.interpolate(smooth, (32, 32), mode="bicubic").clamp(-1, 1)
    flat = picture.mean((2, 3), keepdim=True).expand_as(picture)
    similar = []
    for image in (-picture, flat):
        ours = 1 - losses.ssim_loss(image, picture).item()
        x, y = (np.pad(t[0].numpy() / 2 + 0.5, ((0, 0), (5, 5), (5, 5)), mode="reflect") for t in (image, picture))
        _, full = skimage.metrics.structural_similarity(
            x,
            y,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert ours == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-4)
        similar.append(ours)
    negative, mean_colour = similar
    assert negative < 0 < mean_colour


@pytest.mark.parametrize("size", [(16, 16), (32, 64)])
def test_eq5_equals_torchmetrics(size):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, *size, generator=generator)
    image = (truth + 0.25 * torch.randn(3, 3, *size, generator=generator)).clamp(0, 1).requires_grad_()
    ours, theirs = (
        losses.ssim(image, truth),
        structural_similarity_index_measure(image, truth, data_range=1.0, reduction="none"),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(value.sum(), image)[0] for value in (ours, theirs)), rtol=1e-4, atol=1e-6
    )


def test_eq5_sees_structure_where_the_printed_formula_would_not():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mirrored = picture.flip(-1)  # the same mean and standard deviation
    assert losses.ssim_loss(mirrored, picture) > 0.5


def test_eq5_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        losses.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_eq6_weights_the_terms():
    terms = [torch.tensor(v) for v in (1.0, -0.5, 0.2)]
    assert losses.generator_total(*terms, alphas=(2.0, 3.0, 10.0)).item() == pytest.approx(2 - 1.5 + 2)
