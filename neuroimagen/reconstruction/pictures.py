"""The picture files of a reconstruction run: which ones, which are still lacking, how they are written."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1], rounded to 8 bits."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


class Pictures:
    """RUN/truth/<key>.png, RUN/maps/<key>.png, RUN/images/<row>/<key>_<sample>.png, in chunks of trials.

    Chunk c is always the same trials, keys[c * chunk : (c + 1) * chunk], whoever draws it and whenever: what is drawn
    together decides the last bits of a picture.
    """

    def __init__(
        self, run_dir: Path, keys: Sequence[str], rows: Sequence[str], samples: int, chunk: int, maps: bool
    ) -> None:
        self.run_dir, self.rows, self.samples = run_dir, list(rows), samples
        self.chunks = [list(keys[i : i + chunk]) for i in range(0, len(keys), chunk)]
        self.per_trial = ["truth", "maps"] if maps else ["truth"]

    def files(self, kind: str, number: int) -> list[Path]:
        """Files of one chunk: one a trial for "truth" and "maps", `samples` a trial for the name of a row."""
        keys = self.chunks[number]
        if kind in self.rows:
            folder = self.run_dir / "images" / kind
            return [folder / f"{key}_{sample}.png" for key in keys for sample in range(self.samples)]
        return [self.run_dir / kind / f"{key}.png" for key in keys]

    def lacking(self) -> dict[int, list[str]]:
        """Chunk number -> the rows it lacks a picture of, over all chunks that lack any. Makes the folders."""
        for kind in (*self.per_trial, *(f"images/{row}" for row in self.rows)):
            (self.run_dir / kind).mkdir(parents=True, exist_ok=True)
        found: dict[int, list[str]] = {}
        for number in range(len(self.chunks)):
            if all(path.exists() for kind in self.per_trial for path in self.files(kind, number)):
                rows = [row for row in self.rows if not all(path.exists() for path in self.files(row, number))]
            else:
                rows = self.rows
            if rows:
                found[number] = rows
        return found

    def save(self, kind: str, number: int, pictures: Iterable[Tensor]) -> None:
        """Write a chunk's pictures, each (3, H, W) in [0, 1], as PNG: each file whole or not at all."""
        for path, picture in zip(self.files(kind, number), pictures, strict=True):
            partial = path.with_name(path.name + ".partial")
            to_image(picture).save(partial, format="PNG")
            os.replace(partial, path)
