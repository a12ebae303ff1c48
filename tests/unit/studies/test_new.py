"""`neuroimagen new`: its overlay packs what options by hand do, for files of every reader, and all stages take it."""

import gzip
import re
import runpy
import shutil
from pathlib import Path

import lab_files
import numpy as np
import pytest
import test_recording
from test_every_reader import MAKERS

from neuroimagen.cli import main
from neuroimagen.config import load_config
from neuroimagen.doctor.guess import FILL, Tables
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.recordings_tables import StudyFile

TRAINERS = sorted((Path(__file__).parents[3] / "trainers").glob("*.py"))
BY_HAND = {
    "perceivelab": ["splits=by_image", "n_chans=4"],
    "things_eeg2": ["subject=1", "repetitions=test"],
    "eeg_imagenet": ["splits=by_image", "eeg_dtype=float32"],
    "recording": [],
    "epochs": ["splits=by_image"],
    "epochs (BIDS)": ["splits=by_image", "window=[-0.1,0.8]", "baseline=[-0.1,0]", "band=[0.5,40]"],
}
STUDY = """
files: runs/*.csv
file_name: subject(?P<subject>\\d+)_(?P<run>\\w+)\\.
time: t
channels: [A, B]
marker: event
markers:
  - {value: 1, name: houses, pictures: houses/*.png}
  - {value: 2, name: faces, pictures: faces/*.png}
rate: 128
"""


def new(*arguments: object) -> int:
    return main(["new", *map(str, arguments)])


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if "trial/s" not in line]
    assert len(said) == 1 and said[0].startswith("error: "), said
    return said[0]


def packed(folder: Path, out: Path, *arguments: str) -> dict[str, bytes]:
    assert main(["shards", *arguments, f"out={out}"]) == 0
    return {path.name: path.read_bytes() for path in out.glob("*") if path.suffix in (".tar", ".npy")}


@pytest.mark.parametrize("name", MAKERS)
def test_the_overlay_packs_what_options_by_hand_do_and_every_stage_takes_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _ = MAKERS[name](tmp_path)
    files = [a for a in arguments if a.partition("=")[0] in ("eeg", "images", "trials")]
    dataset, hand = f"dataset={name.partition(' ')[0]}", [*files, *BY_HAND[name.removesuffix(" (timed)")]]
    if name == "recording":
        files = [f"eeg={tmp_path}/runs", f"images={tmp_path}", "markers=[1=houses,2=faces]"]
        (tmp_path / "study.yaml").write_text(STUDY)
        hand = [f"recording={tmp_path}/study.yaml"]
    out = tmp_path / "below" / "lab.yaml"
    assert new(out, dataset, *files) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(out) and any("train" in line and "test" in line for line in said)
    by_overlay = packed(tmp_path, tmp_path / "new", f"config={out}")
    assert by_overlay == packed(tmp_path, tmp_path / "hand", dataset, *hand) and len(by_overlay) >= 6
    for trainer in TRAINERS:
        schema = runpy.run_path(str(trainer), run_name="imported")["main"].__annotations__["config"]
        needed = [f"{f}=x" for f in ("shards", "run_dir", "features", "images") if f in schema.__dataclass_fields__]
        if trainer.stem == "contrastive":
            needed[needed.index("features=x")] = "features=[x]"
        stage = trainer.parents[1] / "configs" / f"{trainer.stem}.yaml"  # before the overlay, as launch/paper.sh has it
        given = [f"config={stage}", f"config={out}", *needed]
        config = load_config(schema, given, trainer.stem)
        if trainer.stem in ("brain2image", "neurovision"):
            config.check()
        if trainer.stem == "pixel_features":
            long = ShardSplit(tmp_path / "new", "train").manifest.n_times >= 64
            assert config.encoder == ("conv" if long else "lstm")
    text = out.read_text("utf-8")
    assert ("CAPTIONS=none" in text) == (name == "recording") == ("captions:" not in text)


def test_what_markers_show_is_left_to_fill_in_and_then_it_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MAKERS["recording"](tmp_path)
    out, study = tmp_path / "lab.yaml", tmp_path / "lab_recordings.yaml"
    assert new(out, "dataset=recording", f"eeg={tmp_path}/runs", f"images={tmp_path}") == 1
    said = capsys.readouterr().out
    assert "markers: what they show of faces, houses: 1 (48 times), 2 (48 times)" in said
    assert "# left to do" in out.read_text() and f"recording={study}" in said
    assert main(["shards", f"config={out}", f"out={tmp_path}/shards"]) == 2
    assert FILL in one_sentence(capsys)
    text = study.read_text().replace(f"'{FILL}class'", "house", 1).replace(f"'{FILL}class'", "face", 1)
    for folder in ("houses", "faces"):
        text = text.replace(f"'{FILL}picture, or pattern of pictures'", f"{folder}/*.png", 1)
    study.write_text(text)
    assert new(out, "dataset=recording", f"recording={study}") == 2
    assert "is not overwritten" in one_sentence(capsys)
    out.unlink()
    assert new(out, "dataset=recording", f"eeg={tmp_path}/runs", f"images={tmp_path}") == 2
    assert f"give recording={study}" in one_sentence(capsys) and study.read_text() == text and not out.exists()
    assert new(out, "dataset=recording", f"recording={study}") == 0
    assert packed(tmp_path, tmp_path / "shards", f"config={out}")


def test_killed_between_its_two_files_the_same_command_goes_on(tmp_path: Path) -> None:
    MAKERS["recording"](tmp_path)
    command = [tmp_path / "lab.yaml", "dataset=recording", f"eeg={tmp_path}/runs", f"images={tmp_path}"]
    command.append("markers=[1=houses,2=faces]")
    assert new(*command) == 0
    first = (tmp_path / "lab.yaml").read_bytes()
    (tmp_path / "lab.yaml").unlink()
    assert new(*command) == 0 and (tmp_path / "lab.yaml").read_bytes() == first


def write_table(path: Path, mark: str = ";") -> None:
    """60 s of a lab's table at 250 Hz: ms from some start, decimal commas, mV, names for markers, and a counter."""
    rng, n = np.random.default_rng(int(path.name[:2])), 60 * 250
    eeg = rng.normal(0, 0.02, (n, 3))
    names = [""] * n
    for trial in range(50):
        names[250 * (trial + 4)] = ["House", "response", "Face"][trial % 3]
    lines = [mark.join(["Packet", "Time (ms)", "Fz", "Pz", "EOG", "AUX 1", "Stimulus"])]
    for i in range(n):
        numbers = [f"{x:.6f}".replace(".", ",") for x in (1e6 + 4 * i, *eeg[i], rng.normal())]
        lines.append(mark.join([str(i % 256), *numbers, names[i]]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode()) if path.suffix == ".gz" else "\n".join(lines).encode())


def test_columns_clock_units_and_names_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    test_recording.write_pictures(tmp_path / "pictures")
    for run in ("01", "02"):
        write_table(tmp_path / "P7" / f"{run}.csv.gz")
    out = tmp_path / "lab.yaml"
    assert new(out, "dataset=recording", f"eeg={tmp_path}/P7", f"images={tmp_path}/pictures", "subject=7") == 0
    study = load_config(StudyFile, [f"config={tmp_path / 'lab_recordings.yaml'}"], "shards")
    assert (study.time, study.time_units, study.rate, study.units) == ("Time (ms)", "ms", 250.0, "mV")
    assert (study.channels, study.marker, study.ignore_markers) == (["Fz", "Pz"], "Stimulus", ["response"])
    assert [(m.value, m.name) for m in study.markers] == [("Face", "faces"), ("House", "houses")]
    assert study.resample == 125 and "response" in capsys.readouterr().out
    assert packed(tmp_path, tmp_path / "shards", f"config={out}")


def test_what_columns_do_not_tell_is_left_to_fill_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for run in "ab":  # rows are counted, amplitudes are counts of an amplifier, nothing looks like a marker
        rows = [f"{i},{rng.normal(0, 5e4):.0f},{rng.normal(0, 5e4):.0f}" for i in range(500)]
        (tmp_path / f"rest_{run}.csv").write_text("\n".join(["index,c1,c2", *rows]))
    guess = Tables(str(tmp_path), "", {}, [])
    assert [left.partition(":")[0] for left in guess.left] == ["file_name", "marker", "rate", "units", "markers"]
    assert guess.lines["time"].value == "index" and guess.lines["channels"].value == ["c1", "c2"]
    assert new(tmp_path / "lab.yaml", "dataset=recording", f"eeg={tmp_path}") == 1
    assert capsys.readouterr().out.count("  - ") == 5
    assert main(["shards", f"config={tmp_path / 'lab.yaml'}", f"out={tmp_path}/shards"]) == 2
    assert FILL in one_sentence(capsys)


def test_pictures_that_markers_name_and_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in "ab":
        test_recording.write_run(tmp_path / "runs" / f"subject1_{run}.csv", ord(run))
        path = tmp_path / "runs" / f"subject1_{run}.csv"
        path.write_text(
            re.sub(r",1$", ",h1.png", re.sub(r",2$", ",gone.png", path.read_text(), flags=re.M), flags=re.M)
        )
    test_recording.write_pictures(tmp_path)
    assert new(tmp_path / "lab.yaml", "dataset=recording", f"eeg={tmp_path}/runs", f"images={tmp_path}/houses") == 1
    said = capsys.readouterr().out
    assert "markers: 1 pictures are not below images=: gone.png" in said and "h1.png" not in said
    assert "pictures: " + str(tmp_path / "houses" / "h1.png") in (tmp_path / "lab_recordings.yaml").read_text()


@pytest.mark.parametrize("name", ["perceivelab", "epochs"])
def test_pictures_that_are_missing_are_counted_and_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _ = MAKERS[name](tmp_path)
    gone = sorted((tmp_path / "images").rglob("*.jp*g") if name == "epochs" else (tmp_path / "images").rglob("*.JPEG"))[
        :2
    ]
    for picture in gone:
        picture.unlink()
    files = [a for a in arguments if a.partition("=")[0] in ("eeg", "images", "trials")]
    assert new(tmp_path / "lab.yaml", f"dataset={name}", *files) == 1
    said, text = capsys.readouterr().out, (tmp_path / "lab.yaml").read_text("utf-8")
    assert "2 faults" in said and all(picture.name in said and picture.name in text for picture in gone)
    assert main(["shards", f"config={tmp_path / 'lab.yaml'}", f"out={tmp_path}/shards"]) == 2


def test_a_table_of_events_that_are_called_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab_files.write_epochs(tmp_path)
    classes = {name: line.split(",")[2] for name, line in zip(lab_files.NAMES, lab_files.TABLE[1:], strict=True)}
    pictures = sorted((tmp_path / "images").rglob("*.jpg"))
    for name, picture in zip(lab_files.NAMES, pictures, strict=True):
        target = tmp_path / "called" / classes[name] / f"{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    files = ["dataset=epochs", f"eeg={tmp_path}/eeg", f"images={tmp_path}/called"]
    assert new(tmp_path / "lab.yaml", *files) == 0
    table = (tmp_path / "lab_trials.csv").read_text("utf-8").splitlines()
    assert table[0] == "event,image,class"
    assert sorted(table[1:]) == sorted(f"{name},{kind}/{name}.jpg,{kind}" for name, kind in classes.items())
    assert packed(tmp_path, tmp_path / "shards", f"config={tmp_path / 'lab.yaml'}")
    (tmp_path / "lab.yaml").unlink()
    assert (
        new(tmp_path / "other.yaml", *files[:2], f"images={tmp_path}/images") == 1
    )  # whose pictures are called otherwise
    assert "these 20 events: S0 (3 times), S1 (3 times)" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["html", "cut", "empty", "missing", "short"])
def test_tables_that_cannot_be_read_are_one_sentence_and_nothing_is_written(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "P7" / "01.csv.gz"
    write_table(victim)
    write_table(tmp_path / "P7" / "02.csv.gz")
    whole = victim.read_bytes()
    (tmp_path / "pictures").mkdir()
    content = {"html": b"<html>404</html>", "cut": whole[: len(whole) // 2], "empty": b""}
    content["short"] = gzip.compress(b"\n".join(gzip.decompress(whole).split(b"\n")[:20]))
    shutil.rmtree(victim.parent) if how == "missing" else victim.write_bytes(content[how])
    assert new(tmp_path / "lab.yaml", "dataset=recording", f"eeg={tmp_path}/P7", f"images={tmp_path}/pictures") == 2
    assert ("P7" if how == "missing" else victim.name) in one_sentence(capsys)
    assert not list(tmp_path.glob("lab*"))


def test_what_cannot_be_given_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MAKERS["recording"](tmp_path)
    out, tables = tmp_path / "lab.yaml", ["dataset=recording", f"eeg={tmp_path}/runs", f"images={tmp_path}"]
    for arguments, said in (
        (["eeg=x"], "please give dataset=..."),
        (["dataset=recording"], "needs eeg=... or recording=..."),
        (["dataset=epochs", "eeg=x"], "needs images=..."),
        (["dataset=perceivelab", "eeg=x", "images=y", "markers=[1=a]"], "leave it out"),
        (["dataset=perceivelab", "eeg=x", "images=y", "task=a"], "task=a is for dataset=epochs"),
        (["dataset=recording", f"recording={tmp_path}/study.yaml", "eeg=x"], "x is for dataset=eeg_imagenet"),
        ([*tables, "markers=[1=houses,2=cars]"], "2=cars"),
        ([*tables, "markers=[1=houses,7=faces]"], "7=faces"),
        ([*tables[:2], f"images={tmp_path}/none"], "is not a folder"),
    ):
        assert new(out, *arguments) == 2
        assert said in one_sentence(capsys) and not list(tmp_path.glob("lab*"))


@pytest.mark.skipif(not test_recording.REAL.is_dir(), reason="the real recordings are not beside the project")
def test_real_recordings_as_the_study_file_by_hand_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in [*sorted(test_recording.REAL.glob("subject1_*"))[:2], *test_recording.REAL.glob("subject11_*")]:
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "raw")
    stimuli = test_recording.REAL.parents[1] / "stimuli" / "face_house"
    files = ["dataset=recording", f"eeg={tmp_path}/raw", f"images={stimuli}"]
    assert new(tmp_path / "lab.yaml", *files, "markers=[1=houses/*.3.jpg,2=faces/*_3.jpg]") == 0
    assert "without subject 11, who has fewer than two runs" in capsys.readouterr().out
    hand = (test_recording.PROJECT / "configs" / "n170_study.yaml").read_text()
    hand = hand.replace("../../shared/real/eeg_n170_muse/raw", f"{tmp_path}/raw").replace(
        "../../shared/real", f"{stimuli.parents[1]}"
    )
    (tmp_path / "hand.yaml").write_text(hand)
    packed(tmp_path, tmp_path / "new", f"config={tmp_path / 'lab.yaml'}")
    packed(tmp_path, tmp_path / "hand", "dataset=recording", f"recording={tmp_path / 'hand.yaml'}")
    for split in ("train", "val", "test"):
        ours, theirs = ShardSplit(tmp_path / "new", split), ShardSplit(tmp_path / "hand", split)
        assert ours.keys == theirs.keys and len(ours) > 8
        for i in range(len(ours)):
            np.testing.assert_array_equal(ours.eeg(i), theirs.eeg(i))
            assert ours.picture(i) == theirs.picture(i) and ours.info(i)["class_name"] == theirs.info(i)["class_name"]


def test_any_name_of_a_folder_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "it's: [a] #b\x07 犬"
    MAKERS["perceivelab"](folder)
    images, out = (folder / "images").rename(folder / "pictures\udcff"), folder / "my lab.yaml"  # torch opens no \udcff
    assert new(out, "dataset=perceivelab", f"eeg={folder}/eeg.pth", f"images={images}") == 0
    assert packed(tmp_path, tmp_path / "shards", f"config={out}")
