"""`neuroimagen evaluate` on two real processes writes what one process writes, to the last digit."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from reconstruct_run import ROWS, make_run

from neuroimagen.evaluation.scores import EvaluateConfig, evaluate

METRICS = ["two_way", "retrieval_top5", "fid_classifier", "pixcorr"]
FILES = ("scores.json", "scores.csv", "picture_scores.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("efficientnet_lite_pytorch")
    return make_run(tmp_path_factory.mktemp("run") / "run", classes=3, rows={row: ROWS[row] for row in ("I", "L")})


def test_two_processes_equal_one(run, start, tmp_path, one_thread):
    one, two = (shutil.copytree(run, tmp_path / name) for name in ("one", "two"))
    command = ["-m", "neuroimagen.cli", "evaluate", str(two), "classifier=embedded", "device=cpu", "batch_size=5"]
    processes = start([*command, f"metrics=[{','.join(METRICS)}]"], 2)
    evaluate(EvaluateConfig(run=str(one), classifier="embedded", device="cpu", batch_size=5, metrics=METRICS))
    assert processes.wait() == [0, 0], processes.log.read_text()
    assert processes.log.read_text().count("Table 3. Ablation") == 1
    for name in FILES:
        wanted, found = ((path / name).read_text() for path in (one, two))
        assert found == wanted.replace(str(one), str(two)), name
    scores = json.loads((two / "scores.json").read_text())
    assert {"acc", "two_way", "retrieval_top5", "fid_classifier", "pixcorr"} <= set(scores["rows"]["L"]["all"])


def test_a_broken_picture_stops_both(run, start, tmp_path):
    broken = shutil.copytree(run, tmp_path / "broken")
    path = next((broken / "images" / "L").iterdir())
    path.write_bytes(path.read_bytes()[:200])  # its header is whole
    command = ["-m", "neuroimagen.cli", "evaluate", str(broken), "classifier=embedded", "device=cpu", "metrics=[paper]"]
    processes = start([*command, "batch_size=5"], 2)
    assert processes.wait() == [2, 2], processes.log.read_text()
    assert processes.log.read_text().count(f"{path.name} cannot be read") == 2
    assert not (broken / "scores.json").exists()
