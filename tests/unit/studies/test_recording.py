"""A lab's recordings: tables written here, whose every epoch is known, and the real ones."""

import gzip
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neuroimagen.cli import main
from neuroimagen.config import load_config
from neuroimagen.shards.format import read_manifest
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.studies.open import open_study
from neuroimagen.studies.recordings import UNKNOWN_PICTURE, Recordings
from neuroimagen.studies.recordings_tables import StudyFile, across_gaps, plain_marker, read_table

pytest.importorskip("mne", reason="recordings are filtered by mne (an extra)")

RATE = 128
PROJECT = Path(__file__).parents[3]
REAL = PROJECT.parent / "shared" / "real" / "eeg_n170_muse" / "raw"
LATENCY = 0.25  # s: where the response to a face is, at 10 uV, in channel B
STUDY = f"""
files: runs/*.csv*
file_name: subject(?P<subject>\\d+)_(?P<run>\\w+)\\.
time: t
channels: [A, B]
marker: event
markers:
  - {{value: 1, name: house, pictures: houses/*.png}}
  - {{value: 2, name: face, pictures: faces/*.png}}
rate: {RATE}
window: [-0.1, 0.5]
reject_above: 100
fewest_trials: 4
"""
TRIALS = 24


def write_run(path: Path, seed: int, pop: int | None = None) -> None:
    """TRIALS trials of 1 s, house and face in turn, 2 s of rest before and after; `pop`: a trial to spoil."""
    rng = np.random.default_rng(seed)
    n = (TRIALS + 4) * RATE
    eeg = rng.normal(0, 1, (n, 2)) + 300  # an offset, which the filter must take away
    marker = np.zeros(n, dtype=int)
    for trial in range(TRIALS):
        onset = (trial + 2) * RATE
        marker[onset : onset + 3] = 1 + trial % 2  # held for three samples
        if trial % 2:
            seconds = (np.arange(n) - onset) / RATE - LATENCY
            eeg[:, 1] += 10 * np.exp(-((seconds / 0.05) ** 2)) * np.cos(2 * np.pi * 10 * seconds)
        if trial == pop:
            eeg[onset : onset + 10, 0] += 2000
    lines = ["t,A,B,unused,event"]
    lines += [f"{5 + i / RATE:.4f},{eeg[i, 0]:.3f},{eeg[i, 1]:.3f},x,{marker[i]}" for i in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_pictures(root: Path) -> None:
    for number, folder in enumerate(["houses", "faces"]):
        (root / folder).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), 60 * number + 20 * i).save(root / folder / f"{folder[0]}{i}.png")
    (root / "study.yaml").write_text(STUDY)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    for number, run in enumerate(["a", "b", "c"]):
        write_run(
            tmp_path / "runs" / f"subject4_{run}.csv{'.gz' if number else ''}",
            seed=number,
            pop=5 if run == "b" else None,
        )
    write_pictures(tmp_path)
    return tmp_path


def open_lab(lab: Path, *arguments: str, study: str = "") -> Recordings:
    own = [line.partition(":")[0] for line in study.splitlines()]
    base = [line for line in STUDY.splitlines() if line.partition(":")[0] not in own]
    (lab / "study.yaml").write_text("\n".join([*base, study]), "utf-8")
    arguments = (f"out={lab / 'out'}", "dataset=recording", f"recording={lab / 'study.yaml'}", *arguments)
    return open_study(load_config(ShardsConfig, arguments, "shards"))


def in_split(study: Recordings, split: str) -> list:
    return [study.trial(i) for i in study.splits[split]]


def test_epochs_are_where_the_markers_are(lab: Path) -> None:
    study = open_lab(lab)
    assert (study.n_chans, study.n_times, study.sfreq, study.units) == (2, 13 + 64 + 1, RATE, "uV")
    clean = [t for t in study.trials if t.extra["run"] != "b"]  # the pop of b rings on
    faces = np.mean([t.eeg for t in clean if t.class_name == "face"], axis=0)
    houses = np.mean([t.eeg for t in clean if t.class_name == "house"], axis=0)
    # the window begins 13 samples (0.1 s to the nearest) before the onset
    assert faces[1].argmax() == 13 + LATENCY * RATE
    assert faces[1].max() == pytest.approx(10, abs=1)
    assert np.abs(faces[0]).max() < 1 and np.abs(houses).max() < 1  # the offset of 300 uV is gone
    assert study.trial(0).eeg.dtype == np.float32


def test_resampling_and_baseline(lab: Path) -> None:
    study = open_lab(lab, study="resample: 64\nbaseline: [-0.1, 0]\nband: [1, 25]\n")
    assert (study.sfreq, study.n_times) == (64, 6 + 32 + 1)
    faces = np.mean([t.eeg for t in study.trials if t.class_name == "face"], axis=0)
    assert faces[1].argmax() == 6 + LATENCY * 64
    for trial in study.trials:
        assert np.abs(trial.eeg[:, :7].mean(axis=1)).max() < 1e-4


def test_signal_options_count_from_the_marker(lab: Path) -> None:
    whole = open_lab(lab)
    arguments = (f"out={lab / 'out'}", "dataset=recording", f"recording={lab / 'study.yaml'}")
    study = open_study(load_config(ShardsConfig, (*arguments, "window=[0.25,0.5]", "picks=[B]"), "shards"))
    assert (study.channels, study.n_times) == (["B"], 32)
    for i in range(len(study)):
        assert np.array_equal(study.trial(i).eeg[0], whole.trial(i).eeg[1, 13 + 32 : 13 + 64])


def test_whole_runs_are_held_out_and_val_shares_no_sample_with_train(lab: Path) -> None:
    study = open_lab(lab, study="val_tail: 0.25\n")
    assert {t.extra["run"] for t in in_split(study, "test")} == {"c"}
    train, val = in_split(study, "train"), in_split(study, "val")
    assert {t.extra["run"] for t in train} == {t.extra["run"] for t in val} == {"a", "b"}
    assert [len(study.splits[s]) for s in ("train", "val", "test")] == [18 + 17, 6 + 6, 24]  # b lost its pop
    for run in "ab":
        last = max(t.extra["onset_s"] for t in train if t.extra["run"] == run)
        first = min(t.extra["onset_s"] for t in val if t.extra["run"] == run)
        assert last + 0.6 < first
    assert {t.extra["run"] for t in in_split(open_lab(lab, "hold_out=[0,1]"), "test")} == {"a", "b"}
    assert "run 3 of 3 of subject 4" in study.protocol
    # trials 1 s apart with windows of 1.1 s: the last one before val must go
    close = open_lab(lab, study="val_tail: 0.25\nwindow: [-0.3, 0.8]\n")
    assert [sum(t.extra["run"] == "a" for t in in_split(close, s)) for s in ("train", "val")] == [17, 6]


def test_artefacts_copies_and_empty_runs_are_left_out_and_said(lab: Path) -> None:
    first = lab / "runs" / "subject4_a.csv"
    (lab / "runs" / "subject4_d.csv.gz").write_bytes(gzip.compress(first.read_bytes()))
    text = first.read_text().splitlines()
    quiet = [line.rsplit(",", 1)[0] + ("," + ("1" if i == 700 else "0")) for i, line in enumerate(text[1:])]
    (lab / "runs" / "subject4_e.csv").write_text("\n".join(text[:1] + quiet))
    study = open_lab(lab)
    assert study.notes == [
        "subject4_d.csv.gz holds the same data as subject4_a.csv and was left out",
        "subject4_e.csv was left out: 1 usable trials of 1",
        "1 of 72 trials were left out as artefacts or cut off by the end of a run",
    ]
    assert {t.extra["run"] for t in in_split(study, "test")} == {"c"}
    assert not any(t.extra["run"] == "b" and t.extra["onset_s"] == 7 for t in study.trials)


def test_check_names_copies_under_two_names(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes are left out and named; the same EEG in volts of 12 bits is found in its epochs."""
    runs = lab / "runs"
    shutil.copy(runs / "subject4_b.csv.gz", runs / "subject4_d.csv.gz")
    lines = (runs / "subject4_a.csv").read_text().splitlines()
    table = [line.split(",") for line in lines[3:]]  # two samples shorter
    rounded = [[t, f"{float(a) + 40:.1f}", f"{float(b) + 40:.1f}", x, e] for t, a, b, x, e in table]
    (runs / "subject4_e.csv").write_text("\n".join([lines[0], *(",".join(row) for row in rounded)]))
    (lab / "study.yaml").write_text(STUDY)
    assert main(["check", str(lab / "study.yaml"), "shown=0"]) == 1
    out = capsys.readouterr().out
    assert "1. " in out and f"{runs / 'subject4_d.csv.gz'} holds the same data as subject4_b.csv.gz" in out
    same = [line for line in out.splitlines() if "the same EEG and in two splits" in line]
    assert 1 <= len(same) <= 2 and all("(a of subject 4 and e of subject 4)" in line for line in same)
    assert "s4_r0_t00000 (a, " in same[0]


def test_averages(lab: Path) -> None:
    single = {t.key: t for t in in_split(open_lab(lab), "test")}
    study = open_lab(lab, "average=4")
    means = in_split(study, "test")
    assert [t.class_name for t in means] == ["house"] * 3 + ["face"] * 3  # 12 trials each
    assert len(in_split(study, "train")) == len(in_split(open_lab(lab), "train"))
    # Each single trial is in exactly one average: with weights sqrt(4)/4 the averages sum to half the sum of all.
    total = np.sum([t.eeg for t in single.values()], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.sum([t.eeg for t in means], axis=0), total / 2, rtol=0, atol=1e-3)
    # the noise of channel A (it holds no response) keeps its level
    noise = np.std([t.eeg[0] for t in means]), np.std([t.eeg[0] for t in single.values()])
    assert noise[0] == pytest.approx(noise[1], rel=0.2)
    assert {t.extra["averaged"] for t in means} == {4} and "mean of 4 trials" in study.protocol
    other = in_split(open_lab(lab, "average=4", "seed=1"), "test")
    assert not np.array_equal(other[0].eeg, means[0].eeg)
    assert len(in_split(open_lab(lab, "average=5"), "test")) == 4  # the remainder of 2 is dropped


def test_shuffled_labels(lab: Path) -> None:
    true, shuffled = open_lab(lab), open_lab(lab, "control_labels=shuffled")
    assert shuffled.control == "CONTROL: labels shuffled within each run (seed 0)" and not true.control
    assert shuffled.protocol.endswith(shuffled.control) and "CONTROL" not in true.protocol
    assert [t.key for t in true.trials] == [t.key for t in shuffled.trials]
    same = [a.label == b.label for a, b in zip(true.trials, shuffled.trials, strict=True)]
    assert 0.2 < np.mean(same) < 0.8
    for a, b in zip(true.trials, shuffled.trials, strict=True):
        assert np.array_equal(a.eeg, b.eeg)
        assert b.image[0] == b.class_name[0]  # the picture follows the label
    for run in "abc":  # within a run: no run gains a label
        counts = [sum(t.label for t in s.trials if t.extra["run"] == run) for s in (true, shuffled)]
        assert counts[0] == counts[1]
    again = open_lab(lab, "shuffle_labels=true")  # as the option was called
    assert [t.label for t in again.trials] == [t.label for t in shuffled.trials]
    other = open_lab(lab, "control_labels=shuffled", "seed=1")
    assert [t.label for t in other.trials] != [t.label for t in shuffled.trials]


def test_pictures_stand_for_the_category_unless_there_is_one(lab: Path) -> None:
    study = open_lab(lab)
    assert {t.image for t in study.trials} == {"h0", "h1", "h2", "f0", "f1", "f2"}
    assert {t.extra["picture"] for t in study.trials} == {UNKNOWN_PICTURE}
    assert [t.image for t in study.trials] == [t.image for t in open_lab(lab).trials]
    assert "was not recorded" in study.protocol
    table = lab / "markers.csv"
    table.write_text("value,name,pictures\n1,house,houses/h1.png\n2,face,faces/f2.png\n")
    text = STUDY[: STUDY.index("markers:")] + STUDY[STUDY.index("rate:") :]
    (lab / "exact.yaml").write_text(text + "markers_file: markers.csv\n")
    exact = open_study(ShardsConfig(out="", dataset="recording", recording=str(lab / "exact.yaml")))
    assert {t.image for t in exact.trials} == {"h1", "f2"}
    assert {t.extra["picture"] for t in exact.trials} == {"as recorded"}
    assert "not recorded" not in exact.protocol and table in exact.inputs


def test_shards(lab: Path) -> None:
    out = lab / "out"
    arguments = [f"out={out}", "dataset=recording", f"recording={lab / 'study.yaml'}"]
    make_shards(load_config(ShardsConfig, arguments, "shards"))
    manifest = read_manifest(out)
    assert (manifest.split_by, manifest.simulated, manifest.channels) == ("run", False, ["A", "B"])
    assert manifest.classes == [
        {"label": 0, "wnid": "house", "name": "house"},
        {"label": 1, "wnid": "face", "name": "face"},
    ]
    assert manifest.splits["train"]["images"] == manifest.splits["test"]["images"] == 6  # allowed: the split is by run
    assert len(manifest.inputs) == 4


REFUSED = [
    ("runs/subject4_a.csv", "t,A,B,unused", "t,A,C,unused", "no column 'B', it has: t, A, C"),
    ("runs/subject4_a.csv", "x,0\n5.0156,", "x,0\n5.0156,nan,", "line 4 has 6 cells and the header 5"),
    ("runs/subject4_a.csv", "x,0\n5.0156,", "x,0\n5.0156,oops", "line 4: A is not a finite number"),
    ("runs/subject4_a.csv", "x,0\n5.0156,", "x,0\n5.0156\n5.02,", "line 4 has 1 cells and the header 5: mend that row"),
    ("study.yaml", "marker: event", "marker: [event, stim]", "no column 'stim', it has: t, A, B, unused, event"),
    ("study.yaml", "marker: event", "marker: {a: b}", "is not one value"),
    ("study.yaml", "fewest_trials: 4", "ignore_markers: [2.0]", "marker 2 is in markers and in ignore_markers"),
    ("study.yaml", "rate: 128", "rate: 128\ntime_units: ms", "time stamps are in s, not in ms; say time_units: s"),
    ("study.yaml", "fewest_trials: 4", "fewest_trials: 25", "subject4_b.csv.gz was left out: 23 usable trials of 24"),
    ("study.yaml", "rate: 128", "rate: 250", "time stamps (s) tell of 128.0 Hz"),
    ("study.yaml", "reject_above:", "reject_abov:", "Did you mean: 'reject_above'"),
    ("study.yaml", "houses/*.png", "houses/*.jpg", "marker 1 has no picture"),
    ("study.yaml", "value: 2", "value: 3", "marker 2, which"),
    ("study.yaml", "value: 2", "value: 1", "given twice"),
    ("study.yaml", "runs/*.csv*", "run/*.csv*", "no table at"),
    ("study.yaml", "subject(?P", "person(?P", "does not match file_name"),
    ("study.yaml", "(?P<run>", "(?P<session>", "(?P<run>...)"),
    ("study.yaml", "fewest_trials: 4", "subjects: [7]", "no table of subject 7"),
    ("study.yaml", "fewest_trials: 4", "hold_out: [3]", "hold_out=3, but subject 4 has 3"),
    ("study.yaml", "fewest_trials: 4", "hold_out: [0, 1, 2]", "no run to train on"),
    ("study.yaml", "fewest_trials: 4", "band: [1, 80]", "below half of 128 Hz"),
    ("study.yaml", "[-0.1, 0.5]", "[0.5, -0.1]", "window must be"),
    ("study.yaml", "fewest_trials: 4", "average: 13", "split test has no trial"),
]


@pytest.mark.parametrize("name, old, new, sentence", REFUSED, ids=[r[3] for r in REFUSED])
def test_refused(lab: Path, name: str, old: str, new: str, sentence: str) -> None:
    text = (lab / name).read_text()
    assert old in text
    (lab / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError) as error:
        open_study(ShardsConfig(out="", dataset="recording", recording=str(lab / "study.yaml")))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(lab) in str(error.value)  # names the file


def rewrite(path: Path, change: Callable[[list[list[str]]], list[list[str]]], head: str = "") -> None:
    """The rows of a table below its header, changed."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = change([line.split(",") for line in lines])
    path.write_text("\n".join([head or first, *(",".join(row) for row in rows)]), encoding="utf-8")


def test_trials_across_a_gap_are_left_out_and_the_loss_is_told(lab: Path) -> None:
    path = lab / "runs" / "subject4_a.csv"
    before = {t.key: t for t in open_lab(lab).trials if t.extra["run"] == "a"}
    # Samples 1000 to 1063 of 128 Hz, 7.81 s to 8.31 s: the marker of 8 s goes with them. Of the
    # others, a second apart and 0.6 s long, that of 7 s ends before and that of 9 s begins after.
    rewrite(path, lambda rows: rows[:1000] + rows[1064:])
    study = open_lab(lab)
    assert study.notes[0] == "subject4_a.csv: 64 samples (0.50 s) are lost in 1 gaps"
    after = {t.extra["onset_s"]: t for t in study.trials if t.extra["run"] == "a"}
    assert {7.0, 9.0} <= set(after) and 8.0 not in after
    for old in before.values():
        if old.extra["onset_s"] != 8 and old.extra["onset_s"] in after:
            new = after[old.extra["onset_s"]]
            assert new.label == old.label and np.abs(new.eeg - old.eeg).mean() < 1.5  # the filter saw a straight line
    assert after[20.0].label == 0 and np.array_equal(after[25.0].eeg.shape, (2, 78))
    # Two samples fewer lost at 8.3 s: the marker of 8 s stays, its trial goes.
    write_run(path, 0)
    rewrite(path, lambda rows: rows[:1062] + rows[1064:])
    study = open_lab(lab)
    assert study.notes[0] == (
        "subject4_a.csv: 2 samples (0.02 s) are lost in 1 gaps; 1 trials across them were left out"
    )
    assert "or by a gap" in study.notes[-1]
    assert 8.0 not in {t.extra["onset_s"] for t in study.trials if t.extra["run"] == "a"}


def test_a_gap_of_an_hour_costs_no_memory(lab: Path) -> None:
    path = lab / "runs" / "subject4_a.csv"
    rewrite(path, lambda rows: [[str(float(r[0]) + 3600 * (i >= 1000)), *r[1:]] for i, r in enumerate(rows)])
    study = StudyFile("", "", "t", ["A", "B"], "event", rate=RATE)
    table = read_table(path, study)
    assert table.notes == ["460800 samples (3600.00 s) are lost in 1 gaps"]
    assert table.eeg.shape[1] == 28 * RATE + 10 * RATE
    assert table.seconds[-1] == 25 + 3600


STAMPS = {  # s -> what the table says; the study file's time_units; what is said of it under "s"
    "ms": (lambda s: s * 1e3, "ms", "time stamps are in ms, not in s; say time_units: ms"),
    "us": (lambda s: s * 1e6 + 1.5e15, "us", "are in us"),
    "ns": (lambda s: s * 1e9, "ns", "are in ns"),
    "numbers": (lambda s: np.round((s - 5) * RATE) + 7, "samples", "are in samples"),
    "unix": (lambda s: s + 1528310541.967, "s", ""),
}


@pytest.mark.parametrize("stamps", STAMPS)
def test_units_of_the_stamps(lab: Path, stamps: str) -> None:
    convert, units, said = STAMPS[stamps]
    expected = open_lab(lab)
    for name in "abc":
        path = lab / "runs" / f"subject4_{name}.csv"
        write_run(path, "abc".index(name), 5 if name == "b" else None)
        rewrite(path, lambda rows: [[repr(float(convert(float(r[0])))), *r[1:]] for r in rows])
    for path in (lab / "runs").glob("*.gz"):
        path.unlink()
    if said:
        with pytest.raises(ValueError, match=said):
            open_lab(lab)
    study = open_lab(lab, study=f"time_units: {units}\n")
    assert study.notes == expected.notes
    assert all(np.array_equal(a.eeg, b.eeg) for a, b in zip(study.trials, expected.trials, strict=True))


@pytest.mark.parametrize("jitter", [0.003, 0.02])
def test_units_are_told_before_jitter(lab: Path, jitter: float) -> None:
    rng = np.random.default_rng(0)
    path = lab / "runs" / "subject4_a.csv"
    rewrite(path, lambda rows: [[f"{1e3 * (float(r[0]) + rng.normal(0, jitter)):.3f}", *r[1:]] for r in rows])
    with pytest.raises(ValueError, match="say time_units: ms"):
        open_lab(lab)


def test_chunks_in_the_wrong_order_and_clocks_set_back(lab: Path) -> None:
    path = lab / "runs" / "subject4_a.csv"
    expected = open_lab(lab)
    rewrite(path, lambda rows: rows[:1000] + rows[1012:1024] + rows[1000:1012] + rows[1024:])
    study = open_lab(lab)
    assert study.notes[0].startswith("subject4_a.csv: rows stood in the wrong order (first line 1002)")
    assert all(np.array_equal(a.eeg, b.eeg) for a, b in zip(study.trials, expected.trials, strict=True))
    write_run(path, 0)
    rewrite(path, lambda rows: [[str(float(r[0]) - 3600 * (i >= 1000)), *r[1:]] for i, r in enumerate(rows)])
    with pytest.raises(ValueError, match=r"subject4_a.csv, line 1002: time stamps go back by 3599\.99 s"):
        open_lab(lab)


def test_rows_that_stand_twice(lab: Path) -> None:
    path = lab / "runs" / "subject4_a.csv"
    rewrite(path, lambda rows: rows[:1030] + rows[1024:])  # at 8.05 s
    study = open_lab(lab)
    assert study.notes[0].startswith("subject4_a.csv: 0 samples (0.00 s) are lost in 1 gaps, and 6 stand there twice")
    onsets = {t.extra["onset_s"] for t in study.trials if t.extra["run"] == "a"}
    assert {7.0, 9.0} <= onsets and 8.0 not in onsets


@pytest.mark.parametrize("empty", ["", "0", "0.0", "nan", "NaN", "NA", "N/A", "<NA>", "None", "null", " "])
def test_no_marker(lab: Path, empty: str) -> None:
    expected = open_lab(lab)
    path = lab / "runs" / "subject4_a.csv"
    rewrite(path, lambda rows: [[*r[:-1], empty if r[-1] == "0" else f"{r[-1]}.0"] for r in rows] + [[""], ["", ""]])
    study = open_lab(lab)
    assert [t.key for t in study.trials] == [t.key for t in expected.trials] and study.notes == expected.notes


def test_markers_that_are_no_stimuli(lab: Path) -> None:
    expected = open_lab(lab)
    path = lab / "runs" / "subject4_a.csv"
    n = 28 * RATE
    codes = {i + 40: "99" for i in range(2 * RATE, n - 2 * RATE, RATE)} | {700: "7"}
    rewrite(path, lambda rows: [[*r[:-1], codes.get(i, r[-1])] for i, r in enumerate(rows)])
    with pytest.raises(ValueError, match="has marker 7, which .* add it to markers, or to ignore_markers"):
        open_lab(lab)
    for study in (open_lab(lab, "ignore_markers=[99,7]"), open_lab(lab, study="ignore_markers: [99, 7.0]\n")):
        assert [t.key for t in study.trials] == [t.key for t in expected.trials] and study.notes == expected.notes


def test_two_columns_of_markers(lab: Path) -> None:
    expected = open_lab(lab)
    head = "t,A,B,unused,house,face"
    for name, rest in (("a", ""), ("b", ".gz"), ("c", ".gz")):
        (lab / "runs" / f"subject4_{name}.csv{rest}").unlink()
        path = lab / "runs" / f"subject4_{name}.csv"
        write_run(path, "abc".index(name), 5 if name == "b" else None)
        rewrite(path, lambda rows: [[*r[:4], *(r[4] if r[4] == m else "0" for m in "12")] for r in rows], head)
    study = (lab / "study.yaml").read_text().replace("marker: event", "marker: [house, face]")
    (lab / "two.yaml").write_text(study)
    two = open_study(ShardsConfig(out="", dataset="recording", recording=str(lab / "two.yaml")))
    assert [t.key for t in two.trials] == [t.key for t in expected.trials]
    assert [t.label for t in two.trials] == [t.label for t in expected.trials]
    rewrite(path, lambda rows: [[*r[:5], "2" if r[4] == "1" else r[5]] for r in rows])
    with pytest.raises(ValueError, match=r"subject4_c.csv, line 258: two markers, 1 and 2"):
        open_study(ShardsConfig(out="", dataset="recording", recording=str(lab / "two.yaml")))


def test_subject_and_session_in_folder_names(lab: Path) -> None:
    expected = open_lab(lab)
    for number, path in enumerate(sorted((lab / "runs").iterdir())):
        folder = lab / "data" / "subject0004" / f"session00{1 + number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"recording_{number % 2}.csv{'.gz' if number else ''}")
    text = STUDY.replace("runs/*.csv*", "{files}").replace("subject(?P<subject>\\d+)_(?P<run>\\w+)\\.", "{name}")
    name = r"subject(?P<subject>\d+)/session(?P<run>\d+/recording_\d+)"
    for files in ("data/subject*/session*/*.csv*", "data/**/*.csv*", "../*/data/subject0004/session*/rec*"):
        (lab / "study.yaml").write_text(text.replace("{files}", files).replace("{name}", name))
        study = open_study(ShardsConfig(out="", dataset="recording", recording=str(lab / "study.yaml")))
        assert [t.key for t in study.trials] == [t.key for t in expected.trials]
        assert {t.extra["run"] for t in study.trials} == {"001/recording_0", "001/recording_1", "002/recording_0"}


def test_runs_left_out_are_named_where_the_study_is_refused(lab: Path) -> None:
    for path in sorted((lab / "runs").iterdir()):
        path.unlink()
    for name in "abc":
        path = lab / "runs" / f"subject9_{name}.csv"
        write_run(path, ord(name))
        rewrite(path, lambda rows: [[*r[:-1], "1" if i == 700 else "0"] for i, r in enumerate(rows)])
    with pytest.raises(ValueError) as error:
        open_lab(lab)
    left = "; ".join(f"subject9_{name}.csv was left out: 1 usable trials of 1" for name in "abc")
    assert str(error.value) == f"{lab / 'study.yaml'}: split train has no trial of class 'face'; {left}"
    for name in "abc":
        write_run(lab / "runs" / f"subject4_{name}.csv", ord(name))
    assert open_lab(lab).notes[-1] == "subject 9 is not in the study: all of its runs were left out"


@given(
    rate=st.sampled_from([100, 128, 256]),
    units=st.sampled_from(["s", "ms", "us"]),
    ppm=st.integers(-2000, 2000),
    jitter=st.sampled_from([0.0, 0.0005, 0.01]),
    losses=st.lists(st.tuples(st.floats(0.02, 0.9), st.integers(1, 300)), max_size=4),
    swap=st.integers(0, 900),
)
def test_epochs_hold_what_was_at_their_time(
    rate: int,
    units: str,
    ppm: int,
    jitter: float,
    losses: list[tuple[float, int]],
    swap: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The channel holds the true time (s): an epoch is right if it rises evenly from that of its marker."""
    n = 12 * rate
    alive = np.ones(n, bool)
    for part, count in losses:  # those that stand out of the jitter
        first = int(part * n)
        alive[first : first + max(count, round(6 * jitter * rate))] = False
    samples = np.flatnonzero(alive)
    if jitter == 0:
        order = np.arange(len(samples))
        order[swap : swap + 24] = np.concatenate([order[swap + 12 : swap + 24], order[swap : swap + 12]])
        samples = samples[order]
    scale = {"s": 1, "ms": 1e3, "us": 1e6}[units]
    stamp = samples / rate * (1 + ppm * 1e-6) + np.random.default_rng(swap).uniform(-jitter, jitter, len(samples))
    path = tmp_path_factory.mktemp("clock") / "x.csv"
    lines = [
        f"{s * scale + 1e9:.3f},{float(i / rate)!r},{int(i % (rate // 2) == 0)}"
        for s, i in zip(stamp, samples, strict=True)
    ]
    if units == "s":
        lines = [f"{s + 1e5:.6f},{line.partition(',')[2]}" for s, line in zip(stamp, lines, strict=True)]
    path.write_text("\n".join(["t,A,m", *lines]))
    study = StudyFile("", "", "t", ["A"], "m", rate=rate, units="V", time_units=units, window=[-0.1, 0.3])
    table = read_table(path, study)
    clear = ~across_gaps(table, study)
    window = np.arange(round(-0.1 * rate), round(0.3 * rate) + 1)
    present = set(samples.tolist())
    found = 0
    for onset, own in zip(table.onsets, clear, strict=True):
        if not (own and onset + window[0] >= 0 and onset + window[-1] < table.eeg.shape[1]):
            continue
        found += 1
        true = round(table.eeg[0, onset] * rate)
        assert true % (rate // 2) == 0  # it is where a marker was
        assert np.abs(table.eeg[0, onset + window] * rate - (true + window)).max() < 0.5
        assert all(true + i in present for i in window)
    reachable = [
        i for i in range(0, n, rate // 2) if all(i + j in present for j in range(window[0] - 30, window[-1] + 30))
    ]
    assert found >= len(reachable)  # and none is left out without need


def test_without_mne(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mne", None)
    with pytest.raises(ValueError, match="pip install mne"):
        open_lab(lab)


def test_markers_are_compared_as_written() -> None:
    assert [plain_marker(v) for v in ("1", " 1.0", "0", "0.0", "", "face", "1e1", "12345678.0")] == [
        "1",
        "1",
        "",
        "",
        "",
        "face",
        "10",
        "12345678",
    ]


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=200, max_size=260),
    onsets=st.sets(st.integers(0, 199), max_size=20),
    kind=st.sampled_from([".csv", ".tsv", ".csv.gz", ".tsv.gz"]),
)
def test_tables_round_trip(
    values: list[float], onsets: set[int], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / f"x{kind}"
    mark = "\t" if ".tsv" in kind else ","
    lines = [mark.join(["event", "t", "B"])]
    lines += [mark.join(["go" if i in onsets else "", repr(i / 100), repr(v)]) for i, v in enumerate(values)]
    data = "\r\n".join(lines).encode("utf-8-sig")
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    study = StudyFile("", "", "t", ["B"], "event", units="mV", rate=100)
    table = read_table(path, study)
    np.testing.assert_array_equal(table.eeg, np.array([values]) * 1e-3)
    assert table.onsets.tolist() == sorted(i for i in onsets if i - 1 not in onsets)  # a run of marks is one event
    assert set(table.values) <= {"go"}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real recordings in ../shared/real")
def test_real_recordings() -> None:
    study_file = str(PROJECT / "configs" / "n170_study.yaml")
    config = ShardsConfig(out="", dataset="recording", recording=study_file)
    study = open_study(config)
    # 1,174 events in six runs of two minutes; more than 95 % are free of electrode pops
    assert study.notes == ["39 of 1174 trials were left out as artefacts or cut off by the end of a run"]
    assert sum(map(len, study.splits.values())) == 1130  # and five lie across the border to val
    assert {t.extra["run"] for t in in_split(study, "test")} == {"2017-09-13-15.45.08"}
    assert max(np.ptp(t.eeg, axis=1).max() for t in study.trials) <= 100
    assert {t.image for t in study.trials if t.class_name == "faces"} == {p.stem for p in study.pictures["2"]}
    assert len(study.pictures["1"]) == len(study.pictures["2"]) == 12
    # The faces' N170 at the temporal electrodes TP9 and TP10: below houses by more than 1 uV somewhere in 150..250 ms.
    mean = {name: np.mean([t.eeg for t in study.trials if t.class_name == name], axis=0) for name in study.labels}
    n170 = slice(13 + round(0.15 * 128), 13 + round(0.25 * 128))
    difference = (mean["faces"] - mean["houses"])[:, n170].min(axis=1)
    assert difference[0] < -1 and difference[3] < -1
    config.subject = 3
    notes = open_study(config).notes
    assert notes[0] == (
        "subject3_session2_data_2018-05-14-19.38.10.csv.gz holds the same data as "
        "subject3_session1_data_2018-05-14-19.38.10.csv.gz and was left out"
    )
