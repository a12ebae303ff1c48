"""Reader of a lab's own epochs: mne.Epochs files, or a BIDS data set, and a table of what was shown (docs/data.md).

A trial of an epochs file is an epoch as it is saved. Trials of a BIDS data set are cut out of continuous EEG in any
format that BIDS allows, by window=; notch= and band= are applied to each recording as a whole (mne's zero-phase FIR
filters), so that no trial has filtered ends. A recording is then in memory while its trials are read: 1 h of 64
channels at 1 kHz takes 1.8 GB, and twice that while it is filtered. As mne.Epochs does, trials of a recording are left
out that touch a BAD_ annotation (or, here, a cut). Every file is a run. What is left out is said in `notes`.

EEG leaves here in microvolts, float32, (n_chans, n_times): the channels of type EEG, bad ones too, in the order of the
first file. Trials are read from the files one by one.
"""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from neuroimagen.studies.controls import BY_IMAGE, BY_TRIAL, by_split, refuse_empty, split_images, split_runs
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
from neuroimagen.studies.study import Facts, Faults, Study, Trial, absent, refuse_nonfinite, some

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
    own_runs = True

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
        self.trials: list[tuple[Run, Event, Row]] = []
        self.ignored = dict.fromkeys(map(plain, config.ignore_markers), False)  # whether one was met
        self.tasks = {run.task for run in self.runs}
        for run in self.runs:
            self._take(run)
        self._account()
        self._compare()
        unused = [row.line for row in self.table.rows.values() if not row.used]
        if unused and not config.subject:
            more = f"fit no event, the first in line {unused[0]}"
            self.notes.append(f"{len(unused)} rows of {self.table.path.name} {more}")
        names = sorted({row.class_name for _, _, row in self.trials})
        self.labels = {name: label for label, name in enumerate(names)}
        self.classes = [{"label": i, "wnid": self.table.wnids[name], "name": name} for i, name in enumerate(names)]
        self._split()

    def __len__(self) -> int:
        return len(self.trials)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def facts(self, index: int) -> Facts:
        run, event, row = self.trials[index]
        assert row.picture
        subject, label = self.subjects[run.subject], self.labels[row.class_name]
        return Facts(subject, row.picture.stem, label, run.name, event.onset / run.sfreq, row.picture)

    def trial(self, index: int) -> Trial:
        (run, event, _), facts = self.trials[index], self.facts(index)
        with import_mne().use_log_level("ERROR"):
            eeg = self.files.eeg(self._open(run.path), run, event)
        refuse_nonfinite(eeg, run.channels, f"{run.path}: trial {event.number}")
        order = [run.channels.index(name) for name in self.channels or []]
        key, eeg = f"s{facts.subject}_r{run.place}_t{event.number:05d}", (eeg[order] * 1e6).astype(np.float32)
        extra = {"run": run.name, "number": event.number, "onset_s": round(event.onset / run.sfreq, 4)}
        return self.make_trial(key, eeg, facts, extra)

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
        wanted = self.choose_subject(self.config.subject, numbers, f"eeg={self.config.eeg}")
        self.runs = [run for run in self.runs if self.subjects[run.subject] in wanted]
        count: Counter[str] = Counter()
        for run in self.runs:
            run.place = count[run.subject]
            count[run.subject] += 1

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
        if without := [run.name for run in self.runs if id(run) not in used]:
            self.notes.append(f"{len(without)} of {len(self.runs)} files give no trial: {some(without)}")
        if gone := sorted({run.subject for run in self.runs} - {run.subject for run in used.values()}):
            self.notes.append(f"{len(gone)} of {len(self.subjects)} subjects have no trial: {some(gone)}")
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
        self.channels, self.n_chans = first.channels, len(first.channels)
        self.sfreq, self.n_times, self.tmin = first.sfreq, first.n_times, first.tmin
        for run in self.runs[1:]:
            both = f"{run.path} and {first.path}"
            if differ := ", ".join(sorted(set(run.channels) ^ set(first.channels))):
                remedy = "drop them, or interpolate what is missing"
                raise ValueError(f"{both} must have the same EEG channels, but only one has {differ}: {remedy}")
            if abs(run.sfreq - first.sfreq) > SAME_RATE:
                raise ValueError(f"{both} are at {run.sfreq:.9g} and {first.sfreq:.9g} Hz: resample one of them")
            if run.n_times != first.n_times or abs(run.tmin - first.tmin) * first.sfreq > 0.01:
                own, other = (f"{r.n_times} samples from {r.tmin:g} s" for r in (run, first))
                raise ValueError(f"{both} hold epochs of {own} and {other}: cut them alike")

    def _rows(self, run: Run) -> list[tuple[Event, Row]]:
        """The events of a run that the table gives a picture; those that it should name are faults.

        Not asked for: markers to ignore, BAD_ annotations and cuts.
        """
        table, found, unknown, known = self.table, [], [], 0
        number, times = Counter(event.number for event in run.events).most_common(1)[0] if run.events else (0, 0)
        if times > 1:
            raise ValueError(f"{run.path} holds two epochs with number {number} in `selection`: save them apart")
        for event in run.events:
            if ignored := self.ignored.keys() & set(map(plain, event.names)):
                self.ignored |= dict.fromkeys(ignored, True)
                continue
            whats = event.names if table.by_event else [str(event.number)]
            row = table.find([run.name, run.path.name], run.subject, whats)
            known += row is not None
            if row is None and not (run.length and any(map(BAD.match, event.names))):
                unknown.append(next((what for what in whats if what), "without a name"))
            if row is not None and row.picture is not None and row.picture not in table.missing:
                found.append((event, row))
        if unknown and not known and len(self.tasks) > 1:
            self.notes.append(f"none of the {len(unknown)} events of {run.name} has a row in {table.path.name}")
        elif unknown:
            what = f"{'event' if table.by_event else 'trial'} {some(list(dict.fromkeys(unknown)))}"
            remedy = "add it, with an empty image to leave it out, or give ignore_markers= what is no stimulus"
            self.fault(f"{run.path}: {table.path} has no row for {what}: {remedy}")
        return found

    def _take(self, run: Run) -> None:
        """The trials of a run: events that the table gives a picture, where the recording holds them undisturbed."""
        rows = self._rows(run)
        pictured = {name for event, _ in rows for name in event.names}  # a picture may be called badger
        bad = [span for span in run.bad if span[2] not in pictured]
        spoilt: Counter[str] = Counter()
        shown: dict[int, tuple[Event, Row]] = {}
        outside = beyond = twice = 0
        for event, row in rows:
            start = event.onset + round(run.tmin * run.sfreq)
            other, earlier = shown.setdefault(event.onset, (event, row)) if run.length else (event, row)
            if run.length and not 0 <= start <= run.length - run.n_times:
                outside, beyond = outside + 1, beyond + (not 0 <= event.onset < run.length)
            elif name := touched(bad, start, run.n_times, run.sfreq):
                spoilt[name] += 1
            elif other is event:
                self.trials.append((run, event, row))
            elif earlier.picture == row.picture:
                twice += 1
            else:
                both = f"events {other.number} and {event.number} show two pictures at one time"
                self.fault(f"{run.path}: {both}, {event.onset / run.sfreq:g} s: leave one out of the table")
        seconds, cut = f"{run.length / run.sfreq:g} s", ""
        if beyond > 0.9 * len(rows):
            lie = f"{beyond} of its {len(rows)} events lie outside of it, which lasts {seconds}"
            self.fault(f"{run.path}: {lie}: are their onsets in seconds, and is the recording whole?")
            outside = 0
        elif beyond:
            cut = f" ({beyond} of {len(rows)} events lie beyond it, {seconds}: is the file whole?)"
        for count, what in (
            (outside, f"trials of {run.name} reach over an end of the recording and were left out{cut}"),
            (
                spoilt.total(),
                f"trials of {run.name} touch a BAD_ annotation or a cut ({some(spoilt)}) and were left out",
            ),
            (twice, f"events of {run.name} name the picture of another at the same time: taken once"),
        ):
            self.notes += [f"{count} {what}"] if count else []

    def _split(self) -> None:
        config, where = self.config, str(self.table.path)
        if config.hold_out:
            trials = [(self.subjects[run.subject], run.name, event.onset / run.sfreq) for run, event, _ in self.trials]
            sides = split_runs(trials, config.hold_out, VAL_TAIL, self.n_times / self.sfreq, where)
            self.split_by = "run"
            self.protocol = (
                f"test: whole files of each subject, by name number {', '.join(map(str, config.hold_out))} (0 is the "
                f"first, -1 the last); val: the last {VAL_TAIL:.0%} of each other file; train: the rest"
            )
        elif config.splits != "official":
            shown = [(self.labels[row.class_name], self.facts(i).image) for i, (_, _, row) in enumerate(self.trials)]
            sides = split_images(shown, list(self.labels), config.seed, where, config.splits)
            self.protocol = BY_IMAGE.format(config.seed) + "its split"
            if config.splits == "trials":
                self.split_by, self.protocol = "trial", BY_TRIAL.format(config.seed)
        elif self.table.has_split:
            sides = [row.split for _, _, row in self.trials]
            self.split_by = self._kept_apart(sides)
            self.protocol = f"column split of {self.table.path.name}; no {self.split_by} is in two splits"
        else:
            raise ValueError(f"{where} has no column split: add it, or give splits=by_image or hold_out=[-1]")
        for name in self.applied:
            if hertz := getattr(config, name):
                self.protocol += f"; {name} {', '.join(f'{h:g}' for h in hertz)} Hz on the continuous recordings"
        self.splits = by_split(sides)
        refuse_empty(self.splits, where, self.protocol)

    def _kept_apart(self, sides: list[str]) -> str:
        """What the table's split keeps apart, "image" or "run"; refuses one that keeps neither."""
        image: dict[str, str] = {}
        file: dict[str, str] = {}
        mixed = [i for i, side in enumerate(sides) if image.setdefault(self.facts(i).image, side) != side]
        if not mixed:
            return "image"
        if all(file.setdefault(self.trials[i][0].name, side) == side for i, side in enumerate(sides)):
            return "run"
        row, name = self.trials[mixed[0]][2], self.facts(mixed[0]).image
        both = f"image {name} is in both {image[name]} and {row.split}, and so are trials of one file"
        raise ValueError(f"{self.table.path}, line {row.line}: {both}: keep apart the images or the files")
