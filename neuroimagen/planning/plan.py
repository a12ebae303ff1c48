"""`neuroimagen plan OVERLAY...`: what launch/paper.sh will run, on what, for how long, before anything starts.

launch/paper.sh itself says which commands it would give (DRY=1). Each one's config is read and checked as its stage
does it, so a wrong field of the last stage is found before the first one starts. What is written, shards of a few
trials and the trainers' beginnings, is in a folder that is removed again.
"""

import contextlib
import dataclasses
import functools
import os
import re
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from neuroimagen.config import load_config, option, path_option
from neuroimagen.errors import sentence
from neuroimagen.pages import render
from neuroimagen.pixel.losses import check_batch
from neuroimagen.planning.counts import SOME, Counts, of_shards, of_study
from neuroimagen.planning.rehearsal import Rehearsed, of_pipeline, rehearse, whole
from neuroimagen.planning.status import logged, span
from neuroimagen.report.report import ReportConfig
from neuroimagen.rows import ROWS, rows_to_draw
from neuroimagen.sample.captions import CaptionsConfig
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.shards.tars import ShardsConfig

PAPER = Path("launch/paper.sh")
COMMANDS = {"shards": ShardsConfig, "captions": CaptionsConfig, "evaluate": EvaluateConfig, "report": ReportConfig}
HEADS = ["stage", "processes", "work", "parameters", "memory", "disk", "time"]


@dataclasses.dataclass
class PlanConfig:
    """`neuroimagen plan`"""

    overlays: list[str] = option([], "the OVERLAY.yaml files that launch/paper.sh is given")
    runs: str = path_option("RUNS", "directory that launch/paper.sh fills; runs there tell how fast they went")
    mode: Literal["local", "slurm"] = option("local", "how launch/paper.sh runs it")
    shards: str = path_option("", "shards to count trials in; empty: RUNS/shards, or the study's own files")
    measure: float = option(0.0, "make real steps of each trainer here, in so many s in all; 0: none")


class Step(NamedTuple):
    """name: of paper.sh; line: the whole command; words: from the trainer, or from `neuroimagen`, on; processes: None
    if SLURM will say"""

    name: str
    line: str
    words: list[str]
    processes: int | None


@dataclasses.dataclass
class Row:
    """A line of the table, as far as it is known. numbers: of what is trained; disk: bytes; source: r, m, of RULES"""

    name: str
    work: str = ""
    processes: int | None = 1
    numbers: int | None = None
    memory: str = ""
    disk: float | None = None
    seconds: float | None = None
    source: str = ""

    def cells(self) -> list[str]:
        time = "?" if self.seconds is None else f"{span(self.seconds)} {self.source}"
        time = f"done ({time.removesuffix(' done')})" if self.source == "done" else time
        count = "" if self.numbers is None else f"{self.numbers / 1e6:.2f} M"
        processes = "?" if self.processes is None else str(self.processes)
        return [self.name, processes, self.work, count, self.memory, size(self.disk), time]


def size(n_bytes: float | None) -> str:
    """1.2 GB"""
    if n_bytes is None:
        return "?"
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def steps_of(config: PlanConfig) -> list[Step]:
    """What paper.sh would do; ValueError if it refuses."""
    if not PAPER.exists():
        raise ValueError(f"{PAPER} is not here: give this command in the root of the repository")
    if not config.overlays:
        raise ValueError("name the overlays of the study: neuroimagen plan OVERLAY.yaml ... (configs/ holds some)")
    command = ["bash", str(PAPER), config.mode, config.runs, *config.overlays]
    done = subprocess.run(
        command, env={**os.environ, "DRY": "1"}, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise ValueError(done.stderr.strip().removeprefix("error: ") or f"{PAPER} ended with code {done.returncode}")
    lines, found = done.stdout.splitlines(), []
    for head, line in zip(lines, lines[1:], strict=False):
        if head.startswith("== "):
            words = shlex.split(line)
            start = max(i for i, word in enumerate(words) if re.match(r"trainers/\w+\.py$|neuroimagen(\.cli)?$", word))
            processes = 1 if words[start] == "neuroimagen" else _processes(words[:start])  # which sbatch starts once
            found.append(Step(head.split()[1], line.rstrip(), words[start:], processes))
    return found


def _processes(launcher: list[str]) -> int | None:
    """How many processes a launcher starts, None if that is not said there."""
    said = {a.lstrip("-"): b for a, b in zip(launcher, launcher[1:], strict=False) if a.startswith("-")}
    said |= dict(word.lstrip("-").split("=", 1) for word in launcher if "=" in word)
    if launcher[:1] == ["sbatch"]:
        each = said.get("gpus-per-node") or os.environ.get("NPROC_PER_NODE") or ""
        with contextlib.suppress(ValueError):
            return int(said.get("nodes") or said.get("N") or 1) * int(each.rpartition(":")[2])
        return None
    if "config_file" in said and "num_processes" not in said:
        said |= yaml.safe_load(Path(said["config_file"]).read_text(encoding="utf-8"))
    return int(said.get("num_processes", 1))


@functools.cache
def _trainer(path: str) -> dict[str, Any]:
    """What a trainer's file holds, without running it."""
    return runpy.run_path(path, run_name="planned")


def checked(step: Step) -> tuple[Any, Callable[[Any], int] | None]:
    """The config of a step, checked as the step itself does it, and a trainer's `main`. ValueError if it is wrong."""
    if step.words[0].endswith(".py"):
        held, stage, arguments = _trainer(step.words[0]), Path(step.words[0]).stem, step.words[1:]
        declared = (each for name, each in held.items() if name.endswith("Config") and each.__module__ == "planned")
        main, kind = held["main"], next(declared)
    else:
        main, kind, stage, arguments = None, COMMANDS[step.words[1]], step.words[1], step.words[2:]
    config = load_config(kind, arguments, stage)
    if hasattr(config, "check"):
        config.check()
    return config, main


def suits(config: Any, counts: Counts, processes: int | None) -> None:
    """ValueError if a trainer's config does not go with the trials or the processes; what its main asks first."""
    study = counts.manifest
    if hasattr(config, "check_eeg"):
        config.check_eeg(study.n_times, study.sfreq)
    if hasattr(config, "classes_per_batch"):
        balance = config.classes_per_batch, config.trials_per_class
        check_batch(config.global_batch_size, counts.trials["train"], len(study.classes), *balance)
    if hasattr(config, "max_steps") and processes and config.global_batch_size % (processes * config.accumulate):
        raise ValueError(f"global_batch_size={config.global_batch_size} does not divide among {processes} processes")


def trained(row: Row, config: Any, found: Rehearsed) -> None:
    """Fill in the row of a trainer: what was found when it was started, and how it went in RUNS, if it did."""
    row.work, lines = f"{config.max_steps:,} steps of {config.global_batch_size}", steps_logged(config)
    if not found.refused:
        row.numbers, twice = found.trained, min(2, -(-config.max_steps // (config.checkpoint_every or 1 << 60)))
        row.disk = float(twice * (found.saved + 8 * found.trained) + found.exported)
        row.memory = f">= {size(16.0 * found.trained + found.averaged)}"
    if lines:
        row.seconds, row.source = statistics.mean(line["step_seconds"] for line in lines) * config.max_steps, "r"
        row.memory = f"{max(line['memory_gb'] for line in lines):.1f} GB"
    elif found.seconds:
        row.seconds, row.memory = whole(config, found.seconds), f"{found.memory:.1f} GB"
        row.source = "m" * (row.seconds is not None)


def steps_logged(config: Any) -> list[dict[str, Any]]:
    return [line for line in logged(Path(config.run_dir)) if "step_seconds" in line]


def drawn(row: Row, config: Any, counts: Counts, map_size: int) -> None:
    """Fill in the row of reconstruct."""
    here = of_pipeline(config.pipeline)
    rows, trials = rows_to_draw(config.rows, vars(config)), counts.trials[config.split]
    trials = min(trials, config.limit or trials)
    pictures, side = trials * len(rows) * config.samples, config.image_size or here.get("size")
    row.work = f"{pictures:,} pictures" + (f" of {side} px" if side else "")
    there = [path.stat() for path in Path(config.run_dir, "images").glob("*/*.png")]
    if side:
        each = statistics.mean(known.st_size for known in there) if there else counts.png(side)
        maps = counts.png(map_size) if any(ROWS[name].map for name in rows) else 0.0
        row.disk = pictures * each + trials * (counts.png(side) + maps)
    if "bytes" in here:
        row.memory = f">= {size(here['bytes'])}"
    if len(there) > 1:
        times = [known.st_mtime for known in there]
        row.seconds, row.source = (max(times) - min(times)) / (len(times) - 1) * pictures, "r"


def table(rows: list[Row]) -> str:
    cells = [HEADS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


class Plan:
    """The steps of a study, what is wrong with them (one sentence each), and, if nothing is, what they take.

    folder: one that is there, for shards and the trainers' run directories."""

    def __init__(self, config: PlanConfig, folder: Path) -> None:
        self.config, self.folder, self.steps = config, folder, steps_of(config)
        self.faults: list[str] = []
        self.notes: dict[str, None] = {}
        self.configs: dict[str, Any] = {}
        self.mains: dict[str, Any] = {}  # of trainers
        for step in self.steps:
            if found := self._attempt(step.name, checked, step):
                self.configs[step.name], self.mains[step.name] = found
        made, steps = config.shards or f"{config.runs}/shards", config.measure > 0
        self.trainers = {name: about for name, about in self.configs.items() if hasattr(about, "max_steps")}
        self.counts: Counts | None = None
        if config.shards or Path(made, "manifest.json").exists():
            self.counts = self._attempt("shards", of_shards, made)
        elif "shards" in self.configs:
            most = max([SOME, *(steps * about.global_batch_size for about in self.trainers.values())])
            self.counts = self._attempt("shards", of_study, self.configs["shards"], folder / "shards", most)
        names = [step.name for step in self.steps]
        for step in (step for step in self.steps if step.name in self.configs):
            about = self.configs[step.name]
            if self.counts:
                self._attempt(step.name, suits, about, self.counts, step.processes)
            captions = getattr(about, "captions", "label")
            if captions != "label" and "captions" not in names and not Path(captions).is_file():
                self.faults.append(
                    f"{step.name}: captions={captions} is not there: put it there, or leave CAPTIONS out"
                )

    def _attempt(self, name: str, work: Callable[..., Any], *given: Any) -> Any:
        try:
            return work(*given)
        except (ValueError, OSError) as error:
            self.faults.append(f"{name}: {sentence(error)}")

    def rows(self) -> list[Row]:
        """The table, once the trainers were started."""
        assert self.counts and not self.faults
        processes = {step.name: step.processes for step in self.steps}
        begin = {name: (self.mains[name], about, processes[name] or 1) for name, about in self.trainers.items()}
        found = dict(rehearse(begin, self.counts.shards, self.folder, self.config.measure))
        rows = [Row(name, processes=count) for name, count in processes.items()]
        for row, about in ((row, self.configs[row.name]) for row in rows):
            if row.name in self.trainers:
                trained(row, about, found[row.name])
                if hasattr(about, "pipeline") and "text" not in of_pipeline(about.pipeline):
                    self.notes[f"{about.pipeline} is not on this machine: embeddings of 77 x 768 are taken"] = None
                if refused := found[row.name].refused:
                    self.notes[f"{row.name} cannot be started here: {refused}"] = None
            elif row.name == "reconstruct":
                drawn(row, about, self.counts, self.configs["pixel_saliency"].image_size)
            elif row.name == "shards":
                row.work, row.disk = f"{sum(self.counts.trials.values()):,} trials", self.counts.disk
                row.seconds, row.source = self.counts.seconds, "m" if self.counts.seconds is not None else "done"
            if hasattr(about, "run_dir") and (Path(about.run_dir) / "DONE").exists():
                row.source = "done"
        return rows


def plan(config: PlanConfig) -> int:
    """The command. 2 if a stage would refuse what it is given, with all that is wrong."""
    with tempfile.TemporaryDirectory(prefix="neuroimagen-plan-") as folder:
        found = Plan(config, Path(folder))
        if counts := found.counts:
            study, simulated = counts.manifest, " (SIMULATED)" * counts.manifest.simulated
            title = f"{study.dataset}{simulated}, {len(study.classes)} classes, {counts.subjects} subjects"
            print(f"{title}, {study.n_chans} channels x {study.n_times} samples at {study.sfreq:g} Hz")
            print(", ".join(f"{trials:,} {split}" for split, trials in counts.trials.items()) + " trials\n", flush=True)
        if found.faults:
            print("\n".join(f"error: {fault}" for fault in found.faults), file=sys.stderr)
            return 2
        rows = found.rows()
    known = [row.seconds for row in rows if row.seconds is not None and row.source != "done"]
    said: dict[str, Any] = {
        "table": table(rows),
        "disk": size(sum(row.disk or 0.0 for row in rows)),
        "time": span(sum(known)),
    }
    said |= {"known": len(known), "notes": found.notes, "some": SOME, "steps": found.steps}
    print(render("planning/templates/plan.j2", **said), end="")
    return 0
