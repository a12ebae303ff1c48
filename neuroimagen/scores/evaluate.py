"""`neuroimagen evaluate RUN`: every score of a reconstruct run, for all, by subject, by class and by picture.

Writes RUN/scores.json, RUN/scores.csv and RUN/picture_scores.csv; report/tables.py prints the paper's tables of them.
What each number is: scores/metrics.yaml, docs/scores.md.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable
from typing import Any, Literal

from neuroimagen.config import Limited, option, path_option
from neuroimagen.files import write_atomic
from neuroimagen.run import inputs
from neuroimagen.run.collectives import decided_by_main, on_every_rank
from neuroimagen.run.processes import leave_process_group, make_accelerator
from neuroimagen.scores.classifiers import load_classifier, pick_device
from neuroimagen.scores.run_files import ReconstructRun, inputs_of, read_run
from neuroimagen.scores.score_book import ScoreBook


@dataclasses.dataclass
class EvaluateConfig(Limited):
    run: str = path_option(help="a finished run of trainers/reconstruct.py; the scores are written there")
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
    batch_size: int = option(16, "pictures at once, for speed alone: 16 is fastest on a CPU", at_least=1)
    device: str = option("auto", "auto | cpu | cuda")
    verbose: bool = option(False, "print Tables 1 to 3 with notes and protocol, not the ten lines that matter most")


def to_csv(scores: dict[str, Any]) -> str:
    """scores.json as a tidy table: row, group, metric, value, low, high, n."""
    text, numbers = io.StringIO(), ("value", "low", "high", "n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "group", "metric", *numbers])
    for row, groups in scores["rows"].items():
        for group, metrics in groups.items():
            table.writerows([row, group, metric, *(e[k] for k in numbers)] for metric, e in metrics.items())
    return text.getvalue()


def evaluate(
    config: EvaluateConfig, tell: Callable[[ReconstructRun, dict[str, Any]], None] = lambda run, scores: None
) -> dict[str, Any]:
    """Score a run. Under `accelerate launch` the processes share the work; the first writes, and then tells.

    Collective: every rank. Returns what scores.json holds. The command `neuroimagen evaluate RUN` is
    report.tables.evaluate, which tells by printing the tables.
    """
    device, alone = pick_device(config.device), int(os.environ.get("WORLD_SIZE", 1)) == 1
    accelerator = None if alone else make_accelerator("fp32")
    if accelerator and config.device == "auto":
        device = accelerator.device
    run = decided_by_main(lambda: read_run(config.run, to_write=True))
    made_of = decided_by_main(lambda: inputs_of(run, config.classifier))
    classifier = on_every_rank(lambda: load_classifier(config.classifier, device, config.weights))
    book = ScoreBook(run, classifier, config)
    book.measure()
    kept = {name: value for name, value in vars(config).items() if name != "verbose"}
    scores = book.scores() | {"config": kept, "made_of": inputs.digests(made_of)}
    pictures = book.pictures_csv()
    if said := decided_by_main(lambda: inputs.changes(made_of, inputs_of(run, config.classifier))):
        raise ValueError(f"{run.path} was being scored with {said}: give the same command again")
    if accelerator is None or accelerator.is_main_process:
        write_atomic(run.path / "scores.inputs.json", json.dumps(made_of, indent=1))
        write_atomic(run.path / "scores.json", json.dumps(scores, indent=1) + "\n")
        write_atomic(run.path / "scores.csv", to_csv(scores))
        write_atomic(run.path / "picture_scores.csv", pictures)
        tell(run, scores)
    if accelerator:
        leave_process_group()
    return scores
