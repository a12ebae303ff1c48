"""Run: what must be the same in every trainer: run directory, seed, step, checkpoints, stop signal, log.

Nothing random is stored: before each step torch is seeded from (seed, step, rank), and noise that the losses see is a
slice of a draw for the global batch, the same for any number of processes. So the step number is the whole loader and
random state, and a run that is stopped and started again ends with the same bits (on GPUs: deterministic=true).
"""

import contextlib
import faulthandler
import json
import math
import resource
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from neuroimagen.config import TrainConfig
from neuroimagen.files import write_atomic
from neuroimagen.run import checkpoints, processes, zero
from neuroimagen.run.collectives import decided_by_main, gather_objects
from neuroimagen.run.directory import check_inputs, claim_run_dir, inputs_of, release
from neuroimagen.run.seeds import seed_from
from neuroimagen.run.trackers import add_stats, cut_stats, log_image, log_table, start_trackers, tell

MAX_SKIPPED = 20  # steps in a row without a finite loss: the run has diverged


def warmup_cosine(step: int, max_steps: int, warmup: int = 0) -> float:
    """Learning-rate factor: linear warm-up over `warmup` steps, then half a cosine down to 0 at `max_steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, max_steps - warmup))))


def set_learning_rate(optimizer: Any, *rates: float) -> None:
    """One for each parameter group of the optimizer."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class Run:
    """One training run; see the module's docstring for what it keeps and `trainers/` for how it reads."""

    def __init__(self, config: TrainConfig) -> None:
        """Collective: every rank. Raises ValueError for a config the machine or the directory cannot honour."""
        config.check()
        self.config = config
        trackers = None if config.trackers == "none" else config.trackers
        processes.set_deterministic(config.deterministic)
        self.accelerator = processes.make_accelerator(
            config.precision, config.timeout_minutes, config.tf32, log_with=trackers, project_dir=config.run_dir
        )
        if trackers and not self.accelerator.log_with:  # accelerate leaves out in silence what is not installed
            raise ValueError(f'trackers={trackers} needs pip install "neuroimagen[{trackers}]"')
        self.world = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        if config.compile:
            switches = {"TORCHDYNAMO_DISABLE": ("", "0"), "TORCH_COMPILE_DISABLE": ("", "0")}
            processes.refuse_variables(switches, "and compile=true would do nothing")
        self.zero_stage = zero.stage_of(self.accelerator)
        self._zero: zero.Zero | None = None
        if config.tf32 and self.device.type != "cuda":
            raise ValueError("tf32 is a mode of NVIDIA GPUs and there is none here; leave it out")
        self.batch_size, rest = divmod(config.global_batch_size, self.world)
        if rest or self.batch_size % config.accumulate:
            raise ValueError(
                f"global_batch_size={config.global_batch_size} does not divide among {self.world} processes"
                + (f" x accumulate={config.accumulate}" if config.accumulate != 1 else "")
            )
        self.dir = Path(config.run_dir)
        self.done = claim_run_dir(config, self.accelerator)  # then there is nothing to do: main returns 0
        if self.done:
            return
        processes.watch_stop_signal()
        self.step = 0
        self.stopped = False
        self._draws = 0
        self._stop_seen: bool | None = None  # whether a rank was asked to stop, as of the last `backward`
        self._models: list[nn.Module] = []
        self._bad = False  # this step met a loss that is not finite
        self._skipped = self._skipped_in_a_row = 0
        self._bad_trials: set[str] = set()  # of this rank, since it started
        self._since, self._validation_began = time.monotonic(), 0.0
        self._bar = tqdm(disable=True)
        self._clear()
        torch.manual_seed(seed_from(config.seed, "init"))  # the same initial weights on every rank
        start_trackers(self.accelerator, config, self.dir)

    @property
    def share(self) -> dict[str, Any]:
        """What `eval_batches` needs of a run."""
        allowed = self.config.max_bad_samples
        return {"batch_size": self.batch_size, "rank": self.rank, "world": self.world, "max_bad_samples": allowed}

    @property
    def position(self) -> dict[str, Any]:
        """What `train_batches` needs of a run, to go on at its step."""
        workers, device = self.config.workers, self.device
        return {**self.share, "step": self.step, "seed": self.config.seed, "workers": workers, "device": device}

    def prepare(self, *objects: Any) -> Any:
        """accelerate's prepare for models and optimizers (never loaders, see batches/stream.py).

        BatchNorm becomes SyncBatchNorm, so that the statistics are those of the global batch.
        """
        prepared = []
        for item in objects:
            norms = item.modules() if isinstance(item, nn.Module) and self.world > 1 else ()
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norms):
                if self.device.type != "cuda":
                    raise ValueError("SyncBatchNorm needs GPUs: this model trains in one process on a CPU")
                item = nn.SyncBatchNorm.convert_sync_batchnorm(item)
            if self.config.compile and isinstance(item, nn.Module):
                if self.zero_stage:
                    raise ValueError("compile is not offered under DeepSpeed: launch with launch/one_node.yaml")
                item.compile()  # in place: weights keep their names
            prepared.append(item)
        if self.zero_stage:
            if self.config.accumulate > 1:
                raise ValueError(
                    "accumulate is not offered under DeepSpeed: launch more processes, or use accumulate=1"
                )
            self._zero = zero.Zero(self.accelerator, prepared, self.config.precision, self.batch_size)
            return self._zero.prepared
        done = self.accelerator.prepare(*prepared)
        self._models += [m for m in (done if isinstance(done, tuple) else (done,)) if isinstance(m, nn.Module)]
        return done

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model itself, for validation and export; unwrap anew each time. Collective: every rank."""
        if self._zero and model is self._zero.engine:
            return self._zero.unwrap()
        # Not accelerate's unwrap_model: it imports deepspeed wherever that is installed, which takes seconds.
        return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; called once the inputs are loaded.

        ValueError, on every rank, if these were changed meanwhile, or as checkpoints.load. Collective: every rank.
        """
        decided_by_main(lambda: check_inputs(self.dir, inputs_of(self.config)))
        self.step = checkpoints.load(self.dir, self.accelerator, self._models)
        if self.is_main:
            cut_stats(self.dir, self.step)
            total, name = self.config.max_steps, self.dir.name
            self._bar = tqdm(total=total, initial=self.step, desc=name, disable=None, dynamic_ncols=True)
        self._since = time.monotonic()

    def save(self) -> None:
        """checkpoints.save of this step. Collective: every rank."""
        checkpoints.save(self.dir, self.step, self.accelerator)

    def _any_rank(self, *conditions: bool) -> list[bool]:
        """Whether each holds on any rank. Collective: every rank."""
        if self.world == 1:
            return list(conditions)
        flags = torch.tensor(conditions, dtype=torch.int32, device=self.device)
        return [flag > 0 for flag in self.accelerator.reduce(flags, "sum").tolist()]

    def going(self) -> bool:
        """True while there is a step to make, which is then seeded. Collective: every rank.

        False when done, or when any process got SIGTERM: then the state is saved and PREEMPTED marked.
        """
        if self._validation_began:  # validation is not training time
            self._since += time.monotonic() - self._validation_began
            self._validation_began = 0.0
        # A rank that makes no step for so long prints where it is, before its peers' collectives give up.
        # One rank after the other, for they may write to one file.
        faulthandler.dump_traceback_later((54 + self.rank % 8 / 2) * self.config.timeout_minutes, file=2)
        if self.world == 1 or self._stop_seen is None:
            (self._stop_seen,) = self._any_rank(processes.stop_requested())
        if self._stop_seen and self.step < self.config.max_steps:
            self.save()
            self.stopped = True
            if self.is_main:
                write_atomic(self.dir / "PREEMPTED", f"step {self.step}\n")
            return False
        if self.step >= self.config.max_steps:
            return False
        self.reseed()
        self._draws, self._bad, self._stop_seen = 0, False, None
        return True

    def reseed(self) -> None:
        """Seed torch for this step and rank; a second time in a step, it draws (dropout) what it drew before."""
        torch.manual_seed(seed_from(self.config.seed, self.step, self.rank))

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

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate over ranks along the first axis; each may have another number of rows. Collective: every rank."""
        return torch.cat(gather_objects(rows.cpu())).to(self.device)

    def next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next batch, on this rank's device. Logged: the time it takes, data_seconds; with max_bad_samples, how
        many different trials were replaced, counted by each rank since its start, bad_trials."""
        began = time.monotonic()
        batch = self.to_device(next(batches))
        self._waited += time.monotonic() - began
        self._bad_trials.update(batch["skipped"] if self.config.max_bad_samples else ())
        return batch

    def parts(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Cut this rank's batch into `accumulate` equal parts; gradients are reduced over ranks with the last.

        `backward` once a part gives the gradient of the mean over the batch, in less memory.
        """
        size = self.batch_size // self.config.accumulate
        for start in range(0, self.batch_size, size):
            with contextlib.ExitStack() as local:
                if start + size < self.batch_size:
                    for model in self._models:
                        local.enter_context(self.accelerator.no_sync(model))
                yield {name: values[start : start + size] for name, values in batch.items()}

    def backward(self, loss: Tensor, keys: list[str], /, **terms: Tensor) -> None:
        """Gradients of `loss`; its `terms` are noted for the log. Collective: every rank.

        keys: the samples that `loss` is of. If it or a term is not finite on any rank, these are written to
        nonfinite-<step>-rank<r>.json and the run stops with a ValueError, on every rank, or, with nonfinite=skip, the
        step changes no weight.
        """
        if self._bad:
            return
        values = {"total": loss, **terms}
        bad = [name for name, value in reversed(values.items()) if not torch.isfinite(value)]
        stop = processes.stop_requested()
        bad_anywhere, self._stop_seen = self._any_rank(bool(bad), stop)  # one exchange a step for both
        if not bad_anywhere:
            self.note(**terms)
            if self._zero:
                self._zero.backward(loss)
            else:
                self.accelerator.backward(loss / self.config.accumulate)
            return
        self._bad = True
        said = f"{self.dir}: step {self.step}: the loss of another rank is not finite"
        if bad:
            file = self.dir / f"nonfinite-{self.step:08d}-rank{self.rank}.json"
            listed = {name: str(value.item()) for name, value in values.items()}
            write_atomic(file, json.dumps({"step": self.step, "rank": self.rank, **listed, "keys": keys}, indent=1))
            said = f"{self.dir}: step {self.step}, rank {self.rank}: {bad[0]} is {values[bad[0]].item()} ({file.name})"
        if self.config.nonfinite == "stop":
            raise ValueError(f"{said}; look at those samples, lower the learning rate or use precision=fp32")
        if bad:
            print(f"{said}; skipped", file=sys.stderr, flush=True)

    def update(self, optimizer: Any, model: nn.Module, clip: float = 0.0, name: str = "grad_norm") -> None:
        """Clip the gradients of `model` to norm `clip` (0: not), make the optimizer's step, clear the gradients.

        model: all that the optimizer trains. What one `backward` reaches belongs to one optimizer, with parameter
        groups if need be: in fp16 the step may change the loss scale, and a second optimizer would divide by the new.
        """
        if not self._bad:
            if self._zero:
                norm = self._zero.clip(clip)
            else:  # accelerate's clip_grad_norm_ would divide the gradients of every optimizer by the loss scale
                self.accelerator.unscale_gradients(optimizer)
                norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
            optimizer.step()
            self.note(**{name: norm})
        optimizer.zero_grad()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps, self._waited = 0, 0.0

    def note(self, **values: Tensor | float) -> None:
        """Values for the next line of the log, which has their means over steps, parts and ranks."""
        for name, value in values.items():
            value = value.detach().float() if torch.is_tensor(value) else torch.tensor(float(value))
            self._sums[name] = self._sums.get(name, 0.0) + value.to(self.device)
            self._counts[name] = self._counts.get(name, 0) + 1

    def advance(self, **values: Tensor | float) -> None:
        """Count one step, note `values`, log, move the bar, checkpoint when due. Collective: every rank."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._bad else 0
        self._skipped += self._bad
        if self._skipped_in_a_row > MAX_SKIPPED:
            raise ValueError(f"{self.dir}: no finite loss in {MAX_SKIPPED} steps up to {self.step}: it has diverged")
        if not self._bad:
            self.note(**values)
        self._steps += 1
        self.step += 1
        self._bar.update()
        if self.step % self.config.log_every == 0 or self.step == self.config.max_steps:
            self._log_means()
        if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
            self.save()

    def _log_means(self) -> None:
        names, line = list(self._sums), {}
        if names:
            means = torch.stack([self._sums[name] / self._counts[name] for name in names])
            if self.world > 1:
                means = self.accelerator.reduce(means, "mean")
            line = dict(zip(names, means.tolist(), strict=True))
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in list(line.items())[:3]}, refresh=False)
        seconds = time.monotonic() - self._since
        line["samples_per_second"] = self._steps * self.config.global_batch_size / seconds
        line["samples_per_second_per_device"] = line["samples_per_second"] / self.world
        line["step_seconds"], line["data_seconds"] = seconds / self._steps, self._waited / self._steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        line["memory_gb"] = peak / 1e9  # rank 0's: GPU memory, or the process's without one
        if self._skipped:
            line["skipped"] = self._skipped
        if self.config.max_bad_samples:
            count = torch.tensor(len(self._bad_trials), device=self.device)
            line["bad_trials"] = self.accelerator.reduce(count, "sum").item()
        self.log(line)
        self._clear()
        self._since = time.monotonic()

    def validation_due(self) -> bool:
        every = self.config.validate_every
        due = self.step == self.config.max_steps or bool(every and self.step % every == 0)
        self._validation_began = time.monotonic() if due else 0.0
        return due

    def log(self, values: dict[str, float], prefix: str = "") -> None:
        """Write to stats.jsonl and the tracker; values are the same on every rank."""
        values = {f"{prefix}{k}": float(v) for k, v in values.items()}
        if self.is_main:
            add_stats(self.dir, self.step, values)
            if prefix:
                shown = ", ".join(f"{name.removeprefix(prefix)} {value:.3g}" for name, value in values.items())
                line = f"{self.dir.name} step {self.step}: {prefix.strip('/')} {shown}"
                tqdm.write(textwrap.shorten(line, 80, placeholder=" ..."))  # all of them: stats.jsonl
                for path in sorted((self.dir / "images").glob(f"*-{self.step:08d}.png")):
                    tqdm.write(f"  {path}")
        tell(self.accelerator, "log", values, step=self.step)

    def image(self, name: str, grid: Tensor) -> None:
        """trackers.log_image of a picture (3, H, W) in [0, 1]."""
        if self.is_main:
            log_image(self.accelerator, self.dir, self.step, name, grid)

    def class_table(self, name: str, guesses: Tensor, labels: Tensor, names: dict[int, str]) -> None:
        """trackers.log_table of each class's accuracy. guesses, labels: (n,); names: label -> class name."""
        if self.is_main:
            right = {label: (guesses == label)[labels == label] for label in labels.unique().tolist()}
            rows = [[names[label], len(ours), ours.double().mean().item()] for label, ours in right.items()]
            log_table(self.accelerator, self.dir, self.step, name, ["class", "trials", "accuracy"], rows)

    def finish(self, **models: Any) -> int:
        """checkpoints.export of `models`; the exit code to return: after a stop signal, with nothing exported, 143.

        ValueError, on every rank, if the shards, which are read to the end, were changed since the run began.
        Collective: every rank.
        """
        faulthandler.cancel_dump_traceback_later()
        self._bar.close()
        if not self.stopped:
            self.save()
            decided_by_main(lambda: check_inputs(self.dir, inputs_of(self.config, ["shards"])))
            models = {name: self.unwrap(m) if isinstance(m, nn.Module) else m for name, m in models.items()}
            checkpoints.export(self.dir, self.step, self.accelerator, models)
        tell(self.accelerator, "finish")
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        release(self.dir)
        return processes.STOPPED if self.stopped else 0
