"""`neuroimagen features`: every picture gets its own features, once; what is there already is kept or refused."""

import hashlib
import io
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import tiny_shards, tiny_tower

from neuroimagen.features import extract as module
from neuroimagen.features.extract import FeaturesConfig, extract
from neuroimagen.features.format import picture_digests, read_features
from neuroimagen.features.towers import load_tower
from neuroimagen.features.views import VIEWS
from neuroimagen.shards.format import SPLITS, ShardSplit
from neuroimagen.studies.captions import write_captions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    return {"shards": tiny_shards(root / "shards"), "model": tiny_tower(root / "clip", "clip")}


@pytest.fixture(autouse=True)
def fresh_process_state(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    AcceleratorState._reset_state(reset_partial_state=True)


def config(made, out, **fields):
    return FeaturesConfig(
        **{name: str(path) for name, path in made.items()}, out=str(out), **{"batch_size": 4} | fields
    )


def pictures(made):
    """SHA-256 -> (bytes, image, class name) of each picture of the three splits."""
    found = {}
    for split in (ShardSplit(made["shards"], name) for name in SPLITS):
        for i in range(len(split)):
            data, info = split.picture(i), split.info(i)
            found[hashlib.sha256(data).digest()] = data, info["image"], info["class_name"]
    return found


def test_each_picture_has_the_features_of_transformers_itself(made, tmp_path, fp32_is_fp32):
    assert extract(config(made, tmp_path / "f")) == 0
    found, shown = read_features(tmp_path / "f"), pictures(made)
    assert len(shown) == 30 and found.keys == sorted(shown) and [p.name for p in tmp_path.iterdir()] == ["f"]
    processor = transformers.AutoImageProcessor.from_pretrained(made["model"], backend="pil")
    images = [Image.open(io.BytesIO(shown[key][0])).convert("RGB") for key in found.keys]
    with torch.inference_mode():
        model = transformers.CLIPModel.from_pretrained(made["model"]).eval()
        expected = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
    assert torch.allclose(found.vectors, expected, atol=1e-4)
    assert len(found.vectors.round(decimals=3).unique(dim=0)) == 30
    for name in SPLITS:  # and each trial finds its own
        split = ShardSplit(made["shards"], name)
        rows = found.rows(picture_digests(split))
        assert [found.keys[row] for row in rows] == [
            hashlib.sha256(split.picture(i)).digest() for i in range(len(split))
        ]
    assert found.about == {
        **{"model": str(made["model"]), "revision": found.about["revision"], "kind": "image", "layer": "last"},
        **{"pool": "projected", "size": 32, "preprocessing": found.about["preprocessing"], "views": ["original"]},
        **{"captions": "", "precision": "fp32", "n_pictures": 30, "version": 1},
    }
    assert (
        found.about["preprocessing"]["size"] == {"shortest_edge": 40} and found.about["preprocessing"]["resample"] == 3
    )


def test_views_are_averaged(made, tmp_path):
    assert extract(config(made, tmp_path / "f", views=["noise", "low_resolution", "original"], pool="cls")) == 0
    found, shown = read_features(tmp_path / "f"), pictures(made)
    tower = load_tower(str(made["model"]), "image", "last", "cls", 0, torch.float32, torch.device("cpu"))
    for key in found.keys[::7]:
        x = tower.pixels(Image.open(io.BytesIO(shown[key][0])).convert("RGB"))
        seen = [tower.encode(VIEWS[view](x, key)[None]) for view in ("noise", "low_resolution", "original")]
        assert torch.allclose(found.vectors[found.rows([key])], sum(seen) / 3, atol=1e-4)
        assert not torch.allclose(seen[0], seen[2], atol=1e-2) and not torch.allclose(seen[1], seen[2], atol=1e-2)


def test_captions(made, tmp_path):
    assert extract(config(made, tmp_path / "label", captions="label")) == 0
    shown = pictures(made)
    captions = tmp_path / "captions.jsonl"
    write_captions(captions, {image: f"a red {name} {image[-1]}" for _, image, name in shown.values()}, "by hand")
    assert extract(config(made, tmp_path / "file", captions=str(captions))) == 0
    tower = load_tower(str(made["model"]), "text", "last", "", 0, torch.float32, torch.device("cpu"))
    for name, text, source in (
        ("label", lambda image, name: f"An image of {name}", "label"),
        ("file", lambda image, name: f"a red {name} {image[-1]}", "by hand"),
    ):
        found = read_features(tmp_path / name)
        assert found.about["kind"] == "text" and found.about["captions"] == source
        expected = torch.cat([tower.encode([text(*shown[key][1:])]) for key in found.keys])
        assert torch.allclose(found.vectors, expected, atol=1e-4)
    assert len(read_features(tmp_path / "label").vectors.unique(dim=0)) == 3

    one = min(shown.values())[1]
    write_captions(captions, {image: "a boat" for _, image, _ in shown.values()}, "by hand")
    with pytest.raises(ValueError, match="file was made with other captions: give another out="):
        extract(config(made, tmp_path / "file", captions=str(captions)))
    write_captions(captions, {image: "a boat" for _, image, _ in shown.values() if image != one}, "by hand")
    with pytest.raises(
        ValueError, match=f"captions={captions} has no caption of {one}: add it, or give captions=label"
    ):
        extract(config(made, tmp_path / "other", captions=str(captions)))
    with pytest.raises(ValueError, match="views= and size= are of pictures"):
        extract(config(made, tmp_path / "other", captions="label", size=48))


def test_what_is_there_is_kept_or_refused(made, tmp_path, capsys, monkeypatch):
    out = tmp_path / "f"
    assert extract(config(made, out)) == 0
    before = out.read_bytes()
    monkeypatch.setattr(module, "_encode", lambda *_: pytest.fail("made again"))
    (tmp_path / "f.parts").mkdir()  # killed before they were removed
    moved = made | {"model": (tmp_path / "clip").symlink_to(made["model"]) or tmp_path / "clip"}
    assert extract(config(moved, out, batch_size=7)) == 0
    assert (
        "f is done already: features of 30 pictures" in capsys.readouterr().out and not (tmp_path / "f.parts").exists()
    )
    for change, said in {
        "layer": ("2", "layer=last, not 2 and pool=projected, not cls"),
        "views": (["blur"], r"views=\['original'\], not \['blur'\]"),
        "captions": ("label", "kind=image, not text and"),
    }.items():
        with pytest.raises(ValueError, match=f"f was made with {said[1]}"):
            extract(config(made, out, **{change: said[0]}))
    other = tiny_shards(tmp_path / "shards", seed=1)
    with pytest.raises(ValueError, match="f was made with other pictures: give another out="):
        extract(config(made | {"shards": other}, out))
    with pytest.raises(ValueError, match="f was made with other weights"):
        extract(config(made | {"model": tiny_tower(tmp_path / "again", "clip", seed=1)}, out))
    assert out.read_bytes() == before
    out.write_bytes(before[:-1])
    with pytest.raises(ValueError, match="f is no features file, or is damaged"):
        extract(config(made, out))


def test_it_continues_where_it_was_stopped(made, tmp_path, monkeypatch, capsys, one_thread):
    assert extract(config(made, tmp_path / "whole")) == 0
    encoded, original = [], module._encode
    monkeypatch.setattr(module, "_encode", lambda *given: encoded.append(len(given[2])) or original(*given))
    with monkeypatch.context() as patch:
        patch.setattr(module.processes, "stop_requested", lambda: len(encoded) == 3)
        assert extract(config(made, tmp_path / "f")) == 143
    assert "5 of 8 chunks are left; run the same command to continue" in capsys.readouterr().out
    assert not (tmp_path / "f").exists() and len(list((tmp_path / "f.parts").glob("*.safetensors"))) == 3
    for wrong in ({"layer": "1"}, {"batch_size": 5}):
        with pytest.raises(
            ValueError, match=r"f.parts was made with (layer=last, not 1|batch_size=4, not 5).*or delete it"
        ):
            extract(config(made, tmp_path / "f", **wrong))
    encoded.clear()
    assert extract(config(made, tmp_path / "f")) == 0
    assert encoded == [4, 4, 4, 4, 2] and not (tmp_path / "f.parts").exists()
    assert (tmp_path / "f").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_second_command_beside_it_is_refused(made, tmp_path):
    (tmp_path / "f.parts").mkdir()
    hold = "import sys, pathlib; from neuroimagen.files import claim; claim(pathlib.Path(sys.argv[1]), ''); "
    command = [sys.executable, "-c", hold + "print(flush=True); input()", tmp_path / "f.parts/lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"f is being made by process {other.pid} on .*: wait for it, or give"):
            extract(config(made, tmp_path / "f"))
        other.stdin.close()
    assert extract(config(made, tmp_path / "f")) == 0 and not (tmp_path / "f.parts").exists()


def test_mistakes_are_one_sentence(made, tmp_path):
    with pytest.raises(ValueError, match="no is not a shard directory"):
        extract(config(made | {"shards": tmp_path / "no"}, tmp_path / "f"))
    with pytest.raises(ValueError, match="views=fog is none of original, blur, low_resolution, mosaic, noise, fovea"):
        extract(config(made, tmp_path / "f", views=["fog"]))
    with pytest.raises(ValueError, match="give one view or more"):
        extract(config(made, tmp_path / "f", views=[]))
    with pytest.raises(ValueError, match="is there and is no file"):
        extract(config(made, tmp_path))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="precision=fp16 does nothing on a CPU"):
        extract(config(made, tmp_path / "f", precision="fp16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    shards = tiny_shards(tmp_path / "shards", seed=2)
    split = ShardSplit(shards, "val")
    for i in range(len(split)):
        with open(split.paths[0], "r+b") as tar:
            tar.seek(split.index[i]["picture"][0] + 20)
            tar.write(bytes(200))
    with pytest.raises(
        ValueError, match=r"val-000000.tar: the picture of trial \S+ cannot be decoded \(.*\): make the sh"
    ):
        extract(config(made | {"shards": shards}, tmp_path / "f"))
    assert not (tmp_path / "f").exists()
