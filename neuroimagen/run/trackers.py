"""What a run shows beside numbers, in its own directory and in the tracker that accelerate drives."""

import csv
import os
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from neuroimagen.config import TrainConfig
from neuroimagen.files import naming, write_atomic
from neuroimagen.run.collectives import decided_by_main
from neuroimagen.run.directory import environment


def start_trackers(accelerator: Accelerator, config: TrainConfig, run_dir: Path) -> None:
    """Open the tracker of `config.trackers`, on rank 0; a continued run keeps the id, and with it the curve.

    ValueError, on every rank, if it cannot be opened. Collective: every rank.
    """

    def start() -> None:
        path, options = run_dir / "tracker_id", {}
        if not path.exists():
            write_atomic(path, os.urandom(6).hex())
        if config.trackers == "wandb":
            known = {"id": path.read_text(encoding="utf-8"), "resume": "allow", "name": run_dir.name}
            options = {"wandb": {"dir": str(run_dir), **known}}
        about = {**vars(config), **{f"environment/{k}": v for k, v in environment(accelerator).items()}}
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in about.items()}
        try:
            if config.trackers == "wandb":
                _reach_wandb()
            accelerator.init_trackers(config.project, plain, options)
        except Exception as error:  # each tracker has errors of its own
            said = f"trackers={config.trackers} cannot start ({' '.join(str(error).split())[:200]})"
            if config.trackers == "wandb":
                said += ": log in by `wandb login` or WANDB_API_KEY; WANDB_MODE=offline needs neither key nor network"
            raise ValueError(said) from None

    if accelerator.log_with:
        decided_by_main(start)


def _reach_wandb() -> None:
    """OSError at once if wandb's server cannot be reached, which wandb would try for a minute and a half."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun", "disabled") or urllib.request.getproxies():  # wandb has ways of its own
        return
    address = urllib.parse.urlsplit(settings.base_url)
    port = address.port or {"http": 80}.get(address.scheme, 443)
    socket.create_connection((address.hostname, port), timeout=10).close()


def tell(accelerator: Accelerator, how: str, *what: Any, **options: Any) -> None:
    """Call this method of the tracker, if it has it. One that fails is left out from then on: the run has it all."""
    for tracker in list(accelerator.trackers):
        try:
            if hasattr(tracker, how):
                getattr(tracker, how)(*what, **options)
        except Exception as error:  # each has errors of its own
            said = " ".join(str(error).split())[:200]
            print(f"warning: {tracker.name} fails ({said}); the run goes on without it", file=sys.stderr, flush=True)
            accelerator.trackers.remove(tracker)


def log_image(accelerator: Accelerator, run_dir: Path, step: int, name: str, grid: Tensor) -> None:
    """Save a picture (3, H, W) in [0, 1] as images/<name>-<step>.png and show it. Rank 0 alone."""
    pixels = (grid.detach().clamp(0, 1).permute(1, 2, 0).cpu() * 255).round().byte().numpy()
    folder = run_dir / "images"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{step:08d}.png"
    with naming(path):
        Image.fromarray(pixels).save(path)
    options = {"dataformats": "NHWC"} if "tensorboard" in [t.name for t in accelerator.trackers] else {}
    tell(accelerator, "log_images", {name: pixels[None]}, step=step, **options)


def log_class_table(
    accelerator: Accelerator,
    run_dir: Path,
    step: int,
    name: str,
    guesses: Tensor,
    labels: Tensor,
    names: dict[int, str],
) -> None:
    """Accuracy of each class as tables/<name>-<step>.csv, and where the tracker shows tables. Rank 0 alone."""
    columns, rows = ["class", "trials", "accuracy"], []
    for label in labels.unique().tolist():
        right = (guesses == label)[labels == label]
        rows.append([names[label], len(right), right.double().mean().item()])
    folder = run_dir / "tables"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{step:08d}.csv"
    with naming(path), open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([columns, *rows])
    tell(accelerator, "log_table", name, columns=columns, data=rows, step=step)
