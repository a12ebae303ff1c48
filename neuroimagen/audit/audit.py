"""`neuroimagen audit`: is it real? Controls, curves and verdicts of a study, by linear decoders on one machine.

OUT/parts/<name>.json holds each part with a hash of the config and the inputs that it was made of: the same command
goes on where it was stopped, and makes anew what is stale. OUT/audit.json has all of it, OUT/audit.html shows it.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuroimagen import __version__
from neuroimagen.audit.parts import Parts
from neuroimagen.audit.statistics import PERMUTATIONS
from neuroimagen.audit.trained import trained
from neuroimagen.audit.trials import AuditConfig, Source, Untold
from neuroimagen.audit.verdicts import LIMITS, Verdict, drift, judge
from neuroimagen.files import write_atomic
from neuroimagen.pages import render
from neuroimagen.run.inputs import digest, hashes
from neuroimagen.scores.run_files import ReconstructRun, read_run

VERSION = 2  # raise it when the same inputs begin to give other parts
FREE = ("out", "run", "quick", "processes", "eeg_dtype", "shard_mb", "shard_size")  # change no part, or `floor` alone


def audit(config: AuditConfig) -> dict[str, Any]:
    """The command. Returns what audit.json holds. ValueError if the study cannot be read, or `run` is not finished."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file: give a folder")
    run = read_run(config.run) if config.run else None
    source = Source(config)
    study, trials = source.study, source.trials
    (out / "parts").mkdir(parents=True, exist_ok=True)
    parts = Parts(source, run)
    made_of = {
        "version": VERSION,
        "limits": LIMITS,
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE},
    }
    files = [*study.inputs, *(picture for picture in source.shown if isinstance(picture, Path))]
    made_of |= {"inputs": hashes({str(path): path for path in files})}
    found: dict[str, Any] = {}
    table = parts.table(config.quick)
    with tqdm(total=len(table), desc="audit", unit="part", disable=None) as progress:
        for name, compute in table.items():
            progress.set_postfix_str(name)
            key = digest(made_of | ({"run": _marks(run)} if name == "floor" else {}))
            found[name] = kept(out / "parts" / f"{name.replace(' ', '_')}.json", key, compute)
            progress.update()
    same = ("class_blocks", "randomised", "timed", "split_by", "zero_shot", "known")
    about = {name: getattr(trials, name) for name in same} | {"same_order": trials.same_order()}
    about |= {name: getattr(study, name) for name in ("dataset", "simulated", "protocol", "mark")}
    about |= {"people": int(trials.person.max() + 1), "trials": len(trials.label), "test": len(trials.test)}
    about |= {"classes": len(study.classes)}
    results = {name: part["result"] for name, part in found.items()}
    verdicts, called = judge(results, about), drift(results, about)
    seconds = {name: part["seconds"] for name, part in found.items()}
    report = {"version": VERSION, "neuroimagen": __version__, "limits": LIMITS, "study": about, "drift": called}
    report |= {"networks": trained(out)}
    report |= {"questions": [{"title": v.title, **v._asdict()} for v in verdicts], "parts": results, "seconds": seconds}
    report |= {"config": {name: value for name, value in dataclasses.asdict(config).items() if name in config.given}}
    write_atomic(out / "audit.json", json.dumps(report, indent=1) + "\n")
    write_page(report, verdicts, run, out)
    print(render("audit/templates/summary.j2", report=report, verdicts=verdicts, page=out / "audit.html"), end="")
    return report


def _marks(run: ReconstructRun | None) -> Any:
    return run and hashes(
        {trial["key"]: run.map(trial["key"]) for trial in run.trials if run.map(trial["key"]).exists()}
    )


def kept(path: Path, key: str, compute: Callable[[], Any]) -> dict[str, Any]:
    """A part as its file has it, if it was made of the same; else computed, and written there."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        if part["made_of"] == key:
            return dict(part)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is made anew
        pass
    start = time.monotonic()
    try:
        result = compute()
    except Untold as error:
        result = {"why": str(error)}
    part = {"made_of": key, "seconds": round(time.monotonic() - start, 2), "result": result}
    write_atomic(path, json.dumps(part, indent=1) + "\n")
    return part


def write_page(report: dict[str, Any], verdicts: list[Verdict], run: ReconstructRun | None, out: Path) -> None:
    """audit.html, which needs no other file; it links the run's page where there is one."""
    page = run.path / "report.html" if run else None
    link = Path(os.path.relpath(page, out)).as_posix() if page and page.is_file() else ""
    write_atomic(
        out / "audit.html",
        render("audit/templates/page.j2", report=report, verdicts=verdicts, link=link, permutations=PERMUTATIONS),
    )
