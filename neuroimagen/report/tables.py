"""The paper's tables of a scored run: Table 1 (baselines), 2 (subjects), 3 (ablation), and all metrics.

Each number has its interval, chance and ceiling below it, and the paper's number beside it where there is one. What
differs from the paper's protocol is said under every table. `neuroimagen evaluate` prints them, `neuroimagen report`
writes them to RUN/tables as HTML, Markdown and LaTeX.
"""

import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from neuroimagen.files import busy, write_atomic
from neuroimagen.pages import render
from neuroimagen.report import published
from neuroimagen.report.formats import ABSENT, TICK, Cell, Column, Metric, Row, Table, shown
from neuroimagen.rows import BASELINES, FULL, IN_TABLES, PAPER, ROWS, kind_of, uses
from neuroimagen.scores import evaluate as scoring
from neuroimagen.scores.definitions import METRICS
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.run_files import ReconstructRun
from neuroimagen.studies.classes import UNEVEN

NAMES = ("table1", "table2", "table3", "metrics", "published", "protocol")
# Columns of Tables 1 to 3; balanced ACC where classes are uneven (scores["headline"]).
MAIN = (
    "acc_balanced", "acc", "auc", "shuffled", "gap", "acc_label", "is", "is_inception",
    "ssim", "ssim_other", "ssim_gain",
)  # fmt: skip
PLAIN = ("ssim_other",)  # without its interval in these: that of the gain counts


def kind_of_row(run: ReconstructRun, row: str) -> str:
    """paper | image | baseline | linear | control"""
    for about in run.about["rows"]:
        if about["name"] == row and "kind" in about:
            return about["kind"]
    return kind_of(row)


def rows_of_kind(run: ReconstructRun, kind: str) -> list[str]:
    """In the order of the paper's tables, whatever the order in which they were drawn; unknown ones last."""
    found = [row for row in run.rows if kind_of_row(run, row) == kind]
    return sorted(found, key=lambda row: IN_TABLES.index(row) if row in IN_TABLES else len(IN_TABLES))


def full_row(run: ReconstructRun) -> str:
    """The row that stands for our method: L+I, or the last of the paper's rows that the run has."""
    if FULL in run.rows:
        return FULL
    return [*run.rows, *rows_of_kind(run, "paper")][-1]


def subjects(scores: dict[str, Any]) -> list[str]:
    """Names of the groups "subject 1", ..."""
    return [group for group in next(iter(scores["rows"].values())) if group.startswith("subject ")]


def describe(scores: dict[str, Any]) -> dict[str, Metric]:
    """The metrics measured, in the order in which the page numbers their definitions."""
    said = scores.get("metrics", {})
    found: dict[str, Metric] = {}
    for name in dict.fromkeys([*said, *(metric for groups in scores["rows"].values() for metric in groups["all"])]):
        about = METRICS[name]._asdict() if name in METRICS else {"head": name}
        about = {k: about[k] for k in ("head", "scale", "digits", "better") if k in about} | said.get(name, {})
        found[name] = Metric.of(name, about)._replace(number=len(found))
    return found


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


class _Book:
    """The score book of one run, cut into rows of tables."""

    def __init__(self, run: ReconstructRun, scores: dict[str, Any]) -> None:
        self.run, self.scores, self.metrics = run, scores, describe(scores)
        self.found = {row: groups["all"] for row, groups in scores["rows"].items()}
        left_out = "" if scores["headline"] == "acc_balanced" else "acc_balanced"
        self.main = [name for name in MAIN if name != left_out and any(name in found for found in self.found.values())]
        self.inception = "is_inception" if "is_inception" in self.main else "is"  # the paper's is by Inception-v3
        self.full, self.eeg = full_row(run), kind_of_eeg(scores)
        self.missing = {name: trainer for name, trainer in BASELINES.items() if name not in self.found}
        counts = ", ".join(f"{scores[name]} {name}" for name in ("trials", "pictures", "subjects"))
        self.on = f"on {self.eeg} ({counts}, {scores['samples']} sample{'s' * (scores['samples'] != 1)} each)"

    def columns(self, names: list[str], beside: bool) -> list[Column]:
        """`names`: heads of the leading columns. `beside`: with the paper's numbers."""
        columns = [Column(name) for name in names]
        own = {"acc": "acc", "ssim": "ssim", self.inception: "is"}  # our column -> what the paper calls the same
        for name in self.main:
            columns.append(Column(self.metrics[name].head, name))
            if beside and name in own:
                columns.append(Column("paper", own[name], paper=True))
        return columns

    def row(
        self,
        columns: list[Column],
        leading: list[str],
        found: dict[str, Any] | None,
        paper: published.Published | None = None,
        kind: str = "",
        rule: bool = False,
    ) -> Row:
        """`leading`: texts of the leading columns; `found`: estimates by metric, None for what is not in this run."""
        cells = list(map(Cell, leading))
        for column in columns[len(leading) :]:
            if column.paper:
                cells.append(Cell(paper.values.get(column.metric, "") if paper else ""))
            else:
                estimate = (found or {}).get(column.metric)
                cells.append(shown(estimate, self.metrics[column.metric], column.metric not in PLAIN))
        return Row(cells, kind, rule)

    def references(self, columns: list[Column], name_at: int = 0) -> list[Row]:
        """Chance and ceiling, as the last rows of a table; name_at: the leading column that says which."""
        leading = [""] * sum(not column.metric for column in columns)
        known = {
            "chance": ({name: {"value": m.chance} for name, m in self.metrics.items()}, "chance"),
            "guessing in the study": (self.scores["truth"].get("guessing", {}), "chance"),
            "the pictures seen": ({name: {"value": m.ceiling} for name, m in self.metrics.items()}, "ceiling"),
        }
        rows: list[Row] = []
        for name, (found, kind) in known.items():
            row = self.row(columns, leading, found, kind=kind, rule=not rows)
            row = row._replace(cells=[cell if cell.text != ABSENT else Cell() for cell in row.cells])
            if any(cell.text for cell in row.cells):
                row.cells[name_at] = Cell(name)
                rows.append(row)
        return rows


def _table1(book: _Book) -> Table:
    run, columns = book.run, book.columns(["Model"], beside=True)
    rows = []
    for name in [*BASELINES, *(row for row in rows_of_kind(run, "baseline") if row not in BASELINES)]:
        kind = "absent" if name in book.missing else "baseline"
        rows.append(book.row(columns, [name], book.found.get(name), published.TABLE_1.get(name), kind))
    ours, paper = f"NeuroImagen ({book.full})", published.TABLE_1.get(book.full)
    rows.append(book.row(columns, [ours], book.found[book.full], paper, "full"))
    for kind in ("linear", "control"):
        for i, name in enumerate(rows_of_kind(run, kind)):
            rows.append(book.row(columns, [f"{kind}: {name}"], book.found[name], kind="control", rule=i == 0))
    meanings = [row for row in run.about["rows"] if row.get("means") and kind_of_row(run, row["name"]) != "paper"]
    told = {"scores": book.scores, "metrics": book.metrics, "rows": ROWS, "shown": shown}
    said = notes("table1", missing=book.missing, meanings=meanings, **told)
    title = f"Table 1. NeuroImagen, baselines and controls, {book.on}"
    return Table("table1", title, columns, rows + book.references(columns), said)


def _table2(book: _Book) -> Table:
    scores = book.scores
    # The paper's rows are six certain persons: beside anybody else's, or a simulation's, they would say nothing.
    same = scores["dataset"] == published.PERCEIVELAB and not scores["simulated"] and book.full == FULL
    columns = book.columns(["Subject"], beside=same)
    rows: list[Row] = []
    groups = {group: scores["rows"][book.full][group] for group in subjects(scores)}
    for group, found in groups.items():
        number = group.removeprefix("subject ")
        paper = published.TABLE_2.get(int(number)) if same and number.isdecimal() else None
        rows.append(book.row(columns, [group], found, paper))
    mean, sd = (published.over_subjects(of) for of in (statistics.mean, statistics.stdev))
    for name, of, paper in (("mean over subjects", statistics.mean, mean), ("spread (SD)", statistics.stdev, sd)):
        values = {m: [found[m]["value"] for found in groups.values() if m in found] for m in book.main}
        over = {m: {"value": of(own)} for m, own in values.items() if len(own) == len(groups)}
        rows.append(book.row(columns, [name], over, paper, "mean", rule=of is statistics.mean))
    over_subjects = [f"{published.HEADS[m]} {mean.values[m]} (SD {sd.values[m]})" for m in ("acc", "is", "ssim")]
    said = notes("table2", same=same, scores=scores, over_subjects=over_subjects)
    title = f"Table 2. Row {book.full} by subject, {book.on}"
    return Table("table2", title, columns, rows + book.references(columns), said)


def _table3(book: _Book) -> Table:
    columns = book.columns(["Model", "Row", "B", "L", "I"], beside=True)
    rows: list[Row] = []
    for name in [*rows_of_kind(book.run, "paper"), *rows_of_kind(book.run, "image")]:
        number = str(PAPER.index(name) + 1) if name in PAPER else ""
        leading = [number, name, *(TICK if used else ABSENT for used in uses(name))]
        kind = "full" if name == book.full else ""
        rule = bool(rows) and not number and bool(rows[-1].cells[0].text)  # above the first that the paper has not
        rows.append(book.row(columns, leading, book.found[name], published.TABLE_3.get(name), kind, rule))
    return Table("table3", f"Table 3. Ablation, {book.on}", columns, rows + book.references(columns, name_at=1), [])


def _metrics_table(book: _Book) -> Table:
    """All metrics; a line each, so that it stays readable with many rows."""
    scores = book.scores
    kinds = ("paper", "image", "baseline", "linear", "control")
    names = [name for kind in kinds for name in rows_of_kind(book.run, kind)]
    columns = [Column("Metric"), Column("better")]
    columns += [Column(name, number=True) for name in (*names, "chance", "pictures seen")]
    rows: list[Row] = []
    for prefix, block in (("", scores["rows"]), (f"best of {scores['samples']}: ", scores.get("best_of_n") or {})):
        first = bool(rows)
        for m in book.metrics.values():
            found = [block.get(name, {}).get("all", {}).get(m.name) for name in names]
            if not any(found):
                continue
            ends = (m.chance_best_of_n, None) if prefix else (m.chance, m.ceiling)
            cells = [Cell(prefix + m.head, metric=m.name), Cell(m.better or ""), *(shown(e, m) for e in found)]
            cells += [shown({"value": end}, m) if end is not None else Cell() for end in ends]
            rows.append(Row(cells, rule=first))
            first = False
    said = notes("metrics", metrics=book.metrics.values(), scores=scores) + _unavailable(book)
    return Table("metrics", f"All metrics, {book.on}", columns, rows, said)


def _unavailable(book: _Book) -> list[str]:
    heads: dict[str, list[str]] = defaultdict(list)
    for name, why in book.scores.get("unavailable", {}).items():
        heads[why].append(METRICS[name].head if name in METRICS else name)
    return [f"{', '.join(names)}: {why}" for why, names in heads.items()]


def _published_table(book: _Book) -> list[Table]:
    scores, entries = book.scores, published.on(book.scores["dataset"])
    if not entries:
        return []
    names = [name for name in published.HEADS if any(name in entry.values for entry in entries)]
    metrics = {name: book.metrics.get(name, Metric(name, published.HEADS[name])) for name in names}
    columns = [Column("Work"), *(Column(metric.head, name) for name, metric in metrics.items())]
    columns += [Column(head) for head in ("Band", "Selected on", "Subjects", "Split", "N", "Source")]
    found = book.found[book.full]
    ours = [shown(found.get(book.inception if name == "is" else name), metrics[name]) for name in names]
    here = {what: said for what, said, _ in protocol(book.run, scores)}
    told = [here["Band"], here["Selected on"], f"{scores['subjects']}, {book.eeg}", split_of(book.run)[0]]
    told += [f"{scores['n_way']}-way top-{scores['top_k']}", "this run"]
    rows = [Row([Cell(f"NeuroImagen ({book.full})"), *ours, *map(Cell, told)], "full")]
    for i, entry in enumerate(entries):
        p, values = entry.protocol, [entry.values.get(name, "") for name in names]
        said = [p[field] for field in ("band", "selected", "subjects", "split", "n_way")]
        told = [entry.name, *values, *said, entry.source]
        rows.append(Row(list(map(Cell, told)), "published", rule=i == 0))
    which = "the data set that is simulated here" if scores["simulated"] else "the same data set"
    title = f"Published on {which}; our row is on {book.eeg}"
    return [Table("published", title, columns, rows, notes("published", entries=entries))]


def _protocol_table(book: _Book) -> Table:
    columns = [Column("Protocol"), Column("here"), Column("in the paper")]
    rows = [Row(list(map(Cell, line))) for line in protocol(book.run, book.scores)]
    source = f"In the paper: {published.PAPER}. Everything in which the two differ is a reason not to compare numbers."
    return Table("protocol", f"Protocol beside the paper's, on {book.eeg}", columns, rows, [source])


def absent(run: ReconstructRun, scores: dict[str, Any]) -> dict[str, str]:
    """Why a table cannot be made: {"table2": sentence}."""
    if len(subjects(scores)) < 2:
        return {"table2": "Table 2 compares subjects, and this run has one."}
    return {}


def build(run: ReconstructRun, scores: dict[str, Any]) -> list[Table]:
    """Tables 1, 2 (if there are several subjects), 3, all metrics, what else is published on the data set, protocol."""
    book, lacking = _Book(run, scores), absent(run, scores)
    first, *others = under_all(run, scores, [book.metrics[name] for name in book.main])
    tables = [_table1(book), *([] if "table2" in lacking else [_table2(book)]), _table3(book)]
    for table in tables:
        table.notes += others
    tables += [_metrics_table(book), *_published_table(book)]
    for table in tables:
        table.notes.insert(0, first)
    return [*tables, _protocol_table(book)]


def format_tables(run: ReconstructRun, scores: dict[str, Any]) -> str:
    """Tables 1 to 3 as text, with their notes once, and what could not be measured."""
    found = build(run, scores)
    tables = [table for table in found if table.name.startswith("table")]
    _, *said = dict.fromkeys(note for table in tables for note in table.notes)
    parts = [table.text(notes=False) for table in (*tables, found[-1])]  # the last says what the first note does
    unavailable = _unavailable(_Book(run, scores))
    return "\n\n".join([*parts, "\n".join([*said, *absent(run, scores).values(), *unavailable])])


def summary(run: ReconstructRun, scores: dict[str, Any]) -> str:
    """Table 3 and the controls in the width of a terminal: what a person reads first."""
    book, paper = _Book(run, scores), rows_of_kind(run, "paper")
    head = book.metrics[scores["headline"]]
    asked = {head.name: head.head, "shuffled": "if shuffled", "ssim_gain": "SSIM gain"}
    columns = [Column("row"), *(Column(said, name) for name, said in asked.items())]
    others = [row for row in run.rows if row not in paper]
    rows = [book.row(columns, [name], scores["rows"][name]["all"]) for name in (*paper, *others)]
    guess = scores["truth"].get("guessing", {}).get(head.name, {}).get("value")
    known = f", a guess has {head(guess)}" if guess is not None else ""
    title = f"{book.eeg}: {scores['trials']} trials of {scores['pictures']} pictures, {scores['n_way']}-way{known}"
    lacking = len(scores.get("unavailable", {}))
    notes = [f"{lacking} of the metrics are not at hand: --verbose says why, and how to get them"] if lacking else []
    return Table("summary", title, columns, rows, notes).text(rule=False)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The command `neuroimagen evaluate RUN`: score it, and print `summary`, or Tables 1 to 3."""
    said = format_tables if config.verbose else summary
    with busy(Path(config.run, "evaluate.lock")):
        return scoring.evaluate(config, lambda run, scores: print(said(run, scores)))


def write(run: ReconstructRun, scores: dict[str, Any], folder: Path) -> None:
    """folder/NAMES.{html, md, tex}; files of tables that are no more are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {table.name: table for table in build(run, scores)}
    for name in NAMES:
        for suffix, form in {"html": "html_file", "md": "markdown", "tex": "latex"}.items():
            path = folder / f"{name}.{suffix}"
            if name in tables:
                write_atomic(path, getattr(tables[name], form)())
            else:
                path.unlink(missing_ok=True)
