"""A study as the audit reads it: facts of its trials, window means of their EEG in each variant, coarse pictures.

A variant is the study opened with other options, so that a control here is what `neuroimagen shards` would pack.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import spearmanr
from tqdm import tqdm

from neuroimagen.audit.statistics import numbered
from neuroimagen.audit.verdicts import LIMITS, VARIANTS
from neuroimagen.config import option, path_option
from neuroimagen.doctor.picture_hash import grey_copy
from neuroimagen.linear import window_means
from neuroimagen.shards.tars import ShardsConfig, open_picture, read_picture
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import SPLITS, Facts, Study

GRID = 8  # a picture is described by GRID x GRID colours
AS_IT_IS = {"splits", "audit", "control_labels"}  # options that leave the EEG so


class Untold(ValueError):
    """These files do not allow a part of the audit; the others go on."""


@dataclasses.dataclass
class AuditConfig(ShardsConfig):
    """`neuroimagen audit`: the fields of `neuroimagen shards`, so that it reads that section of an overlay."""

    out: str = path_option(help="folder for audit.html, audit.json and parts/, which the same command goes on with")
    run: str = path_option("", "a finished reconstruct run, to set beside the linear decoders; empty: none")
    quick: bool = option(False, "the main controls alone: a minute for some thousand trials")


class Trials:
    """Facts of the trials in a split, (n,) each: subject, label, image, split; numbers from 0 of person and stretch.

    known: the picture of a trial is; else its class alone, and each trial is a unit of its own. stretch: the block or
    run of a person, or all of the recording.
    """

    def __init__(self, facts: Sequence[Facts], split: Sequence[str], split_by: str = "image", known: bool = True):
        subject, image, label, block, onset, _ = zip(*facts, strict=True)
        self.split_by, self.known = split_by, known
        self.label, self.image, self.person = np.array(label), numbered(image), numbered(subject)
        self.onset, self.stretch = np.array(onset, float), numbered(zip(subject, block, strict=True))
        self.train, self.val, self.test = (np.flatnonzero(np.array(split) == name) for name in SPLITS)
        self.n_classes = int(self.label.max()) + 1
        self.unit = self.image if known else np.arange(len(self.label))
        self.stratum = self.stretch if split_by == "run" or not known else np.zeros(len(self.label), int)
        self.timed = None not in block and None not in onset
        self.class_blocks = self.timed and self._in_blocks()
        self.randomised = self.timed and not self.class_blocks
        # Stretches with one clock: all of a person's, unless time starts anew in each, or time may tell the class.
        order = np.lexsort((self.onset, self.person))
        anew = np.count_nonzero(np.diff(self.stretch[order])) > self.stretch.max()
        self.clock = self.stretch if anew or self.class_blocks else self.person
        # As in THINGS-EEG2: no class of test was learnt, so pictures are told apart among all of them.
        self.zero_shot = not set(self.label[self.test]) & set(self.label[self.train])

    def _in_blocks(self) -> bool:
        """Do most stretches hold one class, or do trials follow one of their class more often than by chance?"""
        classes, again, chance = [], [], []
        for own in (np.flatnonzero(self.stretch == s) for s in range(self.stretch.max() + 1)):
            label, counts = self.label[own[np.argsort(self.onset[own])]], np.bincount(self.label[own])
            classes.append(len(set(label.tolist())))
            again += (label[1:] == label[:-1]).tolist()
            chance.append((counts * (counts - 1)).sum() / len(own))  # times that one follows, in random order
        expected = sum(chance) / max(1, len(again))
        in_turn = bool(again) and np.mean(again) - expected > LIMITS["in_turn"] * (1 - expected)
        return bool(np.median(classes) == 1 or in_turn)

    def same_order(self) -> float | None:
        """Of blocks of one class: Spearman's correlation of their order, mean over pairs of people; None: not told."""
        first = np.full((self.person.max() + 1, self.n_classes), np.nan)
        np.fmin.at(first, (self.person, self.label), self.onset)
        pairs = [first[[i, j]][:, np.isfinite(first[i] + first[j])] for j in range(len(first)) for i in range(j)]
        found = [float(spearmanr(*pair).statistic) for pair in pairs if pair.shape[1] > 2]
        return float(np.mean(found)) if found and self.class_blocks else None


class Source:
    """The study that a config names, opened as often as a variant asks for it."""

    def __init__(self, config: AuditConfig) -> None:
        # The audit averages what it decodes from single trials.
        single: dict[str, Any] = {"repetitions": "none", "repetition_groups": 0}
        single |= {"average": 1} if config.dataset == "recording" else {}
        self.config = dataclasses.replace(config, **single)
        self.study = open_study(self.config)
        self.indices = _indices(self.study)
        self.known = self.study.trial(self.indices[0]).extra.get("picture", "as recorded") == "as recorded"
        self.trials = self._trials(self.study)

    def _trials(self, study: Study) -> Trials:
        split = [name for name, own in study.splits.items() for _ in own]
        return Trials([study.facts(i) for i in _indices(study)], split, study.split_by, self.known)

    @functools.cached_property
    def real(self) -> np.ndarray:
        """(n, d) float32 window means of the EEG as it is."""
        return _features(self.study, "as it is")

    def varied(self, variant: str) -> tuple[np.ndarray, Trials]:
        """Features and facts of a variant; Untold where the files do not allow it."""
        options = VARIANTS["linear"].get(variant) or self._window(variant)
        low, high = (*self.study.before.get("band", []), 0.0, 0.0)[:2]
        wanted = options.get("band", [])
        if wanted and high and not (wanted[0] < high and low < wanted[1]):
            raise Untold(f"the files hold {low:g} to {high:g} Hz")
        try:
            study = open_study(dataclasses.replace(self.config, **options))
        except ValueError as error:
            raise Untold(str(error)) from None
        if options.keys() <= AS_IT_IS and self.config.dataset != "recording":  # whose numbers depend on the split
            row = {index: row for row, index in enumerate(self.indices)}
            return self.real[[row[index] for index in _indices(study)]], self._trials(study)
        return _features(study, variant), self._trials(study)

    def _window(self, variant: str) -> dict[str, Any]:
        """`before`: from the first sample to where a response can begin. `response`: as long, when there is one."""
        config, latest, whole = self.config, LIMITS["before"], self.study
        if config.window and "window" not in self.study.applied:
            with contextlib.suppress(ValueError):  # a BIDS recording has no trials without one
                whole = open_study(dataclasses.replace(config, window=[]))
        first = latest if whole.tmin is None else whole.tmin
        if round((latest - first) * whole.sfreq) < 2 or latest - first < LIMITS["shortest"]:
            raise Untold(f"the trials have nothing from before {1000 * latest:g} ms after picture onset")
        # Of a trial that is set to 0 before the picture drift shows later alone, as a response does.
        if variant == "response" and "baseline" in self.study.before:
            raise Untold(
                "a baseline was subtracted when the trials were cut, after which drift grows as a response does"
            )
        start = first if variant == "before" else LIMITS["response"]
        return {"window": [start, start + latest - first], "baseline": []}

    @functools.cached_property
    def shown(self) -> list[bytes | Path]:
        """The picture of each image, by its number: its bytes, or its file."""
        firsts = np.unique(self.trials.image, return_index=True)[1]
        return [self.study.facts(self.indices[row]).picture for row in firsts]

    @functools.cached_property
    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image by its number: (n, 8 * 8 * 3) colours in 0..1, and (n, 32, 32) grey."""
        coarse, grey = [], []
        for shown in tqdm(self.shown, unit="picture", desc="pictures", disable=None):
            data, where = (shown, "in the files") if isinstance(shown, bytes) else (read_picture(shown)[0], str(shown))
            seen = open_picture(data, where, self.config.background, self.config.orientation).image
            coarse.append(coarse_picture(seen))
            grey.append(grey_copy(seen))
        return np.stack(coarse), np.stack(grey)


def _indices(study: Study) -> list[int]:
    return [int(i) for own in study.splits.values() for i in own]


def _features(study: Study, variant: str) -> np.ndarray:
    """(n, d) float32 window means of the EEG of each trial."""
    bar = tqdm(_indices(study), unit="trial", desc=f"EEG, {variant}", disable=None)
    return np.stack([window_means(study.trial(i).eeg, study.sfreq).astype(np.float32) for i in bar])


def coarse_picture(image: Image.Image) -> np.ndarray:
    """A picture as GRID x GRID colours in 0..1, (192,)."""
    return np.asarray(image.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX), np.float64).ravel() / 255
