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

Numbers and their sources
- Channels: the published order as far as it is known, then the other sites of a 128-channel 10-5 cap. Positions: the
  10-5 rule on a sphere (Oostenveld & Praamstra 2001).
- Latencies and sites (Luck 2014, ch. 3): P1 100 ms, lateral occipital; N1/N170 170 ms, occipito-temporal and larger on
  the right (Bentin et al. 1996; Rossion & Jacques 2008); P2 220 ms; a late parietal positivity at 380 ms. Widths:
  Gaussian sigmas of 14..45 ms, for deflections that last some 40..150 ms. Layout weighs early and class late, for
  category information in EEG begins about 150 ms after onset (Thorpe et al. 1996; Cichy et al. 2014).
- The left visual field excites the right hemisphere; the upper field has its source below the lower field's (Jeffreys &
  Axford 1972). Responses to colour come some 20 ms after those to luminance (Rabin et al. 1994).
- 1/f background: power ~ f^-1.3, +-0.15 between people; exponents of 1..2 are usual (Donoghue et al. 2020).
- Alpha: about 10 Hz and parieto-occipital (Berger 1929), +-1 Hz between people (Klimesch 1999), 1 Hz wide, which makes
  bursts of about half a second. Blinks: 17 a minute (Bentivoglio et al. 1997), a quarter of a second long, frontal.
  Line: 50 Hz, the mains of the country of recording.
- Our choice, without a source: how the noise power is shared (SHARES), the size of `erp` (ERP_POWER), how subjects
  differ (`draw_subjects`), the widths of scalp maps, 24 class components, class : layout = 1 : 1 in evoked power.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.fft
from PIL import Image

SFREQ = 1000  # Hz; one sample is 1 ms
WINDOW = 1000  # samples made for one trial, circular, so that one bin of its spectrum is 1 Hz
LONGEST = 660  # samples of the window that a trial may use; the filter's ringing before onset wraps to behind these
_SITES = """
    Fp1 Fp2 F7 F3 Fz F4 F8 FC5 FC1 FC2 FC6 T7 C3 Cz C4 T8 TP9 CP5 CP1 CP2 CP6 TP10 P7 P3 Pz P4 P8 PO9 O1 Oz O2 PO10
    AF7 AF3 AF4 AF8 F5 F1 F2 F6 FT9 FT7 FC3 FC4 FT8 FT10 C5 C1 C2 C6 TP7 CP3 CPz CP4 TP8 P5 P1 P2 P6 PO7 PO3 POz PO4
    PO8 Fpz F9 AFF5h AFF1h AFF2h AFF6h F10 FTT9h FTT7h FCC5h FCC3h FCC1h FCC2h FCC4h FCC6h FTT8h FTT10h TPP9h TPP7h
    CPP5h CPP3h CPP1h CPP2h CPP4h CPP6h TPP8h TPP10h POO9h POO1 POO2 POO10h Iz AFp1 AFp2 FFT9h FFT7h FFC5h FFC3h FFC1h
    FFC2h FFC4h FFC6h FFT8h FFT10h TTP7h CCP5h CCP3h CCP1h CCP2h CCP4h CCP6h TTP8h P9 PPO9h PPO5h PPO1h PPO2h PPO6h
    PPO10h P10 I1 OI1h OI2h I2
"""
CHANNELS = tuple(_SITES.split())
BANDS = {"5-95": (5, 95), "14-70": (14, 70), "55-95": (55, 95)}  # Hz; the three published files
REFERENCE = "5-95"  # the band in which powers are defined
SHARES = {"background": 0.6, "alpha": 0.2, "blink": 0.1, "line": 0.05, "sensor": 0.05}  # of the noise power
ERP_POWER = 0.05  # of the noise power
BLINK_RATE = 17 / 60  # a second, which is the length of the window
N_CLASS = 24
GRID = 8  # the layout of a picture is GRID x GRID x 3
# Layout components: (colour channel, vertical, horizontal cosine step)
LAYOUT = [(0, v, u) for v in range(4) for u in range(4)]
LAYOUT += [(c, v, u) for c in (1, 2) for v in range(3) for u in range(3)]
OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


@dataclasses.dataclass(frozen=True)
class Stage:
    """One deflection of the evoked response, with a source on each side of the head."""

    latency: float  # ms
    width: float  # ms, sigma
    sites: tuple[str, str]  # left, right
    common: float  # signed size in the response to any picture
    layout: float  # how much of the layout it carries
    category: float  # how much of the class it carries


STAGES = {
    "P1": Stage(100, 14, ("PO7", "PO8"), 1.0, 1.0, 0.1),
    "N170": Stage(170, 18, ("P7", "P8"), -1.2, 0.8, 1.0),
    "P2": Stage(220, 25, ("PO3", "PO4"), 0.8, 0.5, 0.8),
    "late": Stage(380, 45, ("P3", "P4"), 1.0, 0.2, 0.8),
}
# Letters of a 10-5 site -> 10 % steps from the line between the ears to the front (+) or back (-)
ROWS = {"C": 0.0, "T": 0.0, "FC": 1.0, "FT": 1.0, "F": 2.0, "AF": 3.0, "Fp": 4.0, "CP": -1.0, "TP": -1.0, "P": -2.0}
ROWS |= {"PO": -3.0, "O": -4.0, "I": -5.0, "FCC": 0.5, "FTT": 0.5, "FFC": 1.5, "FFT": 1.5, "AFF": 2.5, "AFp": 3.5}
ROWS |= {"CCP": -0.5, "TTP": -0.5, "CPP": -1.5, "TPP": -1.5, "PPO": -2.5, "POO": -3.5, "OI": -4.5}


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
    """Gain at 0, 1, ..., 500 Hz of a second-order Butterworth band-pass, run forwards and backwards (hence squared)."""
    low, high = BANDS[band]
    f = np.arange(1, WINDOW // 2 + 1, dtype=float)
    return np.concatenate([[0], 1 / (1 + ((f**2 - low * high) / (f * (high - low))) ** 4)])


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
def _draw_patterns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One draw from the family of patterns: scalp maps (58, 128, 4 stages) and their courses (58, 4, WINDOW)."""
    time, n = np.arange(WINDOW), N_CLASS + len(LAYOUT)
    is_layout = np.arange(n) >= N_CLASS
    late = np.array([0] * N_CLASS + [20 * (c > 0) for c, _, _ in LAYOUT])  # ms, colour after luminance
    places = np.concatenate([np.zeros((N_CLASS, len(CHANNELS))), retinotopy()])
    maps, waves = [], []
    for stage in STAGES.values():
        sites = np.stack([site_position(site) for site in stage.sites])
        sources = sites + rng.normal(0, 0.35, (n, 2, 3))  # near the sites, so that components differ in their maps
        sizes = rng.normal(0, 1, (n, 2)) * [0.8, 1.2]  # right larger than left
        maps.append(np.einsum("ks,ksc->kc", sizes, scalp_map(sources, 0.5)) + np.sign(stage.common) * places)
        weight = np.where(is_layout, stage.layout, stage.category) * rng.normal(1, 0.3, n)
        latency = stage.latency + late + rng.normal(0, 0.08 * stage.latency, n)
        width = stage.width * np.exp(rng.normal(0, 0.15, n))
        waves.append(weight[:, None] * np.exp(-0.5 * ((time - latency[:, None]) / width[:, None]) ** 2))
    return np.stack(maps, 2), np.stack(waves, 1)


def draw_subjects(
    rng: Callable[..., np.random.Generator], n_subjects: int, codes: np.ndarray, snr: float, band: str
) -> tuple[np.ndarray, np.ndarray]:
    """How each subject responds to pictures, band-passed, scaled so that the noise has power 1.

    rng: (purpose, *numbers) -> an independent stream. codes: (pictures, 58) of the study; they fix the scale that snr
    asks for, class and layout half each. Returns erp (n_subjects, 128, LONGEST) and patterns (n_subjects, 58, 128,
    LONGEST), float32. A subject has the shared patterns plus 0.4 times some of their own, delayed by N(0, 6 ms), with
    a gain of log-normal spread 0.2.
    """
    maps, waves = _draw_patterns(rng("patterns"))
    stages, time = STAGES.values(), np.arange(WINDOW)
    common_maps = np.stack([np.add(*(scalp_map(site_position(site), 0.5) for site in s.sites)) for s in stages], 1)
    common_waves = np.stack([s.common * np.exp(-0.5 * ((time - s.latency) / s.width) ** 2) for s in stages])
    erp, patterns = [], []
    n, erp_power = codes.shape[1], 0.0
    gram = np.zeros((n, n))  # mean product of the courses of two components
    for subject in range(n_subjects):
        own = rng("subject", subject)
        delay, gain = round(own.normal(0, 6)), np.exp(own.normal(0, 0.2))
        own_maps, own_waves = _draw_patterns(own)
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
    shares = [power[:N_CLASS, :N_CLASS].sum(), power[N_CLASS:, N_CLASS:].sum()]
    scale = np.repeat(1 / np.sqrt(shares), [N_CLASS, len(LAYOUT)])
    scale *= np.sqrt(snr / (scale @ power @ scale))
    scaled = np.stack(erp) * np.sqrt(ERP_POWER / erp_power), np.stack(patterns) * scale[:, None, None]
    return scaled[0].astype(np.float32), scaled[1].astype(np.float32)


# ---- the noise ------------------------------------------------------------------------------------------------------
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
            "background": (scalp_map(rng.normal(0, 1, (32, 3)) + [0, 0, 0.5], 0.6), f ** (-exponent / 2)),
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
        sensor = rng.standard_normal((n, len(CHANNELS), n_bins, 2), np.float32)
        mixed += np.multiply(sensor, self.sensor, out=sensor).reshape(mixed.shape)
        return scipy.fft.irfft(mixed.view(np.complex64), WINDOW)
