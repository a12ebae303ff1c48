"""Reader of a lab's own recordings: tables of time, channels and a marker, described by one YAML file (`StudyFile`).

Each table (.csv, .tsv, either with .gz) is one recording run. On each run as a whole: band-pass (mne's zero-phase FIR),
resampling; then one epoch around each marker's onset, baseline, and rejection of epochs whose peak-to-peak amplitude is
too large. Nothing is computed over several runs, so no epoch sees data of another run.

The split is by run. A picture may therefore be on both sides: what is scored is the EEG of runs never trained on. Where
a marker stands for a category and not for one picture, the picture of a trial is drawn among the category's, from the
trial's key alone, and the manifest says that the exact picture was not recorded.

EEG leaves here in microvolts, float32, (n_chans, n_times), both ends of the window included.
"""

import dataclasses
import glob
import os
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from neuroimagen.config import load_config, option, path_option
from neuroimagen.studies.config import StudyConfig
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
from neuroimagen.studies.splits import split_runs
from neuroimagen.studies.study import Faults, Study, Trial
from neuroimagen.text_files import read_table as read_any_table
from neuroimagen.text_files import read_text

UNKNOWN_PICTURE = "category only: the exact picture was not recorded"
MEANT_PICTURE = "one of the averaged trials' pictures"


@dataclasses.dataclass
class RecordingConfig(StudyConfig):
    """`dataset=recording`; what is given here goes before what the study file says."""

    recording: str = path_option("", "the study's YAML file; what is given below goes before what it says")
    ignore_markers: list[str] = option([], "marker values that are no picture onsets, e.g. offset or response codes")
    hold_out: list[int] = option([], "test runs of each subject, -1 is the last; empty: as the file says")
    average: int = option(0, "test on averages of so many trials of one class; 0: as the file says")
    shuffle_labels: bool = option(False, "control, shuffle the labels within each run")


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

    def __init__(self, config: RecordingConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        if not config.recording:
            raise ValueError("dataset=recording needs recording=STUDY.yaml (see configs/n170_study.yaml)")
        path = self.path = Path(config.recording)
        study = self.study = load_config(StudyFile, [f"config={path}"], "shards")
        self.seed = config.seed
        for name in ("ignore_markers", "hold_out", "average"):
            setattr(study, name, getattr(config, name) or getattr(study, name))
        study.shuffle_labels |= config.shuffle_labels
        study.subjects = [config.subject] if config.subject else study.subjects
        self.inputs = [path]
        self.markers = self._markers()
        check_study(path, study, self.markers)
        names = list(dict.fromkeys(marker.name for marker in self.markers.values()))
        wnids = {marker.name: marker.wnid or marker.name for marker in self.markers.values()}
        self.labels = {name: label for label, name in enumerate(names)}
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
            for subject, own in runs.items():
                self._split(subject, own)
            self._say(runs)
        except ValueError as error:
            left_out = [note for note in self.notes if "was left out" in note]
            raise ValueError("; ".join([str(error), *left_out])) from None

    def __len__(self) -> int:
        return len(self.trials)

    def trial(self, index: int) -> Trial:
        return self.trials[index]

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
            value = plain_marker(marker.value)
            pattern = self._below(marker.pictures)
            found = sorted(Path(p) for p in glob.glob(pattern))
            if not found:
                raise ValueError(f"{self.path}: marker {marker.value} has no picture at {pattern}")
            if not value or value in self.pictures:
                raise ValueError(f"{self.path}: marker value {marker.value!r} is 0, empty or given twice")
            self.pictures[value] = found
        self.picture_folders = sorted({picture.parent for found in self.pictures.values() for picture in found})
        return {plain_marker(marker.value): marker for marker in markers}

    def _runs(self) -> dict[int, list[Run]]:
        """Subject -> runs in order of name; sorts out copies, unwanted subjects and runs with hardly a trial."""
        study, found = self.study, []
        pattern = self._below(study.files)
        paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True))
        if not paths:
            raise ValueError(f"{self.path}: no table at {pattern}")
        below = {path: Path(os.path.relpath(path, self.path.parent)).as_posix() for path in paths}
        for path in paths:
            try:
                match = re.search(study.file_name, path.name) or re.search(study.file_name, below[path])
                if not match:
                    raise ValueError(f"{path}: its name does not match file_name {study.file_name!r} of {self.path}")
                number, name = match["subject"], match["run"]
            except (re.error, IndexError):
                number, name = "", ""
            if not (number.isdecimal() and name):
                raise ValueError(
                    f"{self.path}: file_name must be a regular expression with (?P<subject>\\d+) and (?P<run>...)"
                )
            subject = int(number)
            if not study.subjects or subject in study.subjects:
                found.append((subject, name, path))
        missing = set(study.subjects) - {subject for subject, _, _ in found}
        if missing:
            raise ValueError(f"{self.path}: no table of subject {min(missing)} at {pattern}")
        seen: dict[str, str] = {}
        runs: dict[int, list[Run]] = defaultdict(list)
        dropped = total = 0
        names = Counter(path.name for path in paths)
        for subject, name, path in sorted(found):
            own = runs[subject]
            shown = path.name if names[path.name] == 1 else below[path]
            table = read_table(path, study)
            if table.digest in seen:
                self.notes.append(f"{shown} holds the same data as {seen[table.digest]} and was left out")
                if self.fault.collect:
                    self.fault(
                        f"{path} holds the same data as {seen[table.digest]}: remove the one whose name is wrong"
                    )
                continue
            seen[table.digest] = shown
            self.inputs.append(path)
            epochs, kept = cut_epochs(table, study)
            self.notes += [f"{shown}: {note}" for note in table.notes]
            unknown = sorted(set(table.values) - set(self.markers))
            if unknown:
                raise ValueError(
                    f"{path} has marker {unknown[0]}, which {self.path} does not name: add it to markers, or to "
                    "ignore_markers if no picture appears at it"
                )
            across = int(across_gaps(table, study).sum())
            if across:
                self.notes[-1] += f"; {across} trials across them were left out"
            if len(kept) < study.fewest_trials:
                self.notes.append(f"{shown} was left out: {len(kept)} usable trials of {len(table.values)}")
                continue
            total, dropped = total + len(table.values), dropped + len(table.values) - len(kept)
            values = np.array([table.values[i] for i in kept])
            place = len(own)
            if study.shuffle_labels:
                values = np.random.default_rng([self.seed, subject, place]).permutation(values)
            own.append(Run(subject, name, place, epochs, values, table.seconds[kept]))
        for subject in [subject for subject, own in runs.items() if not own]:
            self.notes.append(f"subject {subject} is not in the study: all of its runs were left out")
            del runs[subject]
        if dropped:
            self.notes.append(
                f"{dropped} of {total} trials were left out as artefacts or cut off by the end of a run"
                + " or by a gap" * any("lost in" in note for note in self.notes)
            )
        return runs

    def _split(self, subject: int, runs: list[Run]) -> None:
        """Whole runs to test; of each other run the last part to val, what shares no sample with it to train."""
        study = self.study
        sides = split_runs(
            [run.onsets for run in runs],
            study.hold_out,
            study.val_tail,
            study.window[1] - study.window[0],
            f"subject {subject}",
            str(self.path),
        )
        for run, own in zip(runs, sides, strict=True):
            if "test" in own:
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
        self.trials.append(
            Trial(
                key=key,
                eeg=eeg,
                jpeg=picture,
                subject=run.subject,
                label=self.labels[marker.name],
                wnid=marker.wnid or marker.name,
                class_name=marker.name,
                image=picture.stem,
                extra={
                    "run": run.name,
                    "onset_s": round(float(run.onsets[i]), 3),
                    "averaged": k,
                    "picture": UNKNOWN_PICTURE if len(pictures) > 1 else MEANT_PICTURE if k > 1 else "as recorded",
                },
            )
        )

    def _say(self, runs: dict[int, list[Run]]) -> None:
        """The protocol in one sentence, and a check that every split has every class."""
        study = self.study
        for split, indices in self.splits.items():
            absent = set(self.labels) - {self.trials[i].class_name for i in indices}
            if absent and split != "val":
                raise ValueError(f"{self.path}: split {split} has no trial of class {min(absent)!r}")
        held = [
            f"run {i + 1} of {len(own)} of subject {subject}"
            for subject, own in runs.items()
            for i in sorted({i % len(own) for i in study.hold_out})
        ]
        parts = [
            f"test: {', '.join(held)}",
            f"val: the last {study.val_tail:.0%} of each other run; train: the rest of those runs",
        ]
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
            parts.append(f"CONTROL: labels shuffled within each run (seed {self.seed})")
        self.protocol = "; ".join(parts)
