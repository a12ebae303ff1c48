import csv
import dataclasses
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from reconstruct_run import ROWS, by_colour, colours, make_run, plain, score

from neuroimagen.config import run_command
from neuroimagen.report.tables import evaluate, format_tables
from neuroimagen.scores import evaluate as scoring
from neuroimagen.scores.evaluate import EvaluateConfig
from neuroimagen.scores.run_files import read_run
from neuroimagen.studies.classes import CLASSES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", classes=4, pictures=3)


@pytest.fixture
def fresh(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_a_run_that_cannot_be_written_is_refused_before_it_is_scored(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", classes=4, rows={"L": ROWS["L"]})
    monkeypatch.setattr("os.access", lambda path, how: how != os.W_OK)
    with pytest.raises(ValueError, match="run cannot be written, and scores and report go there: copy the run"):
        read_run(run, to_write=True)
    assert read_run(run).rows == ["L"]


def test_right_and_wrong_rows(run):
    found = score(read_run(run), colours(), 50, 1)
    assert (found["n_way"], found["chance"], found["n_way_asked"]) == (4, 0.25, 50)
    assert (found["trials"], found["pictures"], found["subjects"], found["samples"]) == (24, 12, 2, 2)
    assert list(found["rows"]) == ["I", "L", "B", "B+I", "L+I"]
    right = found["rows"]["L+I"]["all"]
    assert right["acc"] == {"value": 1, "low": pytest.approx(0.025 ** (1 / 12)), "high": 1, "n": 12}  # all 12 are right
    assert right["acc_label"]["value"] == 1 and right["is"]["value"] == pytest.approx(4, rel=1e-6)
    # Row I is dark noise, always class 0 here: right for that class alone.
    assert found["rows"]["I"]["all"]["acc"]["value"] == 0.25
    assert found["rows"]["I"]["all"]["is"]["value"] == pytest.approx(1)
    assert found["rows"]["I"][f"class {CLASSES[0].name}"]["acc"]["value"] == 1
    assert found["rows"]["I"][f"class {CLASSES[3].name}"]["acc"]["value"] == 0
    assert set(found["rows"]["I"]) == {"all", "subject 1", "subject 2", *(f"class {c.name}" for c in CLASSES[:4])}
    assert "is" not in found["rows"]["I"][f"class {CLASSES[0].name}"]
    assert found["truth"].keys() == {"is", "named_rightly", "guessing"}
    assert (found["truth"]["is"], found["truth"]["named_rightly"]) == (pytest.approx(4, rel=1e-6), 1)
    assert [found["truth"]["guessing"][name]["value"] for name in ("acc", "acc_balanced")] == [1 / 4, 1 / 4]
    assert right["ssim"]["value"] > found["rows"]["I"]["all"]["ssim"]["value"]
    # Blindly, right and dark rows alike are right for one class of four; within one class nothing can be shuffled.
    for row, group in (("L+I", "all"), ("I", "all"), ("L+I", "subject 1")):
        assert found["rows"][row][group]["shuffled"]["value"] == pytest.approx(1 / 4)
    assert "shuffled" not in found["rows"]["L"][f"class {CLASSES[0].name}"]


def test_truth_is_what_the_classifier_sees(run):
    # A classifier that mistakes every colour in the same way agrees with itself on truth and reconstruction ...
    turned = colours(logits=lambda images: by_colour(images).roll(1, 1))
    found = score(read_run(run), turned, 4, 1)
    assert found["rows"]["L"]["all"]["acc"]["value"] == 1
    # ... and is wrong by the data set's labels.
    assert found["rows"]["L"]["all"]["acc_label"]["value"] == 0 and found["truth"]["named_rightly"] == 0
    # Other classes than the run's: no accuracy by label.
    strange = score(read_run(run), colours(CLASSES[10:14]), 4, 1)
    assert "acc_label" not in strange["rows"]["L"]["all"] and "named_rightly" not in strange["truth"]


def test_samples_and_subjects_are_averaged(tmp_path):
    """Subject 2's second samples show another class: 1/2 for that subject, 3/4 over all."""

    def draw(what, trial, sample):
        if what == "L" and trial["subject"] == 2 and sample == 1:
            trial = {**trial, "label": 3 - trial["label"]}
        return plain(what, trial, sample)

    run = read_run(make_run(tmp_path / "run", classes=4, rows={"L": ROWS["L"]}, draw=draw))
    rows = score(run, colours(), 4, 1, batch_size=5)["rows"]["L"]
    assert [rows[g]["acc"]["value"] for g in ("all", "subject 1", "subject 2")] == [0.75, 1, 0.5]
    assert rows["all"]["acc"]["n"] == 8 and rows["all"]["acc"]["low"] == rows["all"]["acc"]["high"] == 0.75


def test_shuffled_knows_the_classes_of_the_study(tmp_path):
    """Two of the classifier's four classes are in the study, in shares 3 : 1; row B always shows the first of them."""

    def draw(what, trial, sample):
        return plain(what, {**trial, "label": 0} if what == "B" else trial, sample)

    whole = read_run(
        make_run(tmp_path / "run", classes=2, pictures=3, rows={row: ROWS[row] for row in "LB"}, draw=draw)
    )
    kept = [trial for trial in whole.trials if trial["label"] == 0 or trial["image"].endswith("_0")]
    found = score(dataclasses.replace(whole, trials=kept), colours(), 4, 1)
    assert found["chance"] == 1 / 4 and found["truth"]["guessing"]["acc"]["value"] == 3 / 4
    assert [found["rows"][row]["all"]["acc"]["value"] for row in "LB"] == [1, 3 / 4]
    # Blindly: truth and picture agree in (3/4)^2 + (1/4)^2 of all pairs; a constant picture loses nothing by shuffling.
    assert [found["rows"][row]["all"]["shuffled"]["value"] for row in "LB"] == [10 / 16, 3 / 4]


def test_ssim_other_by_hand(tmp_path):
    """Flat pictures, whose SSIM is its luminance term alone: (2 a b + c) / (a^2 + b^2 + c)."""
    truths = (51, 204)
    shown = {"L": (51, 204), "B": (204, 51), "I": (102, 102)}  # right, swapped, the same grey for both

    def draw(what, trial, sample):
        return Image.new("RGB", (16, 16), (shown.get(what, truths)[trial["label"]],) * 3)

    path = make_run(tmp_path / "run", classes=2, pictures=1, rows={row: ROWS[row] for row in shown}, draw=draw)
    found = score(read_run(path), colours(), 4, 1, batch_size=3)
    said, rows = found["metrics"], {row: groups["all"] for row, groups in found["rows"].items()}

    def similar(a, b):
        a, b, c = a / 255, b / 255, 0.01**2
        return (2 * a * b + c) / (a * a + b * b + c)

    # Dealt out at random, each meets its own truth in half of the cases.
    other, half = (1 + similar(51, 204)) / 2, (1 - similar(51, 204)) / 2
    for row, ssim, gain in (("L", 1, half), ("B", similar(51, 204), -half)):
        assert [rows[row][name]["value"] for name in ("ssim", "ssim_other", "ssim_gain")] == pytest.approx(
            [ssim, other, gain], abs=1e-4
        )
    grey = (similar(102, 51) + similar(102, 204)) / 2
    assert rows["I"]["ssim"]["value"] == pytest.approx(grey, abs=1e-4)
    assert rows["I"]["ssim_other"]["value"] == pytest.approx(grey, abs=1e-4)
    assert rows["I"]["ssim_gain"]["value"] == pytest.approx(0, abs=1e-6) and rows["I"]["ssim_gain"]["n"] == 2
    assert said["ssim_gain"]["ceiling"] == pytest.approx(half, abs=1e-4) and said["ssim_gain"]["chance"] == 0
    assert "the exact mean over all shuffles" in said["ssim_other"]["definition"]
    assert "ssim_gain" not in found["rows"]["L"][f"class {CLASSES[0].name}"]  # there nothing can be dealt out


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """20 trials of one category, 4 of another; which picture of it was shown is not known.

    Row L draws noisy pictures of the category seen, row B of the frequent one for every trial, row I flat colours.
    """

    def draw(what, trial, sample):
        noise = np.random.default_rng([trial["index"], sample]).uniform(0, 255, (16, 16, 3))
        if what == "I":
            return Image.fromarray(np.broadcast_to(noise[:1, :1], noise.shape).astype(np.uint8))
        label = 0 if what == "B" else trial["label"]
        shown = np.asarray(plain("truth", {"label": label, "index": label}, 0))
        return Image.fromarray((shown if what == "truth" else 0.8 * shown + 0.2 * noise).astype(np.uint8))

    rows = {row: ROWS[row] for row in "LBI"}
    path = make_run(tmp_path_factory.mktemp("run") / "run", classes=2, pictures=20, subjects=1, rows=rows, draw=draw)
    trials = [trial for trial in read_run(path).trials if trial["label"] == 0 or int(trial["image"].split("_")[1]) < 4]
    known = {"picture": "category only: not recorded"}
    lines = (json.dumps({**trial, "image": trial["wnid"], **known}) + "\n" for trial in trials)
    (path / "trials.jsonl").write_text("".join(lines))
    return path


def test_what_is_drawn_blindly_gains_nothing(uneven):
    found = score(read_run(uneven), colours(CLASSES[:4]), 4, 1, metrics=["pixcorr"])["rows"]
    for name in ("ssim", "ssim_grey", "pixcorr"):
        right, *blind = (found[row]["all"] for row in "LBI")
        assert right[f"{name}_gain"]["low"] > 0.02
        for row in blind:
            gain = row[f"{name}_gain"]
            assert gain["low"] <= 0 <= gain["high"] and gain["n"] == 24
            assert gain["value"] == pytest.approx(row[name]["value"] - row[f"{name}_other"]["value"])


def test_uneven_classes_do_not_flatter(uneven):
    """386 of 464 in small: the frequent class for every trial is right in 20 of 24."""
    found = score(read_run(uneven), colours(CLASSES[:2], lambda images: by_colour(images)[:, :2]), 2, 1)
    right, frequent = (found["rows"][row]["all"] for row in "LB")
    assert frequent["acc"]["value"] == pytest.approx(20 / 24) and frequent["acc_balanced"]["value"] == 1 / 2
    assert frequent["auc"]["value"] == 1 / 2 and right["auc"]["value"] == right["acc_balanced"]["value"] == 1
    guessing = found["truth"]["guessing"]
    assert (
        guessing["acc"]["value"] == pytest.approx(20 / 24)
        and guessing["acc"]["low"] < 20 / 24 < guessing["acc"]["high"]
    )
    assert guessing["acc_balanced"]["value"] == 1 / 2 and found["headline"] == "acc_balanced"
    text = format_tables(read_run(uneven), found)
    assert "Guessing in the study: 83.3 %, balanced 50.0 %" in text and "Balanced ACC goes first because" in text
    # 16 times the trials of each class alike is even: the paper's ACC is what counts
    last = dataclasses.replace(read_run(uneven), trials=read_run(uneven).trials[-8:])  # 4 of each
    found = score(last, colours(CLASSES[:2], lambda images: by_colour(images)[:, :2]), 2, 1)
    assert found["headline"] == "acc" and "balanced" not in format_tables(last, found).partition("\n\n")[0]


def test_auc_is_of_two_classes(run):
    found = score(read_run(run), colours(), 4, 1)
    assert "auc" not in found["rows"]["L"]["all"] and "auc" not in found["unavailable"]
    found = score(read_run(run), colours(), 4, 1, metrics=["auc"])
    assert found["unavailable"]["auc"] == "not available: AUC is of two classes, and these trials are of 4"


def test_one_picture_has_no_controls(tmp_path):
    run = read_run(make_run(tmp_path / "run", classes=1, pictures=1, subjects=2))
    found = score(run, colours(), 4, 1)
    assert not {"shuffled", "ssim_other", "ssim_gain"} & set(found["rows"]["L"]["all"])
    text = format_tables(run, found)
    assert "not available, as all trials show one and the same picture" in text and "nan" not in text
    json.dumps(found, allow_nan=False)


def test_batch_size_changes_nothing(run):
    one, many = (score(read_run(run), colours(), 4, 1, batch_size=b)["rows"] for b in (3, 64))
    for row in one:
        for group in one[row]:
            for metric, e in one[row][group].items():
                assert e["value"] == pytest.approx(many[row][group][metric]["value"], rel=1e-5, abs=1e-6)


def test_trials_whose_picture_is_not_known_are_their_own_units(fresh):
    assert len(set(read_run(fresh).units())) < 24
    lines = [json.loads(line) for line in (fresh / "trials.jsonl").read_text().splitlines()]
    unknown = [json.dumps({**line, "picture": "category only: not recorded"}) for line in lines]
    (fresh / "trials.jsonl").write_text("\n".join(unknown) + "\n")
    assert len(set(read_run(fresh).units())) == 24


def test_files_and_table(fresh, monkeypatch, capsys, fp32_is_fp32):
    monkeypatch.setattr(scoring, "load_classifier", lambda *_: colours())
    config = EvaluateConfig(run=str(fresh), classifier="colours", device="cpu", metrics=["two_way", "effnet"])
    evaluate(config)
    title, head, *rows = capsys.readouterr().out.splitlines()
    rows = [row for row in rows if "not at hand" not in row]  # effnet's weights may be here or not
    stored = json.loads((fresh / "scores.json").read_text())
    assert title == "simulated EEG: 24 trials of 12 pictures, 4-way, a guess has 25.0 %"
    assert head.split("  ")[0] == "row" and [row.split()[0] for row in rows] == list(stored["rows"])
    assert max(map(len, (title, head, *rows))) <= 80
    best = stored["rows"]["L+I"]["all"]
    assert re.split("  +", rows[-1])[1] == f"{100 * best['acc']['value']:.1f} [73.5, 100.0]"
    assert re.split("  +", rows[-1])[3].startswith(f"{best['ssim_gain']['value']:.3f} [")
    evaluate(dataclasses.replace(config, verbose=True))
    printed = capsys.readouterr().out
    assert json.loads((fresh / "scores.json").read_text()) == stored
    assert stored["simulated"] and stored["config"]["classifier"] == "colours"
    lines = list(csv.DictReader(io.StringIO((fresh / "scores.csv").read_text())))
    assert list(lines[0]) == ["row", "group", "metric", "value", "low", "high", "n"]
    for line in lines:
        e = stored["rows"][line["row"]][line["group"]][line["metric"]]
        assert float(line["value"]) == e["value"] and line["low"] == ("" if e["low"] is None else str(e["low"]))
    assert (
        len({(line["row"], line["group"], line["metric"]) for line in lines})
        == len(lines)
        == sum(len(metrics) for groups in stored["rows"].values() for metrics in groups.values())
    )
    e = stored["rows"]["L+I"]["all"]
    assert e["ssim_gain"]["value"] == pytest.approx(e["ssim"]["value"] - e["ssim_other"]["value"])
    assert "Guessing in the study: 25.0 %" in printed
    assert "ACC: 4-way top-1 accuracy: " in printed and "N: 50 asked, but there are 4 classes" in printed
    assert "picture captions, here from drawn scene (simulator)" in printed
    for title in (
        "Table 1. NeuroImagen, baselines",
        "Table 2. Row L+I by subject, on simulated EEG",
        "Table 3. Ablation",
    ):
        assert title in printed


def test_recorded_eeg_is_not_called_simulated(tmp_path):
    run = read_run(make_run(tmp_path / "run", classes=2, subjects=1, simulated=False))
    text = format_tables(run, score(run, colours(), 2, 1))
    assert "recorded EEG" in text and "imulated EEG" not in text and "Table 2." not in text
    assert "Table 2 compares subjects, and this run has one." in text


def test_unfinished_or_damaged_runs(fresh):
    before = sorted(path.name for path in fresh.iterdir())
    missing = [fresh / "images/L" / name for name in sorted(p.name for p in (fresh / "images/L").iterdir())[:3]]
    for path in missing:
        path.unlink()
    with pytest.raises(ValueError, match=rf"3 of 264 pictures are missing .*{missing[0].name}.*reconstruct.py config="):
        read_run(fresh)
    (fresh / "DONE").unlink()
    with pytest.raises(ValueError, match="is not finished .*continue it with: python trainers/reconstruct.py"):
        evaluate(EvaluateConfig(run=str(fresh), device="cpu"))
    (fresh / "DONE").touch()
    (fresh / "rows.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        read_run(fresh)
    (fresh / "rows.json").unlink()
    with pytest.raises(ValueError, match="holds no rows.json"):
        read_run(fresh)
    with pytest.raises(ValueError, match="is not a run; run trainers/reconstruct.py"):
        read_run(fresh / "images")
    (fresh / "rows.json").touch()
    assert sorted(path.name for path in fresh.iterdir()) == before


@pytest.mark.parametrize("name", ["truth", "other", "maps"])
def test_rows_have_names_of_their_own(run, fresh, name, capsys):
    about = json.loads((fresh / "rows.json").read_text())
    about["rows"][1]["name"] = name
    (fresh / "rows.json").write_text(json.dumps(about))
    (fresh / "images" / "L").rename(fresh / "images" / name)
    code = run_command(evaluate, EvaluateConfig, [f"run={fresh}", "device=cpu"], "evaluate", "")
    assert code == 2 and f"has a row {name!r}, but evaluate uses this name itself: rename it" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"has a row {name!r}"):
        dataclasses.replace(read_run(run), rows=["L", name])
    with pytest.raises(ValueError, match="has a row 'L', but two rows have this name"):
        dataclasses.replace(read_run(run), rows=["L", "I", "L"])


def test_classes_of_one_name_stay_two_groups(run):
    whole = read_run(run)
    trials = [trial | {"class_name": "crane"} if trial["label"] > 1 else trial for trial in whole.trials]
    groups = dataclasses.replace(whole, trials=trials).groups()
    assert [group for group in groups if "crane" in group] == ["class crane (2)", "class crane (3)"]
    assert sum(mask.sum() for group, mask in groups.items() if group.startswith("class ")) == 24


def test_mixed_sizes_and_broken_pictures(fresh):
    key = read_run(fresh).trials[0]["key"]
    path = fresh / "images/L" / f"{key}_1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{key}_1.png cannot be read"):
        score(read_run(fresh), colours(), 4, 1)
    for trial in read_run(fresh).trials:
        for sample in range(2):
            Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(fresh / "images/L" / f"{trial['key']}_{sample}.png")
    with pytest.raises(ValueError, match="is 12 x 12 px, its truth 16 x 16"):
        score(read_run(fresh), colours(), 4, 1)


def test_wrong_settings_exit_with_2_and_leave_scores_alone(fresh, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "load_classifier", lambda *_: colours())
    (fresh / "scores.json").write_text("old")
    for wrong, said in (("top_k=4", "top_k=4 of 4 classes"), ("batch_size=0", "at least 1"), ("device=cupa", "cupa")):
        code = run_command(evaluate, EvaluateConfig, [f"run={fresh}", "device=cpu", wrong], "evaluate", "")
        assert code == 2 and said in capsys.readouterr().err
    assert (fresh / "scores.json").read_text() == "old"
