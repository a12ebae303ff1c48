"""A run directory is the contract between stages: of one config and its inputs, and of one run at a time.

config.yaml       the resolved config; starting in a directory whose config differs is an error
inputs.json       what it was made of (inputs.py); so is starting on inputs that have changed since
environment.json  versions, commit, command, world size of the last start
stats.jsonl       one line every `log_every` steps, averaged over steps and processes
checkpoints/      step-00000500/, written as .partial and renamed when whole; the newest two are kept
images/, tables/  pictures and tables a stage logs
model/            the exported weights (safetensors + config.json)
PREEMPTED | DONE | failed.txt  how the last start ended; none of them: it goes on, or was killed
"""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from neuroimagen.errors import sentence
from neuroimagen.files import Taken, claim, versions, write_atomic
from neuroimagen.pictures import list_pictures
from neuroimagen.rows import RUNS, adds_rows
from neuroimagen.run import inputs, zero
from neuroimagen.run.collectives import decided_by_main, wait_for_files
from neuroimagen.run.processes import variables
from neuroimagen.studies.captions import read_captions

# Fields that change where or how loudly a run computes, never what: they may differ when a run is continued.
FREE_FIELDS = frozenset(
    {"run_dir", "workers", "trackers", "project", "log_every", "checkpoint_every", "accumulate", "nonfinite"}
    | {"timeout_minutes", "loss_chunk"}
)


# Config fields that name a finished run -> its trainer
TRAINERS = RUNS | {"features": "pixel_features", "autoencoder": "latent_diffusion"}


def open_run(directory: str | Path, field: str) -> Path:
    """A finished run. field: what names it in a config (TRAINERS), or "reconstruct".

    Raises ValueError, which says how to make it or to continue it, if it is none or not finished.
    """
    path, trainer = Path(directory), f"trainers/{TRAINERS.get(field, field)}.py"
    named = f"{field}={directory}" if field in TRAINERS else directory
    if not (path / "config.yaml").exists():
        raise ValueError(f"{named} is not a run; run {trainer} run_dir={directory} first")
    if not (path / "DONE").exists():
        raise ValueError(
            f"{named} is not finished (no DONE); continue it with: python {trainer} config={path / 'config.yaml'}"
        )
    return path


def inputs_of(config: Any, fields: Iterable[str] | None = None) -> inputs.Inputs:
    """The inputs that a trainer's config names, as they are now. ValueError for one that cannot be read."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    look: dict[str, Callable[[str], dict[str, Any]]] = {
        "shards": inputs.of_shards,
        "images": lambda folder: inputs.of_files(folder, list_pictures(folder)),
        "captions": lambda path: {} if path == "label" else read_captions(path),
        "pipeline": lambda name: inputs.of_pipeline(name, text_alone="encoder" in given),
        "init": inputs.of_pipeline,
        "text_features": lambda path: inputs.hashes({Path(path).name: Path(path)}),
        "image_features": lambda path: inputs.hashes({Path(path).name: Path(path)}),
        "image_prompt": inputs.of_adapter,
        "pretrained": lambda name: inputs.of_model(name) if Path(name).is_dir() else {},
    }
    runs = set(TRAINERS)
    if isinstance(given.get("features"), list):  # files, not a run
        look["features"] = lambda paths: inputs.hashes({Path(path).name: Path(path) for path in paths})
        runs.remove("features")
    found = {}
    for field in (name for name in fields or dict.fromkeys((*look, *TRAINERS)) if given.get(name)):
        value = given[field]
        if field in RUNS and not (Path(value) / "DONE").exists():
            continue  # decoders.py asks for it if a row needs it
        if content := inputs.of_model(open_run(value, field) / "model") if field in runs else look[field](value):
            found[field] = {"path": str(value), "content": content}
    for field in (field for field in found if field in runs and "shards" in found):
        then = inputs.read(Path(given[field]) / "inputs.json")
        if said := inputs.changes(then, {"shards": found["shards"]}):
            inputs.note(f"{field}={given[field]} was made of {said}: it may have been trained on what is test here")
    return found


def check_inputs(run_dir: Path, now: inputs.Inputs) -> None:
    """ValueError if these are not, or no longer, the inputs that the run was begun with."""
    inputs.check(inputs.read(run_dir / "inputs.json"), now, f"run_dir {run_dir}", "choose another run_dir or delete it")


def _begun(run_dir: Path) -> bool:
    """Whether anything there was made of its inputs; if not, as after an error about one of them, they may change."""
    return any(any(run_dir.glob(name)) for name in ("DONE", "rows.json", "checkpoints/step-*[0-9]"))


def _claim(run_dir: Path, config: Any, now: inputs.Inputs) -> bool:
    """Create `run_dir`; ValueError if there is one that does not belong to `config` and the inputs there are now.

    True if there is one that `config` adds to, as a reconstruct run may be given further rows.
    """
    wanted = dataclasses.asdict(config)
    path = run_dir / "config.yaml"
    if path.exists():
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        # A field that there was not yet when the run began had the effect of its default.
        fields = dataclasses.fields(config)
        found = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | found
        then = inputs.read(run_dir / "inputs.json")
        same = (k for k in now if k in then and now[k]["content"] == then[k]["content"])
        moved = {k for k in same if [*now[k]["content"]] == [*then[k]["content"]]}  # a list has an order, too
        changed = [k for k in sorted({*wanted, *found} - FREE_FIELDS - moved) if wanted.get(k) != found.get(k)]
        more = bool(changed) and "rows" in wanted and adds_rows(found, wanted, changed)
        if changed and not more:
            listed = ", ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} here" for k in changed)
            raise ValueError(
                f"run_dir {run_dir} holds a run of another config ({listed}); choose another run_dir or delete it"
            )
        if _begun(run_dir):
            check_inputs(run_dir, now)
        return more
    if run_dir.exists() and any(run_dir.iterdir()):
        raise ValueError(
            f"run_dir {run_dir} is not empty and holds no config.yaml, so it is not a run; choose another run_dir"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    _write_config(run_dir, config)
    return False


def _write_config(run_dir: Path, config: Any) -> None:
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_atomic(run_dir / "config.yaml", text)


FAILED = "failed.txt"
_held: dict[Path, int] = {}  # run directory -> descriptor of its lock file, open while this process works there


def release(run_dir: Path) -> None:
    """Let another process have `run_dir`."""
    if run_dir in _held:
        os.close(_held.pop(run_dir))


def keep_failure(error: Exception) -> None:
    """Write what ended the run in the directory that this process holds, for `neuroimagen status`."""
    said = sentence(error) or f"a bug of neuroimagen: {type(error).__name__}: {error}"
    for run_dir in _held:
        with contextlib.suppress(OSError):
            write_atomic(run_dir / FAILED, said + "\n")


def claim_run_dir(config: Any, accelerator: Accelerator) -> bool:
    """Create or re-enter `config.run_dir`, unless its run is already done; whether it is. Collective: every rank.

    Raises ValueError, on every rank, if the directory holds a run of another config (the keys are listed) or of other
    inputs (what changed is said), or if another process works in it.
    """
    run_dir = Path(config.run_dir)

    def enter() -> bool:
        now = inputs_of(config)
        try:
            more = _claim(run_dir, config, now)
            if (run_dir / "DONE").exists() and not more:
                return True
            if run_dir not in _held:
                _held[run_dir] = claim(run_dir / "lock", "start only one run there")
            if more:
                (run_dir / "DONE").unlink(missing_ok=True)
            if more or not _begun(run_dir):
                write_atomic(run_dir / "inputs.json", json.dumps(now, indent=1))
            if more:  # the last: until then the same command finds that it has something to add
                _write_config(run_dir, config)
            for mark in ("PREEMPTED", FAILED):
                (run_dir / mark).unlink(missing_ok=True)
            write_atomic(run_dir / "environment.json", json.dumps(environment(accelerator), indent=1))
            return False
        except Taken as holder:
            raise ValueError(
                f"run_dir {run_dir} is in use by {holder}; wait for that run, stop it, or choose another run_dir"
            ) from None
        except OSError as error:
            release(run_dir)
            raise ValueError(f"cannot write to run_dir {run_dir}: {error.strerror}") from None

    if done := decided_by_main(enter):
        accelerator.print(f"{run_dir} is already done")
    else:
        wait_for_files([run_dir / "config.yaml"])
    return done


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a reviewer asks about a run's surroundings: versions, commit, command, device, world size."""
    packages = ("neuroimagen", "torch", "accelerate", "diffusers", "transformers", "webdataset", "numpy", "deepspeed")
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # a full disk would leave a stale lock in the repository
    describe = ["git", "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, env=quiet).stdout
        commit = said.decode("utf-8", "replace").strip()
    except OSError:  # there is no git
        commit = ""
    device = accelerator.device
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions(*packages),
        "commit": commit or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()})",
        "world_size": accelerator.num_processes,
        "zero_stage": zero.stage_of(accelerator),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "variables": variables(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
