"""Reader of a lab's own recordings: tables of time, channels and a marker, described by one YAML file (`StudyFile`).

Each table is one run: band-passed and resampled as a whole, then cut at its markers (recordings_tables.py). Nothing is
computed over several runs, so no epoch sees data of another run. The split is by run, so a picture may be on both
sides: what is scored is the EEG of runs never trained on. Where a marker stands for a category, the picture of a trial
is drawn among the category's, from the trial's key alone, and the manifest says that the exact one was not recorded.

EEG leaves here in microvolts, float32, (n_chans, n_times), both ends of the window included.
"""

import dataclasses
import glob
import itertools
import os
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from neuroimagen.config import load_config, option, path_option
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.controls import BY_TRIAL, split_images, split_runs
from neuroimagen.studies.recordings_tables import (
    Marker,
    StudyFile,
    across_gaps,
    check_study,
    cut_epochs,
    n_times,
    plain_marker,
    read_table,
)
from neuroimagen.studies.study import Facts, Faults, Study, Trial
from neuroimagen.text_files import read_table as read_any_table
from neuroimagen.text_files import read_text

UNKNOWN_PICTURE = "category only: the exact picture was not recorded"
MEANT_PICTURE = "one of the averaged trials' pictures"


@dataclasses.dataclass
class RecordingConfig(StudyConfig):
    """`dataset=recording`; what is given here goes before what the study file says."""

    recording: str = path_option("", "the study's YAML file; what is given below goes before what it says")
    ignore_markers: list[str] = option([], "marker values that are no picture onsets, e.g. offset or response codes")
    splits: Literal["official", "by_image", "trials"] = option(
        "official", "official: by run, as hold_out says; trials: wrong on purpose", newer=True
    )
    hold_out: list[int] = option([], "test runs of each subject, -1 is the last; empty: as the file says")
    average: int = option(0, "test on averages of so many trials of one class; 0: as the file says")
    shuffle_labels: bool = option(False, "the older name of control_labels=shuffled")


@dataclasses.dataclass
class Run:
    """One run as epochs (n, n_chans, n_times) in microvolts, with the marker value and onset (s) of each."""

    subject: int
    name: str
    number: int
    epochs: np.ndarray
    values: np.ndarray
    onsets: np.ndarray


class Recordings(Study):
    """The study that `recording` describes. ValueError, in one sentence, for whatever in the files is not so."""

    dataset = "recording"
    split_by = "run"
    units = "uV"
    own_runs = True

    def __init__(self, config: RecordingConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        if not config.recording:
            raise ValueError("dataset=recording needs recording=STUDY.yaml (see configs/n170_study.yaml)")
        if config.splits == "by_image":
            raise ValueError("dataset=recording splits by run: leave splits=official, and give hold_out=...")
        path = self.path = Path(config.recording)
        study = self.study = load_config(StudyFile, [f"config={path}"], "shards")
        self.seed = config.seed
        for name in ("ignore_markers", "hold_out", "average"):
            setattr(study, name, getattr(config, name) or getattr(study, name))
        study.shuffle_labels |= config.shuffle_labels or config.control_labels == "shuffled"
        if study.shuffle_labels:
            self.control = f"CONTROL: labels shuffled within each run (seed {config.seed})"
        self.split_by = "trial" if config.splits == "trials" else "run"
        study.subjects = [config.subject] if config.subject else study.subjects
        self.inputs = [path]
        self.markers = self._markers()
        check_study(path, study, self.markers)
        wnids: dict[str, str] = {}
        for marker in self.markers.values():
            if wnids.setdefault(marker.name, marker.wnid or marker.name) != (marker.wnid or marker.name):
                raise ValueError(f"{path}: markers of class {marker.name!r} have two wnids: give them the same")
        self.labels = {name: label for label, name in enumerate(wnids)}
        self.classes = [{"label": label, "wnid": wnids[name], "name": name} for name, label in self.labels.items()]
        self.channels = list(study.channels)
        self.n_chans = len(study.channels)
        self.sfreq = study.resample or study.rate
        self.n_times = n_times(study)
        self.tmin = round(study.window[0] * self.sfreq) / self.sfreq
        self.before = {"band": list(study.band)} | ({"baseline": list(study.baseline)} if study.baseline else {})
        self.trials: list[Trial] = []
        self.splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        runs = self._runs()
        try:
            self._split(runs)
            self._say(runs)
        except ValueError as error:
            left_out = [note for note in self.notes if "was left out" in note]
            raise ValueError("; ".join([str(error), *left_out])) from None

    def __len__(self) -> int:
        return len(self.trials)

    def trial(self, index: int) -> Trial:
        return self.trials[index]

    def facts(self, index: int) -> Facts:
        trial = self.trials[index]
        onset = None if trial.extra["averaged"] > 1 else trial.extra["onset_s"]
        return Facts(trial.subject, trial.image, trial.label, trial.extra["run"], onset, trial.jpeg)

    def _below(self, pattern: str) -> str:
        """A pattern of the study file, from the study file's folder."""
        return str(Path(glob.escape(str(self.path.parent))) / pattern)

    def _markers(self) -> dict[str, Marker]:
        """Marker value -> Marker, of the YAML file or the table it names."""
        markers = list(self.study.markers)
        if self.study.markers_file:
            table = self.path.parent / self.study.markers_file
            try:
                content = read_any_table(read_text(table), table, ("value", "name", "pictures"), fold=True)
            except OSError as error:
                raise ValueError(f"{self.path}: markers_file {table} cannot be read ({error.strerror})") from None
            for _, cells in content.rows:
                row = dict(zip(content.header, map(str.strip, cells), strict=True))
                markers.append(Marker(row["value"], row["name"], row["pictures"], row.get("wnid", "")))
            self.inputs.append(table)
        self.pictures: dict[str, list[Path]] = {}
        for marker in markers:
            value, pattern = plain_marker(marker.value), self._below(marker.pictures)
            found = sorted(Path(p) for p in glob.glob(pattern))
            if not found:
                raise ValueError(f"{self.path}: marker {marker.value} has no picture at {pattern}")
            if not value or value in self.pictures:
                raise ValueError(f"{self.path}: marker value {marker.value!r} is 0, empty or given twice")
            self.pictures[value] = found
        self.picture_folders = sorted({picture.parent for found in self.pictures.values() for picture in found})
        return dict(zip(self.pictures, markers, strict=True))

    def _tables(self) -> list[tuple[int, str, Path, str]]:
        """Subject, run, file and a name for it, of each table of the subjects that are wanted, by subject and run."""
        study, pattern, found = self.study, self._below(self.study.files), []
        paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True))
        if not paths:
            raise ValueError(f"{self.path}: no table at {pattern}")
        names = Counter(path.name for path in paths)
        for path in paths:
            below = Path(os.path.relpath(path, self.path.parent)).as_posix()
            try:
                match = re.search(study.file_name, path.name) or re.search(study.file_name, below)
                number, run = (match["subject"], match["run"]) if match else ("0", "none")
            except (re.error, IndexError):
                number, run = "", ""
            if not (number.isdecimal() and run):
                wanted = "a regular expression with (?P<subject>\\d+) and (?P<run>...)"
                raise ValueError(f"{self.path}: file_name must be {wanted}")
            if not match:
                raise ValueError(f"{path}: its name does not match file_name {study.file_name!r} of {self.path}")
            found.append((int(number), run, path, path.name if names[path.name] == 1 else below))
        missing = set(study.subjects) - {subject for subject, *_ in found}
        if missing:
            raise ValueError(f"{self.path}: no table of subject {min(missing)} at {pattern}")
        return sorted(table for table in found if not study.subjects or table[0] in study.subjects)

    def _runs(self) -> list[Run]:
        """The runs by subject and name, without copies and runs with hardly a trial."""
        study, dropped, total = self.study, 0, 0
        seen: dict[str, str] = {}  # digest -> the table that has it
        runs: list[Run] = []
        tables = self._tables()
        for subject, name, path, shown in tables:
            table = read_table(path, study)
            if first := seen.get(table.digest):
                self.notes.append(f"{shown} holds the same data as {first} and was left out")
                if self.fault.collect:
                    self.fault(f"{path} holds the same data as {first}: remove the one whose name is wrong")
                continue
            seen[table.digest] = shown
            self.inputs.append(path)
            epochs, kept = cut_epochs(table, study)
            self.notes += [f"{shown}: {note}" for note in table.notes]
            if unknown := sorted(set(table.values) - set(self.markers)):
                remedy = "add it to markers, or to ignore_markers if no picture appears at it"
                raise ValueError(f"{path} has marker {unknown[0]}, which {self.path} does not name: {remedy}")
            if across := int(across_gaps(table, study).sum()):
                self.notes[-1] += f"; {across} trials across them were left out"
            if len(kept) < max(study.fewest_trials, 1):
                self.notes.append(f"{shown} was left out: {len(kept)} usable trials of {len(table.values)}")
                continue
            total, dropped = total + len(table.values), dropped + len(table.values) - len(kept)
            values, place = np.array([table.values[i] for i in kept]), sum(run.subject == subject for run in runs)
            if study.shuffle_labels:
                values = np.random.default_rng([self.seed, subject, place]).permutation(values)
            runs.append(Run(subject, name, place, epochs, values, table.seconds[kept]))
        for subject in sorted({subject for subject, *_ in tables} - {run.subject for run in runs}):
            self.notes.append(f"subject {subject} is not in the study: all of its runs were left out")
        if dropped:
            gap = " or by a gap" if any("lost in" in note for note in self.notes) else ""
            cut = f"as artefacts or cut off by the end of a run{gap}"
            self.notes.append(f"{dropped} of {total} trials were left out {cut}")
        return runs

    def _split(self, runs: list[Run]) -> None:
        """Whole runs to test; of each other run the last part to val, what shares no sample with it to train."""
        study = self.study
        trials = [(run.subject, str(run.number), float(onset)) for run in runs for onset in run.onsets]
        length = study.window[1] - study.window[0]
        sides = iter(split_runs(trials, study.hold_out, study.val_tail, length, str(self.path)))
        if self.split_by == "trial":
            if study.average > 1:
                raise ValueError(f"{self.path}: splits=trials is of single trials: give average=1")
            shown = [(self.labels[self.markers[value].name], "") for run in runs for value in run.values]
            sides = iter(split_images(shown, list(self.labels), self.seed, str(self.path), "trials"))
        for run in runs:
            own = list(itertools.islice(sides, len(run.onsets)))
            if "test" in own and self.split_by == "run":
                self._add_test(run)
                continue
            for i, side in enumerate(own):
                if side:
                    self._add(side, run, i, run.epochs[i])

    def _add_test(self, run: Run) -> None:
        """Single trials, or averages of `average` trials of one class, each trial in one; a remainder is dropped.

        An average of k is multiplied by sqrt(k): its noise, nearly all of it, then has the level that decoders were
        trained at. (Unscaled averages look to them like trials of a very small response.)
        """
        k = self.study.average
        if k == 1:
            for i in range(len(run.values)):
                self._add("test", run, i, run.epochs[i])
            return
        rng = np.random.default_rng([self.seed, run.subject, run.number, k])
        labels = np.array([self.labels[self.markers[value].name] for value in run.values])
        for label in range(len(self.classes)):
            members = rng.permutation(np.flatnonzero(labels == label))
            for group in members[: len(members) // k * k].reshape(-1, k):
                self._add("test", run, int(group[0]), run.epochs[group].mean(axis=0) * k**0.5)

    def _add(self, split: str, run: Run, i: int, eeg: np.ndarray) -> None:
        value = str(run.values[i])
        marker, pictures = self.markers[value], self.pictures[value]
        k = self.study.average if split == "test" else 1
        key = f"s{run.subject}_r{run.number}_t{i:05d}" + (f"_mean{k}" if k > 1 else "")
        picture = pictures[zlib.crc32(key.encode()) % len(pictures)]
        self.splits[split].append(len(self.trials))
        extra = {"run": run.name, "onset_s": round(float(run.onsets[i]), 3), "averaged": k}
        extra["picture"] = UNKNOWN_PICTURE if len(pictures) > 1 else MEANT_PICTURE if k > 1 else "as recorded"
        facts = Facts(run.subject, picture.stem, self.labels[marker.name], picture=picture)
        self.trials.append(self.make_trial(key, eeg, facts, extra))

    def _say(self, runs: list[Run]) -> None:
        """The protocol in one sentence, and a check that every split has every class."""
        study = self.study
        for split, indices in self.splits.items():
            absent = set(self.labels) - {self.trials[i].class_name for i in indices}
            if absent and split != "val":
                raise ValueError(f"{self.path}: split {split} has no trial of class {min(absent)!r}")
        count = Counter(run.subject for run in runs)
        held = [
            f"run {run.number + 1} of {count[run.subject]} of subject {run.subject}"
            for run in runs
            if run.number in {i % count[run.subject] for i in study.hold_out}
        ]
        parts = [
            f"test: {', '.join(held)}",
            f"val: the last {study.val_tail:.0%} of each other run; train: the rest of those runs",
        ]
        if self.split_by == "trial":
            parts = [BY_TRIAL.format(self.seed)]
        if study.average > 1:
            parts.append(
                f"a test trial is the mean of {study.average} trials of one class and run, times {study.average}**0.5 "
                "so that noise keeps the level of single trials"
            )
        if any(len(self.pictures[value]) > 1 for value in self.markers):
            parts.append(
                "the exact picture of a trial was not recorded, only its class: one of that class stands for it"
            )
        if study.shuffle_labels:
            parts.append(self.control)
        self.protocol = "; ".join(parts)
