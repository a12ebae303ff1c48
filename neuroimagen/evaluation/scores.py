"""`neuroimagen evaluate RUN`: the paper's ACC, IS and SSIM of a reconstruct run, for all, by subject and by class.

Writes RUN/scores.json and RUN/scores.csv and prints the tables in the paper's layout (its Tables 2 and 3). What each
number is: evaluation/metrics.py. Means run over trials and their samples; intervals resample ground-truth pictures.
Two controls stand beside the paper's numbers, both made of the same pictures wrongly paired: "shuffled" beside ACC,
"SSIM other" beside SSIM. What the EEG adds is what a row has beyond them.
"""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from neuroimagen.config import option
from neuroimagen.evaluation.classifiers import Classifier, load_classifier, pick_device, read_pictures
from neuroimagen.evaluation.metrics import (
    SSIM_SETTINGS,
    Estimate,
    bootstrap_mean,
    inception_score,
    n_way_accuracy,
    shuffled_accuracy,
    ssim,
)

PAPER_ROWS = ("I", "L", "B", "B+I", "L+I")  # models 1 to 5 of the paper's Table 3
FULL = "L+I"
VERSION = 2  # of scores.json; 2 brought the controls


@dataclasses.dataclass
class EvaluateConfig:
    run: str = option(help="a finished run of trainers/reconstruct.py; scores.json and scores.csv are written there")
    classifier: str = option(
        "google/vit-base-patch16-224",
        "who judges: embedded | efficientnet-lite0 | a directory by `neuroimagen probe` | a transformers classifier",
    )
    n_way: int = option(50, "N of the N-way accuracy; capped at the classifier's classes")
    top_k: int = option(1, "a picture counts as right if its truth is among the first top_k of the N")
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

    def truth(self, key: str) -> Path:
        return self.path / "truth" / f"{key}.png"

    def map(self, key: str) -> Path:
        return self.path / "maps" / f"{key}.png"

    def image(self, row: str, key: str, sample: int) -> Path:
        return self.path / "images" / row / f"{key}_{sample}.png"

    @property
    def pictures_known(self) -> bool:
        """False for recordings that kept only the category of the picture shown (data/recording.py)."""
        return all(trial.get("picture", "as recorded") == "as recorded" for trial in self.trials)

    @property
    def unit(self) -> str:
        return "ground-truth pictures" if self.pictures_known else "trials"

    def units(self) -> np.ndarray:
        """What a bootstrap may resample: ground-truth pictures; trials, where the picture shown is not known."""
        return np.array([trial["image" if self.pictures_known else "key"] for trial in self.trials])

    def others(self) -> list[str] | None:
        """Of each trial the key of the trial with whose picture its reconstructions are compared as a control.

        The rule: all images of the run, ordered by label and then name, are shifted cyclically by half their number;
        the other picture is that of the first trial of the image shifted to. So it is never the trial's own image, and
        of another class wherever no class has more than half of the images. None if the run holds one image only.
        """
        first: dict[str, dict[str, Any]] = {}
        for trial in self.trials:
            first.setdefault(trial["image"], trial)
        images = sorted(first, key=lambda image: (first[image]["label"], image))
        if len(images) < 2:
            return None
        shifted = images[len(images) // 2 :] + images[: len(images) // 2]
        other = {image: first[to]["key"] for image, to in zip(images, shifted, strict=True)}
        return [other[trial["image"]] for trial in self.trials]


def read_run(path: str | Path) -> ReconstructRun:
    """ValueError, with the command that continues it, if the run is not finished or pictures are missing."""
    path = Path(path)
    go_on = f"python trainers/reconstruct.py config={path / 'config.yaml'}"
    if not (path / "config.yaml").exists():
        raise ValueError(f"{path} is not a run of trainers/reconstruct.py (it holds no config.yaml)")
    if not (path / "DONE").exists():
        raise ValueError(f"{path} is not finished (it holds no DONE); continue it with: {go_on}")
    try:
        about = json.loads((path / "rows.json").read_text())
        trials = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
        names, samples = [row["name"] for row in about["rows"]], int(about["samples"])
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not a run of trainers/reconstruct.py (it holds no {Path(error.filename).name})"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rows.json or trials.jsonl in {path} is damaged ({type(error).__name__}: {error})") from None
    if not trials or not names:
        raise ValueError(f"{path} holds {len(trials)} trials and {len(names)} rows: there is nothing to score")
    rows = sorted(names, key=lambda name: PAPER_ROWS.index(name) if name in PAPER_ROWS else len(PAPER_ROWS))
    run = ReconstructRun(path, trials, rows, samples, about)
    keys = [trial["key"] for trial in trials]
    wanted = [run.truth(key) for key in keys]
    wanted += [run.image(row, key, sample) for row in rows for key in keys for sample in range(samples)]
    missing = [file for file in wanted if not file.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} pictures are missing in {path} (first: {missing[0].relative_to(path)}); "
            f"make them with: rm {path / 'DONE'} && {go_on}"
        )
    return run


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that no reader sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def _measure(
    run: ReconstructRun, classifier: Classifier, batch_size: int
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Classifier outputs of the truths (n, K); by row, those of its pictures (n, samples, K) and SSIM (3, n, samples).

    The SSIMs are colour, grey, and colour with another picture (`ReconstructRun.others`; without one, NaN).
    """
    truths: list[np.ndarray] = []
    outputs: dict[str, list[np.ndarray]] = {row: [] for row in run.rows}
    similar: dict[str, list[np.ndarray]] = {row: [] for row in run.rows}
    others = run.others()
    step = max(1, batch_size // run.samples)
    total = len(run.trials) * (1 + len(run.rows) * run.samples)
    with tqdm(total=total, desc="evaluate", unit="picture", disable=None) as bar:
        for start in range(0, len(run.trials), step):
            keys = [trial["key"] for trial in run.trials[start : start + step]]
            truth = read_pictures([run.truth(key) for key in keys]).to(classifier.device)
            truths.append(classifier.probabilities(truth).numpy())
            bar.update(len(keys))
            repeated = truth.repeat_interleave(run.samples, 0)
            if others is not None:
                wrong = read_pictures([run.truth(key) for key in others[start : start + step]]).to(classifier.device)
                wrong = wrong.repeat_interleave(run.samples, 0)
            for row in run.rows:
                paths = [run.image(row, key, sample) for key in keys for sample in range(run.samples)]
                images = read_pictures(paths).to(classifier.device)
                if images.shape != repeated.shape:
                    raise ValueError(
                        f"{paths[0]} is {images.shape[3]} x {images.shape[2]} px, its truth "
                        f"{truth.shape[3]} x {truth.shape[2]}: pictures of two runs are mixed, reconstruct anew"
                    )
                shape = (len(keys), run.samples)
                outputs[row].append(classifier.probabilities(images).numpy().reshape(*shape, -1))
                control = torch.full((len(paths), 1), torch.nan, device=images.device)
                if others is not None:
                    control = ssim(images, wrong)[:, :1]
                found = torch.cat([ssim(images, repeated), control], 1)
                similar[row].append(found.T.cpu().numpy().reshape(3, *shape))
                bar.update(len(paths))
    return (
        np.concatenate(truths),
        {row: np.concatenate(parts) for row, parts in outputs.items()},
        {row: np.concatenate(parts, 1) for row, parts in similar.items()},
    )


def _groups(run: ReconstructRun) -> dict[str, np.ndarray]:
    """Named subsets of the trials: "all", "subject 1", ..., "class pizza", ... -> boolean masks (n,)."""
    subjects = np.array([trial["subject"] for trial in run.trials])
    labels = np.array([trial["label"] for trial in run.trials])
    names = {trial["label"]: trial["class_name"] for trial in run.trials}
    groups = {"all": np.ones(len(run.trials), bool)}
    groups |= {f"subject {s}": subjects == s for s in sorted(set(subjects.tolist()))}
    return groups | {f"class {names[label]}": labels == label for label in sorted(names)}


def score(run: ReconstructRun, classifier: Classifier, n_way: int, top_k: int, batch_size: int = 16) -> dict[str, Any]:
    """Everything that scores.json holds.

    Of each row and group: "acc" (truth = what the classifier sees in the ground truth), "acc_label" (truth = the data
    set's label; only if the classifier knows all classes of the run), "ssim", "ssim_grey", and the control "ssim_other"
    (`ReconstructRun.others` says with which pictures) with "ssim_gain" = ssim - ssim_other; not for one class: "is" and
    "shuffled", which is "acc" with the group's truths dealt out at random. One image only: no controls.
    """
    known = [classifier.find(trial.get("wnid", ""), trial["class_name"]) for trial in run.trials]
    labels = None if None in known else np.array(known, dtype=np.int64)
    n_way_accuracy(
        np.eye(len(classifier.classes))[:1], np.zeros(1, int), n_way, top_k
    )  # refuse a wrong N before the work
    truths, outputs, similar = _measure(run, classifier, batch_size)
    seen, units, groups = truths.argmax(1), run.units(), _groups(run)
    images = np.array([trial["image"] for trial in run.trials])
    rows: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    used, chance = 0, 0.0
    for row in run.rows:
        flat = outputs[row].reshape(-1, outputs[row].shape[-1])
        shape = (len(run.trials), run.samples)
        result = n_way_accuracy(flat, seen.repeat(run.samples), n_way, top_k)
        used, chance = result.n_way, result.chance
        same, grey, other = similar[row]
        values = {"acc": result.values.reshape(shape), "ssim": same, "ssim_grey": grey}
        if run.others() is not None:
            values |= {"ssim_other": other, "ssim_gain": same - other}
        if labels is not None:
            by_label = n_way_accuracy(flat, labels.repeat(run.samples), n_way, top_k)
            values["acc_label"] = by_label.values.reshape(shape)
        rows[row] = {}
        for group, mask in groups.items():
            found: dict[str, Estimate] = {}
            for name, value in values.items():
                found[name] = bootstrap_mean(value[mask].ravel(), units[mask].repeat(run.samples))
            if not group.startswith("class "):  # within one class diversity is no virtue
                n = len(set(units[mask]))
                inside = outputs[row][mask].reshape(-1, flat.shape[1])
                found["is"] = Estimate(inception_score(inside), None, None, n)
                if len(set(images[mask])) > 1:
                    chances = shuffled_accuracy(inside, seen[mask].repeat(run.samples), n_way, top_k)
                    found["shuffled"] = Estimate(chances, None, None, n)
            rows[row][group] = {name: estimate._asdict() for name, estimate in found.items()}
    truth: dict[str, Any] = {"is": inception_score(truths)}
    if len(set(images)) > 1:  # the ground-truth pictures themselves as a decoder's, dealt out blindly
        truth["shuffled"] = shuffled_accuracy(truths, seen, n_way, top_k)
    if labels is not None:
        truth["named_rightly"] = float((seen == labels).mean())
    return {
        "format": "neuroimagen-scores",
        "version": VERSION,
        "simulated": bool(run.about.get("simulated")),
        "dataset": run.about.get("manifest", {}).get("dataset"),
        "trials": len(run.trials),
        "pictures": len(set(images)),
        "subjects": len({trial["subject"] for trial in run.trials}),
        "samples": run.samples,
        "classifier": classifier.describe,
        "classes": len(classifier.classes),
        "n_way": used,
        "n_way_asked": n_way,
        "top_k": top_k,
        "chance": chance,
        "ssim_settings": SSIM_SETTINGS + "; ssim: mean of the colour channels, ssim_grey: luma",
        "inception_splits": 1,
        "interval": f"95 % percentile bootstrap over {run.unit}, 2000 resamples; n counts them",
        "captions_source": run.about.get("captions_source"),
        "truth": truth,
        "rows": rows,
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
    """The command `neuroimagen evaluate RUN`."""
    if config.batch_size < 1:
        raise ValueError(f"batch_size={config.batch_size} must be at least 1")
    from neuroimagen.evaluation import tables  # which imports this module

    run = read_run(config.run)
    classifier = load_classifier(config.classifier, pick_device(config.device))
    scores = score(run, classifier, config.n_way, config.top_k, config.batch_size)
    scores["config"] = dataclasses.asdict(config)
    write_atomic(run.path / "scores.json", json.dumps(scores, indent=1) + "\n")
    write_atomic(run.path / "scores.csv", to_csv(scores))
    print(tables.format_tables(run, scores))
    return scores
