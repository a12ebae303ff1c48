"""What a dashboard gets to see, read back from what the trackers wrote; no network, no account."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_faults import command


@functools.cache
def inspected(folder: Path) -> list[dict]:
    leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(leet, capture_output=True, text=True, check=True, timeout=900)
    return [json.loads(line) for line in done.stdout.splitlines()]


def records(folder: Path, kind: str) -> list[dict]:
    return [record[kind] for record in inspected(folder) if record["type"] == kind]


def test_wandb_offline_stopped_and_continued_is_one_run(start, tmp_path):
    pytest.importorskip("wandb")
    run_dir = tmp_path / "run"
    options = {"trackers": "wandb", "project": "brains", "validate_every": 10}
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    processes = start(command(run_dir, **options), 2, hold="neuroimagen.run.run:Run.advance:12", **environment)
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
    assert (first["run_group"], first["job_type"]) == (tmp_path.name, "small_trainer")
    assert first["tags"] == second["tags"] == ["seed 0"]
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


def test_the_sweep_file_starts_a_run_of_its_sweep(study, monkeypatch, tmp_path):
    """wandb's agent fills in the file's command, starts the trainer, and the run has the id that the sweep gave it."""
    agents = pytest.importorskip("wandb.wandb_agent")
    repo = Path(__file__).parents[2]
    sweep = yaml.safe_load((repo / "launch/sweep.yaml").read_text())
    here = {"python": sys.executable, "shards=shards": f"shards={study.shards}"}
    words = [here.get(word, word).replace("runs/sweep", str(tmp_path / "runs")) for word in sweep["command"]]
    more = ["encoder=conv", "n_features=16", "max_steps=2", "global_batch_size=8"]
    variables = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "s1", "SWEEP_RUN": "7_1"}
    variables |= {"WANDB_SILENT": "true", "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}
    for name, value in {**variables, "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(repo)
    agent = agents.Agent(api=None, queue=None, sweep_id="s1")
    agent._sweep_command = [*words[:-1], *more, words[-1]]
    values = {name: {"value": value} for name, value in {"margin": 0.25, "mining": "hard"}.items()}
    assert set(values) == set(sweep["parameters"])
    answer = agent._process_command({"type": "run", "run_id": "abc123", "program": "", "args": values})
    assert "exception" not in answer, answer
    agent._run_processes["abc123"].wait(timeout=900)
    run_dir = tmp_path / "runs/7_1"
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (config["margin"], config["mining"]) == (0.25, "hard") and (run_dir / "DONE").exists()
    logged = json.loads((run_dir / "stats.jsonl").read_text().splitlines()[-1])
    assert sweep["metric"]["name"] in logged
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    (run,) = records(folder, "run")
    assert (run["run_id"], run["sweep_id"]) == ("abc123", "s1")
    assert (run["run_group"], run["job_type"]) == ("runs", "pixel_features")
    assert run["tags"] == ["seed 0", "conv", "perceivelab"]


def test_tensorboard(start, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_dir = tmp_path / "run"
    processes = start(command(run_dir, trackers="tensorboard", validate_every=20), 1)
    assert processes.wait() == [0], processes.log.read_text()
    found = events.EventAccumulator(str(next(run_dir.rglob("events.out*")).parent))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 41))
    assert [event.step for event in found.Images("squares")] == [20, 40]
