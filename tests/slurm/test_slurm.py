"""The sbatch files on real daemons: two nodes, stops, arrays, and the whole paper as a chain of jobs."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

STEPS = 60  # long enough that a stop, which takes SLURM a second or two, comes before the end


def trainer(study, run_dir: Path, **fields) -> list[str]:
    small = {"encoder": "conv", "encoder_width": 8, "n_features": 16, "global_batch_size": 8, "log_every": 1}
    rest = {"checkpoint_every": 0, "validate_every": 0, "workers": 0, "max_steps": STEPS}
    fields = {**small, **rest, "shards": study.shards, "run_dir": run_dir, **fields}
    settings = [f"{key}={value}" for key, value in fields.items()]
    return ["trainers/pixel_features.py", "config=configs/pixel_features.yaml", *settings]


def wait_for_steps(cluster, job: str, run_dir: Path, timeout: float = 100) -> None:
    """Until the run has made a step; it must not be over then."""
    deadline = time.monotonic() + timeout
    while not (run_dir / "stats.jsonl").exists():
        assert cluster.show(job)["JobState"] in ("PENDING", "RUNNING") and time.monotonic() < deadline, cluster.log(job)
        time.sleep(0.1)


def wait_for_requeue(cluster, job: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while cluster.show(job)["Restarts"] != "1":
        assert cluster.show(job)["JobState"] in ("RUNNING", "COMPLETING", "PENDING"), cluster.log(job)
        assert time.monotonic() < deadline, cluster.log(job)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return ["--output", str(tmp_path_factory.mktemp("logs") / "%A-%a-%j.txt")]


@pytest.fixture(scope="module")
def whole(cluster, study, logs, tmp_path_factory) -> Path:
    """An uncut run on two nodes, one process each (the nodes pretend to have GPUs)."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    job = cluster.sbatch(*logs, "-N2", "--gpus-per-node=1", "launch/train.sbatch", *trainer(study, run_dir))
    shown = cluster.wait(job)
    assert shown["NumNodes"] == "2" and shown["Restarts"] == "0"
    return run_dir


def test_two_nodes_train_one_model(whole):
    assert (whole / "DONE").exists() and (whole / "model" / "model.safetensors").exists()
    assert json.loads((whole / "environment.json").read_text())["world_size"] == 2


def test_a_stopped_job_queues_itself_again_and_ends_with_the_same_bits(cluster, study, whole, logs, tmp_path):
    run_dir = tmp_path / "cut"
    job = cluster.sbatch(*logs, "-N2", "--gpus-per-node=1", "launch/train.sbatch", *trainer(study, run_dir))
    following = ["--kill-on-invalid-dep=yes", f"--dependency=afterok:{job}", "--wrap", f"test -e {run_dir}/DONE"]
    following_job = cluster.sbatch(*logs, *following)
    wait_for_steps(cluster, job, run_dir)
    cluster("scancel", "--signal=TERM", "--batch", job)  # what --signal=B:TERM@120 makes SLURM do before the time limit
    wait_for_requeue(cluster, job)
    assert (run_dir / "PREEMPTED").exists() and not (run_dir / "DONE").exists(), cluster.log(job)
    assert cluster.show(following_job)["JobState"] == "PENDING"
    cluster.wait(job)
    assert "continuing at step" in cluster.log(job) and (run_dir / "DONE").exists()
    a, b = (load_file(run / "model" / "model.safetensors") for run in (whole, run_dir))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    cluster.wait(following_job)


def test_scancel_ends_a_job_for_good(cluster, study, logs, tmp_path):
    run_dir = tmp_path / "runs" / "pixel_features"
    job = cluster.sbatch(*logs, "launch/train.sbatch", *trainer(study, run_dir, max_steps=100_000), NPROC_PER_NODE="2")
    wait_for_steps(cluster, job, run_dir)
    (run_dir / "lock").unlink()
    (run_dir / "lock").write_text("process 7 on elsewhere")  # as seen from a machine where its lock does not show
    assert told(cluster, run_dir.parent)["pixel_features"].endswith(f"job {job}")
    cluster("scancel", job)
    cluster.wait(job, "CANCELLED")
    deadline = time.monotonic() + 60
    while cluster("squeue", "-h", "-j", job, "-t", "completing", check=False).strip() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    shown = cluster.show(job)
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0"), cluster.log(job)
    assert (run_dir / "PREEMPTED").exists(), cluster.log(job)  # KillWait was enough to save; the same command continues
    assert json.loads((run_dir / "environment.json").read_text())["world_size"] == 2


def test_an_array_runs_the_rows_of_a_file(cluster, study, logs, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text("# margins\nnarrow  margin=0.25 mining=hard  # a comment\n\nmargin=2\n")
    command = [str(rows), *trainer(study, tmp_path / "runs", max_steps=150)]
    array = cluster.sbatch(*logs, "--array=1-2", "launch/array.sbatch", *command)
    names = {"1": "narrow", "2": "row-2"}
    for name in names.values():
        wait_for_steps(cluster, f"{array}_1", tmp_path / "runs" / name)
    # One task has the number of the whole array; stopping it must queue that one again, not all.
    task = next(task for task in names if cluster.show(f"{array}_{task}")["JobId"] == array)
    cluster("scancel", "--signal=TERM", "--batch", f"{array}_{task}")
    for each in names:
        cluster.wait(f"{array}_{each}")
    restarts = {each: cluster.show(f"{array}_{each}")["Restarts"] for each in names}
    assert restarts == {each: "1" if each == task else "0" for each in names}
    found = {name: yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text()) for name in names.values()}
    assert (found["narrow"]["margin"], found["narrow"]["mining"]) == (0.25, "hard")
    assert (found["row-2"]["margin"], found["row-2"]["mining"]) == (2.0, "semi-hard")
    assert all((tmp_path / "runs" / name / "DONE").exists() for name in names.values())
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["narrow", "row-2"]
    beyond = cluster.sbatch(*logs, "--array=3", "launch/array.sbatch", *command)
    assert cluster.wait(beyond, "FAILED")["ExitCode"] == "2:0" and "has no row 3" in cluster.log(beyond)


def test_a_failure_keeps_its_code_though_the_run_had_been_stopped_before(cluster, logs, tmp_path):
    (tmp_path / "PREEMPTED").touch()  # as an earlier start left it; a trainer that goes on removes it
    command = ["bash", "-c", 'rm "$0/PREEMPTED"; exit 3', str(tmp_path), f"run_dir={tmp_path}"]
    job = cluster.sbatch(*logs, "launch/train.sbatch", *command)
    shown = cluster.wait(job, "FAILED")
    assert (shown["ExitCode"], shown["Restarts"]) == ("3:0", "0"), cluster.log(job)


def test_a_job_without_gpus_is_refused(cluster, study, logs, tmp_path):
    site = tmp_path / "site.sh"
    site.write_text((cluster.folder / "site.sh").read_text() + "unset ACCELERATE_USE_CPU\n")
    job = cluster.sbatch(*logs, "launch/train.sbatch", *trainer(study, tmp_path / "run"), SITE=str(site))
    assert cluster.wait(job, "FAILED")["ExitCode"] == "2:0"
    assert "no GPUs" in cluster.log(job)


OVERLAY = """\
shards: {{dataset: perceivelab, eeg: {study}/study/eeg.pth, images: {study}/study/images, splits: by_image}}
pixel_features: {{encoder: conv, encoder_width: 8, n_features: 16, global_batch_size: 8, max_steps: 2, {typo}
                 workers: 0}}
pixel_saliency: {{image_size: 32, z_dim: 8, generator_width: 4, discriminator_width: 4, global_batch_size: 8,
                 max_steps: 2, workers: 0}}
sample_semantics: {{pipeline: {study}/pipeline, encoder: conv, encoder_width: 8, n_features: 16, global_batch_size: 8,
                   max_steps: 2, workers: 0}}
reconstruct: {{pipeline: {study}/pipeline, samples: 1, num_inference_steps: 2, strength: 0.5, limit: 4}}
brain2image: {{encoder: conv, encoder_width: 8, n_features: 16, image_size: 16, width: 4, norm: group,
              global_batch_size: 8, classifier_steps: 1, max_steps: 2, workers: 0}}
evaluate: {{classifier: embedded}}
"""


def told(cluster, runs: Path) -> dict[str, str]:
    """Stage -> what `neuroimagen status` says of it."""
    printed = cluster(sys.executable, "-m", "neuroimagen.cli", "status", str(runs), check=False)
    lines = printed.replace("\n ", " ").splitlines()[1:-1]  # one that was wrapped is one again
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


@pytest.mark.timeout(420)
def test_the_paper_as_a_chain_stops_at_a_failure_and_continues(cluster, study, tmp_path):
    runs, overlay = tmp_path / "runs", tmp_path / "overlay.yaml"

    def submit(typo: str) -> dict[str, str]:
        overlay.write_text(OVERLAY.format(study=study.folder, typo=typo))
        settings = {"CAPTIONS": f"{study.folder}/study/captions.jsonl", "BASELINES": "brain2image"}
        printed = cluster("bash", "launch/paper.sh", "slurm", str(runs), str(overlay), **settings)
        lines = [line.split() for line in printed.splitlines()]
        return {step[1]: job[1] for step, job in zip(lines[::2], lines[1::2], strict=True)}

    jobs = submit("marginn: 1, ")
    chain = "shards pixel_features pixel_saliency semantics_label semantics_blip brain2image"
    chain += " reconstruct evaluate audit report"
    assert " ".join(jobs) == chain
    assert told(cluster, runs)["report"] == f"queued as job {jobs['report']} (Dependency)"
    failed = cluster.wait(jobs["pixel_features"], "FAILED")
    assert failed["ExitCode"] == "2:0" and "marginn" in cluster.log(jobs["pixel_features"])
    for never in ("pixel_saliency", "reconstruct", "report"):
        cluster.wait(jobs[never], "CANCELLED")
        assert not (runs / never).exists() and not list((runs / "jobs").glob(f"{never}-*"))  # it never began
    for beside in ("semantics_label", "semantics_blip", "brain2image"):
        cluster.wait(jobs[beside])
    said = told(cluster, runs)
    assert said["pixel_features"].startswith("failed") and said["semantics_label"].startswith("done step 2,")
    assert said["pixel_saliency"] == said["report"] == "to do"
    before = {path: path.stat().st_mtime_ns for path in (runs / "semantics_label").rglob("*")}

    jobs = submit("")
    for job in jobs.values():
        cluster.wait(job)
    assert {text.split()[0] for text in told(cluster, runs).values()} == {"done"}
    assert (runs / "reconstruct" / "report.html").stat().st_size > 10_000
    assert before == {path: path.stat().st_mtime_ns for path in (runs / "semantics_label").rglob("*")}


@pytest.mark.timeout(600)
def test_an_audit_as_arrays_goes_on_beside_a_variant_that_fails(cluster, study, tmp_path):
    """Task k of each seed's array waits for task k of the one that packs; the page, here a stub, for whatever ended."""
    runs, overlay, site, page = (tmp_path / name for name in ("runs", "overlay.yaml", "site.sh", "neuroimagen"))
    overlay.write_text(OVERLAY.format(study=study.folder, typo=""))
    page.write_text(
        f'#!/bin/sh\n[ "$1" != audit ] || exec touch {tmp_path}/page\nexec python -m neuroimagen.cli "$@"\n'
    )
    page.chmod(0o755)
    site.write_text((cluster.folder / "site.sh").read_text() + f"export PATH={tmp_path}:$PATH\n")
    settings = {"VARIANTS": "honest subject-2", "SEEDS": "1", "MEASURE": "0", "SITE": str(site)}

    def submit() -> dict[str, str]:
        printed = cluster("bash", "launch/audit.sh", "slurm", str(runs), str(overlay), **settings)
        told = printed[printed.index("== shards") :].splitlines()
        return {step.split()[1]: job.split()[1] for step, job in zip(told[::2], told[1::2], strict=True)}

    audit = runs / "audit"
    (audit / "subject-2").mkdir(parents=True)
    (audit / "subject-2" / "shards").touch()  # where a folder should be
    jobs = submit()
    assert list(jobs) == ["shards", "seed-0", "page"]
    cluster.wait(f"{jobs['shards']}_2", "FAILED")
    cluster.wait(f"{jobs['seed-0']}_1")
    cluster.wait(f"{jobs['seed-0']}_2", "CANCELLED")
    cluster.wait(jobs["page"])
    assert (audit / "honest/seed-0/DONE").exists() and not (audit / "subject-2/seed-0").exists()
    assert (tmp_path / "page").exists()
    before = {path: path.stat().st_mtime_ns for path in (audit / "honest/seed-0").rglob("*")}

    (audit / "subject-2" / "shards").unlink()
    jobs = submit()
    for job in (f"{jobs['seed-0']}_1", f"{jobs['seed-0']}_2", jobs["page"]):
        cluster.wait(job)
    assert (audit / "subject-2/seed-0/DONE").exists()
    assert json.loads((audit / "subject-2/shards/manifest.json").read_text())["config"]["hold_out_subject"] == 2
    assert before == {path: path.stat().st_mtime_ns for path in (audit / "honest/seed-0").rglob("*")}
