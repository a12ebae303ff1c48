"""What a reader gives and the packer takes: a study, trial by trial."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

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


class Study(Protocol):
    """What a reader gives: see studies/perceivelab.py and studies/recordings.py.

    Four more, where the reader knows: `tmin`, s from picture onset to the first sample of every trial (else 0 is
    taken); `before`, what it did itself in the words of the signal options ("notch", "band": to recordings as a whole;
    "baseline"); `recorded`, what the files say of pass band and reference (epochs_files.py); `shown(index)`, the
    (subject, image) of a trial without reading its EEG, which spares a pass over the files.
    """

    dataset: str
    simulated: bool
    n_chans: int
    n_times: int
    sfreq: float
    units: str
    channels: list[str] | None
    classes: list[dict[str, Any]]  # label, wnid, name
    splits: dict[str, list[int]]
    split_by: str  # "image": no image is in two splits; "run": no test run is in another split
    protocol: str  # one sentence: how the split was made
    notes: list[str]  # what the user should know, e.g. trials dropped
    inputs: list[Path]  # the files whose change means that the shards are stale
    fault: Faults  # a reader asked to collect faults has left out what they concern
    picture_folders: list[Path]  # where the pictures are, for the doctor to look for those that no trial shows

    def trial(self, index: int) -> Trial: ...
    def __len__(self) -> int: ...
