"""`neuroimagen probe`: a judge for a lab's own classes, a linear classifier on EfficientNet-lite0's features."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from neuroimagen.config import option, path_option
from neuroimagen.features.efficientnet import BACKBONE, efficientnet, features, to_square
from neuroimagen.files import replacing
from neuroimagen.scores.classifiers import pick_device, read_pictures
from neuroimagen.studies.classes import BY_WNID


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


def _pictures_by_folder(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise ValueError(f"images={root} is not a folder")
    kinds = {".jpeg", ".jpg", ".png"}
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    found = {folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in kinds) for folder in folders}
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
        small = [to_square(sharp, max(8, round(share * config.picture_size))) for share in SHARPNESS]
        out.append(torch.stack([features(backbone, to_square(x, config.picture_size), config.size) for x in small]))
    return torch.cat(out, 1).cpu()


def probe(config: ProbeConfig) -> dict[str, Any]:
    """The command `neuroimagen probe images=DIR out=DIR`: train, report held-out accuracy, write `out`.

    Multinomial logistic regression (L-BFGS, L2) on EfficientNet-lite0 features. The weights written are those that were
    tested: held-out pictures never train them. Returns what config.json holds.
    """
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"out={out} exists already; remove it or give another directory")
    if not 0 < config.held_out < 1:
        raise ValueError(f"held_out={config.held_out} must lie between 0 and 1")
    device = pick_device(config.device)
    pictures = _pictures_by_folder(Path(config.images))
    backbone = efficientnet(config.size, device)
    rng, counts, held = np.random.default_rng(config.seed), [len(files) for files in pictures.values()], []
    for n in counts:
        held += (rng.permutation(n) < min(max(1, round(config.held_out * n)), n - 1)).tolist()
    with torch.inference_mode():
        views = _views([path for files in pictures.values() for path in files], backbone, config, device)
    views, is_held = views.clone(), torch.tensor(held)
    target = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    learn = views[:, ~is_held].flatten(0, 1)
    mean, std = learn.mean(0), learn.std(0) + 1e-3
    learn, learn_target = (learn - mean) / std, target[~is_held].repeat(len(SHARPNESS))
    weight = torch.zeros(len(pictures), learn.shape[1], requires_grad=True)
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
    rates = dict(zip(map(str, SHARPNESS), right.float().mean(1).tolist(), strict=True))
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
        "held_out": {"accuracy": rates["1.0"], "by_sharpness": rates},
        "config": dataclasses.asdict(config),
    }
    with replacing(out) as partial:
        partial.mkdir(parents=True)
        (partial / "model.safetensors").write_bytes(save(tensors))  # save_file would make it private to its owner
        (partial / "config.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = ", ".join(f"{100 * value:.1f} % at sharpness {share}" for share, value in rates.items())
    print(f"{out}: {len(pictures)} classes, {result['pictures']['learnt']} pictures learnt; held-out accuracy {shown}")
    return result
