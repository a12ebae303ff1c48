"""What templates/charts.j2 draws by HTML and CSS alone: bars with intervals, confusion tables."""

import math
from typing import Any, NamedTuple

from neuroimagen.report.formats import Metric

MOST_CELLS = 20_000  # of all confusion tables together; the others stay in scores.json


class Bar(NamedTuple):
    """One group; start, width and whisker (start, width; None: no interval) in per cent of the axis."""

    name: str
    value: float
    start: float
    width: float
    whisker: tuple[float, float] | None
    low: float | None
    high: float | None


class Bars(NamedTuple):
    """marks: chance and ceiling as lines across, with their place in per cent of the axis."""

    metric: Metric
    marks: list[tuple[str, float]]
    bars: list[Bar]


def bars(metric: Metric, groups: dict[str, dict[str, Any]], best_first: bool) -> Bars:
    """One bar a group with its 95 % interval; `groups`: estimates as of scores.json."""
    found = {name: e for name, e in groups.items() if e["value"] is not None and math.isfinite(e["value"])}
    marks = [value for _, value, _ in metric.ends]
    reach = [v for e in found.values() for v in (e["value"], e["high"]) if v is not None]
    top = 1.0 if metric.scale == 100 else max([*reach, *marks, 1e-9])
    low = min(0.0, *marks, *(v for e in found.values() for v in (e["value"], e["low"]) if v is not None))

    def at(value: float) -> float:
        return 100 * (min(value, top) - low) / (top - low)

    sign = -1 if metric.better != "lower" else 1
    order = sorted(found.items(), key=lambda item: sign * item[1]["value"]) if best_first else list(found.items())
    drawn = []
    for name, e in order:
        zero, end = sorted((at(0.0), at(e["value"])))
        whisker = None if e["low"] is None else (at(e["low"]), max(at(e["high"]) - at(e["low"]), 0.3))
        drawn.append(Bar(name, e["value"], zero, end - zero, whisker, e["low"], e["high"]))
    return Bars(metric, [(name, at(value)) for name, value, _ in metric.ends], drawn)


def by_group(scores: dict[str, Any], row: str, metrics: dict[str, Metric], prefix: str) -> list[Bars]:
    """Bars of a row over the groups "class ..." or "subject ...", a chart a metric, the headline's first."""
    groups = {group: found for group, found in scores["rows"][row].items() if group.startswith(prefix)}
    names = [name for name in metrics if any(name in found for found in groups.values())]
    names.sort(key=lambda name: name != scores["headline"])
    charts = []
    for name in names if len(groups) > 1 else []:
        metric = metrics[name]
        # The chance to beat is that within the study; within one class a constant guess gets all or nothing.
        if (guess := guessing(scores, name)) and prefix != "class ":
            metric = metric._replace(chance=guess, chance_of="guessing in the study")
        found = {group.removeprefix("class "): values[name] for group, values in groups.items() if name in values}
        charts.append(bars(metric, found, best_first=prefix == "class "))
    return charts


def guessing(scores: dict[str, Any], metric: str) -> float | None:
    """What the best constant answer gets in this study."""
    return scores["truth"].get("guessing", {}).get(metric, {}).get("value")


class Confusion(NamedTuple):
    """Counts of class seen (down) x class that the classifier finds most probable (across), of one row."""

    row: str
    classes: list[str]
    counts: list[list[int]]

    @property
    def right(self) -> int:
        return sum(self.counts[i][i] for i in range(len(self.classes)))

    @property
    def total(self) -> int:
        return sum(map(sum, self.counts))

    def share(self, n: int) -> str:
        return f"{100 * n / max(self.total, 1):.1f}"


def confusions(tables: dict[str, dict[str, Any]], full: str) -> tuple[list[Confusion], list[str]]:
    """The full row's first, the others' as many as fit; names of the rows left out."""
    order = sorted(tables, key=lambda row: row != full)
    fit = max(1, MOST_CELLS // max(1, len(tables[order[0]]["classes"]) ** 2)) if order else 0
    shown = [Confusion(row, [*map(str, tables[row]["classes"])], tables[row]["counts"]) for row in order[:fit]]
    return shown, order[fit:]
