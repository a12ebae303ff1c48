"""What every reader must do, whatever its files: a new data set adds its files to MAKERS and is held to all of this."""

import dataclasses
import pickle
import re
import shutil
import typing
from collections import Counter
from pathlib import Path

import eeg_imagenet_files
import lab_files
import numpy as np
import perceivelab_files
import pytest
import test_recording
import things_files
import torch

from neuroimagen.cli import main
from neuroimagen.config import load_config, stage_section
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import FREE, ShardsConfig
from neuroimagen.studies.config import StudyConfig
from neuroimagen.studies.open import DATASETS, SourceConfig, chosen, open_study
from neuroimagen.studies.study import SPLITS, Faults, Study

pytest.importorskip("mne", reason="a lab's own files are read by mne (an extra)")


def perceivelab(folder: Path) -> tuple[list[str], Path]:
    perceivelab_files.write_study(folder)
    files = [f"eeg={folder}/eeg.pth", f"images={folder}/images", f"splits_file={folder}/splits.pth"]
    return [*files, "n_chans=4"], folder / "eeg.pth"


def timed(folder: Path) -> tuple[list[str], Path]:
    """PerceiveLab files that tell when each trial was: four blocks a subject, of all classes."""
    arguments, victim = perceivelab(folder)
    content = torch.load(victim, weights_only=True)
    for i, trial in enumerate(content["dataset"]):
        trial |= {"block": i // 15, "onset": 2.5 * i}
    torch.save(content, victim)
    return [a for a in arguments if "splits_file" not in a] + ["splits=by_image"], victim


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
    "perceivelab (timed)": timed,
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
    maker: str

    def config(self, *more: str) -> ShardsConfig:
        return load_config(ShardsConfig, ["out=x", *self.arguments, *more], "shards")


@pytest.fixture(scope="module", params=MAKERS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    name = request.param.partition(" ")[0]
    arguments, victim = MAKERS[request.param](tmp_path_factory.mktemp(name))
    return Lab(name, [f"dataset={name}", *arguments], victim, request.param)


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
    own = {field.name for field in dataclasses.fields(DATASETS[lab.dataset][0]) if not field.metadata["newer"]}
    packing = {field.name for field in dataclasses.fields(ShardsConfig)} - OPTIONS - set(FREE)
    assert manifest.config.keys() == own | packing and "control" not in (tmp_path / "a/manifest.json").read_text()
    for split in SPLITS:
        shards = ShardSplit(tmp_path / "a", split)
        for i, index in enumerate(study.splits[split]):
            trial, info = study.trial(index), shards.info(i)
            np.testing.assert_array_equal(shards.eeg(i), trial.eeg)
            assert shards.picture(i) == Path(str(trial.jpeg)).read_bytes()
            assert all(info[name] == getattr(trial, name) for name in ("subject", "label", "class_name", "image"))


NO_BLOCKS = "needs to know the blocks of each recording, which these files do not tell"
REFUSED = {  # what the tiny files of some data sets do not allow, and why
    ("hold_out=[-1]", "perceivelab"): NO_BLOCKS,
    ("hold_out=[-1]", "things_eeg2"): NO_BLOCKS,
    ("hold_out=[-1]", "eeg_imagenet"): "was shown in held-out blocks alone, so it could not be trained on",
    ("hold_out=[-1]", "epochs"): "hold_out leaves subject 2 no run to train on",
    ("hold_out=[-1]", "epochs (BIDS)"): "hold_out leaves subject 2 no run to train on",
    ("hold_out_classes=1", "things_eeg2"): "no class of test is trained on anyhow: leave it out",
    ("hold_out_classes=1", "recording"): "needs 3 classes",
    ("hold_out_classes=1", "epochs"): "needs 3 classes",
    ("hold_out_classes=1", "epochs (BIDS)"): "needs 3 classes",
    ("control_labels=blocks", "perceivelab"): NO_BLOCKS,
    ("control_labels=blocks", "things_eeg2"): NO_BLOCKS,
    ("control_labels=blocks", "recording"): "needs two or more blocks of each subject, and subject 1 has 1 to train on",
    ("control_labels=blocks", "epochs"): "two or more blocks of each subject, and subject 2 has 1 to train on",
    ("control_labels=blocks", "epochs (BIDS)"): "two or more blocks of each subject, and subject 2 has 1 to train on",
    ("control_eeg=other_trial", "perceivelab"): NO_BLOCKS,
    ("control_eeg=other_trial", "things_eeg2"): NO_BLOCKS,
}


def changed(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Study | None:
    """The study with these options, whose trials are what it says; None where it is rightly refused in one sentence."""
    if why := REFUSED.get((options[0], lab.maker)):
        assert main(["shards", *lab.arguments, *options, f"out={tmp_path / 'out'}"]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "it/s]" not in line]
        assert len(said) == 1 and why in said[0] and not list(tmp_path.iterdir())
        return None
    study = open_study(lab.config(*options))
    assert all(study.splits.values()) and not set(study.splits["train"]) & set(study.splits["test"])
    known = {c["label"]: (c["wnid"], c["name"]) for c in study.classes}
    for i in study.splits["test"]:
        trial, facts = study.trial(i), study.facts(i)
        assert facts[:3] == (trial.subject, trial.image, trial.label) and trial.jpeg == study.facts(i).picture
        assert known[trial.label] == (trial.wnid, trial.class_name) and trial.eeg.dtype == np.float32
    again = open_study(lab.config(*options))
    assert again.splits == study.splits and again.protocol == study.protocol and again.mark == study.mark
    assert all(again.facts(i) == study.facts(i) for own in study.splits.values() for i in own)
    return study


def of(study: Study, split: str, field: str) -> set[typing.Any]:
    return {getattr(study.facts(i), field) for i in study.splits[split]}


def apart(study: Study, field: str) -> bool:
    """Whether what is in test is in no other split."""
    return not of(study, "test", field) & (of(study, "train", field) | of(study, "val", field))


def test_a_subject_a_class_or_a_block_is_held_out(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = open_study(lab.config())
    for option, field in (("hold_out_subject=2", "subject"), ("hold_out_classes=1", "label"), ("hold_out=[-1]", "")):
        study = changed(lab, tmp_path, capsys, option)
        if study is None:
            continue
        assert not study.mark and study.n_chans == plain.n_chans
        if field:
            assert apart(study, field) and len(of(study, "test", field)) == 1 and study.protocol != plain.protocol
            assert all(set(study.splits[name]) <= set(plain.splits[name]) for name in SPLITS)
        if field == "subject":
            assert of(study, "test", "subject") == {2}
        if not field:
            blocks = {name: {study.facts(i)[:4:3] for i in study.splits[name]} for name in SPLITS}
            assert not blocks["test"] & (blocks["train"] | blocks["val"]) and {b[0] for b in blocks["test"]} == {1, 2}
        if study.split_by == "image":
            assert apart(study, "image")


def test_random_trials_put_a_picture_on_both_sides_and_say_so(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", *lab.arguments, "splits=trials", f"out={tmp_path / 'out'}"]) == 2
    assert "it is for an audit, which says audit=true" in capsys.readouterr().err and not list(tmp_path.iterdir())
    wrong = ["splits=trials", "audit=true", *(["splits_file="] if lab.maker == "perceivelab" else [])]
    study = changed(lab, tmp_path, capsys, *wrong)
    assert study and study.split_by == "trial" and not apart(study, "image")
    assert "SAME PICTURES are in train and test" in study.protocol and study.mark.startswith("TEST PICTURES WERE")
    assert of(study, "test", "label") == of(study, "train", "label") == {known["label"] for known in study.classes}
    sizes = [len(study.splits[name]) for name in SPLITS]
    assert sizes[1] == sizes[2] and 0.05 < sizes[2] / sum(sizes) < 0.2
    assert main(["shards", *lab.arguments, *wrong, f"out={tmp_path / 'out'}"]) == 0
    assert "TEST PICTURES WERE TRAINED ON" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "out"), f"report={tmp_path}"]) == 0
    assert "TEST PICTURES WERE TRAINED ON" in capsys.readouterr().out
    assert "<strong>TEST PICTURES WERE TRAINED ON</strong>" in (tmp_path / "index.html").read_text()


def counted(study: Study) -> dict[typing.Any, dict[int, int]]:
    """How often each label is in a subject's block."""
    found: dict[typing.Any, Counter[int]] = {}
    for name in SPLITS:
        for i in study.splits[name]:
            facts = study.facts(i)
            found.setdefault((facts.subject, facts.block), Counter())[facts.label] += 1
    return {key: dict(own) for key, own in found.items()}


def test_labels_are_dealt_out_anew(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = open_study(lab.config())
    every = [i for own in plain.splits.values() for i in own]
    pictures = {plain.facts(i).image: (plain.facts(i).label, plain.facts(i).picture) for i in every}
    for control in ("shuffled", "blocks"):
        study = changed(lab, tmp_path, capsys, f"control_labels={control}")
        if study is None:
            continue
        assert study.mark.startswith("CONTROL: labels") and study.mark in study.protocol
        left_out = len(every) - sum(map(len, study.splits.values()))
        assert (left_out > 0) == any(f"{left_out} trials were left out" in note for note in study.notes)
        every = [i for own in study.splits.values() for i in own]
        moved = [study.facts(i).label != plain.facts(i).label for i in every]
        assert 0.2 < np.mean(moved) <= 1
        assert all(np.array_equal(study.trial(i).eeg, plain.trial(i).eeg) for i in every[::9])
        assert all(study.trial(i).key == plain.trial(i).key for i in every[::9])
        assert all(pictures[study.facts(i).image] == (study.facts(i).label, study.facts(i).picture) for i in every)
        if study.split_by == "image":
            assert apart(study, "image")
        one_class = lab.dataset == "eeg_imagenet"  # in a block: labels cannot be shuffled within it
        if control == "shuffled" and not one_class:
            assert counted(study) == counted(plain)
        if control == "blocks" and one_class:  # whole blocks change their class
            blocks = {(study.facts(i).subject, study.facts(i).block, study.facts(i).label) for i in every}
            assert len(blocks) == len({block[:2] for block in blocks}) == 6
        other = open_study(lab.config(f"control_labels={control}", "seed=5"))
        assert "seed 5" in other.control


def test_nonsense_cuts_the_pictures_of_each_class_in_two(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, study = open_study(lab.config()), changed(lab, tmp_path, capsys, "control_labels=nonsense")
    assert study and study.splits == plain.splits and len(study.classes) == 2 * len(plain.classes)
    halves: dict[str, set[int]] = {}
    for i in (i for own in study.splits.values() for i in own):
        facts, was = study.facts(i), plain.facts(i)
        assert facts.label // 2 == was.label and facts._replace(label=0) == was._replace(label=0)
        halves.setdefault(facts.image, set()).add(facts.label)
    assert all(len(labels) == 1 for labels in halves.values())
    count = Counter(label for labels in halves.values() for label in labels)
    assert all(abs(count[2 * k["label"]] - count[2 * k["label"] + 1]) <= 1 for k in plain.classes)
    names = {known["label"]: known["name"] for known in study.classes}
    assert all(names[2 * known["label"] + 1] == known["name"] + " b" for known in plain.classes)


def cross_spectrum(eeg: np.ndarray) -> np.ndarray:
    """(n_chans, n_chans, n_frequencies)"""
    found = np.fft.rfft(eeg.astype(np.float64), axis=1)
    return found[:, None] * found[None].conj()


def test_the_eeg_is_not_that_of_the_trial(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = open_study(lab.config())
    every = [i for own in plain.splits.values() for i in own]
    by_key = {plain.trial(i).key: i for i in every}
    for control in ("surrogate", "amplitude", "other_trial"):
        study = changed(lab, tmp_path, capsys, f"control_eeg={control}")
        if study is None:
            continue
        assert study.mark.startswith("CONTROL: EEG") and study.mark in study.protocol
        alike, every = [], [i for own in study.splits.values() for i in own]
        for i in every:
            own, trial = plain.trial(i), study.trial(i)
            donor = by_key[trial.extra["eeg_of"]]
            source, facts = plain.trial(donor), plain.facts(donor)
            assert (trial.key, trial.label, trial.image) == (own.key, own.label, own.image) and facts[0] == own.subject
            assert (donor == i) == (control == "amplitude") and np.isfinite(trial.eeg).all()
            if control == "surrogate":
                assert donor in plain.splits["train"]
            if control == "other_trial":
                assert facts.block == plain.facts(i).block and np.array_equal(trial.eeg, source.eeg)
                assert any({i, donor} <= set(own) for own in plain.splits.values())
            else:
                expected = cross_spectrum(source.eeg)
                np.testing.assert_allclose(cross_spectrum(trial.eeg), expected, atol=1e-4 * np.abs(expected).max())
                assert not np.allclose(trial.eeg, source.eeg, atol=0.1 * source.eeg.std())
            a, b = (x - x.mean(axis=1, keepdims=True) for x in (trial.eeg, own.eeg))
            alike.append(float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())))
        if control != "other_trial":  # which has the response that all trials share
            assert abs(np.mean(alike)) < 4 * np.std(alike) / len(alike) ** 0.5, control
        if control == "surrogate":  # what the trials have in common stays: their mean cross-spectrum
            sums = [np.mean([cross_spectrum(s.trial(i).eeg) for i in every], axis=0) for s in (plain, study)]
            power = [np.einsum("iif->i", each).real for each in sums]
            np.testing.assert_allclose(power[0], power[1], rtol=0.35)


def test_packing_with_a_control_leaves_what_is_packed_without(lab: Lab, tmp_path: Path) -> None:
    def packed(*options: str) -> dict[str, bytes]:
        out = tmp_path / "out"
        assert main(["shards", *lab.arguments, *options, f"out={out}"]) == 0
        found = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
        shutil.rmtree(out)
        return found

    before = packed()
    controlled = packed("control_labels=nonsense", "control_eeg=surrogate")
    assert packed() == before
    assert b'"control": "CONTROL: nonsense' in controlled["manifest.json"] and b"control" not in before["manifest.json"]
    assert controlled["train-000000.tar"] != before["train-000000.tar"]


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
        assert shown & OPTIONS == {field.name for field in dataclasses.fields(StudyConfig)} | {"splits"}
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
