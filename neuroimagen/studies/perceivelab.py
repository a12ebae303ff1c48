"""Reader of the PerceiveLab EEG-ImageNet-40 files (Spampinato et al. 2017), the paper's data set.

The files as published, and as `neuroimagen simulate` writes them:
  EEG file     dict: `dataset` list of {'eeg': tensor (128, L) at 1 kHz, 'image': int, 'label': int, 'subject': int},
               and in a simulated file, in all of them, 'block': int and 'onset': s along the subject's recording;
               `labels` list of wnids, `images` list of names without extension; the raw file adds `means`, `stddevs`
  splits file  {'splits': [{'train': [int], 'val': [int], 'test': [int]}, ...]}, indices into `dataset`
  pictures     <images>/<wnid>/<name>.JPEG
The customary loader (perceivelab/eeg_visual_classification) keeps trials of 450 to 600 samples and takes samples 20 to
459 of each, 440 in all; so does this one. Everything is read with `weights_only=True`: nothing in a file is executed.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch

from neuroimagen.config import option, path_option
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.pth import Header, PthStudy, load_lists, load_plain
from neuroimagen.studies.study import SPLITS, Faults, Trial

KEPT_LENGTHS = (450, 600)  # samples, both ends included: the customary filter
CUT = (20, 460)  # samples: the customary cut
LENGTHS = (300, 1 << 31)  # samples; the files hold about 500 a trial, so a shorter one is damage, not variation
TIMING = ("block", "onset")  # keys of every trial of a file that has one of them; the published files have none
MOST_DROPPED = 0.1  # the published file loses about 25 of 11,965 trials to the filter


@dataclasses.dataclass
class PerceiveLabConfig(StudyConfig):
    """`dataset=perceivelab`"""

    eeg: str = path_option(help="the EEG .pth file")
    images: str = path_option(help="folder with <wnid>/<image>.JPEG")
    splits: Literal["official", "by_image", "trials"] = option(
        "official",
        "the published splits file as it is, or 80/10/10 of the images of each class; trials: wrong on purpose",
    )
    splits_file: str = path_option(
        "", "block_splits_by_image_all.pth or ..._single.pth; for splits=official, which needs it"
    )
    split_number: int = option(0, "which of the splits in the file; 0 is customary")
    n_chans: int = option(128, "channels that every trial must have")


class PerceiveLab(PthStudy):
    """The trials of one EEG file that the customary filter keeps, with their split; EEG is read trial by trial."""

    dataset = "perceivelab"
    n_times = CUT[1] - CUT[0]
    tmin = CUT[0] / PthStudy.sfreq
    fields: tuple[str, ...] = ("eeg", "image", "label", "subject")
    lengths_taken = LENGTHS
    if_channels_differ = ", or give n_chans= if every trial has that many"

    def __init__(self, config: PerceiveLabConfig, fault: Faults | None = None) -> None:
        super().__init__(fault)
        eeg, subject = Path(config.eeg), config.subject
        self.path, self.n_chans, self.inputs = eeg, config.n_chans, [eeg]
        self.simulated = (eeg.parent / "simulation.json").is_file()
        content = load_lists(eeg, "a PerceiveLab EEG", ("labels", "images"))
        self.trials = [(eeg, number, trial) for number, trial in enumerate(content["dataset"])]
        self.wnids, self.images = content["labels"], content["images"]
        self.classes = self.class_table(range(len(self.wnids)))
        if any(not {*TIMING}.isdisjoint(trial) for _, _, trial in self.trials if isinstance(trial, dict)):
            self.fields += TIMING
        self.read_headers()
        self.scale: tuple[torch.Tensor, torch.Tensor] | None = None
        if "means" in content or "stddevs" in content:
            self.scale = self._scale(content.get("means"), content.get("stddevs"))
        self.units = "standard deviations" if self.scale or "_std" in eeg.name else "as in the file"
        self.subjects = self.choose_subject(subject, {header.subject for header in self.headers.values()}, str(eeg))
        # Broken ones stay in here: a `_single` splits file counts them.
        whose = [trial.get("subject") if isinstance(trial, dict) else None for _, _, trial in self.trials]
        chosen = [i for i, own in enumerate(whose) if not subject or own == subject]
        kept = self._customary_filter(chosen)
        if config.splits != "official":
            if config.splits_file or config.split_number:
                raise ValueError("splits_file and split_number are for splits=official: leave them out")
            splits = self.split_at_random(config.splits, chosen, config.seed)
        elif not config.splits_file:
            raise ValueError("splits=official needs splits_file=..., e.g. block_splits_by_image_all.pth")
        else:
            path = Path(config.splits_file)
            self.inputs.append(path)
            splits = self._official(path, config.split_number, chosen, single=bool(subject))
            self.protocol = f"split {config.split_number} of {path.name}, proportions kept as published"
        if unused := len(kept.difference(*splits.values())):
            self.notes.append(f"{unused} trials are in no split and were left out")
        splits = {name: [i for i in own if i in kept] for name, own in splits.items()}
        self.keep_pictured(splits, Path(config.images), subject, str(eeg))

    def trial(self, index: int) -> Trial:
        """Trial `index` of the file: cut to (n_chans, 440), standardised where the file says how."""
        header, item = self.headers[index], self.trials[index][2]
        eeg = header.eeg.float()
        if self.scale is not None:
            eeg = (eeg - self.scale[0]) / self.scale[1]
        timing = {} if header.onset is None else {"block": item["block"], "onset_s": header.onset}
        key = f"s{header.subject}_i{item['image']:04d}_t{index:05d}"
        return self.read_trial(index, key, eeg, slice(*CUT), {"trial_index": index} | timing)

    def header(self, where: str, trial: dict[str, Any]) -> Header:
        limits = {"image": len(self.images), "label": len(self.wnids), "subject": 1 << 31}
        for key, limit in limits.items():
            if type(trial[key]) is not int or not 0 <= trial[key] < limit:
                raise ValueError(f"{where} has {key} {trial[key]!r}, which the file does not define")
        subject, image = trial["subject"], self.images[trial["image"]]
        if subject == 0:
            raise ValueError(f"{where} has subject 0; subjects are numbered from 1")
        made = Header(subject, trial["label"], image, trial["eeg"], f"subject {subject}, image {image}")
        if "onset" not in self.fields:
            return made
        block, onset = (trial[key] for key in TIMING)
        if type(block) is not int or type(onset) not in (int, float) or not math.isfinite(onset):
            raise ValueError(f"{where} has block {block!r} and onset {onset!r}: a whole number and finite seconds")
        return dataclasses.replace(made, block=str(block), onset=float(onset))

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
        chosen = [i for i in chosen if i in self.headers]
        kept = {i for i in chosen if low <= self.headers[i].eeg.shape[1] <= high}
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
        image_side: dict[str, str] = {}
        for name, indices in splits.items():
            for i in indices:
                if i in trial_side:
                    where = f"twice in {name}" if trial_side[i] == name else f"in both {trial_side[i]} and {name}"
                    self.fault(f"{path} has {self.named(i)} {where}: use a split that keeps them apart")
                trial_side[i] = name
                if i not in self.headers:
                    continue
                image = self.image(i)
                if image_side.setdefault(image, name) != name:
                    self.fault(
                        f"{path}: image {image} is in both {image_side[image]} and {name}: "
                        "use a split that keeps the trials of an image on one side, or splits=by_image"
                    )
