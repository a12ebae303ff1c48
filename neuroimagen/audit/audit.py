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
from neuroimagen.audit.verdicts import LIMITS, QUESTIONS, drift, judge
from neuroimagen.files import busy, write_atomic
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
    options = dataclasses.asdict(config)
    files = [*study.inputs, *(picture for picture in source.shown if isinstance(picture, Path))]
    made_of = {"version": VERSION, "limits": LIMITS, "inputs": hashes({str(path): path for path in files})}
    made_of |= {"config": {name: value for name, value in options.items() if name not in FREE}}
    maps = {trial["key"]: run.map(trial["key"]) for trial in run.trials} if run else {}
    marks = run and hashes({key: path for key, path in maps.items() if path.exists()})
    found: dict[str, Any] = {}
    bar = tqdm(Parts(source, run).table(config.quick).items(), desc="audit", unit="part", disable=None)
    with busy(out / "audit.lock"):
        for name, compute in bar:
            bar.set_postfix_str(name)
            key = digest(made_of | ({"run": marks} if name == "floor" else {}))
            found[name] = kept(out / "parts" / f"{name.replace(' ', '_')}.json", key, compute)
    told = ("class_blocks", "randomised", "timed", "split_by", "zero_shot", "known")
    about = {name: getattr(trials, name) for name in told} | {"same_order": trials.same_order()}
    about |= {name: getattr(study, name) for name in ("dataset", "simulated", "protocol", "mark")}
    about |= {"people": int(trials.person.max() + 1), "trials": len(trials.label), "test": len(trials.test)}
    about |= {"classes": len(study.classes)}
    results = {name: part["result"] for name, part in found.items()}
    verdicts = judge(results, about)
    report = {"version": VERSION, "neuroimagen": __version__, "limits": LIMITS, "study": about}
    report |= {"drift": drift(results, about), "networks": trained(out)}
    report |= {"questions": [{"title": QUESTIONS[v.name]["title"], **v._asdict()} for v in verdicts], "parts": results}
    report |= {"seconds": {name: part["seconds"] for name, part in found.items()}}
    report |= {"config": {name: value for name, value in options.items() if name in config.given}}
    write_atomic(out / "audit.json", json.dumps(report, indent=1) + "\n")
    write_page(report, run, out)
    print(render("audit/templates/summary.j2", report=report, questions=QUESTIONS, page=out / "audit.html"), end="")
    return report


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


def write_page(report: dict[str, Any], run: ReconstructRun | None, out: Path) -> None:
    """audit.html, which needs no other file; it links the run's page where there is one."""
    page = run.path / "report.html" if run else None
    link = Path(os.path.relpath(page, out)).as_posix() if page and page.is_file() else ""
    more = {"questions": QUESTIONS, "link": link, "permutations": PERMUTATIONS}
    write_atomic(out / "audit.html", render("audit/templates/page.j2", report=report, **more))
