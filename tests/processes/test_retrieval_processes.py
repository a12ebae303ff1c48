"""`neuroimagen evaluate` of a contrastive run: several real processes write what one writes, to the last digit."""

import json
import shutil
from pathlib import Path

from contrastive_run import make_run, make_shards_of

from neuroimagen.retrieval import queries
from neuroimagen.retrieval.evaluate import RetrievalConfig, evaluate

EVALUATE = str(Path(__file__).with_name("small_evaluate.py"))  # its second process sees the run's end late


def test_three_processes_equal_one(start, tmp_path, one_thread):
    shards = make_shards_of(tmp_path, repetitions=((12, 16), (16, 12)))
    run = make_run(tmp_path, shards, (("picture", 24, "image"), ("layer", 8, "image")))
    three = shutil.copytree(run, tmp_path / "three")
    processes = start([EVALUATE, f"run={three}", "device=cpu", "transductive=true"], 3)
    one = evaluate(RetrievalConfig(str(run), device="cpu", transductive=True))
    assert one["trials"] > queries.CHUNK  # so there is something to share
    assert processes.wait() == [0, 0, 0], processes.log.read_text()
    assert processes.log.read_text().count("asked by") == 1
    found = json.loads((three / "retrieval.json").read_text())
    assert found | {"config": 0} == one | {"config": 0}
    assert (three / "retrieval.html").read_text().replace(str(three), str(run)) == (run / "retrieval.html").read_text()


def test_features_of_other_pictures_stop_all(start, tmp_path):
    run = make_run(tmp_path, make_shards_of(tmp_path))
    (tmp_path / "picture.safetensors").write_bytes(b"")
    processes = start([EVALUATE, f"run={run}", "device=cpu"], 2)
    assert processes.wait() == [2, 2], processes.log.read_text()
    assert processes.log.read_text().count("picture.safetensors is no features file, or is damaged") == 2
    assert not (run / "retrieval.json").exists()
