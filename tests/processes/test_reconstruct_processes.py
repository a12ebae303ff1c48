"""trainers/reconstruct.py on two real processes: stopped by SIGTERM, continued by one, equal to one process byte by byte."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from tiny_models import tiny_pipeline, tiny_shards, tiny_stage_runs

TWO = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
ROWS = ("I", "L", "B", "B+I", "L+I")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Shards, a pipeline and finished stage runs, as `key=value` arguments; and a reference run by one process."""
    root = tmp_path_factory.mktemp("study")
    pipeline = tiny_pipeline(root / "pipeline")
    fields = {"shards": tiny_shards(root / "shards"), "pipeline": pipeline}
    fields |= tiny_stage_runs(root / "runs", pipeline) | {"num_inference_steps": 4, "samples": 2, "chunk": 2}
    arguments = [f"{name}={value}" for name, value in fields.items()]
    finish(start(arguments, root / "one", 1))
    return root, arguments


def start(arguments: list[str], run_dir: Path, processes: int) -> subprocess.Popen:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable]
    if processes == 2:
        launcher += ["-m", "accelerate.commands.accelerate_cli", "launch", *TWO.split()]
    command = [*launcher, str(ROOT / "trainers" / "reconstruct.py"), *arguments, f"run_dir={run_dir}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == code, printed
    return printed


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*.png")}


def test_the_run_directory_is_what_evaluate_reads(study):
    root, _ = study
    run = root / "one"
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 6
    assert {"key", "subject", "label", "wnid", "class_name", "image", "index"} <= set(trials[0])
    about = json.loads((run / "rows.json").read_text())
    assert [row["name"] for row in about["rows"]] == list(ROWS)
    assert about["rows"][3] == {"name": "B+I", "semantics": "blip", "map": True}
    assert (about["samples"], about["simulated"], about["settings"]["attention"]) == (2, False, "sdpa")
    assert about["captions_source"] == "captions.jsonl"
    names = {f"{folder}/{trial['key']}.png" for trial in trials for folder in ("truth", "maps")}
    names |= {f"images/{row}/{trial['key']}_{s}.png" for trial in trials for row in ROWS for s in range(2)}
    assert set(content(run)) == names and (run / "DONE").exists()
    for name, size in (("truth", 64), ("images/L+I", 64), ("maps", 16)):
        with Image.open(next((run / name).iterdir())) as picture:
            assert picture.size == (size, size) and picture.mode == "RGB"


def test_two_processes_stopped_and_continued_by_one_equal_one(study):
    root, arguments = study
    run = root / "two"
    process = start(arguments, run, 2)
    deadline = time.monotonic() + 150
    while not list((run / "images" / "L").glob("*.png")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=100)[0]
    assert process.returncode != 0, printed
    assert (run / "PREEMPTED").exists() and not (run / "DONE").exists(), printed
    drawn = {path: path.stat().st_mtime_ns for path in (run / "images").rglob("*.png")}
    assert 0 < len(drawn) < 60
    finish(start(arguments, run, 1))
    assert (run / "DONE").exists() and not (run / "PREEMPTED").exists()
    assert content(run) == content(root / "one")
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items()), "finished pictures were drawn again"


def test_a_finished_run_and_mistakes(study, tmp_path):
    root, arguments = study
    before = content(root / "one")
    assert "already done" in finish(start(arguments, root / "one", 1))
    assert "seed: 0 there, 1 here" in finish(start([*arguments, "seed=1"], root / "one", 1), code=2)
    (root / "one" / "images" / "I").joinpath("stray.txt").write_text("kept")
    assert content(root / "one") == before
    printed = finish(start([*arguments, "strength=0.1"], tmp_path / "new", 1), code=2)
    assert "leaves no denoising step" in printed and "Traceback" not in printed
    assert not (tmp_path / "new").exists()
