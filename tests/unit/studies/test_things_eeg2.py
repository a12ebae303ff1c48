"""The THINGS-EEG2 reader: both published kinds of file, sample by sample, and what it refuses in which words."""

import pickle
import re
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perceivelab_files import jpeg
from test_plain_pickle import Attack
from things_files import CONCEPTS, as_npy, write_study

from neuroimagen.cli import main
from neuroimagen.shards.format import SPLITS, ShardSplit, read_manifest
from neuroimagen.studies.study import Faults
from neuroimagen.studies.things_eeg2 import FIELDS, ThingsEeg2, ThingsEeg2Config


def read(truth, **kwargs):
    fault = kwargs.pop("fault", None)
    return ThingsEeg2(ThingsEeg2Config(eeg=truth.folder / "eeg", images=truth.folder / "images", **kwargs), fault)


def command(truth, *more):
    folder = truth.folder
    return ["shards", "dataset=things_eeg2", f"eeg={folder}/eeg", f"images={folder}/images", f"out={folder}/out", *more]


@pytest.fixture
def truth(tmp_path):
    return write_study(tmp_path / "study")


KINDS = [
    ("save", "core", 3, "f8"),
    ("save", "_core", 4, "f4"),
    ("bare", "core", 4, "f8"),
    ("bare", "_core", 4, "f8"),
    ("bare", "core", 3, "f2"),
]


@pytest.mark.parametrize("flavour, core, protocol, dtype", KINDS)
def test_shards_hold_every_trial_of_both_kinds_of_file(tmp_path, flavour, core, protocol, dtype):
    kind = {"flavour": flavour, "core": core, "protocol": protocol, "dtype": dtype, "longer": 20}
    truth = write_study(tmp_path / "study", **kind)
    assert main(command(truth, "eeg_dtype=float32", "shard_size=13")) == 0
    assert main(["check", str(truth.folder / "out")]) == 0
    seen: Counter = Counter()
    for split in SPLITS:
        shards = ShardSplit(truth.folder / "out", split)
        for i in range(len(shards)):
            info = shards.info(i)
            name = "test" if split == "test" else "training"
            place = info["condition"], info["repetition"]
            np.testing.assert_array_equal(shards.eeg(i), truth.eeg[info["subject"], name][place].astype("f4"))
            picture = truth.pictures[name][info["condition"]]
            assert shards.picture(i) == picture.read_bytes() and info["image"] == picture.stem
            assert info["wnid"] == picture.parent.name.partition("_")[2]
            seen[(info["subject"], name, *place)] += 1
    wanted = [(*key, c, r) for key, eeg in truth.eeg.items() for c in range(len(eeg)) for r in range(eeg.shape[1])]
    assert seen == Counter(wanted)  # each once
    manifest = read_manifest(truth.folder / "out")
    assert (manifest.dataset, manifest.sfreq, manifest.n_times, manifest.n_chans) == ("things_eeg2", 100.0, 100, 5)
    assert manifest.channels == truth.channels and manifest.subjects == [1, 2] and not manifest.simulated
    assert [c["name"] for c in manifest.classes][:2] == ["aardvark", "crème brûlée"]
    assert [c["label"] for c in manifest.classes] == list(range(6))


def test_val_is_one_picture_of_each_training_concept_and_test_the_published_set(truth):
    study = read(truth, seed=3)
    trials = {split: [study.trial(i) for i in own] for split, own in study.splits.items()}
    images = {split: {trial.image for trial in own} for split, own in trials.items()}
    assert {split: len(own) for split, own in trials.items()} == {"train": 32, "val": 16, "test": 12}
    assert not images["train"] & images["val"] and not (images["train"] | images["val"]) & images["test"]
    assert sorted({trial.label for trial in trials["val"]}) == [0, 1, 2, 3] and len(images["val"]) == 4
    assert all(n == 4 for n in Counter(trial.image for trial in trials["val"]).values())  # 2 people x 2 repetitions
    assert {trial.label for trial in trials["test"]} == {4, 5}
    assert "none of them in training (2-way zero-shot)" in study.protocol
    assert read(truth, seed=3).splits == study.splits
    assert any(read(truth, seed=seed).splits != study.splits for seed in range(4))


def test_val_may_be_whole_concepts_that_are_not_trained_on(truth):
    study, before = read(truth, seed=3, val_concepts=1), read(truth, seed=3)
    labels = {split: {study.facts(i).label for i in own} for split, own in study.splits.items()}
    assert len(labels["val"]) == 1 and labels["train"] == {0, 1, 2, 3} - labels["val"] and labels["test"] == {4, 5}
    assert {split: len(own) for split, own in study.splits.items()} == {"train": 36, "val": 12, "test": 12}
    assert len({study.facts(i).image for i in study.splits["val"]}) == 3  # every picture of it, of 2 people, twice
    assert study.splits["test"] == before.splits["test"]
    assert "val: all pictures of 1 of 4 training concepts (seed 3), which are not trained on" in study.protocol
    assert len({tuple(read(truth, seed=seed, val_concepts=1).splits["val"]) for seed in range(8)}) > 1
    three = read(truth, val_concepts=3)
    assert len({three.facts(i).label for i in three.splits["train"]}) == 1


def test_val_concepts_need_no_second_picture_and_go_into_the_manifest_where_given(tmp_path):
    truth = write_study(tmp_path / "study", per_concept=1)
    assert main(command(truth, "val_concepts=2")) == 0
    manifest = read_manifest(truth.folder / "out")
    assert manifest.config["val_concepts"] == 2 and "val: all pictures of 2 of 4" in manifest.protocol
    plain = write_study(tmp_path / "plain")
    assert main(command(plain)) == 0
    assert "val_concepts" not in read_manifest(plain.folder / "out").config


@pytest.mark.parametrize("given", [-1, 4, 5])
def test_val_concepts_leave_some_to_train_on(truth, given):
    with pytest.raises(ValueError, match=f"^val_concepts={given} of 4 training concepts: give 1 to 3$"):
        read(truth, val_concepts=given)
    with pytest.raises(ValueError, match="^splits=trials deals out trials, whatever their concept: leave val_concepts"):
        read(truth, val_concepts=given, splits="trials")


def test_times_longer_than_the_data_belong_to_its_end(tmp_path):
    """As in the 250 Hz files: 300 times, 250 samples of which the first is at onset."""
    study = read(write_study(tmp_path, n_times=250, sfreq=250.0, longer=50, flavour="bare"))
    assert study.tmin == 0 and study.sfreq == 250.0 and study.n_times == 250
    assert "`times` names 300 times for 250 samples: the last 250 are theirs" in study.notes
    assert "samples run from 0.000 to 0.996 s after onset" in study.notes


def test_a_concept_in_both_sets_stays_two_classes_and_is_told(tmp_path):
    truth = write_study(tmp_path, concepts={"training": ["bat", "cat"], "test": ["bat"]})
    study = read(truth)
    assert [c["wnid"] for c in study.classes] == ["training_00001_bat", "cat", "test_00001_bat"]
    assert [c["name"] for c in study.classes] == ["bat", "cat", "bat"]
    assert "of which 1 (bat) are also trained on: NOT zero-shot" in study.protocol


def test_pictures_of_one_name_are_told_apart_by_their_folders(tmp_path):
    truth = write_study(tmp_path)
    for own in truth.pictures.values():
        own[0].rename(own[0].with_name("same.jpg"))
    study = read(truth)
    images = {study.trial(i).image for own in study.splits.values() for i in own}
    assert {"training_00001_aardvark_same", "test_00001_aircraft_carrier_same"} <= images and len(images) == 14


def test_hidden_files_folders_without_numbers_and_names_as_an_array_are_fine(tmp_path):
    truth = write_study(tmp_path)
    first = truth.pictures["training"][0]
    for clutter in (".DS_Store", "._aardvark_01b.jpg", "notes.txt"):
        (first.parent / clutter).write_bytes(b"x")
    (first.parents[1] / ".cache").mkdir()
    first.parent.rename(first.parents[1] / "00001aardvark")
    for key in truth.eeg:
        truth.write(*key, {**truth.content(*key), "ch_names": np.array(truth.channels), "extra": {"more": [1]}})
    study = read(truth)
    assert study.classes[0]["wnid"] == "00001aardvark" and study.channels == truth.channels


def test_a_trial_reads_nothing_but_its_own_samples(truth):
    """The file is changed behind the reader's back: it sees that, so it holds no copy."""
    study = read(truth)
    eeg = truth.eeg[2, "test"]
    eeg[1, 2] = 5.0
    truth.write(2, "test")
    index = study.parts[3].first + 1 * 3 + 2
    assert (study.trial(index).eeg == 5.0).all() and study.trial(index).key == "s02_test_c00001_r02"


@given(
    st.integers(2, 40),
    st.integers(1, 7),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.integers(0, 30),
    st.sampled_from([50.0, 100.0, 250.0, 1000.0, 512.0]),
    st.lists(st.text("abcåß日_-0189", min_size=1, max_size=8), min_size=3, max_size=5, unique=True),
)
def test_any_size_is_read_sample_by_sample(tmp_path_factory, n_times, n_chans, repetitions, longer, sfreq, concepts):
    truth = write_study(
        tmp_path_factory.mktemp("any"),
        subjects=(7,),
        concepts={"training": concepts[1:], "test": concepts[:1]},
        per_concept=2,
        **{"n_times": n_times, "n_chans": n_chans, "repetitions": repetitions, "longer": longer, "sfreq": sfreq},
    )
    study = read(truth)
    assert (study.n_chans, study.n_times, study.sfreq) == (n_chans, n_times, sfreq)
    trials = [study.trial(i) for own in study.splits.values() for i in own]
    assert len({trial.key for trial in trials}) == len(trials) == sum(map(len, study.parts))
    for trial in trials:
        name = "test" if "test" in trial.key else "training"
        place = trial.extra["condition"], trial.extra["repetition"]
        np.testing.assert_array_equal(trial.eeg, truth.eeg[7, name][place].astype("f4"))
        assert trial.jpeg == truth.pictures[name][trial.extra["condition"]]
    assert [study.facts(i)[:2] for own in study.splits.values() for i in own] == [(7, trial.image) for trial in trials]


JUNK = st.sampled_from(
    [None, 3, "text", [], [1], {}, b"", np.zeros(3), np.zeros((1, 2, 3, 4)), np.array("x"), [[1], 2]]
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A study of which one file is written again and again."""
    return write_study(tmp_path_factory.mktemp("shared") / "study")


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), JUNK, min_size=1), st.booleans())
def test_fields_of_any_type_are_refused_in_one_sentence(shared, fields, missing):
    truth, content = shared, fields if missing else shared.content(1, "test") | fields
    truth.write(1, "test", content)
    if set(fields) == {"other"} and not missing:
        assert len(read(truth).splits["test"]) == 12  # an extra field is no fault
        return
    with pytest.raises(ValueError) as caught:
        read(truth)
    assert "\n" not in str(caught.value) and "preprocessed_eeg_test.npy" in str(caught.value)


def field(name, value):
    return lambda truth: truth.write(1, "training", truth.content(1, "training") | {name: value})


def attack(flavour):
    def spoil(truth):
        content = truth.content(1, "training") | {"more": Attack(truth.folder / "attacked")}
        truth.path(1, "training").write_bytes(as_npy(content, flavour))

    return spoil


def add_picture(truth):
    path = truth.pictures["training"][0]
    path.with_name("zzz.jpg").write_bytes(jpeg(np.random.default_rng(0)))


def rename_concept(truth):
    truth.pictures["test"][0].parent.rename(truth.folder / "images" / "training_images" / "00099_spare")


def nan(value):
    def spoil(truth):
        truth.eeg[2, "training"][4, 1, 3, 7] = value
        truth.write(2, "training")

    return spoil


def nested(truth):
    own = truth.folder / "images" / "test_images"
    own.rename(truth.folder / "x")
    own.mkdir()
    (truth.folder / "x").rename(own / "test_images")


def damage_picture(truth):
    truth.pictures["test"][1].write_bytes(b"\xff\xd8\xff")


def lengths(truth):
    truth.eeg[2, "test"] = truth.eeg[2, "test"][..., :90]
    truth.write(2, "test")


def cut(truth):
    path = truth.path(2, "training")
    path.write_bytes(path.read_bytes()[:-20_000])


def order(truth):
    truth.write(2, "test", truth.content(2, "test") | {"ch_names": truth.channels[::-1]})


def later(truth):
    truth.write(2, "test", truth.content(2, "test") | {"times": truth.times + 0.1})


def plain(truth):
    np.save(truth.path(1, "test"), truth.eeg[1, "test"])


def into_one(truth):
    (truth.folder / "eeg").rename(truth.folder / "old")
    (truth.folder / "old" / "sub-01").rename(truth.folder / "eeg")


def twice(truth):
    (truth.folder / "eeg" / "sub-1").mkdir()


EVEN = np.arange(100) / 100
SELF: list = []
SELF.append(SELF)
TOWER: tuple = ()
for _ in range(60):  # of pairs: to look into each would take 2**60 steps
    TOWER = (TOWER, TOWER)
CASES = {
    "attack in np.save": (attack("save"), r"training\.npy is a pickle that wants posix\.system.*nothing in it was run"),
    "attack in a bare pickle": (attack("bare"), r"training\.npy is a pickle that wants posix\.system"),
    "a plain array": (plain, r"preprocessed_eeg_test\.npy is not a THINGS-EEG2 file: it must hold"),
    "not a pickle": (
        lambda t: t.path(1, "test").write_bytes(struct.pack("<40d", *range(40))),
        r"preprocessed_eeg_test\.npy is damaged or no pickled",
    ),
    "cut off": (cut, r"sub-02/preprocessed_eeg_training\.npy is damaged or no pickled .* download it again"),
    "missing file": (lambda t: t.path(2, "test").unlink(), r"sub-02/preprocessed_eeg_test\.npy does not exist"),
    "no dict": (lambda t: t.write(1, "test", [1]), r"is not a THINGS-EEG2 file: it must hold"),
    "no times": (
        lambda t: t.write(1, "test", {k: v for k, v in t.content(1, "test").items() if k != "times"}),
        "is not a THINGS-EEG2 file: it must hold .* times",
    ),
    "averaged": (field("preprocessed_eeg_data", np.zeros((12, 5, 100))), r"must be a table .* shape \(12, 5, 100\)"),
    "complex": (field("preprocessed_eeg_data", np.zeros((12, 2, 5, 100), complex)), "must be a table of numbers"),
    "conditions": (field("preprocessed_eeg_data", np.zeros((9, 2, 5, 100))), "holds 9 conditions.*12 pictures in 4"),
    "names": (field("ch_names", ["O1", "O2"]), "`ch_names` names 2 channels, but the data have 5"),
    "name twice": (field("ch_names", ["O1", "O2", "Oz", "Pz", "O1"]), "`ch_names` holds 'O1' twice"),
    "names are numbers": (field("ch_names", [1, 2, 3, 4, 5]), "`ch_names` must be a list of names"),
    "times short": (field("times", EVEN[:99]), "must hold the times of the 100 samples, two or more; it has 99"),
    "times within themselves": (field("times", SELF), "`times` must hold the times of the 100 samples"),
    "times in a tower": (field("times", TOWER), "`times` must hold the times of the 100 samples"),
    "names within themselves": (field("ch_names", SELF), "`ch_names` must be a list of names"),
    "names in a tower": (field("ch_names", TOWER), "`ch_names` must be a list of names"),
    "data within themselves": (field("preprocessed_eeg_data", SELF), "must be a table of numbers"),
    "times uneven": (field("times", EVEN**2), "`times` must rise in even steps"),
    "times fall": (field("times", -EVEN), "`times` must rise in even steps"),
    "times NaN": (field("times", EVEN * np.nan), "`times` must rise in even steps"),
    "times stand": (field("times", EVEN * 0), "`times` must rise in even steps"),
    "other channels": (order, r"sub-02/preprocessed_eeg_test\.npy has other channels, or in another order, than"),
    "other length": (lengths, r"preprocessed_eeg_test\.npy has 90 samples from 0.1 to .* has 100 samples from 0 "),
    "other times": (later, r"sub-02/preprocessed_eeg_test\.npy has 100 samples from 0\.1 to"),
    "picture missing": (lambda t: t.pictures["training"][4].unlink(), r"00002_cr.* holds 2 pictures where .* 3"),
    "picture too many": (add_picture, r"00001_aardvark holds 4 pictures where the other folders hold 3"),
    "concept too many": (rename_concept, "holds 1 pictures where the other folders hold 3"),
    "no picture folder": (lambda t: (t.folder / "images/test_images").rename(t.folder / "x"), "must hold training_"),
    "pictures one folder deeper": (nested, r"test_images holds no folder of pictures: it must hold one a concept"),
    "nan": (nan(np.nan), r"condition 4 \(image crème_brûlée_02b\), repetition 1 holds NaN.* in channel P0"),
    "huge": (nan(1e300), r"condition 4 .* holds NaN or infinity in channel P0"),
    "large for float16": (nan(1e6), r"s02_training_c00004_r01: a value of 1e\+06 does not fit float16"),
    "picture damaged": (damage_picture, r"tick_01s\.jpg cannot be decoded"),
    "one subject's folder": (into_one, r"holds no folder sub-01, sub-02, .*: give the folder above it, and subject="),
    "sub-1 and sub-01": (twice, r"sub-1: subjects are numbered from 1, each in one folder|sub-01: subjects are"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(truth, capsys, case):
    spoil, sentence = CASES[case]
    spoil(truth)
    assert main(command(truth)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (truth.folder / "out").exists() and not (truth.folder / "out.partial").exists()
    assert not (truth.folder / "attacked").exists()


def test_one_picture_a_concept_leaves_none_for_val(tmp_path):
    with pytest.raises(ValueError, match="concept aardvark has one picture; two are needed"):
        read(write_study(tmp_path, per_concept=1))


def test_settings_that_do_not_belong(truth, capsys):
    assert main(command(truth, "splits=by_image")) == 2
    assert "has its published test set and no other: leave splits=official" in capsys.readouterr().err


def test_all_folders_with_another_number_of_pictures_are_listed(truth):
    fault = Faults(collect=True)
    assert read(truth, fault=fault).splits == read(truth).splits and not fault.found
    truth.pictures["training"][0].unlink()
    add_picture(truth)
    truth.pictures["training"][4].unlink()
    (truth.pictures["test"][0].parent / "more.png").write_bytes(jpeg(np.random.default_rng(0)))
    (truth.folder / "images" / "test_images" / "00003_third").mkdir()
    (truth.folder / "images" / "test_images" / "00003_third" / "x.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="2 folders hold another number of pictures than the others"):
        read(truth, fault=fault)
    assert [re.search(r"\d{5}_\w+ holds \d", sentence)[0] for sentence in fault.found] == [
        "00002_crème_brûlée holds 2",
        "00001_aircraft_carrier holds 2",
    ]


def test_the_generator_writes_what_numpy_and_pickle_read(tmp_path):
    """So that the tests above are about the published format and not about one of our own."""
    truth = write_study(tmp_path / "save", core="core")
    found = np.load(truth.path(1, "training"), allow_pickle=True).item()
    np.testing.assert_array_equal(found["preprocessed_eeg_data"], truth.eeg[1, "training"])
    truth = write_study(tmp_path / "bare", flavour="bare", concepts=CONCEPTS)
    with open(truth.path(1, "training"), "rb") as file:
        np.testing.assert_array_equal(pickle.load(file)["times"], truth.times)
