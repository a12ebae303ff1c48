"""What is said under the tables: the protocol beside the paper's, and what each column means."""

from typing import Any

from neuroimagen.evaluation import published
from neuroimagen.evaluation.metrics import SSIM_SETTINGS
from neuroimagen.evaluation.scores import ReconstructRun


def kind_of_eeg(scores: dict[str, Any]) -> str:
    return "simulated EEG" if scores["simulated"] else "recorded EEG"


def uses(row: str) -> tuple[bool, bool, bool]:
    """Does a row use BLIP captions (B), label captions (L), the saliency map (I)?"""
    parts = row.split("+")
    return "B" in parts, "L" in parts, "I" in parts


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
    settings = scores.get("ssim_settings", SSIM_SETTINGS).removeprefix("SSIM: ")
    return [
        ("EEG", f"{dataset}, {people}", f"PerceiveLab's recordings, {paper.subjects}"),
        ("Split", f"{about.get('settings', {}).get('split', 'test')} of {split}", paper.split),
        ("Band", f"{files}; {signal or 'no filter of ours'}", paper.band),
        ("Classifier", scores["classifier"], paper.classifier),
        ("ACC", f"{scores['n_way']}-way top-{scores['top_k']}, exact over all draws", paper.n_way),
        ("Samples", f"{scores['samples']} a trial, all scored", paper.samples),
        ("SSIM", settings, published.NOT_STATED),
    ]


def protocol_note(run: ReconstructRun, scores: dict[str, Any]) -> str:
    """The same as one note."""
    said = " ".join(f"{what}: {here} (paper: {there})." for what, here, there in protocol(run, scores))
    return f"Protocol, ours against the paper's ({published.PAPER}). {said}"


def notes(run: ReconstructRun, scores: dict[str, Any]) -> list[str]:
    """What has to be said under Tables 1 to 3, the protocol first."""
    capped = ""
    if scores["n_way"] < scores["n_way_asked"]:
        capped = f" ({scores['n_way_asked']} asked, the classifier has {scores['classes']})"
    truth = scores["truth"]
    controlled = has_controls(scores)
    lines = [
        protocol_note(run, scores),
        "I: saliency map. L: meaning learnt from label captions. B: meaning learnt from picture captions"
        + f", here from {scores['captions_source'] or 'an unnamed source'}" * any(uses(row)[0] for row in run.rows)
        + ".",
        f"ACC: {scores['n_way']}-way top-{scores['top_k']} accuracy{capped}, chance {100 * scores['chance']:.1f} % for "
        "a guess among all classes of the classifier; truth = what the classifier sees in the ground-truth picture.",
    ]
    if controlled:
        lines.append(
            "shuffled: what ACC would be if the same reconstructions were dealt out to the trials at random (the exact "
            "mean over all shuffles; by subject: over that subject's trials). Chance of guessing a class of the study: "
            f"{100 * truth['shuffled']:.1f} %, what the ground-truth pictures themselves get when so dealt out."
        )
    if "named_rightly" in truth:
        lines.append("ACC by label: ACC with the data set's label as the truth.")
    lines.append(f"Classifier: {scores['classifier']}.")
    if "named_rightly" in truth:
        lines[-1] += (
            f" It names {100 * truth['named_rightly']:.1f} % of the ground-truth pictures as the data set does."
        )
    lines.append(
        f"IS: Inception Score by the same classifier, 1 split; the ground-truth pictures have {truth['is']:.2f}."
    )
    lines.append(f"{SSIM_SETTINGS}; mean of the colour channels.")
    if controlled:
        lines.append(
            "SSIM other: the same reconstructions compared with another picture of the test set (fixed pairs); smooth "
            "pictures score high here too. SSIM gain: SSIM - SSIM other, what is owed to the picture seen."
        )
    else:
        lines.append("shuffled, SSIM other, SSIM gain: not available, as all trials show one and the same picture.")
    lines.append(f"Ranges: {scores['interval'].partition('; ')[0]}.")
    return lines


def has_controls(scores: dict[str, Any]) -> bool:
    """False if the run holds one image only."""
    return all("ssim_gain" in groups["all"] for groups in scores["rows"].values())
