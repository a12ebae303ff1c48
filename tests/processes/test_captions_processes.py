"""The captioning command: stopped on two real processes and continued on one, it equals one process."""

import json
import signal
import time
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import tiny_blip

from neuroimagen.sample.captions import CaptionsConfig, caption_pictures
from neuroimagen.studies.captions import read_captions


def make_pictures(folder, count):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.jpg")


def test_a_rank_that_sees_an_older_listing_captions_what_rank_0_sees(tmp_path, start):
    pictures, out = tmp_path / "pictures", tmp_path / "captions.jsonl"
    make_pictures(pictures, 5)
    told = {
        "rank": 1,
        "root": str(pictures),
        "known": [str(pictures / f"p{i}.jpg") for i in range(1, 5)],
        "patience": 10,
    }
    scripts = [str(Path(__file__).with_name(name)) for name in ("stale.py", "small_captions.py")]
    processes = start([*scripts, f"images={pictures}", f"out={out}"], 2, STALE=json.dumps(told | {"seconds": 0.0}))
    assert processes.wait() == [0, 0], processes.log.read_text()
    assert sorted(read_captions(out)) == [f"p{i}" for i in range(5)]
    assert not list(tmp_path.glob("*.part-*"))


def test_two_processes_stopped_and_continued_by_one(tmp_path, start, monkeypatch):
    model = tiny_blip(tmp_path / "blip")
    make_pictures(tmp_path / "pictures", 24)
    fields = {"images": str(tmp_path / "pictures"), "model": str(model), "batch_size": 1}
    out, parts = tmp_path / "captions.jsonl", [tmp_path / f"captions.jsonl.part-{rank:04d}" for rank in range(2)]

    command = ["-m", "neuroimagen.cli", "captions", *(f"{k}={v}" for k, v in fields.items()), f"out={out}"]
    processes = start(command, 2, hold="neuroimagen.sample.captions:_open_rgb:3")
    deadline = time.monotonic() + 900
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
