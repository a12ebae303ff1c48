"""A table of the report and its four forms: HTML, Markdown, LaTeX and text for a terminal."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from neuroimagen.pages import render

ABSENT = "–"
TICK = "✓"
ASCII = str.maketrans({"–": "-", "✓": "x", "±": "+-", "σ": "sigma", "×": "x", "\xa0": " "})


def decimal(value: float, digits: int) -> str:
    """As f"{value:.{digits}f}", but no minus before zeros."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


class Cell(NamedTuple):
    """What a cell says, its 95 % interval in smaller print ("54.2", "[47.6, 60.4]"), and the metric that it names."""

    text: str = ""
    range: str = ""
    metric: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.range}".rstrip()


class Metric(NamedTuple):
    """What tables and page know of a metric (scores["metrics"]); None and "" where the scores do not say."""

    name: str
    head: str
    scale: float = 1
    digits: int = 3
    better: str | None = None  # "higher" | "lower" | None
    chance: float | None = None
    chance_of: str | None = ""
    chance_best_of_n: float | None = None
    ceiling: float | None = None
    ceiling_of: str | None = ""
    definition: str | None = ""
    source: str | None = ""
    number: int | None = None  # of its definition on the page

    @classmethod
    def of(cls, name: str, about: dict[str, Any]) -> "Metric":
        """`about`: what scores.json says of it, which may be nothing."""
        return cls(**{"head": name} | {field: about[field] for field in cls._fields if field in about} | {"name": name})

    def __call__(self, value: float | None, unit: bool = True) -> str:
        if value is None or not math.isfinite(value):
            return "–"
        return decimal(self.scale * float(value), self.digits) + "\xa0%" * (unit and self.scale == 100)

    @property
    def title(self) -> str:
        return self.head.replace(" (%)", "")

    @property
    def ends(self) -> list[tuple[str, float, str | None]]:
        """Chance and ceiling, as far as they are known, and of what."""
        known = ("chance", self.chance, self.chance_of), ("ceiling", self.ceiling, self.ceiling_of)
        return [(name, value, of) for name, value, of in known if value is not None]


def shown(estimate: dict[str, Any] | None, metric: Metric, ranged: bool = True) -> Cell:
    """An estimate with its interval, for a table cell."""
    if estimate is None or estimate.get("value") is None:
        return Cell(ABSENT)
    ranged = ranged and estimate.get("low") is not None
    ends = [estimate[name] for name in ("value", *(("low", "high") if ranged else ()))]
    text, *interval = (decimal(metric.scale * end, metric.digits) for end in ends)
    return Cell(text, f"[{', '.join(interval)}]" if interval else "")


class Column(NamedTuple):
    """`metric`: its name in the score book. `paper`: published, not ours. `number`: numbers, of several metrics."""

    head: str
    metric: str = ""
    paper: bool = False
    number: bool = False

    @property
    def numeric(self) -> bool:
        return self.number or bool(self.metric)

    @property
    def css(self) -> str:
        return " ".join(["number"] * self.numeric + ["paper"] * self.paper)


class Row(NamedTuple):
    """`kind`, for styling: full | baseline | control | chance | ceiling | mean | absent | "". `rule`: a line above."""

    cells: list[Cell]
    kind: str = ""
    rule: bool = False


@dataclasses.dataclass
class Table:
    """`name` is the file's: table1; `title` says on what kind of EEG; notes are whole sentences, without markup."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str]

    @property
    def head(self) -> list[str]:
        return [column.head for column in self.columns]

    def html(self) -> str:
        """<table> with its caption; a <tbody> for each part between rules; classes are for styling only."""
        return render("report/templates/table.j2", table=self)

    def html_file(self) -> str:
        """The same as a file of its own."""
        return render("report/templates/table_file.j2", table=self)

    def marked(self, row: Row) -> list[tuple[Column, Cell, bool]]:
        """Of each cell its column, and whether it is bold: all that is ours in the row that counts."""
        own = zip(self.columns, row.cells, strict=True)
        return [(column, cell, row.kind == "full" and bool(cell.text) and not column.paper) for column, cell in own]

    def markdown(self) -> str:
        """A pipe table of GitHub's Markdown; the row that counts is bold, a rule is an empty line of the table."""
        return render("report/templates/table.md.j2", table=self, md=_md)

    def latex(self) -> str:
        r"""A float to \input; needs booktabs and amssymb. Intervals stand under their numbers."""
        lengths = [max(len(row.cells[i].text) for row in self.rows) for i in range(len(self.columns))]
        long = rf"p{{{min(6, 12 // max(1, sum(length > 30 for length in lengths)))}cm}}"
        kinds = ["r" if c.numeric else "l" if n <= 30 else long for c, n in zip(self.columns, lengths, strict=True)]
        title = re.sub(r"^Table \d+\. ", "", self.title)  # LaTeX numbers its tables itself
        return render("report/templates/table.tex.j2", table=self, title=title, kinds="".join(kinds), tex=_tex)

    def text(self, notes: bool = True, rule: bool = True) -> str:
        """Aligned columns, ASCII where the terminal may know nothing else."""
        cells = [self.head, *([str(cell) for cell in row.cells] for row in self.rows)]
        cells = [[cell.translate(ASCII) for cell in line] for line in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        line_across = "-" * max(map(len, lines))
        body = [x for row, line in zip(self.rows, lines[1:], strict=True) for x in [line_across] * row.rule + [line]]
        said = [note.translate(ASCII) for note in self.notes] if notes else []
        return "\n".join([self.title.translate(ASCII), lines[0], *[line_across] * rule, *body, *said])


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]~#])", r"\\\1", " ".join(text.split()))


TEX = str.maketrans(yaml.safe_load(Path(__file__).with_name("tex.yaml").read_text(encoding="utf-8")))


def _tex(text: str) -> str:
    return re.sub(r"(?<![\w.)-])-(?=\d)", "$-$", " ".join(text.split()).translate(TEX))  # minus, not hyphen
