"""The published networks behind the perceptual metrics, from transformers' and torch's parts or in plain torch.

Their parameters carry torchvision's names, or get ours from `renamed` in networks.yaml, so that the official weight
files fit; torchvision itself is not needed (its published build fails to import beside a CPU build of torch and takes
transformers' CLIP down with it). For evaluation only: dropout and auxiliary heads are left out. Architectures:
Krizhevsky 2014 (AlexNet, "one weird trick"), Szegedy et al. 2016 (Inception v3), He et al. 2016 with the stride in the
3 x 3 convolution (ResNet-50), Tan and Le 2019 (EfficientNet-B1), Dosovitskiy et al. 2021 (ViT). test_networks.py holds
each against torchvision's numbers.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn


class AlexNet(nn.Module):
    """images (B, 3, H, W) -> the five maps after its ReLUs; numbers 2 and 5 are features.4 and features.11."""

    ENDS = (1, 4, 7, 9, 11)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ENDS:
                maps.append(x)
        return maps


class _Conv(nn.Module):
    """A convolution of inception.yaml, with batch norm and ReLU."""

    def __init__(self, width: int, out: int, kernel: int | list[int] = 1, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        kh, kw = kernel if isinstance(kernel, list) else (kernel, kernel)
        self.conv = nn.Conv2d(width, out, (kh, kw), stride, (kh // 2, kw // 2) if pad else 0, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """A block of inception.yaml; pool: what stands before its branch_pool."""

    def __init__(self, pool: nn.Module, convolutions: dict[str, list[Any]]) -> None:
        super().__init__()
        self.pool = pool
        self.paths: dict[str, list[str]] = {}  # that of branch_pool: "branch"
        for name, how in convolutions.items():
            self.add_module(name, _Conv(*how))
            self.paths.setdefault(name.partition("_")[0], []).append(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = []
        for path, names in self.paths.items():
            h = self.pool(x) if path == "branch" else x
            forks = [name for name in names if name[-1] in "ab"]
            for name in names[: len(names) - len(forks)]:
                h = self.get_submodule(name)(h)
            out += [self.get_submodule(name)(h) for name in forks] or [h]
        return torch.cat(out if "branch" in self.paths else [*out, F.max_pool2d(x, 3, 2)], 1)


class InceptionV3(nn.Module):
    """images (B, 3, H, W) -> globally averaged features (B, 2048).

    fid: the variant whose 2015 weights FID, KID and IS are defined on: 1,008 classes, average pools that do not count
    the border, and a max pool in the last block (so that network was trained; torchvision's differs).
    """

    def __init__(self, fid: bool = False) -> None:
        super().__init__()
        for name, layer in yaml.safe_load(Path(__file__).with_name("inception.yaml").read_text("utf-8")).items():
            if isinstance(layer, dict):
                average = nn.AvgPool2d(3, 1, 1, count_include_pad=not fid)
                self.add_module(name, _Mixed(nn.MaxPool2d(3, 1, 1) if fid and name == "Mixed_7c" else average, layer))
            else:
                self.add_module(name, _Conv(*layer) if layer else nn.MaxPool2d(3, 2))
        self.fc = nn.Linear(2048, 1008 if fid else 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in [*self.children()][:-1]:
            x = layer(x)
        return x.mean((2, 3))


class ResNet50(nn.Module):
    """images (B, 3, H, W) -> globally averaged features (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        self.body = ResNetModel(ResNetConfig())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).last_hidden_state.mean((2, 3))


class EfficientNetB1(nn.Module):
    """images (B, 3, H, W) -> globally averaged features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import EfficientNetConfig, EfficientNetModel

        # torchvision pads alike on all sides, TensorFlow and so transformers by default do not
        sizes: dict[str, Any] = {"width_coefficient": 1.0, "depth_coefficient": 1.1, "hidden_dim": 1280}
        self.body = EfficientNetModel(EfficientNetConfig(**sizes, batch_norm_eps=1e-5, depthwise_padding=[*range(23)]))
        self.body.embeddings.padding = nn.ZeroPad2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).last_hidden_state.mean((2, 3))


class ViT(nn.Module):
    """images (B, 3, side, side) -> logits (B, classes)."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, classes: int = 1000) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        how: dict[str, bool] = {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, **how)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width, eps=1e-6), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.pos_embedding
        return self.head(self.encoder(x)[:, 0])
