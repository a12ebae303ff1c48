"""The published networks behind the perceptual metrics: where their weights come from, and how pictures go in.

Pictures go in as in the MindEye suite (Scotti et al. 2023, Reconstruction_Metrics.py, which the EEG papers repeat):
squeezed to 256 x 256, resized to the network's own side, both bilinear with antialiasing (torchvision's default since
0.17; the suite's own numbers were made before), no crop, the network's normalisation. FID, KID and IS are not of that
suite: their network sees the picture as it is, resized to 299 px as TensorFlow 1 did, as in torch-fidelity.

Weights are the official files by their official names (`NETWORKS`; table in docs/networks.md), looked for in `weights`:
None (torch's cache, $TORCH_HOME/hub/checkpoints, downloaded into it where the host can be reached and HF_HUB_OFFLINE is
not set), a directory, one file, or a hub id of a repository that holds them. A name that ends in .safetensors instead
is taken too. Files are never unpickled as code.
"""

import dataclasses
import importlib.util
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.nn.functional as F
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import nn

from neuroimagen.run.processes import set_tf32
from neuroimagen.scores.backbones import AlexNet, EfficientNetB1, InceptionV3, ResNet50

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SUITE_SIDE = 256


class NotAvailable(ValueError):
    """A network whose weights, or whose package, are not at hand; the message says how to get them."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One network as published. For docs, messages and the score book."""

    title: str
    file: str  # official name of the weight file; a directory of transformers' layout for CLIP
    url: str
    megabytes: int
    licence: str
    unused: tuple[str, ...] = ()  # parameters of the file that evaluation does not need begin with these
    other_names: tuple[str, ...] = ()


TORCH = "https://download.pytorch.org/models/"
NETWORKS = {
    "alexnet": Source(
        "AlexNet, layers 2 and 5 (torchvision IMAGENET1K_V1)", "alexnet-owt-7be5be79.pth",
        TORCH + "alexnet-owt-7be5be79.pth", 233, "BSD-3-Clause (torchvision)", ("classifier.",),
    ),
    "inception": Source(
        "Inception v3, last average pool (torchvision IMAGENET1K_V1)", "inception_v3_google-0cc3c7bd.pth",
        TORCH + "inception_v3_google-0cc3c7bd.pth", 104, "BSD-3-Clause (torchvision)", ("AuxLogits.",),
    ),
    "fid": Source(
        "Inception v3, the weights of 2015 that FID is defined on (converted by pytorch-fid)",
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        91, "Apache-2.0", other_names=("weights-inception-2015-12-05-6726825d.pth",),
    ),
    "clip": Source(
        "CLIP ViT-L/14, image embedding", "clip-vit-large-patch14",
        "https://huggingface.co/openai/clip-vit-large-patch14", 1710, "MIT (openai/CLIP)",
    ),
    "effnet": Source(
        "EfficientNet-B1, last average pool (torchvision IMAGENET1K_V2)", "efficientnet_b1-c27df63c.pth",
        TORCH + "efficientnet_b1-c27df63c.pth", 30, "BSD-3-Clause (torchvision)", ("classifier.",),
    ),
    "swav": Source(
        "ResNet-50 trained by SwAV, 800 epochs, last average pool", "swav_800ep_pretrain.pth.tar",
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar", 108,
        "CC BY-NC 4.0 (not for commercial use)", ("projection_head.", "prototypes.", "fc."),
    ),
    "lpips": Source(
        "LPIPS 0.1 on AlexNet (torchvision IMAGENET1K_V1; linear layers from torchmetrics)", "alexnet-owt-7be5be79.pth",
        TORCH + "alexnet-owt-7be5be79.pth", 233, "BSD-3-Clause (torchvision), BSD-2-Clause (LPIPS)", ("classifier.",),
    ),
    "torchvision:vit_b_16": Source(
        "ViT-B/16, an ImageNet-1k network (224 px, torchvision IMAGENET1K_V1)", "vit_b_16-c867db91.pth",
        TORCH + "vit_b_16-c867db91.pth", 330, "BSD-3-Clause (torchvision)",
    ),
    "torchvision:vit_h_14": Source(
        "ViT-H/14, an ImageNet-1k network (518 px, torchvision IMAGENET1K_SWAG_E2E_V1)", "vit_h_14_swag-80465313.pth",
        TORCH + "vit_h_14_swag-80465313.pth", 2417, "CC BY-NC 4.0 (not for commercial use)",
    ),
}  # fmt: skip


@dataclasses.dataclass
class Network:
    """A feature network. `forward` takes prepared pictures on `device`; call `features`."""

    name: str
    describe: str  # one sentence for tables: which network and weights, what the pictures go through
    device: torch.device
    layers: tuple[str, ...]
    prepare: Callable[[torch.Tensor], torch.Tensor]
    forward: Callable[[torch.Tensor], dict[str, torch.Tensor]]

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """float (B, 3, H, W) in [0, 1] -> {layer: (B, D) float32 on the CPU}.

        D is 184,512 for "alex2" and 57,600 for "alex5" (keep those of the truths only, and give the pictures to
        `perceptual.two_way` batch by batch), 2,048 for "inception", "fid" and "swav", 1,280 for "effnet", 768 for
        "clip", 1,008 for "logits".
        """
        assert images.ndim == 4 and images.shape[1] == 3, images.shape
        found = self.forward(self.prepare(images.to(self.device, torch.float32)))
        return {layer: found[layer].float().flatten(1).cpu() for layer in self.layers}


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, height, width), as torchvision's Resize does on tensors: bilinear, antialiased."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)


def suite_pictures(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), by way of 256 x 256, as all numbers of the MindEye suite are made."""
    return resize(resize(images, SUITE_SIDE, SUITE_SIDE), side, side)


def _suite(side: int, normalisation: tuple) -> Callable[[torch.Tensor], torch.Tensor]:
    def prepare(images: torch.Tensor) -> torch.Tensor:
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in normalisation)
        return (suite_pictures(images, side) - mean) / std

    return prepare


def _tensorflow(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, 299, 299) in [-1, 1), as the FID network was fed.

    TensorFlow 1's bilinear resize: output pixel i is at input position i * H / 299, neither centred nor antialiased.
    """
    x = (255 * images).round()
    for dim in (2, 3):
        size = x.shape[dim]
        at = torch.arange(299, device=x.device) * (size / 299)
        low = at.long()
        share = (at - low).view((-1, 1) if dim == 2 else (1, -1))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=size - 1)), share)
    return (x - 128) / 128


def _missing(name: str, why: str) -> NotAvailable:
    source = NETWORKS[name]
    return NotAvailable(
        f"{name} ({source.title}) is not available: {why}; get it with `wget {source.url}` ({source.megabytes} MB) "
        "where there is a network, and put it into a directory named by weights=DIR or into $TORCH_HOME/hub/checkpoints"
    )


def find_weights(name: str, weights: str | Path | None = None) -> Path:
    """The file of that network (module docstring). NotAvailable: nowhere, with how to get it."""
    source = NETWORKS[name]
    names = [
        n for known in (source.file, *source.other_names) for n in (known, str(Path(known).with_suffix(".safetensors")))
    ]
    folder = Path(torch.hub.get_dir()) / "checkpoints" if weights is None else Path(weights)
    if weights is not None and folder.is_file():
        return folder
    for file in names:
        if (folder / file).is_file():
            return folder / file
    if weights is None:
        return _download(name, folder / source.file)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(weights)):
        try:
            return Path(huggingface_hub.hf_hub_download(str(weights), source.file))
        except Exception as error:  # hub and network errors have no common base
            raise _missing(
                name,
                f"{weights} is no directory here, and no hub repository gave its {source.file} ({first_line(error)})",
            ) from None
    raise _missing(
        name, f"{folder} {'does not hold' if folder.exists() else 'does not exist and so does not hold'} {source.file}"
    )


def first_line(error: BaseException) -> str:
    text = (str(error) or "no reason given").splitlines()[0][:200]
    return f"{type(error).__name__}: {text}"


def _download(name: str, path: Path) -> Path:
    source = NETWORKS[name]
    if constants.HF_HUB_OFFLINE:
        raise _missing(name, f"{path.parent} does not hold {path.name} and HF_HUB_OFFLINE forbids downloads")
    # torchvision's names end in the first digits of their SHA-256; others' need not
    digest = re.search(r"-([0-9a-f]{8})\.", path.name) if source.url.startswith(TORCH) else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # of several processes one downloads
            if not path.exists():
                urllib.request.urlopen(source.url, timeout=20).close()  # torch's own call waits for ever
                torch.hub.download_url_to_file(source.url, str(path), digest[1] if digest else None)
    except (OSError, RuntimeError) as error:  # RuntimeError: not the promised digest
        raise _missing(
            name, f"{path.parent} does not hold {path.name} and it cannot be downloaded ({first_line(error)})"
        ) from None
    return path


def _read(name: str, path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        assert isinstance(state, dict) and all(isinstance(v, torch.Tensor) for v in state.values())
    except Exception as error:  # truncated zips, pickles with code and other formats have no common base
        raise ValueError(
            f"{path} cannot be read as weights of {name} ({first_line(error)}); get it anew from {NETWORKS[name].url}"
        ) from None
    unused = NETWORKS[name].unused
    named: dict[str, torch.Tensor] = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: v.float() if v.is_floating_point() else v for key, v in named.items() if not key.startswith(unused)}


def fill(name: str, build: Callable[[], nn.Module], path: Path, device: torch.device) -> Any:
    """The network with the file's weights; its own random start is never computed."""
    with torch.device("meta"):
        model: Any = build()
    state = _read(name, path)
    for key in [key for key in state if ".mlp.linear_" in key]:  # ViT files keep the names of their first version
        state[key.replace("linear_1", "0").replace("linear_2", "3")] = state.pop(key)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        wrong = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} does not hold the weights of {name} ({wrong}); get it from {NETWORKS[name].url}"
        ) from None
    # channels last: a quarter to a third faster for Inception and EfficientNet on a CPU
    return model.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def load_network(name: str, device: str | torch.device = "cpu", weights: str | Path | None = None) -> Network:
    """A feature network: "alexnet" (layers "alex2", "alex5"), "inception", "clip", "effnet", "swav" (one layer each, of
    that name), "fid" (layers "fid" and "logits": those of its 1,008 classes without bias, which IS is defined on).

    weights: module docstring. NotAvailable: not at hand; ValueError: a file that is not what its name says.
    """
    device = torch.device(device)
    set_tf32(False)
    if name not in NETWORKS or name == "lpips" or ":" in name:
        raise ValueError(f"network {name!r} is unknown; there are alexnet, inception, fid, clip, effnet and swav")
    if name == "clip":
        return _clip(device, weights)
    path = find_weights(name, weights)
    layers: tuple[str, ...] = (name,)
    side, norm = 0, IMAGENET
    forward: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    if name == "alexnet":
        model, side, layers = fill(name, AlexNet, path, device), 256, ("alex2", "alex5")

        def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = model(x)
            return {"alex2": maps[1], "alex5": maps[4]}

    elif name == "fid":
        model, layers = fill(name, lambda: InceptionV3(fid=True), path, device), ("fid", "logits")

        def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
            pooled = model(x)
            return {"fid": pooled, "logits": F.linear(pooled, model.fc.weight)}

    else:
        build, side = {"inception": (InceptionV3, 342), "effnet": (EfficientNetB1, 255), "swav": (ResNet50, 224)}[name]
        model = fill(name, build, path, device)
        if name == "inception":  # torchvision's `transform_input`: these weights want [-1, 1]
            norm = ((0.5,) * 3, (0.5,) * 3)

        def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: model(x)}

    prepare = _suite(side, norm) if side else _tensorflow
    how = f"pictures at {side} px by way of 256" if side else "pictures at 299 px, resized as TensorFlow 1 did"
    return Network(name, f"{NETWORKS[name].title}; {how}", device, layers, prepare, forward)


def _clip(device: torch.device, weights: str | Path | None) -> Network:
    """weights: as elsewhere, a directory may also be the model's own or hold it under its name."""
    from transformers import CLIPVisionModelWithProjection

    source = NETWORKS["clip"]
    where: str = source.url.removeprefix("https://huggingface.co/")
    folder = Path(weights or "")
    if weights is not None and folder.exists():
        inside = [d for d in (folder, folder / source.file, folder / where) if (d / "config.json").is_file()]
        if not inside:
            raise _clip_missing(f"{folder} holds neither config.json nor {source.file}/config.json")
        where = str(inside[0])
    elif weights is not None:
        where = str(weights)
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True).eval().to(device)
    except Exception as error:  # hub, network and format errors have no common base
        raise _clip_missing(f"{where} cannot be loaded ({first_line(error)})") from None
    model.requires_grad_(False)
    side = model.config.image_size

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"clip": model(pixel_values=x).image_embeds}

    how = f"pictures at {side} px by way of 256"
    return Network("clip", f"{source.title}; {how}", device, ("clip",), _suite(side, CLIP), forward)


def _clip_missing(why: str) -> NotAvailable:
    source = NETWORKS["clip"]
    hub = source.url.removeprefix("https://huggingface.co/")
    return NotAvailable(
        f"clip ({source.title}) is not available: {why}; get it with `hf download {hub} config.json model.safetensors "
        f"--local-dir DIR/{source.file}` ({source.megabytes} MB) where there is a network and give weights=DIR"
    )


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1, AlexNet) of pairs (p, 2) of a row of `images` and
    one of `truths`, both (B, 3, H, W) in [0, 1] -> (p,).

    torchmetrics has it too, but only with torchvision and a download at each call; its linear layers are used here.
    """

    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, backbone: AlexNet, linear: list[torch.Tensor]) -> None:
        super().__init__()
        self.backbone, self.linear = backbone, linear  # five (1, C, 1, 1)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = (images.new_tensor(x).view(1, 3, 1, 1) for x in (self.SHIFT, self.SCALE))
        maps = self.backbone((2 * images - 1 - shift) / scale)
        return [x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True)) for x in maps]

    def forward(self, images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        layers = list(zip(self._maps(images), self._maps(truths), self.linear, strict=True))
        found = []
        for i, j in (part.T for part in pairs.split(16)):
            found.append(torch.stack([(w * (x[i] - y[j]).square()).sum(1).mean((1, 2)) for x, y, w in layers]).sum(0))
        return torch.cat(found)


def load_lpips(device: str | torch.device = "cpu", weights: str | Path | None = None) -> Lpips:
    """For `perceptual.lpips`. weights and errors as `load_network`; the file is AlexNet's."""
    backbone = fill("lpips", AlexNet, find_weights("lpips", weights), torch.device(device))
    found = importlib.util.find_spec("torchmetrics")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    if not path.is_file():
        raise NotAvailable(
            f"lpips is not available: this torchmetrics lacks {path.name}; pip install 'torchmetrics>=1.9'"
        )
    state = _read("lpips", path)
    linear = [state[f"lin{i}.model.1.weight"].to(device) for i in range(5)]
    return Lpips(backbone, linear).eval()
