"""The real trainers, each started by itself on shards of the study: what they make, and how long a few steps take.

Where a trainer would go on with what is in its run directory, which here is one that is removed again, its networks are
made and can be counted; there it ends, unless steps are wanted.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from neuroimagen.errors import sentence
from neuroimagen.pixel.saliency import doublings
from neuroimagen.planning.status import content, logged
from neuroimagen.run.run import Run

QUIET = {"trackers": "none", "workers": 0, "log_every": 1, "checkpoint_every": 0, "validate_every": 0, "tf32": False}
SHORT = {"warmup": 0, "classes_per_batch": 0, "trials_per_class": 0, "captions": "label"}  # the same work
TEXT = (77, 768)  # of Stable Diffusion 1


@dataclasses.dataclass
class Rehearsed:
    """trained: numbers that an optimizer of the Adam kind trains; saved, exported, averaged: bytes of all weights in a
    checkpoint, in model/, and of second copies (EMA); seconds: of each step that was made; memory: GB, the peak of the
    process; refused: why nothing is known"""

    trained: int = 0
    saved: int = 0
    exported: int = 0
    averaged: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    memory: float = 0.0
    refused: str = ""


def of_pipeline(pipeline: str) -> dict[str, Any]:
    """text (L, D_s), size (px), bytes (of a directory) of a diffusion model, as far as it is on this machine."""

    def config(part: str) -> dict[str, Any]:
        name, local = f"{part}/config.json", Path(pipeline).is_dir()
        path = Path(pipeline) / name if local else try_to_load_from_cache(pipeline, name)
        return content(Path(path)) if isinstance(path, str | Path) else {}

    encoders, unet, vae = [config("text_encoder"), config("text_encoder_2")], config("unet"), config("vae")
    found: dict[str, Any] = {}
    if encoders[0]:
        width = sum(encoder.get("hidden_size", 0) for encoder in encoders)
        found["text"] = encoders[0].get("max_position_embeddings", 77), width
    if unet.get("sample_size") and vae:
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
        found["size"] = unet["sample_size"] * 2 ** (len(levels) - 1)
    if Path(pipeline).is_dir():
        found["bytes"] = sum(path.stat().st_size for path in Path(pipeline).rglob("*.safetensors"))
    return found


def _phases(config: Any) -> int:
    """Of NeuroVision's growth (Karras et al. 2018): level 0, then the fade-in and the training of each next one."""
    return 2 * doublings(config.image_size) + 1


def _short(config: Any, shards: Path, folder: Path, processes: int) -> Any:
    """The same run, of few steps of one process's share."""
    changed: dict[str, Any] = {"run_dir": str(folder), "shards": str(shards), "max_steps": 4, "classifier_steps": 2}
    changed |= {"features": str(folder.parent / "features"), **QUIET, **SHORT}
    changed["global_batch_size"] = config.global_batch_size // processes
    if hasattr(config, "phase_steps"):
        changed |= {"phase_steps": 1, "max_steps": 2 + _phases(config)}
    return dataclasses.replace(config, **{name: changed[name] for name in changed if hasattr(config, name)})


def _start(main: Callable[[Any], int], config: Any, steps: bool, answer: Connection) -> None:
    """A trainer, up to its first step or to its end; what was made is sent before that."""

    def size(modules: list[Any]) -> int:
        return sum(t.numel() * t.element_size() for module in modules for t in module.state_dict().values())

    def made(run: Run) -> None:
        """Instead of Run.resume: there is nothing to go on with."""
        accelerator = run.accelerator
        means = [average.module for average in accelerator._custom_objects]
        groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]
        trained = sum(p.numel() for group in groups for p in group["params"] if p.requires_grad)
        models = [run.unwrap(model) for model in accelerator._models]
        answer.send(Rehearsed(trained, size([*models, *means]), size(means or models), size(means)))
        if run.dir.name == "pixel_features":  # what it would leave for stage 1b, which does not wait for that here
            f_theta: Any = models[0]
            f_theta.save_pretrained(str(run.dir.parent / "features" / "model"))
            for name in ("config.yaml", "DONE"):
                (run.dir.parent / "features" / name).touch()
        if not steps:
            os._exit(0)
        run._since = time.monotonic()

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    Run.resume = made  # type: ignore[method-assign, assignment]
    text = of_pipeline(getattr(config, "pipeline", "")).get("text", TEXT)
    main.__globals__["embed_captions"] = lambda pipeline, captions, device: torch.randn(len(captions), *text)
    try:
        main(config)
    except (ValueError, OSError) as error:
        answer.send(Rehearsed(refused=sentence(error) or str(error)))


def rehearse(
    runs: Mapping[str, tuple[Callable[[Any], int], Any, int]], shards: Path, folder: Path, budget: float
) -> Iterator[tuple[str, Rehearsed]]:
    """Name -> what is known of it. runs: name -> a trainer's main and config, and how many processes there will be.

    Each gets its share of what is left of `budget` seconds for some steps; 0: none are made.
    """
    deadline, context = time.monotonic() + budget, multiprocessing.get_context("fork")  # nothing is imported again
    for number, (name, (main, config, processes)) in enumerate(runs.items()):
        receiver, sender = context.Pipe(duplex=False)
        short = _short(config, shards, folder / name, processes)
        process = context.Process(target=_start, args=(main, short, budget > 0, sender))
        process.start()
        process.join(max(0.0, deadline - time.monotonic()) / (len(runs) - number) if budget else None)
        process.kill()
        process.join()
        found = receiver.recv() if receiver.poll() else Rehearsed(refused="it did not begin, or not in time")
        lines = [line for line in logged(folder / name) if "step_seconds" in line]
        if len(lines) > 1:
            found.seconds = [line["step_seconds"] for line in lines]
            found.memory = max(line["memory_gb"] for line in lines)
        yield name, found


def whole(config: Any, seconds: list[float]) -> float | None:
    """s that all steps of a run take, of the few that `_short` made; None if these do not tell."""
    if not hasattr(config, "classifier_steps"):
        return float(np.median(seconds[1:])) * config.max_steps if len(seconds) > 1 else None
    if len(seconds) < 4:
        return None
    first, rest = config.classifier_steps, config.max_steps - config.classifier_steps
    if not hasattr(config, "phase_steps"):
        return first * seconds[1] + rest * seconds[-1]
    phases = seconds[2:]  # one step of each
    if len(phases) < _phases(config):
        return None
    growing = config.phase_steps * sum(phases)
    return first * seconds[1] + growing + max(0, rest - config.phase_steps * len(phases)) * phases[-1]
