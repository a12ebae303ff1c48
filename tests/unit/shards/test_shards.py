"""Shards: written whole or not at all, the same bytes each time, and nothing wrong goes unnoticed."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from perceivelab_files import jpeg, write_study
from PIL import Image
from whole_shards import check_shards

from neuroimagen.cli import main
from neuroimagen.files import sha256
from neuroimagen.shards import pack as shards
from neuroimagen.shards.format import SPLITS, ShardSplit, read_manifest
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.studies.study import Study, Trial


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder)


def config(folder: Path, out: Path, **kwargs) -> ShardsConfig:
    files = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth"}
    given = {key: str(path) for key, path in files.items()}
    return ShardsConfig(out=str(out), n_chans=4, **({"shard_size": 16} | given | kwargs))


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shards"
    make_shards(config(study[0], out))
    return out


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "shards"))


def test_every_trial_comes_back(study, made):
    folder, content = study
    seen = set()
    for split in SPLITS:
        trials = ShardSplit(made, split)
        for i in range(len(trials)):
            info = trials.info(i)
            source = content["dataset"][info["trial_index"]]
            np.testing.assert_array_equal(trials.eeg(i), source["eeg"][:, 20:460].half().float().numpy())
            path = folder / "images" / info["wnid"] / f"{info['image']}.JPEG"
            assert trials.picture(i) == path.read_bytes()
            assert info["image"] == content["images"][source["image"]]
            assert (info["subject"], info["label"]) == (source["subject"], source["label"])
            assert info["trial"] == trials.keys[i]
            seen.add(info["trial_index"])
    assert seen == set(range(60))


def test_manifest_has_the_train_statistics(study, made):
    manifest = read_manifest(made)
    _, content = study
    train = ShardSplit(made, "train")
    chosen = [content["dataset"][train.info(i)["trial_index"]]["eeg"][:, 20:460].double() for i in range(len(train))]
    stacked = np.concatenate([eeg.numpy() for eeg in chosen], axis=1)
    np.testing.assert_allclose(manifest.channel_mean, stacked.mean(1), atol=1e-12)
    np.testing.assert_allclose(manifest.channel_std, stacked.std(1), rtol=1e-12)
    assert [len(manifest.splits[s]["shards"]) for s in SPLITS] == [3, 1, 1]
    assert manifest.simulated is False and manifest.subjects == [1, 2] and manifest.n_times == 440


def test_webdataset_reads_them(made):
    files = [str(path) for path in sorted(made.glob("train-*.tar"))]
    samples = list(wds.WebDataset(files, shardshuffle=False))
    trials = ShardSplit(made, "train")
    assert [sample["__key__"] for sample in samples] == trials.keys
    eeg = np.frombuffer(samples[5]["eeg"], "<f2").reshape(4, 440)
    np.testing.assert_array_equal(eeg.astype(np.float32), trials.eeg(5))


def test_same_input_same_bytes(study, made, tmp_path):
    make_shards(config(study[0], tmp_path / "again"))
    names = sorted(path.name for path in made.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        if name != "manifest.json":
            assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert read_manifest(made).splits == read_manifest(tmp_path / "again").splits


def test_made_again_by_the_same_command(study, tmp_path, capsys):
    out = tmp_path / "shards"
    make_shards(config(study[0], out))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    make_shards(config(study[0], out))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"was made with eeg_dtype=float16: give another out="):
        make_shards(config(study[0], out, eeg_dtype="float32"))
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_changed_input_is_noticed(tmp_path):
    write_study(tmp_path, seed=1)
    make_shards(config(tmp_path, tmp_path / "shards"))
    write_study(tmp_path, seed=2)
    with pytest.raises(ValueError, match=r"was made before .*eeg\.pth changed"):
        make_shards(config(tmp_path, tmp_path / "shards"))


def test_a_changed_picture_is_noticed(tmp_path, capsys):
    """Also if it is as large as before, and of the same time."""
    write_study(tmp_path, seed=1)
    make_shards(config(tmp_path, tmp_path / "shards"))
    picture = min((tmp_path / "images").rglob("*.JPEG"))
    known, data = picture.stat(), picture.read_bytes()
    os.utime(picture)
    capsys.readouterr()
    make_shards(config(tmp_path, tmp_path / "shards"))
    assert "nothing to do" in capsys.readouterr().out
    picture.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    os.utime(picture, ns=(known.st_atime_ns, known.st_mtime_ns))
    with pytest.raises(ValueError, match=rf"was made before {picture} changed"):
        make_shards(config(tmp_path, tmp_path / "shards"))


def test_a_folder_of_something_else_is_left_alone(study, tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not a shard directory"):
        make_shards(config(study[0], tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_simulated_is_told_by_the_file_beside_the_eeg(tmp_path):
    write_study(tmp_path)
    (tmp_path / "simulation.json").write_text("{}")
    make_shards(config(tmp_path, tmp_path / "shards"))
    assert read_manifest(tmp_path / "shards").simulated is True
    assert "(SIMULATED)" in check_shards(tmp_path / "shards")


def test_a_damaged_picture_leaves_nothing(tmp_path):
    write_study(tmp_path)
    path = tmp_path / "images" / "n03584829" / "n03584829_7.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"n03584829_7\.JPEG cannot be decoded"):
        make_shards(config(tmp_path, tmp_path / "shards"))
    assert not list(tmp_path.glob("shards*"))


@dataclasses.dataclass
class MemoryStudy(Study):
    """A study of given trials, the first three of which are train, val and test."""

    trials: list[Trial]
    n_chans: int
    n_times: int
    classes: list[dict]
    dataset: str = "memory"
    sfreq: float = 250.0
    units: str = "uV"
    split_by: str = "image"
    protocol: str = "given"
    inputs: list[Path] = dataclasses.field(default_factory=list)

    __post_init__ = Study.__init__

    @property
    def splits(self):
        return {"train": [0, *range(3, len(self.trials))], "val": [1], "test": [2]}

    def trial(self, index: int) -> Trial:
        return self.trials[index]

    def __len__(self) -> int:
        return len(self.trials)


def memory_study(eegs: list[np.ndarray], name: str = "iron", picture=None) -> MemoryStudy:
    rng = np.random.default_rng(0)
    trials = [
        Trial(f"t{i}", eeg, picture or jpeg(rng), 1, 7, "n1", name, f"n1_{name}_{i}", {"run": i})
        for i, eeg in enumerate(eegs)
    ]
    return MemoryStudy(trials, *eegs[0].shape, [{"label": 7, "wnid": "n1", "name": name}])


def pack(study, out: Path, **kwargs) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "open_study", lambda config: study)
        make_shards(ShardsConfig(out=str(out), eeg="given", images="given", **kwargs))
    return out


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.tuples(st.integers(1, 5), st.integers(20, 30), st.integers(3, 7)),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from([">f4", "<f8", "<f4", "<f2", "<i2"]),
    text,
    st.integers(1, 4),
    st.integers(0, 1 << 30),
)
def test_round_trip(tmp_path_factory, shape, stored, dtype, name, shard_size, seed):
    """Any shape, any array type a reader may hand over, any class name, any number of trials a tar."""
    rng = np.random.default_rng(seed)
    n_chans, n_times, n = shape
    eegs = [(rng.standard_normal((n_times, n_chans)) * 20).astype(dtype).T for _ in range(n)]
    study = memory_study(eegs, name)
    out = pack(study, tmp_path_factory.mktemp("trip") / "out", eeg_dtype=stored, shard_size=shard_size)
    for split, indices in study.splits.items():
        trials = ShardSplit(out, split)
        assert trials.keys == [f"t{i}" for i in indices]
        for position, index in enumerate(indices):
            expected = eegs[index].astype(np.float32).astype("<f2" if stored == "float16" else "<f4")
            np.testing.assert_array_equal(trials.eeg(position), expected.astype(np.float32))
            info = trials.info(position)
            assert info["class_name"] == name and info["image"] == f"n1_{name}_{index}" and info["run"] == index
            assert trials.picture(position) == study.trials[index].jpeg
    assert "every shard" in check_shards(out)


def noise(n: int = 3, scale: float = 1.0, offset: float = 0.0) -> list[np.ndarray]:
    return list((np.random.default_rng(0).standard_normal((n, 2, 50)) * scale + offset).astype(np.float32))


@pytest.mark.parametrize(
    "eegs, sentence",
    [
        (noise(scale=1e5), r"trial t0: a value of .*e\+05 does not fit float16: mend the units of the file"),
        (noise(scale=1e-7), r"trial t0: a signal of .*e-0[78] does not fit float16"),
        (
            noise(offset=4000.0),
            r"t0: a signal of .* on an offset of 4e\+03 does not fit float16: .* baseline= or band=",
        ),
        (noise(offset=1e5), r"t0: a signal of .* on an offset of 1e\+05 does not fit float16: .* baseline= or band="),
    ],
)
def test_float16_that_would_lose_the_signal_is_refused(tmp_path, eegs, sentence):
    with pytest.raises(ValueError, match=sentence):
        pack(memory_study(eegs), tmp_path / "out")
    check_shards(pack(memory_study(eegs), tmp_path / "out", eeg_dtype="float32"))


def test_one_electrode_that_hardly_moves_is_no_reason_to_refuse(tmp_path):
    eegs = list((np.random.default_rng(0).standard_normal((3, 3, 50)) * 20).astype(np.float32))
    eegs[0][1] = 800 + eegs[0][1] * 1e-3
    check_shards(pack(memory_study(eegs), tmp_path / "out"))


def spoil(**changes):
    def apply(study: MemoryStudy) -> None:
        for key, value in changes.items():
            setattr(study.trials[1], key, value)

    return apply


@pytest.mark.parametrize(
    "change, sentence",
    [
        (spoil(key="../../etc/passwd"), r"trial \.\./\.\./etc/passwd: a key is"),
        (spoil(key="t0"), "trial t0: a key is .* unique"),
        (spoil(key="a.b"), "trial a.b: a key is"),
        (spoil(eeg=np.zeros((2, 49), np.float32)), r"shape \(2, 49\) instead of \(2, 50\)"),
        (spoil(eeg=np.full((2, 50), np.inf, np.float32)), "trial t1 holds NaN or infinity"),
        (spoil(label=3), "trial t1 has label 3"),
        (spoil(wnid="n2"), "trial t1 has label 7 .n2."),
        (spoil(image="n1_iron_0"), "image n1_iron_0 is in both train and val"),
        (spoil(jpeg=b"GIF89a"), "picture n1_iron_1 cannot be decoded .not a JPEG or PNG"),
    ],
)
def test_no_reader_can_slip_in_a_wrong_trial(tmp_path, change, sentence):
    study = memory_study(noise())
    change(study)
    with pytest.raises(ValueError, match=sentence):
        pack(study, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_png_pictures_and_twins_across_splits(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "PNG")
    out = pack(memory_study(noise(), picture=buffer.getvalue()), tmp_path / "out")
    with tarfile.open(out / "val-000000.tar") as tar:
        assert tar.getnames() == ["t1.eeg", "t1.json", "t1.png"]
    assert ShardSplit(out, "val").picture(0) == buffer.getvalue()
    assert "n1_iron_0 (train) and n1_iron_1 (val) are the same picture" in check_shards(out)


def test_split_by_run_may_repeat_pictures_but_not_runs(tmp_path):
    study = memory_study(noise(), picture=jpeg(np.random.default_rng(0)))
    study.split_by = "run"
    for trial in study.trials:
        trial.image = "n1_same"
    check_shards(pack(study, tmp_path / "out"))
    study.trials[1].extra = {"run": 0}  # val may be the end of a train run
    check_shards(pack(study, tmp_path / "tail"))
    study.trials[2].extra = {"run": 0}
    with pytest.raises(ValueError, match=r"its run .* is in both train and test"):
        check_shards(pack(study, tmp_path / "bad"))


def test_check_reports(made):
    report = check_shards(made)
    assert "train         40      20       3" in report
    assert "3 classes, 4 channels x 440 samples at 1000 Hz" in report
    assert "sorrel, parachute, iron" in report and "SIMULATED" not in report


def rewrite(path: Path, change) -> None:
    """Rewrite a tar member by member: change(name, data) -> (name, data) or None."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            changed = change(name, data)
            if changed:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                tar.addfile(info, io.BytesIO(changed[1]))


def agree(folder: Path) -> None:
    """Make manifest and index agree with changed tars, as a careful forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in SPLITS:
        for tar in manifest["splits"][split]["shards"]:
            path = folder / tar["name"]
            tar["bytes"], tar["sha256"] = path.stat().st_size, sha256(path)
        (folder / f"{split}.index.npy").unlink(missing_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def set_json(**changes):
    def change(name, data):
        return (name, json.dumps(json.loads(data) | changes).encode() if name.endswith(".json") else data)

    return change


def test_a_truncated_tar_is_refused_on_opening(copy, capsys):
    tar = copy / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-10240])
    with pytest.raises(ValueError, match=r"train-000001\.tar has \d+ bytes where .* truncated or was changed"):
        ShardSplit(copy, "train")
    assert main(["check", str(copy)]) == 1
    assert "train-000001.tar has" in capsys.readouterr().out
    agree(copy)  # even when the size is forged and only the count is left to tell
    with pytest.raises(ValueError, match=r"do not hold the trials|truncated or damaged"):
        ShardSplit(copy, "train")


def test_one_changed_byte_is_found(copy):
    tar = copy / "test-000000.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"test-000000\.tar was changed since it was made"):
        check_shards(copy)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda name, data: (f"../{name}", data), r"holds '\.\./s\d.*', which neuroimagen shards does not write"),
        (lambda name, data: (name.replace(".json", ".pkl"), data), r"\.pkl', which neuroimagen shards does not write"),
        (lambda name, data: None if name.endswith(".eeg") else (name, data), r"is not whole \(it has jpg, json\)"),
        (lambda name, data: (name, data[:-2] if name.endswith(".eeg") else data), "EEG of val does not have the size"),
        (lambda name, data: (name, b"{" if name.endswith(".json") else data), "damaged JSON"),
        (lambda name, data: (name, data[:200] if name.endswith(".jpg") else data), "cannot be decoded"),
        (lambda name, data: (name, data[:-2] + b"\xff\x7f" if name.endswith(".eeg") else data), "holds NaN"),
        (set_json(label=9), "JSON of another trial or class"),
        (set_json(label="1"), "JSON without one of"),
        (set_json(trial="x"), "JSON of another trial or class"),
        (set_json(image="n02389026_7"), "n02389026_7"),
    ],
)
def test_a_forged_tar_is_found(copy, change, sentence):
    rewrite(copy / "val-000000.tar", change)
    agree(copy)
    with pytest.raises(ValueError, match=sentence):
        check_shards(copy)


def test_an_index_is_made_again_and_a_wrong_one_refused(copy):
    keys = ShardSplit(copy, "train").keys
    path = copy / "train.index.npy"
    rows = np.load(path)
    path.unlink()
    assert ShardSplit(copy, "train").keys == keys
    rows["eeg"][0] = rows["eeg"][1]
    np.save(path, rows)
    with pytest.raises(ValueError, match=r"train\.index\.npy does not fit the tars"):
        check_shards(copy)
    rows["eeg"][0, 0] = 1 << 40
    np.save(path, rows)
    with pytest.raises(ValueError, match="does not have the size"):
        ShardSplit(copy, "train")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)  # a pickle in npy dress
    with pytest.raises(ValueError, match=r"train\.index\.npy is damaged"):
        ShardSplit(copy, "train")
    for header in (b"{'descr': [(\n", b"  1\n 2\n", b"[" * 5000):  # numpy lets out what Python's tokenizer raises
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for read in (check_shards, lambda folder: ShardSplit(folder, "train")):
            with pytest.raises(ValueError, match=r"train\.index\.npy is damaged"):
                read(copy)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"format": "zip"}, "is not a manifest of neuroimagen shards"),
        ({"version": 2}, "has version 2; this program reads version 1"),
        ({"channel_mean": [0.0]}, "is damaged or was changed by hand"),
        ({"channel_mean": [1.0] * 4}, "channel statistics are not those of the train split"),
        ({"channel_std": [2.0] * 4}, "channel statistics are not those of the train split"),
        ({"subjects": [1]}, r"subjects in the tars are \[1, 2\]"),
        ({"classes": []}, "JSON of another trial or class"),
        ({"splits": {}}, "is damaged or was changed by hand"),
    ],
)
def test_a_changed_manifest_is_found(copy, change, sentence):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        check_shards(copy)


def test_a_tar_name_cannot_leave_the_directory(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"]["shards"][0]["name"] = "val-../../x.tar"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is damaged or was changed by hand"):
        read_manifest(copy)


def test_no_manifest_and_left_over_tars(copy, tmp_path):
    (copy / "train-000099.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-000099\.tar is not in the manifest"):
        check_shards(copy)
    (copy / "val-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"val-000000\.tar is missing"):
        ShardSplit(copy, "val")
    with pytest.raises(ValueError, match="is not a shard directory"):
        read_manifest(tmp_path / "nowhere")


def test_a_copied_split_opens_its_own_files(made):
    """So that a process that gets one does not read another process's files by their numbers."""
    split = ShardSplit(made, "train")
    first = split.picture(0)
    twin = pickle.loads(pickle.dumps(split))
    assert split.files and not twin.files and twin.picture(0) == first
