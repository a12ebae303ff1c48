"""Packing: the same bytes by any number of processes and after any kill; pictures and tars too large to be true."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from perceivelab_files import jpeg, write_study
from PIL import Image
from whole_shards import check_shards

from neuroimagen.batches.decode import load_picture
from neuroimagen.cli import main
from neuroimagen.shards import tars as packing
from neuroimagen.shards import workers
from neuroimagen.shards.format import ShardError, ShardSplit, read_manifest, scan_tar
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.shards.tars import encode_eeg, open_picture


def arguments(folder: Path, out: Path, **fields) -> list[str]:
    files = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth"}
    return [f"{key}={value}" for key, value in ({"out": out, "n_chans": 4, "shard_size": 4} | files | fields).items()]


def config(folder: Path, out: Path, **fields) -> ShardsConfig:
    files = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth"}
    return ShardsConfig(out=str(out), n_chans=4, **({"shard_size": 4} | {k: str(p) for k, p in files.items()} | fields))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, images_per_class=40)
    return folder


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """240 trials in 60 tars, by one process and without a stop."""
    out = tmp_path_factory.mktemp("made") / "shards"
    make_shards(config(study, out, processes=1))
    return out


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_writes_the_same(study, made, tmp_path, processes):
    make_shards(config(study, tmp_path / "shards", processes=processes))
    assert content(tmp_path / "shards") == content(made)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


class Command:
    """`neuroimagen shards` as a process of its own session, so that its descendants can be told."""

    def __init__(self, folder: Path, out: Path, **fields) -> None:
        self.out, self.partial = out, out.with_name(out.name + ".partial")
        call = [sys.executable, "-m", "neuroimagen.cli", "shards", *arguments(folder, out, **fields)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(call, start_new_session=True, **pipes)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *rest) -> None:
        """Nothing of it outlives a test, whatever that found."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for_tars(self, n: int) -> None:
        end = time.monotonic() + 900
        while len(list(self.partial.glob("unfinished/*.tar.json"))) < n and self.process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        assert self.process.poll() is None, self.process.stdout.read()

    def session(self) -> dict[int, int]:
        """pid -> parent of every process of this command that is alive."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found[int(path.parent.name)] = int(parent)
        return found

    def ended(self) -> None:
        """Wait until none of its processes is left, as is to be once the command itself has ended."""
        end = time.monotonic() + 900
        while self.session():  # a worker that outlives its parent would write into what the next command does
            assert time.monotonic() < end, "packing processes live on without the command"
            time.sleep(0.01)

    def finish(self) -> str:
        said, _ = self.process.communicate(timeout=900)
        return said


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(study, made, tmp_path, capfd):
    out, rng = tmp_path / "shards", np.random.default_rng()
    whole = 0
    for processes in (2, 1):
        with Command(study, out, processes=processes) as command:
            command.wait_for_tars(whole + int(rng.integers(1, 15)))
            time.sleep(float(rng.uniform(0, 0.02)))
            if processes == 1:
                command.process.send_signal(signal.SIGSTOP)  # it holds what it holds
                assert main(["shards", *arguments(study, out)]) == 2
                error = capfd.readouterr().err
                assert f"is being packed by process {command.process.pid} on" in error and error.count("\n") == 1
            command.process.kill()
            command.process.wait()
            command.ended()
        assert not out.exists()
        whole = len(list(command.partial.glob("unfinished/*.tar.json")))
        assert 0 < whole < 60
    assert main(["shards", *arguments(study, out, processes=2)]) == 0
    assert f"{whole} of 60 tars are whole, going on" in capfd.readouterr().out
    assert content(out) == content(made)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_killed_packing_process_is_a_sentence_and_no_hang(study, made, tmp_path):
    out = tmp_path / "shards"
    with Command(study, out, processes=2) as command:
        command.wait_for_tars(2)
        processes = command.session()
        worker = next(pid for pid, parent in processes.items() if parent in processes and parent != command.process.pid)
        os.kill(worker, signal.SIGKILL)
        said = command.finish()
        assert command.process.returncode == 2
        assert "a packing process was ended, as when memory runs out: the same command continues" in said
        assert "Traceback" not in said
        command.ended()
    make_shards(config(study, out, processes=1))
    assert content(out) == content(made)


def test_an_error_in_a_packing_process_reaches_the_user(study, tmp_path, capsys):
    write_study(tmp_path)
    path = sorted((tmp_path / "images").rglob("*.JPEG"))[11]
    path.write_bytes(path.read_bytes()[:300])
    assert main(["shards", *arguments(tmp_path, tmp_path / "shards", processes=2)]) == 2
    error = capsys.readouterr().err
    assert f"error: picture {path} cannot be decoded" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("shards*"))


def full_disk(monkeypatch, after: int) -> None:
    written = []

    def fsync(file):
        written.append(file)
        if len(written) > after:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.os, "fsync", fsync)


def test_a_full_disk_is_a_sentence_and_the_command_goes_on(study, made, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, 7)
        assert main(["shards", *arguments(study, tmp_path / "shards", processes=1)]) == 2
    error = capsys.readouterr().err
    assert "is full: make room, and the same command goes on" in error and error.count("\n") == 1
    make_shards(config(study, tmp_path / "shards"))
    assert "7 of 60 tars are whole" in capsys.readouterr().out
    assert content(tmp_path / "shards") == content(made)


def test_what_is_left_over_is_used_only_by_the_same_command_on_the_same_files(tmp_path, capsys, monkeypatch):
    def stop_after(n: int, **fields) -> None:
        with monkeypatch.context() as patch:
            full_disk(patch, n)
            with pytest.raises(OSError):
                make_shards(config(tmp_path, tmp_path / "shards", **fields))

    write_study(tmp_path)
    stop_after(3)
    with pytest.raises(ValueError, match="does not exist"):
        make_shards(config(tmp_path, tmp_path / "shards", eeg=str(tmp_path / "mistyped.pth")))
    stop_after(1)
    assert "3 of 16 tars are whole" in capsys.readouterr().out
    path = tmp_path / "shards.partial" / "unfinished" / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps(plan | {"config": plan["config"] | {"shuffle_labels": False, "recording": ""}}))
    stop_after(1)  # an older version kept the fields of all data sets
    assert "4 of 16 tars are whole" in capsys.readouterr().out
    stop_after(2, eeg_dtype="float32")
    assert "is left over from another command (config differ): starting afresh" in capsys.readouterr().out
    write_study(tmp_path, seed=1)
    stop_after(5, eeg_dtype="float32")
    said = capsys.readouterr().out
    assert "starting afresh" in said and "inputs" in said
    os.utime(tmp_path / "eeg.pth")  # touched, not changed
    stop_after(1, eeg_dtype="float32")
    assert "5 of 16 tars are whole" in capsys.readouterr().out
    tar = tmp_path / "shards.partial" / "train-000001.tar"
    info = ShardInfo(tar)
    picture = tmp_path / "images" / info.wnid / f"{info.image}.JPEG"
    picture.write_bytes(jpeg(np.random.default_rng(9), (50, 40)))
    make_shards(config(tmp_path, tmp_path / "shards", eeg_dtype="float32"))
    assert " of 16 tars are whole" in capsys.readouterr().out
    check_shards(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "train-000001.tar") as file:
        assert file.extractfile(info.member).read() == picture.read_bytes()
    with pytest.raises(ValueError, match=r"cannot write to .*eeg\.pth \(.*\): give another out="):
        make_shards(config(tmp_path, tmp_path / "eeg.pth" / "shards"))
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"thesis\.txt is not of neuroimagen shards"):
        make_shards(config(tmp_path, tmp_path / "other"))
    assert (tmp_path / "other.partial" / "thesis.txt").read_text() == "dear"


class ShardInfo:
    """The first picture in a tar."""

    def __init__(self, tar: Path) -> None:

        with tarfile.open(tar) as file:
            names = file.getnames()
            self.member = next(name for name in names if name.endswith(".jpg"))
            content = json.load(file.extractfile(self.member.replace(".jpg", ".json")))
        self.wnid, self.image = content["wnid"], content["image"]


def test_stopped_between_manifest_and_rename(study, made, tmp_path, monkeypatch):
    partial, rmtree = tmp_path / "shards.partial", shutil.rmtree

    def stop(path, *rest, **named):
        if Path(path).name == "unfinished":
            raise KeyboardInterrupt
        rmtree(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            make_shards(config(study, tmp_path / "shards"))
    assert (partial / "manifest.json").is_file() and (partial / "unfinished").is_dir()
    before = (partial / "train-000000.tar").stat().st_ino
    make_shards(config(study, tmp_path / "shards"))
    assert content(tmp_path / "shards") == content(made)
    assert (tmp_path / "shards" / "train-000000.tar").stat().st_ino == before


def test_more_processes_only_where_they_pay(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(workers, "_kilobytes", lambda path, name: {"RssAnon": 100, "MemAvailable": 100_000}[name])
    assert [workers.how_many(1, work) for work in (0.1, 5, 10, 1000)] == [1, 1, 8, 8]
    assert workers.how_many(500, 400) == 1  # a study that takes longer to open than to pack
    monkeypatch.setattr(workers, "_kilobytes", lambda path, name: {"RssAnon": 100, "MemAvailable": 620}[name])
    assert workers.how_many(1, 1000) == 3  # each would hold 100 kB, and half of what is free is kept free


def test_tars_of_a_wanted_size(study, tmp_path):
    make_shards(config(study, tmp_path / "a", shard_size=0, shard_mb=0.1))
    tars = [tar for split in read_manifest(tmp_path / "a").splits.values() for tar in split["shards"]]
    assert 0.07e6 < np.median([tar["bytes"] for tar in tars]) < 0.12e6
    make_shards(config(study, tmp_path / "b", shard_size=0))
    assert [len(split["shards"]) for split in read_manifest(tmp_path / "b").splits.values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="shard_mb=0 must be above 0"):
        make_shards(config(study, tmp_path / "c", shard_mb=0))


def test_float16_error_by_hand():
    eeg = np.array([[1.0, 3.0, 1.0, 3.0], [2049.0, 2047.0, 2049.0, 2047.0], [5.0, 7.0, 5.0, 7.0]], np.float32)
    data, error, power = encode_eeg(eeg, "float16", "x")
    np.testing.assert_array_equal(np.frombuffer(data, "<f2").reshape(3, 4)[1], [2048, 2047, 2048, 2047])
    assert (error, power) == (2.0, 12.0)  # 2049 has no float16: 1 wrong, twice; all are 1 from their mean
    assert encode_eeg(eeg, "float32", "x")[1:] == (0.0, 12.0)


def test_the_float16_error_is_stated(study, made, tmp_path):
    train = ShardSplit(made, "train")
    manifest = read_manifest(made)
    make_shards(config(study, tmp_path / "exact", eeg_dtype="float32"))
    error = power = 0.0
    for split in ("train", "val", "test"):
        half, full = ShardSplit(made, split), ShardSplit(tmp_path / "exact", split)
        for i in range(len(full)):
            eeg = full.eeg(i).astype(np.float64)
            error += ((half.eeg(i) - eeg) ** 2).sum()
            power += ((eeg - eeg.mean(1, keepdims=True)) ** 2).sum()
    assert manifest.eeg_error == pytest.approx((error / power) ** 0.5, rel=1e-9) and len(train) > 0
    assert 1e-5 < manifest.eeg_error < 1e-3  # 11 bits
    assert read_manifest(tmp_path / "exact").eeg_error == 0
    assert f"float16 (its rounding is {manifest.eeg_error:.2%} of the signal, RMS)" in " ".join(
        check_shards(made).split()
    )


@pytest.mark.parametrize("quality, kind", [(90, "JPEG"), (0, "PNG")])
def test_resized_pictures(study, tmp_path, quality, kind):
    fields = {"picture_size": 12, "picture_quality": quality, "shard_size": 50}
    make_shards(config(study, tmp_path / "a", processes=1, **fields))
    split = ShardSplit(tmp_path / "a", "val")
    with Image.open(io.BytesIO(split.picture(0))) as picture:
        assert picture.format == kind and picture.size == (16, 12)
        info = split.info(0)
        with Image.open(study / "images" / info["wnid"] / f"{info['image']}.JPEG") as source:
            wanted = np.array(source.convert("RGB").resize((16, 12), Image.Resampling.BICUBIC))
        found = np.array(picture).astype(int)
        assert np.abs(found - wanted).mean() < (6 if quality else 1e-9)
    assert load_picture(split.picture(0), 8).shape == (3, 8, 8)
    assert "resized to a shortest side of 12 px" in check_shards(tmp_path / "a")
    make_shards(config(study, tmp_path / "b", processes=1, **(fields | {"picture_size": 30})))
    split = ShardSplit(tmp_path / "b", "val")
    assert split.picture(0) == (study / "images" / info["wnid"] / f"{info['image']}.JPEG").read_bytes()


def png_of(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(7100, 7100), (10_000, 9_000), (20_000, 10_000)])
def test_a_decompression_bomb_is_refused_undecoded(size):
    data = png_of(*size)
    assert len(data) < 100_000
    with pytest.raises(ValueError, match=r"picture bomb cannot be decoded .it claims .*more than 50,000,000"):
        open_picture(data, "bomb")
    with pytest.raises(ValueError, match="picture cannot be decoded: it claims .*more than 50,000,000"):
        load_picture(data, 16)


@pytest.mark.parametrize("kind", ["huge", "pipe", "device", "gone"])
def test_a_picture_that_is_none_is_refused_unread(tmp_path, kind):
    write_study(tmp_path)
    path = sorted((tmp_path / "images").rglob("*.JPEG"))[3]
    path.unlink()
    if kind == "huge":
        with open(path, "wb") as file:
            file.truncate(2 << 30)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(tmp_path / "nowhere")
    sentence = {"huge": "has 2048 MB where 64 MB are the most", "gone": "cannot be read"}.get(kind, "is not a file")
    with pytest.raises(ValueError, match=rf"picture {path} {sentence}"):
        make_shards(config(tmp_path, tmp_path / "shards"))


def member(name: str = "a.eeg", size: int = 0, **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        member(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(type=tarfile.LNKTYPE, linkname="b.eeg"),
        member(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member(type=tarfile.FIFOTYPE),
        member(type=tarfile.DIRTYPE),
        member(type=tarfile.GNUTYPE_SPARSE),
        member("././@PaxHeader", size=1 << 40, type=tarfile.XHDTYPE),
        member("././@LongLink", size=1 << 40, type=tarfile.GNUTYPE_LONGNAME),
        member("../a.eeg"),
        member("/a.eeg"),
        member("a/b.eeg"),
        member("a.eeg", size=1 << 50),
        member("a.eeg", size=-512),
        member("a.eeg", size=-(1 << 50)),
        b"\1" * 512,
        member("a.eeg").replace(b"0000644", b"0000777"),
    ],
)
def test_a_member_that_is_no_plain_file_inside_is_refused(tmp_path, header):
    path = tmp_path / "x.tar"
    path.write_bytes(header + bytes(1024))
    with pytest.raises(
        ValueError, match=r"x\.tar (holds .*, which neuroimagen shards does not|is truncated or damaged)"
    ):
        scan_tar(path, 0)


def test_absurd_sizes_in_manifest_and_index(made, tmp_path):

    copy = Path(shutil.copytree(made, tmp_path / "shards"))
    rows = np.load(copy / "train.index.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (2_000_000,)}
    )
    (copy / "train.index.npy").write_bytes(header.getvalue())
    os.truncate(copy / "train.index.npy", len(header.getvalue()) + 2_000_000 * rows.itemsize)
    with pytest.raises(ValueError, match="index.npy is damaged"):
        ShardSplit(copy, "train")
    rows["tar"] = 2_000_000_000
    np.save(copy / "train.index.npy", rows)
    with pytest.raises(ValueError, match="do not hold the trials"):
        ShardSplit(copy, "train")
    content = json.loads((copy / "manifest.json").read_text())
    for change in ({"n_chans": 1 << 62}, {"n_times": 1.5}, {"n_chans": "4"}, {"channel_mean": [float("nan")] * 4}):
        (copy / "manifest.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match="is damaged or was changed by hand"):
            read_manifest(copy)
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read_manifest(copy)


def test_a_shard_that_vanishes_is_named_with_its_trial(made, tmp_path):

    copy = Path(shutil.copytree(made, tmp_path / "shards"))
    gone, cut = ShardSplit(copy, "val"), ShardSplit(copy, "val")
    cut.eeg(0)
    path = copy / "val-000000.tar"
    os.truncate(path, 512)
    with pytest.raises(ShardError, match=r"val-000000\.tar: trial .* was truncated while in use") as error:
        cut.picture(1)
    assert cut.keys[1] in str(error.value)
    path.unlink()
    for read in (gone.eeg, gone.picture, gone.info):
        with pytest.raises(ShardError, match=r"val-000000\.tar: trial .* cannot be read \(No such file") as error:
            read(1)
    assert gone.keys[1] in str(error.value)
    assert gone.eeg(len(gone) - 1).shape == (4, 440)  # of another tar
