"""The files of a lab's own epochs: mne.Epochs files, or the continuous EEG of a BIDS data set (see epochs.py)."""

import contextlib
import dataclasses
import glob
import json
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroimagen.config import option, path_option
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.signal import check_band
from neuroimagen.studies.study import some
from neuroimagen.text_files import read_table, read_text

BIDS_FORMATS = [".vhdr", ".edf", ".bdf", ".set"]
EPOCHS_NAME = re.compile(r"[-_]epo\.fif(\.gz)?$", re.IGNORECASE)
# Annotations that a trial must not touch: those that mne.Epochs leaves out, and points where the recording was cut.
BAD = re.compile(r"bad|(?P<cut>edge|boundary|new segment)", re.IGNORECASE)
# mne warns of much; these warnings say that a file is not whole, or holds what one header cannot say.
GRAVE = re.compile(
    r"does not match|truncat|corrupt|different (high|low)pass|missing|incomplete|MarkerFile", re.IGNORECASE
)
SAME_RATE = 1 / 3600  # Hz: less than a sample an hour
AVERAGE_REFERENCE = 10  # kind of a projector in FIF files


@dataclasses.dataclass
class EpochsConfig(StudyConfig):
    """`dataset=epochs`"""

    eeg: str = path_option(help="files of mne.Epochs, a pattern or folder of them, or a BIDS root")
    images: str = path_option(help="folder of the pictures")
    trials: str = path_option(help="CSV table of which event shows which picture (docs/data.md)")
    task: str = option("", "of a BIDS data set, only recordings of this task (as in task-<label> of their names)")
    ignore_markers: list[str] = option([], "events that are no picture onsets, e.g. offset or response codes")
    splits: Literal["official", "by_image", "trials"] = option(
        "official", "the table's column `split`, or 80/10/10 of the images of each class; trials: wrong on purpose"
    )
    hold_out: list[int] = option([], "test runs of each subject, -1 is the last; empty: as `splits` says")


@dataclasses.dataclass
class Event:
    """One event of a file: its number and place there, onset in samples, and what it may be called in the table."""

    number: int
    place: int
    onset: int
    names: list[str]


@dataclasses.dataclass
class Run:
    """One file, described without its EEG."""

    path: Path
    name: str  # below eeg=
    subject: str
    channels: list[str]
    sfreq: float
    events: list[Event]
    tmin: float
    n_times: int
    length: int  # samples in all; of epochs: 0
    recorded: dict[str, Any]  # what the file says of its pass band (Hz) and reference
    bad: list[tuple[float, float, str]] = dataclasses.field(default_factory=list)  # `spans`
    task: str = ""
    place: int = 0  # among those of the subject


def import_mne(bids: bool = False) -> Any:
    try:
        import mne

        if bids:
            import mne_bids

            return mne_bids
        return mne
    except ImportError:
        extra = "bids" if bids else "mne"
        raise ValueError(f'dataset=epochs needs a library: pip install "neuroimagen[{extra}]"') from None


def eeg_channels(path: Path | str, info: Any) -> list[str]:
    """The names of the EEG channels, bad ones too."""
    names = [info["ch_names"][i] for i in import_mne().pick_types(info, eeg=True, exclude=[])]
    if not names:
        raise ValueError(f"{path} has no channel of type EEG: set the types of its channels and save it again")
    return names


def spans(rows: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Start and end (s) and name of the stretches that no trial may touch, of (onset, duration, name) of annotations.

    EEGLAB says of a cut how much is gone: it is a point in what is left.
    """
    found = [(onset, duration, name, BAD.match(name)) for onset, duration, name in rows if math.isfinite(onset)]
    return [
        (at, at + (0 if match["cut"] or not lasts > 0 else lasts), name) for at, lasts, name, match in found if match
    ]


def touched(bad: list[tuple[float, float, str]], start: int, n_times: int, sfreq: float) -> str:
    """The first of `spans` that n_times samples from `start` touch, as mne.Epochs counts: its name, or ""."""
    begin, end = start / sfreq, (start + n_times) / sfreq
    return next((name for first, last, name in bad if first < end and last > begin), "")


def recorded(info: Any) -> dict[str, Any]:
    """Pass band (Hz) and reference as mne's `info` states them; an average reference kept as projector is one, too."""
    average = any(projector["kind"] == AVERAGE_REFERENCE for projector in info["projs"])
    edges = {name: float(f"{info[name] or 0:.4g}") for name in ("highpass", "lowpass")}
    return edges | {"custom_ref_applied": int(info["custom_ref_applied"] or average)}


def said(facts: dict[str, Any]) -> str:
    """`recorded` in words."""
    reference = "another reference was applied" if facts["custom_ref_applied"] else "reference as recorded"
    more = "".join(f", {name} {value}" for name, value in facts.items() if name[0].isupper())
    return f"{facts['highpass']:g} to {facts['lowpass']:g} Hz, {reference}{more}"


@contextlib.contextmanager
def grave(path: Path, notes: list[str]) -> Iterator[None]:
    """Among the warnings of mne, those that concern what is in the file become notes."""
    with import_mne().use_log_level("WARNING"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
        if GRAVE.search(text):
            notes.append(f"{path}: mne warns: {text[:300]}")


@contextlib.contextmanager
def damage(path: Path, what: str, remedy: str) -> Iterator[None]:
    """A damaged file can raise anything; one sentence is made of it."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(f"{path} cannot be read as {what} ({type(error).__name__}: {reason}): {remedy}") from None


class EpochsFiles:
    """Files of mne.Epochs."""

    applied: tuple[str, ...] = ()

    def __init__(self, config: EpochsConfig, notes: list[str]) -> None:
        if config.task:
            raise ValueError(f"task={config.task} is for a BIDS data set, and eeg={config.eeg} is none: leave it out")
        self.notes, self.root = notes, Path(config.eeg)
        if self.root.is_dir():
            # glob follows links to folders and passes over hidden files, as those that macOS leaves.
            inside = sorted(map(Path, glob.glob(f"{glob.escape(config.eeg)}/**/*", recursive=True)))
            fif = [path for path in inside if re.search(r"\.fif(\.gz)?$", path.name, re.IGNORECASE)]
            paths = [path for path in fif if EPOCHS_NAME.search(path.name)]
        else:
            fif = paths = (
                [self.root] if self.root.is_file() else [Path(p) for p in glob.glob(config.eeg, recursive=True)]
            )
            while self.root.is_file() or glob.has_magic(str(self.root)):
                self.root = self.root.parent
        # mne reads the later parts of a file that it split by itself.
        self.paths = sorted(p for p in paths if not p.is_dir() and not re.search(r"_split-(?!0*1_)\d+_", p.name))
        if not self.paths:
            raise ValueError(
                f"eeg={config.eeg} names no file (folders: *-epo.fif or *_epo.fif; BIDS: the data set's root)"
            )
        if others := set(fif).difference(*map(self.inputs, self.paths)):
            names = sorted(path.relative_to(self.root).as_posix() for path in others)
            notes.append(
                f"{len(names)} .fif files were left out, whose names do not end in -epo.fif or _epo.fif: {some(names)}"
            )

    def inputs(self, path: Path) -> list[Path]:
        """All files that this one stands for: mne cuts those above 2 GB in parts."""
        stem, dot, ending = path.name.rpartition(".fif")
        if not dot:
            return [path]
        parts = [path.parent.glob(f"{glob.escape(stem)}-[0-9]*{dot}{ending}")]
        if "_split-" in path.name:
            parts.append(path.parent.glob(re.sub(r"_split-\d+_", "_split-*_", glob.escape(path.name))))
        return sorted({path}.union(*parts))

    def open(self, path: Path) -> Any:
        with damage(path, "epochs of mne", "save it again with Epochs.save"):
            # To find one epoch in a .gz all before it is unpacked.
            return import_mne().read_epochs(path, preload=path.suffix.lower() == ".gz")

    def describe(self, path: Path) -> Run:
        with grave(path, self.notes):
            epochs = self.open(path)
        names = {code: name for name, code in epochs.event_id.items()}
        events = [
            Event(int(epochs.selection[place]), place, int(onset), [names.get(code, ""), str(code)])
            for place, (onset, _, code) in enumerate(epochs.events.tolist())
        ]
        run = Run(
            path=path,
            name=path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name,
            subject="",
            channels=eeg_channels(path, epochs.info),
            sfreq=float(epochs.info["sfreq"]),
            events=events,
            tmin=float(epochs.tmin),
            n_times=len(epochs.times),
            length=0,
            recorded=recorded(epochs.info),
        )
        if kept := sum(bool(spans(own)) for own in epochs.get_annotations_per_epoch()):
            self.notes.append(f"{kept} epochs of {run.name} touch a BAD_ annotation and are kept, as they were saved")
        return run

    def eeg(self, file: Any, run: Run, event: Event) -> np.ndarray:
        return file.get_data(item=[event.place], picks=run.channels)[0]


class BidsFiles:
    """The continuous EEG of a BIDS data set."""

    applied = ("notch", "band")

    def __init__(self, config: EpochsConfig, notes: list[str]) -> None:
        self.config, self.notes = config, notes
        self.root = Path(config.eeg)
        if len(config.window) != 2 or config.window[0] >= config.window[1]:
            raise ValueError("dataset=epochs needs window=[from,to], s from onset, to cut trials from a BIDS recording")
        self.bids_paths: dict[Path, Any] = {}
        tasks, unread = set(), []
        for stem, files in self._recordings().items():
            with damage(stem, "a BIDS name", "rename its files"):
                named = import_mne(bids=True).get_bids_path_from_fname(f"{stem}_eeg{files[0].suffix}", check=False)
            tasks.add(str(named.task))
            if config.task not in ("", named.task):
                continue
            readable = [path for path in files if path.suffix.lower() in BIDS_FORMATS]
            unread += [self._below(files[0])] if not readable else []
            for path in readable:
                self.bids_paths[path] = named.copy().update(root=self.root, extension=path.suffix)
        formats, ours = ", ".join(BIDS_FORMATS), f" of task={config.task}" if config.task else ""
        if not self.bids_paths:
            found = (
                f": there are {some(unread)}" if unread else f": its tasks are {some(sorted(tasks))}" if tasks else ""
            )
            raise ValueError(f"eeg={self.root} is a BIDS data set without EEG recordings{ours} ({formats}){found}")
        people = {path.name for path in self.root.glob("sub-*") if path.is_dir() or path.is_symlink()}
        people -= {path.relative_to(self.root).parts[0] for path in self.bids_paths}
        silent = [path for path in sorted(self.bids_paths) if not os.path.lexists(self.events(path))]
        silent = silent if len(silent) < len(self.bids_paths) else []
        self.paths = sorted(self.bids_paths.keys() - set(silent))
        for what, names in (
            (f"recordings were left out, which are not there as {formats}", unread),
            (f"subjects have no EEG recording{ours} that is read", sorted(people)),
            ("recordings were left out, which have no events.tsv", [self._below(path) for path in silent]),
        ):
            notes += [f"{len(names)} {what}: {some(names)}"] if names else []

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _recordings(self) -> dict[Path, list[Path]]:
        """Each recording of a subject, without its ending, with its data files; derivatives and the like are none."""
        found: dict[Path, list[Path]] = defaultdict(list)
        # Links to folders are followed. A recording may be a folder itself (.mff), but is not looked into.
        for name in sorted(glob.glob(f"{glob.escape(str(self.root))}/sub-*/**/eeg/*_eeg.*", recursive=True)):
            stem, _, ending = name.rpartition("_eeg.")
            if ending not in ("json", "txt", "tsv"):
                found[Path(stem)].append(Path(name))
        return found

    def inputs(self, path: Path) -> list[Path]:
        """All files of this recording: data, header, events, channels."""
        beside = path.parent.glob(f"{glob.escape(path.name.rpartition('_')[0])}_*")
        return sorted({p for p in beside if not p.is_dir()} | {p for p in [self.events(path)] if os.path.lexists(p)})

    def beside(self, path: Path, ending: str) -> list[Path]:
        """The file of a recording that ends so, and before it the one of its task, from which it inherits."""
        own = path.with_name(f"{path.name.rpartition('_')[0]}_{ending}")
        return [self.root / f"task-{self.bids_paths[path].task}_{ending}", own]

    def events(self, path: Path) -> Path:
        """The table of a recording's events: its own, or the one of its task."""
        inherited, own = self.beside(path, "events.tsv")
        return inherited if inherited.is_file() and not os.path.lexists(own) else own

    def read(self, path: Path) -> Any:
        for side in (part for part in self.inputs(path) if part.suffix in (".tsv", ".json")):
            read_text(side)  # mne-bids would not name the file that it cannot decode
        with damage(path, "a BIDS recording", "run the BIDS validator on the data set"):
            return import_mne(bids=True).read_raw_bids(self.bids_paths[path])

    def open(self, path: Path) -> Any:
        raw, config = self.read(path), self.config
        if config.notch or config.band:
            raw.pick(eeg_channels(path, raw.info)).load_data()
            if config.notch:
                try:
                    raw.notch_filter(config.notch)
                except ValueError as error:
                    rate = f"its rate of {raw.info['sfreq']:g} Hz"
                    raise ValueError(f"{path}: notch={config.notch} does not go with {rate}: {error}") from None
            if config.band:
                check_band(config.band, raw.info["sfreq"])
                raw.filter(config.band[0] or None, config.band[1] or None)
        return raw

    @staticmethod
    def shown(table: Path) -> list[tuple[float, float, list[str]]]:
        """Onset and duration (s) and names of each row of an events.tsv; NaN for n/a."""
        try:
            content = read_table(read_text(table), table, ("onset",))
        except OSError as error:
            raise ValueError(f"{table} cannot be read ({error.strerror}): BIDS wants one beside each run") from None
        if content.delimiter != "\t" and len(content.header) > 1:
            raise ValueError(f"{table} has {content.delimiter!r} between its cells: BIDS wants tabs, save it so")

        def seconds(text: str) -> float:
            found = math.nan if text.strip() == "n/a" else float(text)
            if not math.isfinite(found) and text.strip() != "n/a":
                raise ValueError
            return found

        events = []
        for line, cells in content.rows:
            row = dict(zip(content.header, cells, strict=True))
            try:
                onset, duration = seconds(row["onset"]), seconds(row.get("duration") or "n/a")
            except ValueError:
                said = row["onset"]
                raise ValueError(f"{table}, line {line}: no onset in seconds ({said}); mend the table") from None
            stimulus = row.get("stim_file", "")
            names = [stimulus, Path(stimulus).name, row.get("trial_type", ""), row.get("value", "")]
            events.append((onset, duration, [name for name in names if name not in ("", "n/a")]))
        return events

    def describe(self, path: Path) -> Run:
        shown = self.shown(self.events(path))
        with grave(path, self.notes):
            raw = self.read(path)
        rate = float(raw.info["sfreq"])
        timed = [(number, *row) for number, row in enumerate(shown) if math.isfinite(row[0])]
        if len(timed) < len(shown):
            self.notes.append(f"{len(shown) - len(timed)} of {len(shown)} events in {self.events(path)} have no onset")
        marks = [(onset, duration, name) for onset, duration, names in shown for name in names]
        with contextlib.suppress(Exception):  # the recording's own, which the table replaces; not each format has some
            own = import_mne().read_annotations(path.with_suffix(".vmrk") if path.suffix == ".vhdr" else path)
            marks += zip(own.onset.tolist(), own.duration.tolist(), map(str, own.description), strict=True)
        # What the baseline needs beside the window is cut along; the signal options take the window out of it.
        times = [*self.config.window, *self.config.baseline]
        first = round(min(times) * rate)
        return Run(
            path=path,
            name=self._below(path),
            subject=str(self.bids_paths[path].subject),
            channels=eeg_channels(path, raw.info),
            sfreq=rate,
            events=[Event(number, number, round(onset * rate), names) for number, onset, _, names in timed],
            tmin=first / rate,
            n_times=round(max(times) * rate) - first,
            length=len(raw.times),
            recorded=recorded(raw.info) | self._said(path),
            bad=spans(marks),
            task=str(self.bids_paths[path].task or ""),
        )

    def _said(self, path: Path) -> dict[str, Any]:
        """What the sidecar says of reference and filters, which headers hardly do."""
        facts: dict[str, Any] = {}
        for sidecar in self.beside(path, "eeg.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                facts |= json.loads(sidecar.read_text(encoding="utf-8-sig"))
        wanted = {name: facts.get(name) for name in ("EEGReference", "SoftwareFilters")}
        return {name: json.dumps(value) for name, value in wanted.items() if value not in (None, "n/a", {})}

    def eeg(self, file: Any, run: Run, event: Event) -> np.ndarray:
        start = event.onset + round(run.tmin * run.sfreq)
        return file.get_data(picks=run.channels, start=start, stop=start + run.n_times)
