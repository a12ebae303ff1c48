"""Reader of a lab's own epochs: mne.Epochs files, or a BIDS data set, and a table of what was shown.

eeg= is one of
  files    an epochs file of mne (*-epo.fif or *_epo.fif), a pattern of such files, or a folder that holds them; one or
           more a subject. A trial is an epoch as it is saved.
  BIDS     the root of a data set (it has dataset_description.json) with continuous EEG in any format that BIDS allows;
           window= says what is cut around the onset of each event. notch= and band= are applied to each recording as a
           whole (mne's zero-phase FIR filters), so that no trial has filtered ends. A recording is then in memory while
           its trials are read: 1 h of 64 channels at 1 kHz takes 1.8 GB, and twice that while it is filtered.
trials= is the table (epochs_table.py). Every file is a run. As mne.Epochs does, trials of a BIDS recording are left
out that touch a BAD_ annotation (or, here, a point where the recording was cut). What is left out is said in `notes`.

EEG leaves here in microvolts, float32, (n_chans, n_times): the channels of type EEG, bad ones too, in the order of the
first file. Trials are read from the files one by one.
"""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from neuroimagen.studies.epochs_files import (
    BAD,
    BIDS_FORMATS,
    SAME_RATE,
    BidsFiles,
    EpochsConfig,
    EpochsFiles,
    Event,
    Run,
    import_mne,
    touched,
)
from neuroimagen.studies.epochs_table import Row, TrialTable, plain, plain_subject
from neuroimagen.studies.splits import refuse_empty, split_images, split_runs
from neuroimagen.studies.study import SPLITS, Faults, Study, Trial, absent, some

VAL_TAIL = 0.1  # of each run that is not held out: the part that goes to val
OPEN_FILES = 4  # kept open; of filtered recordings, which are in memory, one
SUBJECT = re.compile(r"(?:^|[^a-z])sub(?:j|ject)?(?:[-_](?=[a-z0-9])|(?=\d))([a-z0-9]+)", re.IGNORECASE)


class LabEpochs(Study):
    """The trials of all files that the table names; EEG is read trial by trial.

    The split is that of the table's column, 80/10/10 of the images of each class (splits=by_image), or by whole files
    (hold_out). Raises ValueError, in one sentence, for whatever does not fit together; events without a row and missing
    pictures go to `fault`, which may collect them instead.
    """

    dataset = "epochs"
    units = "uV"

    def __init__(self, config: EpochsConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        self.config = config
        self.table = TrialTable(Path(config.trials), Path(config.images))
        for picture, line in self.table.missing.items():
            why = absent(picture) or "is missing: put it there, or mend the row"
            self.fault(f"{self.table.path}, line {line}: picture {picture} {why}")
        self.picture_folders = [self.table.images]
        bids = os.path.lexists(Path(config.eeg) / "dataset_description.json")
        self._opened: dict[tuple[int, Path], Any] = {}
        with import_mne().use_log_level("ERROR"):
            self.files: EpochsFiles | BidsFiles = (BidsFiles if bids else EpochsFiles)(config, self.notes)
            self.applied = self.files.applied
            self.before = {name: list(getattr(config, name)) for name in self.applied if getattr(config, name)}
            self.runs = [self.files.describe(path) for path in self._whole(self.files.paths)]
        self._number_subjects()
        self.inputs = [self.table.path, *(part for run in self.runs for part in self.files.inputs(run.path))]
        self.trials: list[tuple[Run, int, Row]] = []  # run, place among its events, row of the table
        self.ignored = dict.fromkeys(map(plain, config.ignore_markers), False)  # whether one was met
        self.tasks = {run.task for run in self.runs}
        for run in self.runs:
            self._take(run)
        self._account()
        self._compare()
        unused = [row.line for row in self.table.rows.values() if not row.used]
        if unused and not config.subject:
            self.notes.append(
                f"{len(unused)} rows of {self.table.path.name} fit no event, the first in line {unused[0]}"
            )
        names = list(dict.fromkeys(row.class_name for _, _, row in self.trials))
        self.labels = {name: label for label, name in enumerate(sorted(names))}
        self.classes = [
            {"label": label, "wnid": self.table.wnids[name], "name": name} for name, label in self.labels.items()
        ]
        self._split()

    def __len__(self) -> int:
        return len(self.trials)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def shown(self, index: int) -> tuple[int, str]:
        run, _, row = self.trials[index]
        assert row.picture
        return self.subjects[run.subject], row.picture.stem

    def trial(self, index: int) -> Trial:
        run, place, row = self.trials[index]
        with import_mne().use_log_level("ERROR"):
            eeg = self.files.eeg(self._open(run.path), run, place)
        number = run.events[place].number
        if not np.isfinite(eeg).all():
            channel = run.channels[int(np.argwhere(~np.isfinite(eeg))[0, 0])]
            raise ValueError(f"{run.path}: trial {number} holds NaN or infinity in channel {channel}: drop that epoch")
        order = [run.channels.index(name) for name in self.channels or []]
        subject, image = self.shown(index)
        assert row.picture
        return Trial(
            key=f"s{subject}_r{self._place(run)}_t{number:05d}",
            eeg=(eeg[order] * 1e6).astype(np.float32),
            jpeg=row.picture,
            subject=subject,
            label=self.labels[row.class_name],
            wnid=row.wnid,
            class_name=row.class_name,
            image=image,
            extra={"run": run.name, "number": number, "onset_s": round(run.events[place].onset / run.sfreq, 4)},
        )

    def _place(self, run: Run) -> int:
        return self.of_subject[run.subject].index(run)

    def _open(self, path: Path) -> Any:
        """The file, opened by this very process: after a fork two must not share one place in it."""
        key = (os.getpid(), path)
        if key not in self._opened:
            filtered = self.applied and (self.config.notch or self.config.band)
            while len(self._opened) >= (1 if filtered else OPEN_FILES):
                self._opened.pop(next(iter(self._opened)))
            self._opened[key] = self.files.open(path)
        return self._opened[key]

    def _number_subjects(self) -> None:
        """Subject label -> number; files of other subjects than the one that is wanted are left out."""
        for run in self.runs:
            if not run.subject:
                found = SUBJECT.findall(run.name)
                if not found and len(self.runs) > 1:  # eeg= may be a subject's folder
                    found = [match[1] for part in run.path.absolute().parts if (match := SUBJECT.fullmatch(part))]
                if not found and len(self.runs) > 1:
                    raise ValueError(f"{run.path}: its name does not say whose it is: put sub-<subject> into it")
                run.subject = found[-1] if found else "1"
            run.subject = plain_subject(run.subject)
        labels = sorted({run.subject for run in self.runs})
        numbers = [int(label) if label.isdecimal() else 0 for label in labels]
        if min(numbers) < 1 or len(set(numbers)) < len(labels):
            numbers = list(range(1, len(labels) + 1))
            self.notes.append("subjects: " + ", ".join(f"{n} is {s}" for n, s in zip(numbers, labels, strict=True)))
        self.subjects = dict(zip(labels, numbers, strict=True))
        wanted = self.config.subject
        if wanted and wanted not in numbers:
            raise ValueError(f"eeg={self.config.eeg} holds no file of subject={wanted}; it holds subjects {numbers}")
        self.runs = [run for run in self.runs if wanted in (0, self.subjects[run.subject])]
        self.of_subject: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            self.of_subject[run.subject].append(run)

    def _whole(self, paths: list[Path]) -> list[Path]:
        """The recordings all of whose files are here, and not by name alone."""
        lost: dict[Path, str] = {}
        for path in paths:
            if broken := next((part for part in self.files.inputs(path) if absent(part)), None):
                lost[path] = f"{broken} {absent(broken)}"
            elif path.suffix.lower() in BIDS_FORMATS and path.suffix not in [*BIDS_FORMATS, ".EDF"]:
                lost[path] = f"{path} ends in capitals: rename it, BIDS has {path.suffix.lower()}"
        if lost:
            more = f" (so it is with {len(lost)} of {len(paths)} recordings)" if len(lost) > 1 else ""
            self.fault(next(iter(lost.values())) + more)
        if len(lost) == len(paths):
            raise ValueError(f"eeg={self.config.eeg}: no recording is left")
        return [path for path in paths if path not in lost]

    def _account(self) -> None:
        """Refuses an ignored marker that is nowhere; notes files and subjects without a trial, and tasks that mix."""
        config, used = self.config, {id(run): run for run, _, _ in self.trials}
        never = [name for name, met in self.ignored.items() if not met]
        if never and not config.subject:
            raise ValueError(f"ignore_markers={never[0]}: no event of eeg={config.eeg} is called that; leave it out")
        without = [run.name for run in self.runs if id(run) not in used]
        if without:
            self.notes.append(f"{len(without)} of {len(self.runs)} files give no trial: {some(without)}")
        gone = {run.subject for run in self.runs} - {run.subject for run in used.values()}
        if gone:
            self.notes.append(f"{len(gone)} of {len(self.subjects)} subjects have no trial: {some(sorted(gone))}")
        if not used:
            raise ValueError(f"eeg={config.eeg}: no trial is left" + "".join(f"; {note}" for note in self.notes[:3]))
        self.runs = list(used.values())
        tasks = sorted({run.task for run in self.runs})
        if len(tasks) > 1:
            self.notes.append(f"trials are of several tasks ({', '.join(tasks)}); task= takes one of them")
        facts: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for run in self.runs:
            facts[tuple(run.recorded.items())].append(run.name)
        self.recorded = [dict(stated) | {"files": names} for stated, names in facts.items()]

    def _compare(self) -> None:
        """Refuses files that differ in channels, rate or window."""
        first = self.runs[0]
        self.channels = first.channels
        self.n_chans = len(first.channels)
        self.sfreq, self.n_times, self.tmin = first.sfreq, first.n_times, first.tmin
        for run in self.runs[1:]:
            both = f"{run.path} and {first.path}"
            differ = sorted(set(run.channels) ^ set(first.channels))
            if differ:
                raise ValueError(
                    f"{both} must have the same EEG channels, but only one has {', '.join(differ)}: drop them, or "
                    "interpolate what is missing"
                )
            if abs(run.sfreq - first.sfreq) > SAME_RATE:
                raise ValueError(f"{both} are at {run.sfreq:.9g} and {first.sfreq:.9g} Hz: resample one of them")
            if run.n_times != first.n_times or abs(run.tmin - first.tmin) * first.sfreq > 0.01:
                raise ValueError(
                    f"{both} hold epochs of {run.n_times} and {first.n_times} samples from {run.tmin:g} and "
                    f"{first.tmin:g} s: cut them alike"
                )

    def _rows(self, run: Run) -> list[tuple[int, Event, Row]]:
        """The events of a run that the table gives a picture, with their place; those that it should name are faults.

        Not asked for: markers to ignore, BAD_ annotations and cuts.
        """
        table, found, unknown, known = self.table, [], [], 0
        repeated = [n for n, times in Counter(event.number for event in run.events).items() if times > 1]
        if repeated:
            raise ValueError(f"{run.path} holds two epochs with number {repeated[0]} in `selection`: save them apart")
        for place, event in enumerate(run.events):
            if ignored := self.ignored.keys() & set(map(plain, event.names)):
                self.ignored |= dict.fromkeys(ignored, True)
                continue
            whats = event.names if table.by_event else [str(event.number)]
            row = table.find([run.name, run.path.name], run.subject, whats)
            known += row is not None
            if row is None and not (run.length and any(map(BAD.match, event.names))):
                unknown.append(next((what for what in whats if what), "without a name"))
            if row is not None and row.picture is not None and row.picture not in table.missing:
                found.append((place, event, row))
        if unknown and not known and len(self.tasks) > 1:
            self.notes.append(f"none of the {len(unknown)} events of {run.name} has a row in {table.path.name}")
        elif unknown:
            self.fault(
                f"{run.path}: {table.path} has no row for {'event' if table.by_event else 'trial'} "
                f"{some(list(dict.fromkeys(unknown)))}: add it, with an empty image if it is to be left out, or give "
                "ignore_markers= what is no stimulus"
            )
        return found

    def _take(self, run: Run) -> None:
        """The trials of a run: events that the table gives a picture, where the recording holds them undisturbed."""
        rows = self._rows(run)
        pictured = {name for _, event, _ in rows for name in event.names}  # a picture may be called badger
        bad = [span for span in run.bad if span[2] not in pictured]
        spoilt: Counter[str] = Counter()
        shown: dict[int, tuple[Event, Row]] = {}
        outside = beyond = twice = 0
        for place, event, row in rows:
            start = event.onset + round(run.tmin * run.sfreq)
            if run.length and not 0 <= start <= run.length - run.n_times:
                outside, beyond = outside + 1, beyond + (not 0 <= event.onset < run.length)
                continue
            if name := touched(bad, start, run.n_times, run.sfreq):
                spoilt[name] += 1
                continue
            if run.length and event.onset in shown:
                other, earlier = shown[event.onset]
                if earlier.picture == row.picture:
                    twice += 1
                else:
                    self.fault(
                        f"{run.path}: events {other.number} and {event.number} show two pictures at one time, "
                        f"{event.onset / run.sfreq:g} s: leave one out of the table"
                    )
                continue
            shown[event.onset] = event, row
            self.trials.append((run, place, row))
        seconds = run.length / run.sfreq
        if beyond > 0.9 * len(rows):
            self.fault(
                f"{run.path}: {beyond} of its {len(rows)} events lie outside of it, which lasts {seconds:g} s: are "
                "their onsets in seconds, and is the recording whole?"
            )
        elif outside:
            cut = (
                f" ({beyond} of {len(rows)} events lie beyond it, {seconds:g} s: is the file whole?)" if beyond else ""
            )
            self.notes.append(
                f"{outside} trials of {run.name} reach over an end of the recording and were left out{cut}"
            )
        if spoilt:
            self.notes.append(
                f"{spoilt.total()} trials of {run.name} touch a BAD_ annotation or a cut ({some(spoilt)}) and were "
                "left out"
            )
        if twice:
            self.notes.append(f"{twice} events of {run.name} name the picture of another at the same time: taken once")

    def _split(self) -> None:
        config, where = self.config, str(self.table.path)
        if config.hold_out:
            sides = self._split_by_run()
            self.split_by = "run"
            self.protocol = (
                f"test: whole files of each subject, by name number {', '.join(map(str, config.hold_out))} (0 is the "
                f"first, -1 the last); val: the last {VAL_TAIL:.0%} of each other file; train: the rest"
            )
        elif config.splits == "by_image":
            images: dict[int, set[str]] = defaultdict(set)
            for i, (_, _, row) in enumerate(self.trials):
                images[self.labels[row.class_name]].add(self.shown(i)[1])
            side = split_images(images, list(self.labels), config.seed, where)
            sides = [side[self.shown(i)[1]] for i in range(len(self.trials))]
            self.split_by = "image"
            self.protocol = (
                f"80/10/10 of the images of each class (seed {config.seed}), every trial of an image in its split"
            )
        elif self.table.has_split:
            sides = [row.split for _, _, row in self.trials]
            self.split_by = self._kept_apart(sides)
            self.protocol = f"column split of {self.table.path.name}; no {self.split_by} is in two splits"
        else:
            raise ValueError(f"{where} has no column split: add it, or give splits=by_image or hold_out=[-1]")
        for name in self.applied:
            if hertz := getattr(config, name):
                self.protocol += f"; {name} {', '.join(f'{h:g}' for h in hertz)} Hz on the continuous recordings"
        self.splits = {name: [i for i, side in enumerate(sides) if side == name] for name in SPLITS}
        refuse_empty(self.splits, where, self.protocol)

    def _split_by_run(self) -> list[str]:
        places: dict[str, dict[str, list[int]]] = {subject: {} for subject in self.of_subject}
        for i, (run, _, _) in enumerate(self.trials):
            places[run.subject].setdefault(run.name, []).append(i)
        sides = [""] * len(self.trials)
        for subject, runs in places.items():
            own = []
            for indices in runs.values():
                indices.sort(key=lambda i: self._onset(i))
                own.append([self._onset(i) for i in indices])
            found = split_runs(
                own,
                self.config.hold_out,
                VAL_TAIL,
                self.n_times / self.sfreq,
                f"subject {self.subjects[subject]}",
                str(self.table.path),
            )
            for indices, split in zip(runs.values(), found, strict=True):
                for i, side in zip(indices, split, strict=True):
                    sides[i] = side
        return sides

    def _onset(self, index: int) -> float:
        run, place, _ = self.trials[index]
        return run.events[place].onset / run.sfreq

    def _kept_apart(self, sides: list[str]) -> str:
        """What the table's split keeps apart, "image" or "run"; refuses one that keeps neither."""
        image: dict[str, str] = {}
        file: dict[str, str] = {}
        mixed = [i for i, side in enumerate(sides) if image.setdefault(self.shown(i)[1], side) != side]
        if not mixed:
            return "image"
        if all(file.setdefault(self.trials[i][0].name, side) == side for i, side in enumerate(sides)):
            return "run"
        row, name = self.trials[mixed[0]][2], self.shown(mixed[0])[1]
        raise ValueError(
            f"{self.table.path}, line {row.line}: image {name} is in both {image[name]} and {row.split}, and so are "
            "trials of one file: keep apart the images or the files"
        )
