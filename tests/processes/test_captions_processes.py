"""The captioning command: stopped on two real processes and continued on one, it equals one process."""

import signal
import time

import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import tiny_blip

from neuroimagen.sample.captions import CaptionsConfig, caption_pictures


def test_two_processes_stopped_and_continued_by_one(tmp_path, start, monkeypatch):
    model = tiny_blip(tmp_path / "blip")
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"p{number}.jpg")
    fields = {"images": str(tmp_path / "pictures"), "model": str(model), "batch_size": 1}
    out, parts = tmp_path / "captions.jsonl", [tmp_path / f"captions.jsonl.part-{rank:04d}" for rank in range(2)]

    command = ["-m", "neuroimagen.cli", "captions", *(f"{k}={v}" for k, v in fields.items()), f"out={out}"]
    processes = start(command, 2, hold="neuroimagen.sample.captions:_open_rgb:3")
    deadline = time.monotonic() + 300
    while not all(part.exists() and part.read_text().count("\n") >= 2 for part in parts):
        assert all(p.poll() is None for p in processes.all), processes.log.read_text()
        assert time.monotonic() < deadline, processes.log.read_text()
        time.sleep(0.01)
    processes.signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.log.read_text()
    assert not out.exists()
    assert 4 <= sum(part.read_text().count("\n") for part in parts) < 24
    assert "run the same command to continue" in processes.log.read_text()

    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert caption_pictures(CaptionsConfig(**fields, out=str(out))) == 0
        assert caption_pictures(CaptionsConfig(**fields, out=str(tmp_path / "one.jsonl"))) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
        AcceleratorState._reset_state(reset_partial_state=True)
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len(out.read_text().splitlines()) == 24
    assert not list(tmp_path.glob("*.part-*"))
