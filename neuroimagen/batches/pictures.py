"""Folders of pictures, held in memory: what the small latent diffusion model is trained on."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from neuroimagen.batches.stream import load_picture
from neuroimagen.files import pass_on
from neuroimagen.studies.classes import BY_WNID


def load_pictures(paths: list[Path], size: int, progress: bool = False) -> Tensor:
    """Decode pictures into one uint8 tensor (n, 3, size, size); 12 kB a picture at 64 px."""
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for i, path in enumerate(tqdm(paths, desc="pictures", disable=None if progress else True)):
        try:
            pixels[i] = load_picture(path.read_bytes(), size)
        except (OSError, ValueError) as error:
            pass_on(error)
            raise ValueError(f"picture {path} cannot be read ({error}); replace or remove it") from None
    return pixels


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def class_names(paths: list[Path]) -> list[str]:
    """A picture's class: what its folder stands for (a wnid is looked up, any other folder is called by its name)."""
    return [BY_WNID[p.parent.name].name if p.parent.name in BY_WNID else p.parent.name for p in paths]
