"""EEG given from Python: what a trained model takes (`Contract`), and the way there, which is that of the shards.

Three ways in, all of which end as `ShardSplit.eeg` gives a trial: (n_trials, n_chans, n_times) float32 in the units of
the contract, not yet standardised by the statistics of the train split.
  an array               as the shards hold it: checked, and rounded as they are stored
  an array and its rate  as recorded: through the signal options that the shards were made with
  mne.Epochs             the same, with channels by name and microvolts from volts, as studies/epochs.py takes them
"""

import dataclasses
import math
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch

from neuroimagen.shards.format import Manifest
from neuroimagen.studies.epochs_files import SAME_RATE, eeg_channels, recorded, said
from neuroimagen.studies.signal import Prepared, SignalOptions
from neuroimagen.studies.study import Study, Trial, some

VOLTS = ("epochs", "recording")  # data sets whose EEG was in volts in mne, and is in microvolts here
LARGEST, SMALLEST = 100.0, 0.01  # times the train split's spread: beyond, the unit is another one, not the brain
SAME_FILTER = 0.1  # relative: mne writes the edges of a filter as they were asked for


@dataclasses.dataclass
class Contract:
    """What EEG a model takes: the manifest of its shards, without the trials."""

    dataset: str
    n_chans: int
    n_times: int
    sfreq: float  # Hz
    units: str
    eeg_dtype: str
    channel_mean: list[float]  # of the train split, in `units`
    channel_std: list[float]
    channels: list[str] | None = None  # None: the files do not name them
    tmin: float | None = None  # s from picture onset to the first sample; None: not known
    before: dict[str, list[float]] | None = None  # done by the reader, e.g. to whole recordings
    recorded: list[dict[str, Any]] | None = None  # what its files state of pass band and reference
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # the signal options: studies/signal.py

    @classmethod
    def of(cls, manifest: Manifest) -> "Contract":
        kept = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(cls) if hasattr(manifest, f.name)}
        told, names = manifest.config, [f.name for f in dataclasses.fields(SignalOptions)]
        kept["recorded"] = [{k: v for k, v in own.items() if k != "files"} for own in manifest.recorded or []] or None
        return cls(**kept, options={name: told[name] for name in names if name in told})

    def __str__(self) -> str:
        start = "" if self.tmin is None else f" from {self.tmin:g} s"
        return f"{self.n_chans} channels x {self.n_times} samples at {self.sfreq:g} Hz{start}, in {self.unit}"

    @property
    def unit(self) -> str:
        return "the unit of its files" if self.units == "as in the file" else self.units


class Given(Study):
    """Trials (n, n_chans, n_times) from Python as a study that `Prepared` takes."""

    dataset, protocol = "given", "as given"

    def __init__(self, eeg: np.ndarray, sfreq: float, tmin: float, channels: list[str] | None, units: str) -> None:
        super().__init__()
        self.eeg, self.sfreq, self.tmin, self.channels, self.units = eeg, sfreq, tmin, channels, units
        self.n_chans, self.n_times = eeg.shape[1:]
        self.splits = {"test": list(range(len(eeg)))}
        self.classes, self.inputs = [], []

    def __len__(self) -> int:
        return len(self.eeg)

    def trial(self, index: int) -> Trial:
        return Trial(f"{index}", self.eeg[index].astype(np.float32), b"", 0, 0, "", "", "")


def take(
    contract: Contract, eeg: Any, sfreq: float | None = None, tmin: float = 0.0, channels: list[str] | None = None
) -> torch.Tensor:
    """(n_trials, n_chans, n_times) float32 as the model's shards hold it; ValueError, in a sentence, for what is not.

    eeg: mne.Epochs; or an array, of the contract's shape and units if `sfreq` is None, else as recorded: (n_trials,
    channels, samples) at `sfreq` Hz, from `tmin` s after picture onset; channels: their names, None: in the order of
    the files that the shards were made of.
    """
    if "mne" in sys.modules and isinstance(eeg, sys.modules["mne"].BaseEpochs):
        if sfreq is not None or channels is not None:
            raise ValueError("Epochs say themselves what sfreq and channels are: leave those out")
        array, sfreq, tmin, channels = _of_epochs(contract, eeg)
    else:
        array = _array(contract, eeg, as_recorded=sfreq is not None)
        if sfreq is not None and channels is not None and len(channels) != array.shape[1]:
            raise ValueError(f"channels has {len(channels)} names, but eeg has {array.shape[1]} channels")
    prepared = array if sfreq is None else _through_options(contract, array, sfreq, tmin, channels)
    _check_values(contract, prepared)
    with np.errstate(over="ignore"):
        stored = prepared.astype(np.float16 if contract.eeg_dtype == "float16" else np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(f"eeg holds a value of {np.abs(prepared).max():.3g}, which {contract.eeg_dtype} cannot hold")
    return torch.from_numpy(stored.astype(np.float32))


def _array(contract: Contract, eeg: Any, as_recorded: bool) -> np.ndarray:
    if type(eeg).__module__.startswith("mne."):
        raise ValueError(
            f"eeg is {type(eeg).__name__} of mne, but must be Epochs, or an array of numbers: cut recordings with "
            "mne.Epochs(raw, events, ...); of an Evoked give evoked.data[None] * 1e6, its sfreq, tmin and channels"
        )
    array = np.asarray(eeg)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"eeg must be an array of numbers or mne.Epochs, not {type(eeg).__name__} ({array.dtype})")
    if array.ndim != 3 or (not as_recorded and array.shape[1:] != (contract.n_chans, contract.n_times)):
        wanted = "channels, samples" if as_recorded else f"{contract.n_chans}, {contract.n_times}"
        remedy = "" if as_recorded else "; EEG as it was recorded needs sfreq=, its sampling rate"
        raise ValueError(f"eeg has shape {array.shape}, but this model takes (n_trials, {wanted}): {contract}{remedy}")
    if not len(array):
        raise ValueError("eeg holds no trial")
    if not np.isfinite(array).all():
        trial = int(np.flatnonzero(~np.isfinite(array).all(axis=(1, 2)))[0])
        raise ValueError(f"eeg: trial {trial} holds NaN or infinity: mend it or leave it out")
    return array.astype(np.float32)


def _missing(wanted: list[str], names: list[str]) -> list[str]:
    known = {name.casefold() for name in names}
    return [name for name in wanted if name.casefold() not in known]


def _of_epochs(contract: Contract, epochs: Any) -> tuple[np.ndarray, float, float, list[str]]:
    """EEG in microvolts, rate, start and channels of mne.Epochs, as studies/epochs.py reads them from a file."""
    if contract.dataset not in VOLTS or contract.channels is None:
        why = "names no channels" if contract.channels is None else "is not known to be in volts"
        raise ValueError(
            f"this model was trained on {contract.dataset} data, whose EEG {why}, so Epochs cannot be matched to it: "
            f"give an array of {contract}"
        )
    epochs = _whole(epochs)
    names = eeg_channels("these Epochs", epochs.info)
    if missing := _missing(contract.channels, names):
        raise ValueError(
            f"these Epochs lack {len(missing)} of the {contract.n_chans} EEG channels that this model takes: "
            f"{', '.join(missing)} (they have {', '.join(names)}): rename or interpolate them"
        )
    low, high = (contract.before or {}).get("band", [0, 0])
    for edge, had in ((low, epochs.info["highpass"]), (high, epochs.info["lowpass"])):
        if edge and abs(had - edge) > SAME_FILTER * edge:
            raise ValueError(
                f"this model takes EEG that was filtered from {low:g} to {high:g} Hz before it was cut, but these "
                f"Epochs are of {epochs.info['highpass']:g} to {epochs.info['lowpass']:g} Hz: cut them again after "
                f"raw.filter({low or None}, {high or None})"
            )
    _compare(contract, epochs.info, filtered=bool(low or high))
    eeg = _array(contract, epochs.get_data(picks=names) * 1e6, as_recorded=True)
    return eeg, float(epochs.info["sfreq"]), float(epochs.tmin), names


def _whole(epochs: Any) -> Any:
    """Epochs in memory, as mne reads them from a file: what their Epochs still have to drop is dropped (of a copy)."""
    if not epochs.preload or not all(projector["active"] for projector in epochs.info["projs"]):
        before = epochs
        with sys.modules["mne"].use_log_level("ERROR"):
            epochs = epochs.copy().load_data().apply_proj()
        known = set(map(int, before.selection))
        dropped = Counter(why for i in known - set(map(int, epochs.selection)) for why in epochs.drop_log[i])
        if dropped:
            reasons = some([f"{why} ({times})" for why, times in dropped.most_common()])
            text = f"{len(known) - len(epochs)} of {len(known)} epochs were dropped: {reasons}"
            if not len(epochs):
                raise ValueError(f"these Epochs hold no trial: {text}")
            left = some(list(map(str, epochs.selection)), 20)
            warnings.warn(f"{text}; left, and drawn in this order, are numbers {left} of `selection`", stacklevel=2)
    if not len(epochs):
        raise ValueError("these Epochs hold no trial")
    return epochs


def _compare(contract: Contract, info: Any, filtered: bool) -> None:
    """Warns of Epochs whose pass band or reference is none of those that the model's files state.

    As far as the model sees them: its own band and rate cut what lies beyond. filtered: the band was compared already
    """
    low, high = contract.options.get("band") or (0, 0)

    def seen(facts: dict[str, Any]) -> tuple[float, float, bool]:
        top = min(facts["lowpass"] or math.inf, high or math.inf, contract.sfreq / 2)
        edges = (0.0, 0.0) if filtered else (max(facts["highpass"], low), top)
        return (*edges, bool(facts["custom_ref_applied"]))

    own = recorded(info)
    theirs = contract.recorded or [own]
    pairs = [zip(seen(own), seen(facts), strict=True) for facts in theirs]
    if not any(all(math.isclose(a, b, rel_tol=SAME_FILTER) for a, b in each) for each in pairs):
        warnings.warn(
            f"these Epochs are of {said(own)}, but what this model was trained on is of "
            f"{some([said(facts) for facts in theirs])}: filter and reference yours alike",
            stacklevel=2,
        )


def _through_options(
    contract: Contract, eeg: np.ndarray, sfreq: float, tmin: float, channels: list[str] | None
) -> np.ndarray:
    """EEG as recorded through the signal options of the shards, by the code that made the shards."""
    options, before = SignalOptions(**contract.options), contract.before or {}
    if contract.tmin is None:
        raise ValueError(
            "this model's shards were made before shards said when their trials begin: make them again and export the "
            f"model again, or give an array of {contract}"
        )
    if options.whiten != "none":
        raise ValueError(
            f"this model takes EEG whitened by the noise of each subject's train trials (whiten={options.whiten}), "
            f"which is no part of it: give an array of {contract}"
        )
    if sfreq < contract.sfreq - SAME_RATE:
        at = f"at {sfreq:g} Hz, but the model takes {contract.sfreq:g} Hz"
        raise ValueError(f"this EEG is {at}: give it at that or more")
    options.repetitions, options.repetition_groups = "none", 0  # what is given is a trial, whoever averaged it
    if channels is not None and contract.channels is not None:
        if missing := _missing(contract.channels, channels):
            raise ValueError(f"channels lacks {', '.join(missing)}, which this model takes")
        options.picks = list(contract.channels)
    elif channels is not None:
        raise ValueError("this model was trained on files that do not name their channels: leave channels= out")
    elif any(not str(pick).isdecimal() for pick in options.picks):
        names = ", ".join(contract.channels or [])
        raise ValueError(f"this model takes channels {names}: say channels=, yours by name")
    options.resample = contract.sfreq if abs(sfreq - contract.sfreq) > SAME_RATE else 0.0
    options.notch = [] if "notch" in before else options.notch
    options.band = [] if "band" in before else options.band
    options.baseline = before.get("baseline", options.baseline)
    end = contract.tmin + contract.n_times / contract.sfreq
    if tmin > contract.tmin + 0.5 / contract.sfreq or tmin + (eeg.shape[2] + 0.5) / sfreq < end:
        raise ValueError(
            f"this EEG lasts from {tmin:g} to {tmin + eeg.shape[2] / sfreq:g} s, but the model takes {contract.tmin:g} "
            f"to {end:g} s, counted from picture onset: cut longer trials"
        )
    options.window = [contract.tmin, end]
    prepared = Prepared(Given(eeg, sfreq, tmin, channels, contract.units), options)
    if (prepared.n_chans, prepared.n_times) != (contract.n_chans, contract.n_times):
        raise ValueError(f"this EEG becomes {prepared.n_chans} x {prepared.n_times}, but the model takes {contract}")
    return np.stack([prepared.trial(i).eeg for i in range(len(prepared))])


def _check_values(contract: Contract, eeg: np.ndarray) -> None:
    """Refuses trials that cannot be EEG in the contract's units: flat, or far larger or smaller than any trained on."""
    mean, std = np.array(contract.channel_mean), np.array(contract.channel_std)
    moving = std > 0
    for i, trial in enumerate(eeg):
        trial = trial[moving].astype(np.float64)
        own, offset = trial.std(axis=1), trial.mean(axis=1) - mean[moving]
        # Medians over channels: one electrode that is off is no reason to refuse a trial.
        spread = float(np.median(own / std[moving]))
        size = float(np.median(np.hypot(own, offset) / std[moving]))
        if size > LARGEST or spread < SMALLEST:
            raise ValueError(
                f"eeg: trial {i} varies {spread:.2g} times as much as the train split, in {contract.unit} "
                f"({size:.2g} with its offset; medians over channels): give it in that unit, or leave out a flat trial"
            )
