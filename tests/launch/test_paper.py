"""launch/paper.sh starts each stage as it was told to; the launchers here only say what they were given."""

import os
import subprocess
from pathlib import Path

REPO = Path(__file__).parents[2]


def paper(tmp_path, *arguments, **environment):
    command = tmp_path / "neuroimagen"
    command.write_text('#!/bin/sh\necho neuroimagen "$1"\n')
    command.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CAPTIONS": "none", **environment}
    return subprocess.run(
        ["bash", "launch/paper.sh", *arguments], cwd=REPO, env=variables, capture_output=True, text=True, timeout=60
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
        ["draw", "trainers/reconstruct.py"],
        ["neuroimagen", "evaluate"],
        ["neuroimagen", "report"],
    ]


def test_usage_names_every_setting(tmp_path):
    done = paper(tmp_path)
    assert done.returncode == 2
    for name in ("LAUNCH", "SALIENCY_LAUNCH", "RECONSTRUCT_LAUNCH", "SIDE_BY_SIDE", "CAPTIONS"):
        assert name in done.stdout
