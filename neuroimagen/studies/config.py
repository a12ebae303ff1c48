"""What a command that reads a study can be told of every data set; a reader adds its own fields beside its code."""

import dataclasses
from typing import Any, Literal

from neuroimagen.config import option


@dataclasses.dataclass
class SignalOptions:
    """What is done to the signal; studies/signal.py says in which order."""

    picks: list[str] = option(
        [],
        "channels to keep, in this order: names, numbers from 0, or regions (frontal, central, temporal, parietal, "
        "occipital); empty: all",
    )
    detrend: bool = option(False, "take the least-squares line out of each channel of a trial", newer=True)
    notch: list[float] = option([], "Hz: frequencies to take out, e.g. [50] or [60,120]; zero-phase")
    band: list[float] = option([], "Hz: [low, high] of a zero-phase band-pass; 0 leaves that end open")
    resample: float = option(0.0, "Hz: new sampling rate; 0 keeps that of the files")
    baseline: list[float] = option([], "s: [from, to], whose mean is subtracted from each channel; also outside window")
    window: list[float] = option(
        [], "s: [from, to] to keep, from picture onset (from the first sample, where the files do not tell the onset)"
    )
    whiten: Literal["none", "time", "epochs"] = option(
        "none",
        "multivariate noise normalisation by train trials of the subject; noise: between repetitions of an image at "
        "each time, or over the time of each trial",
    )
    repetitions: Literal["none", "test", "all"] = option(
        "none", "in which splits to average what one subject saw of one image"
    )
    repetition_groups: int = option(0, "average in groups of so many, a remainder is left out; 0: all of an image")
    standardise: Literal["none", "trial", "channel"] = option(
        "none", "each trial to mean 0 and standard deviation 1: as a whole, or each channel"
    )


@dataclasses.dataclass
class ControlOptions:
    """Who and what is held out, and what is made untrue on purpose; studies/controls.py says how."""

    hold_out: list[int] = option(
        [], "blocks of each subject in order of time whose test trials are the test split, -1 is the last", newer=True
    )
    hold_out_subject: int = option(0, "the subject whose test trials are the test split; 0: none", newer=True)
    hold_out_classes: int = option(0, "so many classes, drawn by seed, are in test and nowhere else", newer=True)
    audit: bool = option(False, "allow splits=trials, which no result may rest on", newer=True)
    control_labels: Literal["none", "shuffled", "blocks", "nonsense"] = option(
        "none",
        "labels, with their pictures, dealt out anew within each subject and block (or run), permuted between the "
        "blocks of a subject, or each class cut at random into two",
        newer=True,
    )
    control_eeg: Literal["none", "surrogate", "amplitude", "other_trial"] = option(
        "none",
        "EEG of a train trial of the subject with random phases, of the trial itself with random phases, or of another "
        "trial of the same block",
        newer=True,
    )


@dataclasses.dataclass
class StudyConfig(ControlOptions, SignalOptions):
    """Fields of every data set. Those of one: a subclass beside its reader, with what that reader uses and no more."""

    dataset: str = option("perceivelab", "which data set")
    subject: int = option(0, "keep this subject only, counted from 1; 0 keeps all (recording: as the file says)")
    seed: int = option(0, "of whatever the reader draws: splits=by_image, val pictures, shuffled labels, averages")
    background: str = option(
        "", "colour on which transparent pictures were shown: white, grey, black, '#rrggbb'; empty: they are refused"
    )
    orientation: Literal["", "as_stored", "upright"] = option(
        "", "how pictures with an EXIF orientation were shown; empty: they are taken as they lie, and check asks"
    )


class Given:
    """A config that remembers which of its fields were given, by name, or set later."""

    given: frozenset[str] = frozenset()

    def __new__(cls, *_: Any, **fields: Any) -> Any:
        assert dataclasses.is_dataclass(cls)
        made = super().__new__(cls)
        made.given = frozenset(fields)
        if len(fields) == len(dataclasses.fields(cls)):  # dataclasses.replace gives all, as they were
            default = cls()
            made.given = frozenset(name for name, value in fields.items() if value != getattr(default, name))
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) and name != "given":
            self.given |= {name}
        super().__setattr__(name, value)
