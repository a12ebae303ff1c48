"""A small reconstruct run directory of made-up pictures, as trainers/reconstruct.py lays it out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neuroimagen.scores.classifiers import Classifier
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.score_book import ScoreBook
from neuroimagen.studies.classes import CLASSES

ROWS = {"I": (None, True), "L": ("label", False), "B": ("blip", False), "B+I": ("blip", True), "L+I": ("label", True)}
# For make_run(rows=ROWS | EXTRA, about_rows=ABOUT): baselines and controls, and what rows.json says of them.
EXTRA = {name: (None, False) for name in ("Brain2Image", "Brain2Image-VAE", "NeuroVision", "retrieval", "random class")}
ABOUT = {name: {"kind": "baseline", "means": f"a {name} of the test"} for name in list(EXTRA)[:3]}
ABOUT |= {name: {"kind": "control", "means": f"{name}, of the test"} for name in list(EXTRA)[3:]}
Draw = Callable[[str, dict, int], Image.Image]  # what ("truth" | "map" | a row), trial, sample -> picture


def plain(what: str, trial: dict, sample: int) -> Image.Image:
    """Noise of a colour that belongs to the class; row I is noise alone."""
    rng = np.random.default_rng([trial["label"], trial["index"], sample, *what.encode()])
    colour = np.zeros(3) if what == "I" else 200.0 * np.array([trial["label"] % 2, trial["label"] // 2 % 2, 0.5])
    return Image.fromarray((colour + rng.uniform(0, 55, (16, 16, 3))).astype(np.uint8))


def make_run(
    path: Path,
    *,
    classes: int = 3,
    pictures: int = 2,
    subjects: int = 2,
    samples: int = 2,
    simulated: bool = True,
    rows: dict = ROWS,
    draw: Draw = plain,
    about_rows: dict[str, dict] | None = None,
) -> Path:
    """classes x pictures x subjects trials; every picture is shown to every subject."""
    trials: list[dict] = []
    for c in CLASSES[:classes]:
        for i in range(pictures):
            for subject in range(1, subjects + 1):
                n = len(trials)
                trial = {"key": f"s{subject}_i{c.label:02}{i:02}_t{n:05}", "subject": subject, "label": c.label}
                trial |= {"wnid": c.wnid, "class_name": c.name, "image": f"{c.wnid}_{i}", "index": n}
                trials.append(trial)
    trials.sort(key=lambda trial: trial["key"])
    for folder in ("truth", "maps", *(f"images/{row}" for row in rows)):
        (path / folder).mkdir(parents=True)
    for trial in trials:
        draw("truth", trial, 0).save(path / f"truth/{trial['key']}.png")
        draw("map", trial, 0).save(path / f"maps/{trial['key']}.png")
        for row in rows:
            for sample in range(samples):
                draw(row, trial, sample).save(path / f"images/{row}/{trial['key']}_{sample}.png")
    (path / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    names = [{"label": c.label, "wnid": c.wnid, "name": c.name} for c in CLASSES[:classes]]
    about = {
        "rows": [
            {"name": row, "semantics": semantics, "map": map_} | (about_rows or {}).get(row, {})
            for row, (semantics, map_) in rows.items()
        ],
        "samples": samples,
        "simulated": simulated,
        "manifest": {
            "dataset": "perceivelab",
            "simulated": simulated,
            "n_chans": 128,
            "n_times": 440,
            "sfreq": 1000.0,
            "subjects": list(range(1, subjects + 1)),
            "classes": names,
            "protocol": "80/10/10 by image, all subjects of an image on one side",
        },
        "pipeline": "neuroimagen/embedded/diffusion",
        "settings": {"split": "test", "strength": 0.8, "guidance_scale": 7.5, "seed": 0},
        "captions_source": "drawn scene (simulator)",
    }
    (path / "rows.json").write_text(json.dumps(about))
    (path / "config.yaml").write_text(f"run_dir: {path}\nsamples: {samples}\nstrength: 0.8\nseed: 0\n")
    versions = {"neuroimagen": "0.1.0", "torch": "2.13.0"}
    (path / "environment.json").write_text(json.dumps({"versions": versions, "commit": "abc1234", "device": "cpu"}))
    (path / "DONE").write_text("")
    return path


def by_colour(images):
    """The fake run's classes by the presence of red and green: label = red + 2 green, far from any doubt."""
    red, green = (images[:, c].mean((1, 2)) > 0.5 for c in (0, 1))
    return 50 * torch.nn.functional.one_hot(red.long() + 2 * green.long(), 4).float()


def colours(classes=CLASSES[:4], logits=by_colour):
    names, wnids = [c.name for c in classes], [c.wnid for c in classes]
    return Classifier("colours", "the colour test", names, wnids, torch.device("cpu"), lambda x: (logits(x), logits(x)))


def score(run, classifier, n_way, top_k, **choices):
    """What scores.json will hold of a run."""
    choices = {"metrics": ["paper"]} | choices
    book = ScoreBook(run, classifier, EvaluateConfig(run=str(run.path), n_way=n_way, top_k=top_k, **choices))
    book.measure()
    return book.scores()
