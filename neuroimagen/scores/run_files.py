"""A finished run of trainers/reconstruct.py as its directory holds it, and whether its scores.json is of it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from neuroimagen.rows import PAPER
from neuroimagen.run import inputs
from neuroimagen.run.directory import open_run

RESERVED = ("truth", "other", "maps")  # what evaluate and report call pictures that are no row's
VERSION = 4  # of scores.json; 4 brought controls of every paired metric, balanced accuracy, the best constant guess


@dataclasses.dataclass
class ReconstructRun:
    """A finished reconstruct run directory: `trials` are the lines of trials.jsonl, `rows` the names of its rows."""

    path: Path
    trials: list[dict[str, Any]]
    rows: list[str]  # the paper's order, then any others
    samples: int
    about: dict[str, Any]  # rows.json

    def __post_init__(self) -> None:
        """ValueError: a name that means something else here."""
        for row in self.rows:
            if row in RESERVED or self.rows.count(row) > 1:
                why = "evaluate uses this name itself" if row in RESERVED else "two rows have this name"
                raise ValueError(f"{self.path} has a row {row!r}, but {why}: rename it in rows.json and in images/")

    def truth(self, key: str) -> Path:
        return self.path / "truth" / f"{key}.png"

    def map(self, key: str) -> Path:
        return self.path / "maps" / f"{key}.png"

    def image(self, row: str, key: str, sample: int) -> Path:
        return self.path / "images" / row / f"{key}_{sample}.png"

    @property
    def pictures_known(self) -> bool:
        """False for recordings that kept only the category of the picture shown (studies/recordings.py)."""
        return all(trial.get("picture", "as recorded") == "as recorded" for trial in self.trials)

    @property
    def unit(self) -> str:
        return "ground-truth pictures" if self.pictures_known else "trials"

    def files(self) -> list[Path]:
        """All pictures that are scored."""
        keys = [trial["key"] for trial in self.trials]
        drawn = (self.image(row, key, sample) for row in self.rows for key in keys for sample in range(self.samples))
        return [*map(self.truth, keys), *drawn]

    def units(self) -> np.ndarray:
        """What a bootstrap may resample: ground-truth pictures; trials, where the picture shown is not known."""
        return np.array([trial["image" if self.pictures_known else "key"] for trial in self.trials])

    def groups(self) -> dict[str, np.ndarray]:
        """Named subsets of the trials: "all", "subject 1", ..., "class pizza", ... -> boolean masks (n,)."""
        subjects = np.array([trial["subject"] for trial in self.trials])
        labels = np.array([trial["label"] for trial in self.trials])
        names = {trial["label"]: trial["class_name"] for trial in self.trials}
        names |= {n: f"{name} ({n})" for n, name in names.items() if list(names.values()).count(name) > 1}
        groups = {"all": np.ones(len(self.trials), bool)}
        groups |= {f"subject {s}": subjects == s for s in sorted(set(subjects.tolist()))}
        return groups | {f"class {names[label]}": labels == label for label in sorted(names)}


def read_run(path: str | Path, to_write: bool = False) -> ReconstructRun:
    """ValueError, with the command that continues it, if the run is not finished or pictures are missing; to_write:
    also if nothing can be written into it, as into a colleague's.
    """
    path = Path(path)
    if to_write and path.is_dir() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written, and scores and report go there: copy the run to a place of yours")
    go_on = f"python trainers/reconstruct.py config={path / 'config.yaml'}"
    open_run(path, "reconstruct")
    try:
        about = json.loads((path / "rows.json").read_text(encoding="utf-8"))
        trials = [json.loads(line) for line in (path / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
        names, samples = [row["name"] for row in about["rows"]], int(about["samples"])
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ValueError(f"{path} is not a run of trainers/reconstruct.py (it holds no {name})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rows.json or trials.jsonl in {path} is damaged ({type(error).__name__}: {error})") from None
    if not trials or not names:
        raise ValueError(f"{path} holds {len(trials)} trials and {len(names)} rows: there is nothing to score")
    rows = sorted(names, key=lambda name: PAPER.index(name) if name in PAPER else len(PAPER))
    run = ReconstructRun(path, trials, rows, samples, about)
    wanted = run.files()
    folders = {file.parent for file in wanted}  # listed, as asking for each of a million files takes minutes
    there = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    if missing := [file for file in wanted if file not in there]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} pictures are missing in {path} (first: {missing[0].relative_to(path)}); "
            f"make them with: rm {path / 'DONE'} && {go_on}"
        )
    return run


def inputs_of(run: ReconstructRun, judge: str) -> inputs.Inputs:
    """What scores are made of: trials and pictures, and the judge, if it is a directory."""
    content = inputs.of_files(run.path, [run.path / "trials.jsonl", *run.files()])
    found = {"run": {"path": str(run.path), "content": content}}
    if Path(judge).is_dir():
        found["classifier"] = {"path": judge, "content": inputs.of_model(judge)}
    return found


def check_scores(run: ReconstructRun, scores: dict[str, Any]) -> None:
    """ValueError if scores.json is not of the pictures that are there, or of a judge that has changed since."""
    path, remedy = run.path / "scores.json", f"make it anew with: neuroimagen evaluate {run.path}"
    kept = inputs.read(run.path / "scores.inputs.json")
    mixed = "made_of" in scores and scores["made_of"] != inputs.digests(kept)
    if mixed or list(scores.get("rows", [])) != run.rows or scores.get("trials") != len(run.trials):
        raise ValueError(f"{path} belongs to other pictures; {remedy}")
    inputs.check(kept, inputs_of(run, scores.get("config", {}).get("classifier", "")), str(path), remedy)
