"""The one pass that `neuroimagen check` makes over a study: what there is, what is broken, and running statistics.

Memory: of each trial stay a number and a mark a channel, its key and a hash; of each subject the sums of EEG and
spectra; of at most MOST_SPECTRA trials a spectrum. Every picture is read and decoded once.
"""

import dataclasses
import hashlib
import io
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy  # whose parts are imported when first used
from tqdm import tqdm

from neuroimagen.doctor.copies import Copies
from neuroimagen.doctor.picture_hash import grey_copy
from neuroimagen.pictures import SUFFIXES
from neuroimagen.shards.tars import encode_eeg, open_picture, read_picture
from neuroimagen.studies.study import Study, Trial

# A clipped channel stays at its largest or smallest value for a good part of the trial; noise is there once or twice.
CLIPPED_SHARE, CLIPPED_LEAST = 0.05, 8  # of the samples of a trial, and samples
# ... and much longer than at the value next to it; what has few values is coarse, and its largest is often there.
CLIPPED_TIMES, COARSE = 4, 32
NAN, FLAT, CLIPPED = 1, 2, 3  # what is wrong with a channel in a trial; flat: no more than one value
LINES = (50, 60)  # Hz, mains
MOST_SPECTRA = 20_000  # trials; of a larger study every second, third ... is used
EXAMPLES = 3  # pictures of each class that the page shows


class Seen(NamedTuple):
    """A trial that was read."""

    name: str  # key, and where in which recording if the reader knows
    recording: str  # run and subject, or subject
    split: str
    subject: int
    label: int
    order: tuple[str, Any]  # what sorts the trials of a subject in time, or else as in the file


class Spectrum(NamedTuple):
    """Of one subject."""

    density: np.ndarray  # (n_frequencies,), median over trials of the mean over channels
    lines: dict[int, float | None]  # of LINES: `line_ratio`
    band: tuple[float, float]
    slope: float | None


@dataclasses.dataclass
class Picture:
    """One image of a study, looked at once."""

    label: int
    digest: str
    look: np.ndarray  # `grey_copy`
    done: tuple[str, ...]  # to see it (pictures.OPEN)
    example: bytes  # a small JPEG, of the first of each class
    splits: set[str] = dataclasses.field(default_factory=set)


class Examination:
    """What one pass over `study` finds: every trial of every split is read once.

    Trials are numbered as they were read, split after split. Faults of trials and pictures go to `study.fault`, which
    must collect. eeg_dtype: that of the shards to be made, which may refuse a trial; background, orientation: of
    pictures, likewise.
    """

    def __init__(self, study: Study, eeg_dtype: str = "float32", background: str = "", orientation: str = "") -> None:
        assert study.fault.collect, "a doctor lists all faults"
        start = time.perf_counter()
        self.study, self.eeg_dtype, self.background, self.orientation = study, eeg_dtype, background, orientation
        n = self.planned = sum(len(indices) for indices in study.splits.values())
        self.wnids = {c["label"]: c["wnid"] for c in study.classes}
        self.trials: list[Seen] = []
        self.spread = np.full((n, study.n_chans), np.nan, np.float32)  # standard deviation of each trial and channel
        self.broken = np.zeros((n, study.n_chans), np.uint8)  # NAN, FLAT, CLIPPED; 0: none of them
        self.offset = np.zeros(n, np.float32)  # of each trial: its mean by its standard deviation, median over channels
        # (subject, remedy) -> what `neuroimagen shards` says of the first trial that it refuses so, and all of them
        self.refused: dict[tuple[int, str], tuple[str, list[int]]] = {}
        self.window = min(study.n_times, max(8, round(study.sfreq)))  # samples; bins of 1 Hz, or what a trial allows
        self.frequencies = np.fft.rfftfreq(self.window, 1 / study.sfreq)
        self.every = -(-n // MOST_SPECTRA) or 1  # trial whose spectrum is taken
        self.densities: dict[int, list[np.ndarray]] = defaultdict(list)  # subject -> (n_frequencies,)
        # subject -> sum over trials, of spectra (n_chans, n_frequencies) and of EEG (n_chans, n_times)
        self.channel_spectra: dict[int, Any] = defaultdict(float)
        self.evoked: dict[int, Any] = defaultdict(float)
        self.summed: Counter[int] = Counter()  # subject -> trials in those sums
        self.pictures: dict[str, Picture] = {}
        self.examples: dict[int, list[str]] = defaultdict(list)  # label -> the first images of it
        self.bad_pictures: set[str] = set()
        self.used_files: set[Path] = set()
        self.same_eeg: dict[tuple[int, int], float] = {}  # (trial, later trial) -> samples between what they share
        self.first_eeg: dict[bytes, int] = {}
        self.copies = Copies(study.n_chans, study.n_times, study.sfreq)
        with tqdm(total=n, unit="trial", desc="check", disable=None) as progress:
            for split, indices in study.splits.items():
                for index in indices:
                    try:
                        self._add(split, index, study.trial(index))
                    except ValueError as error:
                        study.fault(str(error))
                    progress.update()
        study.finish()
        self._conclude()
        self.seconds = time.perf_counter() - start

    def __len__(self) -> int:
        """Trials read."""
        return len(self.trials)

    @property
    def left_out(self) -> int:
        """Trials that could not be read."""
        return self.planned - len(self)

    def _add(self, split: str, index: int, trial: Trial) -> None:
        number, extra, subject = len(self), trial.extra, trial.subject
        if self.wnids.get(trial.label) != trial.wnid:
            self.study.fault(
                f"trial {trial.key} has label {trial.label} ({trial.wnid}), which the study does not define"
            )
        place = extra.get("onset_s", extra.get("trial_index", index))
        run = " ".join(str(extra[name]) for name in ("session", "run") if extra.get(name))
        epoch = f"epoch {extra['number']}" if "number" in extra else f"{place} s"
        name = f"{trial.key} ({run}, {epoch})" if run else trial.key
        recording = f"{run} of subject {subject}" if run else f"subject {subject}"
        order = str(extra.get("run", "")), place
        self.trials.append(Seen(name, recording, split, subject, trial.label, order))
        self._add_picture(split, index, trial)
        self._add_eeg(number, trial)

    def _add_eeg(self, number: int, trial: Trial) -> None:
        study, subject, eeg = self.study, trial.subject, np.ascontiguousarray(trial.eeg, np.float32)
        if eeg.shape != (study.n_chans, study.n_times):
            study.fault(f"trial {trial.key} has EEG of shape {eeg.shape} instead of {(study.n_chans, study.n_times)}")
            return
        low, high = eeg.min(axis=1), eeg.max(axis=1)
        finite = np.isfinite(low) & np.isfinite(high)  # NaN and infinity go through min and max
        self.broken[number, ~finite] = NAN
        if not finite.all():
            return
        flat = low == high
        at_end = np.maximum((eeg == low[:, None]).sum(axis=1), (eeg == high[:, None]).sum(axis=1))
        clipped = ~flat & (at_end >= max(CLIPPED_LEAST, CLIPPED_SHARE * study.n_times))
        for channel in np.flatnonzero(clipped):
            counts = np.unique(eeg[channel], return_counts=True)[1]
            ends = max(counts[0] / counts[1], counts[-1] / counts[-2])
            clipped[channel] = len(counts) > COARSE and ends > CLIPPED_TIMES
        self.broken[number, flat], self.broken[number, clipped] = FLAT, CLIPPED
        self.spread[number] = eeg.std(axis=1)
        try:
            encode_eeg(eeg, self.eeg_dtype, trial.key)
        except ValueError as error:
            said = str(error).partition(": ")[2]
            self.refused.setdefault((subject, said.partition("float16")[2]), (said, []))[1].append(number)
        if not flat.all():
            self.offset[number] = np.median(np.abs(eeg.mean(axis=1))[~flat] / self.spread[number, ~flat])
            self.copies.add(number, eeg)
            first = self.first_eeg.setdefault(hashlib.blake2b(eeg.data, digest_size=16).digest(), number)
            if first != number:
                self.same_eeg[first, number] = 0.0
        self.evoked[subject] += eeg.astype(np.float64)
        self.summed[subject] += 1
        if number % self.every == 0:
            _, density = scipy.signal.welch(eeg, study.sfreq, nperseg=self.window, detrend="constant")
            self.densities[subject].append(density.mean(axis=0))
            self.channel_spectra[subject] += density.astype(np.float64)

    def _add_picture(self, split: str, index: int, trial: Trial) -> None:
        source, image = trial.jpeg, trial.image
        if isinstance(source, Path):
            self.used_files.add(source)
        if image in self.bad_pictures:
            return
        try:
            picture = self.pictures.get(image) or self._look_at(source, index, trial)
        except ValueError as error:
            self.study.fault(f"{error} (first shown in trial {trial.key})")
            self.bad_pictures.add(image)
            return
        self.pictures[image] = picture
        picture.splits.add(split)
        if picture.label != trial.label:
            self.study.fault(
                f"trial {trial.key} has label {trial.label}, an earlier one of image {image} had {picture.label}"
            )

    def _look_at(self, source: bytes | Path, index: int, trial: Trial) -> Picture:
        """Read and decode one picture whole; ValueError if that cannot be done."""
        where = f"of {self.study.where(index, trial.key)}" if isinstance(source, bytes) else str(source)
        data = source if isinstance(source, bytes) else read_picture(source)[0]
        seen = open_picture(data, where, self.background, self.orientation)
        picture, buffer, examples = seen.image.convert("RGB"), io.BytesIO(), self.examples[trial.label]
        look = grey_copy(picture)
        if len(examples) < EXAMPLES:
            examples.append(trial.image)
            picture.thumbnail((88, 88))
            picture.save(buffer, "JPEG", quality=85)
        return Picture(trial.label, hashlib.sha256(data).hexdigest(), look, seen.done, buffer.getvalue())

    def _conclude(self) -> None:
        """What is known after the last trial."""
        n = len(self)
        self.same_eeg = self.copies.pairs() | self.same_eeg
        there = {path for folder in self.study.picture_folders for path in folder.rglob("*")}
        self.orphans = sorted(path for path in there - self.used_files if path.suffix.lower() in SUFFIXES)
        self.spread, self.broken, self.offset = self.spread[:n], self.broken[:n], self.offset[:n]
        self.subject = np.array([trial.subject for trial in self.trials], int)
        self.label = np.array([trial.label for trial in self.trials], int)
        self.split = np.array([trial.split for trial in self.trials], "U8")
        self.subjects: list[int] = np.unique(self.subject).tolist()
        self.spectra = {subject: spectrum(self.frequencies, own) for subject, own in sorted(self.densities.items())}

    def channel(self, number: int) -> str:
        names = self.study.channels
        return f"{number} ({names[number]})" if names else str(number)

    def n_trials(self, subject: int) -> int:
        return int((self.subject == subject).sum())

    def by_split(self) -> list[tuple[str, int, int, list[int]]]:
        """(split, trials, images, subjects)"""
        found = []
        for split in self.study.splits:
            images = sum(split in picture.splits for picture in self.pictures.values())
            own = self.subject[self.split == split]
            found.append((split, len(own), images, np.unique(own).tolist()))
        return found

    def amplitudes(self) -> list[dict[str, Any]]:
        """One row a subject: trials, median and 95 % of the channels' standard deviations, and the spectrum."""
        rows = []
        for subject in self.subjects:
            spread = self.spread[self.subject == subject]
            spread = spread[np.isfinite(spread)]
            median, p95 = np.quantile(spread, [0.5, 0.95]).tolist() if len(spread) else (None, None)
            row = {"subject": subject, "trials": self.n_trials(subject), "median": median, "p95": p95}
            rows.append(row | {"spectrum": self.spectra.get(subject)})
        return rows


def spectrum(frequencies: np.ndarray, densities: list[np.ndarray]) -> Spectrum:
    """Of one subject, by the densities (n_frequencies,) of the trials."""
    density = np.median(densities, axis=0)
    lines = {line: line_ratio(frequencies, density, line) for line in LINES}
    return Spectrum(density, lines, band_of(frequencies, density), slope(frequencies, density))


def line_ratio(frequencies: np.ndarray, density: np.ndarray, line: float) -> float | None:
    """Power at `line` Hz / that of its neighbours; None where the bins are too wide, or end before.

    The peak of a Hann window is 2 bins wide on each side; neighbours are the bins 3 to 6 bins away, averaged in the
    logarithm. The side with more power counts, so that neither 1/f nor the edge of a filter looks like a line.
    """
    step = frequencies[1] - frequencies[0]
    away = (frequencies - line) / step
    below, above = (away <= -2.5) & (away > -6.5), (away >= 2.5) & (away < 6.5)
    if step > 5 or min(below.sum(), above.sum()) < 4 or not (density[below | above] > 0).all():
        return None
    expected = max(np.log(density[below]).mean(), np.log(density[above]).mean())
    return float(density[np.abs(away) <= 1].max() / np.exp(expected))


def band_of(frequencies: np.ndarray, density: np.ndarray) -> tuple[float, float]:
    """The frequencies between which 98 % of the power lies."""
    share = np.cumsum(density[1:]) / max(float(density[1:].sum()), 1e-300)
    low, high = np.minimum(np.searchsorted(share, [0.01, 0.99]), len(share) - 1).tolist()
    return float(frequencies[1 + low]), float(frequencies[1 + high])


def slope(frequencies: np.ndarray, density: np.ndarray) -> float | None:
    """Exponent b of power ~ f^b, without alpha (7..13 Hz): from where the spectrum comes near its maximum to 45 Hz,
    or to where 1 % of the power is left. None below 6 bins."""
    f = frequencies
    low = f[np.argmax(density >= 0.7 * density[f >= 2].max())] if (f >= 2).any() else 45
    high = band_of(f, density)[1]
    used = (f >= max(2, low)) & (f <= min(45, 0.9 * high)) & ~((f >= 7) & (f <= 13)) & (density > 0)
    if used.sum() < 6:
        return None
    return float(np.polyfit(np.log(f[used]), np.log(density[used]), 1)[0])
