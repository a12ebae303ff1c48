"""What the readers of .pth files share: reading without running anything, trials as dicts, pictures."""

import dataclasses
import pickle
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from neuroimagen.studies.classes import NAMES
from neuroimagen.studies.controls import BY_IMAGE, BY_TRIAL, refuse_empty, split_images
from neuroimagen.studies.study import SPLITS, Facts, Study, Trial, absent, refuse_nonfinite

EXTENSIONS = (".JPEG", ".jpeg", ".jpg", ".JPG", ".png", ".PNG", ".Jpeg", ".Jpg", ".Png")


def load_plain(path: Path) -> Any:
    """What a torch file of tensors, numbers and strings holds; memory-mapped when its format allows.

    Raises ValueError, without running anything, for a file that is missing, damaged or holds more than that.
    """
    if not path.is_file():
        raise ValueError(f"{path} {absent(path) or 'does not exist or is not a file'}")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not named:
            raise ValueError(f"{path} is damaged or not a torch file: download it again") from None
        raise ValueError(
            f"{path} holds more than tensors, numbers and strings (it names {named[1]}, which could run code) and was "
            "not opened: get the file from its publisher, or save it again as plain tensors"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(f"{path} cannot be read as a torch file ({type(error).__name__}: {reason})") from None


def load_lists(path: Path, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    """A file with the lists `dataset` (trials), `labels` and `images`; in the lists `names` are plain names, each once.

    ValueError if it is none; what: the kind of file it should be.
    """
    content, keys = load_plain(path), ("dataset", "labels", "images")
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise ValueError(f"{path} is not {what} file: it must hold `dataset`, `labels` and `images`")
    for key in keys:
        if not isinstance(content[key], list) or not content[key]:
            raise ValueError(f"{path}: `{key}` must be a list that is not empty")
    for key in names:
        wrong = [n for n in content[key] if not isinstance(n, str) or not re.fullmatch(r"\w[\w-]*", n)]
        if wrong:
            raise ValueError(f"{path}: `{key}` holds {wrong[0]!r}, which is not a plain name")
        if len(set(content[key])) < len(content[key]):
            raise ValueError(f"{path}: `{key}` holds {Counter(content[key]).most_common(1)[0][0]!r} twice")
    return content


def is_table(eeg: Any) -> bool:
    """Whether this is a tensor of real numbers, channels x samples."""
    return isinstance(eeg, torch.Tensor) and eeg.ndim == 2 and not eeg.is_complex() and not eeg.is_sparse


def find_picture(there: set[str], names: list[str]) -> str | None:
    """The first of `names` that is there, else one that only writes its ending in another case (.Jpeg, .PNG)."""
    lower = {Path(name).stem + Path(name).suffix.lower() for name in names}
    return next((name for name in names if name in there), None) or next(
        (name for name in sorted(there) if Path(name).stem + Path(name).suffix.lower() in lower), None
    )


@dataclasses.dataclass
class Header:
    """What a trial's dict says, checked; of its EEG no sample was read."""

    subject: int  # from 1
    label: int
    image: str  # as the file calls it
    eeg: torch.Tensor
    said: str  # subject and image, for a sentence
    block: str | None = None  # as in Facts
    onset: float | None = None


class PthStudy(Study):
    """A study whose files hold each trial as a dict with a tensor. A reader gives what has no value here, and `header`.

    Trials are numbered through all files. Raises ValueError, in one sentence, for whatever in the files is not as
    published; faults of single trials and pictures go to `fault`, which may collect them instead.
    """

    sfreq = 1000.0  # Hz
    fields: tuple[str, ...]  # of a trial's dict, the first its tensor
    lengths_taken: tuple[int, int]  # samples, both ends included
    if_channels_differ = ""  # more of the remedy
    trials: list[tuple[Path, int, Any]]  # file, number in it, dict
    headers: dict[int, Header]  # of the trials that are as published; the others are left out
    wnids: list[str]  # label -> wnid
    pictures: dict[str, Path]  # image -> file

    def __len__(self) -> int:
        return len(self.trials)

    def image(self, index: int) -> str:
        """The image of a trial, as the file calls it."""
        return self.headers[index].image

    def facts(self, index: int) -> Facts:
        """Reads nothing."""
        header = self.headers[index]
        image, picture = Path(header.image).stem, self.pictures[header.image]
        return Facts(header.subject, image, header.label, header.block, header.onset, picture)

    def named(self, index: int) -> str:
        """A trial, for a sentence."""
        path, number, _ = self.trials[index]
        said = f" ({self.headers[index].said})" if index in self.headers else ""
        return f"{path}: trial {number}{said}"

    def header(self, where: str, trial: dict[str, Any]) -> Header:
        """The header of a trial that has all `fields`; ValueError, beginning with `where`, for one that cannot be."""
        raise NotImplementedError

    def read_headers(self) -> None:
        self.headers = {}
        for index, (_, _, trial) in enumerate(self.trials):
            try:
                self.headers[index] = self._checked(self.named(index), trial)
            except ValueError as error:
                self.fault(str(error))

    def _checked(self, where: str, trial: Any) -> Header:
        if not isinstance(trial, dict) or not set(self.fields) <= set(trial):
            raise ValueError(f"{where} must hold {', '.join(self.fields)}")
        header, eeg = self.header(where, trial), trial[self.fields[0]]
        where, wnid = f"{where} ({header.said})", self.wnids[header.label]
        if not header.image.startswith(f"{wnid}_"):
            raise ValueError(f"{where} is labelled {wnid}, which is not the class of its image")
        if not is_table(eeg):
            raise ValueError(f"{where} has no EEG table (channels x samples)")
        if eeg.shape[0] != self.n_chans:
            more = self.if_channels_differ
            raise ValueError(
                f"{where} has {eeg.shape[0]} channels instead of {self.n_chans}: drop it from the file{more}"
            )
        if not self.lengths_taken[0] <= eeg.shape[1] <= self.lengths_taken[1]:
            raise ValueError(
                f"{where} has {eeg.shape[1]} samples where about 500 are expected, {self.lengths_taken[0]} at least: "
                "drop it from the file, or is the file not at 1000 Hz?"
            )
        return header

    def class_table(self, labels: Iterable[int]) -> list[dict[str, Any]]:
        """`classes` for these labels."""
        found = [(label, self.wnids[label]) for label in labels]
        return [{"label": label, "wnid": wnid, "name": NAMES.get(wnid, wnid)} for label, wnid in found]

    def read_trial(self, index: int, key: str, eeg: torch.Tensor, cut: slice, extra: dict[str, Any]) -> Trial:
        """The trial, cut out of these samples; ValueError if NaN or infinity is among them."""
        refuse_nonfinite(eeg.numpy(), None, self.named(index))
        return self.make_trial(key, eeg[:, cut].numpy(), self.facts(index), extra)

    def split_at_random(self, by: str, indices: Iterable[int], seed: int) -> dict[str, list[int]]:
        """80/10/10 of the images of each class: a function of (names of all images in the files, seed) alone.

        by: "by_image", or "trials": of the trials of each class, for an audit.
        """
        shown = [(header.label, header.image) for header in self.headers.values()]
        sides = split_images(shown, self.wnids, seed, str(self.inputs[0]), by)
        self.protocol, chosen = BY_IMAGE.format(seed) + "the image's split", set(indices)
        if by == "trials":
            self.split_by, self.protocol = "trial", BY_TRIAL.format(seed)
        side = {i: side for i, side in zip(self.headers, sides, strict=True) if i in chosen}
        return {name: [i for i in side if side[i] == name] for name in SPLITS}

    def keep_pictured(self, splits: dict[str, list[int]], root: Path, subject: int, where: str) -> None:
        """Sets `splits` and `pictures`: of these trials those whose picture is there, <root>/<wnid>/<image>."""
        if not root.is_dir():
            raise ValueError(f"images={root} is not a folder")
        self.picture_folders, self.pictures = [root], {}
        there: dict[str, set[str]] = {}
        missing: set[str] = set()
        for i in sorted(i for own in splits.values() for i in own):
            image, wnid = self.image(i), self.wnids[self.headers[i].label]
            if image in self.pictures or image in missing:
                continue
            if wnid not in there:
                folder = root / wnid
                there[wnid] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
            file = image if Path(image).suffix else f"{image}.JPEG"
            if name := find_picture(there[wnid], [file, *(Path(file).stem + e for e in EXTENSIONS)]):
                self.pictures[image] = root / wnid / name
            else:
                missing.add(image)
                self.fault(
                    f"picture {root / wnid / file} is missing, which was shown in {self.named(i)}: "
                    "put it there, or give the right images= folder"
                )
        self.splits = {name: [i for i in splits[name] if self.image(i) in self.pictures] for name in SPLITS}
        self.protocol += f"; subject {subject} only" if subject else ""
        refuse_empty(self.splits, where, self.protocol)
