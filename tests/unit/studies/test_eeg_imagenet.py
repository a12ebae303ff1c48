"""The EEG-ImageNet reader: both files sample by sample, the publishers' split, and what it refuses in which words."""

import re
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from eeg_imagenet_files import COARSE, FINE, LABELS, write_study
from hypothesis import given
from hypothesis import strategies as st
from test_plain_pickle import Attack

from neuroimagen.cli import main
from neuroimagen.shards.format import SPLITS, ShardSplit, read_manifest
from neuroimagen.studies import eeg_imagenet
from neuroimagen.studies.eeg_imagenet import EegImageNet, EegImageNetConfig
from neuroimagen.studies.study import Faults


def read(folder, **kwargs):
    fault = kwargs.pop("fault", None)
    return EegImageNet(EegImageNetConfig(eeg=folder / "eeg", images=folder / "images", **kwargs), fault)


def command(folder, *more):
    files = [f"eeg={folder}/eeg", f"images={folder}/images", f"out={folder}/out"]
    return ["shards", "dataset=eeg_imagenet", "eeg_dtype=float32", *files, *more]


def save(folder, part, content):
    torch.save(content, folder / "eeg" / f"EEG-ImageNet_{part}.pth")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder, {part: content}): two people a file, three classes, blocks of 50 as published. Not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    return folder, write_study(folder, subjects=2)


@pytest.fixture
def small(tmp_path):
    """The same with one person in each file and blocks of 12."""
    return tmp_path, write_study(tmp_path, per_class=12)


def sides(study):
    """image -> the splits that have it."""
    found = defaultdict(set)
    for name, own in study.splits.items():
        for i in own:
            found[study.trial(i).image].add(name)
    return found


@pytest.mark.parametrize("splits", ["official", "by_image"])
def test_shards_hold_every_trial_of_both_files(published, tmp_path, splits):
    folder, parts = published
    assert main([*command(folder, f"splits={splits}"), f"out={tmp_path}/out"]) == 0
    assert main(["check", f"{tmp_path}/out"]) == 0
    seen = set()
    for split in SPLITS:
        shards = ShardSplit(tmp_path / "out", split)
        for i in range(len(shards)):
            info = shards.info(i)
            trial = parts[int(info["file"][-5])]["dataset"][info["trial_index"]]
            np.testing.assert_array_equal(shards.eeg(i), trial["eeg_data"][:, 40:440].numpy())
            assert (info["subject"], info["subject_in_file"]) == (trial["subject"] + 1, trial["subject"])
            assert (info["wnid"], info["granularity"]) == (trial["label"], trial["granularity"])
            assert info["image"] + ".JPEG" == trial["image"]
            assert shards.picture(i) == (folder / "images" / trial["label"] / trial["image"]).read_bytes()
            seen.add((info["file"], info["trial_index"]))
    study = read(folder)
    assert all(study.facts(i)[:2] == (study.trial(i).subject, study.trial(i).image) for i in range(0, 600, 7))
    assert len(seen) == sum(len(part["dataset"]) for part in parts.values()) == 600
    manifest = read_manifest(tmp_path / "out")
    assert [c["wnid"] for c in manifest.classes] == LABELS and manifest.subjects == [1, 2, 3, 4]
    assert [c["name"] for c in manifest.classes] == ["golden retriever", "sorrel", "parachute"]
    assert (manifest.n_chans, manifest.n_times, manifest.sfreq) == (4, 400, 1000.0)


def test_official_is_by_the_order_within_each_block_of_50(published):
    folder, _ = published
    study = read(folder)
    where = {i: name for name, own in study.splits.items() for i in own}
    wanted = ["train"] * 25 + ["val"] * 5 + ["test"] * 20
    assert [where[i] for i in range(600)] == wanted * 12
    assert all(len(names) == 1 for names in sides(study).values())
    assert "first 25 train, next 5 val, rest test (published: first 30 train" in study.protocol
    assert study.notes == ["the trials have 4 channels; the published ones have 62"]


def test_granularity_and_subject_choose_without_moving_anything(published):
    folder, _ = published
    everything = sides(read(folder))
    for granularity, wnids in (("coarse", COARSE), ("fine", FINE)):
        study = read(folder, granularity=granularity, subject=3)
        assert [c["wnid"] for c in study.classes] == wnids
        assert [c["label"] for c in study.classes] == [LABELS.index(wnid) for wnid in wnids]
        trials = [study.trial(i) for own in study.splits.values() for i in own]
        assert {trial.subject for trial in trials} == {3} and {trial.wnid for trial in trials} == set(wnids)
        assert all(everything[image] == names for image, names in sides(study).items())
        assert study.protocol.endswith(f"; {granularity} classes only; subject 3 only")
    with pytest.raises(
        ValueError, match=r"\(whose subject 0 is 1 here\) holds no trial of subject=9; it holds subjects \[1, 2, 3, 4\]"
    ):
        read(folder, subject=9)


def test_an_order_of_their_own_for_each_person_is_a_leak_that_is_refused(tmp_path):
    write_study(tmp_path, shuffle=True)
    with pytest.raises(
        ValueError, match=r"splits=official puts \d+ of 150 images on two sides.* give subject=\.\.\. if"
    ):
        read(tmp_path)
    assert len(read(tmp_path, subject=2).splits["test"]) == 60  # one person alone sees each image once
    study = read(tmp_path, splits="by_image")
    assert all(len(names) == 1 for names in sides(study).values())
    fault = Faults(collect=True)
    collected = read(tmp_path, fault=fault)
    assert len(fault.found) == 1 and all(len(names) == 1 for names in sides(collected).values())


@pytest.mark.parametrize("seed", range(3))
def test_by_image_is_80_10_10_of_each_class_whoever_is_chosen(published, seed):
    folder, _ = published
    study = read(folder, splits="by_image", seed=seed)
    found = sides(study)
    assert all(len(names) == 1 for names in found.values())
    counts = Counter((image.partition("_")[0], next(iter(names))) for image, names in found.items())
    assert counts == {(wnid, name): n for wnid in LABELS for name, n in (("train", 40), ("val", 5), ("test", 5))}
    for chosen in ({"subject": 2}, {"granularity": "fine"}, {"granularity": "coarse", "subject": 4}):
        assert all(
            found[image] == names
            for image, names in sides(read(folder, splits="by_image", seed=seed, **chosen)).items()
        )
    assert study.splits != read(folder, splits="by_image", seed=seed + 1).splits


def test_by_image_goes_by_the_images_of_everybody(small):
    """Also where one person did not see them all."""
    folder, parts = small
    save(folder, 1, parts[1] | {"dataset": [t for i, t in enumerate(parts[1]["dataset"]) if i % 3]})
    everybody = sides(read(folder, splits="by_image"))
    for subject in (1, 2):
        assert all(
            everybody[image] == n for image, n in sides(read(folder, splits="by_image", subject=subject)).items()
        )


def test_one_file_alone_is_enough_and_told(tmp_path):
    write_study(tmp_path, per_class=40, parts=(2,))
    study = read(tmp_path)
    assert "EEG-ImageNet_1.pth is not there" in study.notes and study.subjects == [2]
    assert [path.name for path in study.inputs] == ["EEG-ImageNet_2.pth"]
    assert {name: len(own) for name, own in study.splits.items()} == {"train": 75, "val": 15, "test": 30}
    note = "3 of 3 blocks of a subject and class do not hold 50 trials (but 40 to 40), so they are not split 30 to 20"
    assert note in study.notes


def test_the_same_image_in_coarse_and_fine_keeps_its_side_and_its_keys(small):
    """All of a class shown again as fine trials, in the same order or another."""
    folder, parts = small
    again = [trial | {"granularity": "fine"} for trial in parts[1]["dataset"] if trial["label"] == COARSE[0]]
    save(folder, 1, parts[1] | {"dataset": parts[1]["dataset"] + again})
    study = read(folder, splits="by_image")
    trials = [study.trial(i) for own in study.splits.values() for i in own]
    assert len({trial.key for trial in trials}) == len(trials) == 84
    assert all(len(names) == 1 for names in sides(study).values())
    assert {c["wnid"] for c in read(folder, splits="by_image", granularity="fine").classes} == {FINE[0], COARSE[0]}


def test_a_broken_trial_keeps_its_place_in_the_block(published, tmp_path):
    """When faults are collected, the trials after it stay in their splits."""
    folder, parts = published
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "eeg").mkdir()
    trials = list(parts[1]["dataset"])
    trials[3] = trials[3] | {"eeg_data": torch.zeros(4, 30)}
    trials[7] = trials[7] | {"image": "../../secret.JPEG"}
    save(tmp_path, 1, parts[1] | {"dataset": trials})
    gone = tmp_path / "images" / trials[29]["label"] / trials[29]["image"]
    gone.unlink()
    fault = Faults(collect=True)
    study = read(tmp_path, fault=fault, subject=1)
    assert [re.search(r"trial \d+|picture", sentence)[0] for sentence in fault.found] == [
        "trial 3",
        "trial 7",
        "picture",
    ]
    whole = read(folder, subject=1).splits
    left_out = {"train": {3, 7}, "val": {29}, "test": set()}
    assert study.splits == {name: [i for i in own if i not in left_out[name]] for name, own in whole.items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """(folder, content) of a study whose one file is written again and again."""
    folder = tmp_path_factory.mktemp("shared")
    return folder, write_study(folder, per_class=4, parts=(1,))[1]


ANYTHING = st.none() | st.integers() | st.text(max_size=9) | st.booleans() | st.just([1]) | st.floats() | st.just(b"x")


@given(st.data())
def test_any_length_and_type_is_read_or_refused_in_one_sentence(shared, data):
    folder, whole = shared
    content = whole | {"dataset": [dict(trial) for trial in whole["dataset"]]}
    index = data.draw(st.integers(0, len(content["dataset"]) - 1))
    length = data.draw(st.integers(0, 700))
    values = torch.full((4, length), data.draw(st.sampled_from([0.5, -1e30, 1e-30])), dtype=torch.float64)
    fields = data.draw(st.dictionaries(st.sampled_from([*eeg_imagenet.FIELDS, "other"]), ANYTHING, max_size=2))
    own = whole["dataset"][index]
    fine = {
        "eeg_data": lambda value: False,
        "granularity": lambda value: value in ("coarse", "fine"),
        "subject": lambda value: type(value) is int and 0 <= value < 1 << 31,
        "label": lambda value: value == own["label"],  # another is not the class of the image
        "image": lambda value: value == own["image"],
        "other": lambda value: True,
    }
    content["dataset"][index] |= {"eeg_data": values} | fields
    save(folder, 1, content)
    if not (440 <= length <= 600 and all(fine[name](value) for name, value in fields.items())):
        with pytest.raises(ValueError, match=rf"trial {index} ") as caught:
            read(folder, splits="by_image")
        assert "\n" not in str(caught.value)
    else:
        np.testing.assert_array_equal(
            read(folder, splits="by_image").trial(index).eeg, values[:, 40:440].numpy().astype("f4")
        )


def trial(**fields):
    return lambda folder, content: content["dataset"][17].update(fields)


def attack(folder, content):
    content["labels"].append(Attack(folder / "attacked"))


def nan(folder, content):
    content["dataset"][17]["eeg_data"][2, 100] = float("nan")


def no_picture(folder, content):
    (folder / "images" / COARSE[0] / content["dataset"][17]["image"]).unlink()


def bad_picture(folder, content):
    (folder / "images" / COARSE[0] / content["dataset"][17]["image"]).write_bytes(b"\xff\xd8")


def no_folder(folder, content):
    shutil.rmtree(folder / "images")


def copy(folder, content):
    shutil.copy(folder / "eeg" / "EEG-ImageNet_1.pth", folder / "eeg" / "EEG-ImageNet_2.pth")


def cut(folder, content):
    path = folder / "eeg" / "EEG-ImageNet_2.pth"
    path.write_bytes(path.read_bytes()[:5000])


def not_ours(folder, content):
    torch.save({"dataset": []}, folder / "eeg" / "EEG-ImageNet_2.pth")


CASES = {
    "attack": (attack, r"EEG-ImageNet_1\.pth holds more than tensors.*posix\.system.*was not opened"),
    "cut off": (cut, r"EEG-ImageNet_2\.pth cannot be read as a torch file"),
    "other file": (not_ours, r"EEG-ImageNet_2\.pth is not an EEG-ImageNet file: it must hold `dataset`, `labels` and"),
    "copied": (copy, r"_2\.pth and .*_1\.pth both hold trials of subject 0 and class n\d+: is one a copy"),
    "no trials": (lambda f, c: c["dataset"].clear(), "`dataset` must be a list that is not empty"),
    "labels": (lambda f, c: c["labels"].append("../x"), r"`labels` holds '\.\./x', which is not a plain name"),
    "label twice": (lambda f, c: c["labels"].append(FINE[0]), f"`labels` holds '{FINE[0]}' twice"),
    "no dict": (lambda f, c: c["dataset"].__setitem__(17, [1]), "trial 17 must hold eeg_data, granularity, subject"),
    "no field": (lambda f, c: c["dataset"][17].pop("image"), "trial 17 must hold eeg_data, .*, image"),
    "subject": (trial(subject=-1), "trial 17 has subject -1; subjects are whole numbers from 0"),
    "granularity": (trial(granularity="fine0"), "trial 17 has granularity 'fine0', which is not coarse or fine"),
    "label": (trial(label="n00000001"), "trial 17 has label 'n00000001', which is not in the list `labels`"),
    "label of another": (trial(label=FINE[0]), f"trial 17 .* is labelled {FINE[0]}, which is not the class of"),
    "image": (trial(image="../../x.JPEG"), r"trial 17 has image '\.\./\.\./x\.JPEG', which is not the plain name"),
    "no eeg": (trial(eeg_data=[1.0]), r"trial 17 .* has no EEG table \(channels x samples\)"),
    "channels": (trial(eeg_data=torch.zeros(3, 500)), "trial 17 .* has 3 channels instead of 4: drop"),
    "short": (trial(eeg_data=torch.zeros(4, 439)), "trial 17 .* has 439 samples where about 500 .* 440 at least"),
    "long": (trial(eeg_data=torch.zeros(4, 5000)), "trial 17 .* has 5000 samples where about 500 .* not at 1000 Hz"),
    "nan": (nan, r"trial 17 \(subject 0 of the file, image n\d+_\d+\.JPEG\) holds NaN or infinity in channel 2"),
    "picture missing": (no_picture, r"picture .*/n02389026/n02389026_\d+\.JPEG is missing, which .*trial 17"),
    "picture damaged": (bad_picture, r"n02389026_\d+\.JPEG cannot be decoded"),
    "no pictures": (no_folder, "images is not a folder"),
    "no file": (lambda f, c: (shutil.rmtree(f / "eeg"), (f / "eeg").mkdir()), "holds neither EEG-ImageNet_1.pth nor"),
    "a file as folder": (lambda f, c: (shutil.rmtree(f / "eeg"), (f / "eeg").write_text("x")), "is not a folder: "),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(small, capsys, case):
    folder, parts = small
    spoil, sentence = CASES[case]
    spoil(folder, parts[1])
    if (folder / "eeg").is_dir() and (folder / "eeg" / "EEG-ImageNet_1.pth").exists():
        save(folder, 1, parts[1])
        if case == "copied":
            save(folder, 2, parts[1])
    assert main(command(folder, "splits=by_image")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()
    assert not (folder / "attacked").exists()


def test_blocks_too_short_for_a_test_split_are_said_to_be(small, capsys):
    assert main(command(small[0])) == 2
    assert "no trial is left in split 'val' (of the 50 trials of a subject and class" in capsys.readouterr().err


def test_no_trial_of_a_granularity(tmp_path):
    parts = write_study(tmp_path, per_class=12, parts=(1,))
    save(tmp_path, 1, parts[1] | {"dataset": [t for t in parts[1]["dataset"] if t["granularity"] == "fine"]})
    with pytest.raises(ValueError, match="holds no trial of granularity=coarse"):
        read(tmp_path, granularity="coarse")


def test_by_image_needs_three_images_a_class(tmp_path):
    write_study(tmp_path, per_class=2, parts=(1,))
    with pytest.raises(ValueError, match="has 2 images; splits=by_image needs 3 or more"):
        read(tmp_path, splits="by_image")


def test_the_table_of_fine_classes_completes_the_coarse_ones():
    from neuroimagen.studies.classes import BY_WNID, NAMES

    assert len(NAMES) == len(BY_WNID) + 40 == 80
    assert NAMES["n02099601"] == "golden retriever" and NAMES["n02389026"] == "sorrel"


def test_blocks_are_those_of_a_class_in_the_order_of_the_file(tmp_path):
    write_study(tmp_path)
    study = EegImageNet(EegImageNetConfig(eeg=str(tmp_path / "eeg"), images=str(tmp_path / "images")))
    for i in range(0, 300, 7):
        trial = study.trials[i][2]
        assert study.facts(i)[3:5] == (f"{trial['granularity']} {trial['label']} 0", float(i))
    assert len({study.facts(i)[:4:3] for i in range(300)}) == 6  # two subjects, three classes
