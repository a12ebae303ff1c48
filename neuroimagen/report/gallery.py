"""The report page's trials: each picture's own scores, which trials are shown and by which rule, pictures as data."""

import collections
import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from neuroimagen.pages import data_address
from neuroimagen.report.figures import spaced
from neuroimagen.report.formats import Metric
from neuroimagen.report.tables import kind_of_row, rows_of_kind
from neuroimagen.scores.run_files import ReconstructRun

FIXED = ("row", "key", "sample", "subject", "label", "class_name", "image", "seen", "guess")  # of picture_scores.csv
KINDS = {
    "paper": "Rows of the paper",
    "image": "Rows of image features",
    "baseline": "Baselines",
    "linear": "Linear decoders",
    "control": "Controls",
}
SEED = 0  # of the order called random


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
        metrics = [name for name in lines.fieldnames or () if name not in FIXED]
        shape = (len(run.trials), run.samples)
        values = {name: {row: np.full(shape, np.nan) for row in run.rows} for name in metrics}
        guesses = {}
        try:
            for line in lines:
                row, key, sample = line["row"], line["key"], int(line["sample"])
                place = places[key], sample
                for name in metrics:
                    values[name][row][place] = float(line[name] or "nan")
                guesses[row, key, sample] = line["guess"] or ""
        except (KeyError, IndexError, TypeError, ValueError) as error:
            where, why = f"{path}, line {lines.line_num}", f"{type(error).__name__}: {error}"
            raise ValueError(f"{where} is damaged or of another run ({why}); {again}") from None
    if len(guesses) != len(run.rows) * len(run.trials) * run.samples:
        raise ValueError(f"{path} belongs to other pictures; {again}")
    known = {name: rows for name, rows in values.items() if np.isfinite([*rows.values()]).any()}
    return PictureScores(known, guesses)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


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
        return data_address(content, kind)


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
        self.metrics = [metrics.get(name, Metric(name, name)) for name in book.values] if book else []
        self.metrics.sort(key=lambda m: list(metrics).index(m.name) if m.name in metrics else len(metrics))
        self.main = next((m for m in self.metrics if m.better), None)
        self.groups, self.rule = choose(run, book, metrics, full, each)
        shown = {i for group in self.groups for i in group.trials}
        rest = [i for i in range(len(run.trials)) if i not in shown]
        rest.sort(key=lambda i: (run.trials[i]["label"], str(run.trials[i]["subject"]), run.trials[i]["key"]))
        more = spaced(rest, limit - len(shown)) if limit > len(shown) else []
        self.shown = [*sorted(shown), *more]
        if more:
            which = "all the others" if len(more) == len(rest) else f"{len(more)} more, evenly spaced"
            self.groups.append(Group("More trials", f"{which} in the order of class, subject and trial key", more))
        self.kinds = {row: kind_of_row(run, row) for row in run.rows}
        known = [row for kind in KINDS for row in rows_of_kind(run, kind)]
        self.rows = [*known, *(row for row in run.rows if row not in known)]

    def notes(self, i: int, row: str, sample: int) -> list[str]:
        """What stands below one picture: its class by the classifier, its scores."""
        if self.book is None:
            return []
        guess = self.book.guesses[row, self.run.trials[i]["key"], sample]
        below = [m for m in self.metrics if m is self.main or m.name == "ssim"]
        found = [(m, self.book.values[m.name][row][i, sample]) for m in below]
        said = [f"{m.title} {m(value)}" for m, value in found if math.isfinite(value)]
        return [f"looks like: {guess}", *said] if guess else said

    def choices(self) -> dict[str, Any]:
        """Of each field of the form that sorts and filters: (value, name) of its options; of "row" those by kind."""
        trials = [self.run.trials[i] for i in self.shown]
        orders = [("best", "best first"), ("median", "nearest the median first"), ("worst", "worst first")]
        subjects = sorted({trial["subject"] for trial in trials}, key=lambda s: (isinstance(s, str), s))
        classes = sorted({(trial["label"], trial["class_name"]) for trial in trials}, key=lambda c: c[1].lower())
        return {
            "order": orders * bool(self.main) + [("random", f"random (seed {SEED})"), ("key", "trial key")],
            "metric": [(m.name, m.title) for m in self.metrics if m.better],
            "row": {name: [(row, row) for row in self.rows if self.kinds[row] == kind] for kind, name in KINDS.items()},
            "subject": [(subject, subject) for subject in subjects],
            "label": classes,
        }

    def data(self) -> dict[str, Any]:
        """What page.js sorts by."""

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
        fields = ("name", "title", "scale", "digits", "better")
        known = [{field: getattr(m, field) for field in fields} for m in self.metrics]
        total = len(self.run.trials)
        return {"full": self.full, "total": total, "metrics": known, "medians": medians, "trials": trials}
