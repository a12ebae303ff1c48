"""`neuroimagen audit`: is it real? Controls, curves and verdicts of a study, by linear decoders on one machine.

OUT/parts/<name>.json holds each part with a hash of the config and the inputs that it was made of: the same command
goes on where it was stopped, and makes anew what is stale. OUT/audit.json has all of it, OUT/audit.html shows it.

Beside the linear decoders stand the networks that launch/audit.sh trained, on the test split of their own variant:
OUT/<variant>/shards holds a variant, OUT/<variant>/seed-<k> a finished run of stage 2 on its train split, with the
names of the classes as captions.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from neuroimagen import __version__
from neuroimagen.audit.parts import Parts
from neuroimagen.audit.statistics import PERMUTATIONS, averaged
from neuroimagen.audit.trials import AuditConfig, Source, Untold
from neuroimagen.audit.verdicts import LIMITS, QUESTIONS, drift, judge
from neuroimagen.errors import load_trained
from neuroimagen.files import busy, content_of, write_atomic
from neuroimagen.pages import render
from neuroimagen.run.directory import open_run
from neuroimagen.run.inputs import digest, hashes
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder
from neuroimagen.scores.run_files import ReconstructRun, read_run
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.captions import label_caption

BATCH = 64  # trials decoded at once
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
    options = dataclasses.asdict(config)
    files = [*study.inputs, *(picture for picture in source.shown if isinstance(picture, Path))]
    inputs = hashes({str(path): path for path in files})
    own, before = [inputs[str(path)] for path in study.inputs], content_of(out / "audit.json")
    if before and not {*own} & {*before.get("inputs", own)}:
        of = before["study"]["dataset"]
        raise ValueError(f"{out} holds the audit of another study (dataset={of}, no file in common): give another out=")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    made_of = {"version": VERSION, "limits": LIMITS, "inputs": inputs}
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
    report |= {"config": {name: value for name, value in options.items() if name in config.given}, "inputs": own}
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


@torch.no_grad()
def named(run: Path, shards: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a finished run decodes from the test split of its shards, and labels. ValueError if either cannot be read.

    Of n trials (n, n_classes): minus the distance of h_clip to each class's caption; and (n,).
    """
    split = ShardSplit(shards, "test")
    about = split.manifest
    config = yaml.safe_load((open_run(run, "semantics_label") / "config.yaml").read_text(encoding="utf-8"))
    names = {c["label"]: c["name"] for c in about.classes}
    captions = embed_captions(config["pipeline"], [label_caption(names[label]) for label in sorted(names)]).flatten(1)
    model = load_trained(SampleEncoder, run / "model").eval()
    mean, std = (np.array(x)[:, None] for x in (about.channel_mean, about.channel_std))
    scores = np.full((len(split), max(names) + 1), -np.inf)
    infos = [split.info(i) for i in range(len(split))]
    for rows in np.split(np.arange(len(split)), range(BATCH, len(split), BATCH)):
        eeg = np.stack([(split.eeg(int(i)) - mean) / std for i in rows]).astype(np.float32)
        h_clip = model(torch.from_numpy(eeg), torch.tensor([infos[i]["subject"] for i in rows])).flatten(1)
        scores[np.ix_(rows, sorted(names))] = -torch.cdist(h_clip, captions).numpy()
    return scores, np.array([info["label"] for info in infos])


def balanced(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean over the classes of test of the share of a class's trials whose largest score is its own."""
    return float(averaged(scores.argmax(1) == label, label)[0].mean())


def trained(out: Path) -> dict[str, dict[str, Any]]:
    """Variant -> balanced accuracy of its finished runs, by seed, their mean, spread and chance; {}: there are none."""
    found: dict[str, dict[str, Any]] = {}
    for shards in sorted(out.glob("*/shards")):
        runs = {int(run.parent.name.removeprefix("seed-")): run.parent for run in shards.parent.glob("seed-*/DONE")}
        each = [named(runs[seed], shards) for seed in sorted(runs)]
        if each:
            values, label = [balanced(*one) for one in each], each[0][1]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            about = {"seeds": sorted(runs), "values": values, "value": float(np.mean(values)), "spread": spread}
            found[shards.parent.name] = about | {"chance": 1 / len(np.unique(label)), "n": len(label)}
    return found
