"""`neuroimagen report RUN`: one self-contained page of a reconstruct run's pictures and scores; its tables and figures.

RUN/report.html needs no network and no other file: its pictures are inlined, its style is pages/page.css, its script
page.js beside this file. Which trials are shown follows rules that the page states; nothing is picked for its looks.
Without JavaScript all works but sorting, filters and pictures enlarged one by one. RUN/tables and RUN/figures hold the
same tables and figures for a paper.
"""

import dataclasses
import json
import shlex
from typing import Any

from neuroimagen.config import Limited, option, path_option
from neuroimagen.files import busy, content_of, write_atomic
from neuroimagen.pages import render
from neuroimagen.report import figures, tables
from neuroimagen.report.charts import by_group, confusions, guessing
from neuroimagen.report.gallery import Gallery, Pictures, read_picture_scores
from neuroimagen.rows import ROWS
from neuroimagen.scores import run_files
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.intervals import FEWEST
from neuroimagen.scores.run_files import ReconstructRun

BUDGET = 6_500_000  # characters of inlined pictures; the page stays below 8 MB


@dataclasses.dataclass
class ReportConfig(Limited):
    run: str = path_option(help="a run that `neuroimagen evaluate` has scored; report.html is written there")
    trials: int = option(60, "at most so many trials in the gallery, those of the groups among them", at_least=1)
    each: int = option(6, "trials in each group of the gallery: best, median, worst, random", at_least=1)
    ablation: int = option(8, "trials drawn in every row, side by side", at_least=1)


def commands(run: ReconstructRun, scores: dict[str, Any], config: ReportConfig) -> str:
    """What draws, scores and shows this run again; fields at their default are left out."""
    path = shlex.quote(str(run.path))

    def given(values: dict[str, Any], schema: type) -> str:
        usual = vars(schema())
        words = []
        for name, value in values.items():
            if name != "run" and usual.get(name) != value:
                value = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
                words.append(" " + shlex.quote(f"{name}={value}"))
        return "".join(words)

    return (
        f"python trainers/reconstruct.py config={path}/config.yaml\n"
        f"neuroimagen evaluate {path}{given(scores.get('config', {}), EvaluateConfig)}\n"
        f"neuroimagen report {path}{given(dataclasses.asdict(config), ReportConfig)}\n"
    )


def page(run: ReconstructRun, scores: dict[str, Any], config: ReportConfig) -> str:
    """report.html: templates/page.j2 with the values of this run."""
    full = tables.full_row(run)
    metrics = tables.describe(scores)
    gallery = Gallery(run, read_picture_scores(run), metrics, full, config.each, config.trials)
    pictures = Pictures(BUDGET)
    built = tables.build(run, scores)
    notes = dict.fromkeys([note for table in built for note in table.notes] + [*tables.absent(run, scores).values()])
    drawn, absent = figures.build(run)
    known = {row: found for row, found in scores.get("confusion", {}).items() if row in run.rows}
    confused, left_out = confusions(known, full)
    means = {row: about.means for row, about in ROWS.items()}
    means |= {about["name"]: about["means"] for about in run.about["rows"] if about.get("means")}
    environment = content_of(run.path / "environment.json")
    values = {
        "script": "report/page.js",
        "audit": content_of(run.path.parent / "audit" / "audit.json"),
        "run": run,
        "scores": scores,
        "full": full,
        "eeg": tables.kind_of_eeg(scores),
        "manifest": run.about.get("manifest", {}),
        "metrics": metrics,
        "guessing": lambda metric: guessing(scores, metric),
        "meanings": {row: means.get(row, "") for row in gallery.rows},
        "pictures": pictures,
        "gallery": gallery,
        "tables": built,
        "notes": notes,
        "figures": drawn | {"rows": figures.every_row(run, gallery.rows, config.ablation)},
        "figures_absent": absent,
        "confusions": confused,
        "confusions_left": left_out,
        "by_class": by_group(scores, full, metrics, "class "),
        "by_subject": by_group(scores, full, metrics, "subject "),
        "fewest": FEWEST,
        "commands": commands(run, scores, config),
        "config_of_run": (run.path / "config.yaml").read_text(encoding="utf-8"),
        "versions": environment.pop("versions", {}) | environment,
    }
    render("report/templates/page.j2", **values)  # counts the pictures
    pictures.fit()
    return render("report/templates/page.j2", **values)


def report(config: ReportConfig) -> None:
    """The command `neuroimagen report RUN`. ValueError if the run is not finished or not scored."""
    run = run_files.read_run(config.run, to_write=True)
    path = run.path / "scores.json"
    if not path.exists():
        raise ValueError(f"{run.path} has no scores.json; make it with: neuroimagen evaluate {run.path}")
    scores = json.loads(path.read_text(encoding="utf-8"))
    if scores.get("version") != run_files.VERSION:
        raise ValueError(f"{path} is of another version; make it anew with: neuroimagen evaluate {run.path}")
    run_files.check_scores(run, scores)
    with busy(run.path / "report.lock"):
        html = page(run, scores, config)
        tables.write(run, scores, run.path / "tables")
        figures.write(run, run.path / "figures")
        write_atomic(run.path / "report.html", html)
    print(f"{run.path / 'report.html'}")
