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


def protocol(run: ReconstructRun, scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, here, in the paper), line by line."""
    paper, about = published.PAPER_PROTOCOL, run.about
    split, signal = split_of(run)
    files = ", ".join(about.get("eeg_files", [])) or "files not noted"
    dataset = f"{scores['dataset'] or 'unnamed'} data set"
    if scores["simulated"]:
        dataset = f"SIMULATED, in the format of the {dataset}"
    people = f"{scores['subjects']} subject{'s' * (scores['subjects'] != 1)}"
    whence = " from the classes of the study" * (scores.get("distractors") == "study")
    judges = "the classifier and by Inception-v3" if "is_inception" in scores.get("metrics", {}) else "the classifier"
    splits = scores["inception_splits"]
    return [
        ("EEG", f"{dataset}, {people}", f"PerceiveLab's recordings, {paper.subjects}"),
        ("Split", f"{about.get('settings', {}).get('split', 'test')} of {split}", paper.split),
        ("Band", f"{files}; {signal or 'no filter of ours'}", paper.band),
        ("Selected on", "last: no trainer chooses a checkpoint", paper.selected),
        ("Classifier", scores["classifier"], paper.classifier),
        ("ACC", f"{scores['n_way']}-way top-{scores['top_k']}, exact over all draws{whence}", paper.n_way),
        ("IS", f"by {judges}, {splits} split{'s' * (splits != 1)}", paper.inception),
        ("Samples", f"{scores['samples']} a trial, all scored", paper.samples),
        ("SSIM", scores["ssim_settings"].removeprefix("SSIM: "), published.NOT_STATED),
    ]


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
