"""What is said under the tables: the protocol beside the paper's, and what each column means."""

from typing import Any

from neuroimagen.report import published
from neuroimagen.report.formats import Metric
from neuroimagen.rows import uses
from neuroimagen.scores.run_files import ReconstructRun
from neuroimagen.studies.classes import UNEVEN


def kind_of_eeg(scores: dict[str, Any]) -> str:
    return "simulated EEG" if scores["simulated"] else "recorded EEG"


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


def notes(run: ReconstructRun, scores: dict[str, Any], metrics: list[Metric]) -> list[str]:
    """What has to be said under Tables 1 to 3, the protocol first; metrics: their columns."""
    truth = scores["truth"]
    said = " ".join(f"{what}: {here} (paper: {there})." for what, here, there in protocol(run, scores))
    lines = [
        f"Protocol, ours against the paper's ({published.PAPER}). {said}",
        "I: saliency map. L: meaning learnt from label captions. B: meaning learnt from picture captions"
        + f", here from {scores['captions_source'] or 'an unnamed source'}" * any(uses(row)[0] for row in run.rows)
        + ".",
    ]
    lines += [f"{m.title}: {m.definition}" for m in metrics if m.definition]
    if scores["n_way"] < scores["n_way_asked"]:
        lines.append(f"N: {scores['n_way_asked']} asked, but there are {scores['n_way']} classes to draw from.")
    by_chance: dict[str, list[str]] = {}
    for m in metrics:
        if m.chance is not None and m.chance_of:
            by_chance.setdefault(m.chance_of, []).append(m.title)
    if by_chance:
        said = "; ".join(f"{', '.join(names)}: {of}" for of, names in by_chance.items())
        lines.append(f"Chance, what needs no EEG: {said}.")
    if "guessing" in truth:
        said = f"{100 * truth['guessing']['acc']['value']:.1f} %"
        if scores["headline"] == "acc_balanced":
            said += f", balanced {100 * truth['guessing']['acc_balanced']['value']:.1f} %"
            lines.append(
                f"Balanced ACC goes first because the most frequent class of these trials has more than {UNEVEN:g} "
                "times the trials of the rarest: ACC can be had by drawing the frequent ones always."
            )
        lines.append(
            f"Guessing in the study: {said}, the most that a decoder can expect which knows how often each class "
            "comes, and nothing of the trial (the same answer for all: the study's classes in the order of frequency)."
        )
    lines.append("The pictures seen: what the ground-truth pictures themselves get, judged by the same code.")
    lines.append(f"Classifier: {scores['classifier']}.")
    if "named_rightly" in truth:
        share = f"{100 * truth['named_rightly']:.1f} %"
        lines[-1] += f" It names {share} of the ground-truth pictures as the data set does."
    if scores["pictures"] == 1:
        lines.append("shuffled, all that is other or gain: not available, as all trials show one and the same picture.")
    lines.append(
        f"Ranges: {scores['interval'].removesuffix('; n counts them')}. People are not resampled: a range is about "
        "other pictures for the same people, not about other people."
    )
    return lines
