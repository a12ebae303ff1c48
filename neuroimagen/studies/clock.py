"""The clock of a recording, from the time stamps of its samples, which may jitter, or jump where samples were lost."""

import dataclasses

import numpy as np
import scipy  # whose parts are imported when first used


@dataclasses.dataclass
class Clock:
    """What `fit_clock` found; times in the unit of the stamps.

    step: from one sample to the next. lost (n,): samples lost just before each sample; negative: that stand there
    twice. doubt: by how many samples these places may be wrong. stray (n,): of the stamps, from even steps.
    """

    step: float
    lost: np.ndarray
    doubt: int
    stray: np.ndarray


def order_of_time(time: np.ndarray) -> np.ndarray:
    """The order of rows (n,): as they stand, unless whole chunks were swapped, so that sorted stamps leave less out.

    Stamps that only jitter come too close to each other once sorted; a clock that was set back leaves a hole.
    """
    as_is, order = np.arange(len(time)), np.argsort(time, kind="stable")
    step = np.median(np.diff(time)) if len(time) > 1 else 0.0
    if step <= 0 or np.array_equal(order, as_is):
        return as_is
    before, after = (np.diff(stamps) / step for stamps in (time, time[order]))
    holes, left = before[before > 1.5], after[after > 1.5]
    fewer = after.min() >= 0.5 and len(left) <= len(holes) and left.sum() < holes.sum()
    return order if fewer else as_is


def fit_clock(time: np.ndarray, rate: float) -> Clock:
    """The even clock behind stamps (n,), the first 0, of nominally `rate` samples in their unit of time.

    Of several guesses of its step the one that leaves least jitter: a loss in every second, or a few stamps far off,
    would bend a line through all of them. step <= 0: it does not advance.
    """
    steps = np.diff(time)
    usual = np.median(steps)
    near = steps[np.abs(steps - usual) < usual / 2]
    line = float(np.polyfit(np.arange(len(time)), time, 1)[0])
    guesses = [*([near.mean()] if len(near) else []), line, np.median(time[64:] - time[:-64]) / 64]
    starts = np.flatnonzero(steps) + 1  # of packets whose samples share a stamp
    guesses += [float(np.median(np.diff(time[starts]) / np.diff(starts)))] if 2 < len(starts) < len(steps) / 2 else []
    # Packets whose samples share a stamp, or nearly: no clock is 5 % off within them when its mean is right.
    if abs(line * rate - 1) < 0.01:
        guesses = [guess for guess in guesses if abs(guess * rate - 1) < 0.05]
    width = min(round(2 * rate), len(time))
    best, least = Clock(line, np.zeros(len(time), int), 0, np.zeros(len(time))), np.inf
    for smooth in (1, 25):
        for guess in guesses:
            clock = _refine(time, float(guess), smooth, width)
            jitter = clock.stray.std() * (1 if smooth == 1 else 1.3)  # smoothing finds losses in noise, too
            if clock.step > 0 and jitter < 0.9 * least:
                best, least = clock, jitter
        if best.stray.std() < best.step / 2:
            break
    # Near an end, little is seen of the jitter.
    strays = scipy.ndimage.maximum_filter1d(best.stray, width) - scipy.ndimage.minimum_filter1d(best.stray, width)
    jitter = np.median(strays)
    inside = np.arange(len(time)).clip(width, len(time) - width) == np.arange(len(time))
    best.lost[~inside & ((np.abs(best.lost) - 0.5) * best.step <= jitter)] = 0
    return best


def _refine(time: np.ndarray, step: float, smooth: int, width: int) -> Clock:
    lost, stray = np.zeros(len(time), int), np.zeros(len(time))
    for beside in (64, 64, width, width):  # once the step is known, a longer look sees past packets
        if step <= 0:
            break
        lost = _losses(time / step - np.arange(len(time)), smooth, width, beside)
        place = np.arange(len(time)) + np.cumsum(lost)
        step, start = np.polyfit(place, time, 1)
        stray = time - start - step * place
    return Clock(float(step), lost, smooth // 2, stray)


def _losses(late: np.ndarray, smooth: int, width: int, beside: int) -> np.ndarray:
    """Samples lost just before each sample, whose stamps are `late` (n,) by so many samples.

    They are lost where all of the next `width` stamps are later than all of the last: jitter comes back. smooth:
    samples of a median filter against jitter. beside: samples on either side whose middles give their number.
    """
    if smooth > 1:
        late = scipy.ndimage.median_filter(late, smooth, mode="nearest")

    def rises(late: np.ndarray) -> np.ndarray:
        after = scipy.ndimage.minimum_filter1d(late, width, origin=-(width // 2), mode="nearest")
        before = scipy.ndimage.maximum_filter1d(late, width, origin=(width - 1) // 2, mode="nearest")
        return after[1:] - before[:-1] > 0.5

    def middle(late: np.ndarray) -> float:  # the mean of the half between quartiles; a median of packets is uneven
        quarter = len(late) // 4
        return float(np.sort(late)[quarter : len(late) - quarter].mean())

    jumps = np.flatnonzero(rises(late) | rises(-late)) + 1
    edges, level = [0, *jumps, len(late)], np.zeros(len(late))
    for first, i, last in zip(edges, jumps, edges[2:], strict=False):
        level[i] = middle(late[i : min(last, i + beside)]) - middle(late[max(first, i - beside) : i])
    return np.diff(np.round(np.cumsum(level)), prepend=0).astype(int)
