"""Time stamps simulated here, of which is known what was lost, against what the clock's fit makes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.studies.clock import fit_clock, order_of_time

SECONDS = 12


def kept(rate: float, losses: list[tuple[float, int]]) -> np.ndarray:
    """Numbers of the samples that are left of SECONDS after losses: (part of the recording, how many samples)."""
    alive = np.ones(round(SECONDS * rate), bool)
    for part, count in losses:
        first = 1 + int(part * len(alive))
        alive[first : first + count] = False
    alive[-1] = True
    return np.flatnonzero(alive)


LOSSES = st.lists(st.tuples(st.floats(0, 0.8), st.integers(1, 200)), max_size=6)


@given(
    rate=st.sampled_from([64, 100, 128, 250, 256]),
    ppm=st.integers(-3000, 3000),
    start=st.sampled_from([0.0, 149958.124, 1528310541.967]),
    digits=st.sampled_from([3, 6]),
    losses=LOSSES,
)
def test_every_lost_sample_is_counted_where_it_is(
    rate: int, ppm: int, start: float, digits: int, losses: list[tuple[float, int]]
) -> None:
    samples = kept(rate, losses)
    time = np.round(start + samples / rate * (1 + ppm * 1e-6), digits)
    clock = fit_clock(time - time[0], rate)
    assert clock.lost.tolist() == (np.diff(samples, prepend=-1) - 1).tolist()
    assert clock.step * rate == pytest.approx(1 + ppm * 1e-6, abs=1e-4) and clock.doubt == 0


@given(
    rate=st.sampled_from([128, 256, 500]),
    chunk=st.sampled_from([1, 8, 12, 32]),
    most=st.sampled_from([0.002, 0.01, 0.04]),
    seed=st.integers(0, 2**20),
    named=st.floats(0.5, 2),
)
def test_jitter_is_no_loss(rate: int, chunk: int, most: float, seed: int, named: float) -> None:
    n = SECONDS * 2 * rate
    late = np.random.default_rng(seed).uniform(-most, most, n // chunk + 1).repeat(chunk)[:n]
    time = np.arange(n) / rate + late
    clock = fit_clock(time - time[0], named * rate)
    assert not clock.lost.any()
    assert clock.step * rate == pytest.approx(1, abs=0.01)
    assert np.abs(clock.stray).max() < 3 * most


@given(
    seed=st.integers(0, 2**20),
    chunk=st.sampled_from([1, 12]),
    gaps=st.lists(st.tuples(st.floats(0.05, 0.9), st.floats(0.15, 2)), min_size=1, max_size=3),
)
def test_gaps_are_found_in_jitter(seed: int, chunk: int, gaps: list[tuple[float, float]]) -> None:
    rate, most = 256, 0.015
    samples = kept(rate, [(part, round(seconds * rate)) for part, seconds in gaps])
    rng = np.random.default_rng(seed)
    time = samples / rate + rng.uniform(-most, most, len(samples)).repeat(chunk)[: len(samples)]
    clock = fit_clock(time - time[0], rate)
    missing = np.diff(samples, prepend=-1) - 1
    for i in np.flatnonzero(missing > 0.1 * rate):  # each of them, at its place, give or take the jitter
        near = slice(max(0, i - clock.doubt), i + clock.doubt + 1)
        assert clock.lost[near].sum() == pytest.approx(missing[i], abs=2 * most * rate)
    assert clock.lost.sum() == pytest.approx(missing.sum(), abs=4 * most * rate)


@pytest.mark.parametrize("jitter", [0, 0.0005, 0.003])
@pytest.mark.parametrize("rate", [256, 253.4, 250, 128])
@pytest.mark.parametrize("lost, every", [(5, 500), (1, 300), (2, 50), (20, 200)])
def test_a_loss_in_every_second_is_no_other_rate(lost: int, every: int, rate: float, jitter: float) -> None:
    if lost < {0: 1, 0.0005: 2, 0.003: 5}[jitter]:
        pytest.skip("less than the jitter: cannot be told")
    samples = np.flatnonzero(np.arange(40 * 256) % every < every - lost)
    time = samples / 256 + np.random.default_rng(0).normal(0, jitter, len(samples))
    clock = fit_clock(time - time[0], rate)
    assert clock.step * 256 == pytest.approx(1, abs=2e-3)
    assert clock.lost.sum() == pytest.approx(samples[-1] + 1 - len(samples), rel=0.1)


@given(
    chunk=st.integers(2, 40),
    at=st.integers(0, 700),
    other=st.integers(2, 40),
    rounded=st.booleans(),
    losses=LOSSES,
)
def test_swapped_chunks_are_put_in_order(
    chunk: int, at: int, other: int, rounded: bool, losses: list[tuple[float, int]]
) -> None:
    samples = kept(128, losses)
    at %= len(samples) - chunk - other
    order = np.concatenate(
        [
            np.arange(at),
            np.arange(at + chunk, at + chunk + other),
            np.arange(at, at + chunk),
            np.arange(at + chunk + other, len(samples)),
        ]
    )
    time = np.round(100 + samples / 128, 3 if rounded else 6)
    assert np.array_equal(time[order][order_of_time(time[order])], time)
    assert np.array_equal(order_of_time(time), np.arange(len(time)))


def test_clocks_that_are_set_and_stamps_that_jitter_keep_their_order() -> None:
    even = np.arange(2560) / 256
    late = np.random.default_rng(0).uniform(-0.03, 0.03, 2560 // 10).repeat(10)
    for time in (
        np.where(even > 5, even - 3600, even),  # set back
        np.where(even > 5, even - 0.5, even),
        np.where((even > 3) & (even < 4), even + 3600, even),  # set, and set back
        even + late,
        even + late[::-1].repeat(1),
        np.repeat(even[::4], 4),  # four samples share a stamp
        np.zeros(2560),
        even[::-1],
    ):
        assert np.array_equal(order_of_time(time), np.arange(len(time)))


@pytest.mark.parametrize("chunk", [4, 12, 25])
def test_packets_that_share_a_stamp(chunk: int) -> None:
    time = np.repeat(np.arange(400) * chunk / 250, chunk)
    clock = fit_clock(time, 250)
    assert clock.step * 250 == pytest.approx(1, abs=1e-3) and not clock.lost.any()


@pytest.mark.parametrize("rate, chunk", [(256, 12), (250, 25), (500, 10), (128, 8), (250, 50)])
@pytest.mark.parametrize("packets, ppm", [(1, 0), (2, 0), (3, 80), (5, -80)])
def test_lost_packets_are_counted_to_the_sample(rate: int, chunk: int, packets: int, ppm: int) -> None:
    kept = np.delete(np.arange(40 * rate), slice(600 * chunk // 4, (600 // 4 + packets) * chunk))
    clock = fit_clock(kept // chunk * chunk / rate * (1 + ppm * 1e-6), rate)
    assert clock.lost.sum() == packets * chunk


@pytest.mark.parametrize("time", [np.zeros(600), -np.arange(600.0)])
def test_no_clock(time: np.ndarray) -> None:
    assert fit_clock(time, 100).step <= 0


@pytest.mark.parametrize("count", [1, 5, 12])
def test_rows_that_stand_twice(count: int) -> None:
    samples = np.concatenate([np.arange(1500), np.arange(1500 - count, 3000)])
    clock = fit_clock(samples / 256, 256)
    assert clock.lost.sum() == -count and clock.lost[1500] == -count


@pytest.mark.parametrize("first", [0, 1, 255, 3071])
def test_a_stamp_that_came_late_is_no_loss(first: int) -> None:
    samples = np.arange(3072)
    time = samples / 256 + np.where(samples % 500 == first % 500, 0.03, 0)
    assert not fit_clock(time - time[0], 256).lost.any()
