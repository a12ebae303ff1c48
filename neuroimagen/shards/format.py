"""Shards on disk: WebDataset tars with a manifest, and random access to them.

DIR/manifest.json, DIR/{train,val,test}-000000.tar ..., DIR/{train,val,test}.index.npy. A trial is three members:
  <key>.eeg          raw little-endian float16 or float32, C order, n_chans x n_times, in the manifest's units
  <key>.jpg | .png   the picture as it was seen: the bytes of its file, unless the manifest notes what was done to it
  <key>.json         subject, label, wnid, class_name, image, trial (= key) and what the reader adds
Any WebDataset reader can stream them. The same input gives the same bytes. The index holds every member's place, so a
split is opened without reading its tars; it can be made again from them. Nothing here is ever unpickled.
"""

import dataclasses
import errno
import json
import math
import os
import re
import tarfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroimagen.files import MAX_PICTURE_BYTES, allow_open, pass_on, write_atomic
from neuroimagen.shards.remote import cached_folder, fetch_split, fetch_tar, is_remote
from neuroimagen.studies.study import SPLITS, mark

# More than any study needs, as MAX_PICTURE_BYTES is; what claims more is refused before it is read.
MAX_JSON_BYTES = 1 << 20  # of a trial
MAX_MANIFEST_BYTES = 64 << 20
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # a tar header holds 100 characters
TAR_NAME = re.compile(r"(train|val|test)-\d{6}\.tar")
# One row a trial: the tar's number, then (offset, size) in bytes of each member in it.
INDEX = np.dtype(
    [("key", "S90"), ("tar", "<i4"), ("png", "?"), ("eeg", "<i8", 2), ("picture", "<i8", 2), ("json", "<i8", 2)]
)


class ShardError(ValueError):
    """While a split is in use: a trial cannot be read from its shard. Tar and key are named."""


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
    # Root mean square of what storing it in eeg_dtype changed, relative to the standard deviation of the trials'
    # channels; not known of shards made before it was measured.
    eeg_error: float | None = None
    # What EEG that does not come from these shards has to match (model/eeg.py). Not known of older shards.
    tmin: float | None = None  # s from picture onset (or the first sample, where that is not known) to the first one
    before: dict[str, list[float]] | None = None  # what the reader did before the signal options, in their words
    # What the files state: highpass, lowpass, custom_ref_applied ..., and the files; None: nothing.
    recorded: list[dict[str, Any]] | None = None
    pictures: dict[str, str] | None = None  # file of each picture -> its SHA-256, as it was read
    control: str = ""  # "CONTROL: ...", what is untrue on purpose; in the file only where something is

    @property
    def mark(self) -> str:
        said = re.search(r"CONTROL: [^;]*", self.protocol)  # of shards older than `control`
        return mark(self.control or (said[0] if said else ""), self.split_by)


def local_folder(shards: str | Path) -> Path:
    """The directory itself; of a URL or pipe the one in the cache (shards/remote.py), with its manifest.json alone."""
    if is_remote(shards):
        return cached_folder(str(shards), MAX_MANIFEST_BYTES)
    return Path(shards)


def read_manifest(shards: str | Path) -> Manifest:
    """The manifest of a shard directory, or of the URL of one; ValueError if there is none or it is not ours."""
    path = local_folder(shards) / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{shards} is not a shard directory (no manifest.json): make one with neuroimagen shards"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): make the shards again") from None
    except OSError as error:
        pass_on(error)
        raise ValueError(f"{path} cannot be read ({error.strerror}): make the shards again") from None
    if not isinstance(content, dict) or content.get("format") != "neuroimagen-shards":
        raise ValueError(f"{path} is not a manifest of neuroimagen shards")
    if content.get("version") != 1:
        raise ValueError(
            f"{path} has version {content.get('version')}; this program reads version 1: make the shards again"
        )
    fields = dataclasses.fields(Manifest)
    missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in content]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}: make the shards again")
    manifest = Manifest(**{field.name: content[field.name] for field in fields if field.name in content})
    try:
        tars = [(name, tar) for name in SPLITS for tar in manifest.splits[name]["shards"]]
        numbers = [manifest.n_chans, manifest.n_times, *(tar[n] for _, tar in tars for n in ("trials", "bytes"))]
        sound = all(type(number) is int and 0 < number < 1 << 60 for number in numbers)
        sound &= all(math.isfinite(value) for value in manifest.channel_mean + manifest.channel_std)
        sound &= set(manifest.splits) == set(SPLITS) and manifest.eeg_dtype in ("float16", "float32")
        sound &= len(manifest.channel_mean) == len(manifest.channel_std) == manifest.n_chans > 0 < manifest.n_times
        sound &= all({"label", "wnid", "name"} <= set(c) and type(c["label"]) is int for c in manifest.classes)
        sound &= all(TAR_NAME.fullmatch(t["name"]) and t["name"].startswith(f"{n}-") for n, t in tars)
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged or was changed by hand: make the shards again")
    return manifest


def write_json(path: Path, content: Any) -> None:
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n", own=True)


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each member of a tar. Reads the 512-byte headers alone, whatever sizes they claim."""
    with open(path, "rb") as file:
        end, start = os.fstat(file.fileno()).st_size, 0
        while start < end:
            file.seek(start)
            block = file.read(tarfile.BLOCKSIZE)
            if not any(block):  # the end: zeros
                return
            try:
                member = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ValueError(f"{path} is truncated or damaged ({error}): make the shards again") from None
            # Links, devices, folders, sparse files and extended headers all have another type.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise ValueError(f"{path} holds {member.name!r}, which neuroimagen shards does not write")
            start += tarfile.BLOCKSIZE
            if not 0 <= member.size <= end - start:
                raise ValueError(
                    f"{path} is truncated or damaged ({member.name!r} would have {member.size} bytes): "
                    "make the shards again"
                )
            yield member.name, start, member.size
            start += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def tar_fault(path: Path, said: int) -> str:
    """What is wrong with a tar of which the manifest says that it has `said` bytes; "" if nothing is seen at once."""
    if not path.is_file():
        return f"{path} is missing: copy it again, or make the shards again"
    if (size := path.stat().st_size) == said:
        return ""
    what = f"{path} has {size} bytes where the manifest says {said}: it is truncated or was changed"
    return f"{what}; copy it again, or make the shards again"


def scan_tar(path: Path, number: int) -> np.ndarray:
    """Index rows (dtype INDEX) of one tar, in its order; ValueError for anything but whole trials."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        for name, offset, size in _members(path):
            key, _, extension = name.partition(".")
            known = extension in ("eeg", "json", "jpg", "png") and KEY.fullmatch(key)
            if not known or extension in members.get(key, {}):
                raise ValueError(f"{path} holds {name!r}, which neuroimagen shards does not write")
            members.setdefault(key, {})[extension] = (offset, size)
    except OSError as error:
        pass_on(error)
        raise ValueError(f"{path} cannot be read ({error.strerror}): make the shards again") from None
    rows = np.zeros(len(members), INDEX)
    for row, (key, parts) in zip(rows, members.items(), strict=True):
        if len(parts) != 3 or not {"eeg", "json"} < {*parts}:
            raise ValueError(
                f"{path}: trial {key} is not whole (it has {', '.join(sorted(parts))}): make the shards again"
            )
        row["key"], row["tar"], row["png"] = key.encode(), number, "png" in parts
        row["eeg"], row["picture"], row["json"] = parts["eeg"], parts.get("png") or parts["jpg"], parts["json"]
    return rows


def _index_bytes(trials: int) -> int:
    """That an index file has at most."""
    return 4096 + trials * INDEX.itemsize


def load_index(path: Path, trials: int) -> np.ndarray:
    """An index file, or an empty array of another dtype for anything else."""
    try:
        if path.stat().st_size <= _index_bytes(trials):
            return np.load(path, allow_pickle=False)
    except OSError as error:
        pass_on(error)
    except (ValueError, EOFError, MemoryError, SyntaxError, tokenize.TokenError):
        pass  # the last two are the tokenizer's, through which numpy puts a header that it cannot read
    return np.zeros(0)


class ShardSplit:
    """Random access to one split of a shard directory, or of the URL of one, which is fetched into the cache whole.

    Opening checks the tars' sizes and the index against the manifest. With `incomplete`, tars may be missing or cut
    off: each of their trials then raises ShardError when it is read. Reads are by position (os.preadv), so processes
    made by fork share nothing but the files.
    """

    def __init__(self, shards: str | Path, split: str, incomplete: bool = False) -> None:
        self.folder, self.name = local_folder(shards), split
        self.url = str(shards) if is_remote(shards) else ""
        self.manifest = read_manifest(shards)
        if split not in self.manifest.splits:
            raise ValueError(f"{shards} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        tars = self.manifest.splits[split]["shards"]
        if self.url:
            most = _index_bytes(sum(tar["trials"] for tar in tars))
            fetch_split(self.url, self.folder, split, self.manifest.splits[split], most)
        self.paths = [self.folder / tar["name"] for tar in tars]
        index = self.folder / f"{split}.index.npy"
        incomplete &= index.is_file()  # without it the tars must say what is in them
        for path, tar in zip(self.paths, tars, strict=True):
            if not incomplete and (wrong := tar_fault(path, tar["bytes"])):
                raise ValueError(wrong)
        if index.is_file():
            self.index = load_index(index, sum(tar["trials"] for tar in tars))
        else:
            self.index = np.concatenate([scan_tar(path, number) for number, path in enumerate(self.paths)])
        self._check_index(index, tars)
        self.keys: list[str] = [key.decode() for key in self.index["key"]]
        self.shape = (self.manifest.n_chans, self.manifest.n_times)
        self.dtype = torch.float16 if self.manifest.eeg_dtype == "float16" else torch.float32
        self.files: dict[int, int] = {}  # tar -> descriptor
        soft = allow_open(3 * len(tars) + 256)  # each tar stays open, if so many files may be
        self.most_open = max((soft - 256) // 3, soft // 8)

    def _check_index(self, path: Path, tars: list[dict[str, Any]]) -> None:
        index = self.index
        if index.dtype != INDEX or index.ndim != 1:
            raise ValueError(f"{path} is damaged: remove it, and it is made again from the tars on each start")
        known = ((index["tar"] >= 0) & (index["tar"] < len(tars))).all()
        counts = np.bincount(index["tar"], minlength=len(tars)).tolist() if known else []
        if counts != [tar["trials"] for tar in tars]:
            raise ValueError(f"{self.folder}: the tars of {self.name} do not hold the trials that the manifest counts")
        ends = np.array([tar["bytes"] for tar in tars])[index["tar"]]
        n_bytes = self.manifest.n_chans * self.manifest.n_times * (2 if self.manifest.eeg_dtype == "float16" else 4)
        inside = all(((index[m] >= 0).all() and (index[m].sum(1) <= ends).all()) for m in ("eeg", "picture", "json"))
        if not inside or (index["eeg"][:, 1] != n_bytes).any():
            raise ValueError(f"{self.folder}: EEG of {self.name} does not have the size that the manifest says")
        for member, most in (("picture", MAX_PICTURE_BYTES), ("json", MAX_JSON_BYTES)):
            if (index[member][:, 1] > most).any():
                key = bytes(index["key"][index[member][:, 1].argmax()]).decode(errors="replace")
                raise ValueError(f"{self.folder}: the {member} of trial {key} is larger than {most >> 20} MB")
        if not all(KEY.fullmatch(key.decode(errors="replace")) for key in index["key"].tolist()):
            raise ValueError(f"{path} holds a key that neuroimagen shards does not write: make the shards again")

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"files": {}}  # a copy opens its own

    def __del__(self) -> None:
        for file in getattr(self, "files", {}).values():
            os.close(file)

    def _read(self, i: int, member: str, last: int | None = None) -> bytearray:
        row = self.index[i]
        number = int(row["tar"])
        offset, size = row[member].tolist()
        if last is not None and last < size:
            offset, size = offset + size - last, last
        try:
            data = bytearray(size)
            try:
                n = self._fill(data, number, offset)
            except OSError:  # a file server that has restarted knows the descriptor no more
                if self.files.pop(number, None) is None:
                    raise
                n = self._fill(data, number, offset)
        except (OSError, MemoryError) as error:
            pass_on(error)
            raise self._error(i, f"cannot be read ({getattr(error, 'strerror', error)})") from None
        if n != size:
            raise self._error(i, "cannot be read: the file was truncated while in use")
        return data

    def _fill(self, data: bytearray, number: int, offset: int) -> int:
        """Read what fills `data` from a tar; how many bytes there were. As many tars as may be stay open."""
        kept = self.files.get(number)
        if kept is not None:
            return os.preadv(kept, [data], offset)
        if self.url:  # it may have been removed from the cache since
            try:
                fetch_tar(self.url, self.folder, self.manifest.splits[self.name]["shards"][number])
            except ValueError as error:  # a network or a disk that fails, as the split was there when it was opened
                raise OSError(errno.EIO, str(error)) from None
        file = os.open(self.paths[number], os.O_RDONLY)
        try:
            return os.preadv(file, [data], offset)
        finally:
            # Trials come in random order: none of the tars is read more than others, so the first ones are kept.
            if len(self.files) >= self.most_open or self.files.setdefault(number, file) != file:  # another thread's
                os.close(file)

    def _error(self, i: int, what: str) -> ShardError:
        path = self.paths[self.index[i]["tar"]]
        return ShardError(f"{path}: trial {self.keys[i]} {what}; copy or make the shards again")

    def eeg_into(self, i: int, out: torch.Tensor) -> torch.Tensor:
        """Fill `out`, (n_chans, n_times) float32, with trial i in the manifest's units, not standardised."""
        return out.copy_(torch.frombuffer(self._read(i, "eeg"), dtype=self.dtype).view(self.shape))

    def eeg(self, i: int) -> np.ndarray:
        """As `eeg_into`, as a new array."""
        return self.eeg_into(i, torch.empty(self.shape)).numpy()

    def picture(self, i: int, last: int | None = None) -> bytes:
        """The bytes of the JPEG or PNG that was shown; or so many of its last ones."""
        return bytes(self._read(i, "picture", last))

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
