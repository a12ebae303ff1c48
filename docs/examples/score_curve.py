"""Plot a curve of scores: one metric against one config field, over scored reconstruct runs.

python docs/examples/score_curve.py OUT.png METRIC FIELD RUN [RUN ...]

METRIC: such as acc, ssim (names: scores.json); FIELD: such as strength, guidance_scale. A line a row of the runs, with
95 % intervals where there are any. Needs matplotlib, which comes with neuroimagen[mne].
"""

import json
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure


def main(out: str, metric: str, field: str, *runs: str) -> None:
    points: dict[str, list[tuple[float, ...]]] = {}
    for run in map(Path, runs):
        x = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))[field]
        scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
        for row, groups in scores["rows"].items():
            cell = groups["all"].get(metric)
            if cell and cell["value"] is not None:
                low, high = (cell["value"] if cell[end] is None else cell[end] for end in ("low", "high"))
                points.setdefault(row, []).append((x, cell["value"], cell["value"] - low, high - cell["value"]))
    about = scores["metrics"].get(metric, {})
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel=field,
        ylabel=f"{about.get('head', metric)}, as a share" if about.get("scale") == 100 else about.get("head", metric),
        title="simulated EEG" if scores.get("simulated") else "",
    )
    for row, found in points.items():
        xs, values, below, above = zip(*sorted(found), strict=True)
        axes.errorbar(xs, values, yerr=(below, above), marker="o", capsize=3, label=row)
    if about.get("chance") is not None:
        axes.axhline(about["chance"], color="grey", linestyle=":", label="chance")
    axes.legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
