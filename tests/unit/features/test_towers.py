"""Towers: each is transformers' own forward on transformers' own preprocessing; layers and pools by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import TEXT_LENGTH, tiny_blip, tiny_pipeline, tiny_tower

from neuroimagen.features.efficientnet import efficientnet, features
from neuroimagen.features.towers import DIFFUSION, EMBEDDED_SIZE, load_tower, which_layer
from neuroimagen.files import sha256
from neuroimagen.sample.captions import embed_captions
from neuroimagen.scores.classifiers import EMBEDDED

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
PICTURES = [
    Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)).resize((2 * w, 2 * h), Image.Resampling.BICUBIC)
    for h, w in ((30, 45), (50, 40), (32, 32))
]
TEXTS = ["An image of giant panda", "a dog", "", "red dog " * 40]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {kind: tiny_tower(root / kind, kind) for kind in ("clip", "siglip", "dinov2")}


def load(model, kind="image", layer="last", pool="", size=0, dtype=torch.float32):
    return load_tower(str(model), kind, layer, pool, size, dtype, CPU)


def seen(tower):
    return tower.encode(torch.stack([tower.pixels(picture) for picture in PICTURES]))


def whole(folder, **settings):
    """(the whole model's output with all hidden states, the pixels) by transformers alone."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = processor(images=PICTURES, return_tensors="pt", **settings).pixel_values
    with torch.inference_mode():
        network = getattr(model, "vision_model", model)
        more = {"interpolate_pos_encoding": True} if settings and network is not model else {}
        return model, pixels, network(pixel_values=pixels, output_hidden_states=True, **more)


def close(a, b):
    return a.dtype == torch.float32 and a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_embedding_is_that_of_the_whole_model(towers, kind):
    model, pixels, _ = whole(towers[kind])
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    tower = load(towers[kind])
    assert close(seen(tower), expected) and tower.about["pool"] == "projected"
    assert tower.about["kind"] == "image" and tower.about["layer"] == "last" and tower.about["size"] == 32
    assert not close(expected[:1], expected[1:2])


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_layers_and_pools(towers, kind):
    _, _, out = whole(towers[kind])
    assert len(out.hidden_states) == 4, "what enters three blocks, and what leaves them"
    for layer, states in {
        "last": out.last_hidden_state,
        "0": out.hidden_states[0],
        "2": out.hidden_states[2],
        "0.667": out.hidden_states[2],  # int(0.667 * 3)
        "0.3": out.hidden_states[0],
        ".34": out.hidden_states[1],
    }.items():
        assert close(seen(load(towers[kind], layer=layer, pool="mean")), states.mean(1))
        assert close(seen(load(towers[kind], layer=layer, pool="tokens")), states.flatten(1))
        if kind != "siglip":
            assert close(seen(load(towers[kind], layer=layer, pool="cls")), states[:, 0])
    assert load(towers[kind], layer="0.667").about["layer"] == 2
    assert load(towers[kind], layer="1").about["pool"] == ("mean" if kind == "siglip" else "cls")


def test_what_a_tower_lacks_is_refused(towers):
    with pytest.raises(
        ValueError, match="pool=projected is not there at layer=last of model=.*: there are cls, mean, t"
    ):
        load(towers["dinov2"], pool="projected")
    with pytest.raises(ValueError, match="pool=projected is not there at layer=2 .*: there are cls, mean, tokens"):
        load(towers["clip"], pool="projected", layer="2")
    with pytest.raises(ValueError, match="pool=cls is not there .*: there are projected, mean, tokens"):
        load(towers["siglip"], pool="cls")
    for layer in ("4", "-1", "1.5", "0.0", "1.0", "first", "0,5", "2.0"):
        with pytest.raises(ValueError, match=f"layer={layer} is none of last, 0 to 3, and depths between 0 and 1"):
            load(towers["clip"], layer=layer)
    with pytest.raises(ValueError, match="text features are those of CLIP, SigLIP$"):
        load(towers["dinov2"], kind="text")
    assert which_layer("0.6667", 40) == 26  # dinov2-giant in the 2026 challenge: int(0.6667 * 40)


def test_another_size(towers):
    expected = whole(towers["dinov2"], size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})[2]
    tower = load(towers["dinov2"], size=48)
    assert tower.about["size"] == 48 and tower.about["preprocessing"]["size"] == {"shortest_edge": 48}
    assert close(seen(tower), expected.last_hidden_state[:, 0])
    model, pixels, _ = whole(towers["siglip"], size={"height": 48, "width": 48})
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    assert close(seen(load(towers["siglip"], size=48)), expected)
    with pytest.raises(ValueError, match="makes pictures of 50 x 50 px, not squares that its patches of 8 px fill"):
        load(towers["clip"], size=50)


def test_bf16(towers):
    fine, coarse = seen(load(towers["clip"])), seen(load(towers["clip"], dtype=torch.bfloat16))
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, fine)
    assert torch.nn.functional.cosine_similarity(coarse, fine).min() > 0.999


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts(towers, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(towers[kind])
    model = transformers.AutoModel.from_pretrained(towers[kind]).eval()
    how = {"padding": "max_length", "truncation": True, "max_length": TEXT_LENGTH, "return_tensors": "pt"}
    tokens = tokenizer(TEXTS, **how)
    ids = {"input_ids": tokens.input_ids} if kind == "siglip" else dict(tokens)
    with torch.inference_mode():
        expected = model.get_text_features(**ids).pooler_output
        states = model.text_model(tokens.input_ids, output_hidden_states=True).hidden_states[1]
    with pytest.warns(UserWarning, match="captions of more than 16 tokens are cut"):
        assert close(load(towers[kind], "text").encode(TEXTS), expected)
    n = [TEXT_LENGTH] * 4 if kind == "siglip" else [len(tokenizer(t, truncation=True).input_ids) for t in TEXTS]
    assert kind == "siglip" or n[2] == 2 and n[3] == TEXT_LENGTH, "the empty one has a begin and an end"
    own = [s[:k] for s, k in zip(states, n, strict=True)]
    mean, last = torch.stack([s.mean(0) for s in own]), torch.stack([s[-1] for s in own])
    with pytest.warns(UserWarning, match="are cut"):
        assert close(load(towers[kind], "text", "1", "mean").encode(TEXTS), mean)
        assert close(load(towers[kind], "text", "1", "cls").encode(TEXTS), last)
        assert close(load(towers[kind], "text", "1", "tokens").encode(TEXTS), states.flatten(1))


def test_the_embedded_ones():
    tower = load("embedded")
    pixels = torch.stack([tower.pixels(picture) for picture in PICTURES])
    assert (
        pixels.shape == (3, 3, 96, 96) and json.loads((EMBEDDED / "config.json").read_text())["size"] == EMBEDDED_SIZE
    )
    whole = torch.from_numpy(np.array(PICTURES[1])).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = features(efficientnet(96, CPU), whole, 96)
    assert torch.allclose(tower.encode(pixels)[1:2], expected, atol=1e-4) and expected.shape == (1, 1280)
    for wrong in ({"layer": "2"}, {"pool": "cls"}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match="model=embedded has its last layer, pool=mean and precision=fp32 alone"):
            load("embedded", **wrong)

    tower, texts = load("embedded", "text"), ["An image of giant panda", "An image of pizza"]
    states, tokens = (
        embed_captions(DIFFUSION, texts),
        transformers.AutoTokenizer.from_pretrained(DIFFUSION / "tokenizer"),
    )
    ends = [len(tokens(text).input_ids) - 1 for text in texts]
    assert torch.allclose(tower.encode(texts), states[torch.arange(2), ends], atol=1e-5)
    assert tower.about["revision"] == sha256(DIFFUSION / "text_encoder" / "model.safetensors")


def test_the_revision(towers, tmp_path, monkeypatch):
    assert load(towers["clip"]).about["revision"] == sha256(towers["clip"] / "model.safetensors")
    # as the hub's cache holds it
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--lab--tiny"
    shutil.copytree(towers["clip"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    tower = load("lab/tiny")
    assert tower.about["revision"] == commit and tower.about["model"] == "lab/tiny"
    assert close(seen(tower), seen(load(towers["clip"])))


def test_what_is_no_tower_is_refused(towers, tmp_path):
    with pytest.raises(ValueError, match="model=/no/such is neither a directory nor a hub id"):
        load("/no/such")
    with pytest.raises(
        ValueError, match="it is a blip model; towers for image features are those of CLIP, SigLIP, DINOv2"
    ):
        load(tiny_blip(tmp_path / "blip"))
    with pytest.raises(ValueError, match="model=.*pipeline cannot be loaded"):
        load(tiny_pipeline(tmp_path / "pipeline"))
    copy = shutil.copytree(towers["clip"], tmp_path / "clip")
    weights = copy / "model.safetensors"
    data, state = weights.read_bytes(), load_file(weights)
    weights.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="clip cannot be loaded: "):
        load(copy)
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="its weights lack vision_model.encoder.layers.1.mlp.fc1.weight"):
        load(copy)
    weights.write_bytes(data)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="clip cannot be loaded: Can't load image processor"):
        load(copy)
