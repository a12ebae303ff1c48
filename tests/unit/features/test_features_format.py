"""Features files: what is written is read, what is damaged is refused; which picture is which, by its bytes alone."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_shards

from neuroimagen.features.format import picture_digests, read_features, write_features
from neuroimagen.shards.format import ShardSplit

KEYS = [hashlib.sha256(bytes([i])).digest() for i in range(5)]
VECTORS = torch.arange(15.0).view(5, 3)


@pytest.fixture
def file(tmp_path):
    write_features(tmp_path / "f.safetensors", VECTORS, KEYS, {"model": "m", "kind": "image"})
    return tmp_path / "f.safetensors"


def test_each_picture_finds_its_row(file):
    found = read_features(file)
    assert found.width == 3 and found.vectors.dtype == torch.float32
    assert found.about == {"model": "m", "kind": "image", "n_pictures": 5, "version": 1}
    assert found.keys == sorted(KEYS) != KEYS
    wanted = [KEYS[i] for i in (4, 0, 0, 2)]
    assert found.rows(wanted).dtype == torch.int64
    assert torch.equal(found.vectors[found.rows(wanted)], VECTORS[[4, 0, 0, 2]])


def test_the_bytes_do_not_depend_on_the_order(file, tmp_path):
    order = [3, 1, 4, 0, 2]
    write_features(tmp_path / "g", VECTORS[order], [KEYS[i] for i in order], {"kind": "image", "model": "m"})
    assert (tmp_path / "g").read_bytes() == file.read_bytes()


def test_a_picture_without_features_is_named(file):
    strange = hashlib.sha256(b"another").digest()
    with pytest.raises(ValueError, match=f"f.safetensors is of other pictures.* 1 of these.*{strange.hex()}; make it"):
        read_features(file).rows([KEYS[0], strange, strange])


def test_what_is_not_finite_is_not_written(tmp_path):
    vectors = VECTORS.clone()
    vectors[3, 1] = torch.inf
    with pytest.raises(ValueError, match=f"1 pictures are not finite, .*{KEYS[3].hex()}"):
        write_features(tmp_path / "f", vectors, KEYS, {})
    assert not any(tmp_path.iterdir())


def test_what_is_no_features_file_is_refused(file, tmp_path):
    data, other = file.read_bytes(), tmp_path / "other"
    with pytest.raises(ValueError, match="other does not exist; make it with neuroimagen features"):
        read_features(other)
    for content in (b"", b"text", data[:-1], data[:40], b"\xff" * 200):
        other.write_bytes(content)
        with pytest.raises(ValueError, match="other is no features file, or is damaged.*: make it"):
            read_features(other)
    keys, about = read_features(file), {"about": json.dumps({"version": 1, "n_pictures": 5})}
    table = torch.tensor([list(key) for key in keys.keys], dtype=torch.uint8)
    good = {"features": VECTORS, "keys": table}
    save_file(good, other, about)
    read_features(other)
    for bad in (
        {"keys": table.flip(0)},
        {"keys": table[[0, 0, 1, 2, 3]]},
        {"keys": table[:4]},
        {"keys": table[:, :31].contiguous()},
        {"features": VECTORS.half()},
        {"features": VECTORS / 0},
        {"features": VECTORS[:, 0].contiguous()},
    ):
        save_file(good | bad, other, about)
        with pytest.raises(ValueError, match="other is no features file, or is damaged"):
            read_features(other)
    save_file({"features": VECTORS}, other, about)
    with pytest.raises(ValueError, match="other is no features file, or is damaged"):
        read_features(other)
    save_file(good, other)
    with pytest.raises(ValueError, match="other is no features file, or is damaged"):
        read_features(other)
    save_file(good, other, {"about": json.dumps({"version": 2, "n_pictures": 5})})
    with pytest.raises(ValueError, match="other has version 2; this program reads version 1"):
        read_features(other)


def test_a_picture_is_read_once_and_known_by_its_bytes(tmp_path, monkeypatch):
    shards = tiny_shards(tmp_path / "shards")
    split, whole = ShardSplit(shards, "train"), []
    read = ShardSplit.picture
    expected = [hashlib.sha256(read(split, i)).digest() for i in range(len(split))]
    monkeypatch.setattr(
        ShardSplit, "picture", lambda self, i, last=None: (last or whole.append(i), read(self, i, last))[1]
    )
    assert picture_digests(split) == expected
    assert len(whole) == len(set(expected)) == len(split) // 2, "two people saw each picture"

    # another picture of the same name and length in one trial
    i = next(i for i in range(len(split)) if expected.index(expected[i]) < i)
    offset, size = split.index[i]["picture"].tolist()
    with open(split.paths[0], "r+b") as tar:
        tar.seek(offset + size // 2)
        byte = tar.read(1)
        tar.seek(offset + size // 2)
        tar.write(bytes([byte[0] ^ 1]))
    found = picture_digests(split)
    assert [k for k in range(len(split)) if found[k] != expected[k]] == [i]
    assert found[i] == hashlib.sha256(read(split, i)).digest()
