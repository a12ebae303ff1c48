"""`neuroimagen features` on real processes: the same bytes on one and two, and after a kill at any moment."""

import signal
import time

from tiny_models import tiny_shards, tiny_tower

from neuroimagen.features.format import read_features


def test_two_processes_killed_and_continued_by_one(tmp_path, start):
    shards, model = tiny_shards(tmp_path / "shards"), tiny_tower(tmp_path / "dinov2", "dinov2")
    fields = [f"shards={shards}", f"model={model}", "layer=0.667", "views=[original,noise]", "batch_size=2"]

    def command(out):
        return ["-m", "neuroimagen.cli", "features", *fields, f"out={tmp_path / out}"]

    one, two = start(command("one"), 1), start(command("two"), 2)
    assert one.wait() == [0] and two.wait() == [0, 0], one.log.read_text() + two.log.read_text()
    whole = (tmp_path / "one").read_bytes()
    assert (tmp_path / "two").read_bytes() == whole and len(read_features(tmp_path / "one").keys) == 30
    assert two.log.read_text().count("features of 30 pictures") == 1

    out, parts = tmp_path / "killed", tmp_path / "killed.parts"
    killed = start(command("killed"), 2, hold="neuroimagen.features.extract:_encode:4")
    deadline = time.monotonic() + 600
    while len(list(parts.glob("*.safetensors"))) < 5:
        assert time.monotonic() < deadline and all(p.poll() is None for p in killed.all), killed.log.read_text()
        time.sleep(0.01)
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert not out.exists() and len(list(parts.glob("*.safetensors"))) < 15
    again = start(command("killed"), 1)
    assert again.wait() == [0], again.log.read_text()
    assert out.read_bytes() == whole and not parts.exists()


def test_a_picture_that_one_rank_cannot_decode_ends_all(tmp_path, start):
    shards = tiny_shards(tmp_path / "shards")
    tar = shards / "test-000000.tar"
    data = tar.read_bytes()
    at = data.index(b"\xff\xd8\xff")  # the first JPEG
    tar.write_bytes(data[: at + 2] + bytes(100) + data[at + 102 :])
    fields = [
        f"shards={shards}",
        f"model={tiny_tower(tmp_path / 'clip', 'clip')}",
        f"out={tmp_path / 'f'}",
        "batch_size=1",
    ]
    processes = start(["-m", "neuroimagen.cli", "features", *fields], 2)
    assert processes.wait() == [2, 2], processes.log.read_text()
    assert "test-000000.tar: the picture of trial" in processes.log.read_text() and not (tmp_path / "f").exists()
