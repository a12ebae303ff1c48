"""The doctor on shards: all damage is listed, and clean shards say what their source says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from perceivelab_files import write_study

from neuroimagen.cli import main
from neuroimagen.doctor.examination import Examination
from neuroimagen.doctor.shards import ShardStudy
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.studies.study import Faults


def run(*arguments: str | Path) -> int:
    return main(["check", *map(str, arguments)])


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def packed(clean, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    files = {"eeg": clean / "eeg.pth", "images": clean / "images", "splits_file": clean / "splits.pth"}
    make_shards(ShardsConfig(out=str(out), n_chans=4, shard_size=16, **{k: str(v) for k, v in files.items()}))
    return out


@pytest.fixture
def shards(packed, tmp_path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def test_clean_shards_say_what_the_source_says(clean, packed, capsys):
    assert run(packed) == 0
    from_shards = capsys.readouterr().out
    assert run(clean, "n_chans=4") == 0
    from_source = capsys.readouterr().out

    def comparable(out: str) -> list[str]:
        lines = out.splitlines()[1:-1]  # how it was sniffed, how long it took
        return [line for line in lines if "picture in the folders" not in line]  # those are not in shards

    assert comparable(from_shards) == comparable(from_source)


def test_trials_of_shards_are_drawn_from_where_they_begin(packed):
    """The customary cut of this data set begins 20 ms after onset."""
    pytest.importorskip("mne", reason="figures need the mne extra")
    from neuroimagen.doctor import plots

    study = ShardStudy(packed, Faults(collect=True))
    drawn = plots.evoked(Examination(study))
    axes = [one for one in drawn.axes if one.get_xlabel() == "ms from picture onset"]
    assert study.tmin == 0.02 and axes and axes[0].lines[0].get_xdata()[0] == 20


def test_all_damage_to_shards_is_listed(shards, tmp_path, capsys):
    val = shards / "val-000000.tar"
    data = bytearray(val.read_bytes())
    place = data.index(b"\xff\xd8\xff")  # of a JPEG; its tables follow
    data[place + 40 : place + 400] = bytes(360)
    val.write_bytes(data)
    (shards / "train-000001.tar").unlink()
    (shards / "train-000077.tar").write_bytes(b"")
    test = shards / "test-000000.tar"
    test.write_bytes(test.read_bytes()[:-512])
    (shards / "test.index.npy").write_bytes(b"x")
    assert run(shards, f"report={tmp_path / 'report'}") == 1
    faults = (tmp_path / "report" / "faults.txt").read_text()
    assert f"{val} was changed since it was made (SHA-256 differs)" in faults
    assert re.search(rf"picture of {val}: trial s\d_i\d{{4}}_t\d{{5}} cannot be decoded", faults)
    assert "its picture differs from another trial's of the same image name" in faults
    assert f"{shards / 'train-000001.tar'} is missing" in faults
    assert f"{shards / 'train-000077.tar'} is not in the manifest" in faults
    assert re.search(rf"{test} has \d+ bytes where the manifest says \d+", faults)
    assert "6 faults in 44 trials" in capsys.readouterr().out  # 16 were in the tar that is gone


def test_wrong_statistics_and_a_wrong_index_are_both_listed(shards, capsys):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["channel_std"][2] *= 1.1
    manifest["subjects"] = [1]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    rows = np.load(shards / "val.index.npy")
    np.save(shards / "val.index.npy", rows[::-1])
    assert run(shards) == 1
    out = capsys.readouterr().out
    assert "channel statistics are not those of the train split (channel 2)" in out
    assert "the subjects in the tars are [1, 2], not the manifest's" in out
    assert "val.index.npy does not fit the tars" in out
    assert out.startswith(f"{shards}: a shard directory") and "3 faults in 60 trials" in out


def test_text_from_files_is_neither_markup_nor_terminal_codes(shards, tmp_path, capsys):
    manifest = json.loads((shards / "manifest.json").read_text())
    evil = "<script>alert(1)</script>\x1b[31m$\\frac{$"
    manifest |= {"notes": [evil], "protocol": evil, "units": evil}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert run(shards, f"report={tmp_path / 'report'}") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "<script>alert(1)</script>?[31m" in out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 3
