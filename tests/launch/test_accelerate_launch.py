"""The launcher a user types: `accelerate launch` with two real processes, stopped by SIGTERM as SLURM does it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[2]


def launch(arguments: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/one_node.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    with open(log, "a") as out:
        return subprocess.Popen([*command, *arguments], cwd=REPO, env=environment, stdout=out, stderr=out)


def test_two_processes_stop_at_sigterm_and_continue(study, tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    trainer = ["trainers/pixel_features.py", "config=configs/pixel_features.yaml", f"run_dir={run_dir}"]
    arguments = [
        *trainer,
        f"shards={study.shards}",
        "encoder=conv",
        "max_steps=30",
        "log_every=1",
        "global_batch_size=8",
    ]
    process = launch(arguments, log)
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "stats.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0, log.read_text()[-3000:]  # a chain of jobs must not go on to the next stage
    finally:
        process.kill()
    assert (run_dir / "PREEMPTED").exists(), log.read_text()[-3000:]
    assert '"world_size": 2' in (run_dir / "environment.json").read_text()
    assert launch(arguments, log).wait(180) == 0, log.read_text()[-3000:]
    assert (run_dir / "DONE").exists() and "continuing at step" in log.read_text()
    assert (run_dir / "model" / "model.safetensors").exists()


def test_a_run_dir_of_another_config_is_refused_with_code_2(study, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "trainers/pixel_features.py", f"run_dir={run_dir}", f"shards={study.shards}"]
    small = ["encoder=conv", "max_steps=1", "global_batch_size=8"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "yes", "PYTHONPATH": str(REPO)}
    first = subprocess.run([*command, *small], cwd=REPO, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    other = subprocess.run([*command, *small, "margin=2"], cwd=REPO, env=environment, capture_output=True, text=True)
    assert other.returncode == 2
    assert "margin: " in other.stderr and "another run_dir" in other.stderr and "Traceback" not in other.stderr
    assert before == {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
