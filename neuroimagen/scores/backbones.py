"""The published networks behind the perceptual metrics, from transformers' and torch's parts or in plain torch.

Their parameters carry torchvision's names, or get ours from `renamed` in networks.yaml, so that the official weight
files fit; torchvision itself is not needed (its published build fails to import beside a CPU build of torch and takes
transformers' CLIP down with it). For evaluation only: dropout and auxiliary heads are left out. Architectures:
Krizhevsky 2014 (AlexNet, "one weird trick"), Szegedy et al. 2016 (Inception v3), He et al. 2016 with the stride in the
3 x 3 convolution (ResNet-50), Tan and Le 2019 (EfficientNet-B1), Dosovitskiy et al. 2021 (ViT). test_networks.py holds
each against torchvision's numbers.
"""

import math

import torch
import torch.nn.functional as F
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
    """Inception's convolution, "same" padding unless `pad` is False, with batch norm and ReLU."""

    def __init__(self, width: int, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True):
        super().__init__()
        kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (kh // 2, kw // 2) if pad else 0
        self.conv = nn.Conv2d(width, out, (kh, kw), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Chains of convolutions side by side, then a pooled one: "average" and "average inside" (borders not counted) go
    through `branch_pool` and keep the size, "max" too, "halve" is a plain max pool with stride 2.

    convolutions: torchvision's names, path_place, and what `_Conv` takes after the width. A chain that ends in ..._2a
    and ..._2b forks: both see the same input.
    """

    def __init__(self, width: int, pool: str, pooled: int = 0, **convolutions: tuple) -> None:
        super().__init__()
        self.pool, self.paths = pool, {name.partition("_")[0]: list[str]() for name in convolutions}
        for name, (out, *how) in convolutions.items():
            path = self.paths[name.partition("_")[0]]
            self.add_module(name, _Conv(convolutions[path[-1]][0] if path else width, out, *how))
            path.append(name)
        if pooled:
            self.branch_pool = _Conv(width, pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = []
        for names in self.paths.values():
            h = x
            forks = [name for name in names if name[-1] in "ab"]
            for name in names[: len(names) - len(forks)]:
                h = self.get_submodule(name)(h)
            out += [self.get_submodule(name)(h) for name in forks] or [h]
        if self.pool == "halve":
            return torch.cat([*out, F.max_pool2d(x, 3, 2)], 1)
        if self.pool == "max":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.pool == "average")
        return torch.cat([*out, self.branch_pool(pooled)], 1)


def _block_a(width: int, pooled: int, pool: str) -> _Mixed:
    return _Mixed(
        width, pool, pooled, branch1x1=(64,), branch5x5_1=(48,), branch5x5_2=(64, 5),
        branch3x3dbl_1=(64,), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3),
    )  # fmt: skip


def _block_c(n: int, pool: str) -> _Mixed:
    return _Mixed(
        768, pool, 192, branch1x1=(192,), branch7x7_1=(n,), branch7x7_2=(n, (1, 7)), branch7x7_3=(192, (7, 1)),
        branch7x7dbl_1=(n,), branch7x7dbl_2=(n, (7, 1)), branch7x7dbl_3=(n, (1, 7)), branch7x7dbl_4=(n, (7, 1)),
        branch7x7dbl_5=(192, (1, 7)),
    )  # fmt: skip


def _block_e(width: int, pool: str) -> _Mixed:
    return _Mixed(
        width, pool, 192, branch1x1=(320,),
        branch3x3_1=(384,), branch3x3_2a=(384, (1, 3)), branch3x3_2b=(384, (3, 1)),
        branch3x3dbl_1=(448,), branch3x3dbl_2=(384, 3), branch3x3dbl_3a=(384, (1, 3)), branch3x3dbl_3b=(384, (3, 1)),
    )  # fmt: skip


class InceptionV3(nn.Module):
    """images (B, 3, H, W) -> globally averaged features (B, 2048).

    fid: the variant whose 2015 weights FID, KID and IS are defined on: 1,008 classes, average pools that do not count
    the border, and a max pool in the last block (so that network was trained; torchvision's differs).
    """

    def __init__(self, fid: bool = False) -> None:
        super().__init__()
        pool = "average inside" if fid else "average"
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = _Conv(64, 80)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, pad=False)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (_block_a(*w, pool) for w in ((192, 32), (256, 64), (288, 64)))
        self.Mixed_6a = _Mixed(
            288, "halve", branch3x3=(384, 3, 2, False),
            branch3x3dbl_1=(64,), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3, 2, False),
        )  # fmt: skip
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_c(w, pool) for w in (128, 160, 160, 192))
        self.Mixed_7a = _Mixed(
            768, "halve", branch3x3_1=(192,), branch3x3_2=(320, 3, 2, False),
            branch7x7x3_1=(192,), branch7x7x3_2=(192, (1, 7)), branch7x7x3_3=(192, (7, 1)),
            branch7x7x3_4=(192, 3, 2, False),
        )  # fmt: skip
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, pool), _block_e(2048, "max" if fid else pool)
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


def _norm_act(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    convolution = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), *[nn.SiLU()] * act)


class _SqueezeExcitation(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _MBConv(nn.Module):
    def __init__(self, expand: int, kernel: int, stride: int, width: int, out: int) -> None:
        super().__init__()
        inner = expand * width
        self.block = nn.Sequential(
            *[_norm_act(width, inner, 1)] * (expand > 1),
            _norm_act(inner, inner, kernel, stride, groups=inner),
            _SqueezeExcitation(inner, max(1, width // 4)),
            _norm_act(inner, out, 1, act=False),
        )
        self.add = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.add else self.block(x)


class EfficientNetB1(nn.Module):
    """images (B, 3, H, W) -> globally averaged features (B, 1280)."""

    # expansion, kernel, stride, width in, width out, blocks of B0
    STAGES = (
        (1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        stages = [_norm_act(3, 32, 3, 2)]
        for expand, kernel, stride, width, out, depth in self.STAGES:
            first = _MBConv(expand, kernel, stride, width, out)
            more = [_MBConv(expand, kernel, 1, out, out) for _ in range(math.ceil(1.1 * depth) - 1)]
            stages.append(nn.Sequential(first, *more))
        self.features = nn.Sequential(*stages, _norm_act(320, 1280, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean((2, 3))


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
