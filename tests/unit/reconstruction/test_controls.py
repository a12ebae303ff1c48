"""Controls and baselines as rows of a reconstruct run: what each picture depends on, and on what not."""

import shutil

import numpy as np
import pytest
import torch
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline, tiny_shards, tiny_xl

from neuroimagen.batches.stream import Batcher
from neuroimagen.reconstruction.controls import ClassCaptions, Gallery, draw_baseline, nearest_pictures, random_class
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder, short_embeddings
from neuroimagen.shards.format import ShardSplit


def m_s(seed=0):
    torch.manual_seed(seed)
    model = SampleEncoder(4, 440, TEXT_LENGTH, TEXT_WIDTH, encoder="conv", n_features=8, encoder_width=8)
    torch.nn.init.normal_(model.output.weight)
    torch.nn.init.normal_(model.output.bias)
    model.set_targets(3 + torch.randn(5, TEXT_LENGTH, TEXT_WIDTH), torch.full((5,), 0.2))
    return model.requires_grad_(False).eval()


def test_nearest_pictures_by_hand():
    """Rows at 0, 30, 90, 180 and 20 degrees; pictures 7, 8, 7, 9, 8; asked from 12 and 100 degrees, at two lengths."""
    rows, asked = torch.tensor([0.0, 30, 90, 180, 20]).deg2rad(), torch.tensor([12.0, 100]).deg2rad()
    vectors, queries = (torch.stack([angles.cos(), angles.sin()], 1) for angles in (rows, asked))
    found = nearest_pictures(queries * torch.tensor([[0.1], [7]]), vectors, torch.tensor([7, 8, 7, 9, 8]), 3)
    assert found.tolist() == [[4, 0, 3], [2, 1, 3]]  # 8 deg, 12 deg, 168 deg; 10 deg, 70 deg, 80 deg


def test_of_equally_near_pictures_the_first_is_nearer():
    vectors = torch.tensor([[0.0, 1], [1, 0], [1, 0]]).repeat(200, 1)
    pictures = torch.arange(600)
    assert nearest_pictures(torch.tensor([[1.0, 0]]), vectors, pictures, 402)[0].tolist()[:4] == [1, 2, 4, 5]
    assert nearest_pictures(torch.tensor([[1.0, 0]]), vectors, pictures, 402)[0].tolist()[399:] == [599, 0, 3]


def test_short_embeddings_have_the_lengths_and_angles_of_the_long_ones():
    model, eeg = m_s(), torch.randn(6, 4, 440)
    long, short = (model(eeg) - model.mean).flatten(1), short_embeddings(model)(eeg)
    assert long.shape == (6, TEXT_LENGTH * TEXT_WIDTH) and short.shape == (6, 9)
    torch.testing.assert_close(short @ short.T, long @ long.T, rtol=1e-4, atol=1e-2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("controls") / "shards")


def test_retrieval_returns_the_pictures_of_the_nearest_train_trials(shards):
    model, train, test = m_s(), ShardSplit(shards, "train"), ShardSplit(shards, "test")
    gallery, eeg = Gallery(model, train, 16), Batcher(test, None)(np.arange(3))["eeg"]
    drawn = gallery(eeg, samples=4)
    assert drawn.shape == (3, 4, 3, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1

    every = Batcher(train, 16)(np.arange(len(train)))  # the same, with whole embeddings and a plain search
    theirs = (model(every["eeg"]) - model.mean).flatten(1)
    cosine = torch.cosine_similarity((model(eeg) - model.mean).flatten(1)[:, None], theirs[None], dim=2)
    for pictures, row in zip(drawn, cosine, strict=True):
        best = {}
        for i in row.argsort(descending=True).tolist():
            best.setdefault(every["image_name"][i], i)
        wanted = every["image"][list(best.values())[:4]].add(1).div(2)
        torch.testing.assert_close(pictures, wanted, atol=1e-6, rtol=0)


def test_the_gallery_is_the_same_however_many_processes_make_it(shards, monkeypatch):
    monkeypatch.setattr("neuroimagen.reconstruction.controls.TRIALS_AT_ONCE", 16)
    model, train = m_s(), ShardSplit(shards, "train")
    assert len(train) == 48
    parts = [Gallery(model, train, 16, rank=rank, world=2).vectors for rank in range(2)]
    assert (parts[0][16:32] == 0).all() and (parts[1][:16] == 0).all()
    assert torch.equal(parts[0] + parts[1], Gallery(model, train, 16).vectors)


def test_a_damaged_train_trial_is_named(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "shards")
    train = ShardSplit(copy, "train")
    offset = int(train.index[3]["json"][0])
    with open(train.paths[0], "r+b") as tar:
        tar.seek(offset)
        tar.write(b"?")
    with pytest.raises(ValueError, match=f"{train.keys[3]}.*row retrieval needs all of train"):
        Gallery(m_s(), ShardSplit(copy, "train"), 16)


def test_random_class_is_a_function_of_seed_key_and_sample():
    drawn = [random_class(0, f"trial{i}", sample, 5) for i in range(400) for sample in range(3)]
    assert drawn == [random_class(0, f"trial{i}", sample, 5) for i in range(400) for sample in range(3)]
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5 and (abs(counts - 240) < 5 * np.sqrt(240 * 0.8)).all()
    assert drawn != [random_class(1, f"trial{i}", sample, 5) for i in range(400) for sample in range(3)]
    assert len({random_class(0, "trial0", sample, 5) for sample in range(50)}) == 5


@pytest.mark.parametrize("xl", [False, True])
def test_the_oracle_is_told_the_label_and_the_other_is_not(tmp_path, xl):
    pipeline = str(tiny_pipeline(tmp_path / "pipeline"))
    pipeline = str(tiny_xl(tmp_path / "xl", pipeline)) if xl else pipeline
    classes = [{"label": label, "name": name} for label, name in ((4, "daisy"), (7, "pizza"), (9, "banana"))]
    captions = ClassCaptions(Reconstructor(pipeline), classes, 0)
    table = embed_captions(pipeline, [f"An image of {name}" for name in ("daisy", "pizza", "banana")])
    seen, drawn = captions([9, 4, 9], ["a", "b"], 3).values()
    torch.testing.assert_close(seen, table[[2, 0, 2]])
    assert drawn.shape == (2, 3, *table.shape[1:]) and (table.shape[2] > TEXT_WIDTH) == xl
    for i, key in enumerate("ab"):
        for sample in range(3):
            torch.testing.assert_close(drawn[i, sample], table[random_class(0, key, sample, 3)])


class Stub:
    """A baseline that shows its noise, and the EEG's first value, as grey levels of two halves."""

    z_dim = 2

    def draw(self, eeg, z, subject=None):
        grey = torch.stack([z[:, 0].sigmoid(), eeg[:, 0, 0]], 1)
        return grey[:, None, :, None].expand(-1, 3, 2, 4).repeat_interleave(2, 2)


def test_a_baseline_is_drawn_with_noise_of_seed_key_and_sample():
    eeg = torch.full((2, 1, 5), 0.25)
    drawn = draw_baseline(Stub(), eeg, ["a", "b"], 3, 0, 4)
    assert drawn.shape == (2, 3, 3, 4, 4) and (drawn[..., 2:, :] == 0.25).all()
    noise = drawn[:, :, 0, 0, 0]
    assert len(noise.unique()) == 6
    assert torch.equal(draw_baseline(Stub(), eeg[:1], ["b"], 3, 0, 4)[0], drawn[1])
    assert not (draw_baseline(Stub(), eeg, ["a", "b"], 3, 1, 4)[:, :, 0, 0, 0] == noise).any()


def test_a_baseline_is_brought_to_the_size_of_the_run():
    drawn = draw_baseline(Stub(), torch.full((1, 1, 5), 0.25), ["a"], 2, 0, 32)
    assert drawn.shape == (1, 2, 3, 32, 32) and drawn.min() >= 0 and drawn.max() <= 1
    torch.testing.assert_close(drawn[..., -1, :], torch.full((1, 2, 3, 32), 0.25), atol=0.05, rtol=0)


def test_a_baseline_that_has_diverged_is_refused():
    with pytest.raises(ValueError, match="Stub drew NaN"):
        draw_baseline(Stub(), torch.full((1, 1, 5), torch.nan), ["a"], 1, 0, 4)
