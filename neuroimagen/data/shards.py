"""Packing a study into shards (`neuroimagen shards`); data/shard_files.py says what a shard directory is."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import webdataset as wds
from PIL import Image
from tqdm import tqdm

from neuroimagen.config import option
from neuroimagen.data.shard_files import (
    KEY,
    SPLITS,
    Manifest,
    ShardSplit,
    describe,
    read_manifest,
    scan_tar,
    sha256,
)
from neuroimagen.data.source import PATHS, SourceConfig, open_study
from neuroimagen.data.study import Study, Trial

PICTURES = {"JPEG": "jpg", "PNG": "png"}


@dataclasses.dataclass
class ShardsConfig(SourceConfig):
    """`neuroimagen shards`"""

    out: str = option(help="shard directory to make")
    eeg_dtype: Literal["float16", "float32"] = option("float16", "how EEG is stored; float16 halves the size")
    shard_size: int = option(500, "trials in a tar")


def encode_eeg(eeg: np.ndarray, dtype: str, where: str) -> bytes:
    """Raw little-endian bytes; refuses a float16 that would overflow, or err by more than 1 % of the signal."""
    eeg = np.ascontiguousarray(eeg, dtype="<f4")
    if dtype == "float32":
        return eeg.tobytes()
    with np.errstate(over="ignore"):
        half = eeg.astype("<f2")
    remedy = "does not fit float16: give eeg_dtype=float32, or scale the data to units near 1"
    if not np.isfinite(half).all():
        raise ValueError(f"{where}: a value of {float(np.abs(eeg).max()):.3g} {remedy}")
    spread = eeg.std(axis=1, dtype=np.float64)
    error = np.sqrt(((half.astype(np.float64) - eeg) ** 2).mean(axis=1))
    moving = spread > 0
    # The median over channels: one electrode that hardly moves for one trial is no reason to refuse a study.
    if moving.any() and np.median(error[moving] / spread[moving]) > 0.01:
        raise ValueError(f"{where}: a signal of {np.median(spread[moving]):.3g} {remedy}")
    return half.tobytes()


def check_picture(data: bytes, where: str) -> str:
    """Decode a picture whole; its extension in a tar (jpg or png)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=list(PICTURES)) as picture:
                picture.load()
                return PICTURES[str(picture.format)]
    except Exception as error:  # a damaged picture can raise anything
        reason = "not a JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else str(error).splitlines()[0]
        raise ValueError(f"picture {where} cannot be decoded ({reason}): replace the file") from None


class _Packer:
    """Writes the tars of a study; checks each trial on the way."""

    def __init__(self, study: Study, config: ShardsConfig, folder: Path) -> None:
        self.study, self.config, self.folder = study, config, folder
        self.names = {c["label"]: c for c in study.classes}
        self.keys: set[str] = set()
        self.pictures: dict[str, tuple[str, str]] = {}  # image -> extension, sha256
        self.side: dict[str, str] = {}
        self.first: dict[str, str] = {}  # sha256 of a picture -> the first image that has it
        self.notes = list(study.notes)
        self.subjects: set[int] = set()
        # Running mean and sum of squared deviations of each channel (Chan et al. 1979), in float64: one pass over the
        # trials, and no cancellation.
        self.count, self.mean, self.m2 = 0, np.zeros(study.n_chans), np.zeros(study.n_chans)

    def sample(self, split: str, trial: Trial) -> dict[str, Any]:
        study, where = self.study, f"trial {trial.key}"
        if not KEY.fullmatch(trial.key) or trial.key in self.keys:
            raise ValueError(f"{where}: a key is 1 to 90 of A-Z a-z 0-9 _ -, and unique in its study")
        if trial.eeg.shape != (study.n_chans, study.n_times):
            raise ValueError(f"{where} has EEG of shape {trial.eeg.shape} instead of {(study.n_chans, study.n_times)}")
        if not np.isfinite(trial.eeg).all():
            raise ValueError(f"{where} holds NaN or infinity: mend the recording or leave this trial out")
        if trial.label not in self.names or self.names[trial.label]["wnid"] != trial.wnid:
            raise ValueError(f"{where} has label {trial.label} ({trial.wnid}), which is not among the study's classes")
        if study.split_by == "image" and self.side.setdefault(trial.image, split) != split:
            raise ValueError(f"image {trial.image} is in both {self.side[trial.image]} and {split}: use another split")
        data = trial.jpeg if isinstance(trial.jpeg, bytes) else trial.jpeg.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if trial.image not in self.pictures:
            source = trial.image if isinstance(trial.jpeg, bytes) else str(trial.jpeg)
            self.pictures[trial.image] = (check_picture(data, source), digest)
            twin = self.first.setdefault(digest, trial.image)
            if study.split_by == "image" and self.side[twin] != split:
                self.notes.append(f"{twin} ({self.side[twin]}) and {trial.image} ({split}) are the same picture")
        extension, known = self.pictures[trial.image]
        if digest != known:
            raise ValueError(f"{where}: image {trial.image} is not the same picture as in an earlier trial: rename one")
        info = {
            "subject": int(trial.subject),
            "label": int(trial.label),
            "wnid": trial.wnid,
            "class_name": trial.class_name,
            "image": trial.image,
            "trial": trial.key,
        }
        assert not set(info) & set(trial.extra), "a reader's extra fields must not hide ours"
        self.keys.add(trial.key)
        self.subjects.add(int(trial.subject))
        return {
            "__key__": trial.key,
            "eeg": encode_eeg(trial.eeg, self.config.eeg_dtype, where),
            extension: data,
            "json": json.dumps(info | trial.extra, ensure_ascii=False, sort_keys=True).encode(),
        }

    def add_to_statistics(self, eeg: np.ndarray) -> None:
        n = eeg.shape[1]
        mean = eeg.mean(axis=1, dtype=np.float64)
        m2 = ((eeg - mean[:, None]) ** 2).sum(axis=1)
        delta, total = mean - self.mean, self.count + n
        self.m2 += m2 + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    def write(self) -> dict[str, dict[str, Any]]:
        """All splits; returns the manifest's `splits`."""
        indices = {split: list(self.study.splits[split]) for split in SPLITS}
        progress = tqdm(total=sum(map(len, indices.values())), unit="trial", desc="shards", disable=None)
        written: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            tars, images, rows = [], set(), []
            for number, start in enumerate(range(0, len(indices[split]), self.config.shard_size)):
                path = self.folder / f"{split}-{number:06d}.tar"
                with open(path, "wb") as file, wds.TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
                    some = indices[split][start : start + self.config.shard_size]
                    for i in some:
                        trial = self.study.trial(i)
                        tar.write(self.sample(split, trial))
                        images.add(trial.image)
                        if split == "train":
                            self.add_to_statistics(trial.eeg)
                        progress.update()
                rows.append(scan_tar(path, number))
                tars.append(
                    {"name": path.name, "trials": len(some), "bytes": path.stat().st_size, "sha256": sha256(path)}
                )
            if not rows:
                raise ValueError(f"split {split!r} of the study holds no trial")
            np.save(self.folder / f"{split}.index.npy", np.concatenate(rows))
            written[split] = {"trials": len(indices[split]), "images": len(images), "shards": tars}
        progress.close()
        return written


def make_shards(config: ShardsConfig) -> None:
    """Pack a study. OUT appears whole or not at all; made again with the same config and input, nothing is done."""
    out = Path(config.out).absolute()
    if config.shard_size < 1:
        raise ValueError("shard_size must be at least 1")
    resolved = dataclasses.asdict(config)
    for key in ("out", *PATHS):
        resolved[key] = str(Path(resolved[key]).absolute()) if resolved[key] else ""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _refuse_other(out, resolved)
        print(f"{out} is complete and was made by this very command: nothing to do")
        return
    study = open_study(config)
    inputs = {str(path.absolute()): sha256(path) for path in study.inputs}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        packer = _Packer(study, config, partial)
        splits = packer.write()
        manifest = Manifest(
            format="neuroimagen-shards",
            version=1,
            dataset=study.dataset,
            simulated=study.simulated,
            n_chans=study.n_chans,
            n_times=study.n_times,
            sfreq=study.sfreq,
            eeg_dtype=config.eeg_dtype,
            channels=study.channels,
            units=study.units,
            classes=study.classes,
            subjects=sorted(packer.subjects),
            channel_mean=packer.mean.tolist(),
            channel_std=np.sqrt(packer.m2 / packer.count).tolist(),
            splits=splits,
            split_by=study.split_by,
            protocol=study.protocol,
            notes=packer.notes,
            inputs=inputs,
            config=resolved,
        )
        text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
        (partial / "manifest.json").write_text(text + "\n", encoding="utf-8")
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(describe(out, manifest))


def _refuse_other(out: Path, resolved: dict[str, Any]) -> None:
    """ValueError unless `out` holds the whole result of this config on inputs that have not changed since."""
    if not (out / "manifest.json").is_file():
        raise ValueError(f"out={out} exists and is not a shard directory: give another out=, or remove it")
    manifest = read_manifest(out)
    other = [key for key in resolved if key != "out" and manifest.config.get(key) != resolved[key]]
    if other:
        was = ", ".join(f"{key}={manifest.config.get(key)}" for key in other)
        raise ValueError(f"out={out} was made with {was}: give another out=, or remove it")
    for path, digest in manifest.inputs.items():
        if Path(path).is_file() and sha256(Path(path)) != digest:
            raise ValueError(f"out={out} was made before {path} changed: give another out=, or remove it")
    for split in SPLITS:
        ShardSplit(out, split)
