"""The same EEG is found after whatever files do to it, and no two trials that only look alike are accused."""

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroimagen.doctor.copies import Copies

TRIALS = 30


def brain(seed: int, n_chans: int, rate: float, seconds: float, alpha: float = 1.0) -> np.ndarray:
    """(n_chans, n) in uV: 1/f sources, an alpha rhythm and the noise of sensors, mixed into correlated channels."""
    rng = np.random.default_rng(seed)
    n, n_sources = int(seconds * rate), n_chans + 3
    f = np.fft.rfftfreq(n, 1 / rate)
    shape = 1 / np.maximum(f, 0.5) + alpha * np.exp(-(((f - 10) / 1) ** 2) / 2)
    sources = np.fft.irfft((rng.normal(size=(n_sources, len(f), 2)) @ [1, 1j]) * shape, n)
    mixed = rng.normal(size=(n_chans, n_sources)) @ (sources / sources.std())
    return 10 * mixed / mixed.std() + 0.3 * rng.normal(size=mixed.shape)


def trials(
    eeg: np.ndarray, rate: float, shift: float = 0.0, drift: float = 0.0, seconds: float = 0.9
) -> list[np.ndarray]:
    """TRIALS windows 1.5 s apart; `shift` samples later, by a clock that is `drift` wrong."""
    spline = scipy.interpolate.CubicSpline(np.arange(eeg.shape[1]), eeg, axis=1)
    starts = (0.3 + 1.5 * np.arange(TRIALS)) * rate
    return [spline(start * (1 + drift) + shift + np.arange(round(seconds * rate))) for start in starts]


def look(rate: float, *sets: list[np.ndarray]) -> dict[tuple[int, int], float]:
    every = [trial.astype(np.float32) for own in sets for trial in own]
    copies = Copies(*every[0].shape, rate)
    for number, trial in enumerate(every):
        copies.add(number, trial)
    return copies.pairs()


def bits(eeg: np.ndarray, n: int) -> np.ndarray:
    step = (eeg.max() - eeg.min()) / 2**n
    return np.round(eeg / step) * step


COPIES = {
    "itself": lambda x: x,
    "rounded to 12 bits": lambda x: bits(x, 12),
    "rounded to 16 bits": lambda x: bits(x, 16),
    "rounded to whole microvolts": np.round,
    "float16": lambda x: x.astype(np.float16),
    "volts": lambda x: x * 1e-6,
    "nanovolts on an offset": lambda x: 1e3 * x + 1e6,
    "turned in sign": lambda x: -x,
    "1 % of noise": lambda x: x + 0.01 * x.std() * np.random.default_rng(9).normal(size=x.shape),
    "a blank channel": lambda x: x * (np.arange(len(x)) != 1)[:, None],
}
CLOCKS = {"none": {}, "crop": {"shift": 17}, "sub-sample": {"shift": 0.37}, "ppm": {"shift": -3.2, "drift": 50e-6}}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found(change, clock):
    eeg = brain(0, 5, 256, 50)
    found = look(256, trials(eeg, 256), trials(change(eeg), 256, **clock))
    assert all(other - one == TRIALS for one, other in found)
    assert len(found) >= (0.3 if change is COPIES["a blank channel"] else 0.9) * TRIALS
    shifts = [-clock.get("shift", 0) - clock.get("drift", 0) * (0.3 + 1.5 * one) * 256 for one, _ in found]
    np.testing.assert_allclose(list(found.values()), shifts, atol=1)


@pytest.mark.parametrize("n_chans, rate", [(1, 256), (2, 250), (4, 100), (17, 128), (63, 250), (32, 1000), (4, 2048)])
def test_copies_are_found_whatever_the_montage(n_chans, rate):
    eeg = brain(1, n_chans, rate, 50)
    found = look(rate, trials(eeg, rate), trials(bits(eeg, 12), rate, shift=2.4))
    assert all(other - one == TRIALS for one, other in found) and len(found) >= 0.9 * TRIALS


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.floats(-6, 6),
    st.integers(10, 16),
    st.floats(-50, 50),
    st.floats(-1e-4, 1e-4),
    st.floats(0, 0.01),
)
def test_any_mixture_of_changes_is_found(seed, decades, n_bits, shift, drift, noise):
    eeg = brain(seed, 4, 256, 50)
    other = bits(eeg + noise * eeg.std() * np.random.default_rng(seed).normal(size=eeg.shape), n_bits) * 10**decades
    found = look(256, trials(eeg, 256), trials(other, 256, shift=shift, drift=drift))
    assert all(b - a == TRIALS for a, b in found) and len(found) >= 0.7 * TRIALS


def healthy(n_chans: int, rate: float, seed: int = 2) -> np.ndarray:
    return np.stack(trials(brain(seed, n_chans, rate, 50), rate))


def evoked(n_chans: int, n: int, rate: float, size: float) -> np.ndarray:
    time = np.arange(n) / rate
    waves = [np.exp(-(((time - at) / width) ** 2) / 2) for at, width in ((0.2, 0.02), (0.27, 0.025), (0.45, 0.08))]
    return size * np.random.default_rng(3).normal(size=(n_chans, 3)) @ np.stack(waves)


def pops(x: np.ndarray, rate: float) -> np.ndarray:
    """A step of 600 uV of one electrode in every trial, then a band-pass of 1 to 30 Hz."""
    where = np.random.default_rng(4).integers(10, x.shape[2] - 10, len(x))
    x = x + 600 * (np.arange(x.shape[2]) > where[:, None])[:, None] * (np.arange(x.shape[1]) == 0)[None, :, None]
    return scipy.signal.sosfiltfilt(scipy.signal.butter(2, [1, 30], "bandpass", fs=rate, output="sos"), x)


def blinks(x: np.ndarray, rate: float) -> np.ndarray:
    time, at = np.arange(x.shape[2]) / rate, np.random.default_rng(5).uniform(0.2, 0.7, len(x))
    shape = np.exp(-(((time - at[:, None]) / 0.06) ** 2) / 2)
    return x + 200 * shape[:, None] * np.linspace(1, 0.1, x.shape[1])[:, None]


def mains(x: np.ndarray, rate: float) -> np.ndarray:
    phase = np.random.default_rng(6).uniform(0, 6.28, len(x))
    return x + 100 * np.sin(2 * np.pi * 50 * np.arange(x.shape[2]) / rate + phase[:, None])[:, None]


HEALTHY = {
    "noise": lambda x, rate: x,
    "average reference": lambda x, rate: x - x.mean(axis=1, keepdims=True),
    "1 to 30 Hz": lambda x, rate: scipy.signal.sosfiltfilt(
        scipy.signal.butter(4, [1, 30], "bandpass", fs=rate, output="sos"), x
    ),
    "1 to 12 Hz": lambda x, rate: scipy.signal.sosfiltfilt(
        scipy.signal.butter(4, [1, 12], "bandpass", fs=rate, output="sos"), x
    ),
    "a strong evoked response": lambda x, rate: x + evoked(x.shape[1], x.shape[2], rate, 30),
    "mains": mains,
    "blinks": blinks,
    "pops": pops,
    "blank channels": lambda x, rate: x * (np.arange(x.shape[1]) == x.shape[1] - 1)[:, None],
    "dead": lambda x, rate: x * 0 + np.float32(0.1),
    "few steps": lambda x, rate: bits(x, 3),
}


@pytest.mark.parametrize("n_chans, rate", [(1, 256), (2, 256), (4, 256), (32, 250), (63, 100)])
@pytest.mark.parametrize("kind", HEALTHY.values(), ids=HEALTHY)
def test_healthy_trials_are_not_accused(kind, n_chans, rate):
    x = np.concatenate([healthy(n_chans, rate, seed) for seed in range(4)])
    assert look(rate, list(kind(x, rate))) == {}


@pytest.mark.parametrize("n_chans", [1, 2, 8])
def test_an_alpha_rhythm_is_not_the_same_eeg(n_chans):
    x = np.concatenate([trials(brain(seed, n_chans, 256, 50, alpha=20), 256) for seed in range(5)])
    assert look(256, list(x)) == {}


def test_windows_that_overlap_are_found_with_their_distance():
    eeg = brain(7, 8, 250, 30)
    found = look(250, [eeg[:, start : start + 250] for start in range(0, 7000, 50)])  # every 200 ms, as in RSVP
    assert {other - one for one, other in found} <= {1, 2} and len(found) > 100
    np.testing.assert_allclose(list(found.values()), [-50.0 * (b - a) for a, b in found], atol=1)


def test_trials_too_short_for_a_sketch_are_left_alone():
    rng = np.random.default_rng(8)
    assert look(1000, [rng.normal(size=(4, n)) for n in [3] * 20]) == {}
    assert look(250, [np.zeros((4, 250))] * 5) == {}
