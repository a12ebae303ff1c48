"""Where a study comes from: the fields that say which files to read and how, and the reader they name."""

import dataclasses
from typing import Literal

from neuroimagen.config import option, path_option
from neuroimagen.pictures import colour
from neuroimagen.studies.signal import Prepared, SignalOptions, signal_options
from neuroimagen.studies.study import Faults, Study


@dataclasses.dataclass
class FilesConfig:
    """Which files to read, and as what."""

    dataset: Literal["perceivelab", "things_eeg2", "eeg_imagenet", "recording", "epochs"] = option(
        "perceivelab", "which reader"
    )
    eeg: str = path_option(
        "",
        "perceivelab: the EEG .pth file; things_eeg2: folder with sub-01, sub-02, ...; eeg_imagenet: folder with "
        "EEG-ImageNet_1.pth, EEG-ImageNet_2.pth or one of them; epochs: files of mne.Epochs, or a BIDS root",
    )
    images: str = path_option(
        "",
        "perceivelab, eeg_imagenet: folder with <wnid>/<image>.JPEG; things_eeg2: folder with training_images/ and "
        "test_images/; epochs: folder of the pictures",
    )
    trials: str = path_option("", "epochs: CSV table of which event shows which picture (docs/data.md)")
    task: str = option(
        "", "epochs: of a BIDS data set, only recordings of this task (as in task-<label> of their names)"
    )
    ignore_markers: list[str] = option(
        [], "recording, epochs: event or marker values that are no picture onsets, e.g. offset or response codes"
    )
    splits: Literal["official", "by_image"] = option(
        "official",
        "perceivelab: the published splits file as it is; eeg_imagenet: by the order of the file, as published; "
        "epochs: the table's column `split`; all three: or 80/10/10 of the images of each class; "
        "things_eeg2: official only",
    )
    splits_file: str = path_option(
        "", "perceivelab: block_splits_by_image_all.pth or ..._single.pth; for splits=official"
    )
    split_number: int = option(0, "perceivelab: which of the splits in the file; 0 is customary")
    granularity: Literal["coarse", "fine", "all"] = option("all", "eeg_imagenet: which trials")
    subject: int = option(0, "keep this subject only, counted from 1; 0 keeps all (recording: as the file says)")
    n_chans: int = option(128, "perceivelab: channels that every trial must have")
    recording: str = path_option("", "recording: the study's YAML file; what is given below goes before what it says")
    hold_out: list[int] = option(
        [], "recording, epochs: test runs of each subject, -1 is the last; empty: as the file or `splits` says"
    )
    background: str = option(
        "", "colour on which transparent pictures were shown: white, grey, black, '#rrggbb'; empty: they are refused"
    )
    orientation: Literal["", "as_stored", "upright"] = option(
        "", "how pictures with an EXIF orientation were shown; empty: they are taken as they lie, and check asks"
    )
    average: int = option(0, "recording: test on averages of so many trials of one class; 0: as the file says")
    shuffle_labels: bool = option(False, "recording: control, shuffle the labels within each run")
    seed: int = option(0, "of splits=by_image; things_eeg2: of the val pictures; of shuffle_labels and average")


@dataclasses.dataclass
class SourceConfig(SignalOptions, FilesConfig):
    """Which study to read, and what to do to its signal: what `neuroimagen shards` and `check` have in common."""


PATHS = [field.name for field in dataclasses.fields(SourceConfig) if field.metadata["path"]]


def open_study(config: SourceConfig, fault: Faults | None = None) -> Study:
    """The reader that `config.dataset` names, opened, and the signal options applied to its trials.

    fault: what to do about faults of single trials and pictures.
    """
    colour(config.background or "white")
    study, options = _open_files(config, fault), signal_options(config)
    for name in study.applied:  # to whole recordings, before they were cut
        setattr(options, name, [])
    return study if options == SignalOptions() else Prepared(study, options)


def _open_files(config: SourceConfig, fault: Faults | None) -> Study:
    if config.task and config.dataset != "epochs":
        raise ValueError(f"task={config.task} is for dataset=epochs: leave it out")
    if config.ignore_markers and config.dataset not in ("epochs", "recording"):
        raise ValueError("ignore_markers is for dataset=epochs and dataset=recording: leave it out")
    if config.dataset == "recording":
        from neuroimagen.studies import recordings as recording  # its libraries are an extra

        return recording.read(config, fault)
    if config.dataset == "epochs":
        from neuroimagen.studies import epochs

        return epochs.read(config, fault)
    for key in ("eeg", "images"):
        if not getattr(config, key):
            raise ValueError(f"dataset={config.dataset} needs {key}=... (--help says what it is)")
    if config.dataset == "things_eeg2":
        from neuroimagen.studies import things_eeg2

        if config.splits != "official":
            raise ValueError("dataset=things_eeg2 has its published test set and no other: leave splits=official")
        return things_eeg2.read(config.eeg, config.images, config.subject, config.seed, fault)
    if config.dataset == "eeg_imagenet":
        from neuroimagen.studies import eeg_imagenet

        return eeg_imagenet.read(
            config.eeg, config.images, config.splits, config.granularity, config.subject, config.seed, fault
        )
    from neuroimagen.studies import perceivelab

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
