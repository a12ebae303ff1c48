"""launch/audit.sh trains each variant that a study allows, says beforehand what that takes, and goes on when killed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
OVERLAY = """\
shards: {{dataset: perceivelab, eeg: {study}/study/eeg.pth, images: {study}/study/images, splits: by_image}}
sample_semantics: {{pipeline: {study}/pipeline, encoder: conv, encoder_width: 8, n_features: 16, global_batch_size: 8,
                   max_steps: {steps}, checkpoint_every: 1, validate_every: 0, workers: 0}}
"""
STUB = '#!/bin/sh\ncase "$1" in audit) echo "audited $*" ;; *) exec {python} -m neuroimagen.cli "$@" ;; esac\n'


@pytest.fixture
def audit(study, tmp_path):
    """audit(*arguments, **environment) -> a started launch/audit.sh, whose page is made by a stub."""
    command = tmp_path / "neuroimagen"
    command.write_text(STUB.format(python=sys.executable))
    command.chmod(0o755)
    (tmp_path / "overlay.yaml").write_text(OVERLAY.format(study=study.folder, steps=40))

    def start(mode: str, **environment: str) -> subprocess.Popen:
        path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "LAUNCH": "python", "MEASURE": "0", "SEEDS": "2", **environment}
        variables |= {"ACCELERATE_USE_CPU": "yes", "SITE": str(tmp_path / "none"), "PYTHONPATH": str(REPO)}
        arguments = ["bash", "launch/audit.sh", mode, str(tmp_path / "runs"), str(tmp_path / "overlay.yaml")]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            arguments, cwd=REPO, env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    return start


def said(started: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = started.communicate(timeout=500)
    assert started.returncode == code, out + err
    return out, err


def test_a_dry_run_says_what_would_be_given_and_gives_nothing(audit, tmp_path):
    out, _ = said(audit("local", DRY="1", VARIANTS="honest subject-2"))
    folder, overlay = tmp_path / "runs" / "audit", f"config={tmp_path}/overlay.yaml"
    wanted = []
    for name, given in (("honest", []), ("subject-2", ["hold_out_subject=2"])):
        shards = f"{folder}/{name}/shards"
        wanted += [["neuroimagen", "shards", overlay, *given, f"out={shards}"]]
        for seed in (0, 1):
            words = ["trainers/sample_semantics.py", "config=configs/sample_semantics.yaml", overlay, "captions=label"]
            run = f"run_dir={folder}/{name}/seed-{seed}"
            wanted += [["python", *words, f"shards={shards}", run, f"seed={seed}"]]
    wanted += [["neuroimagen", "audit", overlay, f"out={folder}"]]
    assert [shlex.split(line) for line in out.splitlines() if not line.startswith("==")] == wanted
    assert not (tmp_path / "runs").exists()

    out, _ = said(audit("slurm", DRY="1", VARIANTS="honest subject-2"))
    jobs = [shlex.split(line) for line in out.splitlines() if line.startswith("sbatch ")]
    asked = [next(word.split("=", 1)[1] for word in job if word.startswith("--dependency=")) for job in jobs]
    after = "afterany:ARRAY_OF_shards:ARRAY_OF_seed-0:ARRAY_OF_seed-1,singleton"
    assert asked == ["singleton", *["aftercorr:ARRAY_OF_shards,singleton"] * 2, after]
    assert ["--array=1-2" in job for job in jobs] == [True, True, True, False]
    assert not (tmp_path / "runs").exists()


def test_what_the_study_does_not_allow_is_left_out_or_refused(audit, tmp_path):
    """The tiny study tells no blocks: those variants are left out, and refused where they are asked for."""
    names = [line[3:] for line in said(audit("local", DRY="1"))[0].splitlines() if line.startswith("== ")]
    assert names[:3] == ["honest", "trials", "shuffled"] and names[-2:] == ["subject-2", "audit"]
    assert not {"blocks", "last_block", "other_trial"} & set(names)
    for wanted, sentence in (
        ("last_block", "last_block: "),
        ("sham", "'sham' is no variant of this study; it may have"),
    ):
        out, err = said(audit("local", VARIANTS=f"honest {wanted}"), 2)
        assert err.count("\n") == 1 and sentence in err and "==" not in out
    (tmp_path / "overlay.yaml").write_text((tmp_path / "overlay.yaml").read_text().replace("max_steps", "max_stepz"))
    assert "max_stepz" in said(audit("local", VARIANTS="honest"), 2)[1]
    assert not (tmp_path / "runs").exists()


def test_a_killed_audit_goes_on(audit, tmp_path):
    folder, given = tmp_path / "runs" / "audit", {"VARIANTS": "honest shuffled", "SEEDS": "1"}
    first = audit("local", **given)
    deadline = time.monotonic() + 300
    while not list(folder.glob("shuffled/seed-0/checkpoints/step-*[0-9]")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    out, _ = first.communicate()
    assert "2 variants: honest, shuffled" in out and "2 x 40 steps of 8" in out
    assert "jobs: 2 that pack, 2 that train (0 are done), and the page" in out
    assert (folder / "honest/seed-0/DONE").exists() and not (folder / "shuffled/seed-0/DONE").exists()
    finished = (folder / "honest/seed-0/model/model.safetensors").stat().st_mtime_ns

    out, err = said(audit("local", **given))
    assert "(1 are done)" in out and "continuing at step" in out + err
    assert f"audited audit config={tmp_path}/overlay.yaml out={folder}" in out
    assert (folder / "honest/seed-0/model/model.safetensors").stat().st_mtime_ns == finished
    assert (folder / "shuffled/seed-0/DONE").exists()


def test_usage_names_every_setting():
    done = subprocess.run(["bash", "launch/audit.sh"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    for name in ("VARIANTS", "SEEDS", "MEASURE", "DRY", "LAUNCH", "local", "slurm"):
        assert name in done.stdout
