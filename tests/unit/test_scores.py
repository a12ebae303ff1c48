import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from reconstruct_run import ROWS, make_run, plain

from neuroimagen.config import run_command
from neuroimagen.data.classes import CLASSES
from neuroimagen.evaluation import scores as scoring
from neuroimagen.evaluation.classifiers import Classifier
from neuroimagen.evaluation.scores import EvaluateConfig, evaluate, format_tables, read_run, score


def by_colour(images):
    """The fake run's classes by the presence of red and green: label = red + 2 green, far from any doubt."""
    red, green = (images[:, c].mean((1, 2)) > 0.5 for c in (0, 1))
    return 50 * torch.nn.functional.one_hot(red.long() + 2 * green.long(), 4).float()


def colours(classes=CLASSES[:4], logits=by_colour):
    names, wnids = [c.name for c in classes], [c.wnid for c in classes]
    return Classifier("colours", "the colour test", names, wnids, torch.device("cpu"), logits)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", classes=4, pictures=3)


@pytest.fixture
def fresh(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_right_and_wrong_rows(run):
    found = score(read_run(run), colours(), 50, 1)
    assert (found["n_way"], found["chance"], found["n_way_asked"]) == (4, 0.25, 50)
    assert (found["trials"], found["pictures"], found["subjects"], found["samples"]) == (24, 12, 2, 2)
    assert list(found["rows"]) == ["I", "L", "B", "B+I", "L+I"]
    right = found["rows"]["L+I"]["all"]
    assert right["acc"] == {"value": 1, "low": 1, "high": 1, "n": 12}
    assert right["acc_label"]["value"] == 1 and right["is"]["value"] == pytest.approx(4, rel=1e-6)
    # Row I is dark noise, always class 0 here: right for that class alone.
    assert found["rows"]["I"]["all"]["acc"]["value"] == 0.25
    assert found["rows"]["I"]["all"]["is"]["value"] == pytest.approx(1)
    assert found["rows"]["I"][f"class {CLASSES[0].name}"]["acc"]["value"] == 1
    assert found["rows"]["I"][f"class {CLASSES[3].name}"]["acc"]["value"] == 0
    assert set(found["rows"]["I"]) == {"all", "subject 1", "subject 2", *(f"class {c.name}" for c in CLASSES[:4])}
    assert "is" not in found["rows"]["I"][f"class {CLASSES[0].name}"]
    assert found["truth"] == {"is": pytest.approx(4, rel=1e-6), "named_rightly": 1}
    assert right["ssim"]["value"] > found["rows"]["I"]["all"]["ssim"]["value"]


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


def test_batch_size_changes_nothing(run):
    one, many = (score(read_run(run), colours(), 4, 1, batch_size=b)["rows"] for b in (1, 64))
    for row in one:
        for group in one[row]:
            for metric, e in one[row][group].items():
                assert e["value"] == pytest.approx(many[row][group][metric]["value"], rel=1e-5)


def test_trials_whose_picture_is_not_known_are_their_own_units(fresh):
    assert len(set(read_run(fresh).units())) < 24
    lines = [json.loads(line) for line in (fresh / "trials.jsonl").read_text().splitlines()]
    unknown = [json.dumps({**line, "picture": "category only: not recorded"}) for line in lines]
    (fresh / "trials.jsonl").write_text("\n".join(unknown) + "\n")
    assert len(set(read_run(fresh).units())) == 24


def test_files_and_table(fresh, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "load_classifier", lambda name, device: colours())
    evaluate(EvaluateConfig(run=str(fresh), classifier="colours", device="cpu"))
    printed = capsys.readouterr().out
    stored = json.loads((fresh / "scores.json").read_text())
    assert stored["simulated"] and stored["config"]["classifier"] == "colours"
    lines = list(csv.DictReader(io.StringIO((fresh / "scores.csv").read_text())))
    assert list(lines[0]) == ["row", "group", "metric", "value", "low", "high", "n"]
    for line in lines:
        e = stored["rows"][line["row"]][line["group"]][line["metric"]]
        assert float(line["value"]) == e["value"] and line["low"] == ("" if e["low"] is None else str(e["low"]))
    assert len(lines) == 5 * (3 * 5 + 4 * 4)  # rows x (3 groups of 5 metrics, 4 classes of 4)
    table = printed.splitlines()
    assert table[0] == "Table 3, ablation, on simulated EEG (24 trials, 12 pictures, 2 subjects, 2 samples each)"
    assert table[1].split()[:8] == ["Model", "B", "L", "I", "ACC", "(%)", "IS", "SSIM"]
    body = [line.split() for line in table[3:8]]
    assert [line[:5] for line in body] == [
        ["1", "I", "-", "-", "x"],
        ["2", "L", "-", "x", "-"],
        ["3", "B", "x", "-", "-"],
        ["4", "B+I", "x", "-", "x"],
        ["5", "L+I", "-", "x", "x"],
    ]
    assert body[4][5] == "100.0" and body[0][5] == "25.0"
    assert "4-way top-1 accuracy (50 asked, the classifier has 4), chance 25.0 %" in printed
    assert "captions from drawn scene (simulator)" in printed
    assert "Table 2, row L+I by subject, on simulated EEG" in printed


def test_recorded_eeg_is_not_called_simulated(tmp_path):
    run = make_run(tmp_path / "run", classes=2, subjects=1, simulated=False)
    text = format_tables(score(read_run(run), colours(), 2, 1))
    assert "recorded EEG" in text and "imulated EEG" not in text and "Table 2" not in text


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
    with pytest.raises(ValueError, match="not a run of trainers/reconstruct.py"):
        read_run(fresh / "images")
    (fresh / "rows.json").touch()
    assert sorted(path.name for path in fresh.iterdir()) == before


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
    monkeypatch.setattr(scoring, "load_classifier", lambda name, device: colours())
    (fresh / "scores.json").write_text("old")
    for wrong, said in (("top_k=4", "top_k=4 of 4 classes"), ("batch_size=0", "at least 1"), ("device=cupa", "cupa")):
        code = run_command(evaluate, EvaluateConfig, [f"run={fresh}", "device=cpu", wrong], "evaluate", "")
        assert code == 2 and said in capsys.readouterr().err
    assert (fresh / "scores.json").read_text() == "old"
