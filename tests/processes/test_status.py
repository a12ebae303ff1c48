"""`neuroimagen status` beside real processes: running, stopped, killed, failed, done; SLURM by a squeue of our own."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from neuroimagen.files import busy

REPO = Path(__file__).parents[2]
ADVANCE = "neuroimagen.run.run:Run.advance"


def trainer(runs: Path, *fields: str, stage: str = "pixel_features") -> list[str]:
    rest = ["max_steps=12", "log_every=1", "checkpoint_every=5", "global_batch_size=8"]
    return ["tests/processes/small_trainer.py", f"run_dir={runs / stage}", *rest, *fields]


def status(runs: Path, squeue: str | None = None, code: int = 0) -> dict[str, str]:
    """Stage -> what is said of it, on one line; "": the last line. squeue: what SLURM answers; None: there is none."""
    folder = runs.parent / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if squeue is not None:
        (folder / "squeue").write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\nprintf "{squeue}"\n')
        (folder / "squeue").chmod(0o755)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.name != "stats.jsonl"}
    command = [sys.executable, "-m", "neuroimagen.cli", "status", str(runs)]
    environment = {**os.environ, "PATH": str(folder), "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.name != "stats.jsonl"}
    head, *lines, last = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and head.startswith(f"{runs}: ") and last.startswith("next: ")
    said, name = {"": last}, ""
    for line in lines:
        if line[0] == " ":
            said[name] += " " + line.strip()
        else:
            name, _, text = line.partition(" ")
            said[name] = " ".join(text.split())
    return said


def test_a_run_is_told_while_it_runs_after_it_was_killed_and_when_it_is_done(start, tmp_path):
    runs = tmp_path / "runs"
    processes = start(trainer(runs), 2, hold=f"{ADVANCE}:6")
    processes.wait_for_step(runs / "pixel_features", 6)
    said = status(runs)
    assert said["pixel_features"].startswith("running step 6 of 12, loss ")
    assert " s/step, " in said["pixel_features"] and said["pixel_features"].endswith(" left")
    assert said["pixel_saliency"] == said["report"] == "to do" and said[""].startswith("next: wait")

    processes.signal(signal.SIGKILL)
    processes.wait()
    said = status(runs)
    assert said["pixel_features"].startswith("stopped step 6 of 12, ") and said["pixel_features"].endswith(" ago")
    assert "bash launch/paper.sh" in said[""]

    assert start(trainer(runs), 2).wait() == [0, 0]
    said = status(runs)
    assert said["pixel_features"].startswith("done step 12, loss ") and said["pixel_features"].endswith(" ago")


def test_why_a_run_failed_is_told_until_the_same_command_starts_again(start, tmp_path):
    runs = tmp_path / "runs"
    command = trainer(runs, "nan_at=[8]", stage="neurovision")
    assert start(command, 2).wait_like_a_launcher() == [2, 2]
    said = status(runs, code=1)
    assert said["neurovision"].startswith("failed step 8 of 12, ") and "is not finite" in said["neurovision"]
    assert "mend what failed" in said[""]
    (runs / "neurovision" / "stats.jsonl").unlink()  # or the steps of before are taken for those of now
    again = start(command, 2, hold=f"{ADVANCE}:2")
    again.wait_for_step(runs / "neurovision", 7)
    assert status(runs)["neurovision"].startswith("running step 7 of 12")
    again.signal(signal.SIGTERM)
    assert again.wait() == [143, 143]
    assert status(runs)["neurovision"].startswith("stopped step 8 of 12, ")


def test_slurm_is_asked_for_what_waits_and_for_what_runs_on_another_machine(start, tmp_path):
    runs = tmp_path / "runs"
    run = runs / "pixel_features"
    assert start(trainer(runs, "max_steps=3"), 1).wait() == [0]
    (run / "DONE").unlink()
    (run / "lock").write_text("process 7 on node7")
    said = status(runs)["pixel_features"]
    assert said.startswith("? step 3 of 3, loss ") and said.endswith("process 7 on node7 cannot be asked here")

    queue = f"41|PENDING|Dependency|report:{runs}\n40|RUNNING|None|pixel_features:{runs}\n9|RUNNING|None|captions:/x\n"
    said = status(runs, queue)
    assert f"pixel_features:{runs}," in (tmp_path / "bin" / "asked").read_text()
    assert said["pixel_features"].startswith("running step 3 of 3, ") and said["pixel_features"].endswith("job 40")
    assert said["report"] == "queued as job 41 (Dependency)" and said["captions"] == "to do"

    kept = run / "environment.json"
    kept.write_text(kept.read_text().replace('"slurm_job_id": null', '"slurm_job_id": "40"'))
    assert status(runs, "40|RUNNING|None|neuroimagen\n")["pixel_features"].startswith("running ")  # not by paper.sh
    assert status(runs, "")["pixel_features"].startswith("stopped ")


def test_a_job_that_came_to_no_run_is_told_by_what_it_printed(tmp_path):
    runs = tmp_path / "runs"
    (runs / "jobs").mkdir(parents=True)
    (runs / "shards").mkdir()
    (runs / "shards" / "manifest.json").write_text('{"splits": {}}')
    output = runs / "jobs" / "pixel_features-7.out"
    output.write_text("== job 7, start 1, on n1\nerror: of before\n== job 7, start 2, on n1\nnote: none of the kind\n")
    assert status(runs)["pixel_features"] == "to do"
    with open(output, "a", encoding="utf-8") as file:
        file.write("error: Key 'marginn' not in 'Config'.\nsrun: error: n1: task 0: Exited with exit code 2\n")
    assert status(runs, code=1)["pixel_features"] == "failed error: Key 'marginn' not in 'Config'."
    waiting = f"8|PENDING|Priority|pixel_features:{runs}\n"
    assert status(runs, waiting)["pixel_features"] == "queued as job 8 (Priority)"


def test_what_scores_and_what_writes_the_page_is_seen_while_it_runs(tmp_path):
    runs = tmp_path / "runs"
    (runs / "reconstruct").mkdir(parents=True)
    (runs / "reconstruct" / "DONE").touch()
    (runs / "audit").mkdir()
    for name, folder in (("evaluate", "reconstruct"), ("report", "reconstruct"), ("audit", "audit")):
        with busy(runs / folder / f"{name}.lock"):
            assert status(runs)[name] == "running"
        assert status(runs)[name] == "to do" and not list(runs.glob("*/*.lock"))


def test_what_is_no_study_is_refused(tmp_path):
    (tmp_path / "other" / "folder").mkdir(parents=True)
    for place in ("nothing", "other"):
        command = [sys.executable, "-m", "neuroimagen.cli", "status", str(tmp_path / place)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and "launch/paper.sh fills" in done.stderr
