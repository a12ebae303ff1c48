"""launch/paper.sh starts each stage as it was told to; the launchers here only say what they were given."""

import os
import shlex
import subprocess
from pathlib import Path

REPO = Path(__file__).parents[2]


def paper(tmp_path, *arguments, **environment):
    command = tmp_path / "neuroimagen"
    command.write_text('#!/bin/sh\necho neuroimagen "$1"\n')
    command.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CAPTIONS": "none", **environment}
    return subprocess.run(
        ["bash", "launch/paper.sh", *arguments], cwd=REPO, env=variables, capture_output=True, text=True, timeout=900
    )


def test_each_stage_gets_its_launcher_in_order(tmp_path):
    launchers = {"LAUNCH": "echo all", "SALIENCY_LAUNCH": "echo gan", "RECONSTRUCT_LAUNCH": "echo draw"}
    done = paper(tmp_path, str(tmp_path / "runs"), "configs/demo.yaml", **launchers)
    assert done.returncode == 0, done.stderr
    said = [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith("==")]
    assert said == [
        ["neuroimagen", "shards"],
        ["all", "trainers/pixel_features.py"],
        ["gan", "trainers/pixel_saliency.py"],
        ["all", "trainers/sample_semantics.py"],
        ["gan", "trainers/brain2image.py"],
        ["gan", "trainers/brain2image.py"],
        ["gan", "trainers/neurovision.py"],
        ["draw", "trainers/reconstruct.py"],
        ["draw", "-m"],  # neuroimagen.cli evaluate
        ["neuroimagen", "audit"],
        ["neuroimagen", "report"],
    ]


def trained(done) -> dict[str, list[str]]:
    """Run -> the arguments its trainer was given."""
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("trainers/")]
    return {Path(next(a for a in line if a.startswith("run_dir="))).name: line for line in lines}


def test_what_was_trained_is_what_reconstruct_is_given(tmp_path):
    runs = str(tmp_path / "runs")
    every = trained(paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo"))
    for name, variant in (("brain2image", "gan"), ("brain2image_vae", "vae")):
        assert f"variant={variant}" in every[name] and f"{name}={runs}/{name}" in every["reconstruct"]
    assert f"neurovision={runs}/neurovision" in every["reconstruct"]
    some = trained(paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo", BASELINES="neurovision", CAPTIONS="file"))
    assert not {"brain2image", "brain2image_vae"} & set(some) and "neurovision" in some
    assert f"semantics_blip={runs}/semantics_blip" in some["reconstruct"]
    assert not [a for a in some["reconstruct"] if a.startswith("brain2image")]
    none = trained(paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo", BASELINES=""))
    assert set(none) == {"pixel_features", "pixel_saliency", "semantics_label", "reconstruct"}


def test_a_misspelt_baseline_is_refused_before_anything_starts(tmp_path):
    done = paper(tmp_path, str(tmp_path / "runs"), "configs/demo.yaml", LAUNCH="echo", BASELINES="brain2image vae")
    assert done.returncode == 2 and "BASELINES names vae" in done.stderr and done.stdout == ""


def test_the_audit_is_quick_whole_or_none(tmp_path):
    asked = {
        audit: paper(tmp_path, str(tmp_path / "runs"), "configs/demo.yaml", LAUNCH="echo", DRY="1", AUDIT=audit)
        for audit in ("quick", "whole", "", "all")
    }
    assert "quick=true" in asked["quick"].stdout and "quick=false" in asked["whole"].stdout
    assert "== audit" not in asked[""].stdout and asked[""].returncode == 0
    assert asked["all"].returncode == 2 and "AUDIT=all" in asked["all"].stderr and not asked["all"].stdout


def test_branches_side_by_side_are_the_same_commands_and_a_failing_one_stops_it(tmp_path):
    runs = str(tmp_path / "runs")
    in_turn = paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo")
    beside = paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo", SIDE_BY_SIDE="1")
    assert sorted(beside.stdout.splitlines()) == sorted(in_turn.stdout.splitlines())
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\ncase "$1" in *neurovision.py) exit 3 ;; esac\necho "$@"\n')
    failing.chmod(0o755)
    done = paper(tmp_path, runs, "configs/demo.yaml", LAUNCH=str(failing), SIDE_BY_SIDE="1")
    assert done.returncode == 3 and "trainers/reconstruct.py" not in done.stdout


def test_jobs_wait_for_the_runs_they_need(tmp_path):
    """sbatch that only numbers its jobs, from 101: the dependencies of each are those of the stages."""
    command = tmp_path / "sbatch"
    command.write_text(
        "#!/bin/bash\n"
        'echo x >> "$COUNT"\n'
        'for a in "$@"; do case $a in --dependency=*) echo "$a" >> "$ASKED" ;; esac; done\n'
        'echo $((100 + $(wc -l < "$COUNT")))\n'
    )
    command.chmod(0o755)
    files = {"COUNT": str(tmp_path / "count"), "ASKED": str(tmp_path / "asked"), "SITE": str(tmp_path / "none")}
    done = paper(tmp_path, "slurm", str(tmp_path / "runs"), "configs/demo.yaml", **files)
    assert done.returncode == 0, done.stderr
    asked = [line.split("=")[1] for line in (tmp_path / "asked").read_text().splitlines()]
    steps = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("==")]
    assert dict(zip(steps, asked, strict=True)) == {
        "shards": "singleton",  # 101
        "pixel_features": "afterok:101,singleton",
        "pixel_saliency": "afterok:102,singleton",
        "semantics_label": "afterok:101,singleton",
        "brain2image": "afterok:101,singleton",
        "brain2image_vae": "afterok:101,singleton",
        "neurovision": "afterok:101,singleton",
        "reconstruct": "afterok:103,afterok:104,afterok:105,afterok:106,afterok:107,singleton",
        "evaluate": "afterok:108,singleton",
        "audit": "afterok:108,singleton",
        "report": "afterok:109,afterok:110,singleton",
    }


def test_a_dry_run_says_what_would_be_given_and_gives_nothing(tmp_path):
    runs = str(tmp_path / "runs")
    given = trained(paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="echo"))
    done = paper(tmp_path, runs, "configs/demo.yaml", LAUNCH="touch it", DRY="1", SIDE_BY_SIDE="1")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("==")]
    assert {line[-1] for line in lines[:1]} == {f"out={runs}/shards"} and len(lines) == 11
    dry = [line[2:] for line in lines if line[:2] == ["touch", "it"] and line[2].startswith("trainers/")]
    assert dry == list(given.values())

    command = tmp_path / "sbatch"
    command.write_text(f"#!/bin/sh\ntouch {tmp_path}/submitted\n")
    command.chmod(0o755)
    done = paper(tmp_path, "slurm", runs, "configs/demo.yaml", DRY="1", SITE=str(tmp_path / "none"))
    asked = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("sbatch ")]
    (last,) = [line for line in asked if f"--job-name=reconstruct:{runs}" in line]
    needed = ["pixel_saliency", "semantics_label", "brain2image", "brain2image_vae", "neurovision"]
    assert f"--dependency={''.join(f'afterok:JOB_OF_{name},' for name in needed)}singleton" in last
    assert [line[line.index("launch/train.sbatch") + 1 :] for line in asked if "trainers/" in "".join(line)] == dry
    assert not (tmp_path / "submitted").exists() and not (tmp_path / "runs").exists()


def test_usage_names_every_setting(tmp_path):
    done = paper(tmp_path)
    assert done.returncode == 2
    for name in ("LAUNCH", "SALIENCY_LAUNCH", "RECONSTRUCT_LAUNCH", "SIDE_BY_SIDE", "CAPTIONS", "BASELINES", "DRY"):
        assert name in done.stdout
