"""`neuroimagen dashboard RUNS`: a wandb report of a study's runs, of what they logged, by wandb's own library.

A chapter a stage: losses, validation, grids of pictures, tables by class, speed and memory, and, where a stage was run
with several seeds, each number's mean and range over them. RUNS/dashboard.json is its definition, as it is sent.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from neuroimagen.config import option, path_option
from neuroimagen.files import write_atomic
from neuroimagen.run.directory import FREE_FIELDS, TRAINERS
from neuroimagen.run.trackers import LOG_IN, identity, reach_wandb

SPEED = {"samples_per_second", "samples_per_second_per_device", "step_seconds", "data_seconds", "memory_gb"}
SPEED |= {"skipped", "bad_trials"}
SAME = FREE_FIELDS | TRAINERS.keys() | {"seed", "shards"}  # fields in which the seeds of one experiment may differ
NUMBERED = re.compile(r"(.+)-\d{8}\.(?:png|csv)")  # what Run.image and Run.class_table write


@dataclasses.dataclass
class DashboardConfig:
    runs: str = path_option(help="folder that holds run directories, or folders of them, such as one a seed")
    project: str = option("", "wandb's project; empty: the one that the runs were logged to")
    entity: str = option("", "wandb's user or team; empty: your default one")
    artifacts: bool = option(False, "also log the models and scores of finished runs, as wandb's artifacts")


class Logged(NamedTuple):
    """What one run logged."""

    path: Path
    stage: str
    config: dict[str, Any]
    numbers: list[str]  # of stats.jsonl, in the order in which they came
    pictures: list[str]
    tables: list[str]


def read_logged(path: Path) -> Logged:
    """ValueError for a run directory that is damaged."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        command = json.loads((path / "environment.json").read_text(encoding="utf-8"))["command"]
        stats = path / "stats.jsonl"
        lines = stats.read_text(encoding="utf-8").splitlines() if stats.exists() else []
        numbers = dict.fromkeys(name for line in lines if line.endswith("}") for name in json.loads(line))
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{path} is damaged, or no run of a trainer ({error}): leave it out of the folder") from None
    numbers.pop("step", None)
    files = [sorted(file.name for file in (path / folder).glob("*-*")) for folder in ("images", "tables")]
    names = [list(dict.fromkeys(m[1] for name in each if (m := NUMBERED.fullmatch(name)))) for each in files]
    return Logged(path, Path(command[0]).stem, config, list(numbers), *names)


def find_runs(folder: Path) -> list[Logged]:
    """The runs in `folder` or in folders of it; ValueError if there is none."""
    found = [path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/environment.json"))]
    if not found:
        raise ValueError(f"{folder} holds no run directories: name the folder that run_dir= of your runs is in")
    return [read_logged(path) for path in found]


def _chapter(stage: str, runs: list[Logged]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import Metric

    groups = sorted({run.path.resolve().parent.name for run in runs})
    ours = [Metric("JobType") == stage, Metric("Group").isin(groups)]

    def grid(head: str, panels: list[Any], **how: Any) -> list[Any]:
        runset = wr.Runset(name=f"{stage}: {', '.join(groups)}", filters=ours, **how)
        return [wr.H2(head), wr.PanelGrid(runsets=[runset], panels=panels)] if panels else []

    def all_of(what: str) -> list[str]:
        return list(dict.fromkeys(name for run in runs for name in getattr(run, what)))

    numbers = all_of("numbers")
    validation = [name for name in numbers if name.startswith("val/")]
    losses = [name for name in numbers if name not in SPEED and name not in validation]
    blocks = [wr.H1(stage)]
    blocks += grid("Losses", [wr.LinePlot(title=name, y=[name]) for name in losses])
    blocks += grid("Validation", [wr.LinePlot(title=name, y=[name]) for name in validation])
    blocks += grid("Pictures", [wr.MediaBrowser(title=name, media_keys=[name]) for name in all_of("pictures")])
    blocks += grid("By class", [wr.WeavePanelSummaryTable(table_name=name) for name in all_of("tables")])
    blocks += grid("Speed and memory", [wr.LinePlot(title=n, y=[n]) for n in numbers if n in SPEED])
    if len({run.config.get("seed") for run in runs}) > 1:
        fields = dict.fromkeys(name for run in runs for name in run.config if name not in SAME)
        varied = [name for name in fields if len({str(run.config.get(name)) for run in runs}) > 1]
        how: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        panels = [wr.LinePlot(title=name, y=[name], **how) for name in validation or losses]
        blocks += grid("Over seeds", panels, groupby=[f"config.{name}" for name in varied] or ["JobType"])
    return blocks


def make_report(runs: list[Logged], title: str, project: str, entity: str) -> Any:
    """A wandb_workspaces Report, not saved yet."""
    import wandb_workspaces.reports.v2 as wr

    stages = dict.fromkeys(run.stage for run in runs if run.numbers)
    blocks = [block for s in stages for block in _chapter(s, [run for run in runs if run.stage == s])]
    for table in (run.path / "tables" / "table3.md" for run in runs):  # by `neuroimagen report`
        if table.exists():
            blocks += [wr.H1(f"Scores of {table.parent.parent.name}"), wr.MarkdownBlock(table.read_text("utf-8"))]
    return wr.Report(project=project, entity=entity, title=title, blocks=blocks, width="fluid")


def log_artifacts(run: Logged, project: str, entity: str) -> list[str]:
    """Log the model, or the scores, of a finished run as artifacts of that run; their names."""
    import wandb

    model, scores = run.path / "model", sorted(run.path.glob("scores.*"))
    if not (run.path / "DONE").exists() or not (model.is_dir() or scores):
        return []
    kind = "model" if model.is_dir() else "scores"
    name = re.sub(r"[^\w.-]", "_", f"{run.path.resolve().parent.name}-{run.path.name}-{kind}")
    artifact = wandb.Artifact(name, kind, metadata={"stage": run.stage, "seed": run.config.get("seed")})
    for path in [model] if kind == "model" else scores:
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
    known = identity(run.path, run.stage, run.config)
    with wandb.init(project=project, entity=entity or None, **known) as logged:
        logged.log_artifact(artifact)
    return [name]


def dashboard(config: DashboardConfig) -> None:
    """Write RUNS/dashboard.json, and save the report where wandb is online. The same command again renews it."""
    import wandb

    folder = Path(config.runs)
    runs, path = find_runs(folder), folder / "dashboard.json"
    projects = sorted({run.config["project"] for run in runs if run.config.get("project")})
    if not config.project and len(projects) != 1:
        raise ValueError(f"the runs of {folder} name {len(projects)} projects ({', '.join(projects)}): give project=")
    project, entity = config.project or projects[0], config.entity
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    report = make_report(runs, folder.resolve().name, project, entity)
    report.id = known.get("id", "") if (known.get("project"), known.get("entity")) == (project, entity) else ""
    about = {"id": report.id, "url": "", "project": project, "entity": entity}
    try:
        online = reach_wandb()
        if online:
            report.entity = entity or wandb.Api().default_entity
            report.save()
            about |= {"id": report.id, "url": report.url}
        names = [name for run in runs if config.artifacts for name in log_artifacts(run, project, entity)]
    except Exception as error:  # wandb's are many
        raise ValueError(f"wandb: {' '.join(str(error).split())[:200]}: {LOG_IN}") from None
    spec = report._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)  # what `save` sends
    write_atomic(path, json.dumps(about | {"report": spec}, indent=1))
    panels = sum(len(grid.panels) for grid in report.blocks if hasattr(grid, "panels"))
    print(f"{path}: {len(runs)} runs, {panels} panels", *(f"artifact {name}" for name in names), sep="\n")
    print(about["url"] or "not saved, as wandb is offline: `wandb sync` the runs, and give this command online again")
