"""The same EEG twice, though it was rounded, scaled, turned in sign, cropped, or cut by another clock.

As music is recognised: of each trial a sketch is kept, and what the signal does around a few landmarks (peaks of its
power over channels). Landmarks that look alike name the few pairs of trials whose sketches are laid upon each other.

A pair is the same EEG if the two correlate by AGREE, and by PHASES with all frequencies made equally strong: alphas,
blinks and evoked responses agree in few frequencies only. What was re-referenced or filtered since is beyond this.
"""

import numpy as np
import scipy  # whose parts are imported when first used

CHANNELS = 6  # of each trial, spread over all
WIDTHS = 0.012, 0.03  # s; difference of Gaussians: a band-pass around 8 Hz that flattens 1/f and knows no mains
RATE = 120  # Hz, about, of the sketches
LANDMARKS, NEAREST, AXES = 4, 4, 16  # of a trial; what is looked at of each
REACH = np.linspace(-0.1, 0.1, 11)  # s around a landmark
DISTANCE = 0.4  # between landmarks of unit length
AGREE, PHASES = 0.98, 0.9  # correlations; of fewer than FEW independent channels more is asked
FEW = 4
BAND = 20  # Hz, of the frequencies made equally strong
OVERLAP = 0.7  # of a sketch: what two must have in common


class Copies:
    """Sketches of up to `n` trials at `sfreq`; `pairs` are those that hold the same EEG."""

    def __init__(self, n_chans: int, n_times: int, sfreq: float) -> None:
        self.picks = np.unique(np.linspace(0, n_chans - 1, CHANNELS).astype(int))
        scale = min(1.0, n_times / sfreq / 0.7)  # of everything in time, where trials are short
        time = np.arange(-(reach := int(3 * WIDTHS[1] * scale * sfreq)), reach + 1) / sfreq
        narrow, wide = (np.exp(-((time / (width * scale)) ** 2) / 2) for width in WIDTHS)
        self.kernel = narrow / narrow.sum() - wide / wide.sum()
        self.taps, self.seconds = REACH * scale * sfreq, (n_times - 2 * reach) / sfreq
        self.band = BAND / scale
        self.step = max(1, int(scale * sfreq / RATE))
        self.sketches: dict[int, np.ndarray] = {}  # trial -> (channels, samples / step)
        self.landmarks: list[tuple[int, float, np.ndarray]] = []  # trial, sample, look

    def add(self, number: int, eeg: np.ndarray) -> None:
        """eeg: (n_chans, n_times), finite."""
        eeg = eeg[self.picks].astype(np.float64)
        flat = np.ptp(eeg, axis=1) == 0
        if len(self.kernel) >= eeg.shape[1] or flat.all():
            return
        x = scipy.signal.fftconvolve(eeg - eeg.mean(axis=1, keepdims=True), self.kernel[None], "valid", axes=1)
        x[flat] = 0
        usual = 1.5 * np.median(np.abs(x), axis=1, keepdims=True)
        usual = np.maximum(usual, 0.05 * x.std(axis=1, keepdims=True) + 1e-300)
        x = np.clip(x / usual, -4, 4)  # pops are not all there is
        self.sketches[number] = x[:, :: self.step].astype(np.float16)
        power = (x**2).sum(axis=0)
        first, last = -self.taps[0], x.shape[1] - 2 - self.taps[-1]
        peaks = 1 + np.flatnonzero((power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:]))
        peaks = peaks[(peaks > first + 1) & (peaks < last)]
        for peak in peaks[np.argsort(-power[peaks], kind="stable")[:LANDMARKS]]:
            before, here, after = power[peak - 1 : peak + 2]
            place = peak + (before - after) / 2 / (before - 2 * here + after)
            at = place + self.taps
            whole = at.astype(int)
            look = (x[:, whole] * (whole + 1 - at) + x[:, whole + 1] * (at - whole)).ravel()
            look /= np.linalg.norm(look) * np.sign(look @ np.cos(np.arange(len(look))) or 1)
            self.landmarks.append((number, place, look.astype(np.float32)))

    def pairs(self) -> dict[tuple[int, int], float]:
        """(trial, later trial) -> by how many samples what they share comes later in the later one."""
        if len(self.landmarks) < 2:
            return {}
        looks = np.stack([look for _, _, look in self.landmarks])
        looks -= looks.mean(axis=0)
        looks = looks @ np.linalg.eigh(looks.T @ looks)[1][:, -AXES:]
        _, near = scipy.spatial.cKDTree(looks).query(looks, NEAREST + 1, distance_upper_bound=DISTANCE)
        found: dict[tuple[int, int], float] = {}
        for i, j in np.argwhere(near < len(looks)):
            one, other = (self.landmarks[k] for k in sorted([i, near[i, j]]))
            pair, shift = (one[0], other[0]), other[1] - one[1]
            if pair[0] != pair[1] and pair not in found and self.same(*pair, shift):
                found[pair] = shift
        return found

    def same(self, one: int, other: int, shift: float) -> bool:
        """Whether two trials hold the same EEG, `shift` samples later in the other."""
        a, b = (self.sketches[trial].astype(np.float32) for trial in (one, other))
        at = np.arange(a.shape[1]) + shift / self.step
        there = (at >= 0) & (at < a.shape[1] - 1)
        if there.sum() < OVERLAP * a.shape[1]:
            return False
        whole = at[there].astype(int)
        part = at[there] - whole
        a, b = a[:, there], b[:, whole] * (1 - part) + b[:, whole + 1] * part
        moving = (a**2).any(axis=1) & (b**2).any(axis=1)
        a, b = a[moving], b[moving]
        r = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        if not len(r):
            return False
        spectrum = np.linalg.eigvalsh(np.corrcoef(a).reshape(len(a), len(a)))
        independent = spectrum.sum() ** 2 / (spectrum**2).sum()
        if abs(np.median(r)) < 1 - (1 - AGREE) * min(1, independent / FEW):
            return False
        taper = np.hanning(a.shape[1] + 2)[1:-1]
        cross = np.fft.rfft(a * taper) * np.conj(np.fft.rfft(b * taper))
        cross = cross[:, 1 : 1 + int(self.band * self.seconds * there.mean())]
        return bool(abs((cross.real / (np.abs(cross) + 1e-30)).mean()) > PHASES)
