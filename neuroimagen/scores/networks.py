"""The published networks behind the perceptual metrics: where their weights come from, and how pictures go in.

Pictures go in as in the MindEye suite (Scotti et al. 2023): squeezed to 256 x 256, resized to the network's own side,
both bilinear with antialiasing, no crop, the network's normalisation; for FID, KID and IS as they are, resized to 299
px as TensorFlow 1 did and torch-fidelity does (docs/networks.md).

Weights are the official files by their official names (`NETWORKS`; table in docs/networks.md), looked for in `weights`:
None (torch's cache, $TORCH_HOME/hub/checkpoints, downloaded into it where the host can be reached and HF_HUB_OFFLINE is
not set), a directory, one file, or a hub id of a repository that holds them. A name that ends in .safetensors instead
is taken too. Files are never unpickled as code.
"""

import dataclasses
import functools
import re
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.nn.functional as F
import yaml
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import nn

from neuroimagen.errors import quiet_libraries
from neuroimagen.run.processes import set_tf32
from neuroimagen.scores.backbones import AlexNet, EfficientNetB1, InceptionV3, ResNet50

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LPIPS = ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))  # of pictures in [-1, 1]
SUITE_SIDE = 256


class NotAvailable(ValueError):
    """A network whose weights, or whose package, are not at hand; the message says how to get them."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One network as published: networks.yaml."""

    title: str
    url: str
    megabytes: int
    licence: str
    unused: Sequence[str] = ()
    other_names: Sequence[str] = ()
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def file(self) -> str:
        """Official name of the weight file; a directory of transformers' layout for CLIP."""
        return self.url.rpartition("/")[2]


HUB, TORCH = "https://huggingface.co/", "https://download.pytorch.org/models/"
_FILE = yaml.safe_load(Path(__file__).with_name("networks.yaml").read_text(encoding="utf-8"))
NETWORKS = {name: Source(**entry) for name, entry in _FILE.items()}
Features = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # float (B, 3, H, W) in [0, 1] -> {layer: (B, D)}


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, height, width), as torchvision's Resize does on tensors: bilinear, antialiased."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)


def suite_pictures(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), by way of 256 x 256, as all numbers of the MindEye suite are made."""
    return resize(resize(images, SUITE_SIDE, SUITE_SIDE), side, side)


def normalised(images: torch.Tensor, normalisation: Sequence[Sequence[float]]) -> torch.Tensor:
    """(B, 3, H, W), each channel less its mean and by its deviation: normalisation holds three of both."""
    mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in normalisation)
    return (images - mean) / std


def _suite(images: torch.Tensor, side: int, normalisation: Sequence[Sequence[float]] = IMAGENET) -> torch.Tensor:
    return normalised(suite_pictures(images, side), normalisation)


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
    source, get = NETWORKS[name], f"wget {NETWORKS[name].url}"
    then = ", and put it into a directory named by weights=DIR or into $TORCH_HOME/hub/checkpoints"
    if name == "clip":
        files = f"{source.url.removeprefix(HUB)} config.json model.safetensors"
        get, then = f"hf download {files} --local-dir DIR/{source.file}", " and give weights=DIR"
    return NotAvailable(
        f"{name} ({source.title}) is not available: {why}; get it with `{get}` ({source.megabytes} MB) where there is "
        f"a network{then}"
    )


def find_weights(name: str, weights: str | Path | None = None, download: bool = True) -> Path:
    """The file of that network (module docstring). NotAvailable: nowhere, with how to get it."""
    source = NETWORKS[name]
    folder = Path(torch.hub.get_dir()) / "checkpoints" if weights is None else Path(weights)
    if weights is not None and folder.is_file():
        return folder
    for file in (folder / x for x in (source.file, *source.other_names)):
        for at_hand in (file, file.with_suffix(".safetensors")):
            if at_hand.is_file():
                return at_hand
    if weights is None and download:
        return _download(name, folder / source.file)
    if weights is not None and not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(weights)):
        try:
            return Path(huggingface_hub.hf_hub_download(str(weights), source.file))
        except Exception as error:  # hub and network errors have no common base
            gave = f"no hub repository gave its {source.file} ({first_line(error)})"
            raise _missing(name, f"{weights} is no directory here, and {gave}") from None
    lacks = "does not hold" if folder.exists() else "does not exist and so does not hold"
    raise _missing(name, f"{folder} {lacks} {source.file}")


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
        why = f"{path.parent} does not hold {path.name} and it cannot be downloaded ({first_line(error)})"
        raise _missing(name, why) from None
    return path


def _read(name: str, path: Path) -> dict[str, torch.Tensor]:
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        assert isinstance(state, dict) and all(isinstance(v, torch.Tensor) for v in state.values())
    except Exception as error:  # truncated zips, pickles with code and other formats have no common base
        raise ValueError(
            f"{path} cannot be read as weights of {name} ({first_line(error)}); get it anew from {NETWORKS[name].url}"
        ) from None
    unused = NETWORKS[name].unused
    named: dict[str, torch.Tensor] = {key.removeprefix("module."): value for key, value in state.items()}
    used = {key: value for key, value in named.items() if not key.startswith(tuple(unused))}
    return {key: value.float() if value.is_floating_point() else value for key, value in used.items()}


def fill(name: str, build: Callable[[], nn.Module], path: Path, device: torch.device) -> Any:
    """The network with the file's weights; its own random start is never computed."""
    with torch.device("meta"):
        model: Any = build()
    state = _read(name, path)
    for theirs, ours in NETWORKS[name].renamed.items():
        state = {re.sub(theirs, ours, key): value for key, value in state.items()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        wrong = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} does not hold the weights of {name} ({wrong}); get it from {NETWORKS[name].url}"
        ) from None
    # channels last: a quarter to a third faster for Inception and EfficientNet on a CPU
    return model.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


BUILD: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {  # pictures' way in
    "alexnet": (AlexNet, functools.partial(_suite, side=256)),
    # torchvision's `transform_input`: [-1, 1]
    "inception": (InceptionV3, functools.partial(_suite, side=342, normalisation=((0.5,) * 3, (0.5,) * 3))),
    "effnet": (EfficientNetB1, functools.partial(_suite, side=255)),
    "swav": (ResNet50, functools.partial(_suite, side=224)),
    "fid": (functools.partial(InceptionV3, fid=True), _tensorflow),
}


def load_network(
    name: str, device: str | torch.device = "cpu", weights: str | Path | None = None, download: bool = True
) -> Features:
    """A feature network: pictures -> {layer: (B, D) float32 on the CPU}.

    "alexnet" has layers "alex2" (D = 184,512) and "alex5" (57,600), "fid" has "fid" (2,048) and "logits": those of its
    1,008 classes without bias, which IS is defined on. One layer of the network's name have "inception" and "swav"
    (2,048), "effnet" (1,280) and "clip" (768).
    weights: module docstring; download=False: no more than the caches. NotAvailable: not at hand; ValueError: a file
    that is not what its name says.
    """
    device = torch.device(device)
    set_tf32(False)
    prepare: Callable[[torch.Tensor], torch.Tensor]
    if name == "clip":
        model: Any = _clip(device, weights, download)
        prepare = functools.partial(_suite, side=model.config.image_size, normalisation=CLIP)
    elif name in BUILD:
        build, prepare = BUILD[name]
        model = fill(name, build, find_weights(name, weights, download), device)
    else:
        raise ValueError(f"network {name!r} is unknown; there are alexnet, inception, fid, clip, effnet and swav")

    @torch.inference_mode()
    def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
        made = model(prepare(images.to(device, torch.float32)))
        if name == "alexnet":
            found = {"alex2": made[1], "alex5": made[4]}
        elif name == "fid":
            found = {"fid": made, "logits": F.linear(made, model.fc.weight)}
        else:
            found = {name: made.image_embeds if name == "clip" else made}
        return {layer: values.float().flatten(1).cpu() for layer, values in found.items()}

    return features


def _clip(device: torch.device, weights: str | Path | None, download: bool) -> nn.Module:
    """weights: as elsewhere, a directory may also be the model's own or hold it under its name."""
    file, hub = NETWORKS["clip"].file, NETWORKS["clip"].url.removeprefix(HUB)
    if weights is None and not download:
        found = huggingface_hub.try_to_load_from_cache(hub, "model.safetensors")
        weights = Path(found).parent if isinstance(found, str) else Path(torch.hub.get_dir()) / "checkpoints"
        if not isinstance(found, str) and not (weights / file / "config.json").is_file():  # spares a long import
            raise NotAvailable(
                f"clip ({NETWORKS['clip'].title}) is not available: neither the hub's cache nor {weights} holds it; "
                f"get it with `hf download {hub} config.json model.safetensors`, or give download=true"
            )
    from transformers import CLIPVisionModelWithProjection

    where = hub if weights is None else str(weights)
    if weights is not None and (folder := Path(weights)).exists():
        inside = [d for d in (folder, folder / file, folder / hub) if (d / "config.json").is_file()]
        if not inside:
            raise _missing("clip", f"{folder} holds neither config.json nor {file}/config.json")
        where = str(inside[0])
    try:
        with quiet_libraries():
            model = CLIPVisionModelWithProjection.from_pretrained(where, use_safetensors=True).eval().to(device)
    except Exception as error:  # hub, network and format errors have no common base
        raise _missing("clip", f"{where} cannot be loaded ({first_line(error)})") from None
    return model.requires_grad_(False)


def load_lpips(
    device: str | torch.device = "cpu", weights: str | Path | None = None, download: bool = True
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Learned perceptual distance (Zhang et al. 2018, version 0.1, AlexNet) of pairs, arguments as similarity.ssim's,
    -> (p,). torchmetrics has it too, but only with torchvision and a download at each call.

    weights and errors: as `load_network`; the file is AlexNet's.
    """
    import torchmetrics  # for one of its files

    backbone = fill("lpips", AlexNet, find_weights("lpips", weights, download), torch.device(device))
    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    if not path.is_file():
        raise NotAvailable(
            f"lpips is not available: this torchmetrics lacks {path.name}; pip install 'torchmetrics>=1.9'"
        )
    state = _read("lpips", path)
    linear = [state[f"lin{i}.model.1.weight"].to(device) for i in range(5)]  # (1, C, 1, 1)

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        found = backbone(normalised(2 * images - 1, LPIPS))
        return [x / torch.sqrt(1e-8 + x.square().sum(1, keepdim=True)) for x in found]

    def distance(images: torch.Tensor, truths: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        layers, found = list(zip(maps(images), maps(truths), linear, strict=True)), []
        for i, j in (part.T for part in pairs.split(16)):
            found.append(torch.stack([(w * (x[i] - y[j]).square()).sum(1).mean((1, 2)) for x, y, w in layers]).sum(0))
        return torch.cat(found)

    return distance
