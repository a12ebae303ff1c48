"""EEG encoders by name, with one signature: forward(eeg (B, C, T), subject (B,) or None). What there is, is said here.

backbones.py: our own; library.py: those of braindecode.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from neuroimagen.config import Limited, option, path_option
from neuroimagen.encoders import backbones
from neuroimagen.encoders.backbones import Encoder, SubjectLayer
from neuroimagen.encoders.library import LIBRARY, LibraryEncoder, start_from

__all__ = ["ENCODERS", "EncoderConfig", "SubjectLayer", "make_encoder", "start_from"]

# name -> class, its usual width: LSTM units, convolution channels or filters; None: it has none to choose
ENCODERS: dict[str, tuple[Callable[..., Encoder], int | None]] = {
    "lstm": (backbones.LSTMEncoder, 128),
    "conv": (backbones.ConvEncoder, 64),
    "projection": (backbones.ProjectionEncoder, None),
    "tsconv": (backbones.TSConvEncoder, 40),
    "atm": (backbones.ATMEncoder, 40),
    "simpleconv": (backbones.SimpleConvEncoder, 320),
}
WIDTHS = ", ".join(f"{name} {usual}" for name, (_, usual) in ENCODERS.items() if usual)


def check_encoder(kind: str, width: int | None = None) -> None:
    """ValueError for what is no encoder, or has no width to choose; what a library has is seen when it is made."""
    if kind not in ENCODERS and not kind.startswith(LIBRARY):
        raise ValueError(f"encoder must be {', '.join(ENCODERS)} or {LIBRARY}NAME, not {kind!r}")
    if width is not None and not ENCODERS.get(kind, (None, None))[1]:
        raise ValueError(f"encoder_width={width}: encoder={kind} has no width to choose, leave it out")


def make_encoder(
    kind: str,
    n_chans: int,
    n_times: int,
    n_features: int,
    dropout: float = 0.0,
    width: int | None = None,
    subjects: Sequence[int] = (),
    subject_layer: str = "channels",
    channels: Sequence[str] | None = None,
    sfreq: float = 0.0,
) -> Encoder:
    """The encoder named `kind`, as in ENCODERS, or braindecode:NAME.

    width: none is the usual one; subjects: numbers of people who get a layer of their own in front, over what
    `subject_layer` says (backbones.SubjectLayer); channels (None: not known), sfreq (Hz): for a library's models
    Raises ValueError for EEG that it cannot take.
    """
    check_encoder(kind, width)
    if kind in ENCODERS:
        backbone, usual = ENCODERS[kind]
        least = getattr(backbone, "least", 1)
        if n_times < least:
            raise ValueError(
                f"the {kind} encoder needs at least {least} time samples a trial, the shards have {n_times}"
            )
        encoder = backbone(n_chans, n_times, n_features, dropout, width or usual)
    else:
        encoder = LibraryEncoder(kind, n_chans, n_times, n_features, dropout, channels, sfreq)
    if subjects:
        encoder.front = SubjectLayer(subjects, subject_layer, n_chans, n_times)
    return encoder


@dataclasses.dataclass
class EncoderConfig(Limited):
    """Fields of the trainers that make an encoder."""

    encoder: str = option("lstm", f"EEG backbone: {', '.join(ENCODERS)}, or {LIBRARY}NAME (docs/zoo.md)")
    encoder_width: int | None = option(None, f"units or channels of the backbone (none: {WIDTHS})", at_least=1)
    dropout: float = option(0.0, "dropout in the backbone")
    subject_layer: Literal["none", "channels", "time"] = option(
        "none", "a linear layer for each person of train before the backbone, over channels or time; others: their mean"
    )
    pretrained: str = path_option("", f"weights to start from, of encoder={LIBRARY}NAME: hub id or directory")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoder(self.encoder, self.encoder_width)
        if self.pretrained and not self.encoder.startswith(LIBRARY):
            raise ValueError(f"pretrained={self.pretrained}: encoder={self.encoder} has no weights to start from")

    def encoder_options(
        self, channels: list[str] | None, sfreq: float, subjects: Callable[[], list[int]]
    ) -> dict[str, Any]:
        """What make_encoder needs beyond sizes, as far as this encoder does; subjects: finds those of train."""
        found: dict[str, Any] = {}
        if self.subject_layer != "none":
            found |= {"subjects": subjects(), "subject_layer": self.subject_layer}
        if self.encoder.startswith(LIBRARY):
            found |= {"channels": channels, "sfreq": sfreq}
        return found
