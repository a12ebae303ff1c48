"""Small random files in the published PerceiveLab format, for tests."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from neuroimagen.shards.pack import ShardsConfig, make_shards

WNIDS = ["n02389026", "n03888257", "n03584829"]


def jpeg(rng: np.random.Generator, size: tuple[int, int] = (40, 30)) -> bytes:
    """A random smooth colour picture of (width, height)."""
    colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def make_content(
    rng: np.random.Generator, n_chans: int = 4, subjects: int = 2, images_per_class: int = 10, wnids: list[str] = WNIDS
) -> dict[str, Any]:
    """What the EEG file holds: every subject sees every picture once; stored shuffled."""
    images = [f"{wnid}_{10 * i + 7}" for wnid in wnids for i in range(images_per_class)]
    trials = [
        {
            "eeg": torch.from_numpy(rng.standard_normal((n_chans, int(rng.integers(460, 540))), dtype=np.float32)),
            "image": image,
            "label": image // images_per_class,
            "subject": subject,
        }
        for subject in range(1, subjects + 1)
        for image in range(len(images))
    ]
    return {"dataset": [trials[i] for i in rng.permutation(len(trials))], "labels": list(wnids), "images": images}


def make_split(trials: list[dict[str, Any]], among: list[int] | None = None) -> dict[str, list[int]]:
    """A 4:1:1 split by image; with `among` (indices of one subject's trials) numbered as the `_single` file does."""
    split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number, index in enumerate(range(len(trials)) if among is None else among):
        image = trials[index]["image"]
        split["train" if image % 6 < 4 else "val" if image % 6 == 4 else "test"].append(number)
    return split


def write_pictures(root: Path, content: dict[str, Any], rng: np.random.Generator) -> None:
    for image in content["images"]:
        folder = root / image.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image}.JPEG").write_bytes(jpeg(rng))


def write_study(folder: Path, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """eeg.pth, splits.pth and images/ in `folder`; returns the content of eeg.pth."""
    rng = np.random.default_rng(seed)
    content = make_content(rng, **kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "eeg.pth")
    torch.save({"splits": [make_split(content["dataset"])] * 6}, folder / "splits.pth")
    write_pictures(folder / "images", content, rng)
    return content


def write_shards(folder: Path, shard_size: int) -> Path:
    """Shards of `write_study`: 40 train, 10 val, 10 test trials."""
    write_study(folder)
    paths = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth"}
    out = folder / "shards"
    fields = {name: str(path) for name, path in paths.items()}
    make_shards(ShardsConfig(out=str(out), n_chans=4, shard_size=shard_size, **fields))
    return out
