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


def signal_options(config: SignalOptions) -> SignalOptions:
    """The signal options of a larger config."""
    return SignalOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(SignalOptions)})


@dataclasses.dataclass
class StudyConfig(SignalOptions):
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
