"""What is said under the tables: the protocol beside the paper's, and what each column means."""

import re
from collections import defaultdict
from typing import Any

from neuroimagen.pages import render
from neuroimagen.report import published
from neuroimagen.report.formats import Metric
from neuroimagen.rows import uses
from neuroimagen.scores.run_files import ReconstructRun
from neuroimagen.studies.classes import UNEVEN


def kind_of_eeg(scores: dict[str, Any]) -> str:
    """In a few words, and what it may not be used for (Manifest.mark), which stands in the title of every table."""
    kind = "simulated EEG" if scores["simulated"] else "recorded EEG"
    return kind + (f" ({scores['mark'].partition(':')[0]})" if scores.get("mark") else "")


def split_of(run: ReconstructRun) -> tuple[str, str]:
    """How the trials were split, and what our signal processing did to them ("" = nothing)."""
    split, _, signal = run.about.get("manifest", {}).get("protocol", "").partition("; signal: ")
    return split or "not known", signal


def protocol(run: ReconstructRun, scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """(what, here, in the paper), line by line."""
    split, signal = split_of(run)
    told = {"paper": published.PAPER_PROTOCOL, "not_stated": published.NOT_STATED, "split": split, "signal": signal}
    lines = render("report/templates/protocol.j2", run=run, scores=scores, **told).splitlines()
    return [tuple(line.split(" ¦ ")) for line in lines]


def notes(which: str, **facts: Any) -> list[str]:
    """The notes of templates/notes.j2 under the table `which`, or under Tables 1 to 3 ("all")."""
    text = render("report/templates/notes.j2", which=which, published=published, uneven=UNEVEN, **facts)
    return [re.sub(r"\s*\n\s*", " ", note) for note in re.split(r"\n\s*\n", text.strip()) if note]


def under_all(run: ReconstructRun, scores: dict[str, Any], metrics: list[Metric]) -> list[str]:
    """What has to be said under Tables 1 to 3, the protocol first; metrics: their columns."""
    by_chance: dict[str, list[Metric]] = defaultdict(list)
    for metric in metrics:
        if metric.chance is not None and metric.chance_of:
            by_chance[metric.chance_of].append(metric)
    draws_b = any(uses(row)[0] for row in run.rows)
    told = {"protocol": protocol(run, scores), "by_chance": by_chance, "draws_b": draws_b}
    return notes("all", scores=scores, metrics=metrics, **told)
