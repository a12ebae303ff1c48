"""Small random files in the published THINGS-EEG2 formats, for tests."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from perceivelab_files import jpeg

FILES = {"training": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
CONCEPTS = {"training": ["aardvark", "crème_brûlée", "zucchini", "bat1"], "test": ["aircraft_carrier", "tick"]}


class NumpyNames(pickle._Pickler):
    """Pickles with the names that numpy 1 gave (numpy.core...) or that numpy 2 gives (numpy._core...)."""

    def __init__(self, file: Any, protocol: int, core: str) -> None:
        super().__init__(file, protocol)
        self.core = core

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", "") or ""
        if not module.startswith("numpy._core") and not module.startswith("numpy.core"):
            return super().save_global(obj, name)
        module, name = f"numpy.{self.core}.{module.rpartition('.')[2]}", name or obj.__qualname__
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)

    def memoize(self, obj: Any) -> None:
        if id(obj) not in self.memo:  # Python's own asserts it, and fails on an empty array after b"" (one object)
            super().memoize(obj)


def pickled(content: Any, protocol: int = 4, core: str = "_core") -> bytes:
    buffer = io.BytesIO()
    NumpyNames(buffer, protocol, core).dump(content)
    return buffer.getvalue()


def as_npy(content: Any, flavour: str, protocol: int = 4, core: str = "_core") -> bytes:
    """The bytes of a file: "save" is what np.save makes of an object, "bare" is a pickle alone."""
    if flavour == "bare":
        return pickled(content, protocol, core)
    buffer, wrapped = io.BytesIO(), np.empty((), object)
    wrapped[()] = content
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    return buffer.getvalue() + pickled(wrapped, protocol, core)


@dataclass
class Truth:
    folder: Path
    eeg: dict[tuple[int, str], np.ndarray]  # (subject, set) -> (conditions, repetitions, channels, samples)
    channels: list[str]
    times: np.ndarray  # as in the files
    pictures: dict[str, list[Path]]  # set -> a picture a condition
    concepts: dict[str, list[str]]

    def content(self, subject: int, name: str) -> dict[str, Any]:
        return {"preprocessed_eeg_data": self.eeg[subject, name], "ch_names": self.channels, "times": self.times}

    def path(self, subject: int, name: str) -> Path:
        return self.folder / "eeg" / f"sub-{subject:02d}" / FILES[name]

    def write(self, subject: int, name: str, content: Any = None, **how: Any) -> None:
        """Write a file again, with other content or of another kind."""
        self.path(subject, name).write_bytes(
            as_npy(self.content(subject, name) if content is None else content, **{"flavour": "save", **how})
        )


def write_study(
    folder: Path,
    seed: int = 0,
    subjects: tuple[int, ...] = (1, 2),
    concepts: dict[str, list[str]] = CONCEPTS,
    per_concept: int = 3,
    repetitions: tuple[int, int] = (2, 3),
    n_chans: int = 5,
    n_times: int = 100,
    sfreq: float = 100.0,
    longer: int = 0,
    dtype: str = "f8",
    **how: Any,
) -> Truth:
    """eeg/sub-XX/*.npy, images/{training,test}_images/ in `folder`. longer: samples by which `times` begins early."""
    rng = np.random.default_rng(seed)
    pictures: dict[str, list[Path]] = {"training": [], "test": []}
    for name, own in pictures.items():
        for number, concept in enumerate(concepts[name], 1):
            below = folder / "images" / f"{name}_images" / f"{number:05d}_{concept}"
            below.mkdir(parents=True)
            for i in range(per_concept if name == "training" else 1):
                own.append(below / f"{concept}_{i + 1:02d}{'b' if name == 'training' else 's'}.jpg")
                own[-1].write_bytes(jpeg(rng))
    eeg = {
        (subject, name): rng.standard_normal((len(own), r, n_chans, n_times)).astype(dtype)
        for subject in subjects
        for (name, own), r in zip(pictures.items(), repetitions, strict=True)
    }
    channels = ["O1", "Öz", "O2", *(f"P{i}" for i in range(n_chans))][:n_chans]
    times = (np.arange(n_times + longer) - longer) / sfreq
    truth = Truth(folder, eeg, channels, times, pictures, concepts)
    for subject, name in eeg:
        truth.path(subject, name).parent.mkdir(parents=True, exist_ok=True)
        truth.write(subject, name, **how)
    return truth
