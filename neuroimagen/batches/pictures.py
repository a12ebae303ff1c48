"""Folders of pictures, held in memory: what the small latent diffusion model is trained on."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from neuroimagen.batches.order import EpochOrder
from neuroimagen.batches.stream import load_picture
from neuroimagen.files import pass_on
from neuroimagen.pictures import list_pictures
from neuroimagen.run.run import Run
from neuroimagen.studies.captions import label_caption, read_captions
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


def my_pictures(order: EpochOrder, run: Run) -> Tensor:
    """This rank's slice of the step's global batch, as indices."""
    start = (run.step * run.world + run.rank) * run.batch_size
    return torch.from_numpy(order(start, start + run.batch_size))


def captions_of(paths: list[Path], file: str) -> tuple[list[str], list[str]]:
    """What a captions file says of each picture, and the label captions; without a file, the latter twice.

    ValueError if it says nothing of one.
    """
    labels = [label_caption(name) for name in class_names(paths)]
    if not file:
        return labels, labels
    captions = read_captions(file)
    if missing := [path for path in paths if path.stem not in captions]:
        raise ValueError(f"{file} has no caption for {missing[0].name} ({len(missing)} pictures lack one)")
    return [captions[path.stem] for path in paths], labels


def check_pictures(images: str, at_least: int, captions: str | None, label_captions: float) -> None:
    """ValueError unless the pictures below `images` fill a batch and their captions can tell them apart.

    captions: a captions file, "" for label captions alone, None for no captions; label_captions: share of the latter.
    """
    paths = list_pictures(images)
    if len(paths) < at_least:
        raise ValueError(
            f"images={images} holds {len(paths)} pictures, fewer than a batch (global_batch_size={at_least}): "
            "add some, or lower it"
        )
    if captions is None:
        return
    if captions and (twins := [name for name, n in Counter(path.stem for path in paths).items() if n > 1]):
        raise ValueError(f"images={images} holds several {twins[0]}, which captions={captions} would mix")
    if captions and not label_captions:
        return
    top = {Path(images)} if len(set(class_names(paths))) > 1 else {path.parent for path in paths}
    if loose := [path for path in paths if path.parent in top and path.parent.name not in BY_WNID]:
        raise ValueError(
            f"images={images}: {len(loose)} pictures, such as {loose[0]}, lie in no class folder, so that each "
            f"would be captioned {label_caption(loose[0].parent.name)!r}: sort them into a folder for each class, or "
            "give captions=FILE label_captions=0"
        )
