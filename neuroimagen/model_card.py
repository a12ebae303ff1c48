"""README.md of an exported model: the data, the protocol and the scores, filled in from the runs."""

from typing import Any

from neuroimagen.data.given import Contract

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


def _scores(scores: dict[str, Any] | None) -> str:
    """The rows of scores.json as a table: value [95 % interval]."""
    if not scores:
        return "**Not scored.** No scores.json was there when this model was exported."
    rows, about = scores["rows"], scores.get("metrics", {})
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    heads = [str(about.get(name, {}).get("head", name)) for name in names]
    lines = ["| drawn from | " + " | ".join(heads) + " |", "|---" * (len(names) + 1) + "|"]
    for row, values in rows.items():
        cells = []
        for name in names:
            cell, scale = values.get(name), about.get(name, {}).get("scale", 1)
            digits = about.get(name, {}).get("digits", 3)
            shown = [
                f"{cell[k] * scale:.{digits}f}" for k in ("value", "low", "high") if cell and cell.get(k) is not None
            ]
            cells.append(f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else shown[0] if shown else "-")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    said = [
        f"{scores['trials']} trials of the {scores['split']} split, {scores['pictures']} pictures seen, "
        f"{scores['samples']} samples a trial."
    ]
    said += [
        f"{what}: {scores[name]}."
        for name, what in (("classifier", "Classifier"), ("interval", "Intervals"))
        if name in scores
    ]
    if "chance" in scores and "n_way" in scores:
        said.append(f"ACC is {scores['n_way']}-way; chance is {scores['chance']:.3g}.")
    for name in names:
        more = about.get(name, {})
        known = [
            f"{k} {more[k]:.3g} ({more.get(f'{k}_of', '')})" for k in ("chance", "ceiling") if more.get(k) is not None
        ]
        if more.get("definition"):
            said.append("\n".join([f"- {more.get('head', name)}: {more['definition']}", *(f"  {k}" for k in known)]))
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
    made += [f"- {name} {version}" for name, version in about.get("versions", {}).items()]
    parts = ["a saliency map"] * any(row.endswith("I") for row in rows)
    parts += ["an embedding of what was seen"] * any(row[0] in "LB" for row in rows)
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
