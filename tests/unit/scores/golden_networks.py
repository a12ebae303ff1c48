"""Weights by formula, and what torchvision, torch-fidelity and MindEye's recipe make of them (golden_networks.json).

torchvision does not import beside the CPU build of torch that the tests run on, so its numbers are recorded. To make
them anew, in an environment that has torchvision and torch-fidelity: python tests/unit/scores/golden_networks.py > FILE
"""

import hashlib
import json
import math
import tempfile
import zlib
from pathlib import Path

import torch


def fill(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for these names and shapes that keep a deep network's activations within bounds, the same everywhere."""
    out = {}
    for key, like in state.items():
        chance = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if not like.is_floating_point():
            out[key] = torch.zeros(like.shape, dtype=like.dtype)
        elif key.endswith("running_var"):
            out[key] = torch.rand(like.shape, generator=chance) + 0.5
        elif like.ndim == 1 and key.endswith("weight"):
            out[key] = 1 + 0.1 * torch.randn(like.shape, generator=chance)
        elif like.ndim <= 1 or key.endswith(("pos_embedding", "class_token")):
            out[key] = 0.1 * torch.randn(like.shape, generator=chance)
        else:
            out[key] = torch.randn(like.shape, generator=chance) * math.sqrt(2 / math.prod(like.shape[1:]))
    return out


def pictures() -> torch.Tensor:
    """(2, 3, 72, 60) in [0, 1], whole 255ths: waves of several widths, one finer than the other."""
    y, x = torch.meshgrid(torch.arange(72) / 72, torch.arange(60) / 60, indexing="ij")
    waves = [0.5 + 0.5 * torch.sin(f * (3 * x + c * y) + c) for f in (2.0, 9.0) for c in range(3)]
    return (255 * torch.stack(waves).view(2, 3, 72, 60)).round() / 255


def layout(state: dict[str, torch.Tensor]) -> str:
    """Fingerprint of a state's names and shapes."""
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def numbers(features: torch.Tensor) -> list[float]:
    """Of (2, D): size, mean and spread of both rows, and their products with a wave, which tell the order."""
    x = features.flatten(1).double()
    wave = torch.sin(torch.arange(x.shape[1], dtype=torch.float64))
    return [x.shape[1], *x.mean(1).tolist(), *x.std(1).tolist(), *(x @ wave / x.shape[1] ** 0.5).tolist()]


def main() -> None:
    import torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchvision import models, transforms
    from torchvision.models.feature_extraction import create_feature_extractor

    found: dict = {"made with": f"torchvision {torchvision.__version__}"}
    bilinear = transforms.InterpolationMode.BILINEAR

    def golden(name, model, nodes, side, drop):
        state = fill(model.state_dict())
        model.load_state_dict(state)
        prepare = transforms.Compose(
            [
                transforms.Resize((256, 256)),  # MindEye: imsize = 256
                transforms.Resize(side, interpolation=bilinear),
                transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )
        with torch.inference_mode():
            made = create_feature_extractor(model.eval(), return_nodes=nodes)(prepare(pictures()))
        kept = {key: value for key, value in state.items() if not key.startswith(drop)}
        found[name] = {"layout": layout(kept), **{node: numbers(made[node]) for node in nodes}}

    golden("alexnet", models.alexnet(), ["features.4", "features.11"], 256, "classifier.")
    inception = models.inception_v3(init_weights=False, transform_input=True)  # as with its published weights
    golden("inception", inception, ["avgpool"], 342, "AuxLogits.")
    golden("effnet", models.efficientnet_b1(), ["avgpool"], 255, "classifier.")
    golden("swav", models.resnet50(), ["avgpool"], 224, "fc.")

    small = models.VisionTransformer(32, 16, 2, 4, 64, 256, num_classes=10).eval()
    small.load_state_dict(fill(small.state_dict()))
    with torch.inference_mode():
        found["vit"] = {"head": numbers(small(pictures()[:, :, :32, :32]))}
    with torch.device("meta"):
        found["vit"]["vit_b_16"] = layout(models.vit_b_16().state_dict())
        found["vit"]["vit_h_14"] = layout(models.vit_h_14(image_size=518).state_dict())

    real_load, FeatureExtractorInceptionV3.load_state_dict = FeatureExtractorInceptionV3.load_state_dict, _keep
    with tempfile.TemporaryDirectory() as folder:
        torch.save({}, Path(folder) / "none.pth")
        fid = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=f"{folder}/none.pth"
        )
    FeatureExtractorInceptionV3.load_state_dict = real_load
    state = fill(fid.state_dict())
    fid.load_state_dict(state)
    with torch.inference_mode():
        pooled, logits = fid.eval()((255 * pictures()).round().to(torch.uint8))
    found["fid"] = {"layout": layout(state), "fid": numbers(pooled), "logits": numbers(logits)}
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    print("{\n" + ",\n".join(lines) + "\n}")


def _keep(self, state):
    """Stands in while torch-fidelity's network is built: there is no weight file yet."""


if __name__ == "__main__":
    main()
