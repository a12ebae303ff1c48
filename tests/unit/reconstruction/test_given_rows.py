"""What stands in for a trial in controls and linear rows: whose EEG it is, and numbers computed independently."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tiny_models import tiny_pipeline, tiny_shards

from neuroimagen.batches.stream import Batcher
from neuroimagen.linear import PENALTIES, window_means
from neuroimagen.reconstruction.controls import ClassCaptions
from neuroimagen.reconstruction.draw import decode, saliency_maps
from neuroimagen.reconstruction.given import SIDE, Given, RidgeDecoders, stand_ins
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.shards.format import ShardSplit
from neuroimagen.studies.controls import random_phases


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("given") / "shards")


@pytest.fixture(scope="module")
def captions(shards, tmp_path_factory):
    pipeline = tiny_pipeline(tmp_path_factory.mktemp("given") / "pipeline")
    return ClassCaptions(Reconstructor(str(pipeline)), ShardSplit(shards, "train").manifest.classes, 0)


class Net:
    """A G that shows the noise and what f_θ says as a grey map."""

    z_dim = 1

    def __call__(self, z, features):
        return (0.1 * (features + z[:, 0]))[:, None, None, None].expand(-1, 3, 2, 2)


def decoders():
    return SimpleNamespace(f_theta=lambda eeg, subject=None: eeg[:, 0].mean(1), g=Net(), m_s={}, retrieval=None)


def given(rows, shards, split):
    config = SimpleNamespace(shards=str(shards), samples=2, seed=0, rescale_embeddings=False, limit=None)
    return Given(rows, split, decoders(), SimpleNamespace(device="cpu"), config)


def test_random_phases_keep_spectra_and_covariance_and_nothing_else():
    rng = np.random.default_rng(0)
    for n_times in (440, 441):
        eeg = rng.standard_normal((5, n_times)).cumsum(1).astype(np.float32)
        made = random_phases(eeg, np.random.default_rng(1))
        before, after = (np.fft.fft(x.astype(float)) for x in (eeg, made))
        cross = [x[:, None] * x[None].conj() for x in (before, after)]  # between all channels, at each frequency
        np.testing.assert_allclose(*cross, rtol=1e-3, atol=1e-2 * abs(cross[0]).mean())
        centred = [x - x.mean(1, keepdims=True) for x in (eeg, made)]
        np.testing.assert_allclose(*(x @ x.T for x in centred), rtol=1e-3)
        assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(eeg, made, strict=True)) < 0.95
        assert (made == random_phases(eeg, np.random.default_rng(1))).all()
        assert made.shape == eeg.shape and made.dtype == np.float32


@pytest.mark.parametrize("row", ["map of class", "surrogate"])
def test_who_stands_in(shards, row):
    """Checked against what each trial's JSON says; train has eight pictures a class and 24 trials a subject."""
    train = ShardSplit(shards, "train")
    infos = [train.info(i) for i in range(len(train))]
    found, seen = stand_ins(train, row, train.keys, 0), set()
    assert list(found) == train.keys and found == stand_ins(train, row, train.keys, 0)
    for i, key in enumerate(train.keys):
        own, other = infos[i], infos[found[key]]
        assert found[key] != i
        if row == "map of class":
            assert own["label"] == other["label"] and own["image"] != other["image"]
        else:
            assert own["subject"] == other["subject"]
        seen.add(found[key])
    assert len(seen) > len(train) / 3 and found != stand_ins(train, row, train.keys, 1)
    assert stand_ins(train, row, train.keys[3:5], 0) == {key: found[key] for key in train.keys[3:5]}


def test_what_has_no_other_is_refused_in_one_sentence(shards, monkeypatch):
    test = ShardSplit(shards, "test")  # one picture a class, seen by two people
    with pytest.raises(ValueError, match="has one picture in test, so row map of class has none to take: leave it out"):
        given(["map of class"], shards, test)
    given(["surrogate"], shards, test)  # three trials a person
    read_labels = Batcher.read_labels

    def alone(batcher):
        found = read_labels(batcher)
        batcher.subject[:] = np.arange(len(batcher.subject))
        return found

    monkeypatch.setattr(Batcher, "read_labels", alone)
    with pytest.raises(ValueError, match="subject 0 has one trial in test, so row surrogate has none to take: leave"):
        given(["surrogate"], shards, test)


def test_a_damaged_trial_is_named(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "shards")
    test = ShardSplit(copy, "test")
    with open(test.paths[0], "r+b") as tar:
        tar.seek(int(test.index[3]["json"][0]))
        tar.write(b"?")
    with pytest.raises(ValueError, match=f"{test.keys[3]}.*row surrogate needs all of test; make the shards again"):
        given(["surrogate"], copy, ShardSplit(copy, "test"))


def test_a_stand_in_is_decoded_as_its_own_trial_is(shards):
    """The map of another trial is its very map; a surrogate has this trial's noise and the other one's power."""
    train = ShardSplit(shards, "train")
    rows = ["map of class", "surrogate"]
    made, batch = given(rows, shards, train), Batcher(train, None)(np.arange(6))
    found = made(batch, rows)
    every = decode(Batcher(train, None)(np.arange(len(train)))["eeg"], train.keys, decoders(), 0).maps
    places = [stand_ins(train, "map of class", train.keys, 0)[key] for key in batch["key"]]
    torch.testing.assert_close(found["another of its class"].maps, every[places])
    torch.testing.assert_close(found["trial"].maps, every[:6])
    assert not torch.isclose(found["surrogate"].maps, found["trial"].maps).all()
    other = Batcher(train, None)(np.array([made.stand_ins["surrogate"][key] for key in batch["key"]]))["eeg"]
    means = other[:, 0].mean(1).abs()  # the mean of a surrogate is that of the other trial, but for its sign
    noise = saliency_maps(torch.zeros_like(other), batch["key"], decoders(), 0)[:, 0, 0, 0]
    drawn = (found["surrogate"].maps[:, 0, 0, 0] - noise) / 0.05
    torch.testing.assert_close(drawn.abs(), means, rtol=1e-3, atol=1e-4)
    assert set(made(batch, ["I"])) == {"trial"}


def test_the_mean_map_is_that_of_all_train_trials(shards):
    test, train = ShardSplit(shards, "test"), ShardSplit(shards, "train")
    made = given(["mean map"], shards, test)
    made.prepare(["mean map"], 16, 0, 1)
    eeg = np.stack([train.eeg(i) for i in range(len(train))])
    mean, std = (np.array(x)[:, None] for x in (train.manifest.channel_mean, train.manifest.channel_std))
    features = ((eeg - mean) / std)[:, 0].mean(1)
    noise = saliency_maps(torch.zeros(len(train), *train.shape), train.keys, decoders(), 0)[:, 0, 0, 0].numpy()
    maps = made(Batcher(test, None)(np.arange(2)), ["mean map"])["train"].maps
    assert maps.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(maps, (noise + 0.05 * features).mean(), rtol=1e-4)


def test_the_nearest_class_by_hand(captions):
    """Directions from the mean decide, not lengths: 0.1 of one class and 0.05 of another, and thrice a third."""
    e, mean = captions.embeddings, captions.embeddings.mean(0)
    offsets = e - mean
    asked = torch.stack([0.1 * offsets[1] + 0.05 * offsets[2], 3 * offsets[2], offsets[0] - 0.2 * offsets[1]]) + mean
    flat, known = (asked - mean).flatten(1).numpy(), offsets.flatten(1).numpy()
    best = [max(range(3), key=lambda c: x @ known[c] / np.linalg.norm(known[c])) for x in flat]
    assert best == [1, 2, 0] and torch.equal(captions.nearest(asked, mean), e[best])


def by_sklearn(x, y, val_x, val_y, asked):
    scaler = StandardScaler().fit(x)
    fits = [Ridge(penalty).fit(scaler.transform(x), y) for penalty in PENALTIES]
    errors = [np.square(fit.predict(scaler.transform(val_x)) - val_y).sum() for fit in fits]
    return fits[int(np.argmin(errors))].predict(scaler.transform(asked))


@pytest.mark.parametrize("rescale", [False, True])
def test_ridge_rows_are_scikit_learns_on_whole_embeddings_and_pictures(shards, captions, rescale):
    """The 16 x 32 numbers of an embedding regressed on one by one, where the code regresses on two coordinates."""
    splits = {name: ShardSplit(shards, name) for name in ("train", "val", "test")}
    data = {name: Batcher(split, SIDE)(np.arange(len(split))) for name, split in splits.items()}
    x = {name: window_means(batch["eeg"].numpy(), 1000.0) for name, batch in data.items()}
    whole = captions.embeddings.flatten(1).double().numpy()
    place = {about["label"]: i for i, about in enumerate(splits["train"].manifest.classes)}
    y = {name: whole[[place[label] for label in batch["label"].tolist()]] for name, batch in data.items()}
    wanted = by_sklearn(x["train"], y["train"], x["val"], y["val"], x["test"])
    if rescale:
        mean = y["train"].mean(0)
        length = np.sqrt(np.square(y["train"] - mean).sum(1).mean())
        offset = wanted - mean
        wanted = mean + offset * length / np.linalg.norm(offset, axis=1, keepdims=True)
    made = RidgeDecoders(splits["train"], splits["val"], captions)
    maps, embeddings = made(data["test"]["eeg"], rescale)
    np.testing.assert_allclose(
        embeddings["label"].flatten(1), wanted, atol=1e-6 + 5e-4 * np.abs(wanted - whole.mean(0)).max()
    )
    pictures = {name: batch["image"].flatten(1).add(1).div(2).numpy() for name, batch in data.items()}
    drawn = by_sklearn(x["train"], pictures["train"], x["val"], pictures["val"], x["test"])
    np.testing.assert_allclose(maps.flatten(1), drawn.clip(0, 1), atol=1e-5)
    assert maps.shape == (6, 3, SIDE, SIDE)
