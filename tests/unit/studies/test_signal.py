"""Signal options: sines, counts and means worked out by hand, and statistics that see nothing but train."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perceivelab_files import jpeg, write_study
from whole_shards import check_shards

from neuroimagen.config import load_config
from neuroimagen.shards.format import SPLITS, ShardSplit, read_manifest
from neuroimagen.shards.pack import ShardsConfig, make_shards
from neuroimagen.studies.open import open_study
from neuroimagen.studies.signal import REGIONS, NoiseCovariance, Prepared, SignalOptions, pick_channels, region_of
from neuroimagen.studies.study import Faults, Study, Trial

POSTERIOR = ["Fp1", "C3", "T7", "P3", "PO7", "O1", "Oz", "EOG"]


class Known(Study):
    """A study of given EEG: `shown` rows are (split, subject, image) of each trial."""

    dataset, units, protocol = "known", "uV", "as given"

    def __init__(self, eeg, shown=None, sfreq=1000.0, channels=None, tmin=0.0):
        super().__init__()
        self.eeg = np.asarray(eeg, dtype=np.float32)
        self.rows = shown or [("train", 1, f"i{n}") for n in range(len(self.eeg))]
        self.n_chans, self.n_times = self.eeg.shape[1:]
        self.sfreq, self.channels, self.tmin = sfreq, channels, tmin
        self.classes = [{"label": 0, "wnid": "w", "name": "n"}]
        self.splits = {s: [i for i, row in enumerate(self.rows) if row[0] == s] for s in SPLITS}
        self.notes, self.inputs = ["a note"], []
        self.read = []

    def __len__(self):
        return len(self.eeg)

    def trial(self, index):
        self.read.append(index)
        _, subject, image = self.rows[index]
        picture = jpeg(np.random.default_rng(0))
        extra = {"run": f"r{index}", "session": "s", "number": index}
        return Trial(f"t{index}", self.eeg[index], picture, subject, 0, "w", "n", image, extra)


def prepared(eeg, shown=None, sfreq=1000.0, channels=None, tmin=0.0, **options):
    return Prepared(Known(eeg, shown, sfreq, channels, tmin), SignalOptions(**options))


def sine(hertz, n=440, sfreq=1000.0, phase=0.4):
    return np.sin(2 * np.pi * hertz * np.arange(n) / sfreq + phase)


@given(st.integers(1, 3), st.integers(1, 30), st.integers(0, 2**31))
def test_without_options_the_study_is_unchanged_bit_for_bit(channels, times, seed):
    eeg = np.random.default_rng(seed).standard_normal((4, channels, times), dtype=np.float32) * 1e6
    study = Known(eeg)
    same = Prepared(study, SignalOptions())
    for name in ("channels", "n_chans", "n_times", "sfreq", "units", "splits", "protocol", "notes", "classes"):
        assert getattr(same, name) == getattr(study, name)
    assert len(same) == 4
    for i in range(4):
        assert same.trial(i).eeg.tobytes() == study.trial(i).eeg.tobytes()
        assert dataclasses.replace(same.trial(i), eeg=0) == dataclasses.replace(study.trial(i), eeg=0)


def test_open_study_wraps_only_if_asked(tmp_path):
    write_study(tmp_path)
    files = {"eeg": str(tmp_path / "eeg.pth"), "images": str(tmp_path / "images"), "splits": "by_image", "n_chans": 4}
    plain = open_study(ShardsConfig(out="", **files))
    assert not isinstance(plain, Prepared)
    cut = open_study(ShardsConfig(out="", window=[0.02, 0.12], picks=["3", "1"], **files))
    # the customary cut begins 20 ms into the trial, so that is where its time begins
    np.testing.assert_array_equal(cut.trial(7).eeg, plain.trial(7).eeg[[3, 1], :100])
    assert (cut.n_chans, cut.n_times, cut.channels) == (2, 100, None)
    with pytest.raises(ValueError, match="these files do not name their channels: pick by number, 0 to 3"):
        open_study(ShardsConfig(out="", picks=["occipital"], **files))
    with pytest.raises(ValueError, match="last from 0.02 to 0.46 s"):
        open_study(ShardsConfig(out="", window=[0, 0.1], **files))


@pytest.mark.parametrize("phase", [0.0, 0.8, 1.6])
def test_notch_takes_the_line_and_leaves_its_neighbours(phase):
    line, slow = sine(50, phase=phase), sine(10, phase=phase)
    study = prepared([[100 * line, slow, slow + 100 * line]], notch=[50])
    eeg = study.trial(0).eeg
    assert np.abs(eeg[0]).max() < 0.01  # 100 uV of line leave less than 0.01 uV, at the ends of the trial too
    np.testing.assert_allclose(eeg[1], slow, atol=0.02)
    np.testing.assert_allclose(eeg[2], slow, atol=0.03)
    assert "notch 50 Hz (4.5 Hz wide)" in study.protocol


def test_a_wandering_line_is_taken_from_a_long_trial():
    t = np.arange(4000) / 1000
    line = np.sin(2 * np.pi * (49.8 * t + 0.05 * t**2))  # 49.8 to 50.2 Hz
    eeg = prepared([[line]], notch=[50]).trial(0).eeg
    assert eeg[0, 1000:3000].std() < 0.15 * line.std()


def test_band_keeps_what_is_inside():
    slow, fast = sine(10, 1000), sine(50, 1000)
    eeg = prepared([[slow, fast, slow + 300]], band=[2, 30]).trial(0).eeg[:, 250:-250]
    # Butterworth of order 4, twice: the gain at 10 Hz is one within 1 %, at 50 Hz about 1 / (1 + (5/3)**8) = 0.017
    np.testing.assert_allclose(eeg[0], slow[250:-250], atol=0.05)
    assert np.abs(eeg[1]).max() < 0.03
    np.testing.assert_allclose(eeg[2], slow[250:-250], atol=0.05)
    high = prepared([[slow, fast]], band=[30, 0]).trial(0).eeg[:, 250:-250]
    assert np.abs(high[0]).max() < 0.01 and np.abs(high[1]).max() == pytest.approx(0.98, abs=0.02)
    low = prepared([[slow + 5, fast]], band=[0, 30]).trial(0).eeg[:, 250:-250]
    np.testing.assert_allclose(low[0], slow[250:-250] + 5, atol=0.02)
    assert np.abs(low[1]).max() < 0.03


def test_filters_work_on_half_a_second():
    rng = np.random.default_rng(0)
    whole = np.cumsum(rng.standard_normal((1, 20, 5000)), axis=2) * 0.1 + rng.standard_normal((1, 20, 5000))
    truth = prepared(whole, band=[5, 95]).trial(0).eeg[:, 2000:2500]
    short = prepared(whole[:, :, 2000:2500], band=[5, 95]).trial(0).eeg
    assert np.sqrt(((short - truth) ** 2).mean() / (truth**2).mean()) < 0.25


@pytest.mark.parametrize(
    "n, old, new, expected",
    [(440, 1000, 250, 110), (441, 1000, 250, 111), (100, 250, 1000, 400), (500, 1000, 128, 64), (512, 512, 200, 200)],
)
def test_resampling_counts_and_keeps_slow_waves(n, old, new, expected):
    study = prepared([[sine(3, n, old) + 40]], sfreq=old, resample=new)
    assert (study.n_times, study.sfreq) == (expected, new)
    eeg = study.trial(0).eeg
    assert eeg.shape == (1, expected)
    np.testing.assert_allclose(eeg[0], sine(3, expected, new) + 40, atol=0.1)  # sample k stays at k / new


def test_windows_and_baselines_are_exact():
    eeg = np.arange(2 * 1100).reshape(1, 2, 1100)
    study = prepared(eeg, tmin=-0.1, window=[0, 0.5])
    np.testing.assert_array_equal(study.trial(0).eeg, eeg[0, :, 100:600])
    assert (study.n_times, study.tmin) == (500, 0) and "0 to 0.5 s" in study.protocol
    # the mean of samples 0..99 is 49.5 in the first channel, and lies outside the window
    study = prepared(eeg, tmin=-0.1, window=[0.2, 0.203], baseline=[-0.1, 0])
    np.testing.assert_array_equal(study.trial(0).eeg, np.array([[300, 301, 302]] * 2) - 49.5)
    # after resampling, a window is of new samples
    study = prepared(np.zeros((1, 1, 1100)), tmin=-0.1, window=[0, 0.5], resample=200)
    assert study.trial(0).eeg.shape == (1, 100)


@given(st.data())
def test_any_window_is_cut_where_it_says(data):
    n, rate = data.draw(st.integers(1, 300)), data.draw(st.sampled_from([100.0, 128.0, 250.0, 512.0, 1000.0, 1024.0]))
    begin = data.draw(st.integers(-200, 200))
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    seconds = [(begin + first) / rate, (begin + last) / rate]
    study = prepared(np.arange(n).reshape(1, 1, n), sfreq=rate, tmin=begin / rate, window=seconds)
    assert study.trial(0).eeg[0].tolist() == list(range(first, last)) and study.n_times == last - first
    assert study.tmin == pytest.approx(seconds[0])
    again = pickle.loads(pickle.dumps(study))
    assert again.trial(0).eeg.tobytes() == study.trial(0).eeg.tobytes()


def test_standardise():
    eeg = np.array([[[1, 3, 1, 3], [10, 10, 10, 10], [0, 4, 8, 0]]])
    channel = prepared(eeg, standardise="channel")
    np.testing.assert_allclose(channel.trial(0).eeg[:2], [[-1, 1, -1, 1], [0, 0, 0, 0]])
    assert channel.units == "standard deviations"
    trial = prepared(eeg, standardise="trial").trial(0).eeg
    assert trial.mean() == pytest.approx(0, abs=1e-6) and trial.std() == pytest.approx(1)
    np.testing.assert_allclose(trial, (eeg[0] - eeg.mean()) / eeg.std(), rtol=1e-6)


def test_picks():
    assert pick_channels(["Oz", "fp1", "2", "Oz"], POSTERIOR, 8) == [6, 0, 2]
    assert pick_channels(["occipital", "parietal"], POSTERIOR, 8) == [4, 5, 6, 3]
    study = prepared(np.arange(16).reshape(1, 8, 2), channels=POSTERIOR, picks=["occipital"])
    np.testing.assert_array_equal(study.trial(0).eeg, [[8, 9], [10, 11], [12, 13]])
    assert study.channels == ["PO7", "O1", "Oz"] and "3 of 8 channels (occipital)" in study.protocol


def test_every_1005_site_has_a_region():
    mne = pytest.importorskip("mne")
    names = mne.channels.make_standard_montage("colin27_1005").ch_names
    # A and M are earlobes and mastoids, no part of the scalp
    assert [name for name in names if region_of(name) is None] == ["M1", "M2", "A1", "A2"]
    regions = {region: [name for name in names if region_of(name) == region] for region in REGIONS}
    assert {"Oz", "O1", "PO7", "POz", "Iz", "POO1", "OI2h"} <= set(regions["occipital"])
    assert {"Pz", "P7", "PPO1h", "CPP3h"} <= set(regions["parietal"])
    assert {"T7", "T8", "TP9", "FT10", "TTP7h", "T3", "T6"} <= set(regions["temporal"])
    assert {"Cz", "FC1", "CP6", "CCP4h"} <= set(regions["central"])
    assert {"Fp1", "Fpz", "AF8", "F7", "AFF5h"} <= set(regions["frontal"])


def correlated(rng, mixing, shape):
    return np.einsum("ij,...jt->...it", mixing, rng.standard_normal(shape))


@pytest.mark.parametrize("kind", ["time", "epochs"])
def test_whitening_makes_noise_of_train_white(kind):
    rng = np.random.default_rng(1)
    mixing = {1: np.array([[3, 0, 0], [2, 1, 0], [0, 1, 0.5]]), 2: np.diag([1.0, 10, 100])}
    rows, eeg = [], []
    for subject in mixing:
        for image in range(4):
            evoked = 30 * sine(3 + image, 100) if kind == "time" else 0  # noise over repetitions: no evoked response
            for _ in range(30):
                rows.append(("train", subject, f"i{image}"))
                eeg.append(correlated(rng, mixing[subject], (3, 100)) + evoked)
        rows.append(("test", subject, "i9"))
        eeg.append(np.full((3, 100), 1e3))
    study = prepared(eeg, rows, whiten=kind)
    assert study.units == "noise standard deviations" and f"({kind})" in study.protocol
    for subject in mixing:
        white = np.array([study.trial(i).eeg for i in study.splits["train"] if rows[i][1] == subject])
        if kind == "time":
            white = white.reshape(4, 30, 3, 100) - white.reshape(4, 30, 3, 100).mean(axis=1, keepdims=True)
        flat = white.reshape(-1, 3, 100).transpose(1, 0, 2).reshape(3, -1)
        np.testing.assert_allclose(flat @ flat.T / flat.shape[1], np.eye(3), atol=0.08)


@pytest.mark.parametrize("kind", ["time", "epochs"])
def test_whitening_after_an_average_reference(kind):
    rng = np.random.default_rng(4)
    eeg = correlated(rng, rng.standard_normal((4, 4)), (400, 4, 60))
    eeg -= eeg.mean(axis=1, keepdims=True)  # leaves three directions
    study = prepared(eeg, [("train", 1, f"i{i // 40}") for i in range(400)], whiten=kind)
    white = np.stack([study.trial(i).eeg for i in range(400)]).transpose(1, 0, 2).reshape(4, -1)
    values = np.linalg.eigvalsh(np.cov(white))
    np.testing.assert_allclose(values, [0, 1, 1, 1], atol=0.1)
    assert np.abs(white).max() < 10
    flat = eeg.copy()
    flat[:, 2] = 0
    study = prepared(flat[:1], whiten="epochs")
    assert "4 channels of subject 1 are worth 3" in study.notes[-1] and not study.trial(0).eeg[2].any()


def test_whitening_never_sees_val_or_test():
    rng = np.random.default_rng(2)
    rows = [(split, 1, f"{split}{i // 2}") for split in SPLITS for i in range(8)]
    eeg = rng.standard_normal((24, 3, 50))
    for kind in ("time", "epochs"):
        before = prepared(eeg, rows, whiten=kind, repetitions="all")
        other = eeg.copy()
        other[8:] = 1000 * rng.standard_normal((16, 3, 50)) + 7
        after = prepared(other, rows, whiten=kind, repetitions="all")
        for i in before.splits["train"]:
            assert before.trial(i).eeg.tobytes() == after.trial(i).eeg.tobytes()
        assert before.whiteners[1].tobytes() == after.whiteners[1].tobytes()
        assert set(Known(eeg, rows).splits["train"]) == set(range(8))
    other[0] *= 2
    assert not np.array_equal(prepared(other, rows, whiten="epochs").whiteners[1], after.whiteners[1])


def test_covariances_are_averaged_and_shrunk_by_what_they_disagree():
    # Two samples each: (1, r) and its negative have covariance 2 [[1, r], [r, r**2]] over n - 1 = 1
    def condition(r):
        return np.array([[[1, r], [-1, -r]]])

    noise = NoiseCovariance(2)
    noise.add(condition(1))
    noise.add(condition(1))
    np.testing.assert_allclose(noise(), [[2, 2], [2, 2]])  # they agree: nothing is shrunk
    # With covariances 2, 2, -2 off the diagonal, always 2 on it: in units of the variance 1, 1, -1, mean 1/3. Distance
    # 2 / 9; squared error of that mean, twice: (1 - 1 / 9) / (3 - 1) * 2 = 8 / 9, which is more: all of it is chance.
    noise.add(condition(-1))
    np.testing.assert_allclose(noise(), [[2, 0], [0, 2]], atol=1e-12)
    # 8 times as many: mean 1/3 as before, error 8 / 9 * 2 / 23, so 16/207 of 2/9 = 8/23 of the correlation goes
    for _ in range(7):
        for r in (1, 1, -1):
            noise.add(condition(r))
    np.testing.assert_allclose(noise(), [[2, 2 / 3 * 15 / 23], [2 / 3 * 15 / 23, 2]])
    scaled = NoiseCovariance(2)
    for r in (1, 1, -1) * 8:
        scaled.add(condition(r) * [1, 1000])
    np.testing.assert_allclose(scaled(), noise() * np.outer([1, 1000], [1, 1000]))
    # over the sets of one condition, unshrunk: variances 2 and 8 make 5
    alone = NoiseCovariance(1)
    alone.add(np.array([[[1.0], [-1]], [[2], [-2]]]))
    np.testing.assert_allclose(alone(), [[5]])


ROWS = [("train", 1, "a"), ("test", 1, "b"), ("train", 1, "a"), ("test", 2, "b"), ("test", 1, "b"), ("val", 1, "c")]
ROWS += [("test", 1, "b"), ("test", 2, "b"), ("test", 1, "d")]


def test_averages_of_known_numbers():
    eeg = np.array([[[2.0**i]] for i in range(9)])
    study = prepared(eeg, ROWS, repetitions="test")
    assert [study.trial(i).eeg.item() for i in study.splits["train"]] == [1, 4]
    # subject 1 saw b in trials 1, 4 and 6; subject 2 in 3 and 7; d comes once
    test = [study.trial(i) for i in study.splits["test"]]
    np.testing.assert_allclose([t.eeg.item() for t in test], [(2 + 16 + 64) / 3, (8 + 128) / 2, 256])
    assert [(t.key, t.subject, t.image) for t in test] == [("t1_mean3", 1, "b"), ("t3_mean2", 2, "b"), ("t8", 1, "d")]
    # what differs between the averaged trials is dropped, but the run tells the side of the split
    assert test[0].extra == {"averaged": 3, "run": "r1", "session": "s"}
    assert test[2].extra == {"averaged": 1, "run": "r8", "session": "s", "number": 8}
    assert "mean of 1 to 3 trials" in study.protocol and len(study) == 6
    every = prepared(eeg, ROWS, repetitions="all")
    assert [every.trial(i).eeg.item() for i in every.splits["train"]] == [2.5]
    groups = prepared(eeg[:8], ROWS[:8], repetitions="test", repetition_groups=2)
    assert [groups.trial(i).key for i in groups.splits["test"]] == ["t1_mean2", "t3_mean2"]
    assert groups.trial(groups.splits["test"][0]).eeg.item() == 9
    assert groups.notes == ["a note", "1 trials were left out: they fill no group of 2 repetitions"]
    with pytest.raises(ValueError, match="image d has 1 trials of subject 1 in test"):
        prepared(eeg, ROWS, repetitions="test", repetition_groups=2)


REFUSED = [
    ({"picks": ["8"]}, "numbered from 0 to 7"),
    ({"picks": ["Cz"]}, "no channel and no region"),
    (
        {"picks": ["occipital"], "channels": ["E1", "E2"]},
        "no channel lies there by its 10-05 name, among E1, E2",
    ),
    ({"notch": [600]}, "must lie between 9.09 Hz"),
    ({"notch": [5]}, "must lie between 9.09 Hz"),
    ({"band": [0.5, 40]}, "trials of 0.44 s: low edge and width must be at least 2.27 Hz"),
    ({"band": [40, 41]}, "cannot be told apart"),
    ({"band": [40, 30]}, "rising"),
    ({"band": [1, 500]}, "below half of the sampling rate of 1000 Hz"),
    ({"band": [1]}, "must be [low, high]"),
    ({"band": [0, 0]}, "must be [low, high]"),
    ({"resample": 333.1}, "choose another rate"),
    ({"resample": -5.0}, "choose another rate"),
    ({"window": [0, 1]}, "window=[0, 1] must be two rising times within the trials, which last from 0 to 0.44 s"),
    ({"window": [0.3, 0.2]}, "two rising times"),
    ({"window": [0.3]}, "two rising times"),
    ({"baseline": [-0.1, 0]}, "baseline=[-0.1, 0] must be"),
    ({"whiten": "time"}, "more than once in train"),
    ({"repetition_groups": 3}, "say where to average"),
    ({"repetition_groups": 1, "repetitions": "test"}, "must be 2 or more"),
]


@pytest.mark.parametrize("options, sentence", REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refused(options, sentence):
    channels = options.pop("channels", POSTERIOR)
    with pytest.raises(ValueError) as error:
        prepared(np.zeros((2, len(channels), 440)), channels=channels, **options)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_refused_by_what_the_trials_hold():
    eeg = np.random.default_rng(3).standard_normal((2, 2, 50))
    rows = [("train", 1, "a"), ("test", 2, "b")]
    study = prepared(eeg, rows, whiten="epochs")
    with pytest.raises(ValueError, match="subject 2 has no train trial to learn its noise from"):
        study.trial(1)
    with pytest.raises(ValueError, match="the EEG of subject 1 never moves in train"):
        prepared(np.ones((3, 2, 50)), whiten="epochs")
    eeg[0, 1, 3] = np.nan
    with pytest.raises(ValueError, match="trial t0 holds NaN"):
        prepared(eeg, standardise="trial").trial(0)


def test_collected_faults_do_not_stop_the_pass():
    eeg = np.random.default_rng(3).standard_normal((3, 2, 50))
    eeg[1, 0, 0] = np.inf
    study = Known(eeg)
    study.fault = Faults(collect=True)
    white = Prepared(study, SignalOptions(whiten="epochs"))
    alone = Prepared(Known(eeg[[0, 2]]), SignalOptions(whiten="epochs"))
    np.testing.assert_array_equal(white.whiteners[1], alone.whiteners[1])


def test_shards_of_a_prepared_study(tmp_path: Path):
    content = write_study(tmp_path)
    files = [f"eeg={tmp_path / 'eeg.pth'}", f"images={tmp_path / 'images'}", "splits=by_image", "n_chans=4"]
    options = ["picks=[2,0]", "band=[5,95]", "resample=250", "window=[0.06,0.46]", "standardise=channel"]
    options += ["repetitions=test", "eeg_dtype=float32"]
    config = load_config(ShardsConfig, [f"out={tmp_path / 'out'}", *files, *options], "shards")
    make_shards(config)
    check_shards(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.n_chans, manifest.n_times, manifest.sfreq) == (2, 100, 250)
    assert manifest.config["band"] == [5, 95] and manifest.config["repetitions"] == "test"
    assert "bandpass 5 to 95 Hz, resampled from 1000 to 250 Hz" in manifest.protocol
    json.dumps(manifest.config)
    study, train = open_study(config), ShardSplit(tmp_path / "out", "train")
    for i, index in enumerate(study.splits["train"]):
        np.testing.assert_array_equal(train.eeg(i), study.trial(index).eeg)
    assert len(content["dataset"]) == 60
