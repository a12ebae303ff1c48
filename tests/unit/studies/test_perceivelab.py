"""The PerceiveLab reader: what it takes, what it refuses and in which words."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from perceivelab_files import WNIDS, make_split, write_study

from neuroimagen.cli import main
from neuroimagen.studies.perceivelab import PerceiveLab, PerceiveLabConfig
from neuroimagen.studies.study import Faults


@pytest.fixture
def study(tmp_path):
    """(folder, content) of a small study, and a way to write the content back."""
    content = write_study(tmp_path)
    return tmp_path, content


def read(folder: Path, **kwargs):
    fault = kwargs.pop("fault", None)
    given = {"splits_file": folder / "splits.pth"} if kwargs.get("splits", "official") == "official" else {}
    files = {"eeg": folder / "eeg.pth", "images": folder / "images", "n_chans": 4}
    return PerceiveLab(PerceiveLabConfig(**(files | given | kwargs)), fault)


def save(folder: Path, content) -> None:
    torch.save(content, folder / "eeg.pth")


def save_split(folder: Path, split, name: str = "splits.pth") -> Path:
    torch.save({"splits": [split]}, folder / name)
    return folder / name


def test_a_trial_is_cut_20_to_460_and_named(study):
    folder, content = study
    opened = read(folder)
    raw = content["dataset"][7]
    trial = opened.trial(7)
    np.testing.assert_array_equal(trial.eeg, raw["eeg"][:, 20:460].numpy())
    assert trial.eeg.shape == (4, 440) and trial.eeg.dtype == np.float32
    assert trial.image == content["images"][raw["image"]]
    assert (trial.subject, trial.label, trial.wnid) == (raw["subject"], raw["label"], WNIDS[raw["label"]])
    assert trial.class_name == ["sorrel", "parachute", "iron"][raw["label"]]
    assert trial.jpeg == folder / "images" / trial.wnid / f"{trial.image}.JPEG"
    assert trial.key == f"s{raw['subject']}_i{raw['image']:04d}_t00007"


def test_official_split_is_kept_as_it_is(study):
    folder, content = study
    expected = make_split(content["dataset"])
    assert read(folder).splits == expected
    assert {name: len(i) for name, i in expected.items()} == {"train": 40, "val": 10, "test": 10}  # 4:1:1


def test_filter_keeps_450_to_600_and_drops_the_others_from_the_splits(study):
    folder, content = study
    for index, length in ((0, 449), (1, 450), (2, 600), (3, 601)):
        content["dataset"][index]["eeg"] = torch.zeros(4, length)
    save(folder, content)
    opened = read(folder)
    in_splits = {i for indices in opened.splits.values() for i in indices}
    assert in_splits == set(range(60)) - {0, 3}
    assert opened.notes == ["2 trials with fewer than 450 or more than 600 samples were dropped"]


def test_block_and_onset_are_taken_where_every_trial_has_them(study):
    folder, content = study
    assert read(folder).facts(0)[3:5] == (None, None) and read(folder).trial(0).extra == {"trial_index": 0}
    for i, trial in enumerate(content["dataset"]):
        trial |= {"block": i // 20, "onset": i * 1.5}
    save(folder, content)
    timed = read(folder)
    assert timed.facts(25)[3:5] == ("1", 37.5)
    assert timed.trial(25).extra == {"trial_index": 25, "block": 1, "onset_s": 37.5}
    for key, wrong in (("block", "one"), ("block", True), ("onset", float("nan")), ("onset", None)):
        right, content["dataset"][7][key] = content["dataset"][7][key], wrong
        save(folder, content)
        with pytest.raises(ValueError, match=r"trial 7 has block .* and onset .*: a whole number and finite seconds"):
            read(folder)
        content["dataset"][7][key] = right
    del content["dataset"][7]["onset"]
    save(folder, content)
    with pytest.raises(ValueError, match="trial 7 must hold eeg, image, label, subject, block, onset"):
        read(folder)


def test_raw_file_is_standardised_by_its_means_and_stddevs(study):
    folder, content = study
    content["means"], content["stddevs"] = (
        torch.tensor([[0.0], [1.0], [2.0], [3.0]]),
        torch.tensor([1.0, 2.0, 4.0, 8.0]),
    )
    for trial in content["dataset"]:
        trial["eeg"] = (trial["eeg"] * 10).to(torch.int16)
    save(folder, content)
    got, raw = read(folder).trial(3).eeg, content["dataset"][3]["eeg"].numpy()
    np.testing.assert_allclose(got[2], (raw[2, 20:460] - 2.0) / 4.0, rtol=1e-6)


def test_file_of_the_format_before_torch_1_6(study):
    folder, content = study
    torch.save(content, folder / "eeg.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read(folder).trial(5).eeg, content["dataset"][5]["eeg"][:, 20:460].numpy())


@pytest.mark.parametrize("seed", range(3))
def test_by_image_is_80_10_10_of_each_class_without_leaks(tmp_path, seed):
    content = write_study(tmp_path, subjects=3, images_per_class=20)
    opened = read(tmp_path, splits="by_image", seed=seed)
    sides = {name: {content["dataset"][i]["image"] for i in indices} for name, indices in opened.splits.items()}
    assert not sides["train"] & sides["val"] and not sides["train"] & sides["test"] and not sides["val"] & sides["test"]
    for label in range(3):
        counts = {name: sum(image // 20 == label for image in images) for name, images in sides.items()}
        assert counts == {"train": 16, "val": 2, "test": 2}
    assert sum(len(i) for i in opened.splits.values()) == 180  # all subjects of every image
    assert opened.splits == read(tmp_path, splits="by_image", seed=seed).splits
    assert opened.splits != read(tmp_path, splits="by_image", seed=seed + 1).splits


def test_single_split_numbers_the_filtered_list(study):
    """The `_single` file numbers one subject's trials in file order; the length filter comes after the numbering."""
    folder, content = study
    mine = [i for i, trial in enumerate(content["dataset"]) if trial["subject"] == 2]
    content["dataset"][mine[0]]["eeg"] = torch.zeros(4, 449)
    save(folder, content)
    split = make_split(content["dataset"], mine)
    path = save_split(folder, split, "block_splits_by_image_single.pth")
    got = read(folder, splits_file=path, subject=2).splits
    assert got == {name: [mine[n] for n in numbers if n != 0] for name, numbers in split.items()}
    assert read(folder, splits_file=save_split(folder, split, "own.pth"), subject=2).splits == got
    with pytest.raises(ValueError, match="numbers the trials of one subject: give subject="):
        read(folder, splits_file=path)


def test_one_subject_of_the_split_for_all(study):
    folder, content = study
    got = read(folder, subject=1)
    expected = make_split(content["dataset"])
    assert got.splits == {n: [i for i in ii if content["dataset"][i]["subject"] == 1] for n, ii in expected.items()}
    assert got.subjects == [1]
    with pytest.raises(ValueError, match=r"no trial of subject=9; it holds subjects \[1, 2\]"):
        read(folder, subject=9)


def test_unknown_wnid_is_its_own_name_and_pictures_may_be_png(tmp_path):
    write_study(tmp_path, wnids=["n99999999", "n02389026"])
    for picture in sorted((tmp_path / "images" / "n99999999").iterdir()):
        picture.rename(picture.with_suffix(".jpg"))
    opened = read(tmp_path)
    assert [c["name"] for c in opened.classes] == ["n99999999", "sorrel"]


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def spoil_attack(folder, content):
    content["labels"].append(Attack(folder / "attacked"))


def spoil_jpeg(folder, content):
    (folder / "images" / WNIDS[1] / f"{WNIDS[1]}_17.JPEG").unlink()


def spoil_eeg(value):
    def spoil(folder, content):
        content["dataset"][11]["eeg"] = value

    return spoil


def spoil_nan(folder, content):
    content["dataset"][11]["eeg"][2, 100] = float("nan")


def spoil_split(folder, content):
    split = make_split(content["dataset"])
    split["val"].append(split["train"].pop())
    save_split(folder, split)


def spoil_duplicate(folder, content):
    split = make_split(content["dataset"])
    split["train"].append(split["train"][0])
    save_split(folder, split)


def spoil_index(folder, content):
    split = make_split(content["dataset"])
    split["test"].append(60)
    save_split(folder, split)


def spoil_name(folder, content):
    content["images"][3] = "../../secret"


def spoil_label(folder, content):
    content["dataset"][11]["label"] = (content["dataset"][11]["label"] + 1) % 3


def spoil_truncate(folder, content):
    torch.save(content, folder / "eeg.pth")
    data = (folder / "eeg.pth").read_bytes()
    content.clear()
    content["raw"] = data[: len(data) // 2]


def spoil_lengths(folder, content):
    for trial in content["dataset"]:
        trial["eeg"] = trial["eeg"][:, :400]


CASES = {
    "attack": (spoil_attack, r"eeg\.pth holds more than tensors.*posix\.system.*was not opened"),
    "missing picture": (spoil_jpeg, r"n03888257_17\.JPEG is missing, which was shown in .*trial \d+ \(subject"),
    "channels": (spoil_eeg(torch.zeros(3, 500)), r"trial 11 \(subject.*has 3 channels instead of 4"),
    "nan": (spoil_nan, r"trial 11 \(subject.*holds NaN or infinity in channel 2"),
    "length 30": (spoil_eeg(torch.zeros(4, 30)), r"trial 11 \(subject.*has 30 samples where about 500"),
    "no eeg": (spoil_eeg("EEG"), r"trial \d+.*no EEG table"),
    "leak": (spoil_split, r"splits\.pth: image n\d+_\d+ is in both train and val"),
    "twice": (spoil_duplicate, r"splits\.pth has .*eeg\.pth: trial \d+ .* twice in train"),
    "index": (spoil_index, r"test names trial 60, but .*eeg\.pth has 60 trials"),
    "path": (spoil_name, r"`images` holds '\.\./\.\./secret', which is not a plain name"),
    "label": (spoil_label, r"trial 11 .* is labelled n\d+, which is not the class of its image"),
    "truncated": (spoil_truncate, r"eeg\.pth cannot be read as a torch file"),
    "lengths": (spoil_lengths, r"60 of 60 trials have fewer than 450 .* 1000 Hz\?"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(study, capsys, case):
    folder, content = study
    spoil, sentence = CASES[case]
    spoil(folder, content)
    if "raw" in content:
        (folder / "eeg.pth").write_bytes(content["raw"])
    else:
        save(folder, content)
    command = ["shards", f"eeg={folder}/eeg.pth", f"images={folder}/images", f"splits_file={folder}/splits.pth"]
    assert main([*command, "n_chans=4", f"out={folder}/out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    import re

    assert re.search(sentence, error), error
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()
    assert not (folder / "attacked").exists()


def test_not_a_perceivelab_file(tmp_path):
    torch.save([1, 2], tmp_path / "eeg.pth")
    with pytest.raises(ValueError, match="is not a PerceiveLab EEG file"):
        read(tmp_path, splits="by_image")
    (tmp_path / "eeg.pth").write_bytes(b"not torch")
    with pytest.raises(ValueError, match="damaged or not a torch file|cannot be read"):
        read(tmp_path, splits="by_image")
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "none", splits="by_image")


def test_all_faults_are_listed_and_their_trials_left_out_when_faults_are_collected(study):
    folder, content = study
    wanted = {name: list(indices) for name, indices in read(folder).splits.items()}
    train = wanted["train"]
    content["dataset"][train[0]]["eeg"] = torch.zeros(3, 500)
    content["dataset"][train[1]] = "no trial"
    content["dataset"][train[2]]["label"] = 99
    save(folder, content)
    gone = content["images"][content["dataset"][train[3]]["image"]]
    (folder / "images" / gone.split("_")[0] / f"{gone}.JPEG").unlink()
    fault = Faults(collect=True)
    opened = read(folder, fault=fault)
    assert len(fault.found) == 4
    assert all(f"trial {i}" in sentence for i, sentence in zip(sorted(train[:3]), fault.found, strict=False))
    assert f"{gone}.JPEG is missing" in fault.found[3]
    shown = [i for i in train[3:] if content["images"][content["dataset"][i]["image"]] != gone]
    assert opened.splits == wanted | {"train": shown}
    with pytest.raises(ValueError, match="trial"):
        read(folder)
