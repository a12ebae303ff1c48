"""Which trials the figures show, by which rule, and that they are drawn where they belong."""

import json

import numpy as np
import pytest
from PIL import Image
from reconstruct_run import ABOUT, EXTRA, ROWS, make_run, plain

from neuroimagen.report import figures
from neuroimagen.scores.run_files import read_run
from neuroimagen.studies.classes import CLASSES

COLOURS = {"truth": (10, 200, 30), "map": (250, 240, 0), "L+I": (0, 60, 250), "Brain2Image": (120, 0, 90)}


def flat(what, trial, sample):
    """One colour for each kind of picture."""
    return Image.new("RGB", (16, 16), COLOURS.get(what, (90, 90, 90)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return read_run(make_run(path, classes=11, rows=ROWS | EXTRA, about_rows=ABOUT, samples=4))


def shown(figure):
    return [
        [str(picture.path.parent.name + "/" + picture.path.stem) for picture in line.pictures] for line in figure.lines
    ]


def area(image, colour):
    return int((np.asarray(image) == colour).all(2).sum())


def test_figure_3_shows_the_first_trial_of_each_class(run):
    figure = figures.build(run)[0]["figure3"]
    assert figure.heads == ["seen", "saliency map", "sample 1", "sample 2", "sample 3"]
    assert "the first trial of each class in the order of trial keys." in figure.rule
    assert [(line.name, line.below) for line in figure.lines] == [(c.name, "subject 1") for c in CLASSES[:11]]
    assert shown(figure)[10] == [
        f"{place}/s1_i1000_t00040{sample}"  # the 11th class: 4 trials of each before
        for place, sample in (("truth", ""), ("maps", ""), ("L+I", "_0"), ("L+I", "_1"), ("L+I", "_2"))
    ]
    assert [picture.seen for picture in figure.lines[0].pictures] == [True, False, False, False, False]
    assert figure.columns == 2 and "on simulated EEG" in figure.title


def test_many_classes_are_thinned_by_rule(tmp_path):
    run = read_run(make_run(tmp_path / "run", classes=20, pictures=1, subjects=1, samples=1, rows={"L": ROWS["L"]}))
    figure = figures.build(run)[0]["figure3"]
    labels = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18]  # 20 i // 16
    assert [line.name for line in figure.lines] == [CLASSES[label].name for label in labels]
    assert "16 of 20 classes, evenly spaced by label" in figure.rule and "by row L," in figure.title
    assert figure.heads == ["seen", "saliency map", "sample 1"]


def test_figure_4_sets_the_baselines_above_ours(run):
    figure = figures.build(run)[0]["figure4"]
    # Of the paper's classes the study of labels 0 to 10 has the panda; sorrel and parachute come first by label.
    assert figure.heads == ["giant panda"] * 2 + ["sorrel"] * 2 + ["parachute"] * 2
    assert "(giant panda), then the first others by label (sorrel, parachute)" in figure.rule
    assert [line.name for line in figure.lines] == [
        "seen", "Brain2Image", "Brain2Image-VAE", "NeuroVision", "NeuroImagen",
    ]  # fmt: skip
    keys = ["s1_i0800_t00032", "s1_i0801_t00034", "s1_i0000_t00000", "s1_i0001_t00002"]
    assert shown(figure)[0][:4] == [f"truth/{key}" for key in keys]
    assert shown(figure)[2][:4] == [f"Brain2Image-VAE/{key}_0" for key in keys]
    assert shown(figure)[4][:4] == [f"L+I/{key}_0" for key in keys]


def test_figure_5_shows_what_all_subjects_saw(run, tmp_path):
    figure = figures.build(run)[0]["figure5"]
    assert [line.name for line in figure.lines] == ["anemone fish", "canoe", "sorrel", "parachute"]
    assert figure.heads == ["seen", "subject 1", "subject 2"]
    assert shown(figure)[0] == ["truth/s1_i0300_t00012", "L+I/s1_i0300_t00012_0", "L+I/s2_i0300_t00013_0"]
    path = make_run(tmp_path / "run", classes=4)
    kept = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    # Subject 2 missed the first picture of label 3 and both of label 0.
    missed = ("s2_i0300_t00013", "s2_i0000_t00001", "s2_i0001_t00003")
    kept = [json.dumps(trial) for trial in kept if trial["key"] not in missed]
    (path / "trials.jsonl").write_text("\n".join(kept) + "\n")
    figure = figures.build(read_run(path))[0]["figure5"]
    assert [line.name for line in figure.lines] == ["anemone fish", "parachute", "iron"]
    assert shown(figure)[0] == ["truth/s1_i0301_t00014", "L+I/s1_i0301_t00014_0", "L+I/s2_i0301_t00015_0"]


def test_what_cannot_be_shown_is_absent_with_a_reason(tmp_path):
    path = make_run(tmp_path / "run", classes=2, subjects=1, simulated=False, draw=flat)
    assert "this run has one" in figures.build(read_run(path))[1]["figure5"]
    assert (
        "none of them: reconstruct with the runs of trainers/brain2image.py"
        in figures.build(read_run(path))[1]["figure4"]
    )
    figures.write(read_run(path), path / "figures")
    (path / "figures/figure5.png").write_bytes(b"of an earlier run")
    figures.write(read_run(path), path / "figures")
    assert [file.name for file in (path / "figures").iterdir()] == ["figure3.png"]
    assert "recorded EEG" in figures.build(read_run(path))[0]["figure3"].title
    two = make_run(tmp_path / "two", classes=2, draw=plain)
    trials = [json.loads(line) for line in (two / "trials.jsonl").read_text().splitlines()]
    for name, change, why in (
        ("category", lambda t: {**t, "picture": "category only: not recorded"}, "kept only its category"),
        ("apart", lambda t: {**t, "image": f"{t['image']} of {t['subject']}"}, "no such picture"),
    ):
        (two / "trials.jsonl").write_text("".join(json.dumps(change(trial)) + "\n" for trial in trials))
        assert why in figures.build(read_run(two))[1]["figure5"], name


def test_pictures_are_drawn_whole_and_only_the_truth_is_framed(tmp_path):
    run = read_run(make_run(tmp_path / "run", rows=ROWS | EXTRA, about_rows=ABOUT, samples=4, draw=flat))
    images = {name: figures.draw(figure) for name, figure in figures.build(run)[0].items()}
    cell, red = 128 * 128, (0xCF, 0x1F, 0x1F)
    for name, counts in (
        ("figure3", {"truth": 3, "map": 3, "L+I": 9}),
        ("figure4", {"truth": 6, "Brain2Image": 6, "L+I": 6}),
        ("figure5", {"truth": 3, "L+I": 6}),
    ):
        for what, count in counts.items():
            assert area(images[name], COLOURS[what]) == count * cell, (name, what)
        # 3 px around each truth, and the title in the same red: its letters' edges are blended.
        frames = counts["truth"] * (134 * 134 - cell)
        assert frames < area(images[name], red) < frames + 6000
    pixels = np.asarray(images["figure3"])
    starts = [(pixels == COLOURS[what]).all(2).any(0).argmax() for what in ("truth", "map", "L+I")]
    assert starts == sorted(starts)
