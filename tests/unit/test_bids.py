"""A lab's own BIDS data set: recordings written here, every sample known, come back through reader and shards."""

import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

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

from neuroimagen.data.shard_files import ShardSplit, read_manifest
from neuroimagen.data.shards import make_shards
from neuroimagen.data.source import open_study


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


def test_epochs_cut_from_filtered_recordings_are_what_the_shards_hold(bids, tmp_path):
    """What a person with the model does: filter the recording with mne, cut it, give the Epochs."""
    import mne

    from neuroimagen.data.given import Contract, take

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


def test_bids_shards(bids, tmp_path):
    folder, _ = bids
    made = config(folder, "hold_out=[-1]", "subject=1", "window=[0,0.4]", "eeg_dtype=float32", f"out={tmp_path / 'o'}")
    make_shards(made)
    manifest, study = read_manifest(tmp_path / "o"), open_study(made)
    assert manifest.split_by == "run" and manifest.subjects == [1] and manifest.n_times == 40
    assert manifest.splits["test"]["trials"] == 20 and manifest.splits["val"]["trials"] == 2
    run = {"channels.tsv", "eeg.eeg", "eeg.json", "eeg.vhdr", "eeg.vmrk", "events.json", "events.tsv"}
    assert {Path(p).name.rpartition("_")[2] for p in manifest.inputs} == {"trials.csv"} | run
    assert len(manifest.inputs) == 1 + 2 * len(run)
    train = ShardSplit(tmp_path / "o", "train")
    for i, index in enumerate(study.splits["train"]):
        np.testing.assert_array_equal(train.eeg(i), study.trial(index).eeg)
        assert "run-1" in train.info(i)["run"]


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
            path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")

    return change


BIDS_REFUSED = [
    (
        lambda lab: [p.unlink() for p in lab.rglob("*_events.tsv")],
        "run-1_events.tsv cannot be read (No such file or directory): BIDS wants one beside",
    ),
    (bids_file("events.tsv", "\n2.0\t", "\nlate\t"), "run-1_events.tsv, line 3: no onset in seconds"),
    (bids_file("events.tsv", "\n2.0\t", "\nnan\t"), "run-1_events.tsv, line 3: no onset in seconds (nan)"),
    (bids_file("events.tsv", "\n2.0\t", "\n2,0\t"), "run-1_events.tsv, line 3: no onset in seconds (2,0)"),
    (bids_file("events.tsv", "onset", "begin"), "run-1_events.tsv, line 2: no onset in seconds"),
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
