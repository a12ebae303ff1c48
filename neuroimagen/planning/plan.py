"""`neuroimagen plan OVERLAY...`: what launch/paper.sh will run, on what, for how long, before anything starts.

launch/paper.sh itself says which commands it would give (DRY=1). Each one's config is read and checked as its stage
does it, so a wrong field of the last stage is found before the first one starts. Nothing is written, but for a folder
of random data, removed again, while measure=true makes steps.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from neuroimagen.audit.trials import AuditConfig
from neuroimagen.config import load_config, option, path_option
from neuroimagen.errors import sentence
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.pixel.losses import check_batch
from neuroimagen.planning import rehearsal
from neuroimagen.planning.audit import allowed
from neuroimagen.planning.counts import Counts, of_shards, of_study
from neuroimagen.planning.networks import networks, numbers, of_pipeline
from neuroimagen.planning.status import logged, span, steps_logged
from neuroimagen.report.report import ReportConfig
from neuroimagen.rows import ROWS, rows_to_draw
from neuroimagen.sample.captions import CaptionsConfig
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.shards.pack import SOME
from neuroimagen.shards.tars import ShardsConfig

PAPER = Path("launch/paper.sh")
STAGE_2 = ("trainers/sample_semantics.py", "config=configs/sample_semantics.yaml")
COMMANDS = {"shards": ShardsConfig, "captions": CaptionsConfig, "audit": AuditConfig}
COMMANDS |= {"evaluate": EvaluateConfig, "report": ReportConfig}


@dataclasses.dataclass
class PlanConfig:
    """`neuroimagen plan`"""

    overlays: list[str] = option([], "the OVERLAY.yaml files that launch/paper.sh is given")
    runs: str = path_option("RUNS", "directory that launch/paper.sh fills; runs there tell how fast they went")
    mode: Literal["local", "slurm"] = option("local", "how launch/paper.sh runs it")
    shards: str = path_option("", "shards to count trials in; empty: RUNS/shards, or the study's own files")
    measure: float = option(0.0, "make real steps of each trainer here, on random data, in so many s in all; 0: none")
    audit: str = path_option("", "plan launch/audit.sh instead, and write its variants to this file; empty: do not")
    variants: list[str] = option([], "with audit: these variants alone; []: all that the study allows")
    seeds: int = option(3, "with audit: runs of each variant")


class Step(NamedTuple):
    """name: of paper.sh; line: the whole command; words: from the trainer, or from `neuroimagen`, on; processes: None
    if SLURM will say"""

    name: str
    line: str
    words: list[str]
    processes: int | None


@dataclasses.dataclass
class Row:
    """A line of the table, as far as it is known. numbers: of what is trained; disk: bytes; source: r, m, done"""

    name: str
    work: str = ""
    processes: int | None = 1
    numbers: int | None = None
    memory: str = ""
    disk: float | None = None
    seconds: float | None = None
    source: str = ""


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
def _trainer(path: str) -> Callable[[Any], int]:
    """A trainer's `main`, which names its config, without running it."""
    return runpy.run_path(path, run_name="planned")["main"]


def checked(words: list[str]) -> Any:
    """The config of a step, checked as the step itself does it. ValueError if it is wrong."""
    if words[0].endswith(".py"):
        kind, stage, arguments = _trainer(words[0]).__annotations__["config"], Path(words[0]).stem, words[1:]
    else:
        kind, stage, arguments = COMMANDS[words[1]], words[1], words[2:]
    config = load_config(kind, arguments, stage)
    if hasattr(config, "check"):
        config.check()
    return config


def counts_of(config: PlanConfig, made: str, packing: ShardsConfig | None) -> Counts | None:
    """Of the shards that are given, or made already, or else of what `packing` would read, if that is known."""
    if config.shards or Path(made, "manifest.json").exists():
        return of_shards(config.shards or made)
    return of_study(packing) if packing else None


def suits(config: Any, counts: Counts, processes: int | None) -> None:
    """ValueError if a trainer's config does not go with the trials or the processes; what its main asks first."""
    if hasattr(config, "check_eeg"):
        config.check_eeg(counts.shape["n_times"], counts.sfreq)
    if hasattr(config, "classes_per_batch"):
        balance = config.classes_per_batch, config.trials_per_class
        check_batch(config.global_batch_size, counts.trials["train"], counts.shape["n_classes"], *balance)
    if hasattr(config, "max_steps") and processes and config.global_batch_size % (processes * config.accumulate):
        raise ValueError(f"global_batch_size={config.global_batch_size} does not divide among {processes} processes")


def training(
    name: str, about: Any, stage: str, counts: Counts, f_theta: Any, measured: list[dict[str, Any]], run: Path
) -> tuple[Row, list[str]]:
    """The row of a trainer, and notes. stage: its file; f_theta: the config of stage 1a; run: one that may have gone

    measured: rehearse's, of steps that count where that run has none.
    """
    row, notes = Row(name, f"{about.max_steps:,} steps of {about.global_batch_size}"), []
    here = of_pipeline(about.pipeline) if hasattr(about, "pipeline") else {"text": (0, 0)}
    if "text" not in here:
        notes = [f"{about.pipeline} is not on this machine: embeddings of 77 x 768 are taken"]
    nets = networks(stage, about, counts, f_theta, here.get("text", (77, 768)))
    row.numbers, twice = numbers(nets.trained), min(2, -(-about.max_steps // (about.checkpoint_every or 1 << 60)))
    saved = numbers(nets.trained, True) + numbers(nets.averaged, True) + 2 * row.numbers
    row.disk = 4.0 * (twice * saved + numbers(nets.averaged or nets.trained, True))
    row.memory = f">= {size(4.0 * (4 * row.numbers + numbers(nets.averaged) + numbers(nets.frozen)))}"
    if lines := (ran := steps_logged(run)) or measured:
        row.memory = f"{max(line['memory_gb'] for line in lines):.1f} GB"
        seconds = [line["step_seconds"] for line in lines]
        row.seconds = statistics.mean(seconds) * about.max_steps if ran else rehearsal.whole(about, seconds)
        row.source = "r" if ran else "m" * (row.seconds is not None)
    return row, notes


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
        maps = counts.png(map_size) if any("saliency" in ROWS[name].needs for name in rows) else 0.0
        row.disk = pictures * each + trials * (counts.png(side) + maps)
    if "bytes" in here:
        row.memory = f">= {size(here['bytes'])}"
    if len(there) > 1:
        times = [known.st_mtime for known in there]
        row.seconds, row.source = (max(times) - min(times)) / (len(times) - 1) * pictures, "r"


class Plan:
    """The steps of a study, what is wrong with them (one sentence each), and, if nothing is, what they take."""

    def __init__(self, config: PlanConfig) -> None:
        self.config, self.steps = config, steps_of(config)
        self.faults: list[str] = []
        self.notes: list[str] = []
        found = {step.name: self._attempt(step.name, checked, step.words) for step in self.steps}
        self.configs = {name: about for name, about in found.items() if about}
        self.counts: Counts | None = self._attempt(
            "shards", counts_of, config, f"{config.runs}/shards", self.configs.get("shards")
        )
        for step in (step for step in self.steps if step.name in self.configs):
            about = self.configs[step.name]
            if self.counts:
                self._attempt(step.name, suits, about, self.counts, step.processes)
            captions = getattr(about, "captions", "label")
            if captions != "label" and "captions" not in found and not Path(captions).is_file():
                missing = f"captions={captions} is not there: put it there, or leave CAPTIONS out"
                self.faults.append(f"{step.name}: {missing}")

    def _attempt(self, name: str, work: Callable[..., Any], *given: Any) -> Any:
        try:
            return work(*given)
        except (ValueError, OSError) as error:
            self.faults.append(f"{name}: {sentence(error)}")

    def rows(self) -> list[Row]:
        """The table, which takes some seconds more if steps are to be measured."""
        assert self.counts and not self.faults
        trainers = {step.name: step for step in self.steps if hasattr(self.configs[step.name], "max_steps")}
        new = {
            name: (_trainer(step.words[0]), self.configs[name], step.processes or 1)
            for name, step in trainers.items()
            if self.config.measure and not logged(Path(self.config.runs, name))
        }
        measured = dict(rehearsal.rehearse(new, self.counts, self.config.measure))
        rows = []
        for step in self.steps:
            about, row, run = self.configs[step.name], Row(step.name), Path(self.config.runs, step.name)
            if step.name in trainers:
                given = Path(step.words[0]).stem, self.counts, self.configs.get("pixel_features")
                row, notes = training(step.name, about, *given, measured.get(step.name, []), run)
                self.notes += notes
            elif step.name == "reconstruct":
                drawn(row, about, self.counts, self.configs["pixel_saliency"].image_size)
            elif step.name == "shards":
                row.work, row.disk = f"{sum(self.counts.trials.values()):,} trials", self.counts.shards
                row.seconds, row.source = self.counts.seconds, "m" if self.counts.seconds is not None else "done"
            if hasattr(about, "run_dir") and (run / "DONE").exists():
                row.source = "done"
            row.processes = step.processes
            rows.append(row)
        return rows


def plan_audit(config: PlanConfig) -> int:
    """What launch/audit.sh will run: stage 2 on shards of each variant of the study, with so many seeds each."""
    if not config.overlays or config.seeds < 1:
        raise ValueError(
            "name the overlays of the study and one seed or more: neuroimagen plan OVERLAY.yaml ... seeds=3"
        )
    folder, files = Path(config.runs, "audit"), [f"config={path}" for path in config.overlays]
    shards = f"{folder}/honest/shards"
    packing = [*files, f"out={shards}"]
    variants, notes = allowed(packing, config.variants)
    n, runs = len(variants), len(variants) * config.seeds
    about = checked([*STAGE_2, *files, "captions=label", f"shards={shards}", f"run_dir={folder}/honest/seed-0"])
    counts = counts_of(config, shards, load_config(ShardsConfig, packing, "shards"))
    assert counts
    suits(about, counts, None)
    ran = [path for path in [*folder.glob("*/seed-*"), Path(config.runs, "semantics_label")] if logged(path)]
    work = {} if ran or not config.measure else {"stage 2": (_trainer(STAGE_2[0]), about, 1)}
    measured = dict(rehearsal.rehearse(work, counts, config.measure)).get("stage 2", [])
    first = Row("shards", f"{sum(counts.trials.values()):,} trials", disk=counts.shards, seconds=counts.seconds)
    first.source = "m" * (counts.seconds is not None)
    second, _ = training("stage 2", about, "sample_semantics", counts, None, measured, [*ran, Path(about.run_dir)][0])
    second.processes = None
    for row, times in ((first, n), (second, runs)):
        row.work, row.disk = f"{times} x {row.work}", (row.disk or 0.0) * times
        row.seconds = row.seconds and row.seconds * times
    done = sum((folder / name / f"seed-{k}" / "DONE").exists() for name in variants for k in range(config.seeds))
    print(f"{counts.title}\n{n} variants: {', '.join(variants)}\n")
    print(_text([first, second], notes, variants=variants, runs=runs, done=done), end="")
    write_atomic(Path(config.audit), "".join(" ".join([name, *given]) + "\n" for name, given in variants.items()))
    return 0


def _text(rows: list[Row], notes: list[str], **more: Any) -> str:
    return render("planning/templates/plan.j2", rows=rows, notes=notes, size=size, span=span, **more)


def plan(config: PlanConfig) -> int:
    """The command. 2 if a stage would refuse what it is given, with all that is wrong."""
    if config.audit:
        return plan_audit(config)
    found = Plan(config)
    if counts := found.counts:
        eeg = f"{counts.shape['n_chans']} channels x {counts.shape['n_times']} samples at {counts.sfreq:g} Hz"
        print(f"{counts.title}, {eeg}")
        print(", ".join(f"{trials:,} {split}" for split, trials in counts.trials.items()) + " trials\n", flush=True)
    if found.faults:
        print("\n".join(f"error: {fault}" for fault in found.faults), file=sys.stderr)
        return 2
    print(_text(found.rows(), found.notes, some=SOME, steps=found.steps), end="")
    return 0
