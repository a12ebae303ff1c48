"""Simulated EEG of a person looking at a picture: evoked response, one pattern for each number in a code, and noise.

One trial (128 channels x WINDOW samples at 1 kHz, sample 0 = picture onset), before standardisation:

    eeg = erp[subject] + sum_k code[picture, k] * pattern[subject, k] + noise[subject]

`code` holds 24 numbers drawn once for each class and 34 that are linear in the picture: its 8 x 8 layout in opponent
colours (white-black, red-green, blue-yellow; Ruderman et al. 1998) as low cosine components (4 x 4 of luminance, 3 x 3
of each colour, for which acuity is coarser: Mullen 1985), partly whitened as the retina does (Atick & Redlich 1992).
`erp` is the same for every picture. All pass a zero-phase second-order Butterworth, as in Spampinato et al. 2017.

snr = power of the sum over k / power of the noise, averaged over pictures, subjects, channels and the first 500 ms, in
5-95 Hz, whose scale other bands keep: another filter loses what it would lose in a recording. At snr=0 the sum is left
out: the EEG is a function of the seed and the sizes of the study alone.

With drift or signature a person's electrodes (`Electrodes`) make of it, before standardisation,

    gain[trial] * eeg + offset[trial](t)        offset in band=raw alone: no high-pass lets it through

The numbers and where they come from: brain.yaml.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import yaml
from PIL import Image

SFREQ = 1000  # Hz; one sample is 1 ms
WINDOW = 1000  # samples made for one trial, circular, so that one bin of its spectrum is 1 Hz
LONGEST = 660  # samples of the window that a trial may use; the filter's ringing before onset wraps to behind these
_FILE = yaml.safe_load(Path(__file__).with_name("brain.yaml").read_text(encoding="utf-8"))
CHANNELS = tuple(_FILE["channels"].split())
BANDS: dict[str, list[int]] = _FILE["bands"]  # Hz
REFERENCE = "5-95"  # the band in which powers are defined
SHARES: dict[str, float] = _FILE["noise_shares"]  # of the noise power
ERP_POWER: float = _FILE["erp_power"]  # of the noise power
SHOWN: float = _FILE["seconds_shown"]  # from the onset of a picture to the next
GAIN_SPREAD: float = _FILE["gain_spread"]
BLINK_RATE = _FILE["blinks_a_minute"] / 60  # a second, which is the length of the window
N_CLASS = 24
GRID = 8  # the layout of a picture is GRID x GRID x 3
# Layout components: (colour channel, vertical, horizontal cosine step)
LAYOUT = [(0, v, u) for v in range(4) for u in range(4)]
LAYOUT += [(c, v, u) for c in (1, 2) for v in range(3) for u in range(3)]
OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


STAGES: dict[str, dict[str, Any]] = _FILE["stages"]  # deflections of the evoked response
# Letters of a 10-5 site -> 10 % steps from the line between the ears to the front (+) or back (-)
ROWS: dict[str, float] = _FILE["rows"]


def site_position(name: str) -> np.ndarray:
    """Unit vector (x right, y front, z up) of a 10-5 site on a sphere.

    The letters give a row: the arc from the midline through the equator at the site numbered 7 or 8. The number, half a
    step less with a final h, gives the place on the arc; odd numbers are on the left.
    """
    letters = name.rstrip("zh0123456789")
    row, digits = ROWS[letters], name[len(letters) :].rstrip("h")
    if digits == "z":
        return np.array([0, np.sin(row * np.pi / 8), np.cos(row * np.pi / 8)])
    number = int(digits)
    steps = (number + 1) // 2 - 0.5 * name.endswith("h")
    azimuth = np.pi / 10 * np.clip(row, -4, 4)  # 18 degrees a step along the equator
    below = np.pi / 8 * max(abs(row) - 4, 0)  # the I row lies under the equator
    end = np.array([np.cos(azimuth) * np.cos(below), np.sin(azimuth) * np.cos(below), -np.sin(below)])
    middle = np.array([0, np.sin(row * np.pi / 8), np.cos(row * np.pi / 8)])
    # Rows near the poles have few sites: Fp, O and I end at number 1 or 2, AFp and POO reach half-way there.
    at_end = 4.0 if abs(row) < 3.5 or number > 8 else 2.0 if abs(row) == 3.5 else 1.0
    part, arc = steps / at_end, np.arccos(middle @ end)
    point = (np.sin((1 - part) * arc) * middle + np.sin(part * arc) * end) / np.sin(arc)
    return point * [-1 if number % 2 else 1, 1, 1]


POSITIONS = np.stack([site_position(name) for name in CHANNELS])  # (128, 3)


def scalp_map(sources: np.ndarray, width: float) -> np.ndarray:
    """(..., 3) directions of sources -> (..., 128): falls off as a Gaussian of the angle, `width` in radians."""
    unit = sources / np.linalg.norm(sources, axis=-1, keepdims=True)
    return np.exp(-0.5 * (np.arccos(np.clip(unit @ POSITIONS.T, -1, 1)) / width) ** 2)


def band_pass(band: str) -> np.ndarray:
    """Gain at 0, 1, ..., 500 Hz of a second-order Butterworth, run forwards and backwards (hence squared).

    A band from 0 Hz is a low-pass, which keeps the mean.
    """
    low, high = BANDS[band]
    f = np.arange(1, WINDOW // 2 + 1, dtype=float)
    return np.concatenate([[float(low == 0)], 1 / (1 + ((f**2 - low * high) / (f * (high - low))) ** 4)])


def filtered(waves: np.ndarray, band: str) -> np.ndarray:
    """`band_pass` over the last axis of WINDOW samples, taken as circular."""
    return scipy.fft.irfft(scipy.fft.rfft(waves) * band_pass(band), WINDOW)


# ---- the picture ----------------------------------------------------------------------------------------------------
def layout(image: Image.Image) -> np.ndarray:
    """The coarse layout of an RGB picture, (8, 8, 3) in 0..1."""
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), np.float64) / 255


def layout_codes(layouts: np.ndarray) -> np.ndarray:
    """(n, 8, 8, 3) layouts -> (n, 34), linear in the picture; mid grey gives 0."""
    cosine = scipy.fft.dctn((layouts - 0.5) @ OPPONENT.T, axes=(1, 2), norm="ortho")
    # Over the drawn pictures the spread falls about as 1 / (1 + 2 f), f in cosine steps; half of that is undone.
    return np.stack([cosine[:, v, u, c] * np.sqrt(1 + 2 * np.hypot(u, v)) for c, v, u in LAYOUT], 1)


def retinotopy() -> np.ndarray:
    """Scalp maps of the layout components, (34, 128): each place of the picture has its source in occipital cortex."""
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]  # y downwards, as in the picture
    sources = np.stack([-0.9 * x, -np.ones_like(x), 0.25 + 0.35 * y], -1)  # left field: right of the head
    maps = np.moveaxis(scalp_map(sources, 0.45), -1, 0)  # (128, 8, 8)
    cosine = scipy.fft.dctn(maps, axes=(1, 2), norm="ortho")  # sum over places of basis function x map
    found = np.stack([cosine[:, v, u] for _, v, u in LAYOUT])
    return found / np.sqrt((found**2).mean(1, keepdims=True))


# ---- the evoked response --------------------------------------------------------------------------------------------
def _draw_patterns(rng: np.random.Generator, n_class: int) -> tuple[np.ndarray, np.ndarray]:
    """One draw from the family of patterns: scalp maps (n, 128, 4 stages) and their courses (n, 4, WINDOW), where n is
    n_class + 34."""
    time, n = np.arange(WINDOW), n_class + len(LAYOUT)
    is_layout = np.arange(n) >= n_class
    late = np.array([0] * n_class + [20 * (c > 0) for c, _, _ in LAYOUT])  # ms, colour after luminance
    places = np.concatenate([np.zeros((n_class, len(CHANNELS))), retinotopy()])
    maps, waves = [], []
    for stage in STAGES.values():
        sites = np.stack([site_position(site) for site in stage["sites"]])
        sources = sites + rng.normal(0, 0.35, (n, 2, 3))  # near the sites, so that components differ in their maps
        sizes = rng.normal(0, 1, (n, 2)) * [0.8, 1.2]  # right larger than left
        maps.append(np.einsum("ks,ksc->kc", sizes, scalp_map(sources, 0.5)) + np.sign(stage["common"]) * places)
        weight = np.where(is_layout, stage["layout"], stage["category"]) * rng.normal(1, 0.3, n)
        latency = stage["latency"] + late + rng.normal(0, 0.08 * stage["latency"], n)
        width = stage["width"] * np.exp(rng.normal(0, 0.15, n))
        waves.append(weight[:, None] * np.exp(-0.5 * ((time - latency[:, None]) / width[:, None]) ** 2))
    return np.stack(maps, 2), np.stack(waves, 1)


def draw_subjects(
    rng: Callable[..., np.random.Generator], n_subjects: int, codes: np.ndarray, snr: float, band: str
) -> tuple[np.ndarray, np.ndarray]:
    """How each subject responds to pictures, band-passed, scaled so that the noise has power 1.

    rng: (purpose, *numbers) -> an independent stream. codes: (pictures, n) of the study, the last 34 of layout; they
    fix the scale that snr asks for, class and layout half each. Returns erp (n_subjects, 128, LONGEST) and patterns
    (n_subjects, n, 128, LONGEST), float32. A subject has the shared patterns plus 0.4 times some of their own, delayed
    by N(0, 6 ms), with a gain of log-normal spread 0.2.
    """
    n_class = codes.shape[1] - len(LAYOUT)
    maps, waves = _draw_patterns(rng("patterns"), n_class)
    stages, time = STAGES.values(), np.arange(WINDOW)
    common_maps = np.stack([np.add(*(scalp_map(site_position(site), 0.5) for site in s["sites"])) for s in stages], 1)
    common_waves = np.stack([s["common"] * np.exp(-0.5 * ((time - s["latency"]) / s["width"]) ** 2) for s in stages])
    erp, patterns = [], []
    n, erp_power = codes.shape[1], 0.0
    gram = np.zeros((n, n))  # mean product of the courses of two components
    for subject in range(n_subjects):
        own = rng("subject", subject)
        delay, gain = round(own.normal(0, 6)), np.exp(own.normal(0, 0.2))
        own_maps, own_waves = _draw_patterns(own, n_class)
        all_maps = np.concatenate([maps, 0.4 * own_maps], 2)
        all_waves = np.roll(np.concatenate([waves, own_waves], 1), delay, -1)
        known = (all_maps @ filtered(all_waves, REFERENCE)[:, :, :500]).reshape(n, -1)
        size = gain / np.sqrt((known**2).mean(1))  # every component has the same power in one subject
        heard = known * size[:, None]
        gram += heard @ heard.T / known.shape[1] / n_subjects
        patterns.append((size[:, None, None] * all_maps) @ filtered(all_waves, band)[:, :, :LONGEST])
        common = gain * np.roll(common_waves, delay, -1)
        erp_power += ((common_maps @ filtered(common, REFERENCE)[:, :500]) ** 2).mean() / n_subjects
        erp.append(common_maps @ filtered(common, band)[:, :LONGEST])
    power = gram * (codes.T @ codes) / len(codes)  # its sum is the power of codes @ patterns
    shares = [power[:n_class, :n_class].sum(), power[n_class:, n_class:].sum()]
    scale = np.repeat(1 / np.sqrt(shares), [n_class, len(LAYOUT)])
    scale *= np.sqrt(snr / (scale @ power @ scale))
    scaled = np.stack(erp) * np.sqrt(ERP_POWER / erp_power), np.stack(patterns) * scale[:, None, None]
    return scaled[0].astype(np.float32), scaled[1].astype(np.float32)


# ---- the noise ------------------------------------------------------------------------------------------------------
def background_maps(rng: np.random.Generator) -> np.ndarray:
    """Scalp maps (32, 128) of sources anywhere in the upper head."""
    return scalp_map(rng.normal(0, 1, (32, 3)) + [0, 0, 0.5], 0.6)


class Noise:
    """Band-passed noise of one subject, of power 1 in 5-95 Hz; drawn as a spectrum, mixed, and transformed to time."""

    def __init__(self, rng: np.random.Generator, band: str):
        self.bins = np.arange(min(2 * BANDS[band][1], WINDOW // 2))  # Hz; higher up the filter leaves less than 7 %
        f = np.maximum(self.bins, 1).astype(float)
        gain, known = band_pass(band)[self.bins], band_pass(REFERENCE)[self.bins]
        exponent, alpha = 1.3 + rng.normal(0, 0.15), 10 + rng.normal(0, 1)
        posterior = np.stack([site_position(site) for site in ("O1", "O2", "PO3", "PO4", "POz", "Pz")])
        blink = WINDOW * np.exp(-0.5 * (2 * np.pi * f / SFREQ * 60) ** 2)  # a bump of sigma 60 ms
        # Scalp maps of the sources and amplitude over frequency; a blink is one bump, the others random spectra.
        sources = {
            "background": (background_maps(rng), f ** (-exponent / 2)),
            "alpha": (scalp_map(posterior, 0.5), np.exp(-0.5 * (f - alpha) ** 2)),
            "line": (scalp_map(rng.normal(0, 1, (3, 3)), 0.8).sum(0, keepdims=True), 1.0 * (f == 50)),
            "blink": (scalp_map(np.array([[0.0, 1.0, -0.4]]), 0.5), blink * np.sqrt(BLINK_RATE / 2)),
            "sensor": (np.eye(len(CHANNELS)), np.ones(len(f))),
        }
        mixing = {}
        for name, (maps, shape) in sources.items():
            # A spectrum Z with E|Z|^2 = 2 shape^2 gives a signal of power sum(4 shape^2) / WINDOW^2.
            power = 4 * ((shape * known) ** 2).sum() / WINDOW**2 * (maps**2).sum(0).mean()
            mixing[name] = maps * np.sqrt(SHARES[name] / power)
        self.sensor = (mixing.pop("sensor")[0, 0] * gain).astype(np.float32)[:, None]
        counts = [len(maps) for maps in mixing.values()]
        self.mixing = np.concatenate(list(mixing.values())).T.astype(np.float32)  # (128, sources), the last one blinks
        shapes = [sources[name][1] * gain for name in mixing]
        self.shape = np.repeat(shapes, counts, 0).astype(np.float32)  # (sources, bins)
        self.alpha = slice(counts[0], counts[0] + counts[1])
        self.blink = blink * gain

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n, 128, WINDOW) float32."""
        n_sources, n_bins = self.shape.shape
        z = rng.standard_normal((n, n_sources, n_bins, 2), np.float32) * self.shape[:, :, None]
        z[:, self.alpha] *= np.exp(rng.normal(-0.25, 0.5, (n, 1, 1, 1))).astype(np.float32)  # E[a^2] = 1
        size = np.where(rng.random(n) < BLINK_RATE, np.exp(rng.normal(-0.09, 0.3, n)), 0)
        shift = np.exp(-2j * np.pi * np.outer(rng.random(n), self.bins))  # it may fall anywhere in the window
        z[:, -1] = (size[:, None] * shift * self.blink).astype(np.complex64).view(np.float32).reshape(n, n_bins, 2)
        mixed = self.mixing @ z.reshape(n, n_sources, -1)
        sensor = rng.standard_normal((n, len(self.mixing), n_bins, 2), np.float32)
        mixed += np.multiply(sensor, self.sensor, out=sensor).reshape(mixed.shape)
        return scipy.fft.irfft(mixed.view(np.complex64), WINDOW)


# ---- the electrodes -------------------------------------------------------------------------------------------------
def walk(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """A slow random walk of all channels, smooth over the scalp, at rising moments (n,) of one recording: (n, 128).

    A step over t seconds has a variance proportional to t, the mean over the moments is 0 in each channel, and the mean
    square over moments and channels is 1.
    """
    maps, time = background_maps(rng), np.diff(seconds, prepend=seconds[0])[:, None]
    course = (rng.standard_normal((len(seconds), len(maps))) * np.sqrt(time)).cumsum(0) @ maps
    course -= course.mean(0)
    return course / np.sqrt((course**2).mean())


class Electrodes:
    """Drift and signature of one person: a gain of each trial and channel, and in band=raw an offset.

    onsets: (trials,) s along the recording. drift, signature: powers of the offset that walks through the recording and
    of the one that stays, of the noise power; the log-gain has a walk and a pattern of its own, with the standard
    deviations gain_spread * sqrt(drift) and gain_spread * sqrt(signature).
    """

    def __init__(self, rng: np.random.Generator, onsets: np.ndarray, drift: float, signature: float, band: str):
        moments = np.stack([onsets, onsets + SHOWN], 1).ravel()
        course = []
        for _ in range(2):
            maps = background_maps(rng)
            pattern = rng.standard_normal(len(maps)) @ maps
            course.append(np.sqrt(signature / (pattern**2).mean()) * pattern + np.sqrt(drift) * walk(rng, moments))
        self.gain = np.exp(GAIN_SPREAD * course[0][::2]).astype(np.float32)[:, :, None]
        self.ends = course[1].astype(np.float32).reshape(-1, 2, len(CHANNELS), 1) * (band == "raw")

    def __call__(self, eeg: np.ndarray, trials: slice) -> np.ndarray:
        """EEG (n, 128, times) of these trials, from picture onset, as the electrodes give it."""
        passed = np.arange(eeg.shape[2], dtype=np.float32) / (SFREQ * SHOWN)
        first, last = self.ends[trials, 0], self.ends[trials, 1]
        return self.gain[trials] * eeg + first + (last - first) * passed
