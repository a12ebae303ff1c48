"""`neuroimagen status RUNS`: where each stage of a study stands that launch/paper.sh runs.

It reads what the stages keep anyhow and writes nothing: it may be asked at any time, of someone else's directory too. A
run goes on if a process holds its lock. Where that is of another machine SLURM is asked, if `squeue` is there; with
no answer it is said how long ago the run last wrote something, and nothing is guessed.
"""

import dataclasses
import datetime
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from neuroimagen.config import option, path_option
from neuroimagen.files import content_of, holder
from neuroimagen.pages import render

TRAINED = (
    *("pixel_features", "pixel_saliency", "semantics_label", "semantics_blip"),
    *("brain2image", "brain2image_vae", "neurovision"),
)
STAGES = ("shards", "captions", *TRAINED, "reconstruct", "evaluate", "audit", "report")  # as paper.sh calls them
VALIDATED = ("val/knn_accuracy", "val/class_accuracy", "val/accuracy", "val/pixel_correlation", "val/loss")
LOSSES = ("loss", "loss_g", "classification")
TAIL = 1 << 18  # bytes of a log that are read: its end
ERROR = re.compile(r"error(?: \(rank \d+\))?: |(?:slurmstepd|srun): error: ")
START = re.compile(r"== job \S+, start \d+")  # slurm_job.sh: an output may tell of several starts
QUIET = 120.0  # s without a word after which it is said
# Of a stage: how far it is; its speed and what is left; the file that it writes as it goes; s between two such writings
Told = tuple[list[str], list[str], Path, float]


@dataclasses.dataclass
class StatusConfig:
    """`neuroimagen status`"""

    runs: str = path_option(help="directory that launch/paper.sh fills: RUNS")
    watch: float = option(0.0, "show it again every so many seconds, until Ctrl-C; 0: once")


class Job(NamedTuple):
    """Of SLURM. state: PENDING, RUNNING, ...; reason: why it waits"""

    number: str
    state: str
    reason: str
    name: str


@dataclasses.dataclass
class Stage:
    """What is told of one stage. state: done, running, stopped, failed, queued, to do, or ? where it cannot be told"""

    name: str
    state: str = "to do"
    told: list[str] = dataclasses.field(default_factory=list)
    reason: list[str] = dataclasses.field(default_factory=list)  # lines


def span(seconds: float) -> str:
    """12 s, 3 min, 2.5 h, 4.0 days"""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{0 if name == 'min' else 1}f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def age(path: Path) -> float:
    """s since a file was written; infinite if it is not there."""
    try:
        return datetime.datetime.now().timestamp() - path.stat().st_mtime
    except OSError:
        return float("inf")


def lines_of(path: Path, size: int = TAIL) -> list[str]:
    """The last lines of a text, out of `size` bytes; none of a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def logged(run: Path) -> list[dict[str, Any]]:
    """The last lines of a trainer's log."""
    return [json.loads(line) for line in lines_of(run / "stats.jsonl") if line[:1] == "{" and line[-1:] == "}"]


def steps_logged(run: Path) -> list[dict[str, Any]]:
    """Those of them that tell how long steps took, and what memory."""
    return [line for line in logged(run) if "step_seconds" in line]


def jobs_of(runs: Path) -> list[Job] | None:
    """SLURM's jobs that may be of this study, those that run first; None without SLURM, or if it does not answer."""
    if not shutil.which("squeue"):
        return None
    names = ["neuroimagen", *(f"{stage}:{runs.resolve()}" for stage in STAGES)]  # train.sbatch's own, and paper.sh's
    ask = ["squeue", "--noheader", f"--name={','.join(names)}", "--format=%i|%T|%r|%j"]
    try:
        said = subprocess.run(ask, capture_output=True, encoding="utf-8", timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        print("note: squeue does not answer: what runs on other machines, and waits, is not known", file=sys.stderr)
        return None
    jobs = [Job(*line.strip().split("|", 3)) for line in said.splitlines() if line.count("|") >= 3]
    return sorted((job for job in jobs if job.name in names), key=lambda job: job.state == "PENDING")


def printed(runs: Path, stage: str) -> tuple[Path, str]:
    """The output of a stage's newest job, and the last error in it; "" if it has none."""
    outputs = sorted((runs / "jobs").glob(f"{stage}-[0-9]*.out"), key=age)
    errors: list[str] = []
    for line in lines_of(outputs[0]) if outputs else ():
        errors = [] if START.match(line) else errors + [line] * bool(ERROR.match(line))
    ours = [line for line in errors if line.startswith("error")]  # what a launcher says after it tells less
    return (outputs[0] if outputs else Path(os.devnull)), (ours or errors or [""])[-1]


def _trained(run: Path, done: bool) -> Told:
    config, lines = content_of(run / "config.yaml"), logged(run)
    step, steps = (lines[-1].get("step", 0) if lines else 0), config.get("max_steps", 0)
    values = dict(itertools.chain.from_iterable(line.items() for line in lines))  # the last of each
    number = next((name for name in (VALIDATED if done else LOSSES + VALIDATED) if values.get(name) is not None), None)
    told = [f"step {step:,}" + ("" if done else f" of {steps:,}")]
    told += [f"{number.removeprefix('val/')} {values[number]:.3g}"] if number else []
    pace = statistics.median([line["step_seconds"] for line in lines if "step_seconds" in line][-20:] or [0.0])
    ahead = [f"{pace:.2g} s/step", f"{span((steps - step) * pace)} left"] if pace else []
    wrote = min(run / "stats.jsonl", run / "environment.json", key=age)  # that of its start, until it has made steps
    return told, ahead, wrote, pace * config.get("log_every", 1)


def _drawn(run: Path, done: bool) -> Told:
    about, trials = content_of(run / "rows.json"), len(lines_of(run / "trials.jsonl", 1 << 40))
    rows = [str(row["name"]) for row in about.get("rows", [])]
    total, start = trials * len(rows) * about.get("samples", 0), age(run / "environment.json")
    ages = sorted((age(path), path) for row in rows for path in (run / "images" / row).glob("*.png"))
    there, new = len(ages), [seconds for seconds, _ in ages if seconds <= start]
    pace = (new[-1] - new[0]) / (len(new) - 1) if len(new) > 1 else 0.0  # from the first one on: loading is not drawing
    ahead = [f"{pace:.2g} s each", f"{span((total - there) * pace)} left"] if pace else []
    told = [f"{there:,} pictures" if done else f"{there:,} of {total:,} pictures"]
    return told, ahead, ages[0][1] if ages else run / "environment.json", 20 * pace


def _packed(runs: Path, done: bool) -> Told:
    manifest, partial = runs / "shards" / "manifest.json", runs / "shards.partial"
    tars = [tar for split in content_of(manifest).get("splits", {}).values() for tar in split["shards"]]
    if done:
        trials, size = (sum(tar[what] for tar in tars) for what in ("trials", "bytes"))
        return [f"{trials:,} trials", f"{size / 1e6:,.0f} MB"], [], manifest, 0.0
    written = sorted(partial.glob("*.tar"), key=age)
    return [f"{len(written)} tars so far"], [], written[0] if written else partial, QUIET


def _captioned(runs: Path, done: bool) -> Told:
    out = runs / "captions.jsonl"
    files = [*sorted(runs.glob("captions.jsonl.part-*"), key=age), out]
    captions = sum(len(lines_of(path, 1 << 40)) for path in files)
    pictures = len(content_of(runs / "captions.jsonl.inputs.json").get("images", {}).get("content", {}))
    return [f"{captions:,}" + (f" of {pictures:,}" if pictures else "") + " captions"], [], files[0], 0.0


def _made(path: Path, done: bool) -> Told:
    return [], [], path, 0.0


class Place(NamedTuple):
    """Where a stage keeps what tells of it: its end, its lock, that it has begun, why it failed; and who reads that."""

    run: Path
    end: Path
    lock: Path
    begun: Path
    tell: Callable[[Path, bool], Told]


def place(runs: Path, name: str) -> Place:
    run, none = runs / name, runs / "none"
    if name == "shards":
        return Place(runs, run / "manifest.json", runs / "shards.partial.lock", runs / "shards.partial", _packed)
    if name == "captions":
        return Place(runs, runs / "captions.jsonl", none, runs / "captions.jsonl.inputs.json", _captioned)
    if name == "audit":
        return Place(run, run / "audit.json", run / "audit.lock", run / "parts", _made)
    if name in ("evaluate", "report"):
        end = runs / "reconstruct" / ("scores.json" if name == "evaluate" else "report.html")
        return Place(end, end, end.with_name(f"{name}.lock"), none, _made)
    return Place(run, run / "DONE", run / "lock", run / "config.yaml", _drawn if name == "reconstruct" else _trained)


def look(runs: Path, name: str, jobs: list[Job] | None) -> Stage:
    """Where one stage stands."""
    run, end, lock, begun, tell = place(runs, name)
    (output, error), (held, who), failed = printed(runs, name), holder(lock), lines_of(run / "failed.txt")
    number = content_of(run / "environment.json").get("slurm_job_id")  # of its last start
    job = next((job for job in jobs or () if job.name.startswith(f"{name}:") or job.number == number), None)
    stage, as_job = Stage(name), [f"job {job.number}"] if job else []
    if end.exists():
        stage.state, as_job = "done", []
    elif held or (job and job.state != "PENDING"):
        stage.state = "running"
    elif job:
        stage.state, as_job = "queued", [f"as job {job.number} ({job.reason})"]
    elif failed or (error and age(output) <= age(run / "environment.json")):
        stage.state, stage.reason = "failed", textwrap.wrap((failed or [error])[-1], width=54, max_lines=4)
    elif begun.exists():
        untold = held is None or lock.name == "none"  # on another machine, or without a lock
        over = jobs is not None and (number or lock.name == "none")  # but SLURM says that it is no job any more
        stage.state = "?" if untold and not over and not (run / "PREEMPTED").exists() else "stopped"
    if not begun.exists() and stage.state != "done":
        stage.told = as_job
        return stage
    told, ahead, wrote, wait = tell(run, stage.state == "done")
    silence = age(wrote)
    if stage.state == "running":
        stage.told = told + ([f"nothing since {span(silence)}"] if silence > max(QUIET, 5 * wait) else ahead) + as_job
    else:
        stage.told = told + [f"{span(silence)} ago"] * wrote.exists() + as_job
    if stage.state == "?":
        stage.told.append(f"{who or 'whoever does it'} cannot be asked here")
    return stage


def stages_of(runs: Path) -> list[Stage]:
    """All stages; without those that this study leaves out, as far as that shows."""
    if not runs.is_dir():
        raise ValueError(f"{runs} is not a directory: name the one that launch/paper.sh fills")
    jobs = jobs_of(runs)
    stages = [look(runs, name, jobs) for name in STAGES]
    state = {stage.name: stage.state for stage in stages}
    begun = {name for name in STAGES if state[name] != "to do"}
    if not begun:
        raise ValueError(f"{runs} holds no stage of a study: name the directory that launch/paper.sh fills")
    left_out = {"captions"} if "semantics_blip" in begun else set()
    left_out |= {*TRAINED, "captions"} if state["reconstruct"] not in ("to do", "queued") else set()
    return [stage for stage in stages if stage.name in begun or stage.name not in left_out]


def status(config: StatusConfig) -> int:
    """The command. 1 if a stage failed; ValueError if there is no study."""
    runs = Path(config.runs)
    while True:
        stages, now = stages_of(runs), f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        page = render("planning/templates/status.j2", runs=runs, stages=stages, now=now)
        print("\x1b[2J\x1b[H" * (config.watch > 0 and sys.stdout.isatty()) + page, end="", flush=True)
        if not config.watch:
            return int(any(stage.state == "failed" for stage in stages))
        time.sleep(config.watch)
