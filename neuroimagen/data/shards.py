"""Shards: a study packed into WebDataset tars with a manifest, and random access to them.

DIR/manifest.json, DIR/{train,val,test}-000000.tar ..., DIR/{train,val,test}.index.npy. One trial is three members of a tar:
  <key>.eeg          raw little-endian float16 or float32, C order, n_chans x n_times, in the manifest's units
  <key>.jpg | .png   the bytes of the picture shown, unchanged
  <key>.json         subject, label, wnid, class_name, image, trial (= key) and what the reader adds
Any WebDataset reader can stream them. The same input gives the same bytes. The index holds every member's place, so that
a split is opened without reading its tars; it can be made again from them. Nothing here is ever unpickled.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from tqdm import tqdm

from neuroimagen.config import option

SPLITS = ("train", "val", "test")
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # a tar header holds 100 characters
TAR_NAME = re.compile(r"(train|val|test)-\d{6}\.tar")
PICTURES = {"JPEG": "jpg", "PNG": "png"}
# One row a trial: the tar's number, then (offset, size) in bytes of each member in it.
INDEX = np.dtype(
    [("key", "S90"), ("tar", "<i4"), ("png", "?"), ("eeg", "<i8", 2), ("picture", "<i8", 2), ("json", "<i8", 2)]
)


@dataclasses.dataclass
class Trial:
    """One stretch of EEG, (n_chans, n_times) float32, and the picture shown during it (its bytes, or its file)."""

    key: str
    eeg: np.ndarray
    jpeg: bytes | Path
    subject: int
    label: int
    wnid: str
    class_name: str
    image: str
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Study(Protocol):
    """What a reader gives: see data/perceivelab.py and data/recording.py."""

    dataset: str
    simulated: bool
    n_chans: int
    n_times: int
    sfreq: float
    units: str
    channels: list[str] | None
    classes: list[dict[str, Any]]  # label, wnid, name
    splits: dict[str, list[int]]
    split_by: str  # "image": no image is in two splits; "run": no recording run is
    protocol: str  # one sentence: how the split was made
    notes: list[str]  # what the user should know, e.g. trials dropped
    inputs: list[Path]  # the files whose change means that the shards are stale

    def trial(self, index: int) -> Trial: ...
    def __len__(self) -> int: ...


@dataclasses.dataclass
class ShardsConfig:
    """`neuroimagen shards`"""

    out: str = option(help="shard directory to make")
    dataset: Literal["perceivelab", "recording"] = option("perceivelab", "which reader")
    eeg: str = option("", "perceivelab: the EEG .pth file")
    images: str = option("", "perceivelab: folder with <wnid>/<image>.JPEG")
    splits: Literal["official", "by_image"] = option(
        "official", "perceivelab: the published splits file as it is, or 80/10/10 of the images of each class"
    )
    splits_file: str = option("", "perceivelab: block_splits_by_image_all.pth or ..._single.pth; for splits=official")
    split_number: int = option(0, "perceivelab: which of the splits in the file; 0 is customary")
    subject: int = option(0, "perceivelab: keep this subject only; 0 keeps all")
    n_chans: int = option(128, "perceivelab: channels that every trial must have")
    recording: str = option("", "recording: the study's YAML file")
    seed: int = option(0, "of splits=by_image")
    eeg_dtype: Literal["float16", "float32"] = option("float16", "how EEG is stored; float16 halves the size")
    shard_size: int = option(500, "trials in a tar")


@dataclasses.dataclass
class Manifest:
    """manifest.json. channel_mean and channel_std are of the train split alone, in `units`."""

    format: str
    version: int
    dataset: str
    simulated: bool
    n_chans: int
    n_times: int
    sfreq: float
    eeg_dtype: str
    channels: list[str] | None
    units: str
    classes: list[dict[str, Any]]
    subjects: list[int]
    channel_mean: list[float]
    channel_std: list[float]
    splits: dict[str, dict[str, Any]]  # trials, images, shards: [{name, trials, bytes, sha256}]
    split_by: str
    protocol: str
    notes: list[str]
    inputs: dict[str, str]  # path -> sha256
    config: dict[str, Any]


def read_manifest(shards: str | Path) -> Manifest:
    """The manifest of a shard directory; ValueError if there is none or it is not ours."""
    path = Path(shards) / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{shards} is not a shard directory (no manifest.json): make one with neuroimagen shards") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): make the shards again") from None
    if not isinstance(content, dict) or content.get("format") != "neuroimagen-shards":
        raise ValueError(f"{path} is not a manifest of neuroimagen shards")
    if content.get("version") != 1:
        raise ValueError(f"{path} has version {content.get('version')}; this program reads version 1: make the shards again")
    names = [field.name for field in dataclasses.fields(Manifest)]
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}: make the shards again")
    manifest = Manifest(**{name: content[name] for name in names})
    try:
        sound = set(manifest.splits) == set(SPLITS) and manifest.eeg_dtype in ("float16", "float32")
        sound &= len(manifest.channel_mean) == len(manifest.channel_std) == manifest.n_chans > 0 < manifest.n_times
        sound &= all({"label", "wnid", "name"} <= set(c) and type(c["label"]) is int for c in manifest.classes)
        tars = [(name, tar) for name in SPLITS for tar in manifest.splits[name]["shards"]]
        sound &= all(
            TAR_NAME.fullmatch(tar["name"]) and tar["name"].startswith(f"{name}-") and tar["trials"] > 0 < tar["bytes"]
            for name, tar in tars
        )
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged or was changed by hand: make the shards again")
    return manifest


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# ---- writing


def open_study(config: ShardsConfig) -> Study:
    """The reader that `config.dataset` names, opened."""
    if config.dataset == "recording":
        from neuroimagen.data import recording  # its libraries are an extra

        return recording.read(config)
    from neuroimagen.data import perceivelab

    for key in ("eeg", "images"):
        if not getattr(config, key):
            raise ValueError(f"dataset=perceivelab needs {key}=... (--help says what it is)")
    return perceivelab.read(
        eeg=config.eeg,
        images=config.images,
        splits=config.splits,
        splits_file=config.splits_file or None,
        split_number=config.split_number,
        subject=config.subject,
        seed=config.seed,
        n_chans=config.n_chans,
    )


def encode_eeg(eeg: np.ndarray, dtype: str, where: str) -> bytes:
    """Raw little-endian bytes; refuses a float16 that would overflow or round away more than 1 % of the signal."""
    if dtype == "float32":
        return np.ascontiguousarray(eeg, dtype="<f4").tobytes()
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(eeg, dtype="<f2")
    remedy = "does not fit float16: give eeg_dtype=float32, or scale the data to units near 1"
    if not np.isfinite(half).all():
        raise ValueError(f"{where}: a value of {float(np.abs(eeg).max()):.3g} {remedy}")
    error = half.astype(np.float64) - eeg
    spread = eeg.std(axis=1, dtype=np.float64)
    if np.sqrt((error**2).mean(axis=1)).max() > 0.01 * spread[spread > 0].min(initial=np.inf):
        raise ValueError(f"{where}: a signal of {spread.min():.3g} {remedy}")
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
        self.subjects: set[int] = set()
        # Running mean and sum of squared deviations of each channel (Chan et al. 1979), in float64: one pass, no cancellation.
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
    for key in ("out", "eeg", "images", "splits_file", "recording"):
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
            notes=study.notes,
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


def describe(shards: Path, manifest: Manifest) -> str:
    """What a shard directory holds, as a person wants to read it."""
    m = manifest
    lines = [
        f"{shards}: {m.dataset}{' (SIMULATED)' if m.simulated else ''}, {len(m.classes)} classes, "
        f"{m.n_chans} channels x {m.n_times} samples at {m.sfreq:g} Hz, {m.eeg_dtype}",
        f"split: {m.protocol}",
        f"{'':8}{'trials':>8}{'images':>8}{'shards':>8}{'MB':>10}",
    ]
    for name, split in m.splits.items():
        size = sum(tar["bytes"] for tar in split["shards"]) / 1e6
        lines.append(f"{name:8}{split['trials']:8}{split['images']:8}{len(split['shards']):8}{size:10.1f}")
    lines.append(f"subjects: {', '.join(map(str, m.subjects))}")
    lines.append(f"classes: {', '.join(str(c['name']) for c in m.classes)}")
    flat = [str(c) for c, std in enumerate(m.channel_std) if not std > 0]
    if flat:
        lines.append(f"note: channels that never move in train: {', '.join(flat)}; they are passed on as zeros")
    return "\n".join(lines + [f"note: {note}" for note in m.notes])


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


# ---- reading


def scan_tar(path: Path, number: int) -> np.ndarray:
    """Index rows (dtype INDEX) of one tar, in its order; ValueError for anything but whole trials."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                known = extension in ("eeg", "json", "jpg", "png") and KEY.fullmatch(key)
                if not known or not member.isreg() or extension in members.get(key, {}):
                    raise ValueError(f"{path} holds {member.name!r}, which neuroimagen shards does not write")
                members.setdefault(key, {})[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): make the shards again") from None
    rows = np.zeros(len(members), INDEX)
    for row, (key, parts) in zip(rows, members.items(), strict=True):
        picture = parts.get("png") or parts.get("jpg")
        if len(parts) != 3 or picture is None or "eeg" not in parts or "json" not in parts:
            raise ValueError(f"{path}: trial {key} is not whole (it has {', '.join(sorted(parts))}): make the shards again")
        row["key"], row["tar"], row["png"] = key.encode(), number, "png" in parts
        row["eeg"], row["picture"], row["json"] = parts["eeg"], picture, parts["json"]
    return rows


class ShardSplit:
    """Random access to one split. Opening checks the tars' sizes and the index against the manifest.

    Reads are by position (os.pread), so processes made by fork share nothing but the files.
    """

    def __init__(self, shards: str | Path, split: str) -> None:
        self.folder, self.name = Path(shards), split
        self.manifest = read_manifest(shards)
        if split not in self.manifest.splits:
            raise ValueError(f"{shards} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        tars = self.manifest.splits[split]["shards"]
        self.paths = [self.folder / tar["name"] for tar in tars]
        for path, tar in zip(self.paths, tars, strict=True):
            if not path.is_file():
                raise ValueError(f"{path} is missing: copy it again, or make the shards again")
            if path.stat().st_size != tar["bytes"]:
                raise ValueError(
                    f"{path} has {path.stat().st_size} bytes where the manifest says {tar['bytes']}: it is truncated or was "
                    "changed; copy it again, or make the shards again"
                )
        index = self.folder / f"{split}.index.npy"
        if index.is_file():
            try:
                self.index = np.load(index, allow_pickle=False)
            except (ValueError, EOFError, OSError):
                self.index = np.zeros(0)
        else:
            self.index = np.concatenate([scan_tar(path, number) for number, path in enumerate(self.paths)])
        self._check_index(index, tars)
        self.keys: list[str] = [key.decode() for key in self.index["key"]]
        self.shape = (self.manifest.n_chans, self.manifest.n_times)
        self.dtype = torch.float16 if self.manifest.eeg_dtype == "float16" else torch.float32
        self.files: dict[int, int] = {}

    def _check_index(self, path: Path, tars: list[dict[str, Any]]) -> None:
        index = self.index
        if index.dtype != INDEX or index.ndim != 1:
            raise ValueError(f"{path} is damaged: remove it, and it is made again from the tars on each start")
        counts = np.bincount(index["tar"], minlength=len(tars)).tolist() if (index["tar"] >= 0).all() else []
        if counts != [tar["trials"] for tar in tars]:
            raise ValueError(f"{self.folder}: the tars of {self.name} do not hold the trials that the manifest counts")
        ends = np.array([tar["bytes"] for tar in tars])[index["tar"]]
        n_bytes = self.manifest.n_chans * self.manifest.n_times * (2 if self.manifest.eeg_dtype == "float16" else 4)
        inside = all(((index[m] >= 0).all() and (index[m].sum(1) <= ends).all()) for m in ("eeg", "picture", "json"))
        if not inside or (index["eeg"][:, 1] != n_bytes).any():
            raise ValueError(f"{self.folder}: EEG of {self.name} does not have the size that the manifest says")

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "files", {}).values():
            os.close(file)

    def _read(self, i: int, member: str) -> bytearray:
        row = self.index[i]
        number = int(row["tar"])
        if number not in self.files:
            self.files[number] = os.open(self.paths[number], os.O_RDONLY)
        offset, size = row[member].tolist()
        data = bytearray(size)
        if os.preadv(self.files[number], [data], offset) != size:
            raise ValueError(f"{self.paths[number]} was truncated while in use: make the shards again")
        return data

    def eeg_tensor(self, i: int) -> torch.Tensor:
        """(n_chans, n_times) float32, in the manifest's units, not standardised."""
        return torch.frombuffer(self._read(i, "eeg"), dtype=self.dtype).float().view(self.shape)

    def eeg(self, i: int) -> np.ndarray:
        """As `eeg_tensor`, as an array."""
        return self.eeg_tensor(i).numpy()

    def picture(self, i: int) -> bytes:
        """The bytes of the JPEG or PNG that was shown."""
        return bytes(self._read(i, "picture"))

    def info(self, i: int) -> dict[str, Any]:
        """subject, label, wnid, class_name, image, trial and what the reader added."""
        try:
            return json.loads(self._read(i, "json"))
        except ValueError:
            raise ValueError(f"{self.paths[self.index[i]['tar']]}: trial {self.keys[i]} has damaged JSON") from None
