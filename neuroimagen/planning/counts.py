"""What a study holds, told by its shards, or by its reader and a few of its trials: for `neuroimagen plan`."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuroimagen.batches.decode import load_picture
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import SOME, sampled
from neuroimagen.shards.tars import Packer, ShardsConfig
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import SPLITS


@dataclass
class Counts:
    """shape: n_chans, n_times, n_classes (labels are below it); pictures: encoded, of some trials.
    shards: bytes of all tars; seconds: that packing by one process takes, None if that is done."""

    title: str
    shape: dict[str, int]
    sfreq: float
    channels: list[str] | None
    subjects: int
    trials: dict[str, int]
    pictures: list[bytes]
    shards: float
    seconds: float | None = None

    def png(self, size: int) -> float:
        """Bytes of a picture of `size` px as PNG, the mean of some of the study's."""
        lengths = []
        for data in self.pictures:
            file = io.BytesIO()
            Image.fromarray(load_picture(data, size).permute(1, 2, 0).numpy()).save(file, format="PNG")
            lengths.append(file.tell())
        return float(np.mean(lengths))


def _of(study: Any, trials: dict[str, int], subjects: int, **rest: Any) -> Counts:
    """study: a Study or a Manifest"""
    simulated = " (SIMULATED)" * study.simulated
    title = f"{study.dataset}{simulated}, {len(study.classes)} classes, {subjects} subjects"
    labels = 1 + max(each["label"] for each in study.classes)
    shape = {"n_chans": study.n_chans, "n_times": study.n_times, "n_classes": labels}
    return Counts(title, shape, study.sfreq, study.channels, subjects, trials, **rest)


def of_shards(shards: str | Path) -> Counts:
    """ValueError for what is no shard directory."""
    manifest, split = read_manifest(shards), ShardSplit(shards, "test")
    tars = [tar for name in SPLITS for tar in manifest.splits[name]["shards"]]
    some = {*np.linspace(0, len(split) - 1, SOME).astype(int).tolist()}
    return _of(
        manifest,
        {name: manifest.splits[name]["trials"] for name in SPLITS},
        len(manifest.subjects),
        pictures=[split.picture(i) for i in some],
        shards=float(sum(tar["bytes"] for tar in tars)),
    )


def of_study(config: ShardsConfig) -> Counts:
    """Reads SOME trials, spread over the study. ValueError or OSError as the reader's."""
    study = open_study(config)
    sizes, times, pictures = sampled(Packer(study, config, Path()))
    trials = {name: len(study.splits[name]) for name in SPLITS}
    n, subjects = sum(trials.values()), len({study.facts(int(i)).subject for own in study.splits.values() for i in own})
    shards, seconds = float(np.mean(sizes) * n), float(np.median(times)) * n
    return _of(study, trials, subjects, pictures=pictures, shards=shards, seconds=seconds)
