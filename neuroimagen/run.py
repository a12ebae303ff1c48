"""Run: what must be the same in every trainer: run directory, seed, step, checkpoints, stop signal, log.

A run directory is the contract between stages:

    config.yaml       the resolved config; starting in a directory whose config differs is an error
    environment.json  versions, commit, command, world size of the last start
    stats.jsonl       one line every `log_every` steps, averaged over steps and processes
    checkpoints/      step-00000500/, written as .partial and renamed when whole; the newest two are kept
    images/           pictures a stage logs
    model/            the exported weights (safetensors + config.json)
    PREEMPTED | DONE  how the last start ended

Nothing random is stored: before each step torch is seeded from (seed, step, rank), and noise that the losses see is a
slice of a draw for the global batch, the same for any number of processes. So the step number is the whole loader and
random state, and a run that is stopped and started again ends with the same bits.
"""

import dataclasses
import gc
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from neuroimagen import zero
from neuroimagen.config import TrainConfig

# Fields that change where or how loudly a run computes, never what: they may differ when a run is continued.
FREE_FIELDS = frozenset({"run_dir", "workers", "trackers", "project", "log_every", "checkpoint_every"})
STOPPED = 143  # exit code after SIGTERM (128 + 15): run the same command again

_stop_requested = False


def watch_stop_signal() -> None:
    """Make SIGTERM ask for a stop at the next step instead of killing the process."""
    global _stop_requested
    _stop_requested = False

    def request(signum: int, frame: Any) -> None:
        global _stop_requested
        _stop_requested = True

    signal.signal(signal.SIGTERM, request)


def stop_requested() -> bool:
    return _stop_requested


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old or the new content whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _claim(run_dir: Path, config: Any) -> str | None:
    """Create `run_dir` or check that it belongs to `config`; the error as a sentence, or None."""
    wanted = dataclasses.asdict(config)
    path = run_dir / "config.yaml"
    if path.exists():
        found = yaml.safe_load(path.read_text())
        changed = [k for k in sorted({*wanted, *found} - FREE_FIELDS) if wanted.get(k) != found.get(k)]
        if changed:
            listed = ", ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} here" for k in changed)
            return f"run_dir {run_dir} holds a run of another config ({listed}); choose another run_dir or delete it"
        return None
    if run_dir.exists() and any(run_dir.iterdir()):
        return f"run_dir {run_dir} is not empty and holds no config.yaml, so it is not a run; choose another run_dir"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    except OSError as error:
        return f"cannot write to run_dir {run_dir}: {error.strerror}"
    return None


def claim_run_dir(config: Any, accelerator: Accelerator) -> Path:
    """Create or re-enter `config.run_dir`; collective: every rank.

    Raises ValueError, on every rank, if the directory holds a run of another config (the keys are listed). Exits with
    code 0 if that run is already done.
    """
    run_dir = Path(config.run_dir)
    answer = [_claim(run_dir, config), (run_dir / "DONE").exists()] if accelerator.is_main_process else [None, False]
    broadcast_object_list(answer)
    if answer[0]:
        raise ValueError(answer[0])
    if answer[1]:
        accelerator.print(f"{run_dir} is already done")
        raise SystemExit(0)
    if accelerator.is_main_process:
        (run_dir / "PREEMPTED").unlink(missing_ok=True)
        write_atomic(run_dir / "environment.json", json.dumps(environment(accelerator), indent=1))
    return run_dir


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a reviewer asks about a run's surroundings: versions, commit, command, device, world size."""
    packages = ("neuroimagen", "torch", "accelerate", "diffusers", "transformers", "webdataset", "numpy", "deepspeed")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    device = accelerator.device
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()})",
        "world_size": accelerator.num_processes,
        "zero_stage": zero.stage_of(accelerator),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def make_accelerator(precision: str, **kwargs: Any) -> Accelerator:
    """An Accelerator that is what was asked for, or a ValueError: accelerate itself never complains."""
    modes = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    if precision not in modes:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(modes)}")
    plugin = zero.make_plugin(precision) if zero.asked_for() else None
    accelerator = Accelerator(
        mixed_precision="no" if plugin else modes[precision],  # zero.py does its own autocast
        deepspeed_plugin=plugin,
        # Every rank computes the same buffers; broadcasting them would break two forwards in one step.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        **kwargs,
    )
    if plugin:
        zero.check_accelerator(accelerator)
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != accelerator.num_processes:
        raise ValueError(
            f"{asked} processes were launched but accelerate sees {accelerator.num_processes}; without GPUs launch "
            "with ACCELERATE_USE_CPU=yes accelerate launch --multi_gpu --num_processes N"
        )
    if accelerator.device.type == "cpu" and precision == "fp16":
        raise ValueError("precision=fp16 does nothing on a CPU; use fp32 or bf16")
    if accelerator.device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{torch.cuda.get_device_name()} has no bf16; use precision=fp16 or fp32")
    return accelerator


def seed_from(*parts: Any) -> int:
    """A 63-bit seed that depends on all parts: stable over machines, processes and Python versions."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def warmup_cosine(step: int, max_steps: int, warmup: int = 0) -> float:
    """Learning-rate factor: linear warm-up over `warmup` steps, then half a cosine down to 0 at `max_steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, max_steps - warmup))))


def set_learning_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Run:
    """One training run; see the module's docstring for what it keeps and `trainers/` for how it reads."""

    def __init__(self, config: TrainConfig) -> None:
        """Collective: every rank. Raises ValueError for a config the machine or the directory cannot honour."""
        if config.trackers not in ("none", "tensorboard", "wandb"):
            raise ValueError(f"trackers={config.trackers!r} is not one of none, tensorboard, wandb")
        self.config = config
        trackers = None if config.trackers == "none" else config.trackers
        try:
            self.accelerator = make_accelerator(config.precision, log_with=trackers, project_dir=config.run_dir)
        except ImportError:
            raise ValueError(f'trackers={trackers} needs pip install "neuroimagen[{trackers}]"') from None
        self.world = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.zero_stage = zero.stage_of(self.accelerator)
        self._zero: zero.Zero | None = None
        self.batch_size, rest = divmod(config.global_batch_size, self.world)
        if rest or self.batch_size < 1:
            raise ValueError(
                f"global_batch_size={config.global_batch_size} does not divide among {self.world} processes"
            )
        self.dir = claim_run_dir(config, self.accelerator)
        watch_stop_signal()
        self.step = 0
        self.stopped = False
        self._draws = 0
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self._since = time.monotonic()
        self._bar: tqdm | None = None
        torch.manual_seed(seed_from(config.seed, "init"))  # the same initial weights on every rank
        self._start_trackers()

    def _start_trackers(self) -> None:
        if not self.accelerator.log_with:
            return
        path = self.dir / "tracker_id"
        if self.is_main and not path.exists():
            write_atomic(path, os.urandom(6).hex())
        options = {}
        if self.config.trackers == "wandb" and self.is_main:
            options = {
                "wandb": {"dir": str(self.dir), "id": path.read_text(), "resume": "allow", "name": self.dir.name}
            }
        plain = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in vars(self.config).items()}
        self.accelerator.init_trackers(self.config.project, plain, options)

    def prepare(self, *objects: Any) -> Any:
        """accelerate's prepare for models and optimizers (never loaders, see data/stream.py).

        BatchNorm becomes SyncBatchNorm, so that the statistics are those of the global batch.
        """
        prepared = []
        for item in objects:
            norms = item.modules() if isinstance(item, nn.Module) and self.world > 1 else ()
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norms):
                if self.device.type != "cuda":
                    raise ValueError("SyncBatchNorm needs GPUs: this model trains in one process on a CPU")
                item = nn.SyncBatchNorm.convert_sync_batchnorm(item)
            prepared.append(item)
        if self.zero_stage:
            assert self._zero is None
            self._zero = zero.Zero(self.accelerator, prepared, self.config.precision, self.batch_size)
            return self._zero.prepared
        return self.accelerator.prepare(*prepared)

    def register(self, **objects: Any) -> None:
        """Also keep these (each with state_dict and load_state_dict) in the checkpoints."""
        self.accelerator.register_for_checkpointing(*objects.values())

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model itself, for validation and export; unwrap anew each time. Collective: every rank."""
        if self._zero and model is self._zero.engine:
            return self._zero.unwrap()
        # Not accelerate's unwrap_model: it imports deepspeed wherever that is installed, which takes seconds.
        return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

    def _checkpoints(self) -> list[Path]:
        return sorted(p for p in (self.dir / "checkpoints").glob("step-*") if p.suffix != ".partial")

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; collective: every rank."""
        self.accelerator.wait_for_everyone()
        found = self._checkpoints()
        if found:
            zero.check_mark(found[-1], self.zero_stage, self.world)
            self.accelerator.load_state(str(found[-1]))
            self.step = int(found[-1].name.split("-")[1])
            self.accelerator.print(f"{self.dir}: continuing at step {self.step}")
        if self.is_main:
            stats = self.dir / "stats.jsonl"
            if stats.exists():  # what a killed run logged after its last checkpoint will be logged again
                lines = [line for line in stats.read_text().splitlines() if line.endswith("}")]
                kept = [line for line in lines if json.loads(line)["step"] <= self.step]
                write_atomic(stats, "".join(line + "\n" for line in kept))
            self._bar = tqdm(
                total=self.config.max_steps, initial=self.step, desc=self.dir.name, disable=None, dynamic_ncols=True
            )
        self._since = time.monotonic()

    def save(self) -> None:
        """Write checkpoints/step-N, whole or not at all; the newest two are kept. Collective: every rank."""
        final = self.dir / "checkpoints" / f"step-{self.step:08d}"
        if final.exists():
            return
        partial = final.with_suffix(".partial")
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.is_main:
            zero.mark(partial, self.zero_stage, self.world)
            os.replace(partial, final)
            for old in self._checkpoints()[:-2]:
                shutil.rmtree(old, ignore_errors=True)

    def going(self) -> bool:
        """True while there is a step to make. Seeds the step. Collective: every rank.

        False when done, or when any process got SIGTERM: then the state is saved and PREEMPTED marked.
        """
        stop = stop_requested()
        if self.world > 1:
            flag = torch.tensor(int(stop), device=self.device)
            stop = bool(self.accelerator.reduce(flag, "sum").item())
        if stop and self.step < self.config.max_steps:
            self.save()
            self.stopped = True
            if self.is_main:
                write_atomic(self.dir / "PREEMPTED", f"step {self.step}\n")
            return False
        if self.step >= self.config.max_steps:
            return False
        torch.manual_seed(seed_from(self.config.seed, self.step, self.rank))
        self._draws = 0
        return True

    def _draw(self, kind: Any, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(seed_from(self.config.seed, self.step, "draw", self._draws))
        self._draws += 1
        everyone = kind((shape[0] * self.world, *shape[1:]), generator=generator)
        return everyone[self.rank * shape[0] : (self.rank + 1) * shape[0]].to(self.device)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal noise: this rank's rows of one draw for the global batch, a function of (seed, step)."""
        return self._draw(torch.randn, shape)

    def rand(self, *shape: int) -> Tensor:
        """Uniform noise in [0, 1), drawn like `randn`."""
        return self._draw(torch.rand, shape)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate over ranks along the first axis (equal sizes). Collective: every rank."""
        return self.accelerator.gather(tensor)

    def backward(self, loss: Tensor) -> None:
        if self._zero:
            self._zero.backward(loss)
        else:
            self.accelerator.backward(loss)

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        """Clip the gradient to `norm` and return its norm before (known after the optimizer's step)."""
        if self._zero:
            return self._zero.optimizer.clip(norm)
        return self.accelerator.clip_grad_norm_(model.parameters(), norm)

    def advance(self, **values: Tensor | float) -> None:
        """Count one step: average `values` for the log, move the bar, checkpoint when due. Collective: every rank."""
        for name, value in values.items():
            value = value.detach().float() if torch.is_tensor(value) else torch.tensor(float(value))
            self._sums[name] = self._sums.get(name, 0.0) + value.to(self.device)
        self._counted += 1
        self.step += 1
        if self._bar is not None:
            self._bar.update()
        if self.step % self.config.log_every == 0 or self.step == self.config.max_steps:
            names = list(self._sums)
            means = torch.stack([self._sums[name] for name in names]) / self._counted
            if self.world > 1:
                means = self.accelerator.reduce(means, "mean")
            seconds = time.monotonic() - self._since
            line = dict(zip(names, means.tolist(), strict=True))
            for name, value in line.items():
                if not math.isfinite(value):
                    raise ValueError(
                        f"{self.dir}: {name} is {value} at step {self.step}; lower the learning rate or use "
                        "precision=fp32, in a new run_dir"
                    )
            line["samples_per_second"] = self._counted * self.config.global_batch_size / seconds
            self.log(line)
            if self._bar is not None:
                self._bar.set_postfix({k: f"{v:.3g}" for k, v in list(line.items())[:3]}, refresh=False)
            self._sums, self._counted, self._since = {}, 0, time.monotonic()
        if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
            self.save()

    def validation_due(self) -> bool:
        every = self.config.validate_every
        return self.step == self.config.max_steps or bool(every and self.step % every == 0)

    def log(self, values: dict[str, float], prefix: str = "") -> None:
        """Write to stats.jsonl and the tracker; values are the same on every rank."""
        values = {f"{prefix}{k}": float(v) for k, v in values.items()}
        if self.is_main:
            with open(self.dir / "stats.jsonl", "a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
            if prefix:
                shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
                tqdm.write(f"{self.dir.name} step {self.step}: {shown}")
        self.accelerator.log(values, step=self.step)

    def image(self, name: str, grid: Tensor) -> None:
        """Save a picture (3, H, W) in [0, 1] as images/<name>-<step>.png and show it in the tracker."""
        if not self.is_main:
            return
        pixels = (grid.detach().clamp(0, 1).permute(1, 2, 0).cpu() * 255).round().byte().numpy()
        folder = self.dir / "images"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}-{self.step:08d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                kwargs = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: pixels[None]}, step=self.step, **kwargs)

    def finish(self, **models: Any) -> int:
        """Export models to <run>/model (one) or <run>/model/<name> (several), mark DONE; the exit code to return.

        Each model has `save_pretrained(directory)`. After a stop signal nothing is exported and the code is 143.
        Collective: every rank.
        """
        if self._bar is not None:
            self._bar.close()
        if not self.stopped:
            self.save()
            models = {name: self.unwrap(m) if isinstance(m, nn.Module) else m for name, m in models.items()}
            if self.is_main:
                partial = self.dir / "model.partial"
                shutil.rmtree(partial, ignore_errors=True)
                for name, exported in models.items():
                    exported.save_pretrained(str(partial / name if len(models) > 1 else partial))
                shutil.rmtree(self.dir / "model", ignore_errors=True)
                os.replace(partial, self.dir / "model")
                write_atomic(self.dir / "DONE", f"step {self.step}\n")
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        return STOPPED if self.stopped else 0


def leave_process_group() -> None:
    """End a distributed process cleanly; call when no model is alive any more.

    gloo may hang or abort if the group is destroyed while a DDP model lives (measured), hence the garbage collection.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
