"""The paper's baselines: Brain2Image and NeuroVision, against numbers worked out by hand."""

import math

import pytest
import torch

from neuroimagen.baselines import brain2image, losses, neurovision
from neuroimagen.baselines.brain2image import Brain2Image
from neuroimagen.baselines.neurovision import NeuroVision, growth, minibatch_stddev, pixel_norm

SMALL = {"encoder": "conv", "encoder_width": 8, "n_features": 5, "z_dim": 3, "image_size": 16, "width": 4}


@pytest.mark.parametrize(
    "kind, options",
    [
        (Brain2Image, {"variant": "gan"}),
        (Brain2Image, {"variant": "vae", "norm": "group"}),
        (NeuroVision, {"max_width": 8}),
    ],
)
def test_a_model_comes_back_from_disk_and_draws_the_same_pictures(kind, options, tmp_path):
    torch.manual_seed(0)
    model = kind(4, 100, 3, **SMALL, **options).eval()
    eeg, z = 10 * torch.randn(6, 4, 100), torch.randn(6, 3)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    pictures = again.draw(eeg, z)
    torch.testing.assert_close(pictures, model.draw(eeg, z), rtol=0, atol=0)
    assert pictures.shape == (6, 3, 16, 16) and pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert (again.n_chans, again.n_times, again.z_dim) == (4, 100, 3)
    assert (again.draw(eeg, z.roll(1, 0)) - pictures).abs().max() > 1e-4  # the noise matters
    assert (again.draw(eeg.roll(1, 0), z) - pictures).abs().max() > 1e-4  # and so does the EEG
    torch.testing.assert_close(again.draw(eeg[2:4], z[2:4]), pictures[2:4])  # other trials do not


@pytest.mark.parametrize("size", [0, 8, 24, 65])
def test_a_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        Brain2Image(4, 100, 3, **{**SMALL, "image_size": size})
    with pytest.raises(ValueError, match="power of two"):
        NeuroVision(4, 100, 3, **{**SMALL, "image_size": size})


def test_growth_by_hand():
    # 3 levels, 4 steps a phase: 4 px | 8 px fades in | 8 px | 16 px fades in | 16 px for ever
    expected = [(0, 1.0)] * 4
    expected += [(1, 0.25), (1, 0.5), (1, 0.75), (1, 1.0)] + [(1, 1.0)] * 4
    expected += [(2, 0.25), (2, 0.5), (2, 0.75), (2, 1.0)] + [(2, 1.0)] * 6
    assert [growth(step, 4, 3) for step in range(22)] == expected


def test_pixel_norm_by_hand():
    x = torch.tensor([[3.0, 0.0], [4.0, 2.0]])[None, :, :, None]  # two channels of two pixels: (3, 4) and (0, 2)
    # mean squares 12.5 and 2
    expected = torch.tensor([[3 / math.sqrt(12.5), 0.0], [4 / math.sqrt(12.5), math.sqrt(2.0)]])[None, :, :, None]
    torch.testing.assert_close(pixel_norm(x), expected)


def test_minibatch_stddev_by_hand():
    # one pixel, two channels; groups of two adjacent rows: (1, 3) and (0, 0); (5, 5) and (2, 8)
    x = torch.tensor([[1.0, 0], [3, 0], [5, 2], [5, 8]])[:, :, None, None]
    # standard deviations 1 and 0, mean 0.5; 0 and 3, mean 1.5 (within 1e-4: the root has 1e-8 under it)
    added = minibatch_stddev(x, group=2)[:, 2, 0, 0]
    torch.testing.assert_close(added, torch.tensor([0.5, 0.5, 1.5, 1.5]), rtol=0, atol=1e-4)
    torch.testing.assert_close(minibatch_stddev(x, group=2)[:, :2], x)


def test_equalised_weights_are_scaled_when_used():
    conv = neurovision.EqualConv(2, 1, 3)
    torch.nn.init.ones_(conv.weight)
    # 18 weights of one, He's constant sqrt(2 / 18) = 1/3; the middle of a picture of ones sees all 18
    assert conv(torch.ones(1, 2, 3, 3))[0, 0, 1, 1].item() == pytest.approx(18 / 3)


def test_a_level_at_alpha_0_is_the_one_before_and_at_1_is_itself():
    torch.manual_seed(0)
    g = neurovision.Generator(2, 3, 16, 4, 8)
    z, classes = torch.randn(4, 3), torch.eye(2).repeat(2, 1)
    before = torch.nn.functional.interpolate(g(z, classes, 1, 1.0), scale_factor=2.0)
    torch.testing.assert_close(g(z, classes, 2, 0.0), before)
    half = g(z, classes, 2, 0.5)
    torch.testing.assert_close(half, (before + g(z, classes, 2, 1.0)) / 2)
    d = neurovision.Discriminator(2, 16, 4, 8)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(d(images, 2, 0.0), d(torch.nn.functional.avg_pool2d(images, 2), 1, 1.0))
    real = neurovision.at_level(images, 1, 0.0)
    torch.testing.assert_close(
        real, torch.nn.functional.interpolate(neurovision.at_level(images, 0, 1.0), scale_factor=2.0)
    )


def test_every_weight_has_a_gradient_at_every_level():
    """DistributedDataParallel waits for each of them; those of other levels get zero."""
    g, d = neurovision.Generator(2, 3, 16, 4, 8), neurovision.Discriminator(2, 16, 4, 8)
    for level, alpha in [(0, 1.0), (1, 0.5), (1, 1.0), (2, 1.0)]:
        g.zero_grad(), d.zero_grad()
        score, classes = d(g(torch.randn(4, 3), torch.eye(2).repeat(2, 1), level, alpha), level, alpha)
        (score.sum() + classes.sum()).backward()
        assert all(p.grad is not None for p in (*g.parameters(), *d.parameters()))
        moved = [i for i, layer in enumerate(g.pictures) if layer.weight.grad.abs().sum() > 0]
        assert moved == ([0, 1] if alpha == 0.5 else [level])


def test_the_discriminator_of_brain2image_judges_the_pair():
    torch.manual_seed(0)
    d = brain2image.Discriminator(3, 5, 16, 4, "group")
    images, f = torch.rand(2, 3, 16, 16), torch.randn(2, 5)
    right, wrong = d(images, torch.cat([f, f.roll(1, 0)])).chunk(2)
    torch.testing.assert_close(right, d(images, f))
    torch.testing.assert_close(wrong, d(images, f.roll(1, 0)))
    assert (right - wrong).abs().max() > 1e-6


def test_negative_elbo_by_hand():
    images, truth = torch.zeros(2, 1, 1, 2), torch.tensor([[1.0, 1.0], [2.0, 0.0]])[:, None, None]
    mean, log_variance = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [math.log(2.0)]])
    # errors (1 + 1) / 2 and (4 + 0) / 2, mean 1.5; KL: (1 + 1 - 1 - 0) / 2 and (0 + 2 - 1 - ln 2) / 2
    kl = (0.5 + (1 - math.log(2)) / 2) / 2
    for weight in (1.0, 0.25):
        loss, error, divergence = losses.negative_elbo(images, truth, mean, log_variance, weight)
        assert error.item() == pytest.approx(1.5) and divergence.item() == pytest.approx(kl)
        assert loss.item() == pytest.approx(1.5 + weight * kl)


def test_matching_aware_losses_by_hand():
    # probabilities: right 3/4, wrong 1/2, fake 1/4: -ln 3/4 - (ln 1/2 + ln 3/4) / 2; G: -ln 1/4
    logit = torch.tensor([math.log(3.0)])
    loss = losses.matching_d(logit, torch.zeros(1), -logit)
    assert loss.item() == pytest.approx(-math.log(0.75) - (math.log(0.5) + math.log(0.75)) / 2)
    assert losses.matching_g(-logit).item() == pytest.approx(math.log(4))


def test_gradient_penalty_by_hand():
    # judge = a² + 3 b with real (2, 0), fake (0, 0): at u = 0.5 it is at (1, 0), where the gradient is (2, 3)
    real, fake = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    weight = torch.tensor(3.0, requires_grad=True)

    def judge(x):
        return x[:, 0, 0, 0] ** 2 + weight * x[:, 0, 0, 1]

    penalty = losses.gradient_penalty(judge, real, fake, torch.full((1, 1, 1, 1), 0.5))
    assert penalty.item() == pytest.approx((math.sqrt(13) - 1) ** 2)
    penalty.backward()  # it trains the judge: d/dw (sqrt(4 + w²) - 1)² = 2 (sqrt(13) - 1) w / sqrt(13)
    assert weight.grad.item() == pytest.approx(2 * (math.sqrt(13) - 1) * 3 / math.sqrt(13))
