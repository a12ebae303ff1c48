"""The one pass that `neuroimagen check` makes over a study: what there is, what is broken, and running statistics.

Memory: of each trial stay one number a channel, its key and a hash; of each subject the sums of EEG and spectra; of at
most MOST_SPECTRA trials a spectrum. Every picture is read and decoded once.
"""

import dataclasses
import hashlib
import io
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # whose parts are imported when first used
from PIL import Image
from tqdm import tqdm

from neuroimagen.data.picture_hash import Fingerprint, fingerprint
from neuroimagen.data.pictures import SUFFIXES
from neuroimagen.data.shards import check_picture
from neuroimagen.data.study import Study, Trial
from neuroimagen.machine import pass_on

# A clipped channel stays at its largest or smallest value for a good part of the trial; noise is there once or twice.
CLIPPED_SHARE, CLIPPED_LEAST = 0.05, 8  # of the samples of a trial, and samples
LARGEST_PICTURE = 64 << 20  # bytes; the pictures of the published studies have some 100 kB
MOST_SPECTRA = 20_000  # trials; of a larger study every second, third ... is used
EXAMPLES = 3  # pictures of each class that the page shows
EXAMPLE_SIZE = 88  # px


@dataclasses.dataclass
class Picture:
    """One image of a study, looked at once."""

    label: int
    digest: str
    look: Fingerprint
    size: tuple[int, int]
    splits: set[str]
    subjects: set[int]
    example: bytes = b""  # a small JPEG, of the first of each class


class Examination:
    """What one pass over `study` finds; see `examine`. Trials are numbered as they were read, split after split."""

    def __init__(self, study: Study) -> None:
        self.study = study
        n = sum(len(indices) for indices in study.splits.values())
        self.planned = n
        self.wnids = {c["label"]: c["wnid"] for c in study.classes}
        self.keys: list[str] = []
        self.split: list[str] = []
        self.subject: list[int] = []
        self.label: list[int] = []
        self.order: list[tuple[Any, ...]] = []  # what sorts the trials of a subject in time, or else as in the file
        self.spread = np.full((n, study.n_chans), np.nan, np.float32)  # standard deviation of each trial and channel
        # kind -> (subject, channel) -> trials; what is flat has no more than one value in a trial
        self.channels: dict[str, dict[tuple[int, int], list[int]]] = {"nan": {}, "flat": {}, "clipped": {}}
        self.window = min(study.n_times, max(8, round(study.sfreq)))  # samples; bins of 1 Hz, or what a trial allows
        self.frequencies = np.fft.rfftfreq(self.window, 1 / study.sfreq)
        self.every = -(-n // MOST_SPECTRA) or 1  # trial whose spectrum is taken
        self.spectra: dict[int, list[np.ndarray]] = defaultdict(list)  # subject -> (n_frequencies,), mean over channels
        self.channel_spectra: dict[int, np.ndarray] = {}  # subject -> sum over trials (n_chans, n_frequencies)
        self.evoked: dict[int, np.ndarray] = {}  # subject -> sum over trials (n_chans, n_times)
        self.summed: Counter[int] = Counter()  # subject -> trials in those sums
        self.pictures: dict[str, Picture] = {}
        self.examples: dict[int, list[str]] = defaultdict(list)  # label -> the first images of it
        self.bad_pictures: set[str] = set()
        self.used_files: set[Path] = set()
        self.same_eeg: list[tuple[int, int]] = []
        self.first_eeg: dict[bytes, int] = {}
        self.left_out = 0  # trials that could not be read
        self.orphans: list[Path] = []
        self.seconds = 0.0

    def __len__(self) -> int:
        """Trials read."""
        return len(self.keys)

    @property
    def subjects(self) -> list[int]:
        return sorted(set(self.subject))

    def add(self, split: str, index: int, trial: Trial) -> None:
        number = len(self.keys)
        if self.wnids.get(trial.label) != trial.wnid:
            self.study.fault(
                f"trial {trial.key} has label {trial.label} ({trial.wnid}), which the study does not define"
            )
        self.keys.append(trial.key)
        self.split.append(split)
        self.subject.append(trial.subject)
        self.label.append(trial.label)
        place = trial.extra.get("onset_s", trial.extra.get("trial_index", index))
        self.order.append((str(trial.extra.get("run", "")), place))
        where = self.study.where(index) if hasattr(self.study, "where") else f"trial {trial.key}"
        self._add_picture(split, trial, where)
        self._add_eeg(number, trial)

    def _add_eeg(self, number: int, trial: Trial) -> None:
        study, eeg = self.study, np.ascontiguousarray(trial.eeg, np.float32)
        if eeg.shape != (study.n_chans, study.n_times):
            study.fault(f"trial {trial.key} has EEG of shape {eeg.shape} instead of {(study.n_chans, study.n_times)}")
            return
        low, high = eeg.min(axis=1), eeg.max(axis=1)
        finite = np.isfinite(low) & np.isfinite(high)  # NaN and infinity go through min and max
        self._mark("nan", trial.subject, ~finite, number)
        if not finite.all():
            return
        flat = low == high
        self._mark("flat", trial.subject, flat, number)
        at_end = np.maximum((eeg == low[:, None]).sum(axis=1), (eeg == high[:, None]).sum(axis=1))
        clipped = ~flat & (at_end >= max(CLIPPED_LEAST, CLIPPED_SHARE * study.n_times))
        self._mark("clipped", trial.subject, clipped, number)
        self.spread[number] = eeg.std(axis=1)
        if not flat.all():
            first = self.first_eeg.setdefault(hashlib.blake2b(eeg.data, digest_size=16).digest(), number)
            if first != number:
                self.same_eeg.append((first, number))
        if trial.subject not in self.evoked:
            self.evoked[trial.subject] = np.zeros(eeg.shape)
            self.channel_spectra[trial.subject] = np.zeros((study.n_chans, len(self.frequencies)))
        self.evoked[trial.subject] += eeg
        self.summed[trial.subject] += 1
        if number % self.every == 0:
            _, density = scipy.signal.welch(eeg, study.sfreq, nperseg=self.window, detrend="constant")
            self.spectra[trial.subject].append(density.mean(axis=0))
            self.channel_spectra[trial.subject] += density

    def _mark(self, kind: str, subject: int, wrong: np.ndarray, number: int) -> None:
        for channel in np.flatnonzero(wrong):
            self.channels[kind].setdefault((subject, int(channel)), []).append(number)

    def _add_picture(self, split: str, trial: Trial, where: str) -> None:
        if isinstance(trial.jpeg, Path):
            self.used_files.add(trial.jpeg)
        if trial.image in self.bad_pictures:
            return
        if trial.image not in self.pictures:
            name = str(trial.jpeg) if isinstance(trial.jpeg, Path) else f"of {where}"
            try:
                self.pictures[trial.image] = look_at(trial.jpeg, trial.label, name)
            except ValueError as error:
                self.study.fault(f"{error} (first shown in trial {trial.key})")
                self.bad_pictures.add(trial.image)
                return
            examples = self.examples[trial.label]
            if len(examples) < EXAMPLES:
                examples.append(trial.image)
            else:
                self.pictures[trial.image].example = b""
        picture = self.pictures[trial.image]
        picture.splits.add(split)
        picture.subjects.add(trial.subject)
        if picture.label != trial.label:
            self.study.fault(
                f"trial {trial.key} has label {trial.label}, an earlier one of image {trial.image} had {picture.label}"
            )


def look_at(source: bytes | Path, label: int, where: str) -> Picture:
    """Read and decode one picture whole; ValueError if that cannot be done."""
    if isinstance(source, Path):
        try:
            size = source.stat().st_size
            if size > LARGEST_PICTURE:
                raise ValueError(f"picture {where} has {size / 1e6:.0f} MB, which no stimulus has: replace the file")
            source = source.read_bytes()
        except OSError as error:
            pass_on(error)
            raise ValueError(f"picture {where} cannot be read ({error.strerror}): replace the file") from None
    check_picture(source, where)
    with Image.open(io.BytesIO(source)) as opened:
        full = opened.size
        opened.draft("RGB", (4 * EXAMPLE_SIZE, 4 * EXAMPLE_SIZE))  # a JPEG is decoded at a quarter or so: much faster
        picture = opened.convert("RGB")
    look = fingerprint(picture)
    picture.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Picture(label, hashlib.sha256(source).hexdigest(), look, full, set(), set(), buffer.getvalue())


def examine(study: Study) -> Examination:
    """Read every trial of every split once. Faults of trials and pictures go to `study.fault`, which must collect."""
    assert study.fault.collect, "a doctor lists all faults"
    found, start = Examination(study), time.perf_counter()
    total = sum(map(len, study.splits.values()))
    with tqdm(total=total, unit="trial", desc="check", disable=None) as progress:
        for split, indices in study.splits.items():
            for index in indices:
                try:
                    found.add(split, index, study.trial(index))
                except ValueError as error:
                    study.fault(str(error))
                    found.left_out += 1
                progress.update()
    finish = getattr(study, "finish", None)
    if finish is not None:
        finish()
    there = {path for folder in study.picture_folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    found.orphans = sorted(there - found.used_files)
    found.seconds = time.perf_counter() - start
    return found
