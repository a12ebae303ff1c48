"""The data sets: which fields each has, and which reader opens it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from neuroimagen.config import MISSING, option, path_option
from neuroimagen.pictures import colour
from neuroimagen.studies import eeg_imagenet, epochs, perceivelab, recordings, things_eeg2
from neuroimagen.studies.config import Given, SignalOptions, StudyConfig
from neuroimagen.studies.controls import check_controls, with_controls
from neuroimagen.studies.signal import Prepared
from neuroimagen.studies.study import Faults, Study

DATASETS: dict[str, tuple[type[StudyConfig], Callable[[Any, Faults | None], Study]]] = {
    "perceivelab": (perceivelab.PerceiveLabConfig, perceivelab.PerceiveLab),
    "things_eeg2": (things_eeg2.ThingsEeg2Config, things_eeg2.ThingsEeg2),
    "eeg_imagenet": (eeg_imagenet.EegImageNetConfig, eeg_imagenet.EegImageNet),
    "recording": (recordings.RecordingConfig, recordings.Recordings),
    "epochs": (epochs.EpochsConfig, epochs.LabEpochs),
}


@dataclasses.dataclass
class SourceConfig(
    Given,
    perceivelab.PerceiveLabConfig,
    things_eeg2.ThingsEeg2Config,
    eeg_imagenet.EegImageNetConfig,
    recordings.RecordingConfig,
    epochs.EpochsConfig,
):
    """The fields of a command that reads a study, whichever data set that is. `chosen` keeps those of one."""

    kinds = {name: schema for name, (schema, _) in DATASETS.items()}
    dataset: Literal[tuple(DATASETS)] = option("perceivelab", "which data set", kinds=kinds)  # type: ignore[valid-type]
    splits: Literal["official", "by_image", "trials"] = option(
        "official", "as the data set comes; 80/10/10 of the images of each class; or, for an audit, of its trials"
    )
    # What one of them must be given, "" where it is not.
    eeg: str = path_option("")
    images: str = path_option("")
    trials: str = path_option("")


PATHS = {field.name for field in dataclasses.fields(SourceConfig) if field.metadata["path"]}


def chosen(config: SourceConfig) -> StudyConfig:
    """What was given for `config.dataset`, as that data set's own config.

    ValueError for a field that this data set does not have, unless it is given as what it is anyhow, such as an empty
    one, and for one that it needs and was not given.
    """
    schema, _ = DATASETS[config.dataset]
    fields: dict[str, Any] = {"dataset": config.dataset}
    usual = SourceConfig()
    for name in sorted(config.given & vars(usual).keys()):
        value = getattr(config, name)
        if name in schema.__dataclass_fields__:
            fields[name] = value
        elif value != getattr(usual, name):
            said = f"={value}" if isinstance(value, str) else ""
            users = (f"dataset={user}" for user in sorted(DATASETS) if name in DATASETS[user][0].__dataclass_fields__)
            raise ValueError(f"{name}{said} is for {' and '.join(users)}: leave it out")
    for field in dataclasses.fields(schema):
        if field.default is MISSING and not fields.get(field.name):
            raise ValueError(f"dataset={config.dataset} needs {field.name}=... (--help says what it is)")
    return schema(**fields)


def listed(config: StudyConfig) -> dict[str, Any]:
    """Its fields as a manifest lists them: the data set's own last, and those newer than manifests where they are set.

    So what asks for nothing new is written byte for byte as it was.
    """
    own, fields = type(config).__annotations__, type(config).__dataclass_fields__
    found, usual = dataclasses.asdict(config), dataclasses.asdict(type(config)())
    names = [*(name for name in found if name not in own), *own]
    return {name: found[name] for name in names if not fields[name].metadata["newer"] or found[name] != usual[name]}


def open_study(config: SourceConfig, fault: Faults | None = None) -> Study:
    """The study that `config` names, opened, and the signal options applied to its trials.

    fault: what to do about faults of single trials and pictures.
    """
    colour(config.background or "white")
    own = chosen(config)
    check_controls(own)
    study = DATASETS[config.dataset][1](own, fault)
    options = SignalOptions(**{name: getattr(own, name) for name in SignalOptions.__dataclass_fields__})
    for name in study.applied:  # to whole recordings, before they were cut
        setattr(options, name, [])
    study = with_controls(study, own)
    return study if options == SignalOptions() else Prepared(study, options)
