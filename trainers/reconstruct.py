"""Stage 3: every test trial to pictures, through the decoders of stages 1 and 2 and a latent diffusion model.

Each row of the paper's Table 3 is a choice of what the diffusion model is given: the saliency map (I), the embedding
learnt from label captions (L) or from BLIP captions (B). All rows share a picture's noise. Work is cut in chunks of
trials in the order of the shards and spread over all processes; finished pictures are skipped, so the same command
continues a stopped run, and any number of processes writes the same bytes.

Writes RUN/truth, RUN/maps, RUN/images/<row>/<key>_<sample>.png, trials.jsonl and rows.json.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from neuroimagen import run as running
from neuroimagen import zero
from neuroimagen.config import option, run_trainer
from neuroimagen.data.shards import ShardSplit
from neuroimagen.data.stream import Batcher
from neuroimagen.decoders import ROWS, Decoders
from neuroimagen.processes import make_accelerator
from neuroimagen.reconstruction.pictures import Pictures
from neuroimagen.reconstruction.reconstructor import Reconstructor, check_settings
from neuroimagen.run_dir import claim_run_dir, write_atomic
from neuroimagen.sample.captions import DTYPES, captions_source


@dataclasses.dataclass
class ReconstructConfig:
    shards: str = option(help="shard directory; its test trials are reconstructed")
    run_dir: str = option(help="directory of this run; the same command continues what it holds")
    pipeline: str = option(help="latent diffusion model: hub id or directory in diffusers layout")
    saliency: str | None = option(None, "run directory of stage 1b (G and its f_θ); for rows with I")
    semantics_label: str | None = option(None, "run directory of stage 2 with captions=label; for rows with L")
    semantics_blip: str | None = option(None, "run directory of stage 2 with a captions file; for rows with B")
    rows: list[str] = option(["I", "L", "B", "B+I", "L+I"], "rows of Table 3: any of I, L, B, B+I, L+I, none")
    split: str = option("test", "split of the shards")
    samples: int = option(3, "pictures a trial and row")
    strength: float = option(0.8, "share of the noise schedule that a map goes through, in (0, 1]")
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none")
    num_inference_steps: int = option(50, "steps of the whole noise schedule")
    image_size: int | None = option(None, "side of the pictures in px; none: what the pipeline was made for")
    attention: str = option("auto", "auto | xformers | sdpa | sliced")
    precision: str = option("fp32", "fp32 | bf16 | fp16 of the diffusion model; the decoders compute in fp32")
    chunk: int = option(8, "trials that are drawn together; another value may change the last bit of a picture")
    limit: int | None = option(None, "only the first so many trials; none: all")
    seed: int = option(0, "noise is a function of (seed, trial key, sample number)")


def describe(config: ReconstructConfig, split: ShardSplit, captions: str | None, attention: str, size: int) -> str:
    """rows.json: what `neuroimagen evaluate` and `report` need to know of this run."""
    kept = ("dataset", "simulated", "n_chans", "n_times", "sfreq", "subjects", "classes", "protocol")
    about = {
        "rows": [{"name": row, "semantics": ROWS[row][0], "map": ROWS[row][1]} for row in config.rows],
        "samples": config.samples,
        "simulated": split.manifest.simulated,
        "manifest": {name: getattr(split.manifest, name) for name in kept},
        "pipeline": config.pipeline,
        "settings": dataclasses.asdict(config) | {"attention": attention, "image_size": size},
        "captions_source": captions_source(captions) if captions and Path(captions).is_file() else captions,
        "eeg_files": sorted(Path(path).name for path in split.manifest.inputs),
    }
    return json.dumps(about, indent=1, ensure_ascii=False)


def main(config: ReconstructConfig) -> int:
    if zero.asked_for():
        raise ValueError("reconstruct trains nothing that DeepSpeed could split: launch with launch/one_node.yaml")
    if set(config.rows) - set(ROWS) or not config.rows or len(set(config.rows)) < len(config.rows):
        raise ValueError(f"rows={config.rows} must be different names out of {', '.join(ROWS)}")
    if config.chunk < 1:
        raise ValueError(f"chunk={config.chunk}: at least one trial is drawn at a time")
    check_settings(config.samples, config.strength, config.guidance_scale, config.num_inference_steps)
    accelerator = make_accelerator(config.precision)
    rank, world, run_dir = accelerator.process_index, accelerator.num_processes, Path(config.run_dir)
    exists = (run_dir / "config.yaml").exists()
    accelerator.wait_for_everyone()
    if exists:  # before the long loading: is it of another config, or done?
        claim_run_dir(config, accelerator)
    split = ShardSplit(config.shards, config.split)
    runs = {name: getattr(config, name) for name in ("saliency", "semantics_label", "semantics_blip")}
    decode = Decoders(config.rows, runs, split, accelerator.device, config.seed)
    diffusion = Reconstructor(config.pipeline, accelerator.device, DTYPES[config.precision], config.attention)
    decode.check(diffusion)
    size, _ = diffusion.picture_size(config.image_size, config.image_size)
    trials = dict(zip(split.keys[: config.limit], range(len(split)), strict=False))  # key -> position in the split
    if not trials:
        raise ValueError(f"{config.shards}: no {config.split} trials to reconstruct")
    claim_run_dir(config, accelerator)
    running.watch_stop_signal()

    pictures = Pictures(run_dir, list(trials), config.rows, config.samples, config.chunk, maps=decode.g is not None)
    work: list[Any] = [None]
    if accelerator.is_main_process:
        captions = decode.configs["blip"]["captions"] if "blip" in decode.configs else None
        lines = [json.dumps({"key": key, **split.info(i), "index": i}) for key, i in trials.items()]
        write_atomic(run_dir / "trials.jsonl", "\n".join(lines) + "\n")
        write_atomic(run_dir / "rows.json", describe(config, split, captions, diffusion.attention, size))
        work = [pictures.lacking()]
    broadcast_object_list(work)  # one view of the files for all: {chunk: rows it lacks}
    lacking: dict[int, list[str]] = work[0]

    batcher, stop = Batcher(split, image_size=size), False
    names = ("samples", "seed", "strength", "guidance_scale", "num_inference_steps")
    settings = {name: getattr(config, name) for name in names} | {"height": size, "width": size}
    total = sum(len(pictures.chunks[c]) * len(rows) for c, rows in lacking.items()) * config.samples
    bar = tqdm(total=total, unit="picture", desc=run_dir.name, disable=None if accelerator.is_main_process else True)
    for start in range(0, len(lacking), world):  # rounds of one chunk a rank, so that all ranks agree when to stop
        numbers = list(lacking)[start : start + world]
        mine = numbers[rank] if rank < len(numbers) else None
        if mine is not None:
            keys = pictures.chunks[mine]
            batch = batcher(np.array([trials[key] for key in keys]))
            maps, embeddings = decode(batch["eeg"], keys)
            pictures.save("truth", mine, batch["image"].add(1).div(2))
            if maps is not None:
                pictures.save("maps", mine, maps)
        for row in config.rows:
            asked = torch.tensor(int(running.stop_requested()), device=accelerator.device)
            stop = stop or bool(accelerator.reduce(asked, "sum").item())
            if not stop and mine is not None and row in lacking[mine]:
                semantics, with_map = ROWS[row]
                embedding, given = embeddings[semantics] if semantics else None, maps if with_map else None
                drawn = diffusion.reconstruct(embedding, given, keys, **settings)  # F(M_p(x), M_s(x)), steps (1) to (4)
                pictures.save(row, mine, drawn.flatten(0, 1))
            bar.update(sum(len(pictures.chunks[c]) for c in numbers if row in lacking[c]) * config.samples * (not stop))
        if stop:
            break
    bar.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomic(run_dir / ("PREEMPTED" if stop else "DONE"), f"{len(trials)} trials\n")
    return running.STOPPED if stop else 0


if __name__ == "__main__":
    run_trainer(main, ReconstructConfig)
