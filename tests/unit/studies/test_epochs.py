"""A lab's own epochs: files written here, whose every sample is known, come back through reader and shards."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mne_bids", reason="a lab's own epochs are read by mne and mne-bids (extras)")

from lab_files import (
    CLASSES,
    EEG,
    IMAGES,
    NAMES,
    RATE,
    TABLE,
    opened,
    picture_of,
    shuffled_names,
    write_epochs,
    write_epochs_file,
    write_table,
)

from neuroimagen.cli import main
from neuroimagen.config import load_config
from neuroimagen.shards.format import SPLITS, read_manifest
from neuroimagen.shards.pack import ShardsConfig
from neuroimagen.studies.controls import split_images, split_runs
from neuroimagen.studies.epochs_table import TrialTable
from neuroimagen.studies.open import open_study
from neuroimagen.studies.study import Faults


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return folder, write_epochs(folder)


@pytest.fixture
def lab(written, tmp_path):
    return Path(shutil.copytree(written[0], tmp_path / "lab"))


def test_every_epoch_comes_back(written):
    folder, known = written
    study = opened(folder)
    assert (study.n_chans, study.n_times, study.sfreq, study.tmin) == (3, 41, RATE, -0.1)
    assert study.channels == ["O1", "Oz", "Pz"] and study.units == "uV" and study.notes == []
    assert len(study) == len(known) == 60
    for i in range(len(study)):
        trial = study.trial(i)
        name, volts = known[trial.extra["run"], trial.extra["number"]]
        np.testing.assert_allclose(trial.eeg, volts[EEG] * 1e6, rtol=1e-6)
        assert trial.eeg.dtype == np.float32
        assert trial.jpeg == folder / "images" / picture_of(name)
        assert (trial.subject, trial.image) == (int(trial.extra["run"][4:6]), trial.jpeg.stem) == study.facts(i)[:2]
        assert trial.class_name == CLASSES[0 if name[0] == "c" else 1]
        assert trial.extra["onset_s"] == trial.extra["number"] + 1
    # 10 images a class: 1 to val, 1 to test, all trials of an image on one side
    assert [len(study.splits[s]) for s in SPLITS] == [48, 6, 6]
    assert len({study.facts(i)[:2] for i in study.splits["test"]}) == 4  # 2 images of 2 subjects
    assert study.classes[1] == {"label": 1, "wnid": "n0", "name": "cat"} and study.classes[0]["wnid"] == "n1"


def test_signal_options_on_epochs(written):
    folder, known = written
    study = opened(folder, "splits=by_image", "window=[0,0.2]", "baseline=[-0.1,0]", "picks=[Pz,occipital]")
    assert (study.n_times, study.channels) == (20, ["Pz", "O1", "Oz"])
    trial = study.trial(5)
    volts = known[trial.extra["run"], trial.extra["number"]][1][[3, 0, 2]]
    expected = (volts - volts[:, :10].mean(axis=1, keepdims=True))[:, 10:30] * 1e6
    np.testing.assert_allclose(trial.eeg, expected, rtol=1e-5, atol=1e-4)


def test_column_split(lab):
    def sided(side):
        write_table(lab / "trials.csv", [TABLE[0] + ",split"] + [f"{x},{side(i)}" for i, x in enumerate(TABLE[1:])])

    with pytest.raises(ValueError, match="trials.csv has no column split: add it, or give splits=by_image or hold_out"):
        opened(lab, "splits=official")
    sided(lambda i: ["train", "Val", "test"][min(i % 5, 2)])
    study = opened(lab, "splits=official")
    assert study.split_by == "image" and "column split of trials.csv" in study.protocol
    for name, remainders in (("train", {0}), ("val", {1}), ("test", {2, 3, 4})):
        found = {NAMES.index(n) % 5 for n in (shown_name(study, i) for i in study.splits[name])}
        assert found == remainders
    sided(lambda i: "train")
    with pytest.raises(ValueError, match="no trial is left in split 'val'"):
        opened(lab, "splits=official")
    sided(lambda i: "tset")
    with pytest.raises(ValueError, match="line 2: split 'tset' must be train, val or test"):
        opened(lab, "splits=official")


def shown_name(study, i):
    image = study.facts(i).image
    return next(line.split(",")[0] for line in TABLE[1:] if Path(line.split(",")[1]).stem == image)


def by_trial(lab, side):
    """The table as one row a trial: file, trial, image, class, split."""
    rows = ["file,trial,image,class,split"]
    for seed, name in enumerate(["sub-01_run-a", "sub-01_run-b", "sub-02_run-a"]):
        for i, event in enumerate(shuffled_names(seed)):
            cells = TABLE[1 + NAMES.index(event)].split(",")
            rows.append(f"{name}-epo.fif,{i},{cells[1]},{cells[2]},{side(name, i)}")
    write_table(lab / "trials.csv", rows)


def test_rows_by_trial_and_a_split_by_file(lab):
    sides = {"sub-01_run-a": "train", "sub-01_run-b": "val", "sub-02_run-a": "test"}
    plain = opened(lab)
    by_trial(lab, lambda name, i: sides[name])
    study = opened(lab, "splits=official")
    assert study.split_by == "run" and [len(study.splits[s]) for s in SPLITS] == [20, 20, 20]
    for i in range(60):
        assert study.trial(i).eeg.tobytes() == plain.trial(i).eeg.tobytes()
        assert study.facts(i) == plain.facts(i)
    by_trial(lab, lambda name, i: SPLITS[i % 3])
    with pytest.raises(ValueError, match=r"image .* is in both .*, and so are trials of one file"):
        opened(lab, "splits=official")


def test_epochs_dropped_when_they_were_saved_keep_their_numbers(lab):
    import mne

    path = lab / "eeg" / "sub-01_run-a-epo.fif"
    plain = opened(lab)
    before = [plain.trial(i) for i in range(60)]
    by_trial(lab, lambda name, i: "train")
    epochs = mne.read_epochs(path, verbose="ERROR")
    epochs.drop([0, 7], verbose="ERROR").save(path, overwrite=True, verbose="ERROR")
    study = opened(lab)
    assert len(study) == 58 and "2 rows of trials.csv fit no event, the first in line 2" in study.notes
    kept = [i for i in range(60) if i not in (0, 7)]
    for i, old in enumerate(before[i] for i in kept):
        assert study.trial(i).key == old.key and study.facts(i)[:2] == (old.subject, old.image)
        assert study.trial(i).eeg.tobytes() == old.eeg.tobytes()


def test_whole_files_are_held_out(lab):
    with pytest.raises(ValueError, match="hold_out leaves subject 2 no run to train on"):
        opened(lab, "hold_out=[-1]")
    study = opened(lab, "hold_out=[-1]", "subject=1")
    assert study.split_by == "run"
    runs = {s: {study.trial(i).extra["run"] for i in study.splits[s]} for s in SPLITS}
    assert runs["test"] == {"sub-01_run-b-epo.fif"} and runs["train"] == runs["val"] == {"sub-01_run-a-epo.fif"}
    assert [len(study.splits[s]) for s in SPLITS] == [18, 2, 20]


def test_runs_are_split_without_overlap():
    # windows of 1.5 s, a trial a second: the last train trial would share samples with val
    trials = [(1, run, onset) for run, n in (("a", 4), ("b", 2)) for onset in range(n)]
    assert split_runs(trials, [1], 0.5, 1.5, "x") == ["train", "", "val", "val", "test", "test"]
    assert split_runs(trials, [-2], 0.5, 0.5, "x") == ["test"] * 4 + ["train", "val"]
    backwards = split_runs([trials[i] for i in (3, 2, 1, 0, 5, 4)], [1], 0.5, 1.5, "x")
    assert backwards == ["val", "val", "", "train", "test", "test"]


@given(st.dictionaries(st.integers(0, 5), st.sets(st.text(max_size=3), min_size=3, max_size=40)), st.integers(0, 9))
def test_images_are_split_80_10_10(images, seed):
    images = {label: {f"{label}/{name}" for name in names} for label, names in images.items()}
    shown = [(label, name) for label, names in images.items() for name in names]
    side = dict(zip((name for _, name in shown), split_images(shown, "abcdef", seed, "x"), strict=True))
    for names in images.values():
        counts = [sum(side[name] == s for name in names) for s in SPLITS]
        n = max(1, round(len(names) / 10))
        assert counts == [len(names) - 2 * n, n, n]
    assert [*side.values()][::-1] == split_images(shown[::-1], "abcdef", seed, "x")


def test_an_empty_image_leaves_events_out(lab):
    write_table(lab / "trials.csv", TABLE[:-1] + [f"{NAMES[-1]},,,"])
    study = opened(lab)
    assert len(study) == 57 and study.notes == []


def test_a_row_for_one_subject_goes_before_a_row_for_all(lab):
    cat = TABLE[1].split(",")
    rows = [line + "," for line in TABLE[1:]] + [f"{cat[0]},1/{NAMES[-1][0]}é9.jpg,{CLASSES[1]},n1,2"]
    write_table(lab / "trials.csv", [TABLE[0] + ",subject", *rows])
    study = opened(lab)
    images = {
        subject: {study.facts(i).image for i in range(60) if study.facts(i).subject == subject} for subject in (1, 2)
    }
    assert images[1] - images[2] == {"cé0"} and not images[2] - images[1]


def read_some(study, indices, expected, queue):
    try:
        queue.put([i for i in indices if study.trial(i).eeg.tobytes() != expected[i]])
    except Exception as error:
        queue.put(repr(error))


def test_processes_do_not_disturb_each_other(lab):
    shutil.rmtree(lab / "eeg")
    write_epochs_file(lab / "eeg" / "sub-01-epo.fif", 0, NAMES, channels=[f"E{i}" for i in range(32)], rate=1000.0)
    study = opened(lab)
    expected = [study.trial(i).eeg.tobytes() for i in range(20)]  # the file is open in this process now
    context, queues = multiprocessing.get_context("fork"), []
    orders = [np.random.default_rng(s).permutation(20).tolist() * 10 for s in range(3)]
    for order in orders:
        queues.append(context.Queue())
        context.Process(target=read_some, args=(study, order, expected, queues[-1]), daemon=True).start()
    for queue in queues:
        assert queue.get(timeout=900) == []
    again = pickle.loads(pickle.dumps(study))
    assert again.trial(7).eeg.tobytes() == expected[7]


def change_table(old, new):
    def change(lab):
        text = (lab / "trials.csv").read_text(encoding="utf-8")
        assert old in text
        (lab / "trials.csv").write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def other_file(**kwargs):
    return lambda lab: write_epochs_file(lab / "eeg" / "sub-02_run-b-epo.fif", 9, NAMES[:4], **kwargs)


def write_bytes(path, data):
    return lambda lab: (lab / path).write_bytes(data)


REFUSED = [
    (change_table("event,image", "code,image"), "trials.csv must have a column 'event' or a column 'trial'"),
    (change_table("event,image", "event,picture"), "has no column 'image', it has: event, picture, class, wnid"),
    (change_table("event,image,class,wnid", "event,image,class,class"), "two columns 'class'"),
    (change_table("c0,", "dog,"), "sub-01_run-a-epo.fif: {lab}/trials.csv has no row for event c0: add it"),
    (change_table("c1,", "c0,"), "line 3 says the same event as line 2"),
    (change_table("0/cé0", "0/cé99"), "line 2: picture {lab}/images/0/cé99.jpg is missing"),
    (change_table("0/cé0", "../0/cé0"), "line 2: image ../0/cé0.jpg must be a path below images="),
    (change_table("0/cé0", "/0/cé0"), "line 2: image /0/cé0.jpg must be a path below images="),
    (change_table("0/cé1.jpg", "1/Sé1.jpg"), "is of class 'Straße 犬' here and 'cat' above"),
    (change_table("0/cé1.jpg,cat", "1/cé0.jpg,cat"), "1/cé0.jpg and {lab}/images/0/cé0.jpg have the same name"),
    (change_table("cat,n0\nc1", "cat,n7\nc1"), "line 3: class 'cat' has wnid n0 here and n7 above"),
    (change_table("cat,n0\nc1", ",n0\nc1"), "line 2: column class is empty"),
    (change_table("cat,n0\nc1", "cat,n0,5\nc1"), "line 2 has 5 cells and the header 4"),
    (change_table("c0,", ","), "line 2: column event must hold an event's name or number"),
    (change_table("c0,0/cé0.jpg", 'c0,"0/cé0.jpg'), "cannot be read as a table"),
    (write_bytes("trials.csv", "event,image,class\nä,b,c".encode("latin-1")), "line 2: byte 0xe4 is not UTF-8 text"),
    (write_bytes("trials.csv", b""), "trials.csv is empty: a table with the columns image, class is wanted"),
    (write_bytes("trials.csv", TABLE[0].encode()), "has no row below its header"),
    (write_bytes("trials.csv", b"event,image,class\nc0,a\0b,c"), "line 2: a zero byte after 'c0,a' is not UTF-8"),
    (lambda lab: (lab / "trials.csv").unlink(), "cannot be read as a table (No such file or directory)"),
    (lambda lab: shutil.rmtree(lab / "images"), "/images is not a folder"),
    (lambda lab: shutil.rmtree(lab / "eeg"), "/eeg names no file"),
    (write_bytes("eeg/sub-03-epo.fif", b"not a fif file"), "sub-03-epo.fif cannot be read as epochs of mne"),
    (write_bytes("eeg/sub-03-epo.fif", b""), "sub-03-epo.fif is empty: copy it again, or remove it"),
    (other_file(channels=["O1", "EOG", "Oz", "P8"]), "the same EEG channels, but only one has P8, Pz: drop them"),
    (other_file(channels=["EOG"]), "sub-02_run-b-epo.fif has no channel of type EEG"),
    (other_file(rate=200.0), "are at 200 and 100 Hz: resample one of them"),
    (other_file(tmin=0.0), "hold epochs of 41 samples from 0 s and 41 samples from -0.1 s: cut them alike"),
    (lambda lab: (lab / "eeg/sub-02_run-a-epo.fif").rename(lab / "eeg/other-epo.fif"), "put sub-<subject> into it"),
]


@pytest.mark.parametrize("change, sentence", REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_refused(lab, change, sentence, capsys):
    change(lab)
    with pytest.raises(ValueError) as error:
        opened(lab)
    assert sentence.format(lab=lab) in str(error.value) and "\n" not in str(error.value)
    assert str(lab) in str(error.value)


def test_the_template_is_whole(lab):
    path = Path(__file__).parents[3] / "configs" / "epochs.yaml"
    text = path.read_text().replace("\n  # ", "\n  ")  # what is commented out, too
    (lab / "all.yaml").write_text(text)
    made = load_config(ShardsConfig, [f"config={lab / 'all.yaml'}", "out=x"], "shards")
    assert made.dataset == "epochs" and made.band == [0.5, 40] and made.whiten == "time"
    files = [f"eeg={lab / 'eeg'}", f"images={lab / 'images'}", f"trials={lab / 'trials.csv'}", "window=[-0.1,0.3]"]
    study = open_study(load_config(ShardsConfig, [f"config={path}", "out=x", *files], "shards"))
    assert study.trial(0).eeg.shape == (3, 40)


def test_the_command_says_it_in_a_sentence(lab, capsys):
    change_table("c0,", "dog,")(lab)
    files = [f"eeg={lab / 'eeg'}", f"images={lab / 'images'}", f"trials={lab / 'trials.csv'}", f"out={lab / 'out'}"]
    assert main(["shards", "dataset=epochs", "splits=by_image", *files]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (lab / "out").exists()
    with pytest.raises(ValueError, match="it holds subjects \\[1, 2\\]"):
        opened(lab, "splits=by_image", "subject=7")


def test_faults_are_all_listed(lab):
    change_table("c0,", "dog,")(lab)
    (lab / "images" / "0" / "cé1.jpg").unlink()
    fault = Faults(collect=True)
    study = opened(lab, fault=fault)
    assert len(study) == 60 - 3 - 3 and len(fault.found) == 4  # the picture, and the event in each of three files
    assert len({i for own in study.splits.values() for i in own}) == 54


def test_channels_may_come_in_another_order(lab):
    volts = write_epochs_file(lab / "eeg" / "sub-02_run-b-epo.fif", 9, NAMES, channels=["Pz", "Oz", "O1", "EOG"])
    study = opened(lab)
    trial = study.trial(63)
    assert trial.extra["run"] == "sub-02_run-b-epo.fif" and study.channels == ["O1", "Oz", "Pz"]
    np.testing.assert_allclose(trial.eeg, volts[3, [2, 1, 0]] * 1e6, rtol=1e-6)


@pytest.mark.parametrize(
    "naming, parts", [("neuromag", ["-epo.fif", "-epo-1.fif"]), ("bids", ["_split-01", "_split-02"])]
)
def test_files_that_mne_cut_in_parts(lab, naming, parts):
    import mne

    shutil.rmtree(lab / "eeg")
    eeg = np.random.default_rng(0).normal(0, 1e-5, (20, 32, 1200))
    events = np.array([[2000 * i, 0, 1 + i] for i in range(20)])
    event_id = {name: 1 + i for i, name in enumerate(NAMES)}
    epochs = mne.EpochsArray(eeg, mne.create_info(32, 1000.0, "eeg"), events, 0, event_id, verbose="ERROR")
    name = "sub-01-epo.fif" if naming == "neuromag" else "sub-01_epo.fif"
    (lab / "eeg").mkdir()
    epochs.save(lab / "eeg" / name, split_size="2MB", split_naming=naming, verbose="ERROR")
    study = opened(lab)
    assert len(study) == 20 and all(any(part in p.name for p in study.inputs) for part in parts)
    for i in range(20):
        np.testing.assert_allclose(study.trial(i).eeg, eeg[i] * 1e6, rtol=1e-6)


def test_nan_is_named(lab):
    import mne

    path = lab / "eeg" / "sub-02_run-a-epo.fif"
    epochs = mne.read_epochs(path, verbose="ERROR")
    epochs._data[3, 2, 5] = np.nan
    epochs.save(path, overwrite=True, verbose="ERROR")
    with pytest.raises(ValueError, match="sub-02_run-a-epo.fif: trial 3 holds NaN or infinity in channel Oz"):
        opened(lab).trial(43)


def test_subjects_with_names_are_numbered_and_decomposed_unicode_is_found(lab):
    import unicodedata

    for name in ("sub-01_run-a", "sub-01_run-b", "sub-02_run-a"):
        to = name.replace("sub-01", "sub-anna").replace("sub-02", "sub-bo")
        (lab / "eeg" / f"{name}-epo.fif").rename(lab / "eeg" / f"{to}-epo.fif")
    picture = lab / "images" / "0" / "cé0.jpg"
    picture.rename(picture.with_name(unicodedata.normalize("NFD", picture.name)))
    study = opened(lab)
    assert study.notes == ["subjects: 1 is anna, 2 is bo"] and len(study) == 60
    assert {study.facts(i).subject for i in range(60)} == {1, 2}
    # one image under two Unicode forms is one image
    assert len({study.facts(i).image for i in range(60)}) == 2 * IMAGES


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8), unique=True),
    data=st.data(),
)
def test_tables_of_any_names(names, data, tmp_path_factory):
    import csv

    from neuroimagen.studies.epochs_table import plain

    folder = tmp_path_factory.mktemp("table")
    (folder / "p.png").write_bytes(b"")
    names = list({plain(name): name for name in names if plain(name)}.values())
    with open(folder / "t.csv", "w", newline="", encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))) as file:
        writer = csv.writer(file)
        writer.writerow(["reaction time", "Event", " class", "image"])
        writer.writerows([["0.3", name, "c" + name, "p.png" if i == 0 else ""] for i, name in enumerate(names)])
    if not names:
        with pytest.raises(ValueError, match="no row"):
            TrialTable(folder / "t.csv", folder)
        return
    table = TrialTable(folder / "t.csv", folder)
    for i, name in enumerate(names):
        row = table.find(["x.fif"], "1", [name])
        assert row.line == i + 2 and (row.picture is None) == (i > 0)
    assert not table.missing and table.find(["x.fif"], "1", ["\t longer than any"]) is None


def test_without_the_libraries(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "mne", None)
    with pytest.raises(ValueError, match=r'pip install "neuroimagen\[mne\]"'):
        opened(lab)


PEAK = """
import resource, sys
import mne
from neuroimagen.shards.pack import ShardsConfig
from neuroimagen.studies.open import open_study
files = dict(zip(("eeg", "images", "trials"), sys.argv[1:]))
study = open_study(ShardsConfig(out="", dataset="epochs", splits="by_image", **files))
study.trial(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(len(study)):
    study.trial(i)
print(len(study), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_memory_stays_that_of_a_trial(tmp_path):
    write_epochs(tmp_path)
    shutil.rmtree(tmp_path / "eeg")
    channels = [f"E{i}" for i in range(64)]
    path = tmp_path / "eeg" / "sub-01-epo.fif"
    write_epochs_file(path, 0, NAMES * 10, channels=channels, rate=1000.0)
    files = [str(path), str(tmp_path / "images"), str(tmp_path / "trials.csv")]
    run = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, timeout=900, check=True)
    count, grown = map(int, run.stdout.split())
    assert count == 200 and path.stat().st_size > 20e6 and grown < 4e6


def set_info(lab, file, annotations=None, **info):
    import mne

    path = lab / "eeg" / f"{file}-epo.fif"
    epochs = mne.read_epochs(path, verbose="ERROR")
    with epochs.info._unlock():
        epochs.info.update(info)
    if annotations:
        epochs.set_annotations(mne.Annotations(*annotations))
    epochs.save(path, overwrite=True, verbose="ERROR")


@pytest.mark.parametrize(
    "info, said",
    [
        ({"highpass": 1.0, "lowpass": 30.0}, "1 to 30 Hz, reference as recorded"),
        ({"custom_ref_applied": True}, "0 to 50 Hz, another reference was applied"),
        ({"highpass": 0.1}, "0.1 to 50 Hz, reference as recorded"),
    ],
)
def test_check_asks_where_people_were_filtered_or_referenced_otherwise(lab, info, said, tmp_path, capsys):
    set_info(lab, "sub-02_run-a", **info)
    files = [f"eeg={lab / 'eeg'}", f"images={lab / 'images'}", f"trials={lab / 'trials.csv'}"]
    files += ["dataset=epochs", "splits=by_image"]
    question = (
        "the files state different filters or references: 0 to 50 Hz, reference as recorded (2 files, "
        f"sub-01_run-a-epo.fif, sub-01_run-b-epo.fif), {said} (1 files, sub-02_run-a-epo.fif): process them alike"
    )
    main(["check", *files])
    assert question in capsys.readouterr().out
    assert main(["shards", *files, f"out={tmp_path / 'out'}"]) == 0
    kept = read_manifest(tmp_path / "out").recorded
    assert [len(own["files"]) for own in kept] == [2, 1] and all(kept[1][name] == value for name, value in info.items())
    capsys.readouterr()
    main(["check", str(tmp_path / "out")])
    assert question in capsys.readouterr().out


def test_bad_annotations_of_saved_epochs_are_told(lab):
    set_info(lab, "sub-02_run-a", annotations=([1.0, 5.1], [0.05, 1.0], ["BAD_x", "bad y"]))
    study = opened(lab)
    assert len(study) == 60 and len(study.notes) == 1
    assert study.notes[0] == "3 epochs of sub-02_run-a-epo.fif touch a BAD_ annotation and are kept, as they were saved"


def test_rates_apart_by_less_than_a_sample_an_hour_are_equal(lab):
    write_epochs_file(lab / "eeg" / "sub-02_run-b-epo.fif", 9, NAMES[:4], rate=RATE - 0.0002)
    assert len(opened(lab)) == 64 and opened(lab).sfreq == RATE
    write_epochs_file(lab / "eeg" / "sub-02_run-b-epo.fif", 9, NAMES[:4], rate=RATE - 0.0005)
    with pytest.raises(ValueError, match="are at 99.999[0-9]+ and 100 Hz: resample one of them"):
        opened(lab)


def test_markers_to_ignore(lab):
    change_table("c0,", "dog,")(lab)
    study = opened(lab, "splits=by_image", "ignore_markers=[c0]")
    assert len(study) == 57
    with pytest.raises(ValueError, match="task=view is for a BIDS data set"):
        opened(lab, "splits=by_image", "task=view")
