"""The score book's speed: N-way accuracy in closed form against random trials, and where a whole book's time goes.

    python benchmarks/metrics.py [PICTURES [SIDE [CLASSIFIER]]]        2000 64 efficientnet-lite0
    python benchmarks/metrics.py things

1. 50-way top-1 accuracy of 2,000 pictures over 1,000 classes: the closed form, and 1,000 random draws of 49 distractors
   (numpy, all pictures at once), whose mean must lie within its own error of the closed form.
2. A made-up run of so many pictures, every metric at hand, under cProfile. The classifier is a real network, the
   pictures are noise: speed does not depend on what they show. All times are CPU seconds of this process, one thread.
3. `things`: metrics of one row of 16,000 reconstructions (200 test pictures of THINGS x 80 repeats) and of 16,540 (its
   training pictures), from made-up features of FID's network and outputs of 1,000 classes.
"""

import cProfile
import json
import pstats
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neuroimagen.scores.classifiers import load_classifier
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.intervals import bootstrap_means
from neuroimagen.scores.metrics import inception_estimate, ranks_of, success_by_rank
from neuroimagen.scores.run_files import read_run
from neuroimagen.scores.score_book import ScoreBook
from neuroimagen.scores.similarity import frechet_distance, kernel_distance
from neuroimagen.studies.classes import CLASSES


def random_trials(probabilities: np.ndarray, truth: np.ndarray, n_way: int, trials: int, seed: int = 0) -> np.ndarray:
    """(n,) share of `trials` draws of n_way - 1 distractors, without replacement, that the truth beats."""
    rng, (n, k) = np.random.default_rng(seed), probabilities.shape
    at_truth = np.take_along_axis(probabilities, truth[:, None], 1)
    others = np.delete(np.arange(n * k).reshape(n, k), truth + np.arange(n) * k).reshape(n, k - 1)
    beaten = np.take(probabilities.ravel(), others) < at_truth
    won = np.zeros(n)
    for _ in range(trials):
        drawn = np.argpartition(rng.random((n, k - 1)), n_way - 1, axis=1)[:, : n_way - 1]
        won += np.take_along_axis(beaten, drawn, 1).all(1)
    return won / trials


def closed_form(pictures: int = 2000, classes: int = 1000, n_way: int = 50, trials: int = 1000) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((pictures, classes)).astype(np.float32)
    truth = rng.integers(classes, size=pictures)
    logits[np.arange(pictures), truth] += rng.normal(2, 1, pictures)  # right, nearly right, wrong
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    success = success_by_rank(classes, n_way, 1)  # the table of binomials, made once
    began = time.process_time()
    exact = success[ranks_of(probabilities, truth[:, None])[:, 0]]
    ours = time.process_time() - began
    began = time.process_time()
    drawn = random_trials(probabilities, truth, n_way, trials)
    theirs = time.process_time() - began
    error = np.sqrt((exact * (1 - exact)).sum() / trials) / pictures
    off = (drawn.mean() - exact.mean()) / error
    print(f"{n_way}-way top-1 of {pictures} pictures, {classes} classes (CPU seconds of this process)")
    print(f"  closed form           {ours:9.4f} s   {100 * exact.mean():.4f} %")
    print(
        f"  {trials} random trials    {theirs:9.4f} s   {100 * drawn.mean():.4f} %, {off:+.2f} of its standard errors"
    )
    print(f"  {theirs / ours:.0f} times as fast")
    assert abs(off) < 4, "the two do not agree"


def made_up_run(path: Path, pictures: int, side: int, rows: int = 2, samples: int = 2) -> Path:
    """A run of so many different pictures in all: rows x samples a trial, and one ground truth a trial."""
    rng, trials = np.random.default_rng(0), []
    for folder in ("truth", *(f"images/row {r}" for r in range(rows))):
        (path / folder).mkdir(parents=True)

    def draw(file: Path) -> None:
        Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(path / file, compress_level=1)

    for i in range(pictures // (rows * samples)):
        c = CLASSES[i % 40]
        trial = {"key": f"t{i:05}", "subject": i % 3, "label": c.label, "wnid": c.wnid}
        trials.append({**trial, "class_name": c.name, "image": f"i{i}", "index": i})
        draw(Path("truth") / f"t{i:05}.png")
        for r in range(rows):
            for s in range(samples):
                draw(Path("images") / f"row {r}" / f"t{i:05}_{s}.png")
    (path / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials), encoding="utf-8")
    (path / "rows.json").write_text(
        json.dumps({"rows": [{"name": f"row {r}"} for r in range(rows)], "samples": samples}), encoding="utf-8"
    )
    (path / "config.yaml").write_text("", encoding="utf-8")
    (path / "DONE").write_text("", encoding="utf-8")
    return path


def whole_book(pictures: int, side: int, name: str) -> None:
    classifier = load_classifier(name)
    forward = classifier.outputs
    spent = [0.0, 0]

    def timed(images: torch.Tensor) -> dict[str, torch.Tensor]:
        began = time.process_time()
        found = forward(images)
        spent[0] += time.process_time() - began
        spent[1] += len(images)
        return found

    classifier.outputs = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run = read_run(made_up_run(Path(folder) / "run", pictures, side))
        profile, began = cProfile.Profile(time.process_time), time.process_time()
        profile.enable()
        book = ScoreBook(run, classifier, EvaluateConfig(run=str(run.path)))
        book.measure()
        measured = time.process_time() - began
        scores = book.scores()
        book.pictures_csv()
        profile.disable()
        whole = time.process_time() - began
    print(f"\nwhole score book of {pictures} reconstructions and {len(run.trials)} truths of {side} px, {name}")
    print(f"  {len(scores['metrics'])} metrics: {', '.join(scores['metrics'])}")
    print(f"  not at hand: {', '.join(scores['unavailable']) or 'none'}")
    parts = {f"classifier forward ({spent[1]} pictures)": spent[0]}
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for what, names in {
        "SSIM, two settings and control": ("ssim", "ssim_425"),
        "PixCorr": ("pixcorr",),
        "reading pictures": ("read_pictures", "_identify"),
        "bootstrap": ("bootstrap_means",),
        "N-way ranks": ("ranks_of",),
        "FID, KID": ("frechet_distance", "kernel_distance"),
        "IS, shuffled": ("inception_estimate", "shuffled_estimate", "dealt_estimates"),
    }.items():
        parts[what] = sum(v[3] for (_, _, function), v in stats.items() if function in names)
    parts["all the rest"] = whole - sum(parts.values())
    for what, seconds in parts.items():
        print(f"  {what:<40} {seconds:8.2f} s  {100 * seconds / whole:5.1f} %")
    print(f"  {'whole':<40} {whole:8.2f} s, {measured:.2f} s of it going through the pictures")


def at_things_size(pictures: int, times: int) -> None:
    rng, which = np.random.default_rng(0), np.arange(pictures * times) % pictures
    truths = torch.rand(pictures, 2048)
    features = (truths[which] + torch.rand(len(which), 2048)) / 2
    values, outputs = rng.random((len(which), 160)), rng.dirichlet(np.full(1000, 0.1), len(which))
    print(f"{pictures} pictures x {times}, one row")
    for name, work in {
        "KID": lambda: kernel_distance(features, truths, which),
        "FID": lambda: frechet_distance(features, truths),
        "bootstrap of 160 columns": lambda: bootstrap_means(values, which),
        "IS": lambda: inception_estimate(outputs, which),
    }.items():
        began = time.process_time()
        work()
        print(f"  {name:<26} {time.process_time() - began:8.2f} s", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    torch.set_num_threads(1)
    if arguments == ["things"]:
        at_things_size(200, 80)
        at_things_size(16_540, 1)
        sys.exit()
    closed_form()
    whole_book(
        *(int(a) for a in (arguments + ["2000", "64"][len(arguments) :])[:2]),
        (arguments[2:] or ["efficientnet-lite0"])[0],
    )
