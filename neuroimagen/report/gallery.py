"""The report page's trials: each picture's own scores, which trials are shown and by which rule, the gallery's HTML."""

import base64
import collections
import csv
import dataclasses
import html
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from neuroimagen.report.formats import decimal
from neuroimagen.report.tables import kind_of_row, rows_of_kind
from neuroimagen.scores.run_files import ReconstructRun

FIXED = ("row", "key", "sample", "subject", "label", "class_name", "image", "seen", "guess")  # of picture_scores.csv
KINDS = {"paper": "Rows of the paper", "baseline": "Baselines", "control": "Controls"}
SEED = 0  # of the order called random


def text(value: object) -> str:
    """Anything from a file, safe as HTML text and as an attribute in double quotes."""
    return html.escape(str(value), quote=True)


def spaced(items: list[Any], n: int) -> list[Any]:
    """At most n items, evenly spaced, the first among them."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def define(number: int | None, head: str) -> str:
    """A column head that tells, on a click, what the metric is; head: HTML. None: a metric without a definition."""
    if number is None:
        return head
    return f'<button type="button" class="def" popovertarget="def-{number}">{head}</button>'


class Metric(NamedTuple):
    """What the page knows of a metric (scores["metrics"]); None and "" where the scores do not say."""

    name: str
    head: str
    scale: float = 1
    digits: int = 3
    better: str | None = None  # "higher" | "lower" | None
    chance: float | None = None
    chance_of: str | None = ""
    ceiling: float | None = None
    ceiling_of: str | None = ""
    definition: str | None = ""
    source: str | None = ""

    def __call__(self, value: float | None, unit: bool = True) -> str:
        if value is None or not math.isfinite(value):
            return "&ndash;"
        return decimal(self.scale * value, self.digits) + "&nbsp;%" * (unit and self.scale == 100)

    @property
    def title(self) -> str:
        return self.head.replace(" (%)", "")

    def beside(self) -> str:
        """Chance and ceiling, to stand beside a number of this metric."""
        known = [("chance", self.chance), ("ceiling", self.ceiling)]
        return " &middot; ".join(f"{name} {self(value)}" for name, value in known if value is not None)


@dataclasses.dataclass
class PictureScores:
    """picture_scores.csv: metric -> row -> (trials, samples), NaN where not defined; what each picture looks like."""

    values: dict[str, dict[str, np.ndarray]]
    guesses: dict[tuple[str, str, int], str]  # (row, key, sample) -> class
    means: dict[str, dict[str, np.ndarray]] = dataclasses.field(init=False)  # (trials,), over the samples

    def __post_init__(self) -> None:
        self.means = {name: {row: _mean(found) for row, found in rows.items()} for name, rows in self.values.items()}


def read_picture_scores(run: ReconstructRun) -> PictureScores | None:
    """None if the file is not there; ValueError if it is damaged or belongs to other pictures."""
    path = run.path / "picture_scores.csv"
    if not path.exists():
        return None
    again = f"make it anew with: neuroimagen evaluate {run.path}"
    places = {trial["key"]: i for i, trial in enumerate(run.trials)}
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        columns = list(lines.fieldnames or [])
        missing = [name for name in FIXED if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}; {again}")
        metrics = [name for name in columns if name not in FIXED]
        shape = (len(run.trials), run.samples)
        values = {name: {row: np.full(shape, np.nan) for row in run.rows} for name in metrics}
        guesses = {}
        for line in lines:
            try:
                row, key, sample = line["row"], line["key"], int(line["sample"])
                place = places[key], sample
                for name in metrics:
                    values[name][row][place] = float(line[name] or "nan")
            except (KeyError, IndexError, TypeError, ValueError) as error:
                where, why = f"{path}, line {lines.line_num}", f"{type(error).__name__}: {error}"
                raise ValueError(f"{where} is damaged or of another run ({why}); {again}") from None
            guesses[row, key, sample] = line["guess"] or ""
    if len(guesses) != len(run.rows) * len(run.trials) * run.samples:
        raise ValueError(f"{path} belongs to other pictures; {again}")
    return PictureScores({name: rows for name, rows in values.items() if _any(rows)}, guesses)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _any(rows: dict[str, np.ndarray]) -> bool:
    return any(np.isfinite(found).any() for found in rows.values())


class Group(NamedTuple):
    name: str
    rule: str
    trials: list[int]  # places in run.trials


def random_order(n: int) -> list[int]:
    return np.random.default_rng(SEED).permutation(n).tolist()


def choose(
    run: ReconstructRun, book: PictureScores | None, metrics: dict[str, Metric], row: str, each: int
) -> tuple[list[Group], str]:
    """Best, median, worst and random trials of a row, and the rule in words. Without picture scores: random only."""
    n = len(run.trials)
    each = max(1, min(each, n // 4))
    rand = Group("Random", f"drawn among all {n} trials with seed {SEED}", random_order(n)[:each])
    ranked = [m for m in metrics.values() if m.better and book and m.name in book.values]
    if book is None or not ranked:
        return [rand], f"a draw with seed {SEED}"
    first, tie = ranked[0], next((m for m in ranked[1:] if m.name.startswith("ssim")), None)
    keys: list[list[float]] = []
    for metric in (first, tie) if tie else (first,):
        found = book.means[metric.name][row]
        keys.append(np.nan_to_num(found if metric.better == "lower" else -found, nan=np.inf).tolist())
    order = sorted(range(n), key=lambda i: (*(key[i] for key in keys), run.trials[i]["key"]))
    middle = (n - each) // 2
    rule = (
        f"All {n} trials are ordered by {first.title} of row {row} (mean over the samples; {first.better} is better; "
        f"ties: {f'{tie.title}, then ' if tie else ''}the trial key). Nothing is picked by hand."
    )
    return [
        Group("Best", f"the first {each} of {n}", order[:each]),
        Group("Median", f"the {each} in the middle of the order", order[middle : middle + each]),
        Group("Worst", f"the last {each}, the last one first", order[::-1][:each]),
        rand,
    ], rule


class Pictures:
    """Pictures as data: addresses. The page is written twice: the first time counts, then all are made to fit."""

    def __init__(self, budget: int) -> None:
        self.budget, self.size = budget, "at their own size"
        self.uses: collections.Counter[Path] = collections.Counter()
        self.found: dict[Path, str] = {}

    def __call__(self, path: Path) -> str:
        if not self.found:
            self.uses[path] += 1
        return self.found.get(path, "")

    def fit(self) -> None:
        """PNG as they are if all fit the budget; else WebP, of a falling size; what is far too large a sample tells."""
        sample, uses = spaced(sorted(self.uses), 24), sum(self.uses.values())
        for limit in (None, 2048, 512, 384, 256, 192, 160, 128, 96, 64):
            guess = sum(len(self._encode(path, limit)) for path in sample) / max(1, len(sample)) * uses
            if guess > 1.5 * self.budget and limit != 64:
                continue
            self.found = {path: self._encode(path, limit) for path in self.uses}
            if limit is not None:
                self.size = f"as WebP of {'their own size' if limit == 2048 else f'at most {limit} px'}"
            if sum(len(self.found[path]) * n for path, n in self.uses.items()) <= self.budget:
                break

    @staticmethod
    def _encode(path: Path, limit: int | None) -> str:
        kind, content = "png", path.read_bytes()
        if limit is not None:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=88)
            kind, content = "webp", buffer.getvalue()
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def img(self, path: Path, label: str, attributes: str = "") -> str:
        """attributes: HTML, already safe. The ground truth gets its red frame."""
        mark = ' class="truth"' if path.parent.name == "truth" else ""
        return f'<img{mark} src="{self(path)}" alt="{text(label)}" title="{text(label)}" {attributes}>'


class Gallery:
    """Section "Trials": groups by rule, more trials evenly spaced, and what page.js needs to sort and filter them."""

    def __init__(
        self,
        run: ReconstructRun,
        book: PictureScores | None,
        metrics: dict[str, Metric],
        full: str,
        each: int,
        limit: int,
    ) -> None:
        self.run, self.book, self.full = run, book, full
        self.numbers = {name: number for number, name in enumerate(metrics)}  # of the definitions
        self.metrics = [metrics.get(name, Metric(name, name)) for name in book.values] if book else []
        self.metrics.sort(key=lambda m: list(metrics).index(m.name) if m.name in metrics else len(metrics))
        self.groups, self.rule = choose(run, book, metrics, full, each)
        self.main = next((m for m in self.metrics if m.better), None)
        self.short = [m for m in self.metrics if m is self.main or m.name == "ssim"]  # below each picture
        shown = {i for group in self.groups for i in group.trials}
        rest = [i for i in range(len(run.trials)) if i not in shown]
        rest.sort(key=lambda i: (run.trials[i]["label"], str(run.trials[i]["subject"]), run.trials[i]["key"]))
        self.more = spaced(rest, max(0, limit - len(shown))) if limit > len(shown) else []
        self.shown = [*sorted(shown), *self.more]
        self.seen = "seen" if run.pictures_known else "category seen"
        self.kinds = {row: kind_of_row(run, row) for row in run.rows}
        known = [row for kind in KINDS for row in rows_of_kind(run, kind)]
        self.rows = [*known, *(row for row in run.rows if row not in known)]

    def scores_of(self, trial: dict[str, Any], i: int) -> str:
        """Table of this trial's scores: a line a row, mean over the samples."""
        if self.book is None or not self.metrics:
            return ""
        heads = "".join(f'<th scope="col">{define(self.numbers.get(m.name), text(m.head))}</th>' for m in self.metrics)
        lines = []
        for row in self.rows:
            cells = "".join(f"<td>{m(float(self.book.means[m.name][row][i]), False)}</td>" for m in self.metrics)
            lines.append(f'<tr><th scope="row">{text(row)}</th>{cells}</tr>')
        for name in ("chance", "ceiling"):
            ends = [getattr(m, name) for m in self.metrics]
            if any(end is not None for end in ends):
                cells = "".join(f"<td>{m(end, False)}</td>" for m, end in zip(self.metrics, ends, strict=True))
                lines.append(f'<tr class="{name}"><th scope="row">{name}</th>{cells}</tr>')
        return (
            f'<div class="wide"><table class="small"><caption>Scores of this trial, mean over its {self.run.samples} '
            f'sample{"s" * (self.run.samples != 1)} a row</caption><thead><tr><th scope="col">Row</th>{heads}</tr>'
            f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def picture(self, pictures: Pictures, trial: dict[str, Any], i: int, row: str, sample: int) -> str:
        key, numbers = trial["key"], []
        if self.book is not None:
            guess = self.book.guesses[row, key, sample]
            numbers += [f"looks like: {text(guess)}"] if guess else []
            found = ((m, self.book.values[m.name][row][i, sample]) for m in self.short)
            numbers += [f"{text(m.title)} {m(float(value))}" for m, value in found if math.isfinite(value)]
        label = f"{row}, sample {sample + 1}: {trial['class_name']}, subject {trial['subject']}"
        data = f'data-row="{text(row)}" data-sample="{sample}"'
        name = text(row) + (f" <i>{sample + 1}</i>" if row == self.full and self.run.samples > 1 else "")
        below = "".join(f"<small>{number}</small>" for number in numbers)
        return (
            f"<figure>{pictures.img(self.run.image(row, key, sample), label, data)}"
            f"<figcaption><b>{name}</b>{below}</figcaption></figure>"
        )

    def card(self, pictures: Pictures, i: int) -> str:
        """One trial: what was seen and the full row's first sample; opened: the map, all rows, the scores."""
        trial = self.run.trials[i]
        key, who = trial["key"], f"{trial['class_name']}, subject {trial['subject']}"
        value = ""
        if self.main and self.book:
            value = f"{text(self.main.title)} {self.main(float(self.book.means[self.main.name][self.full][i]))}"
        inside = []
        if self.run.map(key).exists():
            img = pictures.img(self.run.map(key), f"saliency map: {who}")
            inside.append(
                f"<figure>{img}<figcaption><b>saliency map</b><small>before diffusion</small></figcaption></figure>"
            )
        inside += [self.picture(pictures, trial, i, self.full, s) for s in range(min(3, self.run.samples))]
        inside += [self.picture(pictures, trial, i, row, 0) for row in self.rows if row != self.full]
        truth = pictures.img(self.run.truth(key), f"{self.seen}: {who}")
        drawn = pictures.img(self.run.image(self.full, key, 0), f"{self.full}, sample 1: {who}", "data-drawn")
        return (
            f'<details class="card" data-key="{text(key)}"><summary><span class="pair">{truth}{drawn}</span>'
            f'<b>{text(trial["class_name"])}</b><span class="sub">subject {text(trial["subject"])}'
            f'<span class="value">{value}</span></span></summary><div class="inside"><p class="sub">Trial {text(key)}, '
            f'picture {text(trial["image"])}</p><div class="figures">{"".join(inside)}</div>{self.scores_of(trial, i)}'
            "</div></details>"
        )

    def html(self, pictures: Pictures) -> str:
        n, pairs = len(self.run.trials), []
        for group in self.groups:
            cards = "".join(self.card(pictures, i) for i in group.trials)
            pairs.append(f'<h3>{group.name} <small>{group.rule}</small></h3><div class="cards">{cards}</div>')
        if self.more:
            cards = "".join(self.card(pictures, i) for i in self.more)
            which = "all the others" if len(self.shown) == n else f"{len(self.more)} more, evenly spaced"
            which += " in the order of class, subject and trial key"
            pairs.append(f'<h3>More trials <small>{which}</small></h3><div class="cards">{cards}</div>')
        some = (
            f"All {n} trials of the run are"
            if len(self.shown) == n
            else f"{len(self.shown)} of the run's {n} trials are"
        )
        absent = (
            ""
            if self.book is not None
            else " This run has no picture_scores.csv, so trials cannot be ordered by a score; make it with "
            f"<code>neuroimagen evaluate {text(self.run.path)}</code>."
        )
        truth = "picture that was shown" if self.seen == "seen" else "category that was shown (a picture of it)"
        return (
            '<h2 id="trials">Trial by trial</h2><p>Left, with a red frame, the '
            f"{truth}; right, the first sample of row {text(self.full)}. <b>Open a trial (click, or Enter) to see it "
            f"larger, with its saliency map, all rows and its scores.</b> {text(self.rule)}{absent}</p>"
            f'<p class="sub">{some} on this page, pictures {pictures.size}; sorting and filters work on these. All '
            f"pictures are in <code>{text(self.run.path.resolve().name)}/images</code>.</p>{self.controls()}"
            f'<div id="groups">{"".join(pairs)}</div><div id="found" hidden></div>{self.data()}'
        )

    def controls(self) -> str:
        def select(name: str, label: str, options: str) -> str:
            return f'<label>{label}<select name="{name}">{options}</select></label>'

        def options(items: list[tuple[str, str]], every: str = "") -> str:
            head = f'<option value="">{every}</option>' if every else ""
            return head + "".join(f'<option value="{text(value)}">{text(name)}</option>' for value, name in items)

        trials = [self.run.trials[i] for i in self.shown]
        orders = [("best", "best first"), ("median", "nearest the median first"), ("worst", "worst first")]
        orders = orders if self.main else []
        orders += [("random", f"random (seed {SEED})"), ("key", "trial key")]
        subjects = sorted({trial["subject"] for trial in trials}, key=lambda s: (isinstance(s, str), s))
        classes = sorted({(trial["label"], trial["class_name"]) for trial in trials}, key=lambda c: c[1].lower())
        rows = ""
        for kind, name in KINDS.items():
            inside = [(row, row) for row in self.rows if self.kinds[row] == kind]
            rows += f'<optgroup label="{name}">{options(inside)}</optgroup>' if inside else ""
        fields = [select("order", "Order", options(orders, "groups: best, median, worst, random"))]
        if self.main:
            fields.append(select("metric", "by", options([(m.name, m.title) for m in self.metrics if m.better])))
        fields.append(select("row", "Row", rows))
        fields.append(select("subject", "Subject", options([(str(s), str(s)) for s in subjects], "all")))
        fields.append(select("label", "Class", options([(str(label), name) for label, name in classes], "all")))
        return (
            f'<form class="controls" id="controls" hidden>{"".join(fields)}<button type="reset">Reset</button></form>'
            '<p class="sub" id="status" role="status"></p><noscript><p class="sub">Sorting and filters need '
            "JavaScript; everything else on this page works without.</p></noscript>"
        )

    def data(self) -> str:
        """What page.js sorts by, as JSON that cannot end its element."""

        def rounded(value: float) -> float | None:
            return float(f"{value:.5g}") if math.isfinite(value) else None

        place = {i: at for at, i in enumerate(random_order(len(self.run.trials)))}
        values = {m.name: self.book.means[m.name] for m in self.metrics if self.book}
        trials = {}
        for i in self.shown:
            trial = self.run.trials[i]
            trials[trial["key"]] = {
                "subject": str(trial["subject"]),
                "label": str(trial["label"]),
                "random": place[i],
                "values": {name: {row: rounded(v[i]) for row, v in rows.items()} for name, rows in values.items()},
            }
        medians = {
            name: {row: rounded(float(np.nanmedian(v))) if np.isfinite(v).any() else None for row, v in rows.items()}
            for name, rows in values.items()
        }
        known = [
            {"name": m.name, "title": m.title, "scale": m.scale, "digits": m.digits, "better": m.better}
            for m in self.metrics
        ]
        content = {
            "full": self.full,
            "total": len(self.run.trials),
            "metrics": known,
            "medians": medians,
            "trials": trials,
        }
        safe = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
        return f'<script type="application/json" id="data">{safe}</script>'
