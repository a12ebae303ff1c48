"""The rows of the study, known here alone: each way to make a picture of a trial, what it needs and what it means.

The paper's rows (its Table 3) are choices of what the diffusion model is given: the saliency map (I), the meaning
learnt from label captions (L) or from picture captions (B). Controls measure what decoding adds: pictures made without
a brain, by an oracle, without a generative model, or from less than a trial says. Linear rows: ridge regressions in
place of the networks. Baselines are other networks from EEG to pictures. Image rows tell the diffusion model the
features of a picture too (E), through an adapter (reconstruction/image_prompt.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Config fields of trainers/reconstruct.py that name a run -> its trainer, in trainers/
STAGES = {"saliency": "pixel_saliency", "semantics_label": "sample_semantics", "semantics_blip": "sample_semantics"}
RUNS = STAGES | {"brain2image": "brain2image", "brain2image_vae": "brain2image", "neurovision": "neurovision"}
RUNS |= {"contrastive": "contrastive"}
SEMANTICS = {"label": "L", "blip": "B"}  # the captions that M_s learns from -> their letter in the names of rows


class Row(NamedTuple):
    """A line of rows.yaml: a name for `rows=`, a directory in RUN/images, a line of the tables.

    kind: paper | image | control | linear | baseline
    semantics: what the diffusion model is told: an embedding decoded as learnt from "label" or "blip" captions; the
    label caption of a class, "oracle", "random class" or "class" (reconstruction/controls.py); None: the empty caption
    map: does it start from a map?
    by: who draws: "diffusion", "retrieval" (reconstruction/controls.py), or a baseline, by the field that names its run
    of: what map and embedding are decoded from: this "trial"; "another of its class"; its "surrogate"; "train", the
    mean of all; or this trial by "ridge" regression (reconstruction/given.py)
    beside: the row that differs from it in nothing else, so that their difference says what is owed to what differs
    image: whose features it is told: those "decoded" by a contrastive run, or the picture's own, "true"; "": none
    """

    kind: str
    means: str
    semantics: str | None = None
    map: bool = False
    by: str = "diffusion"
    of: str = "trial"
    beside: str = ""
    image: str = ""

    @property
    def needs(self) -> list[str]:
        """Fields of the runs it needs, all of them; of retrieval's two either will do."""
        if self.by == "retrieval":
            return ["semantics_label", "semantics_blip"]
        if self.of == "ridge":
            return []
        learnt = ["label"] * (self.semantics == "class") + [self.semantics] * (self.semantics in SEMANTICS)
        others = [self.by] * (self.by in RUNS) + ["contrastive"] * (self.image == "decoded")
        return ["saliency"] * self.map + [f"semantics_{kind}" for kind in learnt] + others


_FILE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ROWS = {name: Row(kind, **about) for kind, rows in _FILE.items() for name, about in rows.items()}
OTHER = "another of its class"
PAPER = ("I", "L", "B", "B+I", "L+I")  # models 1 to 5 of the paper's Table 3
FULL = "L+I"  # the paper's method
BEST_FIRST = ("L+I", "B+I", "L", "B", "I", "none")  # the paper's model 5 is its best
BASELINES = {row: f"trainers/{RUNS[about.by]}.py" for row, about in ROWS.items() if about.by in RUNS}  # of Table 1
OF_IMAGE = ("contrastive", "image_prompt", "image_prompt_scale", "image_features")  # fields of the next rows
IMAGE = tuple(row for row, about in ROWS.items() if about.image)  # these and the next are drawn only when named
VALIDITY = tuple(row for row, about in ROWS.items() if about.beside and not about.image)
FLOOR, CEILING = "random class", "oracle"  # between which a row's accuracy lies
IN_TABLES = (
    *PAPER,
    *IMAGE,
    *BASELINES,
    "retrieval",
    *VALIDITY,
    CEILING,
    FLOOR,
)  # the order of the tables, within each kind


def kind_of(row: str) -> str:
    """paper | image | control | linear | baseline; a row that is not known here counts as one of the paper's."""
    return ROWS[row].kind if row in ROWS else "paper"


def uses(row: str) -> tuple[bool, bool, bool]:
    """Does a row use picture captions (B), label captions (L), the map (I)? One that is not known: by its name."""
    if row not in ROWS:
        parts = row.split("+")
        return "B" in parts, "L" in parts, "I" in parts
    about = ROWS[row]
    return about.semantics == "blip", about.semantics == "label", about.map


def rows_to_draw(rows: Sequence[str] | None, runs: Mapping[str, str | None]) -> list[str]:
    """`rows`, or for None what the given runs allow of those of the paper but "none", "oracle", "random class",
    "retrieval" and the baselines. ValueError for what no run can draw.

    runs: {a name in RUNS: run directory, or None}
    """
    if rows is None:
        given = {field for field, directory in runs.items() if directory is not None}
        if not given & set(STAGES):
            raise ValueError("rows=null draws what the given runs allow: give saliency= or semantics_label=RUN_DIR")
        some = {row for row, about in ROWS.items() if about.by == "retrieval" and given & set(about.needs)}
        left_out = ("none", *IMAGE, *VALIDITY)
        return [row for row in ROWS if row not in left_out and (row in some or given >= set(ROWS[row].needs))]
    if set(rows) - set(ROWS) or not rows or len(set(rows)) < len(rows):
        raise ValueError(f"rows={rows} must be different names out of {', '.join(ROWS)}")
    return list(rows)


def check_rows(rows: Sequence[str], given: Mapping[str, Any]) -> None:
    """ValueError unless rows with E come with what they need beside a run, and settings with a row that they are of.

    given: the fields of trainers/reconstruct.py
    """
    if given["rescale_embeddings"] and not any(ROWS[row].semantics in SEMANTICS for row in rows):
        raise ValueError(f"rescale_embeddings=true: no row of {', '.join(rows)} has a decoded embedding; leave it out")
    wants = {"image_prompt": [row for row in rows if ROWS[row].image]}
    wants["image_features"] = [row for row in rows if ROWS[row].image == "true"]
    for field, some in wants.items():
        if some and not given[field]:
            raise ValueError(f"rows {', '.join(some)} need {field}= (docs/reconstruct.md)")
        if given[field] and not some:
            raise ValueError(f"{field}={given[field]}: no row of {', '.join(rows)} uses it; leave it out")


def adds_rows(before: Mapping[str, Any], now: Mapping[str, Any], changed: Iterable[str]) -> bool:
    """Whether the config `now` is that of a reconstruct run, `before`, with further rows and the runs that they need.

    changed: the fields that differ. Each row is drawn by itself, so the pictures that are there stay what they are.
    """
    kept = set(rows_to_draw(before["rows"], before)) <= set(rows_to_draw(now["rows"], now))
    new = {field for field in RUNS if before[field] is None} | {"rows"}
    if before["image_prompt"] is None:
        new |= {*OF_IMAGE}
    return kept and set(changed) <= new
