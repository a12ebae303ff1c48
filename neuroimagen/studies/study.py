"""What a reader gives and the packer takes: a study, trial by trial."""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "val", "test")
FETCH = "its content was not fetched: `datalad get` or `git annex get` it (git-lfs: `git lfs pull`), or remove it"


def absent(path: Path) -> str:
    """Why a file that is there by name holds nothing, and the remedy; "" if it holds something, or is not there."""
    if os.path.islink(path) and not path.exists():
        return f"is a link to what is not here, so {FETCH}"
    if not path.is_file() or path.stat().st_size > 1000:
        return ""
    content = path.read_bytes()
    if b"/annex/objects/" in content or content.startswith(b"version https://git-lfs"):
        return f"only says what it stands for, so {FETCH}"
    return "" if content else "is empty: copy it again, or remove it"


def some(names: Collection[str], most: int = 5) -> str:
    """a, b and 3 more"""
    shown = list(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def refuse_nonfinite(eeg: np.ndarray, channels: Sequence[str] | None, where: str) -> None:
    """ValueError, beginning with `where`, if NaN or infinity is among these samples, (n_chans, n_times)."""
    if not np.isfinite(eeg).all():
        first = int(np.argwhere(~np.isfinite(eeg))[0, 0])
        channel = channels[first] if channels else first
        raise ValueError(f"{where} holds NaN or infinity in channel {channel}: mend the recording or leave it out")


@dataclasses.dataclass
class Trial:
    """One stretch of EEG, (n_chans, n_times) float32, and the picture shown during it (its bytes, or its file)."""

    key: str
    eeg: np.ndarray
    jpeg: bytes | Path
    subject: int
    label: int
    wnid: str
    class_name: str
    image: str
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Facts(NamedTuple):
    """What is known of a trial without its EEG."""

    subject: int
    image: str
    label: int
    block: str | None = None  # the unbroken stretch of recording it is from: a run, or a class's block; None: not told
    onset: float | None = None  # s from the start of the run or recording, or only the place in the order of trials
    picture: bytes | Path = b""


class Faults:
    """What a reader does about a fault of one trial or picture: stop there, or list it and leave that trial out."""

    def __init__(self, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[str] = []

    def __call__(self, sentence: str) -> None:
        """Raises ValueError(sentence) unless faults are collected."""
        if not self.collect:
            raise ValueError(sentence)
        self.found.append(sentence)


def mark(control: str, split_by: str) -> str:
    """What has to stand above every number of such a study; "" where there is nothing to warn of."""
    trained_on = "TEST PICTURES WERE TRAINED ON: trials were split at random" if split_by == "trial" else ""
    return "; ".join(filter(None, [control, trained_on]))


class Study:
    """What every reader gives and the packer, the signal options and the doctor take: trials by number, in splits.

    A reader sets what has no default here, and overrides the rest where it knows more.
    """

    dataset: str
    simulated: bool = False
    n_chans: int
    n_times: int
    sfreq: float
    units: str
    channels: list[str] | None = None  # their names, where the files have them
    classes: list[dict[str, Any]]  # label, wnid, name
    splits: dict[str, list[int]]
    split_by: str = (
        "image"  # "image": no image is in two splits; "run": no test run is in another split; "trial": neither
    )
    control: str = ""  # "CONTROL: ...", what is untrue on purpose
    protocol: str  # one sentence: how the split was made
    inputs: list[Path]  # the files whose change means that the shards are stale
    tmin: float | None = None  # s from picture onset to the first sample of every trial; None: not known, 0 is taken
    applied: tuple[str, ...] = ()  # signal options that the reader applied itself, to recordings before they were cut
    recorded: list[dict[str, Any]] | None = None  # what the files say of pass band and reference (epochs_files.py)

    own_runs = False  # whether the reader itself makes hold_out of runs

    def __init__(self, fault: Faults | None = None) -> None:
        self.fault = fault or Faults()  # a reader asked to collect faults has left out what they concern
        self.notes: list[str] = []  # what the user should know, e.g. trials dropped
        self.before: dict[str, list[float]] = {}  # what was done already, in words of signal options: notch, baseline
        self.picture_folders: list[Path] = []  # for the doctor, to look for pictures that no trial shows

    def __len__(self) -> int:
        """Trials, those in no split too."""
        raise NotImplementedError

    def trial(self, index: int) -> Trial:
        """Read one trial; ValueError, in one sentence, if it cannot be used."""
        raise NotImplementedError

    def make_trial(self, key: str, eeg: np.ndarray, facts: Facts, extra: dict[str, Any]) -> Trial:
        """A trial with the names that `classes` has for its label."""
        wnid, name = self._names[facts.label]
        return Trial(key, eeg, facts.picture, facts.subject, facts.label, wnid, name, facts.image, extra)

    @functools.cached_property
    def _names(self) -> dict[int, tuple[str, str]]:
        return {known["label"]: (known["wnid"], known["name"]) for known in self.classes}

    def choose_subject(self, wanted: int, found: Collection[int], where: str) -> list[int]:
        """The subjects to take: `wanted`, or for 0 all; ValueError, beginning with `where`, if it is not there."""
        if wanted and wanted not in found:
            raise ValueError(f"{where} holds no trial of subject={wanted}; it holds subjects {sorted(found)}")
        return [wanted] if wanted else sorted(found)

    @property
    def mark(self) -> str:
        return mark(self.control, self.split_by)

    def facts(self, index: int) -> Facts:
        """What is known of a trial; most readers know it without reading EEG, which spares a pass over the files."""
        trial = self.trial(index)
        return Facts(trial.subject, trial.image, trial.label, picture=trial.jpeg)

    def where(self, index: int, key: str) -> str:
        """What trial `index`, whose key this is, is called in a fault."""
        return f"trial {key}"

    def finish(self) -> None:
        """Called when every trial was read once, to look at them together; faults go to `fault`."""


class Changed(Study):
    """A study whose splits or trials are others than those of `study`, and which says of itself what that one says."""

    def __init__(self, study: Study) -> None:
        super().__init__(study.fault)
        self.study = study
        for name in (*Study.__annotations__, "before", "picture_folders"):
            setattr(self, name, getattr(study, name))
        self.notes = list(study.notes)

    def __len__(self) -> int:
        return len(self.study)
