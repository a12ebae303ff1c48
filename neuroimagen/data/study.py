"""What a reader gives and the packer takes: a study, trial by trial."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np


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
    """What a reader gives: see data/perceivelab.py and data/recording.py.

    Three more, where the reader knows: `tmin`, s from picture onset to the first sample of every trial (else 0 is
    taken); `before`, what it did itself in the words of the signal options ("notch", "band": to recordings as a whole;
    "baseline"); `shown(index)`, the (subject, image) of a trial without reading its EEG, which spares a pass over the
    files.
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
