"""What a terminal, a notebook and README.md show: a model in ten lines, what it drew as a grid, its card."""

import dataclasses
import io
from typing import Any

import torch
from PIL import Image

from neuroimagen.pages import render
from neuroimagen.report.formats import ASCII, Metric, shown
from neuroimagen.rows import FULL, ROWS, SEMANTICS

BLOCKS = {"perceivelab", "eeg_imagenet"}  # data sets that show each class in one uninterrupted block
MOST_TRIALS, SIDE = 24, 128  # of a grid: trials, and px of the longer side of a picture


def describe(model: Any) -> str:
    """A NeuroImagen in ten lines."""
    rows = (model.about.get("scores") or {}).get("rows", {})
    row = FULL if FULL in rows else next(iter(rows), "")
    size = sum(parameter.numel() for parameter in model.parameters())
    return render("model/templates/describe.j2", model=model, size=size, row=row).rstrip("\n")


@dataclasses.dataclass(repr=False)
class Reconstruction:
    """What `NeuroImagen.reconstruct` gives; a notebook shows it as a grid.

    images: [trial][sample], RGB; maps: the saliency map M_p(x) of each trial, [] if the model has none
    embeddings: (n_trials, L, D_s) float32, what M_s(x) told the diffusion model; None for rows without semantics
    device, precision: what the diffusion model drew on and in, such as "cuda:0" and "bf16"
    """

    images: list[list[Image.Image]]
    maps: list[Image.Image]
    embeddings: torch.Tensor | None
    keys: list[str]
    row: str
    device: str = ""
    precision: str = ""

    def __repr__(self) -> str:
        samples = len(self.images[0]) if self.images else 0
        return (
            f"Reconstruction of {len(self.images)} trials, {samples} pictures each, row {self.row}, "
            f"on {self.device} in {self.precision}"
        )

    def _repr_html_(self) -> str:
        """A line a trial: its key, its map, its pictures, made smaller."""
        lines = []
        for i, (key, pictures) in enumerate(zip(self.keys[:MOST_TRIALS], self.images, strict=False)):
            lines.append((key, [_small(image) for image in (*self.maps[i : i + 1], *pictures)]))
        left = len(self.images) - MOST_TRIALS
        return render("model/templates/result.j2", result=self, lines=lines, left=left, side=SIDE)


def _small(image: Image.Image) -> bytes:
    """PNG"""
    small, data = image.copy(), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(data, format="PNG")
    return data.getvalue()


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
    told = ("simulated", "subjects", "trials", "classes", "protocol", "captions", "diffusion", "settings")
    about: dict[str, Any] = dict.fromkeys(told) | {"made_of": {}, "versions": {}, "notes": []} | model.about
    scores = about.get("scores") or {}
    names = dict.fromkeys(name for row in scores.get("rows", {}).values() for name in row)
    metrics = {name: scores.get("metrics", {}).get(name, {}) for name in names}
    decoded = ["a saliency map"] * any(ROWS[row].map for row in model.rows)
    decoded += ["an embedding of what was seen"] * any(ROWS[row].semantics in SEMANTICS for row in model.rows)
    text = render(
        "model/templates/card.md.j2",
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
