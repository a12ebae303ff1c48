"""The report page's charts, drawn by HTML and CSS alone: bars with intervals, confusion tables."""

import math
from typing import Any

from neuroimagen.report.gallery import Metric, text
from neuroimagen.scores.intervals import FEWEST

MOST_CELLS = 20_000  # of all confusion tables together; the others stay in scores.json


def bars(metric: Metric, groups: dict[str, dict[str, Any]], best_first: bool) -> str:
    """One bar a group with its 95 % interval; chance and ceiling as lines across."""
    found = {name: e for name, e in groups.items() if e["value"] is not None and math.isfinite(e["value"])}
    marks = [v for v in (metric.chance, metric.ceiling) if v is not None]
    reach = [v for e in found.values() for v in (e["value"], e["high"]) if v is not None]
    top = 1.0 if metric.scale == 100 else max([*reach, *marks, 1e-9])
    low = min(0.0, *marks, *(v for e in found.values() for v in (e["value"], e["low"]) if v is not None))

    def at(value: float) -> float:
        return 100 * (min(value, top) - low) / (top - low)

    lines = ""
    for css, value in (("chance", metric.chance), ("ceiling", metric.ceiling)):
        if value is not None:
            lines += f'<i class="{css}" style="left:{at(value):.2f}%"></i>'
    sign = -1 if metric.better != "lower" else 1
    order = sorted(found.items(), key=lambda item: sign * item[1]["value"]) if best_first else list(found.items())
    items = []
    for name, e in order:
        whisker, interval = "", ""
        if e["low"] is not None:
            start, end = at(e["low"]), at(e["high"])
            whisker = f'<s style="left:{start:.2f}%;width:{max(end - start, 0.3):.2f}%"></s>'
            interval = f"<small>{metric(e['low'], False)} to {metric(e['high'], False)}</small>"
        zero, end = sorted((at(0.0), at(e["value"])))
        items.append(
            f'<li><span>{text(name)}</span><div aria-hidden="true"><u style="left:{zero:.2f}%;width:{end - zero:.2f}%">'
            f"</u>{whisker}{lines}</div><b>{metric(e['value'], False)}{interval}</b></li>"
        )
    return f'<ul class="bars{" one" * (len(items) < 8)}">{"".join(items)}</ul>'


def legend(metric: Metric) -> str:
    """What the marks of `bars` mean, with the numbers."""
    parts = [f"thin line: 95&nbsp;% interval, from {FEWEST} pictures on"]
    for name, css, value, of in (
        ("chance", "chance", metric.chance, metric.chance_of),
        ("ceiling", "ceiling", metric.ceiling, metric.ceiling_of),
    ):
        if value is not None:
            parts.append(f'<i class="mark {css}"></i> {name} {metric(value)}{f" ({text(of)})" if of else ""}')
    better = f"; {text(metric.better)} is better" if metric.better else ""
    return f"{text(metric.head)}{better}. " + " &middot; ".join(parts)


def confusion(found: dict[str, Any], row: str) -> str:
    """Heat map of counts: class seen (down) x class that the classifier finds most probable (across)."""
    classes, counts = [str(name) for name in found["classes"]], found["counts"]
    few = len(classes) <= 20
    heads = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in classes)
    lines = []
    for i, (name, line) in enumerate(zip(classes, counts, strict=True)):
        total, cells = sum(line), []
        for j, n in enumerate(line):
            mark = ' class="same"' if i == j else ""
            if not n:
                cells.append(f"<td{mark}></td>")
                continue
            share = 100 * n / total
            said = f"{name}, drawn as {classes[j]}: {n} of {total} ({share:.0f} %)"
            cells.append(f'<td{mark} style="--p:{share:.0f}%" title="{text(said)}"><b>{share:.0f}</b></td>')
        lines.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    right, total = sum(counts[i][i] for i in range(len(classes))), sum(map(sum, counts))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Confusion table of row {text(row)}">'
        f'<table class="confusion{" few" * few}"><caption>Row {text(row)}: {right} of {total} pictures '
        f"({100 * right / max(total, 1):.1f}&nbsp;%) look most like the class that was seen; always the most "
        f"frequent of {len(classes)} classes gets {100 * max(map(sum, counts)) / max(total, 1):.1f}&nbsp;%.</caption>"
        f"<thead><tr><td><small>seen &darr; &nbsp; looks like &rarr;</small></td>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def confusions(tables: dict[str, dict[str, Any]], full: str) -> str:
    """Section "Confusion": the full row open, the others one click away, as many as fit."""
    order = sorted(tables, key=lambda row: row != full)
    fit = max(1, MOST_CELLS // max(1, len(tables[order[0]]["classes"]) ** 2))
    first, rest, left = order[0], order[1:fit], order[fit:]
    more = ""
    for row in rest:
        more += f"<details><summary>Row {text(row)}</summary>{confusion(tables[row], row)}</details>"
    if more:
        more = f"<details><summary>The other rows</summary>{more}</details>"
    also = f'<p class="sub">Not on this page, but in scores.json: {text(", ".join(left))}.</p>' if left else ""
    return (
        '<h2 id="confusion">What is taken for what</h2><p>Of the pictures drawn for each class seen (a line), the '
        "share in per cent that the classifier finds most like each class of the study (a column). A perfect decoder "
        "fills the diagonal; one that ignores the EEG gives the same line everywhere. Point at a cell to "
        "read its counts.</p>"
        f"{confusion(tables[first], first)}{more}{also}"
    )
