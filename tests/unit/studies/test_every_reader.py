"""What every reader must do, whatever its files: a new data set adds its files to MAKERS and is held to all of this."""

import dataclasses
import pickle
import re
import typing
from pathlib import Path

import eeg_imagenet_files
import lab_files
import numpy as np
import perceivelab_files
import pytest
import test_recording
import things_files

from neuroimagen.cli import main
from neuroimagen.config import load_config, stage_section
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import FREE, ShardsConfig
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.open import DATASETS, SourceConfig, chosen, open_study
from neuroimagen.studies.study import SPLITS, Faults

pytest.importorskip("mne", reason="a lab's own files are read by mne (an extra)")


def perceivelab(folder: Path) -> tuple[list[str], Path]:
    perceivelab_files.write_study(folder)
    files = [f"eeg={folder}/eeg.pth", f"images={folder}/images", f"splits_file={folder}/splits.pth"]
    return [*files, "n_chans=4"], folder / "eeg.pth"


def things(folder: Path) -> tuple[list[str], Path]:
    things_files.write_study(folder)
    victim = folder / "eeg" / "sub-02" / "preprocessed_eeg_test.npy"
    return [f"eeg={folder}/eeg", f"images={folder}/images"], victim


def eeg_imagenet(folder: Path) -> tuple[list[str], Path]:
    eeg_imagenet_files.write_study(folder)
    files = [f"eeg={folder}/eeg", f"images={folder}/images", "eeg_dtype=float32"]
    return files, folder / "eeg" / "EEG-ImageNet_2.pth"


def recording(folder: Path) -> tuple[list[str], Path]:
    for subject in (1, 2):
        for run in "ab":
            test_recording.write_run(folder / "runs" / f"subject{subject}_{run}.csv", 2 * subject + ord(run))
    test_recording.write_pictures(folder)
    return [f"recording={folder}/study.yaml"], folder / "runs" / "subject2_b.csv"


def epochs(folder: Path) -> tuple[list[str], Path]:
    lab_files.write_epochs(folder)
    files = [f"eeg={folder}/eeg", f"images={folder}/images", f"trials={folder}/trials.csv", "splits=by_image"]
    return files, folder / "eeg" / "sub-02_run-a-epo.fif"


def bids(folder: Path) -> tuple[list[str], Path]:
    pytest.importorskip("mne_bids")
    lab_files.write_bids(folder)
    files = [f"eeg={folder}/bids", f"images={folder}/images", f"trials={folder}/trials.csv"]
    return [
        *files,
        "splits=by_image",
        "window=[0,0.4]",
    ], folder / "bids" / "sub-02" / "eeg" / "sub-02_task-view_run-1_eeg.vhdr"


MAKERS = {
    "perceivelab": perceivelab,
    "things_eeg2": things,
    "eeg_imagenet": eeg_imagenet,
    "recording": recording,
    "epochs": epochs,
    "epochs (BIDS)": bids,
}
SOME = {int: "1", float: "1", bool: "true", str: "a", list[int]: "[1]", list[str]: "[a]"}
OPTIONS = {field.name for field in dataclasses.fields(SourceConfig)}


@dataclasses.dataclass
class Lab:
    """Files of one data set: the arguments that open them, and a file of EEG."""

    dataset: str
    arguments: list[str]
    victim: Path

    def config(self, *more: str) -> ShardsConfig:
        return load_config(ShardsConfig, ["out=x", *self.arguments, *more], "shards")


@pytest.fixture(scope="module", params=MAKERS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    name = request.param.partition(" ")[0]
    arguments, victim = MAKERS[request.param](tmp_path_factory.mktemp(name))
    return Lab(name, [f"dataset={name}", *arguments], victim)


def test_no_data_set_is_forgotten() -> None:
    assert {name.partition(" ")[0] for name in MAKERS} == set(DATASETS)


def test_a_config_may_be_changed_and_copied(lab: Lab) -> None:
    config = lab.config()
    config.subject = 2
    for copied in (config, pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert chosen(copied) == chosen(lab.config("subject=2"))
    assert chosen(dataclasses.replace(config, seed=3)).seed == 3


def test_trials_are_what_the_study_says(lab: Lab) -> None:
    study = open_study(lab.config())
    assert study.dataset == lab.dataset and not study.simulated and study.units and study.sfreq > 0
    assert study.tmin is not None and study.split_by in ("image", "run") and "\n" not in study.protocol
    assert study.channels is None or len(study.channels) == len(set(study.channels)) == study.n_chans
    assert study.inputs and all(path.is_file() for path in study.inputs) and lab.victim in study.inputs
    known = {c["label"]: (c["wnid"], c["name"]) for c in study.classes}
    assert len(known) == len(study.classes) > 1 and len(set(known.values())) == len(known)
    assert tuple(study.splits) == SPLITS and all(study.splits.values())
    of_split = [(name, index) for name in SPLITS for index in study.splits[name]]
    assert len({index for _, index in of_split}) == len(of_split) <= len(study)
    keys, sides = set(), {}
    for split, index in of_split:
        trial = study.trial(index)
        assert trial.eeg.shape == (study.n_chans, study.n_times) and trial.eeg.dtype == np.float32
        assert np.isfinite(trial.eeg).all() and known[trial.label] == (trial.wnid, trial.class_name)
        assert study.facts(index)[:3] == (trial.subject, trial.image, trial.label) and trial.subject > 0
        assert re.fullmatch(r"[\w-]+", trial.key) and trial.key not in keys and Path(str(trial.jpeg)).is_file()
        keys.add(trial.key)
        unit = trial.image if study.split_by == "image" else (trial.subject, trial.extra["run"])
        sides.setdefault(unit, set()).add(split)
    for found in sides.values():  # the end of a run may be val while the rest of it is train
        assert len(found) == 1 or (study.split_by == "run" and "test" not in found)


def test_a_subject_alone_keeps_its_trials_and_their_sides(lab: Lab) -> None:
    every, alone = open_study(lab.config()), open_study(lab.config("subject=2"))

    def trials(study: typing.Any) -> dict[str, tuple[str, bytes]]:
        found = [(split, study.trial(i)) for split in SPLITS for i in study.splits[split]]
        return {trial.key: (split, trial.eeg.tobytes()) for split, trial in found if trial.subject == 2}

    assert trials(alone) == trials(every) and len(trials(alone)) > 10
    assert {alone.facts(i).subject for own in alone.splits.values() for i in own} == {2}
    with pytest.raises(ValueError, match="subject=?.?99") as refused:
        open_study(lab.config("subject=99"))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none_is_one_sentence(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = lab.victim.read_bytes()
    try:
        lab.victim.write_bytes(b"<html><body>404 Not Found</body></html>\n")
        assert main(["shards", *lab.arguments, f"out={tmp_path / 'out'}"]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if "it/s]" not in line]) == 1 and lab.victim.name in said[-1]
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError) as refused:
            open_study(lab.config(), Faults(collect=True))
        assert lab.victim.name in str(refused.value) and "\n" not in str(refused.value)
    finally:
        lab.victim.write_bytes(whole)


def test_shards_are_the_trials_and_the_same_bytes_again(lab: Lab, tmp_path: Path) -> None:
    for name in "ab":
        out = tmp_path / name
        assert main(["shards", *lab.arguments, "eeg_dtype=float32", "shard_size=16", f"out={out}"]) == 0
    tars = sorted(path.name for path in (tmp_path / "a").glob("*.tar"))
    assert tars and all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in tars)
    assert main(["check", str(tmp_path / "a")]) == 0
    study, manifest = open_study(lab.config()), read_manifest(tmp_path / "a")
    assert (manifest.tmin, manifest.before) == (study.tmin, study.before)
    assert set(manifest.inputs) == {str(path) for path in study.inputs}
    own = {field.name for field in dataclasses.fields(DATASETS[lab.dataset][0])}
    packing = {field.name for field in dataclasses.fields(ShardsConfig)} - OPTIONS - set(FREE)
    assert manifest.config.keys() == own | packing
    for split in SPLITS:
        shards = ShardSplit(tmp_path / "a", split)
        for i, index in enumerate(study.splits[split]):
            trial, info = study.trial(index), shards.info(i)
            np.testing.assert_array_equal(shards.eeg(i), trial.eeg)
            assert shards.picture(i) == Path(str(trial.jpeg)).read_bytes()
            assert all(info[name] == getattr(trial, name) for name in ("subject", "label", "class_name", "image"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_each_option_is_shown_and_used_or_refused(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema = DATASETS[dataset][0]
    own = {field.name for field in dataclasses.fields(schema)}
    for command in ("shards", "check"):
        assert main([command, "--help", f"dataset={dataset}"]) == 0
        shown = set(re.findall(r"^  (\w+)=", capsys.readouterr().out, re.MULTILINE))
        assert shown & OPTIONS == own, command
        assert main([command, "--help"]) == 0
        plain = capsys.readouterr().out
        shown = set(re.findall(r"^  (\w+)=  ", plain, re.MULTILINE))
        assert shown & OPTIONS == {field.name for field in dataclasses.fields(StudyConfig)}
        assert "--help dataset=NAME" in plain and dataset in plain
    hints = typing.get_type_hints(SourceConfig)
    for field in dataclasses.fields(schema):
        if field.default == "???":
            given = [f"{f.name}=x" for f in dataclasses.fields(schema) if f.default == "???" and f is not field]
            assert main(["shards", f"dataset={dataset}", "out=x", *given]) == 2
            assert f"dataset={dataset} needs {field.name}=... (--help says" in capsys.readouterr().err
    for name in sorted(OPTIONS - own):
        value = SOME.get(hints[name]) or typing.get_args(hints[name])[1]
        assert main(["shards", f"dataset={dataset}", "out=x", f"{name}={value}"]) == 2
        said = capsys.readouterr().err
        assert re.match(rf"error: {name}(=\w+)? is for dataset=\w+( and dataset=\w+)*: leave it out\n", said), said


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_overlays_give_what_their_data_set_has(path: Path) -> None:
    if "dataset" in stage_section(path, "shards"):
        assert chosen(load_config(ShardsConfig, [f"config={path}", "out=x"], "shards"))


def test_what_is_given_as_it_is_anyhow_is_no_mistake() -> None:
    """A script gives task=$TASK, which may be empty."""
    fields = {"eeg": "e", "images": "i", "task": "", "hold_out": [], "shuffle_labels": False}
    assert chosen(SourceConfig(dataset="things_eeg2", **fields)).dataset == "things_eeg2"


def test_labels_that_were_not_shuffled_are_not_said_to_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments, _ = perceivelab(tmp_path / "study")
    assert main(["shards", *arguments, "shuffle_labels=true", f"out={tmp_path / 'out'}"]) == 2
    assert "shuffle_labels is for dataset=recording: leave it out" in capsys.readouterr().err
    assert main(["check", *arguments, "shuffle_labels=true"]) == 2
    assert not (tmp_path / "out").exists()
