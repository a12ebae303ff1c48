"""The files of a lab's own epochs: mne.Epochs files, or the continuous EEG of a BIDS data set (see data/epochs.py)."""

import contextlib
import dataclasses
import glob
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroimagen.data.signal import check_band
from neuroimagen.text_files import read_table, read_text

if TYPE_CHECKING:
    from neuroimagen.data.source import SourceConfig

BIDS_FORMATS = [".vhdr", ".edf", ".bdf", ".set"]


@dataclasses.dataclass
class Event:
    """One event of a file: its number there, onset in samples, and what it may be called in the table."""

    number: int
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

    def __init__(self, config: "SourceConfig") -> None:
        given = Path(config.eeg)
        self.root = given if given.is_dir() else given.parent
        if given.is_dir():
            paths = [p for p in given.rglob("*.fif") if p.stem.endswith(("-epo", "_epo"))]
        else:
            paths = [given] if given.is_file() else [Path(p) for p in glob.glob(config.eeg, recursive=True)]
        # mne reads the later parts of a file that it split by itself.
        self.paths = sorted(p for p in paths if p.is_file() and not re.search(r"_split-(?!0*1_)\d+_", p.name))
        if not self.paths:
            raise ValueError(
                f"eeg={config.eeg} names no file (folders: *-epo.fif or *_epo.fif; BIDS: the data set's root)"
            )

    def inputs(self, path: Path) -> list[Path]:
        """All files that this one stands for: mne cuts those above 2 GB in parts."""
        parts = [path.parent.glob(f"{glob.escape(path.stem)}-[0-9]*.fif")]
        if "_split-" in path.name:
            parts.append(path.parent.glob(re.sub(r"_split-\d+_", "_split-*_", glob.escape(path.name))))
        return sorted({path}.union(*parts))

    def open(self, path: Path) -> Any:
        with damage(path, "epochs of mne", "save it again with Epochs.save"):
            return import_mne().read_epochs(path, preload=False)

    def describe(self, path: Path) -> Run:
        epochs = self.open(path)
        names = {code: name for name, code in epochs.event_id.items()}
        events = [
            Event(int(number), int(onset), [names.get(code, ""), str(code)])
            for number, (onset, _, code) in zip(epochs.selection, epochs.events.tolist(), strict=True)
        ]
        return Run(
            path=path,
            name=path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name,
            subject="",
            channels=eeg_channels(path, epochs.info),
            sfreq=float(epochs.info["sfreq"]),
            events=events,
            tmin=float(epochs.tmin),
            n_times=len(epochs.times),
            length=0,
        )

    def eeg(self, file: Any, run: Run, place: int) -> np.ndarray:
        return file.get_data(item=[place], picks=run.channels)[0]


class BidsFiles:
    """The continuous EEG of a BIDS data set."""

    applied = ("notch", "band")

    def __init__(self, config: "SourceConfig") -> None:
        self.config = config
        self.root = Path(config.eeg)
        if len(config.window) != 2 or config.window[0] >= config.window[1]:
            raise ValueError("dataset=epochs needs window=[from,to], s from onset, to cut trials from a BIDS recording")
        found = import_mne(bids=True).find_matching_paths(
            self.root, datatypes="eeg", suffixes="eeg", extensions=BIDS_FORMATS, check=False
        )
        self.bids_paths = {Path(p.fpath): p for p in found}
        for path in list(self.bids_paths):
            if not path.relative_to(self.root).parts[0].startswith("sub-"):  # derivatives, sourcedata
                del self.bids_paths[path]
        self.paths = sorted(self.bids_paths)
        if not self.paths:
            raise ValueError(f"eeg={self.root} is a BIDS data set without EEG recordings ({', '.join(BIDS_FORMATS)})")

    def inputs(self, path: Path) -> list[Path]:
        """All files of this recording: data, header, events, channels."""
        beside = path.parent.glob(f"{glob.escape(path.name.rpartition('_')[0])}_*")
        return sorted(p for p in beside if p.is_file())

    def read(self, path: Path) -> Any:
        with damage(path, "a BIDS recording", "run the BIDS validator on the data set"):
            return import_mne(bids=True).read_raw_bids(self.bids_paths[path])

    def open(self, path: Path) -> Any:
        raw, config = self.read(path), self.config
        if config.notch or config.band:
            raw.pick(eeg_channels(path, raw.info)).load_data()
            if config.notch:
                raw.notch_filter(config.notch)
            if config.band:
                check_band(config.band, raw.info["sfreq"])
                raw.filter(config.band[0] or None, config.band[1] or None)
        return raw

    def shown(self, path: Path) -> list[tuple[float, list[str]]]:
        """Onset (s) and names of each row of the recording's events.tsv."""
        table = path.with_name(path.name.rpartition("_")[0] + "_events.tsv")
        try:
            content = read_table(read_text(table), table, ("onset",))
        except OSError as error:
            raise ValueError(f"{table} cannot be read ({error.strerror}): BIDS wants one beside {path.name}") from None
        events = []
        for line, cells in content.rows:
            row = dict(zip(content.header, cells, strict=True))
            try:
                stimulus, onset = row.get("stim_file", ""), float(row["onset"])
                if not math.isfinite(onset):
                    raise ValueError
            except ValueError:
                raise ValueError(f"{table}, line {line}: no onset in seconds; mend the table") from None
            names = [stimulus, Path(stimulus).name, row.get("trial_type", ""), row.get("value", "")]
            events.append((onset, [name for name in names if name not in ("", "n/a")]))
        return events

    def describe(self, path: Path) -> Run:
        shown = self.shown(path)
        raw = self.read(path)
        rate = float(raw.info["sfreq"])
        events = [Event(number, round(onset * rate), names) for number, (onset, names) in enumerate(shown)]
        # What the baseline needs beside the window is cut along; the signal options take the window out of it.
        times = [*self.config.window, *self.config.baseline]
        first = round(min(times) * rate)
        return Run(
            path=path,
            name=path.relative_to(self.root).as_posix(),
            subject=str(self.bids_paths[path].subject),
            channels=eeg_channels(path, raw.info),
            sfreq=rate,
            events=events,
            tmin=first / rate,
            n_times=round(max(times) * rate) - first,
            length=len(raw.times),
        )

    def eeg(self, file: Any, run: Run, place: int) -> np.ndarray:
        start = run.events[place].onset + round(run.tmin * run.sfreq)
        return file.get_data(picks=run.channels, start=start, stop=start + run.n_times)
