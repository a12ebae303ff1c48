"""Encoders of braindecode, an extra that is imported only when one is asked for, behind a contract: its model is given
the shards' channel names, rate and window and tried on a trial of zeros; what it raises or warns of is refused, and
nothing is padded, renamed or resampled on the way."""

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from neuroimagen.encoders.backbones import Encoder

LIBRARY = "braindecode:"  # what such an encoder's name begins with
# Hz that a model's patches, filters and weights were made for, as its own documentation says.
RATES = {"BIOT": 200, "CBraMod": 200, "EEGDINO": 200, "Labram": 200, "REVE": 200, "SignalJEPA": 128, "ZUNA": 256}


def model_class(kind: str) -> Any:
    """The class braindecode:NAME names; ValueError if it cannot be had."""
    try:
        from braindecode import models
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f'encoder={kind} needs braindecode, which cannot be imported ({reason}): pip install "neuroimagen'
            '[braindecode]", and a torchaudio of the same build as torch'
        ) from None
    name, known = kind.removeprefix(LIBRARY), [name for name in dir(models) if isinstance(getattr(models, name), type)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise ValueError(f"encoder={kind}: braindecode has no such model; {', '.join(near or known)} it has")
    return getattr(models, name)


class LibraryEncoder(Encoder):
    """A model of braindecode whose outputs, as many as n_features, are the features."""

    def __init__(
        self,
        kind: str,
        n_chans: int,
        n_times: int,
        n_features: int,
        dropout: float,
        channels: Sequence[str] | None,
        sfreq: float,
    ) -> None:
        """ValueError, with the remedy, for EEG that the model does not take."""
        super().__init__(n_chans, n_times)
        self.kind, made = kind, model_class(kind)
        rate = RATES.get(made.__name__, sfreq)
        if rate != sfreq:
            raise ValueError(
                f"encoder={kind} was made for EEG of {rate} Hz, the shards have {sfreq:g} Hz: make them with "
                f"resample={rate}"
            )
        takes = inspect.signature(made).parameters
        self.given: dict[str, Any] = {"n_outputs": n_features, "n_chans": n_chans, "n_times": n_times, "sfreq": sfreq}
        if "drop_prob" in takes:
            self.given["drop_prob"] = dropout
        elif dropout:
            raise ValueError(f"dropout={dropout:g}: encoder={kind} has none that can be set, leave it out")
        self.named: dict[str, Any] = {}
        if "ch_names" in inspect.signature(made.forward).parameters:  # it finds its channels by name, trial by trial
            self.named = {"ch_names": None if channels is None else list(channels)}
        elif channels is not None:
            self.given["chs_info"] = [{"ch_name": name} for name in channels]
        with self.contract(sfreq), torch.device("cpu"):
            if self.named and channels is None:
                raise ValueError("it finds its channels by name, and the shards name none")
            self.model = made(**self.given).eval()
            found = self.features(torch.zeros(2, n_chans, n_times))
            if found.shape != (2, n_features):
                raise ValueError(f"of 2 trials it makes {tuple(found.shape)} instead of 2 x {n_features} features")
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            reached = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, reached, strict=True):
                parameter.requires_grad_(gradient is not None)  # DistributedDataParallel would wait for the others
            self.model.train()

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.model(eeg, **self.named)

    def start_from(self, pretrained: str) -> None:
        """Take the weights of a hub id or directory of braindecode's; all of them but the last layer, or ValueError."""
        with self.contract(self.given["sfreq"], f" from pretrained={pretrained}"):
            found = type(self.model).from_pretrained(pretrained, strict=True, **self.given)
            self.model.load_state_dict(found.state_dict())

    @contextlib.contextmanager
    def contract(self, sfreq: float, more: str = "") -> Iterator[None]:
        """ValueError for what the model raises, or warns of itself."""
        reason = ""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                yield
            except Exception as error:  # a library's model can raise anything
                reason = str(error) or type(error).__name__
        ours = [w for w in said if w.category is UserWarning and LIBRARY[:-1] in w.filename]
        told = [str(w.message) for w in ours if "nested_tensor" not in str(w.message)]  # that is torch's, of its speed
        if reason := " ".join((reason or " ".join(told)).split())[:400]:
            shape = f"{self.n_chans} channels x {self.n_times} samples at {sfreq:g} Hz"
            raise ValueError(
                f"encoder={self.kind}{more} does not take {shape} ({reason}): make shards that it takes (picks=, "
                "resample=, window=), or take another encoder"
            )


def start_from(encoder: Any, pretrained: str) -> None:
    """The weights that a config's `pretrained` names, if any, into what make_encoder made of its `encoder`."""
    if pretrained:
        encoder.start_from(pretrained)
