"""The files of a reconstruction run: which pictures, which are still lacking, how they are written, what tells of them.

rows.json       the rows and the settings in force, samples, study and diffusion model, for `neuroimagen evaluate`
trials.jsonl    a line a trial; pictures.jsonl: a line a picture, at the end
truth/<key>.png, maps/<key>.png, images/<row>/<key>_<sample>.png
look.png        a first look: some trials, a line each, in every row
"""

import dataclasses
import io
import itertools
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from neuroimagen.files import content_of, pass_on, write_atomic
from neuroimagen.reconstruction.decoders import Decoders
from neuroimagen.reconstruction.reconstructor import Reconstructor, noise_seed
from neuroimagen.rows import OF_IMAGE, ROWS
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.captions import captions_source

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


class PictureFiles:
    """RUN/truth/<key>.png, RUN/maps/<key>.png, RUN/images/<row>/<key>_<sample>.png, in chunks of trials.

    Chunk c is always the same trials, keys[c * chunk : (c + 1) * chunk], whoever draws it and whenever: what is drawn
    together decides the last bits of a picture. size: side in px of truths and pictures; None: any.
    """

    def __init__(
        self, run_dir: Path, keys: Sequence[str], rows: Sequence[str], samples: int, chunk: int, size: int | None = None
    ) -> None:
        self.run_dir, self.rows, self.samples = run_dir, list(rows), samples
        self.size = None if size is None else (size, size)
        self.chunks = [list(keys[i : i + chunk]) for i in range(0, len(keys), chunk)]
        self.kinds = ["truth", *["maps"] * any(row in ROWS and "saliency" in ROWS[row].needs for row in rows), *rows]

    @classmethod
    def of(cls, run_dir: Path) -> "PictureFiles":
        """Those of a run that wrote its rows.json and trials.jsonl. ValueError or OSError if these cannot be read."""
        about = json.loads((run_dir / "rows.json").read_text(encoding="utf-8"))
        keys = [json.loads(line)["key"] for line in (run_dir / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
        rows, settings = [row["name"] for row in about["rows"]], about["settings"]
        return cls(run_dir, keys, rows, about["samples"], settings["chunk"], settings["image_size"])

    def folder(self, kind: str) -> Path:
        """kind: "truth", "maps" or the name of a row"""
        return self.run_dir / "images" / kind if kind in self.rows else self.run_dir / kind

    def files(self, kind: str, number: int) -> list[Path]:
        """Files of one chunk: one a trial for "truth" and "maps", `samples` a trial for the name of a row."""
        each = [f"_{sample}" for sample in range(self.samples)] if kind in self.rows else [""]
        return [self.folder(kind) / f"{key}{end}.png" for key in self.chunks[number] for end in each]

    def missing(self) -> set[Path]:
        """Files of this run that are not there, or not whole. Several threads, for file systems that answer slowly."""

        def of(chunk: tuple[str, int]) -> list[Path]:
            size = None if chunk[0] == "maps" else self.size
            return [path for path in self.files(*chunk) if not whole(path, size)]

        chunks = itertools.product(self.kinds, range(len(self.chunks)))
        with ThreadPoolExecutor(8) as pool:
            return set(itertools.chain.from_iterable(pool.map(of, chunks)))

    def lacking(self, missing: set[Path]) -> dict[int, list[str]]:
        """Chunk number -> the rows to be drawn: those that lack a picture; all, if a truth or a map is lacking."""
        found = {}
        for number in range(len(self.chunks)):
            kinds = [kind for kind in self.kinds if not missing.isdisjoint(self.files(kind, number))]
            if kinds:
                found[number] = kinds if kinds[0] in self.rows else self.rows
        return found

    def begin(self, trials: Iterable[dict[str, Any]], about: dict[str, Any]) -> dict[int, list[str]]:
        """Write trials.jsonl, a line each of `trials`, and rows.json, which is `about`; `lacking` of what is there."""
        self.trials = list(trials)
        write_atomic(self.run_dir / "trials.jsonl", "".join(json.dumps(trial) + "\n" for trial in self.trials))
        write_atomic(self.run_dir / "rows.json", json.dumps(about, indent=1, ensure_ascii=False))
        for kind in self.kinds:
            self.folder(kind).mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        if damaged := sorted(path for path in missing if path.exists()):
            print(f"{len(damaged)} damaged pictures are drawn again, such as {damaged[0]}")
        return self.lacking(missing)

    def pictures(self, todo: Mapping[int, list[str]], row: str) -> int:
        """How many pictures of a row there are to draw, of {chunk number: its rows}."""
        return sum(len(self.chunks[number]) for number, rows in todo.items() if row in rows) * self.samples

    def save(self, kind: str, number: int, pictures: Iterable[Tensor]) -> None:
        """Write a chunk's pictures, each (3, H, W) in [0, 1], as PNG: each file whole or not at all."""
        for path, picture in zip(self.files(kind, number), pictures, strict=True):
            png = io.BytesIO()
            to_image(picture).save(png, format="PNG")
            write_atomic(path, png.getvalue())

    def end(self, seed: int) -> None:
        """Write pictures.jsonl: which file shows what, and what a picture's noise was seeded with; seed: of the run."""
        lines = []
        for row, trial, sample in itertools.product(self.rows, self.trials, range(self.samples)):
            line = {"file": f"images/{row}/{trial['key']}_{sample}.png", "key": trial["key"], "row": row}
            line |= {"sample": sample, **{name: trial[name] for name in ("subject", "label", "class_name", "image")}}
            lines.append(json.dumps(line | {"seed": noise_seed(seed, trial["key"], sample)}, ensure_ascii=False) + "\n")
        write_atomic(self.run_dir / "pictures.jsonl", "".join(lines))
        print(f"{self.run_dir}: {len(lines):,} pictures of {len(self.trials)} trials\n  {self._look()}")

    def _look(self, trials: int = 8, side: int = 96) -> Path:
        """look.png: of trials that are spread evenly over the run what was seen, the map, and sample 0 of each row."""
        some = sorted({i * len(self.trials) // trials for i in range(trials)})
        sheet = Image.new("RGB", (side * len(self.kinds), 28 + side * len(some)), "white")
        simulated = json.loads((self.run_dir / "rows.json").read_text(encoding="utf-8"))["simulated"]
        ImageDraw.Draw(sheet).text((3, 1), "SIMULATED EEG" if simulated else "recorded EEG", "black")
        for column, kind in enumerate(self.kinds):
            ImageDraw.Draw(sheet).text((side * column + 3, 15), kind, "black")
            for line, i in enumerate(some):
                end = "_0" if kind in self.rows else ""
                with Image.open(self.folder(kind) / f"{self.trials[i]['key']}{end}.png") as picture:
                    sheet.paste(picture.convert("RGB").resize((side, side)), (side * column, 28 + side * line))
        png = io.BytesIO()
        sheet.save(png, format="PNG")
        write_atomic(self.run_dir / "look.png", png.getvalue())
        return self.run_dir / "look.png"


def describe(config: Any, decoders: Decoders, split: ShardSplit, diffusion: Reconstructor) -> dict[str, Any]:
    """rows.json, from the config of trainers/reconstruct.py with the image_size and chunk that are in force."""
    shown, captions = ("semantics", "map", "kind", "means"), decoders.configs.get("blip", {}).get("captions")
    kept = ["dataset", "simulated", "n_chans", "n_times", "sfreq", "subjects", "classes", "protocol"]
    kept += ["mark"] if split.manifest.mark else []
    settings = dataclasses.asdict(config) | {"attention": diffusion.attention}
    rows = [{"name": row, **{name: getattr(ROWS[row], name) for name in shown}} for row in decoders.rows]
    for row in rows:
        if row["name"] == "retrieval":
            row["means"] += f" ({'label' if decoders.retrieval == 'label' else 'picture'} captions)"
        if row["kind"] == "baseline":
            trained = decoders.configs[ROWS[row["name"]].by]
            row["means"] += f", trained here: {trained['max_steps']:,} steps of {trained['global_batch_size']} trials"
    return {
        "rows": rows,
        "samples": config.samples,
        "simulated": split.manifest.simulated,
        "manifest": {name: getattr(split.manifest, name) for name in kept},
        "pipeline": config.pipeline,
        "settings": {name: value for name, value in settings.items() if config.image_prompt or name not in OF_IMAGE},
        "diffusion": diffusion.describe(),
        "captions_source": captions_source(captions) if captions and Path(captions).is_file() else captions,
        "eeg_files": sorted(Path(path).name for path in split.manifest.inputs),
    }


def chunk_before(run_dir: Path) -> int:
    """How many trials the run in this directory drew together when it was started before; 0: it was not."""
    return content_of(run_dir / "rows.json").get("settings", {}).get("chunk", 0)


def still_whole(run_dir: Path) -> bool:
    """Whether a finished run has all its pictures, whole; if not, it is finished no longer."""
    try:
        missing, index = PictureFiles.of(run_dir).missing(), run_dir / "pictures.jsonl"
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
