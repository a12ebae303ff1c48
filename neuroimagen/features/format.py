"""A features file: vectors that a network makes of pictures, or of their captions, each found by its picture's bytes.

One safetensors file: "features" float32 (n, D), a row a distinct picture of the shards, and "keys" uint8 (n, 32), the
SHA-256 of the bytes that the shards hold of it; rows are sorted by key. Its metadata "about" is JSON: model, revision,
layer, pool, views, size, preprocessing, kind (image or text), captions, n_pictures, version.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from neuroimagen.files import pass_on, write_atomic
from neuroimagen.shards.format import ShardSplit

VERSION = 1
TAIL = 4096  # bytes


@dataclasses.dataclass
class Features:
    """What `read_features` gives."""

    path: Path
    about: dict[str, Any]
    vectors: torch.Tensor  # (n, D) float32
    keys: list[bytes]  # SHA-256 of the picture of each row, ascending

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @functools.cached_property
    def _row(self) -> dict[bytes, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def rows(self, digests: Sequence[bytes]) -> torch.Tensor:
        """Row of each picture, int64 (len(digests),), by `picture_digests`. ValueError if one has no features here."""
        if lacking := list(dict.fromkeys(digest for digest in digests if digest not in self._row)):
            raise ValueError(
                f"{self.path} is of other pictures: it has none of {len(lacking)} of these, such as that with SHA-256 "
                f"{lacking[0].hex()}; make it of these shards with neuroimagen features"
            )
        return torch.tensor([self._row[digest] for digest in digests], dtype=torch.int64)


def write_features(path: Path, vectors: torch.Tensor, keys: Sequence[bytes], about: dict[str, Any]) -> None:
    """Write a features file, whole or not at all: `vectors` (n, D) of the pictures `keys`, in any order.

    ValueError if a number is not finite.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if bad := [keys[i] for i in order if not vectors[i].isfinite().all()]:
        raise ValueError(
            f"features of {len(bad)} pictures are not finite, such as of that with SHA-256 {bad[0].hex()}: "
            "give precision=fp32, or another model or layer"
        )
    table = torch.from_numpy(np.frombuffer(b"".join(keys[i] for i in order), np.uint8).copy()).view(-1, 32)
    about = about | {"n_pictures": len(keys), "version": VERSION}
    tensors = {"features": vectors[order].float().contiguous(), "keys": table}
    write_atomic(path, save(tensors, {"about": json.dumps(about, sort_keys=True)}))


def read_features(path: str | Path) -> Features:
    """Read a features file whole. ValueError: it is missing, damaged, or no features file."""
    what = f"{path} is no features file, or is damaged"
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            if about["version"] != VERSION:
                raise ValueError(f"{path} has version {about['version']}; this program reads version {VERSION}")
            vectors, keys = file.get_tensor("features"), file.get_tensor("keys")
    except FileNotFoundError:
        raise ValueError(f"features file {path} does not exist; make it with neuroimagen features") from None
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        pass_on(error)
        raise ValueError(f"{what} ({type(error).__name__}: {error}): make it with neuroimagen features") from None
    rows = [bytes(row) for row in keys.numpy()]
    sound = vectors.dtype == torch.float32 and keys.dtype == torch.uint8 and vectors.ndim == keys.ndim == 2
    sound = sound and keys.shape[1] == 32 and len(vectors) == len(rows) == about.get("n_pictures") and vectors.numel()
    if not sound or rows != sorted(set(rows)) or not vectors.isfinite().all():
        raise ValueError(f"{what}: make it with neuroimagen features")
    return Features(Path(path), about, vectors, rows)


def picture_digests(split: ShardSplit) -> list[bytes]:
    """SHA-256 of the picture of every trial of a split, in its order; call it on one process and tell the others.

    A picture is read once, however many trials show it: a later trial's is taken for the same if its `image` name, its
    length and its last 4 kB are, which lie beside the name in the tar. (So no picture that is smaller can be mistaken,
    and of a larger one none of which another byte count or another end tells: reading every trial's picture whole
    would take as long as all of the shards.)
    """
    known: dict[Any, bytes] = {}
    found = []
    for i in tqdm(range(len(split)), desc="which picture is which", unit="trial", delay=2, disable=None):
        look = str(split.info(i).get("image")), int(split.index[i]["picture"][1]), split.picture(i, TAIL)
        if look not in known:
            known[look] = hashlib.sha256(split.picture(i)).digest()
        found.append(known[look])
    return found
