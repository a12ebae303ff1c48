"""The paper's tables of a scored run: Table 1 (baselines), 2 (subjects), 3 (ablation), and all metrics.

Each number has its interval, chance and ceiling below it, and the paper's number beside it where there is one. What
differs from the paper's protocol is said under every table. `neuroimagen evaluate` prints them, `neuroimagen report`
writes them to RUN/tables as HTML, Markdown and LaTeX.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuroimagen.files import write_atomic
from neuroimagen.report import published
from neuroimagen.report.formats import ABSENT, TICK, Cell, Column, Metric, Row, Table, decimal
from neuroimagen.report.notes import kind_of_eeg, notes, protocol, split_of
from neuroimagen.rows import BASELINES, FULL, IN_TABLES, PAPER, kind_of, uses
from neuroimagen.scores import evaluate as scoring
from neuroimagen.scores.definitions import METRICS
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.run_files import ReconstructRun

NAMES = ("table1", "table2", "table3", "metrics", "published", "protocol")
# Columns of Tables 1 to 3; balanced ACC where classes are uneven (scores["headline"]).
MAIN = ("acc_balanced", "acc", "auc", "shuffled", "acc_label", "is", "is_inception", "ssim", "ssim_other", "ssim_gain")
PLAIN = ("ssim_other",)  # without its interval in these: that of the gain counts


def kind_of_row(run: ReconstructRun, row: str) -> str:
    """paper | baseline | control"""
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
        known = {field: about[field] for field in Metric._fields if field in about}
        found[name] = Metric(**known | {"name": name, "number": len(found)})
    return found


def shown(estimate: dict[str, Any] | None, metric: Metric, ranged: bool = True) -> Cell:
    """An estimate with its interval, for a table cell."""
    if estimate is None or estimate.get("value") is None:
        return Cell(ABSENT)
    ranged = ranged and estimate.get("low") is not None
    ends = [estimate[name] for name in ("value", *(("low", "high") if ranged else ()))]
    text, *interval = (decimal(metric.scale * end, metric.digits) for end in ends)
    return Cell(text, f"[{', '.join(interval)}]" if interval else "")


class _Book:
    """The score book of one run, cut into cells."""

    def __init__(self, run: ReconstructRun, scores: dict[str, Any]) -> None:
        self.run, self.scores, self.metrics = run, scores, describe(scores)
        rows = scores["rows"].values()
        left_out = "" if scores["headline"] == "acc_balanced" else "acc_balanced"
        self.main = [name for name in MAIN if name != left_out and any(name in groups["all"] for groups in rows)]
        self.inception = "is_inception" if "is_inception" in self.main else "is"  # the paper's is by Inception-v3
        self.full, self.eeg = full_row(run), kind_of_eeg(scores)
        counts = ", ".join(f"{scores[name]} {name}" for name in ("trials", "pictures", "subjects"))
        self.size = f"{counts}, {scores['samples']} samples each"

    def columns(self, names: list[str], beside: bool) -> list[Column]:
        """`names`: heads of the leading columns. `beside`: with the paper's numbers."""
        columns = [Column(name) for name in names]
        own = {"acc": "acc", "ssim": "ssim", self.inception: "is"}  # our column -> what the paper calls the same
        for name in self.main:
            columns.append(Column(self.metrics[name].head, name))
            if beside and name in own:
                columns.append(Column("paper", own[name], paper=True))
        return columns

    def cells(
        self, columns: list[Column], found: dict[str, Any] | None, paper: published.Published | None = None
    ) -> list[Cell]:
        """One row of numbers; `found` None: not in this run."""
        cells = []
        for column in columns:
            if column.paper:
                cells.append(Cell(paper.values.get(column.metric, "") if paper else ""))
            elif column.metric:
                estimate = found.get(column.metric) if found else None
                cells.append(shown(estimate, self.metrics[column.metric], column.metric not in PLAIN))
        return cells

    def references(self, columns: list[Column]) -> list[Row]:
        """Chance and ceiling, as the last rows of a table."""
        chance = {name: {"value": m.chance} for name, m in self.metrics.items()}
        ceiling = {name: {"value": m.ceiling} for name, m in self.metrics.items()}
        guessing = self.scores["truth"].get("guessing", {})
        known = {"chance": chance, "guessing in the study": guessing, "the pictures seen": ceiling}
        blank = [Cell()] * sum(not column.metric for column in columns[1:])
        rows: list[Row] = []
        for name, found in known.items():
            cells = [c if c.text != ABSENT else Cell() for c in self.cells(columns, found)]
            if any(cell.text for cell in cells):
                kind = "ceiling" if found is ceiling else "chance"
                rows.append(Row([Cell(name), *blank, *cells], kind, rule=not rows))
        return rows


def _table1(book: _Book) -> Table:
    run, scores = book.run, book.scores
    columns = book.columns(["Model"], beside=True)
    rows, notes = [], []
    others = [row for row in rows_of_kind(run, "baseline") if row not in BASELINES]
    for name in [*BASELINES, *others]:
        found = scores["rows"].get(name, {}).get("all")
        cells = book.cells(columns, found, published.TABLE_1.get(name))
        rows.append(Row([Cell(name), *cells], "baseline" if found else "absent"))
    missing = [name for name in BASELINES if name not in scores["rows"]]
    if missing:
        trainers = " and ".join(dict.fromkeys(BASELINES[name] for name in missing))
        notes.append(f"Not in this run: {', '.join(missing)}; trained on the same shards by {trainers}.")
    cells = book.cells(columns, scores["rows"][book.full]["all"], published.TABLE_1.get(book.full))
    rows.append(Row([Cell(f"NeuroImagen ({book.full})"), *cells], "full"))
    for i, name in enumerate(rows_of_kind(run, "control")):
        cells = book.cells(columns, scores["rows"][name]["all"])
        rows.append(Row([Cell(f"control: {name}"), *cells], "control", rule=i == 0))
    said = [row for row in run.about["rows"] if row.get("means") and kind_of_row(run, row["name"]) != "paper"]
    notes += [f"{row['name']}: {row['means']}." for row in said]
    notes.append(
        "The paper's IS of the baselines are quoted by it from other papers; ours are trained by this protocol."
    )
    title = f"Table 1. NeuroImagen, baselines and controls, on {book.eeg} ({book.size})"
    return Table("table1", title, columns, rows + book.references(columns), notes)


def _table2(book: _Book) -> Table:
    scores = book.scores
    # The paper's rows are six certain persons: beside anybody else's, or a simulation's, they would say nothing.
    same = scores["dataset"] == published.PERCEIVELAB and not scores["simulated"] and book.full == FULL
    columns = book.columns(["Subject"], beside=same)
    rows: list[Row] = []
    found = {group: scores["rows"][book.full][group] for group in subjects(scores)}
    for group, metrics in found.items():
        number = group.removeprefix("subject ")
        paper = published.TABLE_2.get(int(number)) if same and number.isdecimal() else None
        rows.append(Row([Cell(group), *book.cells(columns, metrics, paper)]))
    for name, of in (("mean over subjects", statistics.mean), ("spread (SD)", statistics.stdev)):
        cells = []
        for column in columns[1:]:
            if column.paper:
                cells.append(Cell(_over_the_papers_subjects(column.metric, of)))
            else:
                ours = [metrics[column.metric]["value"] for metrics in found.values() if column.metric in metrics]
                value = of(ours) if len(ours) == len(found) else None
                cells.append(shown({"value": value}, book.metrics[column.metric]))
        rows.append(Row([Cell(name), *cells], "mean", rule=name.startswith("mean")))
    notes = ["Spread: standard deviation over subjects (n - 1)."]
    if not same:
        means = []
        for name in ("acc", "is", "ssim"):
            mean, sd = (_over_the_papers_subjects(name, of) for of in (statistics.mean, statistics.stdev))
            means.append(f"{published.HEADS[name]} {mean} (SD {sd})")
        why = "these subjects are simulated" if scores["simulated"] else "these are other subjects or another row"
        notes.append(
            f"The paper's Table 2 is not set beside this one: its rows are six certain persons, {why}. "
            f"Over its subjects the paper has {', '.join(means)}."
        )
    title = f"Table 2. Row {book.full} by subject, on {book.eeg} ({book.size})"
    return Table("table2", title, columns, rows + book.references(columns), notes)


def _over_the_papers_subjects(metric: str, of: Callable[[list[float]], float]) -> str:
    """In as many decimals as are printed."""
    printed = [entry.values[metric] for entry in published.TABLE_2.values()]
    return f"{of(list(map(float, printed))):.{len(printed[0].partition('.')[2])}f}"


def _table3(book: _Book) -> Table:
    scores = book.scores
    columns = book.columns(["Model", "Row", "B", "L", "I"], beside=True)
    rows: list[Row] = []
    for name in rows_of_kind(book.run, "paper"):
        number = str(PAPER.index(name) + 1) if name in PAPER else ""
        ticks = [Cell(TICK if used else ABSENT) for used in uses(name)]
        cells = book.cells(columns, scores["rows"][name]["all"], published.TABLE_3.get(name))
        rule = bool(rows) and not number and bool(rows[-1].cells[0].text)  # above the first that the paper has not
        rows.append(Row([Cell(number), Cell(name), *ticks, *cells], "full" if name == book.full else "", rule))
    rows += [row._replace(cells=[Cell(), row.cells[0], *row.cells[2:]]) for row in book.references(columns)]
    return Table("table3", f"Table 3. Ablation, on {book.eeg} ({book.size})", columns, rows, [])


def _metrics_table(book: _Book) -> Table:
    """All metrics; a line each, so that it stays readable with many rows."""
    run, scores = book.run, book.scores
    names = [*rows_of_kind(run, "paper"), *rows_of_kind(run, "baseline"), *rows_of_kind(run, "control")]
    columns = [Column("Metric"), Column("better")]
    columns += [Column(name, number=True) for name in (*names, "chance", "pictures seen")]
    rows: list[Row] = []
    blocks = [("", scores["rows"])]
    if scores.get("best_of_n"):
        blocks.append((f"best of {scores['samples']}: ", scores["best_of_n"]))
    for prefix, block in blocks:
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
    notes = [f"{m.head}: {m.definition}" for m in book.metrics.values() if m.definition]
    if scores.get("best_of_n"):
        notes.append(
            f"best of {scores['samples']}: of each trial the sample that scores best, chosen with the truth in sight: "
            "never to be compared with a mean."
        )
    return Table("metrics", f"All metrics, on {book.eeg} ({book.size})", columns, rows, notes + _unavailable(book))


def _unavailable(book: _Book) -> list[str]:
    unavailable = book.scores.get("unavailable", {})
    heads = {name: METRICS[name].head if name in METRICS else name for name in unavailable}
    return [
        f"{', '.join(heads[name] for name, said in unavailable.items() if said == why)}: {why}"
        for why in dict.fromkeys(unavailable.values())
    ]


def _published_table(book: _Book) -> list[Table]:
    scores = book.scores
    entries = published.on(scores["dataset"])
    names = [name for name in published.HEADS if any(name in entry.values for entry in entries)]
    if not entries:
        return []
    metrics = {name: book.metrics.get(name, Metric(name, published.HEADS[name])) for name in names}
    columns = [Column("Work"), *(Column(metric.head, name) for name, metric in metrics.items())]
    columns += [Column(head) for head in ("Band", "Selected on", "Subjects", "Split", "N", "Source")]
    found = scores["rows"][book.full]["all"]
    ours = [shown(found.get(book.inception if name == "is" else name), metrics[name]) for name in names]
    split, n_way = split_of(book.run)[0], f"{scores['n_way']}-way top-{scores['top_k']}"
    here = {what: said for what, said, _ in protocol(book.run, scores)}
    people = f"{scores['subjects']}, {book.eeg}"
    told = [Cell(text) for text in (here["Band"], here["Selected on"], people, split, n_way, "this run")]
    rows = [Row([Cell(f"NeuroImagen ({book.full})"), *ours, *told], "full")]
    for i, entry in enumerate(entries):
        p = entry.protocol
        told = [Cell(text) for text in (p.band, p.selected, p.subjects, p.split, p.n_way, entry.source)]
        values = [Cell(entry.values.get(name, "")) for name in names]
        rows.append(Row([Cell(entry.name), *values, *told], "published", rule=i == 0))
    which = "the data set that is simulated here" if scores["simulated"] else "the same data set"
    title = f"Published on {which}; our row is on {book.eeg}"
    notes = [
        "Published numbers are as printed by their sources and were not computed by us.",
        "Selected on: the split that chose the checkpoint or the epoch, as the published code shows or the text says; "
        f"last: none was chosen; {published.NOT_STATED}: in nothing that we read.",
        *(f"{entry.name}: {entry.remark}." for entry in entries if entry.remark),
    ]
    return [Table("published", title, columns, rows, notes)]


def _protocol_table(book: _Book) -> Table:
    columns = [Column("Protocol"), Column("here"), Column("in the paper")]
    rows = [Row([Cell(text) for text in line]) for line in protocol(book.run, book.scores)]
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
    first, *others = notes(run, scores, [book.metrics[name] for name in book.main])
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
    rows = [Row([Cell(name), *book.cells(columns, scores["rows"][name]["all"])]) for name in (*paper, *others)]
    guess = scores["truth"].get("guessing", {}).get(head.name, {}).get("value")
    known = f", a guess has {head(guess)}" if guess is not None else ""
    title = f"{book.eeg}: {scores['trials']} trials of {scores['pictures']} pictures, {scores['n_way']}-way{known}"
    return Table("summary", title, columns, rows, []).text(rule=False)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The command `neuroimagen evaluate RUN`: score it, and print `summary`, or Tables 1 to 3."""
    said = format_tables if config.verbose else summary
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
