"""Stage 3: every test trial to pictures, through the decoders of stages 1 and 2 and a latent diffusion model.

Each row (neuroimagen/rows.py) is a choice of what the diffusion model is given, a control or a baseline; all rows of
the diffusion model share a picture's noise. Work is cut in chunks of trials in the order of the shards and spread over
all processes; pictures that are there are skipped, so the same command continues a stopped run or mends a finished one,
and any number of processes writes the same bytes (reconstruction/picture_files.py lists the files). Test shards are
opened here alone; train and val are too, for rows that are made of them (reconstruction/given.py).
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from neuroimagen.batches.stream import Batcher
from neuroimagen.config import option, path_option, run_trainer
from neuroimagen.files import write_atomic
from neuroimagen.reconstruction.decoders import Decoders
from neuroimagen.reconstruction.draw import draw, find_chunk
from neuroimagen.reconstruction.given import Given
from neuroimagen.reconstruction.picture_files import PictureFiles, chunk_before, describe, still_whole
from neuroimagen.reconstruction.pipelines import Scheduler
from neuroimagen.reconstruction.reconstructor import DRAWN_WITH, LOADED_WITH, Reconstructor, Settings
from neuroimagen.rows import IMAGE, PAPER, ROWS, VALIDITY, check_rows, rows_to_draw
from neuroimagen.run import processes, zero
from neuroimagen.run.collectives import decided_by_main, gather_objects, on_every_rank, wait_for_files
from neuroimagen.run.directory import check_inputs, claim_run_dir, inputs_of
from neuroimagen.run.processes import DTYPES
from neuroimagen.shards.format import ShardSplit


@dataclasses.dataclass
class ReconstructConfig(Settings):
    shards: str = path_option(help="shard directory; its test trials are reconstructed")
    run_dir: str = path_option(help="directory of this run; the same command continues what it holds")
    pipeline: str = path_option(help="latent diffusion model: hub id or directory in diffusers layout")
    saliency: str | None = path_option(None, "run directory of stage 1b (G and its f_θ); for rows with I")
    semantics_label: str | None = path_option(None, "run directory of stage 2 with captions=label; for rows with L")
    semantics_blip: str | None = path_option(None, "run directory of stage 2 with a captions file; for rows with B")
    brain2image: str | None = path_option(None, "run directory of trainers/brain2image.py, GAN; row Brain2Image")
    brain2image_vae: str | None = path_option(None, "the same trainer's, the VAE; row Brain2Image-VAE")
    neurovision: str | None = path_option(None, "run directory of trainers/neurovision.py; for row NeuroVision")
    contrastive: str | None = path_option(None, "run directory of trainers/contrastive.py; for rows with E")
    image_prompt: str | None = path_option(
        None, "adapter for rows with E: directory of trainers/image_prompt.py, or weights of an IP-Adapter, file or hub"
    )
    image_features: str | None = path_option(None, "features file of the pictures seen; for row E oracle")
    rows: list[str] | None = option(
        list(PAPER),
        f"any of {', '.join(ROWS)} (docs/paper.md); null: what the runs given "
        f"here allow, but for none, {', '.join((*IMAGE, *VALIDITY))}",
    )
    split: str = option("test", "split of the shards")
    scheduler: Scheduler = option("default", "how the noise is removed; default: as the pipeline comes")
    attention: str = option("auto", "auto | xformers | sdpa | sliced")
    precision: str = option("fp32", "fp32 | bf16 | fp16 of the diffusion model; the decoders compute in fp32")
    deterministic: bool = option(False, "on a GPU too the same bits each time; slower")
    channels_last: bool = option(False, "lay the diffusion model's weights out channels last: faster convolutions")
    compile: bool = option(False, "torch.compile the U-Net: minutes at the start, then faster steps or not: measure")
    vae_slicing: bool | None = option(None, "decode pictures one by one; none: where latents are 64 x 64 or larger")
    vae_tiling: bool = option(False, "decode pictures in tiles, for memory; seams may show, and pictures change")
    limit: int | None = option(None, "only the first so many trials; none: all", at_least=1)

    def check(self) -> None:
        """ValueError for what no run can draw."""
        check_rows(rows_to_draw(self.rows, vars(self)), vars(self))


def main(config: ReconstructConfig) -> int:
    config.check()
    if zero.asked_for():
        raise ValueError("reconstruct trains nothing that DeepSpeed could split: launch with launch/one_node.yaml")
    processes.set_deterministic(config.deterministic)
    accelerator = processes.make_accelerator(config.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    run_dir, rows = Path(config.run_dir), rows_to_draw(config.rows, vars(config))
    begun = decided_by_main((run_dir / "config.yaml").exists)  # before the long loading: of another config, or done?
    if begun and claim_run_dir(config, accelerator) and decided_by_main(lambda: still_whole(run_dir)):
        return 0

    split = on_every_rank(lambda: ShardSplit(config.shards, config.split))
    decoders = on_every_rank(lambda: Decoders(rows, vars(config), split, device))
    loading = {name: getattr(config, name) for name in LOADED_WITH}
    diffusion = on_every_rank(lambda: Reconstructor(config.pipeline, device, DTYPES[config.precision], **loading))
    diffusion.check_steps(config.num_inference_steps, config.strength if any(ROWS[row].map for row in rows) else 1.0)
    on_every_rank(lambda: decoders.check(diffusion))
    size, _ = diffusion.picture_size(config.image_size, config.image_size)
    trials = dict(zip(split.keys[: config.limit], range(len(split)), strict=False))  # key -> position in the split
    if not trials:
        raise ValueError(f"{config.shards}: no {config.split} trials to reconstruct")
    given = on_every_rank(lambda: Given(rows, split, decoders, diffusion, config))
    if claim_run_dir(config, accelerator):
        return 0
    processes.watch_stop_signal()

    settings = {name: getattr(config, name) for name in DRAWN_WITH} | {"height": size, "width": size}
    chunk = config.chunk or decided_by_main(lambda: chunk_before(run_dir))
    chunk = chunk or min(gather_objects(find_chunk(diffusion, len(trials), settings)))  # what fits everywhere
    files = PictureFiles(run_dir, list(trials), rows, config.samples, chunk, size)
    infos = ({"key": key, **split.info(i), "index": i} for key, i in trials.items())
    in_force = dataclasses.replace(config, image_size=size, chunk=chunk)
    todo = decided_by_main(lambda: files.begin(infos, describe(in_force, decoders, split, diffusion)))  # chunk -> rows
    wait_for_files([files.folder(kind) for kind in files.kinds])
    given.prepare({row for lacking in todo.values() for row in lacking}, size, rank, world)
    batcher, stop = Batcher(split, image_size=size), False
    total, hide = len(trials) * len(rows) * config.samples, None if rank == 0 else True
    there = total - sum(files.pictures(todo, row) for row in rows)
    bar = tqdm(total=total, initial=there, unit="picture", desc=run_dir.name, disable=hide)  # over all processes
    for start in range(0, len(todo), world):  # rounds of one chunk a rank, so that all ranks agree when to stop
        numbers = list(todo)[start : start + world]
        mine = numbers[rank] if rank < len(numbers) else None
        if mine is not None:
            keys = files.chunks[mine]
            batch = batcher(np.array([trials[key] for key in keys]))
            decoded = given(batch, todo[mine])
            files.save("truth", mine, batch["image"].add(1).div(2))
            if (maps := decoded["trial"].maps) is not None:
                files.save("maps", mine, maps)
            told = batch["eeg"].to(device), keys, decoded, diffusion, settings
            drawn = draw(todo[mine], *told, decoders.baselines, given.gallery, batch["subject"])
        for row in rows:
            stop = stop or any(gather_objects(processes.stop_requested()))
            if stop:
                break
            if mine is not None and row in todo[mine]:
                files.save(row, mine, next(drawn).flatten(0, 1))
            bar.update(files.pictures({number: todo[number] for number in numbers}, row))
        if stop:
            break
    bar.close()
    accelerator.wait_for_everyone()

    def end() -> None:
        if not stop:
            check_inputs(run_dir, inputs_of(config))
            files.end(config.seed)
        write_atomic(run_dir / ("PREEMPTED" if stop else "DONE"), f"{len(trials)} trials\n")

    decided_by_main(end)
    return processes.STOPPED if stop else 0


if __name__ == "__main__":
    run_trainer(main, ReconstructConfig)
