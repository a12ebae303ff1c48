"""`neuroimagen evaluate RUN`: every score of a reconstruct run, for all, by subject, by class and by picture.

Writes RUN/scores.json, RUN/scores.csv and RUN/picture_scores.csv and prints the paper's tables (report/tables.py).
What each number is: scores/definitions.py, docs/scores.md.
"""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroimagen.config import option, path_option
from neuroimagen.files import write_atomic
from neuroimagen.rows import PAPER
from neuroimagen.run import inputs
from neuroimagen.run.collectives import decided_by_main, on_every_rank
from neuroimagen.run.directory import open_run
from neuroimagen.run.processes import leave_process_group, make_accelerator
from neuroimagen.scores.book import ScoreBook
from neuroimagen.scores.classifiers import Classifier, load_classifier, pick_device

RESERVED = ("truth", "other", "maps")  # what evaluate and report call pictures that are no row's
VERSION = 4  # of scores.json; 4 brought controls of every paired metric, balanced accuracy, the best constant guess


@dataclasses.dataclass
class EvaluateConfig:
    run: str = path_option(
        help="a finished run of trainers/reconstruct.py; scores.json and scores.csv are written there"
    )
    classifier: str = path_option(
        "google/vit-base-patch16-224",
        "who judges: embedded | efficientnet-lite0 | a directory by `neuroimagen probe` | a transformers classifier",
    )
    n_way: int = option(50, "N of the N-way accuracy; capped at the classifier's classes")
    top_k: int = option(1, "a picture counts as right if its truth is among the first top_k of the N")
    metrics: list[str] = option(
        ["all"],
        "what to measure beside the paper's ACC, IS and SSIM: see docs/scores.md; all: what is at hand; paper: no more",
    )
    distractors: Literal["classifier", "study"] = option(
        "classifier", "whence the N - 1 other classes are drawn: all of the classifier's, or the study's alone"
    )
    inception_splits: int = option(1, "parts of the Inception Score; 1: all pictures at once, with an interval")
    weights: str | None = path_option(
        None,
        "directory or hub id of the weights of AlexNet, CLIP, ... (docs/networks.md); none: torch's and hub's cache",
    )
    download: bool = option(False, "download such weights if they are in no cache: up to 2.3 GB")
    batch_size: int = option(16, "pictures at once through the classifier; changes speed only, 16 is fastest on a CPU")
    device: str = option("auto", "auto | cpu | cuda")


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
    """ValueError, with the command that continues it, if the run is not finished or pictures are missing.

    to_write: also if nothing can be written into it, as into a colleague's.
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
        raise ValueError(
            f"{path} is not a run of trainers/reconstruct.py (it holds no {Path(error.filename).name})"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rows.json or trials.jsonl in {path} is damaged ({type(error).__name__}: {error})") from None
    if not trials or not names:
        raise ValueError(f"{path} holds {len(trials)} trials and {len(names)} rows: there is nothing to score")
    rows = sorted(names, key=lambda name: PAPER.index(name) if name in PAPER else len(PAPER))
    run = ReconstructRun(path, trials, rows, samples, about)
    wanted = run.files()
    folders = {file.parent for file in wanted}  # listed, as asking for each of a million files takes minutes
    there = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    missing = [file for file in wanted if file not in there]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} pictures are missing in {path} (first: {missing[0].relative_to(path)}); "
            f"make them with: rm {path / 'DONE'} && {go_on}"
        )
    return run


def score(
    run: ReconstructRun, classifier: Classifier, n_way: int, top_k: int, batch_size: int = 16, **choices: Any
) -> dict[str, Any]:
    """Everything that scores.json holds; choices: as of ScoreBook. Collective: every rank."""
    book = ScoreBook(run, classifier, n_way, top_k, **choices)
    book.measure(batch_size)
    return whole(book)


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


def whole(book: ScoreBook) -> dict[str, Any]:
    """scores.json: what the book found, and what its readers want to know of the run. Collective: every rank."""
    about = book.run.about
    return {
        "format": "neuroimagen-scores",
        "version": VERSION,
        "simulated": bool(about.get("simulated")),
        "dataset": about.get("manifest", {}).get("dataset"),
        "captions_source": about.get("captions_source"),
        **book.scores(),
    }


def to_csv(scores: dict[str, Any]) -> str:
    """scores.json as a tidy table: row, group, metric, value, low, high, n."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "group", "metric", "value", "low", "high", "n"])
    for row, groups in scores["rows"].items():
        for group, metrics in groups.items():
            for metric, e in metrics.items():
                table.writerow(
                    [row, group, metric, *(e[k] if e[k] is not None else "" for k in ("value", "low", "high", "n"))]
                )
    return text.getvalue()


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The command `neuroimagen evaluate RUN`. Under `accelerate launch` the processes share the work; the first writes.

    Collective: every rank. Returns what scores.json holds.
    """
    from neuroimagen.report import tables  # which imports this module

    if config.batch_size < 1:
        raise ValueError(f"batch_size={config.batch_size} must be at least 1")
    device, alone = pick_device(config.device), int(os.environ.get("WORLD_SIZE", 1)) == 1
    accelerator = None if alone else make_accelerator("fp32")
    if accelerator and config.device == "auto":
        device = accelerator.device
    run = decided_by_main(lambda: read_run(config.run, to_write=True))
    made_of = decided_by_main(lambda: inputs_of(run, config.classifier))
    classifier = on_every_rank(lambda: load_classifier(config.classifier, device, config.weights))
    book = ScoreBook(
        run, classifier, config.n_way, config.top_k, config.metrics, config.distractors, config.inception_splits,
        config.weights, config.download,
    )  # fmt: skip
    book.measure(config.batch_size)
    scores = whole(book) | {"config": dataclasses.asdict(config), "made_of": inputs.digests(made_of)}
    pictures = book.pictures_csv()
    if said := decided_by_main(lambda: inputs.changes(made_of, inputs_of(run, config.classifier))):
        raise ValueError(f"{run.path} was being scored with {said}: give the same command again")
    if accelerator is None or accelerator.is_main_process:
        write_atomic(run.path / "scores.inputs.json", json.dumps(made_of, indent=1))
        write_atomic(run.path / "scores.json", json.dumps(scores, indent=1) + "\n")
        write_atomic(run.path / "scores.csv", to_csv(scores))
        write_atomic(run.path / "picture_scores.csv", pictures)
        print(tables.format_tables(run, scores))
    if accelerator:
        leave_process_group()
    return scores
