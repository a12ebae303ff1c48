"""Compare scored reconstruct runs, metric by metric.

python docs/examples/compare_runs.py ROW RUN RUN [...]

ROW: such as L+I; RUN: a run that `neuroimagen evaluate` has scored. Prints value [95 % interval] of each metric; the
intervals are over pictures, not over trainings: several seeds of each run say more (docs/scores.md).
"""

import json
import sys
from pathlib import Path


def shown(cell: dict | None, scale: float, digits: int) -> str:
    """An estimate of scores.json as text."""
    if not cell or cell.get("value") is None:
        return "-"
    value, *ends = (cell.get(name) for name in ("value", "low", "high"))
    interval = "" if None in ends else f" [{', '.join(f'{end * scale:.{digits}f}' for end in ends)}]"
    return f"{value * scale:.{digits}f}{interval}"


def main(row: str, *runs: str) -> None:
    scores = [json.loads((Path(run) / "scores.json").read_text(encoding="utf-8")) for run in runs]
    about = scores[0]["metrics"]
    simulated = " (simulated EEG)" if any(each.get("simulated") for each in scores) else ""
    lines = [[f"row {row}{simulated}", *runs]]
    for name, metric in about.items():
        cells = [each["rows"].get(row, {}).get("all", {}).get(name) for each in scores]
        if any(cells):
            form = metric.get("scale", 1), metric.get("digits", 3)
            lines.append([metric.get("head", name), *(shown(cell, *form) for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main(*sys.argv[1:])
