"""Where a study comes from: the fields that say which files to read and how, and the reader they name."""

import dataclasses
from typing import Literal

from neuroimagen.config import option
from neuroimagen.data.study import Faults, Study

PATHS = ("eeg", "images", "splits_file", "recording")  # fields that name files or folders


@dataclasses.dataclass
class SourceConfig:
    """Which study to read: the part of a config that `neuroimagen shards` and `check` have in common."""

    dataset: Literal["perceivelab", "things_eeg2", "eeg_imagenet", "recording"] = option("perceivelab", "which reader")
    eeg: str = option(
        "",
        "perceivelab: the EEG .pth file; things_eeg2: folder with sub-01, sub-02, ...; eeg_imagenet: folder with "
        "EEG-ImageNet_1.pth, EEG-ImageNet_2.pth or one of them",
    )
    images: str = option(
        "",
        "perceivelab, eeg_imagenet: folder with <wnid>/<image>.JPEG; things_eeg2: folder with training_images/ and "
        "test_images/",
    )
    splits: Literal["official", "by_image"] = option(
        "official",
        "perceivelab: the published splits file as it is; eeg_imagenet: by the order of the file, as published; both: "
        "or 80/10/10 of the images of each class; things_eeg2: official only",
    )
    splits_file: str = option("", "perceivelab: block_splits_by_image_all.pth or ..._single.pth; for splits=official")
    split_number: int = option(0, "perceivelab: which of the splits in the file; 0 is customary")
    granularity: Literal["coarse", "fine", "all"] = option("all", "eeg_imagenet: which trials")
    subject: int = option(0, "keep this subject only, counted from 1; 0 keeps all (recording: as the file says)")
    n_chans: int = option(128, "perceivelab: channels that every trial must have")
    recording: str = option("", "recording: the study's YAML file; what is given below goes before what it says")
    hold_out: list[int] = option([], "recording: test runs of each subject, -1 is the last; empty: as the file says")
    average: int = option(0, "recording: test on averages of so many trials of one class; 0: as the file says")
    shuffle_labels: bool = option(False, "recording: control, shuffle the labels within each run")
    seed: int = option(0, "of splits=by_image; things_eeg2: of the val pictures; of shuffle_labels and average")


def open_study(config: SourceConfig, fault: Faults | None = None) -> Study:
    """The reader that `config.dataset` names, opened. fault: what to do about faults of single trials and pictures."""
    if config.dataset == "recording":
        from neuroimagen.data import recording  # its libraries are an extra

        return recording.read(config, fault)
    for key in ("eeg", "images"):
        if not getattr(config, key):
            raise ValueError(f"dataset={config.dataset} needs {key}=... (--help says what it is)")
    if config.dataset == "things_eeg2":
        from neuroimagen.data import things_eeg2

        if config.splits != "official":
            raise ValueError("dataset=things_eeg2 has its published test set and no other: leave splits=official")
        return things_eeg2.read(config.eeg, config.images, config.subject, config.seed, fault)
    if config.dataset == "eeg_imagenet":
        from neuroimagen.data import eeg_imagenet

        return eeg_imagenet.read(
            config.eeg, config.images, config.splits, config.granularity, config.subject, config.seed, fault
        )
    from neuroimagen.data import perceivelab

    return perceivelab.read(
        eeg=config.eeg,
        images=config.images,
        splits=config.splits,
        splits_file=config.splits_file or None,
        split_number=config.split_number,
        subject=config.subject,
        seed=config.seed,
        n_chans=config.n_chans,
        fault=fault,
    )
