"""A study as the audit reads it: facts of all trials, window means of their EEG in each variant, coarse pictures.

A variant is the study opened with other options, so that a control here is what `neuroimagen shards` would pack.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from neuroimagen.audit.statistics import numbered
from neuroimagen.audit.verdicts import LIMITS
from neuroimagen.config import option, path_option
from neuroimagen.doctor.picture_hash import grey_copy
from neuroimagen.linear import window_means
from neuroimagen.shards.tars import ShardsConfig, open_picture, read_picture
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import Study

GRID = 8  # a picture is described by GRID x GRID colours
BANDS = {"5-95 Hz": [5.0, 95.0], "14-70 Hz": [14.0, 70.0], "55-95 Hz": [55.0, 95.0]}  # of the published files
VARIANTS: dict[str, dict[str, Any]] = {
    "surrogate": {"control_eeg": "surrogate"},
    "amplitude": {"control_eeg": "amplitude"},
    "other_trial": {"control_eeg": "other_trial"},
    "below": {"band": [0.0, LIMITS["slow"]]},
    "detrended": {"detrend": True, "standardise": "channel"},
    **{f"band {name}": {"band": band} for name, band in BANDS.items()},
}


class Untold(ValueError):
    """These files do not allow a part of the audit; the others go on."""


@dataclasses.dataclass
class AuditConfig(ShardsConfig):
    """`neuroimagen audit`: the fields of `neuroimagen shards`, so that it reads that section of an overlay."""

    out: str = path_option(help="folder for audit.html, audit.json and parts/, which the same command goes on with")
    run: str = path_option("", "a finished reconstruct run, to set beside the linear decoders; empty: none")
    quick: bool = option(False, "the main controls alone: about a minute for some thousand trials")


@dataclasses.dataclass
class Trials:
    """Facts of the trials in a split; (n,) each. block, onset: "" and NaN where the files do not tell."""

    subject: np.ndarray
    image: np.ndarray
    label: np.ndarray
    split: np.ndarray
    block: np.ndarray
    onset: np.ndarray
    split_by: str = "image"
    known: bool = True  # which picture was shown; or its class alone

    def __post_init__(self) -> None:
        self.n_classes = int(self.label.max()) + 1
        self.person = numbered(self.subject)
        self.timed = bool((self.block != "").all() and np.isfinite(self.onset).all())
        # Without blocks a recording is one stretch.
        self.stretch = numbered(list(zip(self.subject.tolist(), self.block.tolist(), strict=True)))
        self.unit = numbered(self.image) if self.known else np.arange(len(self.label))
        self.stratum = self.stretch if self.split_by == "run" or not self.known else np.zeros(len(self.label), int)
        classes = [len(set(self.label[self.stretch == stretch])) for stretch in range(self.stretch.max() + 1)]
        self.class_blocks = self.timed and float(np.median(classes)) == 1
        self.randomised = self.timed and float(np.median(classes)) > 1

    def where(self, *splits: str) -> np.ndarray:
        """Numbers of the trials of these splits."""
        return np.flatnonzero(np.isin(self.split, splits))

    def same_order(self) -> float | None:
        """Of blocks of one class: Spearman's correlation of their order, mean over pairs of people; None: not told."""
        if not self.class_blocks or self.person.max() == 0:
            return None
        first = np.full((self.person.max() + 1, self.n_classes), np.nan)
        for person, label in {*zip(self.person.tolist(), self.label.tolist(), strict=True)}:
            first[person, label] = self.onset[(self.person == person) & (self.label == label)].min()
        found = []
        for i, j in np.argwhere(np.triu(np.ones((len(first),) * 2), 1)):
            both = np.isfinite(first[i] + first[j])
            if both.sum() > 2:
                ranks = [np.argsort(np.argsort(first[k, both])) for k in (i, j)]
                found.append(float(np.corrcoef(*ranks)[0, 1]))
        return float(np.mean(found)) if found else None


class Source:
    """The study that a config names, opened as often as a variant asks for it."""

    def __init__(self, config: AuditConfig) -> None:
        single: dict[str, Any] = {"average": 1} if config.dataset == "recording" else {}
        if config.repetitions != "none":  # the audit averages what it decodes from single trials
            single |= {"repetitions": "none", "repetition_groups": 0}
        self.config = dataclasses.replace(config, **single)
        self.study = self.open()
        self.indices = [(split, int(i)) for split, indices in self.study.splits.items() for i in indices]
        facts = [self.study.facts(i) for _, i in self.indices]
        self.trials = Trials(
            subject=np.array([f.subject for f in facts]),
            image=np.array([f.image for f in facts]),
            label=np.array([f.label for f in facts]),
            split=np.array([split for split, _ in self.indices]),
            block=np.array(["" if f.block is None else f.block for f in facts]),
            onset=np.array([np.nan if f.onset is None else f.onset for f in facts]),
            split_by=self.study.split_by,
            known=self._trial(0).extra.get("picture", "as recorded") == "as recorded",
        )

    def open(self, **options: Any) -> Study:
        return open_study(dataclasses.replace(self.config, **options))

    def _varied(self, **options: Any) -> Study:
        try:
            return self.open(**options)
        except ValueError as error:
            raise Untold(str(error)) from None

    def _trial(self, number: int) -> Any:
        return self.study.trial(self.indices[number][1])

    def labels(self, control: str) -> np.ndarray:
        """(n,) labels of all trials under control_labels=control."""
        study = self._varied(control_labels=control)
        return np.array([study.facts(i).label for indices in study.splits.values() for i in indices])

    @functools.lru_cache(maxsize=2)  # the signal as it is, and one variant
    def features(self, variant: str = "real") -> np.ndarray:
        """(n, d) float32 window means of every trial; Untold where the files do not allow that variant."""
        study = self.study if variant == "real" else self._varied(**self.options(variant))
        rows: np.ndarray | None = None
        indices = [int(i) for indices in study.splits.values() for i in indices]
        for row, index in enumerate(tqdm(indices, unit="trial", desc=f"EEG, {variant}", disable=None)):
            means = window_means(study.trial(index).eeg, study.sfreq)
            if rows is None:
                rows = np.empty((len(indices), len(means)), np.float32)
            rows[row] = means
        assert rows is not None and len(rows) == len(self.indices)
        return rows

    def options(self, variant: str) -> dict[str, Any]:
        """The options of a variant; Untold where the files do not allow it."""
        options = VARIANTS.get(variant) or self._window(variant)
        low, high = (*self.study.before.get("band", []), 0.0, 0.0)[:2]
        wanted = options.get("band", [])
        if wanted and high and not (wanted[0] < high and low < wanted[1]):
            raise Untold(f"the files hold {low:g} to {high:g} Hz")
        return options

    def _window(self, variant: str) -> dict[str, Any]:
        """`before`: from the first sample to where a response can begin. `response`: as long, when there is one."""
        config, latest = self.config, LIMITS["before"]
        cut_by_reader = "window" in self.study.applied
        whole = self.study if cut_by_reader or not config.window else self.open(window=[])
        first, rate = whole.tmin, whole.sfreq
        if first is None or (round((latest - first) * rate) < 2 or latest - first < LIMITS["shortest"]):
            raise Untold(f"the trials have nothing from before {1000 * latest:g} ms after picture onset")
        start = first if variant == "before" else LIMITS["response"]
        return {"window": [start, start + latest - first]}

    @functools.cached_property
    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image, in the order of first appearance: (n, 8 * 8 * 3) colours in 0..1, (n, 32, 32) grey."""
        firsts = np.unique(numbered(self.trials.image), return_index=True)[1]
        coarse, grey = [], []
        for number in tqdm(firsts.tolist(), unit="picture", desc="pictures", disable=None):
            trial = self._trial(number)
            data = trial.jpeg if isinstance(trial.jpeg, bytes) else read_picture(Path(trial.jpeg))[0]
            seen = open_picture(data, trial.image, self.config.background, self.config.orientation).image
            coarse.append(coarse_picture(seen))
            grey.append(grey_copy(seen))
        return np.stack(coarse), np.stack(grey)


def coarse_picture(image: Image.Image) -> np.ndarray:
    """A picture as GRID x GRID colours in 0..1, (192,)."""
    return np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX), np.float64).ravel() / 255
