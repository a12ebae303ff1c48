"""README.md of an exported model: the data, the protocol and the scores, filled in from the runs."""

from typing import Any

from neuroimagen.model.eeg import Contract
from neuroimagen.rows import ROWS, SEMANTICS

TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{% if simulated %}> **SIMULATED DATA.** This model was trained and scored on simulated EEG of drawn pictures. It shows
> that the software works. It says nothing about brains, and it does not work on EEG of a person.

{% endif %}Pictures that a person saw, reconstructed from their EEG as in NeuroImagen
([arXiv 2308.02510]({{ paper_url }})): EEG is decoded to {{ decoded }},
and a latent diffusion model draws from that.

    from neuroimagen import NeuroImagen

    model = NeuroImagen.from_pretrained("{{ place }}")
    result = model.reconstruct(eeg)  # an array (n_trials, {{ eeg.n_chans }}, {{ eeg.n_times }}), or mne.Epochs
    result.images[0][0].save("picture.png")

## What EEG it takes

{{ eeg }}.

{{ takes }}

EEG of another unit, shape, rate or set of channels is refused. EEG of people who are not in the training
data, of another amplifier or of another laboratory is not refused, and nothing here says that it works.

## Data and protocol

{{ data }}

## Scores

{{ scores }}

## What it is not

A diffusion model draws a convincing picture whatever the EEG says, so a convincing picture is no evidence
that something was decoded; scores beside their chance levels are.{{ caution }} Do not use it to judge what
a person has seen or thought.

## Made with

{{ made }}
"""

BLOCKS = {"perceivelab", "eeg_imagenet"}  # data sets that show each class in one uninterrupted block


def _shown(cell: dict[str, Any] | None, scale: float, digits: int) -> str:
    """value [95 % interval], as far as there is one."""
    found = [cell.get(name) for name in ("value", "low", "high")] if cell else [None]
    value, *interval = [None if x is None else f"{x * scale:.{digits}f}" for x in found]
    return f"{value} [{', '.join(map(str, interval))}]" if value and all(interval) and interval else value or "-"


def _scores(scores: dict[str, Any] | None) -> str:
    """scores.json as a table: a line a metric, a column a row of the run, and what chance and the true pictures get."""
    if not scores:
        return "**Not scored.** No scores.json was there when this model was exported."
    rows, about = scores["rows"], scores.get("metrics", {})
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    levels = {"chance": "by chance", "ceiling": "the true pictures"}
    levels = {name: head for name, head in levels.items() if any(about.get(m, {}).get(name) is not None for m in names)}
    heads = ["drawn from", *rows, *levels.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    said = [
        f"{scores['trials']} trials of the {scores['split']} split, {scores['pictures']} pictures seen, "
        f"{scores['samples']} samples a trial."
    ]
    for name, what in (("classifier", "Classifier"), ("interval", "In brackets")):
        said += [f"{what}: {scores[name]}."] if name in scores else []
    if not about and "n_way" in scores:
        said.append(f"acc: {scores['n_way']}-way, chance {scores['chance']:.3g}.")
    for name in names:
        more = about.get(name, {})
        scale, digits = more.get("scale", 1), more.get("digits", 3)
        cells = [_shown(values.get(name), scale, digits) for values in rows.values()]
        cells += [_shown({"value": more.get(level)}, scale, digits) for level in levels]
        lines.append(f"| {more.get('head', name)} | {' | '.join(cells)} |")
        if "definition" in more:
            chance = f" By chance: {more['chance_of']}." if more.get("chance_of") else ""
            said.append(f"- {more.get('head', name)}: {more['definition']}{chance}")
    return "\n".join(lines) + "\n\n" + "\n".join(said)


def _takes(eeg: Contract) -> str:
    """How the model's EEG was made, in words."""
    lines = []
    if eeg.channels:
        lines.append(f"- channels: {', '.join(eeg.channels)}")
    else:
        lines.append("- channels: the files do not name them; yours must be the same ones in the same order")
    for when, options in (("before trials were cut", eeg.before or {}), ("signal options", eeg.options)):
        done = [f"{name}={value}" for name, value in options.items() if value not in ([], 0, 0.0, "none", None)]
        if done:
            lines.append(f"- {when}: {', '.join(done)}")
    lines.append(
        "- each channel is standardised by its mean and standard deviation over the train split (in config.json)"
    )
    return "\n".join(lines)


def fill(about: dict[str, Any], eeg: Contract, rows: list[str], pipeline: str) -> dict[str, Any]:
    """What the template takes, from the `about` of a model (export.py makes it)."""
    simulated = bool(about.get("simulated"))
    classes = about.get("classes", [])
    data = [f"- data set: {eeg.dataset}{' (SIMULATED)' if simulated else ''}"]
    if about.get("subjects"):
        data.append(f"- {len(about['subjects'])} subjects: {', '.join(map(str, about['subjects']))}")
    if about.get("trials"):
        data.append(f"- trials: {', '.join(f'{n} {split}' for split, n in about['trials'].items())}")
    if classes:
        data.append(f"- {len(classes)} classes: {', '.join(classes)}")
    data += [f"- split: {about['protocol']}"] if about.get("protocol") else []
    data += [f"- captions of B: {about['captions']}"] if about.get("captions") else []
    data += [f"- {note}" for note in about.get("notes", [])]
    settings = ", ".join(f"{name}={value}" for name, value in about.get("settings", {}).items())
    made = [f"- diffusion model: {about.get('diffusion', pipeline)}"]
    made += ["  (a copy is in diffusion/; it keeps its own licence)"] if pipeline == "diffusion" else []
    made += [f"- drawn with {settings}"] if settings else []
    made += [f"- {name}: SHA-256 {digest[:16]}" for name, digest in about.get("made_of", {}).items()]
    made += [f"- {name} {version}" for name, version in about.get("versions", {}).items()]
    parts = ["a saliency map"] * any(ROWS[row].map for row in rows)
    parts += ["an embedding of what was seen"] * any(ROWS[row].semantics in SEMANTICS for row in rows)
    caution = ""
    if eeg.dataset in BLOCKS and not simulated:
        caution = (
            " This data set showed each class in one uninterrupted block, so slow drifts of the EEG name the class "
            "without vision (Li et al. 2020; Ahmed et al. 2021); no split undoes that."
        )
    name = about.get("name", "NeuroImagen")
    return {
        "name": name + (" (simulated data)" if simulated else ""),
        "place": name,
        "simulated": simulated,
        "eeg": eeg,
        "decoded": " and ".join(parts),
        "takes": _takes(eeg),
        "data": "\n".join(data),
        "scores": _scores(about.get("scores")),
        "caution": caution,
        "made": "\n".join(made),
    }
