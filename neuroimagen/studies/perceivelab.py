"""Reader of the PerceiveLab EEG-ImageNet-40 files (Spampinato et al. 2017), the paper's data set.

The files as published, and as `neuroimagen simulate` writes them:
  EEG file     dict: `dataset` list of {'eeg': tensor (128, L) at 1 kHz, 'image': int, 'label': int, 'subject': int},
               `labels` list of wnids, `images` list of names without extension; the raw file adds `means`, `stddevs`
  splits file  {'splits': [{'train': [int], 'val': [int], 'test': [int]}, ...]}, indices into `dataset`
  pictures     <images>/<wnid>/<name>.JPEG
The customary loader (perceivelab/eeg_visual_classification) keeps trials of 450 to 600 samples and takes samples 20 to
459 of each, 440 in all; so does this one. Everything is read with `weights_only=True`: nothing in a file is executed.
"""

import pickle
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from neuroimagen.studies.classes import BY_WNID
from neuroimagen.studies.splits import split_images
from neuroimagen.studies.study import Faults, Study, Trial, absent

SFREQ = 1000.0  # Hz
KEPT_LENGTHS = (450, 600)  # samples, both ends included: the customary filter
CUT = (20, 460)  # samples: the customary cut
SHORTEST = 300  # samples; the files hold about 500 a trial, so a shorter one is damage, not variation
MOST_DROPPED = 0.1  # the published file loses about 25 of 11,965 trials to the filter
EXTENSIONS = (".JPEG", ".jpeg", ".jpg", ".JPG", ".png", ".PNG", ".Jpeg", ".Jpg", ".Png")
SPLITS = ("train", "val", "test")


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


def find_picture(there: set[str], names: list[str]) -> str | None:
    """The first of `names` that is there, else one that only writes its ending in another case (.Jpeg, .PNG)."""
    lower = {Path(name).stem + Path(name).suffix.lower() for name in names}
    return next((name for name in names if name in there), None) or next(
        (name for name in sorted(there) if Path(name).stem + Path(name).suffix.lower() in lower), None
    )


def _get(trial: Any, key: str) -> Any:
    return trial.get(key) if isinstance(trial, dict) else None


class PerceiveLab(Study):
    """The trials of one EEG file that the customary filter keeps, with their split. See `read`."""

    dataset = "perceivelab"
    sfreq = SFREQ
    n_times = CUT[1] - CUT[0]
    tmin = CUT[0] / SFREQ

    def __init__(
        self,
        eeg: Path,
        images: Path,
        splits: str = "official",
        splits_file: Path | None = None,
        split_number: int = 0,
        subject: int = 0,
        seed: int = 0,
        n_chans: int = 128,
        fault: Faults | None = None,
    ) -> None:
        super().__init__(fault)
        self.path, self.n_chans = eeg, n_chans
        self.broken: set[int] = set()  # trials left out for their faults
        self.picture_folders = [images]
        self.simulated = (eeg.parent / "simulation.json").is_file()
        self.inputs = [eeg]
        content = load_plain(eeg)
        self._take(content)
        self.subjects = sorted({trial["subject"] for i, trial in enumerate(self.trials) if i not in self.broken})
        if subject and subject not in self.subjects:
            raise ValueError(f"{eeg} holds no trial of subject={subject}; it holds subjects {self.subjects}")
        # Broken ones stay in here: a `_single` splits file counts them.
        chosen = [i for i, trial in enumerate(self.trials) if subject == 0 or _get(trial, "subject") == subject]
        kept = self._customary_filter(chosen)
        if splits == "official":
            if splits_file is None:
                raise ValueError("splits=official needs splits_file=..., e.g. block_splits_by_image_all.pth")
            self.inputs.append(splits_file)
            all_splits = self._official(splits_file, split_number, chosen, single=bool(subject))
            self.protocol = f"split {split_number} of {splits_file.name}, proportions kept as published"
        elif splits == "by_image":
            all_splits = self._by_image(seed, chosen)
            self.protocol = (
                f"80/10/10 of the images of each class (seed {seed}), every trial of an image in the image's split"
            )
        else:
            raise ValueError(f"splits={splits!r} is not one of official, by_image")
        if subject:
            self.protocol += f"; subject {subject} only"
            self.subjects = [subject]
        self.splits = {name: [i for i in all_splits[name] if i in kept] for name in SPLITS}
        self.pictures = self._find_pictures(images)
        self.splits = {name: [i for i in own if self._image(i) in self.pictures] for name, own in self.splits.items()}
        for name, indices in self.splits.items():
            if not indices:
                raise ValueError(f"{eeg}: no trial is left in split {name!r} ({self.protocol})")
        unused = len(kept - {i for own in all_splits.values() for i in own})
        if unused:
            self.notes.append(f"{unused} trials are in no split and were left out")

    def __len__(self) -> int:
        return len(self.trials)

    def trial(self, index: int) -> Trial:
        """Trial `index` of the file: cut to (n_chans, 440), standardised where the file says how."""
        item = self.trials[index]
        eeg = item["eeg"].float()
        if not torch.isfinite(eeg).all():
            channel = int((~torch.isfinite(eeg)).any(1).nonzero()[0])
            raise ValueError(
                f"{self.path}: {self._name(index)} holds NaN or infinity in channel {channel}: "
                "mend the recording or drop this trial from the file"
            )
        if self.scale is not None:
            eeg = (eeg - self.scale[0]) / self.scale[1]
        image, label = self.images[item["image"]], item["label"]
        return Trial(
            key=f"s{item['subject']}_i{item['image']:04d}_t{index:05d}",
            eeg=eeg[:, CUT[0] : CUT[1]].numpy(),
            jpeg=self.pictures[image],
            subject=item["subject"],
            label=label,
            wnid=self.wnids[label],
            class_name=self.classes[label]["name"],
            image=image,
            extra={"trial_index": index},
        )

    def shown(self, index: int) -> tuple[int, str]:
        return self.trials[index]["subject"], self._image(index)

    def lengths(self) -> list[int]:
        return [trial["eeg"].shape[1] for i, trial in enumerate(self.trials) if i not in self.broken]

    def _image(self, index: int) -> str:
        return self.images[self.trials[index]["image"]]

    def _name(self, index: int) -> str:
        if index in self.broken:
            return f"trial {index}"
        return f"trial {index} (subject {self.trials[index]['subject']}, image {self._image(index)})"

    def _take(self, content: Any) -> None:
        """Check the file's structure and every trial's header; no EEG sample is read yet."""
        path = self.path
        if not isinstance(content, dict) or not {"dataset", "labels", "images"} <= set(content):
            raise ValueError(f"{path} is not a PerceiveLab EEG file: it must hold `dataset`, `labels` and `images`")
        for key in ("dataset", "labels", "images"):
            if not isinstance(content[key], list) or not content[key]:
                raise ValueError(f"{path}: `{key}` must be a list that is not empty")
        self.trials, self.wnids, self.images = content["dataset"], content["labels"], content["images"]
        for key, names in (("labels", self.wnids), ("images", self.images)):
            wrong = [n for n in names if not isinstance(n, str) or not re.fullmatch(r"\w[\w-]*", n)]
            if wrong:
                raise ValueError(f"{path}: `{key}` holds {wrong[0]!r}, which is not a plain name")
            if len(set(names)) < len(names):
                raise ValueError(f"{path}: `{key}` holds {Counter(names).most_common(1)[0][0]!r} twice")
        self.classes = [
            {"label": label, "wnid": wnid, "name": BY_WNID[wnid].name if wnid in BY_WNID else wnid}
            for label, wnid in enumerate(self.wnids)
        ]
        for index, trial in enumerate(self.trials):
            try:
                self._check_header(index, trial)
            except ValueError as error:
                self.fault(str(error))
                self.broken.add(index)
        self.scale: tuple[torch.Tensor, torch.Tensor] | None = None
        self.units = "as in the file"
        if "_std" in path.name:
            self.units = "standard deviations"
        if "means" in content or "stddevs" in content:
            self.scale = self._scale(content.get("means"), content.get("stddevs"))
            self.units = "standard deviations"

    def _check_header(self, index: int, trial: Any) -> None:
        path = self.path
        if not isinstance(trial, dict) or not {"eeg", "image", "label", "subject"} <= set(trial):
            raise ValueError(f"{path}: trial {index} must hold `eeg`, `image`, `label` and `subject`")
        limits = {"image": len(self.images), "label": len(self.wnids), "subject": 1 << 31}
        for key, limit in limits.items():
            if type(trial[key]) is not int or not 0 <= trial[key] < limit:
                raise ValueError(f"{path}: trial {index} has {key} {trial[key]!r}, which the file does not define")
        if trial["subject"] == 0:
            raise ValueError(f"{path}: trial {index} has subject 0; subjects are numbered from 1")
        eeg = trial["eeg"]
        if not isinstance(eeg, torch.Tensor) or eeg.ndim != 2 or eeg.is_complex() or eeg.is_sparse:
            raise ValueError(f"{path}: {self._name(index)} has no EEG table (channels x samples)")
        if eeg.shape[0] != self.n_chans:
            raise ValueError(
                f"{path}: {self._name(index)} has {eeg.shape[0]} channels instead of {self.n_chans}: "
                "drop it from the file, or give n_chans= if every trial has that many"
            )
        if eeg.shape[1] < SHORTEST:
            raise ValueError(
                f"{path}: {self._name(index)} has {eeg.shape[1]} samples where about 500 are expected: "
                "the trial is damaged; drop it from the file"
            )
        image, wnid = self.images[trial["image"]], self.wnids[trial["label"]]
        if not image.startswith(f"{wnid}_"):
            raise ValueError(f"{path}: {self._name(index)} is labelled {wnid}, which is not the class of its image")

    def _scale(self, means: Any, stddevs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations of the raw file as (n_chans, 1) or (1, 1)."""
        parts = []
        for key, value in (("means", means), ("stddevs", stddevs)):
            value = torch.as_tensor(value if isinstance(value, (torch.Tensor, int, float)) else [])
            if value.numel() not in (1, self.n_chans) or not torch.isfinite(value.float()).all():
                raise ValueError(f"{self.path}: `{key}` must hold one finite number, or one for each channel")
            parts.append(value.float().reshape(-1, 1))
        if (parts[1] <= 0).any():
            raise ValueError(f"{self.path}: `stddevs` holds a number that is not positive")
        return parts[0], parts[1]

    def _customary_filter(self, chosen: list[int]) -> set[int]:
        low, high = KEPT_LENGTHS
        chosen = [i for i in chosen if i not in self.broken]
        kept = {i for i in chosen if low <= self.trials[i]["eeg"].shape[1] <= high}
        dropped = len(chosen) - len(kept)
        if dropped > MOST_DROPPED * len(chosen):
            self.fault(
                f"{self.path}: {dropped} of {len(chosen)} trials have fewer than {low} or more than {high} samples; "
                "the published files have about 25 such trials in all: is this file at 1000 Hz?"
            )
        if dropped:
            self.notes.append(f"{dropped} trials with fewer than {low} or more than {high} samples were dropped")
        return kept

    def _official(self, path: Path, number: int, chosen: list[int], single: bool) -> dict[str, list[int]]:
        """Split `number` of a splits file as indices into the whole file; refused if an image is on two sides.

        A `_single` file numbers the trials of one subject, in the order of the file; with `single` (one subject was
        asked for) such a file is known by holding no more indices than the subject has trials.
        """
        content = load_plain(path)
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list) or not splits:
            raise ValueError(f"{path} is not a splits file: it must hold a list `splits`")
        if not 0 <= number < len(splits):
            raise ValueError(f"{path} holds splits 0 to {len(splits) - 1}; split_number={number} is not among them")
        split = splits[number]
        if not isinstance(split, dict) or set(split) != set(SPLITS):
            raise ValueError(f"{path}: split {number} must hold train, val and test")
        found: dict[str, list[int]] = {}
        for name in SPLITS:
            indices = split[name].tolist() if isinstance(split[name], torch.Tensor) else split[name]
            if not isinstance(indices, list) or not all(type(i) is int for i in indices):
                raise ValueError(f"{path}: split {number}: `{name}` must be a list of whole numbers")
            found[name] = indices
        numbers_one_subject = "single" in path.name or sum(map(len, found.values())) <= len(chosen) < len(self.trials)
        if numbers_one_subject and not single and len(self.subjects) > 1:
            raise ValueError(f"{path} numbers the trials of one subject: give subject=..., or the file for all")
        limit = len(chosen) if numbers_one_subject and single else len(self.trials)
        for name, indices in found.items():
            wrong = [i for i in indices if not 0 <= i < limit]
            if wrong:
                raise ValueError(
                    f"{path}: {name} names trial {wrong[0]}, but {self.path} has {limit} trials to number: "
                    "the two files do not belong together"
                )
        if numbers_one_subject and single:
            found = {name: [chosen[i] for i in indices] for name, indices in found.items()}
        self._refuse_leaks(path, found)
        wanted = set(chosen)
        return {name: [i for i in indices if i in wanted] for name, indices in found.items()}

    def _refuse_leaks(self, path: Path, splits: dict[str, list[int]]) -> None:
        trial_side: dict[int, str] = {}
        image_side: dict[int, str] = {}
        for name, indices in splits.items():
            for i in indices:
                if i in trial_side:
                    where = f"twice in {name}" if trial_side[i] == name else f"in both {trial_side[i]} and {name}"
                    self.fault(f"{path}: {self._name(i)} is {where}: use a split that keeps them apart")
                trial_side[i] = name
                if i in self.broken:
                    continue
                image = self.trials[i]["image"]
                if image_side.setdefault(image, name) != name:
                    self.fault(
                        f"{path}: image {self.images[image]} is in both {image_side[image]} and {name}: "
                        "use a split that keeps the trials of an image on one side, or splits=by_image"
                    )

    def _by_image(self, seed: int, chosen: list[int]) -> dict[str, list[int]]:
        """80/10/10 of the images of each class: a function of (names of all images, seed), whatever the subject."""
        by_class: dict[int, set[str]] = defaultdict(set)
        for i, trial in enumerate(self.trials):
            if i not in self.broken:
                by_class[trial["label"]].add(self.images[trial["image"]])
        side = split_images(by_class, self.wnids, seed, str(self.path))
        splits: dict[str, list[int]] = {name: [] for name in SPLITS}
        for i in chosen:
            if i not in self.broken:
                splits[side[self._image(i)]].append(i)
        return splits

    def _find_pictures(self, root: Path) -> dict[str, Path]:
        """Image name -> file, for every image that a split uses."""
        if not root.is_dir():
            raise ValueError(f"images={root} is not a folder")
        there: dict[str, set[str]] = {}
        missing: set[str] = set()
        found: dict[str, Path] = {}
        for i in sorted(i for indices in self.splits.values() for i in indices):
            image, wnid = self.images[self.trials[i]["image"]], self.wnids[self.trials[i]["label"]]
            if image in found:
                continue
            if wnid not in there:
                folder = root / wnid
                there[wnid] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
            name = find_picture(there[wnid], [image + e for e in EXTENSIONS])
            if name is None:
                if image not in missing:
                    missing.add(image)
                    self.fault(
                        f"picture {root / wnid / image}.JPEG is missing, which {self._name(i)} of {self.path} was "
                        "shown: put it there, or give the right images= folder"
                    )
                continue
            found[image] = root / wnid / name
        return found


def read(
    eeg: str | Path,
    images: str | Path,
    splits: str = "official",
    splits_file: str | Path | None = None,
    split_number: int = 0,
    subject: int = 0,
    seed: int = 0,
    n_chans: int = 128,
    fault: Faults | None = None,
) -> PerceiveLab:
    """Open the published files; EEG is read trial by trial.

    splits: "official" takes `split_number` of `splits_file` as it is (the customary split 0 is about 4:1:1);
    "by_image" is 80/10/10 by image, a function of `seed`. `subject` keeps one subject (0: all).
    Raises ValueError, in one sentence, for whatever in the files is not as published; faults of single trials,
    pictures and split entries go to `fault`, which may collect them instead.
    """
    return PerceiveLab(
        Path(eeg),
        Path(images),
        splits,
        Path(splits_file) if splits_file else None,
        split_number,
        subject,
        seed,
        n_chans,
        fault,
    )
