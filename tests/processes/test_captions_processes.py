"""The captioning command on two real processes: stopped, continued on one, and equal to a run of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from tiny_models import tiny_blip

COMMAND = (
    "import sys; from neuroimagen.config import run_command; from neuroimagen.sample.captions import *; "
    "sys.exit(run_command(caption_pictures, CaptionsConfig, sys.argv[1:], 'captions', ''))"
)
TWO = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"


def start(arguments: list[str], script: Path, processes: int) -> subprocess.Popen:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable]
    if processes == 2:
        launcher += ["-m", "accelerate.commands.accelerate_cli", "launch", *TWO.split()]
    command = [*launcher, str(script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_stopped_and_continued_by_one(tmp_path):
    model = tiny_blip(tmp_path / "blip")
    (tmp_path / "pictures").mkdir()
    for number in range(120):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"p{number}.jpg")
    script = tmp_path / "caption.py"
    script.write_text(COMMAND)
    shared = [f"images={tmp_path / 'pictures'}", f"model={model}", "batch_size=1"]

    out = tmp_path / "captions.jsonl"
    process = start([*shared, f"out={out}"], script, 2)
    parts = [tmp_path / f"captions.jsonl.part-{rank:04d}" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(part.exists() and part.read_text().count("\n") >= 3 for part in parts):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    done = sum(part.read_text().count("\n") for part in parts)
    assert process.returncode != 0 and not out.exists(), printed
    assert 6 <= done < 120, printed

    process = start([*shared, f"out={out}"], script, 1)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "120 of 120 pictures have a caption" in printed
    assert not list(tmp_path.glob("captions.jsonl.*"))

    process = start([*shared, f"out={tmp_path / 'two.jsonl'}"], script, 2)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert (tmp_path / "two.jsonl").read_bytes() == out.read_bytes()
