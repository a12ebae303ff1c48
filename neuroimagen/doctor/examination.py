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
from tqdm import tqdm

from neuroimagen.doctor.copies import Copies
from neuroimagen.doctor.picture_hash import Fingerprint, fingerprint
from neuroimagen.pictures import SUFFIXES
from neuroimagen.shards.tars import encode_eeg, open_picture, read_picture
from neuroimagen.studies.study import Study, Trial

# A clipped channel stays at its largest or smallest value for a good part of the trial; noise is there once or twice.
CLIPPED_SHARE, CLIPPED_LEAST = 0.05, 8  # of the samples of a trial, and samples
# ... and much longer than at the value next to it; what has few values is coarse, and its largest is often there.
CLIPPED_TIMES, COARSE = 4, 32
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
    done: tuple[str, ...] = ()  # to see it (seen.OPEN)


class Examination:
    """What one pass over `study` finds; see `examine`. Trials are numbered as they were read, split after split."""

    def __init__(self, study: Study, eeg_dtype: str, background: str = "", orientation: str = "") -> None:
        self.study, self.eeg_dtype, self.background, self.orientation = study, eeg_dtype, background, orientation
        n = sum(len(indices) for indices in study.splits.values())
        self.planned = n
        self.wnids = {c["label"]: c["wnid"] for c in study.classes}
        self.keys: list[str] = []
        self.names: list[str] = []  # key, and where in which recording if the reader knows
        self.recording: list[str] = []  # run and subject, or subject
        self.split: list[str] = []
        self.subject: list[int] = []
        self.label: list[int] = []
        self.order: list[tuple[Any, ...]] = []  # what sorts the trials of a subject in time, or else as in the file
        self.offset = np.zeros(n, np.float32)  # of each trial: its mean by its standard deviation, median over channels
        # (subject, remedy) -> what `neuroimagen shards` says of the first trial that it refuses so, and all of them
        self.refused: dict[tuple[int, str], tuple[str, list[int]]] = {}
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
        self.same_eeg: dict[tuple[int, int], float] = {}  # (trial, later trial) -> samples between what they share
        self.first_eeg: dict[bytes, int] = {}
        self.copies = Copies(study.n_chans, study.n_times, study.sfreq)
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
        run = " ".join(str(trial.extra[name]) for name in ("session", "run") if trial.extra.get(name))
        self.recording.append(f"{run} of subject {trial.subject}" if run else f"subject {trial.subject}")
        epoch = f"epoch {trial.extra['number']}" if "number" in trial.extra else f"{place} s"
        self.names.append(f"{trial.key} ({run}, {epoch})" if run else trial.key)
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
        for channel in np.flatnonzero(clipped):
            counts = np.unique(eeg[channel], return_counts=True)[1]
            ends = max(counts[0] / counts[1], counts[-1] / counts[-2])
            clipped[channel] = len(counts) > COARSE and ends > CLIPPED_TIMES
        self._mark("clipped", trial.subject, clipped, number)
        self.spread[number] = eeg.std(axis=1)
        try:
            encode_eeg(eeg, self.eeg_dtype, trial.key)
        except ValueError as error:
            said = str(error).partition(": ")[2]
            self.refused.setdefault((trial.subject, said.partition("float16")[2]), (said, []))[1].append(number)
        if not flat.all():
            self.offset[number] = np.median(np.abs(eeg.mean(axis=1))[~flat] / self.spread[number, ~flat])
            self.copies.add(number, eeg)
            first = self.first_eeg.setdefault(hashlib.blake2b(eeg.data, digest_size=16).digest(), number)
            if first != number:
                self.same_eeg[first, number] = 0.0
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
                self.pictures[trial.image] = look_at(trial.jpeg, trial.label, name, self.background, self.orientation)
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


def look_at(source: bytes | Path, label: int, where: str, background: str = "", orientation: str = "") -> Picture:
    """Read and decode one picture whole; ValueError if that cannot be done."""
    data = read_picture(source)[0] if isinstance(source, Path) else source
    seen = open_picture(data, where, background, orientation)
    picture = seen.image.convert("RGB")
    full = picture.size
    look = fingerprint(picture)
    picture.thumbnail((EXAMPLE_SIZE, EXAMPLE_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Picture(label, hashlib.sha256(data).hexdigest(), look, full, set(), set(), buffer.getvalue(), seen.done)


def examine(study: Study, eeg_dtype: str = "float32", background: str = "", orientation: str = "") -> Examination:
    """Read every trial of every split once. Faults of trials and pictures go to `study.fault`, which must collect.

    eeg_dtype: that of the shards to be made, which may refuse a trial; background, orientation: of pictures, likewise.
    """
    assert study.fault.collect, "a doctor lists all faults"
    found, start = Examination(study, eeg_dtype, background, orientation), time.perf_counter()
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
    found.same_eeg = found.copies.pairs() | found.same_eeg
    there = {path for folder in study.picture_folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    found.orphans = sorted(there - found.used_files)
    found.seconds = time.perf_counter() - start
    return found
