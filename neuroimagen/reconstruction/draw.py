"""The picture files of a reconstruction run: which ones, which are still lacking, how they are written."""

import contextlib
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from neuroimagen.files import naming, pass_on, replacing
from neuroimagen.reconstruction.reconstructor import noise_seed

HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"  # then width, height, and 8 bit RGB
END = struct.pack(">I", 0) + b"IEND\xaeB`\x82"


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1], rounded to 8 bits."""
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def whole(path: Path, size: tuple[int, int] | None = None) -> bool:
    """Whether `path` is a PNG of 8 bit RGB, of `size` (height, width) in px if given, with its begin and its end.

    Two short reads instead of decoding it: what a full disk, a machine that went down or a cut copy leaves is shorter,
    empty, or full of zeros. Damage in its middle that keeps the length is not seen.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            if len(head) < 26 or not head.startswith(HEAD) or head[24:] != b"\x08\x02":
                return False
            width, height = struct.unpack(">II", head[16:24])
            file.seek(-len(END), os.SEEK_END)
            return file.read() == END and size in (None, (height, width))
    except FileNotFoundError:
        return False


class Pictures:
    """RUN/truth/<key>.png, RUN/maps/<key>.png, RUN/images/<row>/<key>_<sample>.png, in chunks of trials.

    Chunk c is always the same trials, keys[c * chunk : (c + 1) * chunk], whoever draws it and whenever: what is drawn
    together decides the last bits of a picture. size: (height, width) in px of truths and pictures; None: any.
    """

    def __init__(
        self,
        run_dir: Path,
        keys: Sequence[str],
        rows: Sequence[str],
        samples: int,
        chunk: int,
        maps: bool,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.run_dir, self.rows, self.samples, self.size = run_dir, list(rows), samples, size
        self.chunks = [list(keys[i : i + chunk]) for i in range(0, len(keys), chunk)]
        self.per_trial = ["truth", "maps"] if maps else ["truth"]

    @classmethod
    def of(cls, run_dir: Path) -> "Pictures":
        """Those of a run that wrote its rows.json and trials.jsonl. ValueError or OSError if these cannot be read."""
        about = json.loads((run_dir / "rows.json").read_text(encoding="utf-8"))
        keys = [json.loads(line)["key"] for line in (run_dir / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
        rows, settings = {row["name"]: row["map"] for row in about["rows"]}, about["settings"]
        size = (settings["image_size"],) * 2
        return cls(run_dir, keys, list(rows), about["samples"], settings["chunk"], any(rows.values()), size)

    def files(self, kind: str, number: int) -> list[Path]:
        """Files of one chunk: one a trial for "truth" and "maps", `samples` a trial for the name of a row."""
        keys = self.chunks[number]
        if kind in self.rows:
            folder = self.run_dir / "images" / kind
            return [folder / f"{key}_{sample}.png" for key in keys for sample in range(self.samples)]
        return [self.run_dir / kind / f"{key}.png" for key in keys]

    def missing(self) -> set[Path]:
        """Files of this run that are not there, or not whole. Several threads, for file systems that answer slowly."""

        def of(chunk: tuple[str, int]) -> list[Path]:
            size = None if chunk[0] == "maps" else self.size
            return [path for path in self.files(*chunk) if not whole(path, size)]

        chunks = itertools.product((*self.per_trial, *self.rows), range(len(self.chunks)))
        with ThreadPoolExecutor(8) as pool:
            return set(itertools.chain.from_iterable(pool.map(of, chunks)))

    def lacking(self, missing: set[Path] | None = None) -> dict[int, list[str]]:
        """Chunk number -> the rows it lacks a picture of, over all chunks that lack any (`missing`: found before)."""
        missing = self.missing() if missing is None else missing
        found: dict[int, list[str]] = {}
        for number in range(len(self.chunks)):
            if any(path in missing for kind in self.per_trial for path in self.files(kind, number)):
                rows = self.rows
            else:
                rows = [row for row in self.rows if any(path in missing for path in self.files(row, number))]
            if rows:
                found[number] = rows
        return found

    def folders(self) -> list[Path]:
        return [self.run_dir / kind for kind in (*self.per_trial, *(f"images/{row}" for row in self.rows))]

    def make_folders(self) -> None:
        for folder in self.folders():
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, kind: str, number: int, pictures: Iterable[Tensor]) -> None:
        """Write a chunk's pictures, each (3, H, W) in [0, 1], as PNG: each file whole or not at all."""
        for path, picture in zip(self.files(kind, number), pictures, strict=True):
            with naming(path), replacing(path) as partial:
                to_image(picture).save(partial, format="PNG")

    def index(self, trials: Iterable[dict[str, Any]], seed: int) -> Iterator[str]:
        """pictures.jsonl: which file shows what; "seed" is what the noise of the picture was seeded with.

        trials: the lines of trials.jsonl; seed: of the run
        """
        for row, trial, sample in itertools.product(self.rows, trials, range(self.samples)):
            line = {"file": f"images/{row}/{trial['key']}_{sample}.png", "key": trial["key"], "row": row}
            line |= {"sample": sample, **{name: trial[name] for name in ("subject", "label", "class_name", "image")}}
            yield json.dumps(line | {"seed": noise_seed(seed, trial["key"], sample)}, ensure_ascii=False) + "\n"


def chunk_before(run_dir: Path) -> int:
    """How many trials the run in this directory drew together when it was started before; 0: it was not."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((run_dir / "rows.json").read_text(encoding="utf-8"))["settings"]["chunk"])
    return 0


def still_whole(run_dir: Path) -> bool:
    """Whether a finished run has all its pictures, whole; if not, it is finished no longer."""
    try:
        missing, index = Pictures.of(run_dir).missing(), run_dir / "pictures.jsonl"
        if not index.exists():
            missing.add(index)
        if not missing:
            return True
        what = f"{len(missing)} files are missing or damaged, such as {min(missing).relative_to(run_dir)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        pass_on(error)
        what = "rows.json or trials.jsonl cannot be read"
    print(f"{run_dir}: {what}; made again now")
    (run_dir / "DONE").unlink()
    return False
