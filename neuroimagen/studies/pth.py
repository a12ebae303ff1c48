"""What the readers of .pth files share: reading without running anything, trials as dicts, pictures."""

import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from neuroimagen.studies.classes import BY_WNID
from neuroimagen.studies.splits import split_images
from neuroimagen.studies.study import SPLITS, Study, absent

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


class PthStudy(Study):
    """A study whose files hold each trial as a dict with a tensor. A reader gives `image`, `named` and `_check`."""

    sfreq = 1000.0  # Hz
    eeg_key = "eeg"  # of a trial's tensor
    trials: list[Any]
    broken: set[int]  # trials whose header is wrong, and which are left out
    wnids: list[str]  # label -> wnid
    pictures: dict[str, Path]  # image -> file
    names: Mapping[str, str] = {wnid: known.name for wnid, known in BY_WNID.items()}  # wnid -> name of the class

    def __len__(self) -> int:
        return len(self.trials)

    def lengths(self) -> list[int]:
        return [trial[self.eeg_key].shape[1] for _, trial in self.sound()]

    def sound(self) -> list[tuple[int, dict[str, Any]]]:
        """Number and content of the trials that are not broken."""
        return [(i, trial) for i, trial in enumerate(self.trials) if i not in self.broken]

    def image(self, index: int) -> str:
        """The image of a trial, as the file calls it."""
        raise NotImplementedError

    def wnid(self, index: int) -> str:
        """The class of a trial."""
        raise NotImplementedError

    def named(self, index: int) -> str:
        """A trial, for a sentence."""
        raise NotImplementedError

    def _check(self, index: int, trial: Any) -> None:
        """ValueError for a trial whose header cannot be; no EEG sample is read."""
        raise NotImplementedError

    def check_headers(self) -> None:
        self.broken = set()
        for index, trial in enumerate(self.trials):
            try:
                self._check(index, trial)
            except ValueError as error:
                self.fault(str(error))
                self.broken.add(index)

    def class_table(self, labels: Iterable[int]) -> list[dict[str, Any]]:
        """`classes` for these labels."""
        found = [(label, self.wnids[label]) for label in labels]
        return [{"label": label, "wnid": wnid, "name": self.names.get(wnid, wnid)} for label, wnid in found]

    def finite(self, index: int, where: str, samples: slice = slice(None)) -> torch.Tensor:
        """These samples of a trial as float32; ValueError if NaN or infinity is among them."""
        eeg = self.trials[index][self.eeg_key][:, samples].float()
        if not torch.isfinite(eeg).all():
            channel = int((~torch.isfinite(eeg)).any(1).nonzero()[0])
            raise ValueError(
                f"{where} holds NaN or infinity in channel {channel}: "
                "mend the recording or drop this trial from the file"
            )
        return eeg

    def split_by_image(self, indices: Iterable[int], seed: int) -> dict[str, list[int]]:
        """80/10/10 of the images of each class: a function of (names of all images in the files, seed) alone."""
        images: dict[int, set[str]] = defaultdict(set)
        label = {wnid: label for label, wnid in enumerate(self.wnids)}
        for i, _ in self.sound():
            images[label[self.wnid(i)]].add(self.image(i))
        side = split_images(images, self.wnids, seed, str(self.inputs[0]))
        self.protocol = (
            f"80/10/10 of the images of each class (seed {seed}), every trial of an image in the image's split"
        )
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for i in sorted(set(indices) - self.broken):
            splits[side[self.image(i)]].append(i)
        return splits

    def find_pictures(self, root: Path, indices: Iterable[int], shown: Callable[[str], str]) -> None:
        """Sets `pictures` of these trials from <root>/<wnid>/<image>; `shown` says that a trial showed it."""
        if not root.is_dir():
            raise ValueError(f"images={root} is not a folder")
        self.picture_folders, self.pictures = [root], {}
        there: dict[str, set[str]] = {}
        missing: set[str] = set()
        for i in sorted(indices):
            image, wnid = self.image(i), self.wnid(i)
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
                    f"picture {root / wnid / file} is missing, which {shown(self.named(i))}: "
                    "put it there, or give the right images= folder"
                )
