"""A shard directory as a study whose every byte is verified; what is wrong is listed, and left out."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from neuroimagen.files import sha256
from neuroimagen.shards.format import INDEX, SPLITS, ShardSplit, load_index, read_manifest, scan_tar, tar_fault
from neuroimagen.studies.study import Faults, Study, Trial

LARGEST = {"eeg": 1 << 30, "picture": 64 << 20, "json": 1 << 20}  # bytes; more is refused before it is read
KINDS = {"subject": int, "label": int, "wnid": str, "class_name": str, "image": str, "trial": str}


class ShardStudy(Study):
    """The Study of a shard directory.

    Opening it verifies every tar's size, SHA-256 and members, the index, and that no tar is left over; `trial` verifies
    that trial against manifest and the trials before it; `finish`, after all trials, what they are together. Faults go
    to `fault`; ValueError for a manifest that cannot be read, and from `trial` for a trial that cannot be used.
    """

    def __init__(self, shards: str | Path, fault: Faults | None = None) -> None:
        super().__init__(fault)
        self.folder = Path(shards)
        m = self.manifest = read_manifest(self.folder)
        self.dataset, self.simulated, self.units, self.channels = m.dataset, m.simulated, m.units, m.channels
        self.n_chans, self.n_times, self.sfreq = m.n_chans, m.n_times, m.sfreq
        self.classes, self.split_by, self.protocol, self.notes = m.classes, m.split_by, m.protocol, m.notes
        self.control = m.control
        self.before, self.recorded, self.inputs = m.before or {}, m.recorded, [Path(path) for path in m.inputs]
        self.tmin = m.tmin or None  # the manifest's 0 may mean that it is not known
        self.known = {c["label"]: c for c in m.classes}
        self.place: list[tuple[str, Path, Any]] = []  # split, tar, index row of each trial
        self.splits: dict[str, list[int]] = {}
        for split in SPLITS:
            self._open(split)
        listed = {tar["name"] for split in SPLITS for tar in m.splits[split]["shards"]}
        for path in sorted(self.folder.glob("*.tar")):
            if path.name not in listed:
                self.fault(f"{path} is not in the manifest: remove it, or make the shards again")
        self.keys: set[str] = set()
        self.pictures: dict[str, bytes] = {}  # image -> digest
        self.side: dict[Any, str] = {}  # image or run -> the first split that has it
        self.subjects: set[int] = set()
        self.images: dict[str, set[str]] = {split: set() for split in SPLITS}
        self.read: Counter[str] = Counter()  # split -> trials
        self.count, self.total = 0, np.zeros((2, m.n_chans))  # of train samples, less the manifest's means

    def __len__(self) -> int:
        return len(self.place)

    def _open(self, split: str) -> None:
        """Verify the tars and the index of a split, and note where its trials are."""
        faults, first = len(self.fault.found), len(self.place)
        for number, tar in enumerate(self.manifest.splits[split]["shards"]):
            path, before = self.folder / tar["name"], len(self.fault.found)
            if wrong := tar_fault(path, tar["bytes"]):
                self.fault(wrong)
            elif sha256(path) != tar["sha256"]:
                self.fault(f"{path} was changed since it was made (SHA-256 differs): make the shards again")
            try:
                rows = scan_tar(path, number) if path.is_file() else ()
            except ValueError as error:
                self.fault(str(error))
                continue
            if len(self.fault.found) == before and len(rows) != tar["trials"]:
                self.fault(f"{path} does not hold the trials that the manifest counts: make the shards again")
            self.place += [(split, path, row) for row in rows]
        self.splits[split] = list(range(first, len(self.place)))
        if len(self.fault.found) > faults:
            return  # what the index should be is not known
        index = self.folder / f"{split}.index.npy"
        read = load_index(index, len(self.splits[split])) if index.is_file() else np.zeros(0)
        if read.dtype == INDEX and not np.array_equal(read, np.array([row for *_, row in self.place[first:]], INDEX)):
            self.fault(f"{index} does not fit the tars: remove it, and it is made again from them on each start")
            return
        try:
            ShardSplit(self.folder, split)  # what the trainers do, who refuse a damaged index
        except ValueError as error:
            self.fault(str(error))

    def where(self, index: int, key: str) -> str:
        return f"{self.place[index][1]}: trial {key}"

    def trial(self, index: int) -> Trial:
        """Read and verify one trial; ValueError if it cannot be used."""
        m, (split, path, row) = self.manifest, self.place[index]
        key = row["key"].decode()
        where = self.where(index, key)
        if key in self.keys:
            raise ValueError(f"{where} comes twice: make the shards again")
        self.keys.add(key)
        parts = {}
        with open(path, "rb") as file:
            for name, most in LARGEST.items():
                offset, size = row[name].tolist()
                if size > most:
                    raise ValueError(f"{where}: its {name} has {size / 1e6:.0f} MB: make the shards again")
                file.seek(offset)
                parts[name] = file.read(size)
        info = self._info(parts["json"], key, where)
        self.read[split] += 1
        self.subjects.add(info["subject"])
        self.images[split].add(info["image"])
        unit = (info["subject"], info.get("session"), info.get("run")) if m.split_by == "run" else info["image"]
        # A run's end may be val while the rest of it is train; test is apart.
        same = {self.side.setdefault(unit, split), split}
        if len(same) > 1 and (m.split_by == "image" or (m.split_by == "run" and "test" in same)):
            self.fault(f"{where}: its {m.split_by} {unit} is in both {self.side[unit]} and {split}: use another split")
        digest = hashlib.sha256(parts["picture"]).digest()
        if (parts["picture"][:4] == b"\x89PNG") != bool(row["png"]):
            self.fault(f"{where}: the picture is not of the kind that its name says")
        if self.pictures.setdefault(info["image"], digest) != digest:
            self.fault(f"{where}: its picture differs from another trial's of the same image name")
        dtype = np.dtype("<f2" if m.eeg_dtype == "float16" else "<f4")
        if len(parts["eeg"]) != m.n_chans * m.n_times * dtype.itemsize:
            raise ValueError(f"{where}: EEG of {split} does not have the size that the manifest says")
        eeg = np.frombuffer(parts["eeg"], dtype).astype(np.float32).reshape(m.n_chans, m.n_times)
        if len(bad := np.flatnonzero(~np.isfinite(eeg).all(axis=1))):
            raise ValueError(f"{where} holds NaN or infinity in channel {bad[0]}")
        if split == "train":
            centred = eeg - np.array(m.channel_mean)[:, None]
            self.count += m.n_times
            self.total += centred.sum(1), (centred**2).sum(1)
        extra = {name: value for name, value in info.items() if name not in KINDS}
        plain = {name: info[name] for name in KINDS if name != "trial"}
        return Trial(key=key, eeg=eeg, jpeg=parts["picture"], extra=extra, **plain)

    def _info(self, data: bytes, key: str, where: str) -> dict[str, Any]:
        try:
            info = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} has damaged JSON: make the shards again") from None
        if not isinstance(info, dict) or any(type(info.get(name)) is not kind for name, kind in KINDS.items()):
            raise ValueError(f"{where} has JSON without one of {', '.join(KINDS)}")
        known = self.known.get(info["label"])
        named = known and (known["wnid"], known["name"]) == (info["wnid"], info["class_name"])
        if info["trial"] != key or not named:
            raise ValueError(f"{where} has JSON of another trial or class: make the shards again")
        return info

    def finish(self) -> None:
        """Counts, subjects and the train statistics, where all that they are made of was read."""
        splits, m = self.manifest.splits, self.manifest
        for split, said in splits.items():
            whole = self.read[split] == sum(tar["trials"] for tar in said["shards"])
            if whole and (said["trials"], said["images"]) != (self.read[split], len(self.images[split])):
                self.fault(f"{self.folder}: split {split} does not hold the trials and images that the manifest counts")
        whole = all(self.read[split] == splits[split]["trials"] for split in SPLITS)
        if whole and self.subjects != set(m.subjects):
            self.fault(f"{self.folder}: the subjects in the tars are {sorted(self.subjects)}, not the manifest's")
        if self.count != splits["train"]["trials"] * self.n_times:
            return
        # Means and standard deviations may differ by 1 %, and by what rounding to float16 (11 bits) can move.
        mean, std = np.array(m.channel_mean), np.array(m.channel_std)
        shift = self.total[0] / self.count
        found = np.sqrt(np.maximum(self.total[1] / self.count - shift**2, 0))
        allowed = 0.01 * std + 2.0**-11 * np.abs(mean) + 1e-12
        wrong = np.flatnonzero((np.abs(shift) > allowed) | (np.abs(found - std) > allowed))
        if len(wrong):
            self.fault(
                f"{self.folder}: the manifest's channel statistics are not those of the train split "
                f"(channel {wrong[0]}{f' and {len(wrong) - 1} more' * (len(wrong) > 1)}): make the shards again"
            )
