"""Published networks: official weight files fit, and give the numbers of torchvision, torch-fidelity, torchmetrics."""

import json
import os
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_networks import fill, layout, numbers, pictures
from safetensors.torch import save_file

from neuroimagen.scores import classifiers, networks
from neuroimagen.scores.backbones import AlexNet, EfficientNetB1, InceptionV3, ResNet50, ViT
from neuroimagen.scores.classifiers import load_classifier
from neuroimagen.scores.networks import NETWORKS, NotAvailable, load_lpips, load_network

GOLDEN = json.loads((Path(__file__).parent / "golden_networks.json").read_text())
BUILD = {
    "alexnet": AlexNet,
    "inception": InceptionV3,
    "fid": lambda: InceptionV3(fid=True),
    "effnet": EfficientNetB1,
    "swav": ResNet50,
}
PLAIN = [build for name, build in BUILD.items() if name not in ("swav", "effnet")]
NODES = {
    "alexnet": {"alex2": "features.4", "alex5": "features.11"},
    "inception": {"inception": "avgpool"},
    "fid": {"fid": "fid", "logits": "logits"},
    "effnet": {"effnet": "avgpool"},
    "swav": {"swav": "avgpool"},
}


# Our names of parameters back to torchvision's, where transformers' and torch's own parts have others
RESNET = {
    r"^body\.embedder\.embedder\.(\w+)": r"\g<1>1",
    r"^body\.encoder\.stages\.(\d)\.layers": lambda found: f"layer{int(found[1]) + 1}",
    r"layer\.(\d)\.(\w+)": lambda found: f"{found[2]}{int(found[1]) + 1}",
    r"shortcut\.convolution": "downsample.0",
    r"shortcut\.normalization": "downsample.1",
    "convolution": "conv",
    "normalization": "bn",
}
EFFNET = {
    r"^body\.embeddings\.convolution": "features.0.0",
    r"^body\.embeddings\.batchnorm": "features.0.1",
    r"^body\.encoder\.top_conv": "features.8.0",
    r"^body\.encoder\.top_bn": "features.8.1",
    r"^body\.encoder\.blocks\.(\d+)": lambda found: "features.{}.{}.block".format(*PLACES[int(found[1])]),
    r"expansion\.expand_conv": "0.0",
    r"expansion\.expand_bn": "0.1",
    r"depthwise_conv\.depthwise_conv": "1.0",
    r"depthwise_conv\.depthwise_norm": "1.1",
    r"squeeze_excite\.reduce": "2.fc1",
    r"squeeze_excite\.expand": "2.fc2",
    r"projection\.project_conv": "3.0",
    r"projection\.project_bn": "3.1",
    r"(features\.1\.\d\.block\.)(\d)": lambda found: f"{found[1]}{int(found[2]) - 1}",  # it does not expand
}
PLACES = [(stage, i) for stage, depth in enumerate((2, 3, 3, 4, 4, 5, 2), 1) for i in range(depth)]
VIT = {
    r"\blayers\.(\d+)\.": r"layers.encoder_layer_\1.",
    r"\.norm(\d)": r".ln_\1",
    "self_attn": "self_attention",
    "linear1": "mlp.0",
    "linear2": "mlp.3",
    r"encoder\.norm": "encoder.ln",
    "^head": "heads.head",
    "^pos_embedding": "encoder.pos_embedding",
}


def on_meta(build) -> dict[str, torch.Tensor]:
    """Names and shapes, as torchvision has them."""
    with torch.device("meta"):
        state = build().state_dict()
    renamed = {} if build in PLAIN else {ResNet50: RESNET, EfficientNetB1: EFFNET}.get(build, VIT)
    for ours, theirs in renamed.items():
        state = {re.sub(ours, theirs, key): value for key, value in state.items()}
    return state


def official(name: str) -> dict[str, torch.Tensor]:
    """Weights by formula in the layout of the official file, with what of it we do not use."""
    state = fill(on_meta(BUILD[name]))
    state |= {f"{unused}6.weight": torch.ones(2, 2) for unused in NETWORKS[name].unused}
    if name == "swav":  # saved by DistributedDataParallel
        state = {f"module.{key}": value for key, value in state.items()}
    if name == "fid":  # older than batch norm's counter
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return state


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(networks.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", BUILD)
def test_features_are_those_of_the_published_network(name, tmp_path):
    assert layout(on_meta(BUILD[name])) == GOLDEN[name]["layout"]
    torch.save(official(name), tmp_path / NETWORKS[name].file)
    features = load_network(name, "cpu", tmp_path)(pictures())
    assert tuple(features) == tuple(NODES[name])
    for layer, found in features.items():
        assert found.dtype == torch.float32 and found.device.type == "cpu"
        # rounding through some hundred layers; a wrong pool or normalisation is off by whole per cents
        np.testing.assert_allclose(numbers(found), GOLDEN[name][NODES[name][layer]], rtol=2e-3, atol=2e-4)


def test_vit_is_torchvisions(tmp_path):
    def build():
        return ViT(32, 16, 64, 2, 4, classes=10)

    old = {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): k for k in fill(on_meta(build))}
    weights = fill(on_meta(build))
    torch.save({key: weights[k] for key, k in old.items()}, tmp_path / "vit.pth")  # the official files' names
    assert any("linear_1" in key for key in old)
    model = networks.fill("torchvision:vit_b_16", build, tmp_path / "vit.pth", torch.device("cpu"))
    found = numbers(model(pictures()[:, :, :32, :32]))
    np.testing.assert_allclose(found, GOLDEN["vit"]["head"], rtol=2e-4, atol=2e-4)
    assert layout(on_meta(lambda: ViT(224, 16, 768, 12, 12))) == GOLDEN["vit"]["vit_b_16"]
    assert layout(on_meta(lambda: ViT(518, 14, 1280, 32, 16))) == GOLDEN["vit"]["vit_h_14"]


def test_imagenet_classifier_prepares_as_its_weights_want(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "ViT", lambda *shape: ViT(shape[0], 112, 32, 1, 2))  # the real one is 330 MB
    save_file(fill(on_meta(lambda: ViT(224, 112, 32, 1, 2))), tmp_path / "vit_b_16-c867db91.safetensors")
    classifier = load_classifier("torchvision:vit_b_16", "cpu", str(tmp_path))
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in networks.IMAGENET)
    with torch.inference_mode():
        model = networks.fill(
            "torchvision:vit_b_16",
            lambda: classifiers.ViT(224),
            tmp_path / "vit_b_16-c867db91.safetensors",
            torch.device("cpu"),
        )
        wanted = model((images[:, :, 16:240, 16:240] - mean) / std)
        torch.testing.assert_close(classifier.both(images)[0], wanted)
    assert len(classifier.classes) == 1000 and classifier.classes[963] == "pizza" and "224 px" in classifier.describe


def test_lpips_is_that_of_torchmetrics(tmp_path, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    weak = {key: 0.1 * value for key, value in official("alexnet").items()}  # so that what guards against 0 / 0 tells
    torch.save(weak, tmp_path / NETWORKS["lpips"].file)
    backbone = networks.fill("alexnet", AlexNet, tmp_path / NETWORKS["lpips"].file, torch.device("cpu"))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: backbone.features)
    images, truths = pictures()[:1], pictures()[1:]
    images, truths = torch.cat([images, truths]), torch.cat([truths, truths])
    wanted = theirs.learned_perceptual_image_patch_similarity(images, truths, "alex", "none", normalize=True)
    pairs = torch.arange(len(images))[:, None].expand(-1, 2)
    found = load_lpips("cpu", tmp_path)(images, truths, pairs)
    torch.testing.assert_close(found, wanted)
    assert found[0] > 0.01 and found[1] == 0


def test_clip_gives_the_image_embedding_of_the_suites_pictures(tmp_path, no_network):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56,
        projection_dim=24,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "clip-vit-large-patch14")
    images = torch.rand(2, 3, 224, 224)  # 256 and 224 px: two resizes
    found = load_network("clip", "cpu", tmp_path)(images)["clip"]
    x = images
    for side in (256, 224):
        x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(found, model(pixel_values=(x - mean) / std).image_embeds)
    assert found.shape == (2, 24)
    for nothing in (Path(__file__).parent, "nobody/no-clip"):
        with pytest.raises(NotAvailable, match="hf download openai/clip-vit-large-patch14"):
            load_network("clip", "cpu", nothing)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "clip"])
def test_what_is_not_at_hand_says_how_to_get_it(name, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    source = NETWORKS[name]
    for weights in (None, tmp_path, tmp_path / "nowhere" / "at all"):
        with pytest.raises(NotAvailable) as error:
            networks.find_weights(name, weights)
        said = str(error.value)
        assert source.url in said and source.file in said and "weights=DIR" in said and "\n" not in said
        assert str(weights or tmp_path / "cache") in said
    cached = tmp_path / "cache" / "hub" / "checkpoints" / source.file
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert networks.find_weights(name) == cached == networks.find_weights(name, cached)


def test_a_host_out_of_reach_is_not_available(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(networks.constants, "HF_HUB_OFFLINE", False)

    def refuse(url, timeout):
        assert url == NETWORKS["effnet"].url and timeout
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(networks.urllib.request, "urlopen", refuse)
    with pytest.raises(NotAvailable, match="Name or service not known"):
        load_network("effnet")


class Code:
    """A pickle of this makes a directory wherever it is unpickled as code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / NETWORKS["alexnet"].file
    torch.save(official("alexnet"), path)
    whole = path.read_bytes()
    for content in (b"", b"no weights", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as weights of alexnet") as error:
            load_network("alexnet", weights=tmp_path)
        assert not isinstance(error.value, NotAvailable)  # it is there, but it is not right: never passed over
    torch.save(official("alexnet") | {"classifier.6.weight": Code(tmp_path / "was run")}, path)
    with pytest.raises(ValueError, match="cannot be read as weights of alexnet"):
        load_network("alexnet", weights=tmp_path)
    assert not (tmp_path / "was run").exists()
    torch.save(fill(on_meta(EfficientNetB1)), path)
    with pytest.raises(ValueError, match="does not hold the weights of alexnet"):
        load_network("alexnet", weights=tmp_path)
    with pytest.raises(ValueError, match="'vgg' is unknown"):
        load_network("vgg")


def test_the_docs_name_every_file():
    text = (Path(__file__).parents[3] / "docs" / "networks.md").read_text()
    for source in NETWORKS.values():
        assert source.file in text and source.url in text and source.licence.split(" (")[0] in text


def test_a_hub_repository_may_hold_the_files(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        networks.huggingface_hub, "hf_hub_download", lambda *what: asked.append(what) or tmp_path / "snapshot.pth"
    )
    assert networks.find_weights("swav", "lab/mirror") == tmp_path / "snapshot.pth"
    assert asked == [("lab/mirror", "swav_800ep_pretrain.pth.tar")]
