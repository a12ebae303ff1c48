"""EEG given from Python becomes what the shards hold, whichever way it comes."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("mne_bids", reason="Epochs are mne's; mne and mne-bids are extras")

import mne
from lab_files import CHANNELS, RATE, TYPES, config, write_epochs
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline

from neuroimagen import NeuroImagen
from neuroimagen.model.eeg import Contract, _compare, take
from neuroimagen.shards.format import ShardSplit, read_manifest
from neuroimagen.shards.pack import make_shards

OPTIONS = {
    "plain": [],
    "all": ["picks=[Pz,O1]", "notch=[30]", "band=[5,40]", "resample=50", "baseline=[-0.1,0]", "window=[0,0.2]"],
    "standardised": ["standardise=channel", "eeg_dtype=float32", "picks=[occipital]"],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab's epochs files, and shards of them by three sets of signal options."""
    folder = tmp_path_factory.mktemp("lab")
    write_epochs(folder)
    for name, options in OPTIONS.items():
        made = config(folder, "splits=by_image", *options)
        made.out = str(folder / name)
        make_shards(made)
    return folder


def epochs_of(lab, split) -> list:
    """The file and the number in it of each trial of a split, as Epochs of that one trial."""
    files = {path.name: mne.read_epochs(path, verbose="ERROR") for path in (lab / "eeg").glob("*.fif")}
    return [files[info["run"]][[info["number"]]] for info in map(split.info, range(len(split)))]


@pytest.mark.parametrize("name", OPTIONS)
def test_epochs_become_what_the_shards_hold_byte_for_byte(lab, name):
    contract = Contract.of(read_manifest(lab / name))
    split = ShardSplit(lab / name, "test")
    for i, epochs in enumerate(epochs_of(lab, split)):
        given = take(contract, epochs)
        assert given.numpy().tobytes() == split.eeg(i).tobytes()
        turned = epochs.copy().load_data().reorder_channels(epochs.ch_names[::-1])
        assert torch.equal(take(contract, turned), given), "channels are taken by name"
        volts = epochs.get_data(picks=["O1", "Oz", "Pz"])
        recorded = take(contract, volts * 1e6, RATE, epochs.tmin, ["O1", "Oz", "Pz"])
        assert torch.equal(recorded, given)
        assert torch.equal(take(contract, split.eeg(i)[None]), given)


def test_longer_epochs_at_another_rate_are_cut_and_resampled():
    """A slow sine survives; 4 times the rate, and longer at both ends."""
    contract = Contract("epochs", 1, 41, 100.0, "uV", "float32", [0.0], [5.0], ["Oz"], -0.1, {}, {})

    def sine(rate, start, n):
        return 10 * np.sin(2 * np.pi * 3 * (start + np.arange(n) / rate))

    eeg = np.stack([sine(400.0, -0.5, 480)])[None] * 1e-6
    given = take(contract, mne.EpochsArray(eeg, mne.create_info(["OZ"], 400.0, "eeg"), tmin=-0.5, verbose="ERROR"))
    assert given.shape == (1, 1, 41)
    np.testing.assert_allclose(given[0, 0], sine(100.0, -0.1, 41), atol=0.1)


def test_pictures_of_epochs_are_those_of_the_shards(lab, tmp_path):
    manifest = read_manifest(lab / "all")
    pipeline = tiny_pipeline(tmp_path / "pipeline")
    shape = {"n_chans": 2, "n_times": 10}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NeuroImagen(
            eeg=Contract.of(manifest),
            pipeline=str(pipeline),
            settings={"samples": 2, "seed": 0, "strength": 0.8, "guidance_scale": 2.0, "num_inference_steps": 4}
            | {"image_size": None, "chunk": 4},
            features=shape | {"n_features": 8},
            generator={"n_features": 8, "z_dim": 4, "image_size": 16, "width": 4},
            semantics={"label": shape | {"n_tokens": TEXT_LENGTH, "width": TEXT_WIDTH, "n_features": 8}},
        ).eval()
    split = ShardSplit(lab / "all", "test")
    each = epochs_of(lab, split)
    for one in each:
        one.info["bads"] = []  # differ by file
    epochs = mne.concatenate_epochs(each, verbose="ERROR")
    ours = model.reconstruct(epochs, split.keys)
    theirs = model.reconstruct(np.stack([split.eeg(i) for i in range(len(split))]), split.keys)
    assert len(ours.images) == len(split) == 6
    assert [[x.tobytes() for x in images] for images in ours.images] == [
        [x.tobytes() for x in images] for images in theirs.images
    ]
    assert torch.equal(ours.embeddings, theirs.embeddings)


def made_epochs(channels=CHANNELS, types=TYPES, rate=RATE, tmin=-0.1, n=41, scale=1e-5, **info):
    data = np.random.default_rng(0).normal(0, scale, (2, len(channels), n))
    about = mne.create_info(list(channels), rate, types)
    with about._unlock():
        about.update(info)
    return mne.EpochsArray(data, about, tmin=tmin, verbose="ERROR")


def test_epochs_that_cannot_be_matched(lab):
    contract = Contract.of(read_manifest(lab / "plain"))

    def refused(match, given, contract=contract, **asked):
        with pytest.raises(ValueError, match=match) as error:
            take(contract, given, **asked)
        assert "\n" not in str(error.value)

    assert take(contract, made_epochs()).shape == (2, 3, 41)
    refused(
        "lack 2 of the 3 EEG channels that this model takes: O1, Pz .they have O2, Oz", made_epochs(["O2", "Oz"], "eeg")
    )
    refused("lack 1 .*: Pz", made_epochs(types=["eeg", "eog", "eeg", "eog"]))
    refused("no channel of type EEG", made_epochs(types="eog"))
    refused("at 50 Hz, but the model takes 100 Hz: give it at that or more", made_epochs(rate=50.0, n=21))
    refused("lasts from 0 to 0.41 s, but the model takes -0.1 to 0.31 s", made_epochs(tmin=0.0))
    refused("lasts from -0.1 to 0.2 s", made_epochs(n=30))
    refused("varies .* times as much", made_epochs(scale=10.0))  # microvolts that mne was told are volts
    refused("leave those out", made_epochs(), sfreq=100.0)
    broken = made_epochs()
    broken._data[1, 0, 3] = np.nan
    refused("trial 1 holds NaN", broken)
    refused("hold no trial", made_epochs()[[]])
    # what the shards had that an array or Epochs cannot be given any more, or must have had before
    changed = dataclasses.replace
    refused("whiten=time.*give an array of 3 channels", made_epochs(), changed(contract, options={"whiten": "time"}))
    refused("before shards said when their trials begin", made_epochs(), changed(contract, tmin=None))
    refused("names no channels, so Epochs cannot be matched", made_epochs(), changed(contract, channels=None))
    refused("is not known to be in volts", made_epochs(), changed(contract, dataset="things_eeg2"))
    filtered = changed(contract, before={"band": [1.0, 40.0]})
    refused(
        r"filtered from 1 to 40 Hz .* these Epochs are of 0 to 50 Hz: .*raw.filter\(1.0, 40.0\)",
        made_epochs(),
        filtered,
    )
    assert len(take(filtered, made_epochs(highpass=1.0, lowpass=40.0))) == 2
    refused("channels lacks Pz", np.ones((1, 2, 41)), sfreq=100.0, channels=["O1", "Oz"])


def test_the_reader_s_own_baseline_is_subtracted(lab):
    contract = dataclasses.replace(Contract.of(read_manifest(lab / "plain")), eeg_dtype="float32", dataset="recording")
    epochs = made_epochs()
    based = take(dataclasses.replace(contract, before={"baseline": [-0.1, 0.0]}), epochs)
    assert based[:, :, :10].mean(2).abs().max() < 1e-4 < take(contract, epochs)[:, :, :10].mean(2).abs().max()


def test_the_manifest_says_when_trials_begin_and_what_was_done_before(lab):
    assert [read_manifest(lab / name).tmin for name in ("plain", "all")] == [pytest.approx(-0.1), pytest.approx(0.0)]
    assert read_manifest(lab / "all").before == {}


def lazy_epochs(tmin=-0.1, **options):
    """Seven epochs of a recording of 7 s as everyone cuts them: not loaded, so what will be dropped is not known."""
    data = np.random.default_rng(0).normal(0, 1e-5, (4, 700))
    data[2, 355] += 1e-3
    raw = mne.io.RawArray(data, mne.create_info(CHANNELS, RATE, TYPES), verbose="ERROR")
    raw.set_annotations(mne.Annotations([4.5], [0.05], ["BAD_cough"]))
    events = np.array([[100 * i + 50, 0, 1] for i in range(7)])
    return mne.Epochs(raw, events, tmin=tmin, tmax=0.3, verbose="ERROR", **({"baseline": None} | options)), data


@pytest.mark.parametrize(
    "options, kept, said",
    [
        ({"reject_by_annotation": False}, range(7), ""),
        ({"preload": True}, [0, 1, 2, 3, 5, 6], ""),
        (
            {},
            [0, 1, 2, 3, 5, 6],
            r"1 of 7 epochs were dropped: BAD_cough .1.; left, .* are numbers 0, 1, 2, 3, 5, 6 of",
        ),
        ({"tmin": -0.6}, [1, 2, 3, 5, 6], "2 of 7 epochs were dropped: NO_DATA .1., BAD_cough .1.; left"),
        ({"reject": {"eeg": 5e-4}}, [0, 1, 2, 5, 6], "2 of 7 epochs were dropped: Oz .1., BAD_cough .1.; left"),
    ],
)
def test_epochs_that_are_not_loaded_are_taken_and_stay_as_they_are(lab, options, kept, said):
    contract = Contract.of(read_manifest(lab / "plain"))
    epochs, data = lazy_epochs(**options)
    before = epochs.preload, epochs._bad_dropped, len(epochs.events)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = take(contract, epochs)
    assert (epochs.preload, epochs._bad_dropped, len(epochs.events)) == before
    assert len(caught) == bool(said) and all(re.search(said, str(warning.message)) for warning in caught)
    expected = np.stack([data[[0, 2, 3], 100 * i + 40 : 100 * i + 81] for i in kept]) * 1e6
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="hold no trial: 7 of 7 epochs were dropped: .*Oz .7."):
        take(contract, lazy_epochs(reject={"eeg": 1e-9}, reject_by_annotation=False)[0])


@pytest.mark.parametrize("baseline", [None, (None, 0), (-0.1, 0.0)])
def test_epochs_with_and_without_a_baseline(lab, baseline):
    contract = dataclasses.replace(Contract.of(read_manifest(lab / "plain")), eeg_dtype="float32")
    epochs, data = lazy_epochs(baseline=baseline, reject_by_annotation=False)
    expected = np.stack([data[[0, 2, 3], 100 * i + 40 : 100 * i + 81] for i in range(7)]) * 1e6
    expected -= expected[:, :, :11].mean(axis=2, keepdims=True) if baseline else 0
    np.testing.assert_allclose(take(contract, epochs), expected, rtol=1e-4, atol=1e-3)


def test_projectors_are_applied_as_when_a_file_is_read(lab, tmp_path):
    contract = dataclasses.replace(Contract.of(read_manifest(lab / "plain")), recorded=None)
    epochs = lazy_epochs(preload=True)[0]
    epochs.set_eeg_reference(projection=True, verbose="ERROR")  # not applied before one says so
    epochs.save(tmp_path / "a-epo.fif", verbose="ERROR")
    read = mne.read_epochs(tmp_path / "a-epo.fif", verbose="ERROR")
    np.testing.assert_allclose(take(contract, epochs), take(contract, read), rtol=1e-3, atol=1e-2)
    assert not epochs.info["projs"][0]["active"] and abs(take(contract, epochs).mean(1)).max() < 0.01


def test_other_objects_of_mne_are_told_what_to_do(lab):
    contract, epochs = Contract.of(read_manifest(lab / "plain")), lazy_epochs(preload=True)[0]
    raw = mne.io.RawArray(np.zeros((4, 700)), epochs.info, verbose="ERROR")
    others = [raw, epochs.average(), epochs.compute_psd(verbose="ERROR"), epochs.info, raw.annotations]
    for other in others:
        with pytest.raises(ValueError, match=f"eeg is {type(other).__name__} of mne, but must be Epochs"):
            take(contract, other)
    evoked = epochs.average()
    as_told = take(contract, evoked.data[None] * 1e6, RATE, evoked.tmin, evoked.ch_names)
    assert as_told.shape == (1, 3, 41)


@pytest.mark.parametrize(
    "info, options, warned",
    [
        ({}, {}, False),
        ({"highpass": 1.0}, {}, True),
        ({"lowpass": 30.0}, {}, True),
        ({"lowpass": 49.0}, {}, False),  # a tenth is no other filter
        ({"lowpass": 500.0}, {}, False),  # the model sees nothing above half its rate
        ({"custom_ref_applied": True}, {}, True),
        ({"highpass": 0.1}, {"band": [1.0, 0.0]}, False),  # the model filters itself
        ({"highpass": 2.0}, {"band": [1.0, 0.0]}, True),
        ({"lowpass": 30.0}, {"band": [0.0, 20.0]}, False),
    ],
)
def test_pass_band_and_reference_are_compared(lab, info, options, warned):
    contract = Contract.of(read_manifest(lab / "plain"))
    assert contract.recorded == [{"highpass": 0.0, "lowpass": 50.0, "custom_ref_applied": 0}]
    contract = dataclasses.replace(contract, options=contract.options | options)
    epochs = lazy_epochs(preload=True)[0].crop(-0.1, 0.3)
    with epochs.info._unlock():
        epochs.info.update(info)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _compare(contract, epochs.info, filtered=False)
        assert len(caught) == warned
        _compare(dataclasses.replace(contract, recorded=None), epochs.info, filtered=False)  # of older shards
    assert len(caught) == warned
    if warned:
        assert re.search(
            r"these Epochs are of .* Hz, .*, but what this model was trained on is of 0 to 50 Hz, reference "
            "as recorded: filter and reference yours alike",
            str(caught[0].message),
        )
