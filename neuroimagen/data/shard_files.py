"""Shards on disk: WebDataset tars with a manifest, and random access to them.

DIR/manifest.json, DIR/{train,val,test}-000000.tar ..., DIR/{train,val,test}.index.npy. A trial is three members:
  <key>.eeg          raw little-endian float16 or float32, C order, n_chans x n_times, in the manifest's units
  <key>.jpg | .png   the bytes of the picture shown, unchanged
  <key>.json         subject, label, wnid, class_name, image, trial (= key) and what the reader adds
Any WebDataset reader can stream them. The same input gives the same bytes. The index holds every member's place, so a
split is opened without reading its tars; it can be made again from them. Nothing here is ever unpickled.
"""

import dataclasses
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPLITS = ("train", "val", "test")
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # a tar header holds 100 characters
TAR_NAME = re.compile(r"(train|val|test)-\d{6}\.tar")
# One row a trial: the tar's number, then (offset, size) in bytes of each member in it.
INDEX = np.dtype(
    [("key", "S90"), ("tar", "<i4"), ("png", "?"), ("eeg", "<i8", 2), ("picture", "<i8", 2), ("json", "<i8", 2)]
)


class ShardError(ValueError):
    """A trial cannot be read from its shard; `tar` is the shard's name, `key` the trial's.

    Raised while a split is in use; what is wrong when it is opened is a plain ValueError.
    """

    def __init__(self, sentence: str, tar: str = "", key: str = "") -> None:
        super().__init__(sentence, tar, key)  # all of it: an exception is pickled by its arguments
        self.tar, self.key = tar, key

    def __str__(self) -> str:
        return str(self.args[0])


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
        raise ValueError(
            f"{shards} is not a shard directory (no manifest.json): make one with neuroimagen shards"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): make the shards again") from None
    if not isinstance(content, dict) or content.get("format") != "neuroimagen-shards":
        raise ValueError(f"{path} is not a manifest of neuroimagen shards")
    if content.get("version") != 1:
        raise ValueError(
            f"{path} has version {content.get('version')}; this program reads version 1: make the shards again"
        )
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
            raise ValueError(
                f"{path}: trial {key} is not whole (it has {', '.join(sorted(parts))}): make the shards again"
            )
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
                    f"{path} has {path.stat().st_size} bytes where the manifest says {tar['bytes']}: it is truncated "
                    "or was changed; copy it again, or make the shards again"
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
        offset, size = row[member].tolist()
        data = bytearray(size)
        try:
            if number not in self.files:
                self.files[number] = os.open(self.paths[number], os.O_RDONLY)
            n = os.preadv(self.files[number], [data], offset)
        except OSError as error:
            raise self._error(i, f"cannot be read ({error.strerror})") from None
        if n != size:
            raise self._error(i, "cannot be read: the file was truncated while in use")
        return data

    def _error(self, i: int, what: str) -> ShardError:
        path = self.paths[self.index[i]["tar"]]
        return ShardError(f"{path}: trial {self.keys[i]} {what}; copy or make the shards again", path.name, self.keys[i])

    def eeg_into(self, i: int, out: torch.Tensor) -> torch.Tensor:
        """Fill `out`, (n_chans, n_times) float32, with trial i in the manifest's units, not standardised."""
        return out.copy_(torch.frombuffer(self._read(i, "eeg"), dtype=self.dtype).view(self.shape))

    def eeg(self, i: int) -> np.ndarray:
        """As `eeg_into`, as a new array."""
        return self.eeg_into(i, torch.empty(self.shape)).numpy()

    def picture(self, i: int) -> bytes:
        """The bytes of the JPEG or PNG that was shown."""
        return bytes(self._read(i, "picture"))

    def info(self, i: int) -> dict[str, Any]:
        """subject, label, wnid, class_name, image, trial and what the reader added."""
        data = self._read(i, "json")
        try:
            info = json.loads(data)
        except (ValueError, RecursionError):
            info = None
        if not isinstance(info, dict):
            raise self._error(i, "has damaged JSON")
        return info
