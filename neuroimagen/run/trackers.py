"""What a run logs: numbers, pictures and tables in its own directory, and in the tracker that accelerate drives."""

import contextlib
import csv
import json
import math
import os
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from neuroimagen.config import TrainConfig
from neuroimagen.files import naming, write_atomic
from neuroimagen.run.collectives import decided_by_main
from neuroimagen.run.directory import environment
from neuroimagen.shards.format import read_manifest

LOG_IN = "log in by `wandb login` or WANDB_API_KEY; WANDB_MODE=offline needs neither key nor network"


def start_trackers(accelerator: Accelerator, config: TrainConfig, run_dir: Path) -> None:
    """Open the tracker of `config.trackers`, on rank 0; a continued run keeps the id, and with it the curve.

    ValueError, on every rank, if it cannot be opened. Collective: every rank.
    """

    def start() -> None:
        known = identity(run_dir, Path(sys.argv[0]).stem, vars(config))
        options = {"wandb": known} if config.trackers == "wandb" else {}
        about = {**vars(config), **{f"environment/{k}": v for k, v in environment(accelerator).items()}}
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in about.items()}
        try:
            if config.trackers == "wandb":
                reach_wandb()
            accelerator.init_trackers(config.project, plain, options)
        except Exception as error:  # each tracker has errors of its own
            said = f"trackers={config.trackers} cannot start ({' '.join(str(error).split())[:200]})"
            if config.trackers == "wandb":
                said += f": {LOG_IN}"
            raise ValueError(said) from None

    if accelerator.log_with:
        decided_by_main(start)


def identity(run_dir: Path, stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb.init is given of a run: id, name, group (the folder it is in), job_type (its stage), tags.

    Group, job_type and tags are left to wandb's own variables where the environment has them.
    """
    path = run_dir / "tracker_id"
    if not path.exists():
        write_atomic(path, os.urandom(6).hex())
    tags = [f"seed {settings['seed']}"] if "seed" in settings else []
    tags += [str(settings["encoder"])] if settings.get("encoder") else []
    with contextlib.suppress(ValueError, OSError):  # shards that have moved since, or none
        tags += [read_manifest(settings["shards"]).dataset] if settings.get("shards") else []
    known: dict[str, Any] = {
        "WANDB_RUN_GROUP": ("group", run_dir.resolve().parent.name),
        "WANDB_JOB_TYPE": ("job_type", stage),
    }
    known |= {"WANDB_TAGS": ("tags", tags)}
    own = dict(what for variable, what in known.items() if variable not in os.environ)
    known_as = {"id": path.read_text(encoding="utf-8"), "resume": "allow", "name": run_dir.name}
    return {"dir": str(run_dir), **known_as, **own}


def reach_wandb() -> bool:
    """Whether wandb is online; OSError at once if its server cannot be reached, which it would try for a minute and a
    half."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun", "disabled"):
        return False
    if not urllib.request.getproxies():  # through them wandb has ways of its own
        address = urllib.parse.urlsplit(settings.base_url)
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((address.hostname, port), timeout=10).close()
    return True


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


def add_stats(run_dir: Path, step: int, values: dict[str, float]) -> None:
    """One line more of stats.jsonl. Rank 0 alone."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    path = run_dir / "stats.jsonl"
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **finite}) + "\n")


def cut_stats(run_dir: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint, which will be logged again. Rank 0 alone."""
    path = run_dir / "stats.jsonl"
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_atomic(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def log_image(accelerator: Accelerator, run_dir: Path, step: int, name: str, grid: Tensor) -> None:
    """Save a picture (3, H, W) in [0, 1] as images/<name>-<step>.png and show it. Rank 0 alone."""
    pixels = (grid.detach().clamp(0, 1).permute(1, 2, 0).cpu() * 255).round().byte().numpy()
    path = run_dir / "images" / f"{name}-{step:08d}.png"
    with naming(path):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    options = {"dataformats": "NHWC"} if "tensorboard" in [t.name for t in accelerator.trackers] else {}
    tell(accelerator, "log_images", {name: pixels[None]}, step=step, **options)


def log_table(
    accelerator: Accelerator, run_dir: Path, step: int, name: str, columns: list[str], rows: list[list[Any]]
) -> None:
    """Save a table as tables/<name>-<step>.csv, and show it where the tracker does. Rank 0 alone."""
    path = run_dir / "tables" / f"{name}-{step:08d}.csv"
    path.parent.mkdir(exist_ok=True)
    with naming(path), open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([columns, *rows])
    tell(accelerator, "log_table", name, columns=columns, data=rows, step=step)
