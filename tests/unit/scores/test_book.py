"""The score book's numbers on pictures of flat colours, whose features are their colours: worked by hand."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from reconstruct_run import ROWS, colours, make_run, score
from scipy.special import ndtr, stdtrit

from neuroimagen.report.tables import evaluate
from neuroimagen.scores.classifiers import Classifier
from neuroimagen.scores.definitions import METRICS
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.run_files import read_run
from neuroimagen.scores.score_book import ScoreBook
from neuroimagen.studies.classes import CLASSES

PURE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # red, green, blue: classes 0, 1, 2 and their pictures
OFFLINE = [name for name in METRICS if not name.startswith(("clip", "alex", "inception", "lpips", "effnet", "swav"))]


def by_strongest(classes=CLASSES[:3]):
    """A classifier that sees the strongest of red, green and blue; its features are the mean colour."""

    def both(images):
        colour = images.mean((2, 3))
        return torch.cat([-9 + 0 * colour[:, :1], 20 * colour], 1), colour

    names = [CLASSES[39], *classes]
    wnids = [c.wnid for c in names]
    return Classifier("flat", "flat", [c.name for c in names], wnids, torch.device("cpu"), both)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One picture a class. Row L: first sample always orange, second the truth. Row I: the next class's truth."""

    def draw(what, trial, sample):
        colour = PURE[trial["label"]]
        if what == "L" and sample == 0:
            colour = (255, 128, 0)
        if what == "I":
            colour = PURE[(trial["label"] + 1) % 3]
        return Image.new("RGB", (16, 16), colour)

    rows = {row: ROWS[row] for row in ("I", "L")}
    path = tmp_path_factory.mktemp("run") / "run"
    return read_run(make_run(path, classes=3, pictures=1, subjects=2, rows=rows, draw=draw))


@pytest.fixture(scope="module")
def found(run):
    return score(run, by_strongest(), 3, 1, metrics=OFFLINE)


def test_retrieval_and_two_way_by_hand(run, found):
    """Orange, less its mean, is (.5, 0, -.5): it correlates with red, not with green, against blue: ranks 0, 1, 2."""
    row = found["rows"]["L"]["all"]
    assert row["two_way"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert row["retrieval_top1"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert row["retrieval_nway"]["value"] == pytest.approx((1 / 3 + 1) / 2)  # 3-way of 3: the whole gallery
    for label, value in enumerate((1, 0.75, 0.5)):
        assert found["rows"]["L"][f"class {CLASSES[label].name}"]["two_way"]["value"] == pytest.approx(value)
    # The next class's truth ties with the third picture: a tie does not count for it.
    assert found["rows"]["I"]["all"]["two_way"]["value"] == 0
    two = score(run, by_strongest(), 2, 1, metrics=["retrieval_nway"])["rows"]["L"]["all"]
    assert two["retrieval_nway"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert found["gallery"] == 3 and "top-5 needs more" in found["unavailable"]["retrieval_top5"]


def test_best_of_n_stands_apart(found):
    mean, best = found["rows"]["L"]["all"], found["best_of_n"]["L"]["all"]
    # 3-way of 4 classes: in orange red beats all, green is beaten by one, which 1 of 3 draws leave out, blue by two.
    assert mean["acc"]["value"] == pytest.approx(((1 + 1 / 3 + 0) / 3 + 1) / 2) and best["acc"]["value"] == 1
    assert best["ssim"]["value"] == pytest.approx(1, abs=1e-5) and mean["ssim"]["value"] < 0.9
    assert set(best) <= set(mean) and not {"ssim_other", "is", "shuffled", "fid_classifier"} & set(best)
    # Two guesses among three pictures: 1 - (2/3)^2.
    assert found["metrics"]["retrieval_top1"]["chance_best_of_n"] == pytest.approx(5 / 9)


def test_chance_and_ceiling_stand_beside_every_number(found):
    measured = {name for groups in found["rows"].values() for name in groups["all"]}
    assert measured == set(found["metrics"])
    for name, said in found["metrics"].items():
        assert said["definition"] and said["source"] and said["chance_of"] and "{" not in said["definition"], name
        assert said["ceiling"] is not None
    wanted = {"acc": (1 / 3, 1), "two_way": (1 / 2, 1), "retrieval_top1": (1 / 3, 1), "ssim_gain": (0, 4 / 9)}
    for name, (chance, ceiling) in wanted.items():
        assert found["metrics"][name]["chance"] == pytest.approx(chance), name
        assert found["metrics"][name]["ceiling"] == pytest.approx(ceiling, abs=1e-3), name
    # Of two flat pictures one channel is alike, two are quite another; dealt out, one of three truths is the own.
    assert found["metrics"]["ssim_other"]["ceiling"] == pytest.approx(5 / 9, abs=1e-3)
    assert found["metrics"]["ssim"]["chance"] is None  # it is each row's own
    assert found["metrics"]["pixcorr"]["ceiling"] == pytest.approx(1, abs=1e-5)
    assert not set(found["metrics"]) & set(found["unavailable"])
    json.dumps(found, allow_nan=False)


def test_confusion_and_pictures(run, found):
    counts = found["confusion"]["L"]
    assert counts["classes"] == [c.name for c in CLASSES[:3]]
    assert counts["counts"] == [[4, 0, 0], [2, 2, 0], [2, 0, 2]]
    book = ScoreBook(run, by_strongest(), EvaluateConfig(run=str(run.path), n_way=4, metrics=["paper"]))
    book.measure()
    lines = list(csv.DictReader(io.StringIO(book.pictures_csv())))
    assert len(lines) == 2 * 6 * 2
    for line in lines:
        label = int(line["label"])
        assert line["class_name"] == line["seen"] == CLASSES[label].name
        guess = {"I": (label + 1) % 3, "L": label if line["sample"] == "1" else 0}[line["row"]]
        assert line["guess"] == CLASSES[guess].name and float(line["acc"]) == (guess == label)


def test_distractors_of_the_study(run):
    """Three classes of the classifier's four are the study's: N is capped there, and the fourth is never right."""
    book = score(run, by_strongest(), 50, 1, distractors="study")
    assert (book["n_way"], book["chance"], book["distractors"]) == (3, pytest.approx(1 / 3), "study")
    whole = score(run, by_strongest(), 50, 1)
    assert whole["n_way"] == 4 and whole["rows"]["L"]["all"]["acc_label"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert book["rows"]["L"]["all"]["acc_label"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    with pytest.raises(ValueError, match="distractors=study, but the classifier does not know 3 of the data set"):
        score(run, colours(CLASSES[10:14]), 3, 1, distractors="study")
    assert "does not know 3" in score(run, colours(CLASSES[10:14]), 3, 1)["unavailable"]["acc_label"]


def test_what_is_not_at_hand_is_said_once(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("neuroimagen.scores.evaluate.load_classifier", lambda *_: by_strongest())
    wanted = ["alex2", "alex5", "effnet", "lpips"]
    config = EvaluateConfig(run=str(run.path), n_way=3, device="cpu", metrics=wanted)
    evaluate(config)
    assert capsys.readouterr().out.endswith(
        "\n4 of the metrics are not at hand: --verbose says why, and how to get them\n"
    )
    scores = evaluate(dataclasses.replace(config, verbose=True))
    printed = capsys.readouterr().out
    assert set(scores["unavailable"]) == set(wanted)
    for name in wanted:
        assert scores["unavailable"][name].startswith("not available: ")
        assert printed.count(scores["unavailable"][name]) == 1
    heads = f"\n{METRICS['alex2'].head}, {METRICS['alex5'].head}: not available: alexnet ("
    assert heads in printed
    assert "wget https://" in scores["unavailable"]["alex2"] and "16 px" in scores["unavailable"]["lpips"]


def test_every_network_reaches_its_metrics(run, monkeypatch):
    """All see mean colours. Orange correlates with red by cos 30 degrees, with green by 0, with blue by -cos 30."""

    class Colours:
        def __init__(self, name, *_):
            self.layers = {"alexnet": ("alex2", "alex5"), "fid": ("fid", "logits")}.get(name, (name,))

        def __call__(self, images):
            colour = images.mean((2, 3))
            return {layer: 60 * colour if layer == "logits" else colour for layer in self.layers}

    monkeypatch.setattr("neuroimagen.scores.measure.load_network", Colours)
    wanted = ["alex2", "alex5", "inception", "clip", "clip_top1", "effnet", "swav", "fid", "kid", "is_inception"]
    found = score(run, by_strongest(), 3, 1, metrics=wanted)
    row, said = found["rows"]["L"]["all"], found["metrics"]
    for name in ("alex2", "alex5", "inception", "clip"):
        assert row[name]["value"] == pytest.approx(0.75) and said[name]["ceiling"] == 1
    assert row["clip_top1"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    for name in ("effnet", "swav"):
        assert row[name]["value"] == pytest.approx((1 - (3**0.5 / 2 + 0 - 3**0.5 / 2) / 3) / 2, abs=1e-3)
        assert found["rows"]["L"][f"class {CLASSES[0].name}"][name]["value"] == pytest.approx((1 - 0.866) / 2, abs=2e-3)
        assert said[name]["ceiling"] == pytest.approx(0, abs=1e-6) and said[name]["chance"] is None
        # Row I shows the next class's truth: the distance is 1.5, and dealt out (1.5 + 1.5 + 0) / 3.
        values = [found["rows"]["I"]["all"][f"{name}{kind}"]["value"] for kind in ("", "_other", "_gain")]
        assert values == pytest.approx([1.5, 1, -0.5])
    assert said["is_inception"]["ceiling"] == pytest.approx(3) and row["is_inception"]["value"] < 2.5
    assert "needs 4" in found["unavailable"]["fid"] and "needs 4" in found["unavailable"]["kid"]


def test_mistakes(run):
    with pytest.raises(ValueError, match="'pixcor' is not one of all, paper.*Did you mean 'pixcorr'"):
        score(run, by_strongest(), 3, 1, metrics=["pixcor"])
    with pytest.raises(ValueError, match="inception_splits=7 must be 1 to the number of trials, 6"):
        score(run, by_strongest(), 3, 1, inception_splits=7)


def test_kid_of_the_pictures_themselves_is_0(tmp_path):
    """Two subjects and a row that returns other pictures of the truths' own colours: the ceiling stays 0."""
    path = make_run(tmp_path / "run", classes=3, pictures=3, rows={"L": ROWS["L"]})
    found = score(read_run(path), by_strongest(), 3, 1, metrics=["kid_classifier", "fid_classifier"])
    assert found["metrics"]["kid_classifier"]["ceiling"] == pytest.approx(0, abs=1e-12)
    assert found["metrics"]["fid_classifier"]["ceiling"] >= 0
    assert "unbiased" in found["metrics"]["kid_classifier"]["definition"]


def test_equal_pixels_are_one_picture(tmp_path):
    """However a file was compressed and whatever it is called: 3 classes, each with one picture under two names."""

    def draw(what, trial, sample):
        return Image.new("RGB", (16, 16), PURE[trial["label"]])

    run = read_run(make_run(tmp_path / "run", classes=3, pictures=2, subjects=2, rows={"L": ROWS["L"]}, draw=draw))
    before = score(run, by_strongest(), 3, 1, metrics=OFFLINE)
    for n, trial in enumerate(run.trials):
        path = run.truth(trial["key"])
        with Image.open(path) as picture:
            picture.load()
        picture.save(path, **({"format": "PNG", "compress_level": 9 * (n % 2)}))
    assert len({run.truth(trial["key"]).read_bytes() for trial in run.trials}) == 6
    found = score(run, by_strongest(), 3, 1, metrics=OFFLINE)
    assert found == before and (found["gallery"], found["pictures"]) == (3, 3)
    row = found["rows"]["L"]["all"]
    assert row["retrieval_top1"]["value"] == row["two_way"]["value"] == 1 and row["acc"]["n"] == 3


def scored(path, rows, like=None, metrics=("paper",), classes=4, pictures=3):
    """Scores of rows of flat colours, of which `like` says the class shown for (row, label, place of the picture)."""

    def draw(what, trial, sample):
        label, i = trial["label"], int(trial["image"][-1])
        label = label if what in ("truth", "map") else like(what, label, i)
        return Image.new("RGB", (16, 16), (255 * (label % 2), 255 * (label // 2 % 2), 20 * i))

    rows = {row: (None, False) for row in rows}
    run = read_run(make_run(path, classes=classes, pictures=pictures, subjects=2, rows=rows, draw=draw))
    return score(run, colours(), 4, 1, metrics=list(metrics))


def by_row(row, label, picture):
    """The oracle is right but for the third picture of class 0, a random class wrong but for the first of class 1; L is
    right of the first two pictures, "class" of the first."""
    right = {"oracle": (label, picture) != (0, 2), "random class": (label, picture) == (1, 0)}
    right |= {"L": picture < 2, "class": picture < 1}
    return label if right[row] else (label + 1) % 4


def test_fraction_of_the_attainable_gap_by_hand(tmp_path):
    """Of twelve pictures the oracle has 11, a random class 1, L 8 and "class" 4: 7/10 and 3/10 of the gap."""
    found = scored(tmp_path / "run", ("L", "oracle", "random class", "class"), by_row)
    gap = {row: groups["all"]["gap"] for row, groups in found["rows"].items()}
    values = {row: estimate["value"] for row, estimate in gap.items()}
    assert values == pytest.approx({"L": 0.7, "oracle": 1, "random class": 0, "class": 0.3})
    assert found["rows"]["L"]["subject 1"]["gap"]["value"] == pytest.approx(0.7) and gap["L"]["n"] == 12
    # The same bootstrap, resample by resample: pictures are drawn, and of each resample the ratio is taken.
    right = np.array(
        [[by_row(row, c, i) == c for row in ("L", "random class", "oracle")] for c in range(4) for i in range(3)], float
    )
    own, floor, ceiling = right[np.random.default_rng(5).integers(12, size=(20_000, 12))].mean(1).T
    level = ndtr(-np.sqrt(12 / 11) * stdtrit(11, 0.975))
    wanted = np.quantile((own - floor) / (ceiling - floor), (level, 1 - level))
    assert (gap["L"]["low"], gap["L"]["high"]) == pytest.approx(tuple(wanted), abs=0.02)
    assert found["metrics"]["gap"]["chance"] == 0 and "oracle" in found["metrics"]["gap"]["definition"]


def test_a_gap_that_cannot_be_told_or_was_not_asked_for(tmp_path):
    alike = scored(tmp_path / "alike", ("L", "oracle", "random class", "class"), lambda row, label, i: (label + i) % 4)
    assert "gap" not in alike["metrics"] and "gap" not in alike["rows"]["L"]["all"]
    assert alike["unavailable"]["gap"].startswith("cannot be told: of the accuracies of oracle and random class the")
    rows = ("L", "oracle", "random class")
    silent = scored(tmp_path / "silent", rows, by_row)
    assert "gap" not in silent["metrics"] and "gap" not in silent["unavailable"] and "beside" not in silent
    assert scored(tmp_path / "asked", rows, by_row, ["gap"])["rows"]["L"]["all"]["gap"]["value"] == pytest.approx(0.7)
    lacking = scored(tmp_path / "lacking", ("L", "oracle"), by_row, ["gap"])
    assert lacking["unavailable"]["gap"] == "not available: it needs the rows random class and oracle; draw them"


def test_a_row_beside_the_one_that_differs_in_one_thing(tmp_path):
    """L above "class": 8 pictures of 12 against 4, 4 pictures gained and none lost."""
    found = scored(tmp_path / "run", ("L", "oracle", "random class", "class"), by_row, ["pixcorr"])
    assert set(found["beside"]) == {"class"}
    gain = found["beside"]["class"]["acc"]
    assert gain["value"] == pytest.approx(4 / 12)
    drawn = (np.arange(12) < 4)[np.random.default_rng(5).integers(12, size=(20_000, 12))].mean(1)
    level = ndtr(-np.sqrt(12 / 11) * stdtrit(11, 0.975))
    assert (gain["low"], gain["high"]) == pytest.approx(tuple(np.quantile(drawn, (level, 1 - level))), abs=0.02)
    means = [found["rows"][row]["all"]["pixcorr"]["value"] for row in ("L", "class")]
    assert found["beside"]["class"]["pixcorr"]["value"] == pytest.approx(means[0] - means[1])
