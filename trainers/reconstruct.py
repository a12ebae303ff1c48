"""Stage 3: every test trial to pictures, through the decoders of stages 1 and 2 and a latent diffusion model.

Each row of the paper's Table 3 is a choice of what the diffusion model is given: the saliency map (I), the embedding
learnt from label captions (L) or from BLIP captions (B). Controls and the paper's baselines are rows too, of the same
trials (reconstruction/decoders.py lists them all, reconstruction/controls.py draws the others). All rows of the
diffusion model share a picture's noise. Work is cut in chunks of trials in the order of the shards and spread over all
processes; finished pictures are skipped, so the same command continues a stopped run, and any number of processes
writes the same bytes. Test shards are opened here alone; train shards are too, for the row "retrieval".

Writes RUN/truth, RUN/maps, RUN/images/<row>/<key>_<sample>.png, trials.jsonl, rows.json (rows and settings) and at the
end pictures.jsonl, one line a picture. What is missing or damaged in a finished run is drawn again by the same command.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuroimagen.batches.stream import Batcher
from neuroimagen.config import option, path_option, run_trainer
from neuroimagen.files import write_atomic
from neuroimagen.reconstruction.controls import ClassCaptions, Gallery, draw_baseline
from neuroimagen.reconstruction.decoders import Decoders
from neuroimagen.reconstruction.draw import Pictures, chunk_before, still_whole
from neuroimagen.reconstruction.memory import find_chunk, saying_what_fits
from neuroimagen.reconstruction.pipelines import Scheduler
from neuroimagen.reconstruction.reconstructor import Reconstructor, check_settings
from neuroimagen.rows import PAPER, ROWS, RUNS, rows_to_draw
from neuroimagen.run import run as running
from neuroimagen.run import zero
from neuroimagen.run.collectives import decided_by_main, on_every_rank, wait_for_files
from neuroimagen.run.directory import check_inputs, claim_run_dir, inputs_of
from neuroimagen.run.processes import make_accelerator, set_deterministic
from neuroimagen.sample.captions import DTYPES
from neuroimagen.shards.pack import ShardSplit
from neuroimagen.studies.captions import captions_source


@dataclasses.dataclass
class ReconstructConfig:
    shards: str = path_option(help="shard directory; its test trials are reconstructed")
    run_dir: str = path_option(help="directory of this run; the same command continues what it holds")
    pipeline: str = path_option(help="latent diffusion model: hub id or directory in diffusers layout")
    saliency: str | None = path_option(None, "run directory of stage 1b (G and its f_θ); for rows with I")
    semantics_label: str | None = path_option(None, "run directory of stage 2 with captions=label; for rows with L")
    semantics_blip: str | None = path_option(None, "run directory of stage 2 with a captions file; for rows with B")
    brain2image: str | None = path_option(
        None, "run directory of trainers/brain2image.py, the GAN; for row Brain2Image"
    )
    brain2image_vae: str | None = path_option(
        None, "run directory of trainers/brain2image.py, the VAE; row Brain2Image-VAE"
    )
    neurovision: str | None = path_option(None, "run directory of trainers/neurovision.py; for row NeuroVision")
    rows: list[str] | None = option(
        list(PAPER),
        "any of I, L, B, B+I, L+I, none (Table 3); oracle, random class, retrieval (controls); Brain2Image, "
        "Brain2Image-VAE, NeuroVision (baselines); null: all but none that the runs given here allow",
    )
    split: str = option("test", "split of the shards")
    samples: int = option(3, "pictures a trial and row")
    strength: float = option(0.8, "share of the noise schedule that a map goes through, in (0, 1]")
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none")
    num_inference_steps: int = option(50, "steps of the whole noise schedule")
    rescale_embeddings: bool = option(
        False, "move each decoded embedding as far from the train captions' mean as captions are (docs/paper.md)"
    )
    scheduler: Scheduler = option("default", "how the noise is removed; default: as the pipeline comes")
    image_size: int | None = option(None, "side of the pictures in px; none: what the pipeline was made for")
    attention: str = option("auto", "auto | xformers | sdpa | sliced")
    precision: str = option("fp32", "fp32 | bf16 | fp16 of the diffusion model; the decoders compute in fp32")
    deterministic: bool = option(False, "on a GPU too the same bits each time; slower")
    channels_last: bool = option(False, "lay the diffusion model's weights out channels last: faster convolutions")
    compile: bool = option(False, "torch.compile the U-Net: minutes at the start, then faster steps or not: measure")
    vae_slicing: bool | None = option(
        None, "decode pictures one by one; none: where they are large (latents of 64 x 64)"
    )
    vae_tiling: bool = option(False, "decode pictures in tiles, for memory; seams may show, and pictures change")
    chunk: int = option(
        8, "trials that are drawn together; another value may change the last bit of a picture; 0: found by trial"
    )
    limit: int | None = option(None, "only the first so many trials; none: all")
    seed: int = option(0, "noise is a function of (seed, trial key, sample number)")


SHOWN = ("semantics", "map", "kind", "means")  # of a row, in rows.json


def describe(
    config: ReconstructConfig, decode: Decoders, split: ShardSplit, diffusion: Reconstructor, size: int, chunk: int
) -> str:
    """rows.json: what `neuroimagen evaluate` and `report` need to know of this run."""
    kept = ("dataset", "simulated", "n_chans", "n_times", "sfreq", "subjects", "classes", "protocol")
    captions = decode.configs["blip"]["captions"] if "blip" in decode.configs else None
    rows = [{"name": row, **{name: getattr(ROWS[row], name) for name in SHOWN}} for row in decode.rows]
    for row in rows:
        if row["name"] == "retrieval":
            row["means"] += f" ({'label' if decode.retrieval == 'label' else 'picture'} captions)"
        if row["kind"] == "baseline":
            trained = decode.configs[ROWS[row["name"]].by]
            row["means"] += f", trained here: {trained['max_steps']:,} steps of {trained['global_batch_size']} trials"
    about = {
        "rows": rows,
        "samples": config.samples,
        "simulated": split.manifest.simulated,
        "manifest": {name: getattr(split.manifest, name) for name in kept},
        "pipeline": config.pipeline,
        "settings": dataclasses.asdict(config) | {"attention": diffusion.attention, "image_size": size, "chunk": chunk},
        "diffusion": diffusion.describe(),
        "captions_source": captions_source(captions) if captions and Path(captions).is_file() else captions,
        "eeg_files": sorted(Path(path).name for path in split.manifest.inputs),
    }
    return json.dumps(about, indent=1, ensure_ascii=False)


def main(config: ReconstructConfig) -> int:
    if zero.asked_for():
        raise ValueError("reconstruct trains nothing that DeepSpeed could split: launch with launch/one_node.yaml")
    runs = {field: getattr(config, field) for field in RUNS}
    rows = rows_to_draw(config.rows, runs)
    if config.chunk < 0:
        raise ValueError(f"chunk={config.chunk}: at least one trial is drawn at a time (0: as many as fit)")
    check_settings(config.samples, config.strength, config.guidance_scale, config.num_inference_steps)
    set_deterministic(config.deterministic)
    accelerator = make_accelerator(config.precision)
    rank, world, run_dir = accelerator.process_index, accelerator.num_processes, Path(config.run_dir)
    # Before the long loading: is it of another config, or done?
    begun = decided_by_main((run_dir / "config.yaml").exists)
    if begun and claim_run_dir(config, accelerator) and decided_by_main(lambda: still_whole(run_dir)):
        return 0
    split = on_every_rank(lambda: ShardSplit(config.shards, config.split))
    decode = on_every_rank(
        lambda: Decoders(rows, runs, split, accelerator.device, config.seed, config.rescale_embeddings)
    )
    diffusion = on_every_rank(
        lambda: Reconstructor(
            config.pipeline,
            accelerator.device,
            DTYPES[config.precision],
            config.attention,
            config.scheduler,
            config.channels_last,
            config.compile,
            config.vae_slicing,
            config.vae_tiling,
        )
    )
    diffusion.check_steps(config.num_inference_steps, config.strength if decode.g is not None else 1.0)
    on_every_rank(lambda: decode.check(diffusion))
    size, _ = diffusion.picture_size(config.image_size, config.image_size)
    trials = dict(zip(split.keys[: config.limit], range(len(split)), strict=False))  # key -> position in the split
    if not trials:
        raise ValueError(f"{config.shards}: no {config.split} trials to reconstruct")
    class_captions = None
    if {"oracle", "random class"} & set(rows):
        class_captions = ClassCaptions(diffusion, split.manifest.classes, config.seed)
    train = on_every_rank(lambda: ShardSplit(config.shards, "train")) if decode.retrieval else None
    if train and train.manifest.splits["train"]["images"] < config.samples:
        raise ValueError(f"{config.shards}: train has fewer than samples={config.samples} pictures for row retrieval")
    if claim_run_dir(config, accelerator):
        return 0
    running.watch_stop_signal()

    names = ("samples", "seed", "strength", "guidance_scale", "num_inference_steps")
    settings = {name: getattr(config, name) for name in names} | {"height": size, "width": size}
    chunk = config.chunk or decided_by_main(lambda: chunk_before(run_dir))
    if not chunk:
        found = torch.tensor([find_chunk(diffusion, len(trials), settings)], device=accelerator.device)
        chunk = int(accelerator.gather(found).min())  # what fits everywhere
    pictures = Pictures(run_dir, list(trials), rows, config.samples, chunk, decode.g is not None, (size, size))
    infos: list[dict[str, Any]] = []  # of rank 0

    def begin() -> dict[int, list[str]]:
        """Chunk -> the rows it lacks."""
        infos.extend({"key": key, **split.info(i), "index": i} for key, i in trials.items())
        write_atomic(run_dir / "trials.jsonl", "".join(json.dumps(info) + "\n" for info in infos))
        write_atomic(run_dir / "rows.json", describe(config, decode, split, diffusion, size, chunk))
        pictures.make_folders()
        missing = pictures.missing()
        if damaged := sorted(path for path in missing if path.exists()):
            print(f"{len(damaged)} damaged pictures are drawn again, such as {damaged[0]}")
        return pictures.lacking(missing)

    lacking = decided_by_main(begin)
    wait_for_files(pictures.folders())
    gallery = None
    if train and any("retrieval" in chunk_rows for chunk_rows in lacking.values()):
        gallery = Gallery(decode.m_s[decode.retrieval], train, size, accelerator.device, rank, world)
    batcher, stop = Batcher(split, image_size=size), False
    todo = sum(len(pictures.chunks[c]) * len(rows) for c, rows in lacking.items()) * config.samples
    total = len(trials) * len(rows) * config.samples
    bar = tqdm(  # over all processes, with the time that is left
        total=total,
        initial=total - todo,
        unit="picture",
        desc=run_dir.name,
        disable=None if accelerator.is_main_process else True,
    )
    for start in range(0, len(lacking), world):  # rounds of one chunk a rank, so that all ranks agree when to stop
        numbers = list(lacking)[start : start + world]
        mine = numbers[rank] if rank < len(numbers) else None
        if mine is not None:
            keys = pictures.chunks[mine]
            batch = batcher(np.array([trials[key] for key in keys]))
            maps, embeddings = decode(batch["eeg"], keys)
            if class_captions:
                embeddings["oracle"] = class_captions.oracle(batch["label"].tolist())
                embeddings["random class"] = class_captions.random(keys, config.samples)
            pictures.save("truth", mine, batch["image"].add(1).div(2))
            if maps is not None:
                pictures.save("maps", mine, maps)
                encoded = diffusion.encode(maps, size, size)  # once for all rows and samples
        for row in rows:
            asked = torch.tensor(int(running.stop_requested()), device=accelerator.device)
            stop = stop or bool(accelerator.reduce(asked, "sum").item())
            if not stop and mine is not None and row in lacking[mine]:
                about = ROWS[row]
                if about.by == "diffusion":
                    embedding = embeddings[about.semantics] if about.semantics else None
                    with saying_what_fits(chunk):  # F(M_p(x), M_s(x)), steps (1) to (4)
                        drawn = diffusion.reconstruct(embedding, encoded if about.map else None, keys, **settings)
                elif about.by == "retrieval":
                    drawn = gallery(batch["eeg"], config.samples)
                else:
                    model, eeg = decode.baselines[about.by], batch["eeg"].to(accelerator.device)
                    drawn = draw_baseline(model, eeg, keys, config.samples, config.seed, size)
                pictures.save(row, mine, drawn.flatten(0, 1))
            bar.update(sum(len(pictures.chunks[c]) for c in numbers if row in lacking[c]) * config.samples * (not stop))
        if stop:
            break
    bar.close()
    accelerator.wait_for_everyone()

    def end() -> None:
        if not stop:
            check_inputs(run_dir, inputs_of(config))
            write_atomic(run_dir / "pictures.jsonl", "".join(pictures.index(infos, config.seed)))
        write_atomic(run_dir / ("PREEMPTED" if stop else "DONE"), f"{len(trials)} trials\n")

    decided_by_main(end)
    return running.STOPPED if stop else 0


if __name__ == "__main__":
    run_trainer(main, ReconstructConfig)
