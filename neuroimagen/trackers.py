"""What a run shows beside numbers, in its own directory and in the tracker that accelerate drives."""

import csv
import os
from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from neuroimagen.config import TrainConfig
from neuroimagen.run_dir import environment, write_atomic


def start_trackers(accelerator: Accelerator, config: TrainConfig, run_dir: Path) -> None:
    """Open the tracker of `config.trackers`; a continued run keeps the id, and with it the curve."""
    if not accelerator.log_with:
        return
    path = run_dir / "tracker_id"
    if accelerator.is_main_process and not path.exists():
        write_atomic(path, os.urandom(6).hex())
    options = {}
    if config.trackers == "wandb" and accelerator.is_main_process:
        options = {"wandb": {"dir": str(run_dir), "id": path.read_bytes().decode()}}
        options["wandb"] |= {"resume": "allow", "name": run_dir.name}
    about = {**vars(config), **{f"environment/{k}": v for k, v in environment(accelerator).items()}}
    plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in about.items()}
    accelerator.init_trackers(config.project, plain, options)


def log_image(accelerator: Accelerator, run_dir: Path, step: int, name: str, grid: Tensor) -> None:
    """Save a picture (3, H, W) in [0, 1] as images/<name>-<step>.png and show it. Rank 0 alone."""
    pixels = (grid.detach().clamp(0, 1).permute(1, 2, 0).cpu() * 255).round().byte().numpy()
    folder = run_dir / "images"
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}-{step:08d}.png")
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            kwargs = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=step, **kwargs)


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
    with open(folder / f"{name}-{step:08d}.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([columns, *rows])
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_table"):
            tracker.log_table(name, columns=columns, data=rows, step=step)
