"""`neuroimagen evaluate` on several real processes writes what one process writes, to the last digit."""

import json
import shutil
from pathlib import Path

import pytest
from reconstruct_run import ROWS, make_run
from small_evaluate import KID_ROWS

from neuroimagen.scores import similarity
from neuroimagen.scores.evaluate import EvaluateConfig, evaluate

EVALUATE = str(Path(__file__).with_name("small_evaluate.py"))
METRICS = ["two_way", "retrieval_top5", "fid_classifier", "kid_classifier", "pixcorr"]
FILES = ("scores.json", "scores.csv", "picture_scores.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("efficientnet_lite_pytorch")
    return make_run(tmp_path_factory.mktemp("run") / "run", classes=3, rows={row: ROWS[row] for row in ("I", "L")})


def test_three_processes_equal_one(run, start, tmp_path, one_thread, monkeypatch):
    one, three = (shutil.copytree(run, tmp_path / name) for name in ("one", "three"))
    command = [EVALUATE, str(three), "classifier=embedded", "device=cpu", "batch_size=5"]
    processes = start([*command, f"metrics=[{','.join(METRICS)}]"], 3)
    monkeypatch.setattr(similarity, "KID_ROWS", KID_ROWS)
    evaluate(EvaluateConfig(run=str(one), classifier="embedded", device="cpu", batch_size=5, metrics=METRICS))
    assert processes.wait() == [0, 0, 0], processes.log.read_text()
    assert processes.log.read_text().count("if shuffled") == 1
    for name in FILES:
        wanted, found = ((path / name).read_text() for path in (one, three))
        assert found == wanted.replace(str(one), str(three)), name
    scores = json.loads((three / "scores.json").read_text())
    assert {"acc", *METRICS} <= set(scores["rows"]["L"]["all"])


def test_a_broken_picture_stops_both(run, start, tmp_path):
    broken = shutil.copytree(run, tmp_path / "broken")
    path = next((broken / "images" / "L").iterdir())
    path.write_bytes(path.read_bytes()[:200])  # its header is whole
    command = [EVALUATE, str(broken), "classifier=embedded", "device=cpu", "metrics=[paper]"]
    processes = start([*command, "batch_size=5"], 2)
    assert processes.wait() == [2, 2], processes.log.read_text()
    assert processes.log.read_text().count(f"{path.name} cannot be read") == 2
    assert not (broken / "scores.json").exists()
