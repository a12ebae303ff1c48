"""The launcher a user types: `accelerate launch` with two real processes, one of which dies, stopped as by SLURM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

REPO = Path(__file__).parents[2]


def test_a_dead_rank_is_started_again_and_sigterm_stops_what_the_same_command_continues(start, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/one_node.yaml"]
    restart = ["--rdzv_backend", "c10d", "--max_restarts", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "HOLD": "neuroimagen.run.run:Run.advance:6"}
    run_dir, log = tmp_path / "run", tmp_path / "launch.txt"
    fields = ["max_steps=20", "log_every=1", "checkpoint_every=5", "global_batch_size=8"]

    def trainer(run_dir: Path) -> list[str]:
        return ["tests/processes/small_trainer.py", f"run_dir={run_dir}", *fields]

    for _ in range(3):  # accelerate looks for a free port, which another process may take before torchrun does
        with open(log, "w", encoding="utf-8") as out:
            command = [*launch, *restart, *trainer(run_dir)]
            process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=out, stderr=out)
        while process.poll() is None and not (run_dir / "stats.jsonl").exists():
            time.sleep(0.1)
        if process.poll() is None or "RendezvousConnectionError" not in log.read_text():
            break

    def wait_for_step(step: int) -> None:
        deadline, stats = time.monotonic() + 900, run_dir / "stats.jsonl"
        while not (stats.exists() and f'"step": {step},' in stats.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)

    try:
        wait_for_step(6)
        workers = psutil.Process(process.pid).children(recursive=True)
        (victim,) = [p for p in workers if p.environ().get("RANK") == "1"]
        victim.kill()
        wait_for_step(11)  # the sixth after the checkpoint of step 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(900) != 0, log.read_text()[-3000:]  # a chain of jobs must not go on to the next stage
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
    assert "continuing at step 5" in log.read_text() and (run_dir / "PREEMPTED").exists(), log.read_text()[-3000:]
    assert '"world_size": 2' in (run_dir / "environment.json").read_text()
    for name in ("run", "whole"):
        assert start(trainer(tmp_path / name), 2).wait() == [0, 0]
    cut, whole = (load_file(tmp_path / name / "model/model.safetensors") for name in ("run", "whole"))
    assert cut.keys() == whole.keys() and all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_run_dir_of_another_config_is_refused_with_code_2(start, study, tmp_path):
    run_dir = tmp_path / "run"
    command = ["trainers/pixel_features.py", f"run_dir={run_dir}", f"shards={study.shards}", "encoder=conv"]
    command += ["max_steps=1", "global_batch_size=8"]
    assert start(command, 1).wait() == [0]
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    other = start([*command, "margin=2"], 1)
    assert other.wait() == [2]
    said = other.log.read_text()
    assert "margin: " in said and "another run_dir" in said and "Traceback" not in said
    assert before == {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
