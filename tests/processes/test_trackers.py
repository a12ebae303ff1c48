"""What a dashboard gets to see, read back from what the trackers wrote; no network, no account."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults import command


def records(folder: Path, kind: str) -> list[dict]:
    leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(leet, capture_output=True, text=True, check=True, timeout=60)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


def test_wandb_offline_stopped_and_continued_is_one_run(start, tmp_path):
    pytest.importorskip("wandb")
    run_dir = tmp_path / "run"
    options = {"trackers": "wandb", "project": "brains", "validate_every": 10, "seconds": 0.05}
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    processes = start(command(run_dir, **options), 2, **environment)
    processes.wait_for_step(run_dir, 12)
    processes.signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.log.read_text()
    processes = start(command(run_dir, **options), 2, **environment)
    assert processes.wait() == [0, 0], processes.log.read_text()

    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2  # one a start, of rank 0 alone; `wandb sync` makes one curve of them, as they have one id
    (first,), (second,) = (records(folder, "run") for folder in folders)
    assert first["run_id"] == second["run_id"] == (run_dir / "tracker_id").read_text()
    assert (first["project"], first["display_name"]) == ("brains", "run")
    steps, keys = [], set()
    for folder in folders:
        for line in records(folder, "history"):
            keys |= line["item"].keys()
            steps.append(line["step"]["num"])
    assert sorted(steps) == list(range(1, 41))  # none twice, none lost
    assert {"loss", "grad_norm", "samples_per_second", "step_seconds", "data_seconds", "memory_gb", "val/loss"} <= keys
    assert {"squares", "guesses"} <= {key.split(".")[0] for key in keys}
    config = {}
    for folder in folders:
        for record in records(folder, "config"):
            config |= record.get("update", {})
    assert config["global_batch_size"] == 8 and config["environment/world_size"] == 2
    assert "torch" in config["environment/versions"]


def test_tensorboard(start, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_dir = tmp_path / "run"
    processes = start(command(run_dir, trackers="tensorboard", validate_every=20), 1)
    assert processes.wait() == [0], processes.log.read_text()
    found = events.EventAccumulator(str(next(run_dir.rglob("events.out*")).parent))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 41))
    assert [event.step for event in found.Images("squares")] == [20, 40]
