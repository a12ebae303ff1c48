"""EEG augmentation, each kind by hand; off leaves the batch as it is."""

import itertools
import math

import pytest
import torch

from neuroimagen.batches.augment import augment_eeg, mask_band, shift
from neuroimagen.config import EegAugmentConfig

SFREQ = 100.0


def signal(n=4, channels=3, times=50):
    return torch.randn(n, channels, times, generator=torch.Generator().manual_seed(1))


def drawn(seed=0, rows=slice(None), n=4):
    """Like Run.rand: the rows of a draw for a global batch of n; each call is another draw."""
    number = itertools.count()

    def rand(count, width):
        generator = torch.Generator().manual_seed(1000 * seed + next(number))
        return torch.rand(n, width, generator=generator)[rows]

    return rand


def config(**kwargs):
    return EegAugmentConfig(**kwargs)


def test_off_is_the_very_batch_and_draws_nothing():
    eeg = signal()
    assert augment_eeg(eeg, SFREQ, config(), lambda *shape: pytest.fail("drawn")) is eeg


def test_shift_moves_samples_exactly_and_brings_zeros():
    eeg = signal(3)
    moved = shift(eeg, torch.tensor([4, -6, 0]))
    assert torch.equal(moved[0, :, 4:], eeg[0, :, :-4]) and moved[0, :, :4].abs().sum() == 0
    assert torch.equal(moved[1, :, :-6], eeg[1, :, 6:]) and moved[1, :, -6:].abs().sum() == 0
    assert torch.equal(moved[2], eeg[2])


def test_shift_is_uniform_over_whole_samples():
    """0.02 s at 100 Hz: -2..2 samples, a fifth of the range each."""
    pulse = torch.zeros(5, 1, 9)
    pulse[:, :, 4] = 1
    moved = augment_eeg(
        pulse, SFREQ, config(eeg_shift=0.02), lambda n, k: torch.tensor([0.0, 0.39, 0.5, 0.61, 0.9999])[:, None]
    )
    assert moved[:, 0].argmax(1).tolist() == [2, 3, 4, 5, 6] and moved.sum() == 5


def test_dropout_zeroes_whole_channels_with_its_probability():
    eeg = torch.ones(200, 50, 4)
    seen = augment_eeg(eeg, SFREQ, config(eeg_channel_dropout=0.3), drawn(n=200))
    assert torch.equal(seen.amin(2), seen.amax(2)) and set(seen.unique().tolist()) == {0.0, 1.0}
    share = 1 - seen[:, :, 0].mean().item()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 10_000)  # five standard errors


def test_band_mask_removes_a_sine_of_that_band_and_leaves_another():
    time = torch.arange(200) / SFREQ
    ten, thirty = torch.sin(2 * torch.pi * 10 * time), torch.cos(2 * torch.pi * 30 * time)
    both = (ten + thirty).expand(2, 3, 200)
    left = mask_band(both, SFREQ, torch.tensor([8.0, 28.0]), torch.tensor([12.0, 32.0]))
    torch.testing.assert_close(left[0], thirty.expand(3, 200), atol=1e-4, rtol=0)
    torch.testing.assert_close(left[1], ten.expand(3, 200), atol=1e-4, rtol=0)
    # Through the config: a band of 4 Hz below 40 Hz; a draw of 7/36 puts its lower edge at 7 Hz.
    seen = augment_eeg(
        both, SFREQ, config(eeg_band_mask=4.0, eeg_band_limit=40.0), lambda n, k: torch.full((n, k), 7.5 / 36)
    )
    torch.testing.assert_close(seen[0], thirty.expand(3, 200), atol=1e-4, rtol=0)


def test_noise_has_its_size_and_each_trial_its_own():
    eeg = signal(4, 20, 500)
    noise = augment_eeg(eeg, SFREQ, config(eeg_noise=0.5), drawn()) - eeg
    assert abs(noise.std().item() - 0.5) < 0.01 and abs(noise.mean().item()) < 0.01
    assert not torch.equal(noise[0], noise[1])


def test_smoothing_is_a_moving_average_of_some_channels():
    """By hand: at the ends the mean of what the window holds."""
    ramp = torch.tensor([0.0, 1, 4, 9, 16, 25]).expand(1, 2, 6)
    draws = torch.tensor([[0.29, 0.31]])
    seen = augment_eeg(ramp, SFREQ, config(eeg_smooth=0.3), lambda n, k: draws)
    torch.testing.assert_close(seen[0, 0], torch.tensor([5 / 3, 14 / 4, 6, 11, 54 / 4, 50 / 3]))
    assert torch.equal(seen[0, 1], ramp[0, 1])
    three = augment_eeg(ramp, SFREQ, config(eeg_smooth=1.0, eeg_smooth_window=3), lambda n, k: draws)
    torch.testing.assert_close(three[0, 1], torch.tensor([0.5, 5 / 3, 14 / 3, 29 / 3, 50 / 3, 20.5]))


EVERYTHING = {"eeg_shift": 0.05, "eeg_band_mask": 5.0, "eeg_noise": 0.3, "eeg_channel_dropout": 0.4, "eeg_smooth": 0.5}


def test_a_trial_does_not_depend_on_how_the_batch_is_cut():
    eeg = signal()
    whole = augment_eeg(eeg, SFREQ, config(**EVERYTHING), drawn(2))
    halves = [augment_eeg(eeg[rows], SFREQ, config(**EVERYTHING), drawn(2, rows)) for rows in (slice(2), slice(2, 4))]
    assert torch.equal(whole, torch.cat(halves)) and not torch.equal(whole, eeg)
    assert not torch.equal(whole, augment_eeg(eeg, SFREQ, config(**EVERYTHING), drawn(3)))


@pytest.mark.parametrize(
    "wrong",
    [{"eeg_shift": 0.5}, {"eeg_shift": -0.1}, {"eeg_band_mask": 50.0}, {"eeg_noise": -1.0}]
    + [{"eeg_channel_dropout": value} for value in (1.0, -0.1)]
    + [{"eeg_smooth": 1.1}, {"eeg_smooth_window": 4, "eeg_smooth": 0.5}, {"eeg_smooth_window": 51, "eeg_smooth": 0.5}],
)
def test_what_makes_no_sense_is_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        augment_eeg(signal(), SFREQ, config(**wrong), drawn())
