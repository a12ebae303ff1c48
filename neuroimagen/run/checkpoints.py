"""What all ranks write and read together in a run directory: checkpoints, and at the end the trained weights.

A file system may answer each rank differently: rank 0 says which checkpoint there is, a failure of one is one of all.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from neuroimagen.files import replacing, share_weights, write_atomic
from neuroimagen.run import zero
from neuroimagen.run.collectives import ERRORS, decided_by_main, gather_objects, wait_for_files


def failure(work: Callable[[], Any]) -> str | None:
    """Do `work`; why a rank could not do it, or None if all could. Collective: every rank."""
    reason = None
    try:
        work()
    except ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    return next(filter(None, gather_objects(reason)), None)


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step-*") if path.suffix != ".partial")


def save(run_dir: Path, step: int, accelerator: Accelerator) -> None:
    """Write checkpoints/step-N, whole or not at all; collective: every rank.

    Raises ValueError, on every rank, if it cannot be written; the last good checkpoint stays.
    """
    final, main = run_dir / "checkpoints" / f"step-{step:08d}", accelerator.is_main_process
    if decided_by_main(final.exists):
        return
    partial, made = final.with_suffix(".partial"), contextlib.ExitStack()

    def begin() -> None:
        if main:
            made.enter_context(replacing(final)).mkdir(parents=True)

    def publish() -> None:
        if main:
            zero.mark(partial, zero.stage_of(accelerator), accelerator.num_processes)
            share_weights(partial)
            made.close()

    with made:
        for work in (begin, lambda: wait_for_files([partial]), lambda: accelerator.save_state(str(partial)), publish):
            if not (reason := failure(work)):
                continue
            kept = whole_checkpoints(run_dir)
            raise ValueError(
                f"{run_dir}: the checkpoint of step {step} could not be written ({reason}); "
                f"{f'{kept[-1].name} is kept' if kept else 'there is none yet'}; make room and run the same command"
            )
    if main:
        for old in whole_checkpoints(run_dir)[:-2]:
            shutil.rmtree(old, ignore_errors=True)


def load(run_dir: Path, accelerator: Accelerator, models: Sequence[nn.Module]) -> int:
    """Read the newest whole checkpoint, if there is one; its step, or 0. Collective: every rank.

    Raises ValueError, on every rank, if it cannot be read, is not for so many processes launched like these, or if the
    ranks do not hold the same weights of `models` afterwards.
    """

    def newest() -> tuple[Path, list[Path]] | None:
        if not (kept := whole_checkpoints(run_dir)):
            return None
        zero.check_mark(kept[-1], zero.stage_of(accelerator), accelerator.num_processes)
        return kept[-1], sorted(kept[-1].rglob("*"))

    if (found := decided_by_main(newest)) is None:
        return 0
    checkpoint, files = found
    wait_for_files(files)
    if reason := failure(lambda: accelerator.load_state(str(checkpoint))):
        raise ValueError(f"{checkpoint} could not be read ({reason}); mend or remove it, and run the same command")
    weights = (tensor for model in models for tensor in model.state_dict().values())
    total = sum(int(tensor.reshape(-1).view(torch.uint8).sum()) for tensor in weights)  # of bytes, in any order
    if len(set(gather_objects(total))) > 1:
        raise ValueError(
            f"{checkpoint} was not read alike by all ranks; run the same command when all machines see the same files"
        )
    step, world = int(checkpoint.name.split("-")[1]), accelerator.num_processes
    saved_by = sum(path.name.startswith("random_states_") for path in files)
    changed = f", saved by {saved_by} processes, on {world}" if saved_by != world else ""
    accelerator.print(f"{run_dir}: continuing at step {step}{changed}")
    return step


def export(run_dir: Path, step: int, accelerator: Accelerator, models: Mapping[str, Any]) -> None:
    """Rank 0 writes model/ (or model/<name> of several), whole or not at all, and DONE. Collective: every rank.

    Each model has `save_pretrained(directory)`. Raises ValueError, on every rank, if they cannot be written.
    """

    def write() -> None:
        if accelerator.is_main_process:
            with replacing(run_dir / "model") as partial:
                for name, model in models.items():
                    model.save_pretrained(str(partial / name if len(models) > 1 else partial))
                share_weights(partial)
                shutil.rmtree(run_dir / "model", ignore_errors=True)
            write_atomic(run_dir / "DONE", f"step {step}\n")

    if reason := failure(write):
        raise ValueError(f"{run_dir}: model/ could not be written ({reason}); make room and run the same command")
