"""`neuroimagen check DIR`: verify every byte of a shard directory, and say what is in it."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from neuroimagen.config import option
from neuroimagen.data.shards import (
    SPLITS,
    Manifest,
    ShardSplit,
    check_picture,
    describe,
    read_manifest,
    scan_tar,
    sha256,
)


@dataclasses.dataclass
class CheckConfig:
    """`neuroimagen check DIR`"""

    shards: str = option(help="shard directory")


def check(config: CheckConfig) -> None:
    print(check_shards(config.shards))


def check_shards(shards: str | Path) -> str:
    """Verify a shard directory against its manifest and return the report.

    Looked at: every tar's size, SHA-256 and members; every EEG array, JSON and picture; labels; the index; that no key
    comes twice, no image (or recording run) is in two splits and no tar is left over; the train statistics.
    Raises ValueError, in one sentence, at the first thing that is wrong.
    """
    folder = Path(shards)
    manifest = read_manifest(folder)
    splits = {name: ShardSplit(folder, name) for name in SPLITS}
    listed = {path.name for split in splits.values() for path in split.paths}
    extra = sorted(path.name for path in folder.glob("*.tar") if path.name not in listed)
    if extra:
        raise ValueError(f"{folder / extra[0]} is not in the manifest: remove it, or make the shards again")
    for name, split in splits.items():
        for path, tar in zip(split.paths, manifest.splits[name]["shards"], strict=True):
            if sha256(path) != tar["sha256"]:
                raise ValueError(f"{path} was changed since it was made (SHA-256 differs): make the shards again")
        if not np.array_equal(split.index, np.concatenate([scan_tar(path, n) for n, path in enumerate(split.paths)])):
            raise ValueError(f"{folder / name}.index.npy does not fit the tars: remove it, or make the shards again")
    seen = _Seen(manifest, folder)
    with tqdm(total=sum(map(len, splits.values())), unit="trial", desc="check", disable=None) as progress:
        for name, split in splits.items():
            images = set()
            for i in range(len(split)):
                images.add(seen.trial(split, i))
                progress.update()
            if len(images) != manifest.splits[name]["images"] or len(split) != manifest.splits[name]["trials"]:
                raise ValueError(f"{folder}: split {name} does not hold the trials and images that the manifest counts")
    seen.compare_statistics()
    if seen.subjects != set(manifest.subjects):
        raise ValueError(f"{folder}: the subjects in the tars are {sorted(seen.subjects)}, not those of the manifest")
    return f"{describe(folder, manifest)}\nevery shard, trial and picture was read and is as the manifest says"


class _Seen:
    """What the trials read so far say together."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder = manifest, folder
        self.classes = {c["label"]: c for c in manifest.classes}
        self.keys: set[str] = set()
        self.pictures: dict[str, bytes] = {}  # image -> digest
        self.side: dict[Any, str] = {}
        self.subjects: set[int] = set()
        self.count, self.total = 0, np.zeros((2, manifest.n_chans))

    def trial(self, split: ShardSplit, i: int) -> str:
        """Verify one trial; its image name."""
        key = split.keys[i]
        where = f"{split.paths[split.index[i]['tar']]}: trial {key}"
        if key in self.keys:
            raise ValueError(f"{where} comes twice: make the shards again")
        self.keys.add(key)
        info = split.info(i)
        kinds = {"subject": int, "label": int, "wnid": str, "class_name": str, "image": str, "trial": str}
        if not isinstance(info, dict) or any(type(info.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"{where} has JSON without one of {', '.join(kinds)}")
        known = self.classes.get(info["label"])
        if (
            info["trial"] != key
            or known is None
            or (known["wnid"], known["name"]) != (info["wnid"], info["class_name"])
        ):
            raise ValueError(f"{where} has JSON of another trial or class: make the shards again")
        self.subjects.add(info["subject"])
        by = "image" if self.manifest.split_by == "image" else "run"
        unit = info["image"] if by == "image" else (info["subject"], info.get("session"), info.get("run"))
        if self.side.setdefault(unit, split.name) != split.name:
            raise ValueError(
                f"{where}: its {by} {unit} is in both {self.side[unit]} and {split.name}: use another split"
            )
        eeg = split.eeg(i)
        if not np.isfinite(eeg).all():
            raise ValueError(f"{where} holds NaN or infinity")
        if split.name == "train":
            self.count += eeg.shape[1]
            centred = eeg.astype(np.float64) - np.array(self.manifest.channel_mean)[:, None]
            self.total += centred.sum(1), (centred**2).sum(1)
        data = split.picture(i)
        digest = hashlib.sha256(data).digest()
        if info["image"] not in self.pictures:
            extension = check_picture(data, f"of {where}")
            if (extension == "png") != bool(split.index[i]["png"]):
                raise ValueError(f"{where}: the picture is not of the kind that its name says")
            self.pictures[info["image"]] = digest
        if self.pictures[info["image"]] != digest:
            raise ValueError(f"{where}: its picture differs from another trial's of the same image name")
        return str(info["image"])

    def compare_statistics(self) -> None:
        """Means and standard deviations, within 1 % and what rounding to float16 (11 bits) can move."""
        mean, std = np.array(self.manifest.channel_mean), np.array(self.manifest.channel_std)
        shift = self.total[0] / self.count  # of the mean, from the manifest's
        found = np.sqrt(np.maximum(self.total[1] / self.count - shift**2, 0))
        allowed = 0.01 * std + 2.0**-11 * np.abs(mean) + 1e-12
        if (np.abs(shift) > allowed).any() or (np.abs(found - std) > allowed).any():
            raise ValueError(f"{self.folder}: the manifest's channel statistics are not those of the train split")
