"""Captions: files, embeddings, and the captioning command on small random BLIP models."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, tiny_blip, tiny_blip2, tiny_pipeline, tiny_xl

from neuroimagen.reconstruction.pipelines import load_pipeline
from neuroimagen.sample import captions
from neuroimagen.sample.captions import CaptionsConfig, caption_pictures, embed_captions
from neuroimagen.studies.captions import captions_source, read_captions, write_captions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    makers = {"pipeline": tiny_pipeline, "blip": tiny_blip, "blip2": tiny_blip2}
    return {name: make(root / name) for name, make in makers.items()}


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures in two folders, by wnid as in the published data set."""
    for number in range(7):
        folder = tmp_path / "pictures" / f"n0000000{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        suffix = ("JPEG", "jpg", "png")[number % 3]
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number}.{suffix}")
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def fresh_process_state():
    """The command catches SIGTERM and makes an Accelerator; both are the process's own."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_embeddings_are_those_of_the_pipeline_itself(models):
    texts = ["An image of giant panda", "", "a red pizza on a blue chair", "An image of giant panda"]
    got = embed_captions(str(models["pipeline"]), texts, batch_size=2)
    assert got.shape == (4, TEXT_LENGTH, TEXT_WIDTH) and got.dtype == torch.float32
    pipe = load_pipeline(str(models["pipeline"]))
    expected = pipe.encode_prompt(texts, "cpu", 1, False)[0]
    assert torch.allclose(got, expected, atol=1e-6)
    assert torch.equal(got[0], got[3]) and not torch.allclose(got[0], got[2], atol=1e-2)


def test_embeddings_of_xl_are_those_of_its_two_encoders(models, tmp_path):
    xl, texts = tiny_xl(tmp_path, models["pipeline"]), ["An image of giant panda", ""]
    got = embed_captions(str(xl), texts)
    expected = load_pipeline(str(xl)).encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)[0]
    assert got.shape == (2, TEXT_LENGTH, TEXT_WIDTH + 48)
    assert torch.allclose(got, expected, atol=1e-6)


def test_equal_captions_are_encoded_once(models, monkeypatch):
    from transformers import CLIPTextModel

    seen, original = [], CLIPTextModel.forward

    def forward(self, ids, **kwargs):
        seen.append(len(ids))
        return original(self, ids, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", forward)
    assert len(embed_captions(str(models["pipeline"]), ["a dog", "a cat"] * 50, batch_size=64)) == 100
    assert seen == [2]


def test_captions_that_are_too_long_are_cut_with_a_warning(models):
    with pytest.warns(UserWarning, match="1 of 2 captions are longer than 16 tokens"):
        got = embed_captions(str(models["pipeline"]), ["a dog", "a red dog " * 20])
    assert got.shape == (2, TEXT_LENGTH, TEXT_WIDTH)
    with pytest.raises(ValueError, match="cannot be loaded"):
        embed_captions("/no/such/pipeline", ["a dog"])


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_the_command_captions_every_picture(models, pictures, tmp_path, name, fp32_is_fp32):
    out = tmp_path / "captions.jsonl"
    config = CaptionsConfig(images=str(pictures), out=str(out), model=str(models[name]), batch_size=3)
    assert caption_pictures(config) == 0
    found = read_captions(out)
    assert sorted(found) == sorted(f"n0000000{i % 2}_{i}" for i in range(7))
    assert captions_source(out) == str(models[name])
    assert not any("[" in caption or "<" in caption for caption in found.values()), "special tokens were left in"
    assert sorted(path.name for path in tmp_path.glob("captions*")) == ["captions.jsonl", "captions.jsonl.inputs.json"]


def test_the_command_continues_where_it_was_stopped(models, pictures, tmp_path, monkeypatch):
    out, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"
    config = CaptionsConfig(images=str(pictures), out=str(out), model=str(models["blip"]), batch_size=1)
    caption_pictures(CaptionsConfig(images=str(pictures), out=str(whole), model=str(models["blip"]), batch_size=1))
    lines = whole.read_text().splitlines(keepends=True)
    # another rank's part, and one of ours cut by a kill in the middle of a line
    (tmp_path / "captions.jsonl.part-0001").write_text("".join(lines[:2]))
    (tmp_path / "captions.jsonl.part-0000").write_text(lines[2] + lines[3][:20])
    opened = []
    original = captions._open_rgb
    monkeypatch.setattr(captions, "_open_rgb", lambda path: opened.append(path.stem) or original(path))
    assert caption_pictures(config) == 0
    assert out.read_bytes() == whole.read_bytes()
    done = [json.loads(line)["image"] for line in lines[:3]]
    assert len(opened) == 4 and not set(opened) & set(done)
    opened.clear()
    assert caption_pictures(config) == 0 and not opened, "a finished file was made again"


@pytest.fixture
def quick(monkeypatch):
    """Captions that say what was opened, without a model."""
    monkeypatch.setattr(captions, "_load_model", lambda *_: (None, None))

    def caption(names, pictures, config, loaded, part):
        found = {name: f"{len(pictures[name].read_bytes())} bytes" for name in names}
        part.write_text("".join(captions.line_of(name, text, config.model) for name, text in found.items()))
        return found

    monkeypatch.setattr(captions, "_caption", caption)


def repainted(path):
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize("stopped", [False, True])
def test_captions_are_of_these_pictures(models, pictures, tmp_path, stopped, quick, monkeypatch):
    """Also while only part of them is there, in a part file."""
    out, model = tmp_path / "captions.jsonl", shutil.copytree(models["blip"], tmp_path / "blip")
    config = CaptionsConfig(images=str(pictures), out=str(out), model=str(model))
    if stopped:
        with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception, match="killed"):
            patch.setattr(captions, "write_captions", lambda *_: pytest.fail("killed"))
            caption_pictures(config)
    else:
        assert caption_pictures(config) == 0
    assert out.exists() != stopped
    monkeypatch.setattr(captions, "_caption", lambda names, *_: {name: "new" for name in names})
    picture, before = pictures / "n00000000" / "n00000000_0.JPEG", sorted(tmp_path.iterdir())
    kept, weights = picture.read_bytes(), model / "model.safetensors"
    repainted(picture)
    said = (
        rf"out={out} was made of another images={pictures} than there is now \(1 changed, such as n00000000_0\): choose"
    )
    with pytest.raises(ValueError, match=said):
        caption_pictures(config)
    picture.write_bytes(kept)
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="of another model=.*1 changed, such as model.safetensors"):
        caption_pictures(config)
    weights.write_bytes(data)
    assert sorted(tmp_path.iterdir()) == before
    # another place in the folder, a picture more, a picture less: the captions that there are stay right
    picture.rename(pictures / "n00000001" / picture.name)
    repainted(pictures / "more.png")
    (pictures / "n00000001" / "n00000001_1.jpg").unlink()
    assert caption_pictures(config) == 0
    found = read_captions(out)
    assert len(found) == 8 and [name for name, text in found.items() if text == "new"] == ["more"]
    repainted(pictures / "n00000001" / "n00000001_1.jpg")
    with pytest.raises(ValueError, match="1 changed, such as n00000001_1"):
        caption_pictures(config)
    out.unlink()
    assert caption_pictures(config) == 0, "deleted, as was advised"


def test_a_picture_that_changes_while_it_is_captioned(models, pictures, tmp_path, quick, monkeypatch):
    config = CaptionsConfig(images=str(pictures), out=str(tmp_path / "captions.jsonl"), model=str(models["blip"]))
    monkeypatch.setattr(
        captions, "_load_model", lambda *_: repainted(pictures / "n00000000" / "n00000000_0.JPEG") or (None, None)
    )
    with pytest.raises(ValueError, match="1 changed, such as n00000000_0"):
        caption_pictures(config)
    assert not (tmp_path / "captions.jsonl").exists()


def test_captions_of_before_are_taken_with_a_note(models, pictures, tmp_path, quick, capsys):
    out = tmp_path / "captions.jsonl"
    config = CaptionsConfig(images=str(pictures), out=str(out), model=str(models["blip"]))
    assert caption_pictures(config) == 0
    (tmp_path / "captions.jsonl.inputs.json").unlink()
    assert caption_pictures(config) == 0
    assert f"note: out={out} was made before it was kept of which inputs" in capsys.readouterr().out


def test_the_command_leaves_its_output_alone_on_a_mistake(models, pictures, tmp_path):
    out = tmp_path / "captions.jsonl"
    config = CaptionsConfig(images=str(pictures), out=str(out), model=str(models["blip"]), batch_size=2)

    bad = pictures / "n00000000" / "n00000000_98.JPEG"
    good = next(pictures.rglob("*.JPEG")).read_bytes()
    for content in (b"not a picture", good[: len(good) // 2]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="n00000000_98.JPEG cannot be read"):
            caption_pictures(config)
        assert not out.exists()
    bad.unlink()

    twin = pictures / "n00000000_0.png"
    Image.new("RGB", (8, 8)).save(twin)
    with pytest.raises(ValueError, match="same name"):
        caption_pictures(config)
    twin.unlink()

    write_captions(out, {"n00000000_0": "a drawn panda"}, "drawn scene (simulator)")
    before = out.read_bytes()
    with pytest.raises(ValueError, match="holds captions by drawn scene"):
        caption_pictures(config)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": "/no/such/folder"}, "not a directory"),
        ({"model": "/no/such/model"}, "neither a directory nor a hub id"),
        ({"precision": "fp8"}, "precision must be"),
        ({"precision": "fp16"}, "CPU"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_the_command_says_what_is_wrong(models, pictures, tmp_path, change, message):
    fields = {"images": str(pictures), "out": str(tmp_path / "c.jsonl"), "model": str(models["blip"])} | change
    with pytest.raises(ValueError, match=message):
        caption_pictures(CaptionsConfig(**fields))


def test_a_model_that_does_not_caption_is_refused(models, pictures, tmp_path):
    fields = {"images": str(pictures), "out": str(tmp_path / "c.jsonl")}
    with pytest.raises(ValueError, match="cannot be loaded"):
        caption_pictures(CaptionsConfig(**fields, model=str(models["pipeline"])))
