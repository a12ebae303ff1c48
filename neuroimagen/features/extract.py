"""`neuroimagen features`: a features file of a study's pictures, or of their captions; also by `accelerate launch -m
neuroimagen.cli features ...` on several processes.

What is encoded together decides the last bits, so chunks of `batch_size` are always the same pictures (or captions),
whoever encodes them: the file has the same bytes on any number of processes. Each chunk is a file of OUT.parts until
all are there; a chunk is whole or not there, so that the same command continues after any end.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from neuroimagen.config import Limited, option, path_option
from neuroimagen.features.format import picture_digests, read_features, write_features
from neuroimagen.features.towers import Tower, load_tower
from neuroimagen.features.views import VIEWS
from neuroimagen.files import Taken, claim, content_of, write_atomic
from neuroimagen.pictures import see
from neuroimagen.run import inputs, processes
from neuroimagen.run.collectives import decided_by_main, on_every_rank, spread
from neuroimagen.shards.format import SPLITS, ShardSplit
from neuroimagen.studies.captions import captions_source, label_caption, read_captions


@dataclasses.dataclass
class FeaturesConfig(Limited):
    """`neuroimagen features`: fields."""

    shards: str = path_option(help="shards of a study: the directory, or a URL; pictures of train, val and test")
    out: str = path_option(help="features file to write (safetensors); the same command continues a stopped one")
    model: str = path_option("embedded", "CLIP, SigLIP or DINOv2: hub id or directory; embedded: needs no hub")
    layer: str = option("last", "last | a hidden state: 0, 1, ... | a relative depth: 0.667")
    pool: Literal["", "projected", "cls", "mean", "tokens"] = option(
        "", "of the tokens: the projected embedding, the class token, their mean, all; empty: the first that there is"
    )
    size: int = option(0, "side of the network's input in px; 0: that of its own preprocessing", at_least=0)
    views: list[str] = option(
        ["original"], f"features of these are averaged, one or several of {', '.join(VIEWS)} (docs/features.md)"
    )
    captions: str = path_option("", "features of captions, not pictures: label, or a file by neuroimagen captions")
    batch_size: int = option(32, "pictures or captions of each process at a time", at_least=1)
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "fp16 needs a GPU")
    deterministic: bool = option(False, "on a GPU too the same bits each time; slower")


Places = dict[bytes, tuple[str, int]]  # SHA-256 of a picture -> split and position of the first trial that shows it


def find_pictures(splits: dict[str, ShardSplit], captions: str) -> tuple[Places, dict[bytes, str]]:
    """The distinct pictures of all splits, by their SHA-256, and the caption of each if `captions` is given."""
    shown = [(key, (name, i)) for name, split in splits.items() for i, key in enumerate(picture_digests(split))]
    places = dict(sorted(dict(reversed(shown)).items()))
    by_image, said = {} if captions in ("", "label") else read_captions(captions), {}
    for key, (name, i) in places.items() if captions else ():
        info = splits[name].info(i)
        text = label_caption(info["class_name"]) if captions == "label" else by_image.get(info["image"])
        if text is None:
            raise ValueError(f"captions={captions} has no caption of {info['image']}: add it, or give captions=label")
        said[key] = text
    return places, said


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, of what decides the numbers; where the model lies does not."""
    words = {"pictures": "other pictures", "captions_sha256": "other captions", "revision": "other weights"}
    fields = [field for field in now if then.get(field) != now[field] and field != "model"]
    return " and ".join(words.get(field, f"{field}={then.get(field)}, not {now[field]}") for field in fields)


def _encode(tower: Tower, splits: dict[str, ShardSplit], chunk: list[Any], views: list[str]) -> torch.Tensor:
    """Features (B, D) of captions, or of pictures, as the mean over their views."""
    if isinstance(chunk[0], str):
        return tower.encode(chunk)
    pixels = []
    for _, (name, i) in chunk:
        data = splits[name].picture(i)
        try:
            pixels.append(tower.pixels(see(data).image.convert("RGB")))
        except ValueError as error:
            tar = splits[name].paths[splits[name].index[i]["tar"]]
            what = f"{tar}: the picture of trial {splits[name].keys[i]} cannot be decoded ({error})"
            raise ValueError(f"{what}: make the shards again") from None
    seen = ([VIEWS[view](x, key) for x, (key, _) in zip(pixels, chunk, strict=True)] for view in views)
    return torch.stack([tower.encode(torch.stack(x)) for x in seen]).mean(0)


def extract(config: FeaturesConfig) -> int:
    """Write `config.out`; returns the exit code. After SIGTERM the same command continues. Collective: every rank."""
    if unknown := [view for view in config.views if view not in VIEWS]:
        raise ValueError(f"views={unknown[0]} is none of {', '.join(VIEWS)}")
    if not config.views or (config.captions and (config.views != ["original"] or config.size)):
        raise ValueError("views= and size= are of pictures: give one view or more, and with captions= neither of both")
    processes.set_deterministic(config.deterministic)
    accelerator = processes.make_accelerator(config.precision)
    processes.watch_stop_signal()
    out = Path(config.out)
    parts = out.with_name(f"{out.name}.parts")
    splits = on_every_rank(lambda: {name: ShardSplit(config.shards, name) for name in SPLITS})
    how = config.layer, config.pool, config.size, processes.DTYPES[config.precision], accelerator.device
    tower = on_every_rank(lambda: load_tower(config.model, "text" if config.captions else "image", *how))
    held: list[int] = []  # the lock of the parts
    about = tower.about | {"views": config.views, "captions": config.captions, "precision": config.precision}

    def look() -> tuple[Places, dict[bytes, str], set[str] | None]:
        """Pictures, captions, and the parts there are, None if OUT is there; ValueError if it or they are of others."""
        if out.exists() and not out.is_file():
            raise ValueError(f"out={out} is there and is no file: give another out=")
        places, said = find_pictures(splits, config.captions)
        if said:
            about["captions_sha256"] = inputs.digest({key.hex(): text for key, text in said.items()})
            if config.captions != "label":
                about["captions"] = captions_source(config.captions)
        now = about | {"pictures": hashlib.sha256(b"".join(places)).hexdigest(), "batch_size": config.batch_size}
        then = content_of(parts / "about.json") or now
        if out.exists():
            kept = read_features(out)
            then = now | kept.about | {"pictures": hashlib.sha256(b"".join(kept.keys)).hexdigest()}
        if what := _differences(then, now):
            raise ValueError(f"{out if out.exists() else parts} was made with {what}: give another out=, or delete it")
        if out.exists():
            shutil.rmtree(parts, ignore_errors=True)
            return places, said, None
        parts.mkdir(parents=True, exist_ok=True)
        try:
            held.append(claim(parts / "lock", f"make {out} by one command at a time"))
        except Taken as holder:
            raise ValueError(f"out={out} is being made by {holder}: wait for it, or give another out=") from None
        write_atomic(parts / "about.json", json.dumps(now, indent=1))
        return places, said, {path.name for path in parts.iterdir()}

    places, said, there = decided_by_main(look)
    if there is None:
        accelerator.print(f"{out} is done already: features of {len(places)} pictures")
        return 0
    items: list[Any] = sorted(set(said.values())) or list(places.items())
    chunks = [items[i : i + config.batch_size] for i in range(0, len(items), config.batch_size)]
    files = [parts / f"{number:06d}.safetensors" for number in range(len(chunks))]
    lacking = [number for number, file in enumerate(files) if file.name not in there]

    def work(rank: int) -> int:
        """How many of this rank's chunks are left."""
        mine = lacking[rank :: accelerator.num_processes]
        for n, number in enumerate(tqdm(mine, "features", disable=None if accelerator.is_main_process else True)):
            if processes.stop_requested():
                return len(mine) - n
            made = _encode(tower, splits, chunks[number], config.views)
            write_atomic(files[number], save({"features": made.contiguous()}))
        return 0

    left = sum(spread(work, range(accelerator.num_processes)))

    def merge() -> None:
        table = torch.cat([load_file(file)["features"] for file in files])
        row = {item if said else item[0]: i for i, item in enumerate(items)}
        write_features(out, table[[row[said[key] if said else key] for key in places]], list(places), about)
        os.close(held.pop())  # or a network file system keeps the file, and its folder
        shutil.rmtree(parts)

    if not left:
        decided_by_main(merge)
    state = f"{left} of {len(chunks)} chunks are left; run the same command to continue"
    accelerator.print(f"{out}: {state if left else f'features of {len(places)} pictures'}")
    processes.leave_process_group()
    return processes.STOPPED if left else 0
