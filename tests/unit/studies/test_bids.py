"""A lab's own BIDS data set: recordings written here, every sample known, come back through reader and shards."""

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mne_bids", reason="a lab's own epochs are read by mne and mne-bids (extras)")

from lab_files import (
    EEG,
    NAMES,
    RATE,
    TABLE,
    config,
    opened,
    picture_of,
    write_bids,
    write_table,
)

from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import make_shards
from neuroimagen.studies.epochs_files import spans, touched
from neuroimagen.studies.study import Faults


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bids")
    return folder, write_bids(folder)


def test_bids_recordings_are_cut_at_their_events(bids):
    folder, known = bids
    study = opened(folder, "splits=by_image", "window=[0.1,0.5]")
    assert (study.n_chans, study.n_times, study.channels) == (3, 40, ["O1", "Oz", "Pz"]) and len(study) == 60
    assert study.tmin == pytest.approx(0.1)
    for i in range(len(study)):
        trial = study.trial(i)
        names, volts = known[Path(trial.extra["run"]).name.removesuffix("_eeg.vhdr")]
        number = trial.extra["number"]
        onset = 100 * (number + 1)
        np.testing.assert_allclose(trial.eeg, volts[EEG, onset + 10 : onset + 50] * 1e6, rtol=1e-5, atol=1e-4)
        assert trial.jpeg == folder / "images" / picture_of(names[number])
    # the baseline may lie outside the window: what it needs is cut along
    based = opened(folder, "splits=by_image", "window=[0.1,0.5]", "baseline=[-0.1,0]")
    trial, plain = based.trial(3), study.trial(3)
    volts = known[Path(trial.extra["run"]).name.removesuffix("_eeg.vhdr")][1][EEG]
    onset = 100 * (trial.extra["number"] + 1)
    mean = volts[:, onset - 10 : onset].mean(axis=1, keepdims=True) * 1e6
    np.testing.assert_allclose(trial.eeg, plain.eeg - mean, rtol=1e-5, atol=1e-3)


def test_bids_recordings_are_filtered_as_a_whole(bids):
    import mne

    folder, known = bids
    # 0.4 s would be too short for a band from 0.5 Hz; the recording of 22 s is not
    study = opened(folder, "splits=by_image", "window=[0,0.4]", "band=[0.5,30]", "resample=50")
    assert (study.n_times, study.sfreq) == (
        20,
        50,
    ) and "; band 0.5, 30 Hz on the continuous recordings; signal: " in study.protocol
    assert "bandpass" not in study.protocol and "notch" not in study.protocol
    whole = opened(folder, "splits=by_image", "window=[0,0.4]", "band=[0.5,30]")
    for i in (0, 25, 59):
        trial = whole.trial(i)
        names, volts = known[Path(trial.extra["run"]).name.removesuffix("_eeg.vhdr")]
        onset = 100 * (trial.extra["number"] + 1)
        filtered = mne.filter.filter_data(volts[EEG], RATE, 0.5, 30, verbose="ERROR")[:, onset : onset + 40]
        np.testing.assert_allclose(trial.eeg, filtered * 1e6, atol=0.01)
    # 100 uV at 40 Hz are gone with a notch, too
    notched = opened(folder, "splits=by_image", "window=[0,0.4]", "notch=[40]").trial(25).eeg
    assert opened(folder, "splits=by_image", "window=[0,0.4]").trial(25).eeg.std() > 60 > 20 > notched.std()
    with pytest.raises(ValueError, match=r"_eeg.vhdr: notch=\[50.0\] does not go with its rate of 100 Hz: .*Nyquist"):
        opened(folder, "splits=by_image", "window=[0,0.4]", "notch=[50]").trial(0)


def test_epochs_cut_from_filtered_recordings_are_what_the_shards_hold(bids, tmp_path):
    """What a person with the model does: filter the recording with mne, cut it, give the Epochs."""
    import mne

    from neuroimagen.model.eeg import Contract, take

    folder, _ = bids
    made = config(folder, "splits=by_image", "window=[0,0.4]", "baseline=[-0.1,0]", "band=[0.5,30]", "resample=50")
    made.out = str(tmp_path / "o")
    make_shards(made)
    manifest, split = read_manifest(tmp_path / "o"), ShardSplit(tmp_path / "o", "test")
    assert manifest.before == {"band": [0.5, 30]} and manifest.tmin == pytest.approx(0)
    contract, info = Contract.of(manifest), split.info(2)
    raw = mne.io.read_raw_brainvision(folder / "bids" / info["run"], preload=True, verbose="ERROR")
    raw.set_channel_types({"EOG": "eog"}, verbose="ERROR")

    def epochs():
        events = np.array([[100 * (info["number"] + 1), 0, 1]])
        return mne.Epochs(raw, events, tmin=-0.1, tmax=0.39, baseline=None, preload=True, verbose="ERROR")

    with pytest.raises(ValueError, match=r"cut them again after raw.filter\(0.5, 30"):
        take(contract, epochs())
    raw.filter(0.5, 30, verbose="ERROR")
    np.testing.assert_allclose(take(contract, epochs())[0], split.eeg(2), rtol=1e-3, atol=1e-3)


def test_every_file_of_a_recording_is_an_input(bids):
    inputs = opened(bids[0], "hold_out=[-1]", "subject=1", "window=[0,0.4]").inputs
    run = {"channels.tsv", "eeg.eeg", "eeg.json", "eeg.vhdr", "eeg.vmrk", "events.json", "events.tsv"}
    assert {path.name.rpartition("_")[2] for path in inputs} == {"trials.csv"} | run and len(inputs) == 1 + 2 * len(run)


def test_bids_events_by_stimulus_file_and_at_the_ends(bids, tmp_path):
    folder = tmp_path / "lab"
    shutil.copytree(bids[0], folder)
    for path in (folder / "bids").rglob("*_events.tsv"):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        at = rows[0].index("trial_type")
        rows = [[*rows[0], "stim_file"]] + [[*r[:at], "image", *r[at + 1 :], f"stimuli/{r[at]}.png"] for r in rows[1:]]
        rows.append(["21.9", *["n/a"] * (len(rows[0]) - 2), f"stimuli/{NAMES[0]}.png"])
        path.write_text("\n".join("\t".join(row) for row in rows), encoding="utf-8")
    lines = [TABLE[0]] + [line.replace(",", ".png,", 1) for line in TABLE[1:]]
    write_table(folder / "trials.csv", lines)
    study = opened(folder, "splits=by_image", "window=[0,0.4]")
    assert len(study) == 60
    assert [n.split("/")[-1] for n in study.notes] == [
        f"sub-{s}_task-view_run-{r}_eeg.vhdr reach over an end of the recording and were left out"
        for s, r in (("01", 1), ("01", 2), ("02", 1))
    ]
    with pytest.raises(ValueError, match="needs window="):
        opened(folder)


def bids_file(name, old=None, new="", run="sub-01/eeg/sub-01_task-view_run-1_"):
    def change(lab):
        path = lab / "bids" / f"{run}{name}"
        if old is None:
            path.unlink()
        else:
            assert old in path.read_text(encoding="utf-8")
            path.write_text(
                path.read_text(encoding="utf-8").replace(old, new, 1 if old != "\t" else -1), encoding="utf-8"
            )

    return change


BIDS_REFUSED = [
    (
        lambda lab: [p.unlink() for p in lab.rglob("*_events.tsv")],
        "run-1_events.tsv cannot be read (No such file or directory): BIDS wants one beside",
    ),
    (bids_file("events.tsv", "\n2.0\t", "\nlate\t"), "run-1_events.tsv, line 3: no onset in seconds"),
    (bids_file("events.tsv", "\n2.0\t", "\nnan\t"), "run-1_events.tsv, line 3: no onset in seconds (nan)"),
    (bids_file("events.tsv", "\n2.0\t", "\n2,0\t"), "run-1_events.tsv, line 3: no onset in seconds (2,0)"),
    (bids_file("events.tsv", "onset", "begin"), "run-1_events.tsv has no column 'onset', it has: begin"),
    (bids_file("events.tsv", "\t", ";"), "run-1_events.tsv has ';' between its cells: BIDS wants tabs"),
    (bids_file("channels.tsv", "Pz", "P\0z"), "run-1_channels.tsv, line 5: a zero byte after 'P' is not UTF-8 text"),
    (bids_file("eeg.eeg"), "run-1_eeg.vhdr cannot be read as a BIDS recording"),
    (
        bids_file("eeg.vhdr", "NumberOfChannels=4", "NumberOfChannels=x"),
        "run-1_eeg.vhdr cannot be read as a BIDS recording",
    ),
    (bids_file("channels.tsv", "Pz\tEEG", "Pz\tMISC"), "the same EEG channels, but only one has Pz"),
    (lambda lab: [p.unlink() for p in lab.rglob("*.vhdr")], "a BIDS data set without EEG recordings"),
    (lambda lab: (lab / "bids" / "dataset_description.json").unlink(), "names no file"),
]


@pytest.mark.parametrize("change, sentence", BIDS_REFUSED, ids=[sentence[:40] for _, sentence in BIDS_REFUSED])
def test_bids_refused(bids, tmp_path, change, sentence):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    change(lab)
    with pytest.raises(ValueError) as error:
        study = opened(lab, "splits=by_image", "window=[0,0.4]")
        study.trial(0)
    assert sentence in str(error.value) and "\n" not in str(error.value) and str(lab) in str(error.value)


def test_derivatives_are_not_read(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    shutil.copytree(lab / "bids" / "sub-01", lab / "bids" / "derivatives" / "clean" / "sub-01")
    study = opened(lab, "splits=by_image", "window=[0,0.4]")
    assert len(study) == 60 and not any("clean" in path.parts for path in study.inputs)


def test_a_recording_cut_off_by_half(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    path = lab / "bids" / "sub-01" / "eeg" / "sub-01_task-view_run-1_eeg.eeg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    study = opened(lab, "splits=by_image", "window=[0,0.4]")
    assert len(study) < 60 and "reach over an end of the recording" in study.notes[0]


def test_bids_studies_are_pickled(bids):
    study = opened(bids[0], "splits=by_image", "window=[0,0.4]", "band=[1,30]")
    expected = study.trial(3).eeg
    assert pickle.loads(pickle.dumps(study)).trial(3).eeg.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "band, sentence", [([1, 60], "below half of the sampling rate of 100 Hz"), ([30, 1], "rising")]
)
def test_bids_bands_are_checked(bids, band, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(bids[0], "splits=by_image", "window=[0,0.4]", f"band={band}").trial(0)


def test_without_mne_bids(bids, monkeypatch):
    monkeypatch.setitem(sys.modules, "mne_bids", None)
    with pytest.raises(ValueError, match=r'pip install "neuroimagen\[bids\]"'):
        opened(bids[0], "splits=by_image", "window=[0,0.4]")


WINDOW = ("splits=by_image", "window=[-0.1,0.3]")


def add_events(lab, rows, run="sub-01/eeg/sub-01_task-view_run-1_"):
    """Rows of (onset, duration, trial_type) at the end of a run's events.tsv."""
    path = lab / "bids" / f"{run}events.tsv"
    lines = path.read_text(encoding="utf-8").rstrip("\n").splitlines()
    more = len(lines[0].split("\t")) - 3
    lines += ["\t".join([str(onset), str(lasts), name, *["n/a"] * more]) for onset, lasts, name in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@given(
    marks=st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 60), st.sampled_from(["BAD_x", "bad blink", "Bad", "fine", "n"])),
        max_size=6,
    ),
    places=st.lists(st.integers(-20, 320), min_size=1, max_size=12, unique=True),
    first=st.integers(-30, 10),
    n=st.integers(1, 60),
    rate=st.sampled_from([100.0, 250.0, 256.0, 1000.0, 512.0]),
    step=st.sampled_from([1.0, 0.5, 0.37]),
)
def test_bad_annotations_leave_out_what_mne_epochs_leaves_out(marks, places, first, n, rate, step):
    import mne

    with mne.use_log_level("ERROR"):
        raw = mne.io.RawArray(np.zeros((1, 300)), mne.create_info(1, rate, "eeg"))
        marks = [(at * step / rate, lasts * step / rate, name) for at, lasts, name in marks]
        inside = [mark for mark in marks if mark[0] < 300 / rate]
        raw.set_annotations(mne.Annotations(*map(list, zip(*inside, strict=True))) if inside else None)
        events = np.array([[place, 0, 1] for place in sorted(places)])
        epochs = mne.Epochs(raw, events, tmin=first / rate, tmax=(first + n - 1) / rate, baseline=None, preload=True)
    bad = spans(marks)
    ours = [
        place for place in sorted(places) if 0 <= place + first <= 300 - n and not touched(bad, place + first, n, rate)
    ]
    assert ours == epochs.events[:, 0].tolist()


OVERLAPS = {  # window -0.1 to 0.3 s, an event a second from 1 s: (onset, duration, name), events lost
    "a movement over two": ([(3.2, 1.0, "BAD_movement")], {3.0, 4.0}),
    "up to the first sample": ([(3.5, 0.4, "bad")], set()),
    "from behind the last": ([(3.3, 0.2, "BAD")], set()),
    "one sample in": ([(3.29, 0.2, "Bad blink")], {3.0}),
    "inside": ([(3.1, 0.05, "BAD_x")], {3.0}),
    "a point": ([(3.1, 0, "BAD_x")], {3.0}),
    "a point at the first sample": ([(2.9, 0, "BAD_x")], set()),
    "the gap of a pause": ([(5.5, 2, "BAD_ACQ_SKIP")], {6.0, 7.0}),
    "all else is no fault": ([(0.1, 0.7, "bad")], set()),
    "a cut": ([(8.2, 0, "boundary")], {8.0}),
    "a cut of what is gone": ([(8.2, 9, "boundary")], {8.0}),
    "between trials": ([(8.5, 0, "EDGE boundary")], set()),
    "n/a lasts no time": ([(9.1, "n/a", "BAD_y")], {9.0}),
    "no onset": ([("n/a", 3, "BAD_y")], set()),
    "many": ([(i + 0.2, 0.1, "BAD_z") for i in range(1, 21)], {float(i) for i in range(1, 21)}),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_bad_stretches_of_a_recording(bids, tmp_path, name):
    import mne
    import mne_bids

    rows, lost = OVERLAPS[name]
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    add_events(lab, rows)
    study = opened(lab, *WINDOW)
    kept = {t.extra["onset_s"] for t in map(study.trial, range(len(study))) if "01_task-view_run-1" in t.extra["run"]}
    assert kept == {float(i) for i in range(1, 21)} - lost and len(study) == 60 - len(lost)
    said = [note for note in study.notes if "touch a BAD_" in note]
    assert len(said) == bool(lost)
    if lost:
        where = "sub-01/eeg/sub-01_task-view_run-1_eeg.vhdr"
        assert (
            said[0]
            == f"{len(lost)} trials of {where} touch a BAD_ annotation or a cut ({rows[0][2]}) and were left out"
        )
    if all(mark.lower().startswith("bad") for _, _, mark in rows):
        path = mne_bids.BIDSPath(subject="01", task="view", run="1", datatype="eeg", root=lab / "bids")
        raw = mne_bids.read_raw_bids(path.update(extension=".vhdr", suffix="eeg"), verbose="ERROR")
        events = np.array([[100 * i, 0, 1] for i in range(1, 21)])
        theirs = mne.Epochs(raw, events, tmin=-0.1, tmax=0.29, baseline=None, preload=True, verbose="ERROR")
        assert {at / 100 for at in theirs.events[:, 0]} == kept


def test_a_picture_may_be_called_badger_and_native_cuts_count(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    for path in (lab / "bids").rglob("*_events.tsv"):
        path.write_text(path.read_text(encoding="utf-8").replace(f"\t{NAMES[0]}\t", "\tbadger\t"), encoding="utf-8")
    write_table(lab / "trials.csv", [line.replace(f"{NAMES[0]},", "badger,") for line in TABLE])
    assert len(opened(lab, *WINDOW)) == 60
    marks = lab / "bids" / "sub-01" / "eeg" / "sub-01_task-view_run-1_eeg.vmrk"
    with open(marks, "a", encoding="utf-8") as file:  # a pause at 5.1 s, which events.tsv does not tell
        file.write("Mk900=New Segment,,511,1,0,20130501120000000000\n")
    study = opened(lab, *WINDOW)
    assert len(study) == 59 and "1 trials" in study.notes[0] and "(New Segment/)" in study.notes[0]


def test_markers_that_are_no_stimuli(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    add_events(lab, [(4.4, 0, "offset"), (5.4, 0, "offset"), (6.4, 0, "response/left")])
    with pytest.raises(ValueError, match=r"no row for event offset, response/left: add it, .* or give ignore_markers="):
        opened(lab, *WINDOW)
    study = opened(lab, *WINDOW, "ignore_markers=[offset,response/left]")
    assert len(study) == 60 and study.notes == []
    with pytest.raises(ValueError, match="ignore_markers=ofset: no event of .* is called that"):
        opened(lab, *WINDOW, "ignore_markers=[offset,response/left,ofset]")


def add_task(lab, task, events=None):
    """A recording of another task: a copy of run 1 of subject 1, with these events or none."""
    folder = lab / "bids" / "sub-01" / "eeg"
    for path in list(folder.glob("*task-view_run-1_*")):
        to = path.with_name(path.name.replace("task-view", f"task-{task}"))
        if path.suffix in (".vhdr", ".vmrk"):
            to.write_text(path.read_text(encoding="utf-8").replace("task-view", f"task-{task}"), encoding="utf-8")
        elif "events" not in path.name:
            shutil.copyfile(path, to)
    if events is not None:
        head = "onset\tduration\ttrial_type"
        lines = [head, *("\t".join(map(str, row)) for row in events)]
        (folder / f"sub-01_task-{task}_run-1_events.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_several_tasks_in_one_data_set(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    add_task(lab, "rest")
    add_task(lab, "oddball", [(1, 0, "beep"), (2, 0, "boop")])
    plain = opened(bids[0], *WINDOW)
    rest = "1 recordings were left out, which have no events.tsv: sub-01/eeg/sub-01_task-rest_run-1_eeg.vhdr"
    study = opened(lab, *WINDOW)
    assert len(study) == 60 and study.notes == [
        rest,
        "none of the 2 events of sub-01/eeg/sub-01_task-oddball_run-1_eeg.vhdr has a row in trials.csv",
        "1 of 4 files give no trial: sub-01/eeg/sub-01_task-oddball_run-1_eeg.vhdr",
    ]
    alone = opened(lab, *WINDOW, "task=view")
    assert alone.notes == [] and [alone.trial(i).key for i in range(60)] == [plain.trial(i).key for i in range(60)]
    with pytest.raises(ValueError, match=r"EEG recordings of task=pics \(.*\): its tasks are oddball, rest, view"):
        opened(lab, *WINDOW, "task=pics")
    add_task(lab, "oddball", [(1, 0, "beep"), (2, 0, NAMES[0])])
    with pytest.raises(ValueError, match="has no row for event beep"):
        opened(lab, *WINDOW)
    add_task(lab, "oddball", [(2, 0, NAMES[0])])
    assert "trials are of several tasks (oddball, view); task= takes one of them" in opened(lab, *WINDOW).notes
    write_table(lab / "trials.csv", [TABLE[0], TABLE[1].replace("c0,", "nothing,", 1)])
    with pytest.raises(ValueError, match="no trial is left; .*none of the 1 events of"):
        opened(lab, *WINDOW)


def test_the_table_of_a_task_is_inherited(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    own = lab / "bids" / "sub-02" / "eeg" / "sub-02_task-view_run-1_events.tsv"
    own.rename(lab / "bids" / "task-view_events.tsv")
    study = opened(lab, *WINDOW)
    assert len(study) == 60 and study.notes == [] and lab / "bids" / "task-view_events.tsv" in study.inputs


@pytest.mark.parametrize(
    "scale, sentence",
    [
        (100, "20 of its 20 events lie outside of it, which lasts 22 s: are their onsets in seconds"),
        (1000, "20 of its 20 events lie outside of it"),
        (-1, "20 of its 20 events lie outside of it"),
        (
            1.5,
            "6 trials of .* reach over an end of the recording and were left out .6 of 20 events lie beyond it, 22 s",
        ),
    ],
)
def test_events_that_lie_outside(bids, tmp_path, scale, sentence):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    path = lab / "bids" / "sub-01" / "eeg" / "sub-01_task-view_run-1_events.tsv"
    head, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [[str(scale * float(row[0])), *row[1:]] for row in rows]
    path.write_bytes("\r\n".join("\t".join(row) for row in [head, *rows]).encode())  # as Windows ends its lines
    fault = Faults(collect=True)
    study = opened(lab, *WINDOW, fault=fault)
    assert re.search(sentence, "\n".join([*fault.found, *study.notes]))


def test_events_at_one_time_and_without_one(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    add_events(lab, [(1.0, 0, bids[1]["sub-01_task-view_run-1"][0][0]), ("n/a", 0, NAMES[3])])
    study = opened(lab, *WINDOW)
    run = "sub-01/eeg/sub-01_task-view_run-1_eeg.vhdr"
    assert len(study) == 60 and study.notes == [
        f"1 of 22 events in {lab / 'bids' / run.replace('eeg.vhdr', 'events.tsv')} have no onset",
        f"1 events of {run} name the picture of another at the same time: taken once",
    ]
    add_events(lab, [(2.0, 0, bids[1]["sub-01_task-view_run-1"][0][0])])
    with pytest.raises(ValueError, match="events 1 and 22 show two pictures at one time, 2 s: leave one out"):
        opened(lab, *WINDOW)


def test_rates_that_drift_apart_by_less_than_a_sample_an_hour(bids, tmp_path):
    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    header = bids_file("eeg.vhdr", "SamplingInterval=10000.0", "SamplingInterval=10000.02")
    header(lab)
    study = opened(lab, *WINDOW)
    assert len(study) == 60 and study.sfreq in (100.0, pytest.approx(99.9998, abs=1e-6))
    bids_file("eeg.vhdr", "SamplingInterval=10000.02", "SamplingInterval=10000.1")(lab)
    with pytest.raises(ValueError, match="are at 100 and 99.999 Hz: resample one of them"):
        opened(lab, *WINDOW)


def test_the_files_own_words_are_kept_and_compared(bids, tmp_path):
    from neuroimagen.doctor.examination import Examination
    from neuroimagen.doctor.findings import Findings

    def asked(lab):
        study = opened(lab, *WINDOW, fault=Faults(collect=True))
        return study.recorded, [
            q.text for q in Findings(Examination(study), "x").questions if "different filters" in q.text
        ]

    lab = Path(shutil.copytree(bids[0], tmp_path / "lab"))
    facts, questions = asked(lab)
    assert len(facts) == 1 and len(facts[0]["files"]) == 3 and questions == []
    path = lab / "bids" / "sub-02" / "eeg" / "sub-02_task-view_run-1_eeg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"EEGReference": "Cz"}))
    facts, questions = asked(lab)
    assert [len(own["files"]) for own in facts] == [2, 1] and facts[1]["EEGReference"] == '"Cz"'
    assert len(questions) == 1 and 'EEGReference "Cz" (1 files, sub-02/eeg/sub-02_task-view_run-1' in questions[0]
    made = config(lab, *WINDOW, f"out={tmp_path / 'o'}")
    make_shards(made)
    assert read_manifest(tmp_path / "o").recorded == facts
