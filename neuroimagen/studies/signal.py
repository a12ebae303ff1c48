"""Signal options that every data set has: what is done to a trial's EEG between its reader and the shards.

Each only if asked for, in this order: picks, detrend, notch, band, resample, baseline, window, whiten, repetitions,
standardise. All but `whiten` look at one trial alone; `whiten` (Guggenmos et al. 2018) learns one matrix a subject from
train trials. Standardising by statistics of the train split needs no option: batches/stream.py does it with those in
the manifest.

Times are seconds from picture onset where the reader knows when its trials begin (`tmin`), else from the first sample;
an interval [from, to] holds its first sample and not its last, so that [0, 1] at 250 Hz is 250 samples.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import scipy  # whose parts are imported when first used
from tqdm import tqdm

from neuroimagen.studies.config import SignalOptions
from neuroimagen.studies.study import Changed, Facts, Study, Trial, refuse_nonfinite

# Rows of the 10-05 system (Oostenveld & Praamstra 2001), front to back; a row between two lobes goes with the former.
REGIONS = {
    "frontal": "N Fp AFp AF AFF F FFC FFT",
    "central": "FC FCC C CCP CP",
    "temporal": "FT FTT T TTP TP TPP",
    "parietal": "CPP P PPO",
    "occipital": "PO POO O OI I",
}
ROWS = {row.casefold(): region for region, rows in REGIONS.items() for row in rows.split()}
SITE = re.compile(r"([A-Z]+)(Z|\d+)H?", re.IGNORECASE)  # row, then the midline or the distance from it; h: half-way
FILTER_ORDER = 4  # of the Butterworth band-pass, before it is run forwards and backwards
NOTCH_WIDTH = 2.0  # Hz; wider where a trial is too short to tell frequencies so finely apart


def region_of(channel: str) -> str | None:
    """The region of a 10-05 site, None for any other name."""
    match = SITE.fullmatch(channel.strip())
    return ROWS.get(match[1].casefold()) if match else None


def pick_channels(picks: list[str], channels: list[str] | None, n_chans: int) -> list[int]:
    """Numbers of the channels that `picks` names, each once; ValueError for what is not there."""
    names = [name.casefold() for name in channels or []]
    found: list[int] = []
    for pick in map(str, picks):
        if pick.casefold() in names:
            more = [names.index(pick.casefold())]
        elif pick.isdecimal():
            if int(pick) >= n_chans:
                raise ValueError(f"picks={pick}, but channels are numbered from 0 to {n_chans - 1}")
            more = [int(pick)]
        elif channels is None:
            last = n_chans - 1
            raise ValueError(f"picks={pick!r}: these files do not name their channels: pick by number, 0 to {last}")
        else:
            more = [i for i, name in enumerate(channels) if region_of(name) == pick.casefold()]
            if not more:
                known = f" is no channel and no region ({', '.join(REGIONS)})"
                why = ": no channel lies there by its 10-05 name" if pick.casefold() in REGIONS else known
                raise ValueError(f"picks={pick!r}{why}, among {', '.join(channels)}")
        found += more
    return list(dict.fromkeys(found))


class Prepared(Changed):
    """A study whose trials have the options applied; with none given, its trials are those of `study`, bit for bit."""

    tmin: float

    def __init__(self, study: Study, options: SignalOptions) -> None:
        super().__init__(study)
        self.options = options
        self.tmin = study.tmin or 0.0
        self.done: list[str] = []  # what is done, for the protocol
        self.picks: list[int] = []
        if options.picks:
            self.picks = pick_channels(options.picks, self.channels, self.n_chans)
            self.done.append(f"{len(self.picks)} of {self.n_chans} channels ({', '.join(map(str, options.picks))})")
            self.channels = [self.channels[i] for i in self.picks] if self.channels else None
            self.n_chans = len(self.picks)
        self.done += ["a least-squares line taken from each channel of each trial"] if options.detrend else []
        self.lines: list[tuple[np.ndarray, np.ndarray]] = []  # waves (2, n_times), and what fits them (n_times, 2)
        self.filters = self._filters()
        self.ratio = Fraction(1)
        if options.resample:
            self._set_rate()
        self.baseline, self.window = self._samples("baseline"), self._samples("window")
        if self.window:
            first, last = self.window.start, self.window.stop
            self.done.append(f"{options.window[0]:g} to {options.window[1]:g} s")
            self.n_times, self.tmin = last - first, self.tmin + first / self.sfreq
        if options.repetition_groups and (options.repetition_groups < 2 or options.repetitions == "none"):
            raise ValueError("repetition_groups must be 2 or more, and repetitions=test or all say where to average")
        self.whiteners: dict[int, np.ndarray] = {}
        if options.whiten != "none":
            self._learn_whitening()
        self.members: list[list[int]] = []  # the trials of `study` in each average
        if options.repetitions != "none":
            self._group()
        if options.standardise != "none":
            self.units = "standard deviations"
            what = "trial" if options.standardise == "trial" else "channel of each trial"
            self.done.append(f"each {what} to mean 0 and standard deviation 1")
        self.protocol = study.protocol + (f"; signal: {', '.join(self.done)}" if self.done else "")

    def __len__(self) -> int:
        return len(self.members) if self.members else len(self.study)

    def trial(self, index: int) -> Trial:
        if not self.done:
            return self.study.trial(index)
        trial = self._mean(self.members[index] if self.members else [index])
        eeg = trial.eeg
        if self.options.standardise != "none":
            axis = 1 if self.options.standardise == "channel" else None
            eeg = eeg - eeg.mean(axis=axis, keepdims=True)
            spread = eeg.std(axis=axis, keepdims=True)
            eeg = eeg / np.where(spread > 0, spread, 1)
        return dataclasses.replace(trial, eeg=np.ascontiguousarray(eeg, dtype=np.float32))

    def facts(self, index: int) -> Facts:
        """Of an average what is true of all its trials; it has no onset."""
        first, *others = map(self.study.facts, self.members[index] if self.members else [index])
        if not others:
            return first
        return first._replace(block=first.block if {f.block for f in others} == {first.block} else None, onset=None)

    def _mean(self, members: list[int]) -> Trial:
        """The mean of some trials of one image and subject, with what is true of all of them."""
        first = self.study.trial(members[0])
        total, extra, n = self._whitened(first), first.extra, len(members)
        for index in members[1:]:
            trial = self.study.trial(index)
            total = total + self._whitened(trial)
            # Of a run split the first's run stays: it says on which side of the split these trials are.
            extra = {k: v for k, v in extra.items() if trial.extra.get(k) == v or k in ("run", "session")}
        extra = extra | ({"averaged": n} if self.members else {})
        return dataclasses.replace(first, key=first.key + f"_mean{n}" * (n > 1), eeg=total / n, extra=extra)

    def _signal(self, trial: Trial) -> np.ndarray:
        """Everything that looks at one trial alone; (n_chans, n_times) float64."""
        eeg = trial.eeg[self.picks] if self.picks else trial.eeg
        eeg = eeg.astype(np.float64)
        refuse_nonfinite(eeg, self.channels, f"trial {trial.key}")
        if self.options.detrend:
            eeg = scipy.signal.detrend(eeg, axis=1)
        for wave, fit in self.lines:
            eeg = eeg - (eeg @ fit) @ wave
        for sos in self.filters:
            # Mirrored ends: of the paddings that scipy has it comes closest to filtering the recording as a whole.
            eeg = scipy.signal.sosfiltfilt(sos, eeg, axis=1, padtype="even", padlen=eeg.shape[1] - 1)
        if self.ratio != 1:
            eeg = scipy.signal.resample_poly(eeg, self.ratio.numerator, self.ratio.denominator, axis=1, padtype="line")
        if self.baseline:
            eeg = eeg - eeg[:, self.baseline].mean(axis=1, keepdims=True)
        return eeg[:, self.window] if self.window else eeg

    def _whitened(self, trial: Trial) -> np.ndarray:
        eeg = self._signal(trial)
        if not self.whiteners:
            return eeg
        if trial.subject not in self.whiteners:
            said = f"whiten={self.options.whiten}: subject {trial.subject} has no train trial to learn its noise from"
            raise ValueError(f"{said}; use a split that gives it some, or whiten=none")
        return self.whiteners[trial.subject] @ eeg

    def _filters(self) -> list[np.ndarray]:
        """Second-order sections of the notches and the band-pass; refuses what a trial is too short for."""
        notch, band, rate = self.options.notch, self.options.band, self.sfreq
        length = self.n_times / rate
        trials = f"trials of {length:.3g} s"
        filters = []
        time = np.arange(self.n_times) / rate
        taper = scipy.signal.windows.hann(self.n_times)
        for hertz in notch:
            width = max(NOTCH_WIDTH, 2 / length)
            if not 2 * width <= hertz < rate / 2:
                limits = f"{2 * width:.3g} Hz ({trials} tell nothing finer apart) and {rate / 2:g} Hz, half the rate"
                raise ValueError(f"notch={hertz:g} must lie between {limits}")
            # A notch needs some 1 / width s to settle, so first the steady part of the line goes: a sine and a cosine
            # fitted to the trial, tapered so that other frequencies hardly enter the fit.
            wave = np.stack([np.sin(2 * np.pi * hertz * time), np.cos(2 * np.pi * hertz * time)])
            self.lines.append((wave, (wave * taper).T @ np.linalg.inv((wave * taper) @ wave.T)))
            filters.append(scipy.signal.tf2sos(*scipy.signal.iirnotch(hertz, hertz / width, rate)))
            self.done.append(f"notch {hertz:g} Hz ({width:.2g} Hz wide)")
        if not band:
            return filters
        check_band(band, rate)
        low, high = band
        if (low and low < 1 / length) or (high or rate / 2) - low < 1 / length:
            least = f"low edge and width must be at least {1 / length:.3g} Hz; filter the continuous recording instead"
            raise ValueError(f"band=[{low:g}, {high:g}] cannot be told apart in {trials}: {least}")
        kind = "bandpass" if low and high else "highpass" if low else "lowpass"
        edges = [low, high] if low and high else low or high
        filters.append(scipy.signal.butter(FILTER_ORDER, edges, kind, fs=rate, output="sos"))
        self.done.append(f"{kind} {low:g} to {high or rate / 2:g} Hz")
        return filters

    def _set_rate(self) -> None:
        wanted, old = self.options.resample, self.sfreq
        self.ratio = Fraction(wanted / old).limit_denominator(1000)
        if wanted <= 0 or abs(float(self.ratio) * old - wanted) > 1e-6 * wanted:
            raise ValueError(f"resample={wanted:g} Hz is no simple ratio of the files' {old:g} Hz: choose another rate")
        self.n_times = -(-self.n_times * self.ratio.numerator // self.ratio.denominator)
        self.sfreq = old * self.ratio.numerator / self.ratio.denominator
        self.done.append(f"resampled from {old:g} to {wanted:g} Hz")

    def _samples(self, name: str) -> slice | None:
        """The samples of an option that gives an interval in seconds."""
        interval = getattr(self.options, name)
        if not interval:
            return None
        first, last = ([round((s - self.tmin) * self.sfreq) for s in interval] + [0, 0])[:2]
        if len(interval) != 2 or not 0 <= first < last <= self.n_times:
            within = f"the trials, which last from {self.tmin:g} to {self.tmin + self.n_times / self.sfreq:g} s"
            raise ValueError(f"{name}={list(interval)} must be two rising times within {within}")
        if name == "baseline":
            self.done.append(f"baseline {interval[0]:g} to {interval[1]:g} s")
        return slice(first, last)

    def _by_image(self, split: str) -> list[list[int]]:
        """The trials of each (subject, image) of a split, in the order in which they first come."""
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        for index in tqdm(self.study.splits[split], unit="trial", desc=f"images of {split}", disable=None):
            try:
                groups[self.study.facts(index)[:2]].append(index)
            except ValueError as error:
                self._left_out(error)
        return list(groups.values())

    def _left_out(self, error: ValueError) -> None:
        """A fault met while many trials are looked at. If faults are collected, whoever reads that trial lists it."""
        if not self.fault.collect:
            raise error

    def _learn_whitening(self) -> None:
        """Subject -> what whitens its EEG, from train: by the repetitions of each image, or by each trial alone."""
        kind, train = self.options.whiten, self.study.splits["train"]
        conditions = self._by_image("train") if kind == "time" else [[index] for index in train]

        def read(members: list[int]) -> tuple[int, np.ndarray] | None:
            try:
                trials = [self.study.trial(index) for index in members]
                return trials[0].subject, np.stack([self._signal(trial) for trial in trials])
            except ValueError as error:
                self._left_out(error)
                return None

        self.whiteners = learn_whiteners(kind, conditions, read, self.n_chans, self.notes)
        self.units = "noise standard deviations"
        self.done.append(f"whitened by the noise of each subject's train trials ({kind})")

    def _group(self) -> None:
        """Averages in the place of trials: `members`, and splits that number them."""
        k, where = self.options.repetition_groups, self.options.repetitions
        self.splits, sizes, rest = {}, set(), 0
        for split, indices in self.study.splits.items():
            groups = self._by_image(split) if where in (split, "all") else [[index] for index in indices]
            if where in (split, "all") and k:
                for members in (members for members in groups if len(members) < k):
                    subject, image = self.study.facts(members[0])[:2]
                    few = f"image {image} has {len(members)} trials of subject {subject} in {split}"
                    raise ValueError(f"{few}, and repetition_groups={k} needs at least as many: give a smaller number")
                rest += sum(len(members) % k for members in groups)
                groups = [m[i : i + k] for m in groups for i in range(0, len(m) - k + 1, k)]
            if where in (split, "all"):
                sizes |= {len(members) for members in groups}
            self.splits[split] = list(range(len(self.members), len(self.members) + len(groups)))
            self.members += groups
        if rest:
            self.notes.append(f"{rest} trials were left out: they fill no group of {k} repetitions")
        of = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes, default=0)} to {max(sizes, default=0)}"
        splits = "every split" if where == "all" else "test"
        self.done.append(f"in {splits} a trial is the mean of {of} trials of one subject and image")


def check_band(band: list[float], rate: float) -> None:
    """ValueError unless `band` is [low, high] in Hz below half of `rate`, 0 for an open end."""
    if len(band) != 2 or min(band) < 0 or max(band) >= rate / 2 or not (band[1] > band[0] or (band[0] and not band[1])):
        wanted = f"[low, high] in Hz, rising, below half of the sampling rate of {rate:g} Hz; 0 leaves an end open"
        raise ValueError(f"band={list(band)} must be {wanted}")


SMALLEST_NOISE = 1e-10  # variance, of the largest: a direction with less is rounding, as after an average reference


class NoiseCovariance:
    """Running mean of the covariances of many conditions, shrunk by as much as they disagree.

    That is the shrinkage of Ledoit & Wolf 2004 with a condition's covariance in the place of their sample's outer
    product: (error of the mean) / (distance of the mean from its target), towards no correlation between channels.
    Published code (Gifford et al. 2022) shrinks each condition before averaging, which leaves a bias however many
    conditions there are; here the shrinkage vanishes as they grow.
    """

    def __init__(self, n_chans: int) -> None:
        self.count, self.total, self.squares = 0, np.zeros((n_chans, n_chans)), np.zeros((n_chans, n_chans))

    def add(self, x: np.ndarray) -> None:
        """One condition: x (sets, n, n_chans), whose unbiased covariance over n is averaged over the sets."""
        x = x - x.mean(axis=1, keepdims=True)
        covariance = np.einsum("sni,snj->ij", x, x, optimize=True) / (len(x) * (x.shape[1] - 1))
        self.count += 1
        self.total += covariance
        self.squares += covariance**2

    def __call__(self) -> np.ndarray:
        """The covariance. Channels are compared in units of their standard deviation, which is not changed."""
        mean = self.total / self.count
        spread = np.sqrt(np.diag(mean))
        scale = np.outer(spread, spread) + (np.outer(spread, spread) == 0)
        error = (self.squares / self.count - mean**2) / scale**2 / max(self.count - 1, 1)
        distance = ((mean - np.diag(np.diag(mean))) / scale) ** 2
        shrinkage = min(1.0, float(error.sum()) / max(float(distance.sum()), 1e-30))
        return (1 - shrinkage) * mean + shrinkage * np.diag(np.diag(mean))


def learn_whiteners(
    kind: str,
    conditions: list[list[int]],
    read: Callable[[list[int]], tuple[int, np.ndarray] | None],
    n_chans: int,
    notes: list[str],
) -> dict[int, np.ndarray]:
    """Subject -> inverse square root (n_chans, n_chans) of its noise covariance, averaged over conditions.

    As in Gifford et al. 2022 (who take the test images too; we do not). A condition is the repetitions of an image,
    whose noise is what differs between them at each time (kind "time"), or one trial, over its time (kind "epochs").
    read: subject and EEG (repetitions, n_chans, n_times) of a condition, one of which is in memory at a time; None: to
    be left out. Directions without noise are said in `notes`.
    """
    time = kind == "time"
    noise: dict[int, NoiseCovariance] = {}
    for members in tqdm(conditions, unit="condition", desc="noise", disable=None):
        if (time and len(members) < 2) or not (found := read(members)):
            continue
        subject, x = found
        noise.setdefault(subject, NoiseCovariance(n_chans)).add(x.transpose(2, 0, 1) if time else x.transpose(0, 2, 1))
    if not noise:
        several = "whiten=time needs images that a subject saw more than once in train: whiten=epochs needs none"
        raise ValueError(several if time else "whiten=epochs finds no train trial to learn the noise from")
    whiteners = {}
    for subject, own in noise.items():
        values, vectors = np.linalg.eigh(own())
        kept = values > SMALLEST_NOISE * values[-1]
        if not kept.any():
            raise ValueError(f"whiten={kind}: the EEG of subject {subject} never moves in train")
        if not kept.all():
            notes.append(
                f"whitening: the {n_chans} channels of subject {subject} are worth {kept.sum()} (average "
                "reference, copied or flat channels); the rest of the directions is left at zero"
            )
        vectors, values = vectors[:, kept], values[kept]
        whiteners[subject] = vectors / np.sqrt(values) @ vectors.T
    return whiteners
