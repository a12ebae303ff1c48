"""README.md of an exported model: the data, the protocol and the scores, from the runs into templates/card.md.j2."""

from typing import Any

from jinja2 import Environment, PackageLoader

from neuroimagen.report.formats import ASCII, Metric, shown
from neuroimagen.rows import ROWS, SEMANTICS

BLOCKS = {"perceivelab", "eeg_imagenet"}  # data sets that show each class in one uninterrupted block
MARKDOWN = Environment(loader=PackageLoader("neuroimagen.model"), trim_blocks=True, lstrip_blocks=True)


def _table(scores: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> list[list[str]]:
    """scores.json: a line a metric, a column a row of the run, and what chance and the true pictures get."""
    levels = {"chance": "by chance", "ceiling": "the true pictures"}
    levels = {level: head for level, head in levels.items() if any(m.get(level) is not None for m in metrics.values())}
    lines = [["drawn from", *scores["rows"], *levels.values()]]
    for name, about in metrics.items():
        metric = Metric.of(name, about)
        estimates = [row.get(name) for row in scores["rows"].values()] + [{"value": about.get(at)} for at in levels]
        lines.append([metric.head, *(str(shown(estimate, metric)).translate(ASCII) for estimate in estimates)])
    return lines


def write_card(model: Any, card_data: str, paper_url: str) -> str:
    """The card of a NeuroImagen as text; its `about` is export.py's. card_data: the header, as YAML."""
    about: dict[str, Any] = {"made_of": {}, "versions": {}} | model.about
    scores = about.get("scores") or {}
    names = dict.fromkeys(name for row in scores.get("rows", {}).values() for name in row)
    metrics = {name: scores.get("metrics", {}).get(name, {}) for name in names}
    decoded = ["a saliency map"] * any(ROWS[row].map for row in model.rows)
    decoded += ["an embedding of what was seen"] * any(ROWS[row].semantics in SEMANTICS for row in model.rows)
    text = MARKDOWN.get_template("card.md.j2").render(
        card_data=card_data,
        paper_url=paper_url,
        name=about.get("name", "NeuroImagen"),
        about=about,
        eeg=model.eeg,
        decoded=decoded,
        pipeline=model.pipeline,
        blocks=model.eeg.dataset in BLOCKS and not about.get("simulated"),
        scores=scores,
        metrics=metrics,
        table=_table(scores, metrics) if scores else [],
    )
    return text.rstrip("\n")
