"""What a study holds, told by its shards, or by those of a few of its trials: for `neuroimagen plan`."""

import dataclasses
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from neuroimagen.batches.decode import load_picture
from neuroimagen.shards.format import Manifest, ShardSplit, read_manifest, write_json
from neuroimagen.shards.pack import manifest_of
from neuroimagen.shards.tars import Job, Packer, ShardsConfig
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import SPLITS

SOME = 32  # trials of a split that are read to tell of all


def spread(n: int, most: int = SOME) -> list[int]:
    """Up to `most` of the numbers below n, evenly."""
    return sorted({*np.linspace(0, n - 1, most).astype(int).tolist()}) if n else []


@dataclasses.dataclass
class Counts:
    """shards: the study's, or of some of its trials; trials: of all, by split; disk: bytes of all tars; seconds: that
    packing them by one process takes, None if that is done."""

    shards: Path
    manifest: Manifest
    trials: dict[str, int]
    subjects: int
    disk: float
    seconds: float | None = None

    def png(self, size: int) -> float:
        """Bytes of a picture of `size` px as PNG, the mean of some of the study's."""
        split, lengths = ShardSplit(self.shards, "test"), []
        for i in spread(len(split)):
            file = io.BytesIO()
            Image.fromarray(load_picture(split.picture(i), size).permute(1, 2, 0).numpy()).save(file, format="PNG")
            lengths.append(file.tell())
        return float(np.mean(lengths))


def of_shards(shards: str | Path) -> Counts:
    """ValueError for what is no shard directory."""
    manifest = read_manifest(shards)
    trials = {name: manifest.splits[name]["trials"] for name in SPLITS}
    disk = sum(tar["bytes"] for name in SPLITS for tar in manifest.splits[name]["shards"])
    return Counts(Path(shards), manifest, trials, len(manifest.subjects), float(disk))


def of_study(config: ShardsConfig, folder: Path, most: int = SOME) -> Counts:
    """Packs `most` train trials, and SOME of the others, into `folder`. ValueError or OSError as packing them all."""
    study, tars, disk, seconds = open_study(config), [], 0.0, 0.0
    packer = Packer(study, config, folder)
    (folder / "unfinished").mkdir(parents=True)
    for split in SPLITS:
        every = study.splits[split]
        if not every:
            raise ValueError(f"split {split!r} of the study holds no trial")
        start, some = time.monotonic(), spread(len(every), most if split == "train" else SOME)
        job = Job(split, 0, [int(every[i]) for i in some])
        tars.append((job, record := packer.pack(job, lambda: None)))
        disk += record.bytes * len(every) / len(some)
        seconds += (time.monotonic() - start) * len(every) / len(some)
    manifest = manifest_of(study, config, tars, folder)
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))
    trials = {split: len(study.splits[split]) for split in SPLITS}
    subjects = len({study.shown(int(i))[0] for split in SPLITS for i in study.splits[split]})
    return Counts(folder, manifest, trials, subjects, disk, seconds)
