"""The model: spaces of its embeddings, kept with it; its parts; the pictures and trials it learns from."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_features, tiny_shards

from neuroimagen.contrastive.encoder import LARGEST, ContrastiveEncoder
from neuroimagen.contrastive.targets import Targets, read_targets
from neuroimagen.features.format import picture_digests
from neuroimagen.shards.format import ShardSplit

WIDTHS = {"a": 6, "b": 3}


def model(standardise="centre", loss="infonce"):
    torch.manual_seed(0)
    targets = {name: {"width": width, "model": f"net {name}"} for name, width in WIDTHS.items()}
    made = ContrastiveEncoder(
        4, 64, targets, encoder="conv", n_features=5, encoder_width=4, loss=loss, standardise=standardise
    )
    vectors = 3 + 2 * torch.randn(10, 9) * torch.arange(1.0, 10)
    made.set_targets(vectors, torch.tensor([2, 0, 1, 1, 1, 5, 1, 1, 0, 3]))
    return made, vectors


@pytest.mark.parametrize("standardise", ["none", "centre", "each"])
def test_offsets_are_measured_as_it_says(standardise):
    """By numpy, of the train trials' features: picture 0 counts twice, picture 1 not at all."""
    made, vectors = model(standardise)
    trials = np.repeat(vectors.numpy().astype(np.float64), [2, 0, 1, 1, 1, 5, 1, 1, 0, 3], axis=0)
    mean, std = trials.mean(0), trials.std(0)
    if standardise == "none":
        mean, std = np.zeros(9), np.ones(9)
    if standardise == "centre":
        std = np.repeat([np.sqrt(np.square(trials - mean)[:, part].mean()) for part in (slice(6), slice(6, 9))], [6, 3])
    np.testing.assert_allclose(made.offsets(vectors).numpy(), (vectors.numpy() - mean) / std, rtol=1e-4, atol=1e-5)
    compared = made.compared(made.named(vectors))
    torch.testing.assert_close(compared["b"].norm(dim=1), torch.ones(10))
    expected = ((vectors.numpy() - mean) / std)[:, 6:]
    cosine = expected @ expected.T / np.outer(*[np.linalg.norm(expected, axis=1)] * 2)
    np.testing.assert_allclose((compared["b"] @ compared["b"].T).numpy(), cosine, atol=1e-5)


def test_what_is_constant_in_train_keeps_its_unit():
    made, vectors = model("each")
    vectors[:, 0], vectors[1, 0] = 0.1, 0.3  # picture 1 is in no train trial
    made.set_targets(vectors, torch.tensor([1, 0, 1, 1, 1, 1, 1, 1, 1, 1]))
    torch.testing.assert_close(made.offsets(vectors)[:, 0], 0.2 * torch.eye(10)[1])


def test_embeddings_are_in_the_space_of_the_file_and_kept_with_the_model(tmp_path):
    made, _ = model()
    eeg = torch.randn(7, 4, 64)
    embeddings, (offsets, scale, bias) = made(eeg), made(eeg, None, 1)
    assert {name: vectors.shape[1] for name, vectors in embeddings.items()} == WIDTHS and bias is None
    torch.testing.assert_close(made.offsets(torch.cat([*embeddings.values()], 1)), offsets)
    assert scale.tolist() == pytest.approx([1 / 0.07] * 2)
    made.save_pretrained(str(tmp_path))
    again = ContrastiveEncoder.from_pretrained(str(tmp_path))
    assert again.targets == {"a": {"width": 6, "model": "net a"}, "b": {"width": 3, "model": "net b"}}
    assert all(torch.equal(again(eeg)[name], embeddings[name]) for name in WIDTHS)


def test_logit_scale_and_bias_are_learnt_and_the_scale_stays_below_clips_limit():
    made, _ = model(loss="siglip")
    _, scale, bias = made(torch.randn(2, 4, 64), None, 1)
    assert scale.tolist() == pytest.approx([10, 10]) and bias.tolist() == [-10, -10]
    with torch.no_grad():
        made.log_scale.fill_(9.0)
    _, scale, _ = made(torch.randn(2, 4, 64), None, 1)
    assert scale.tolist() == pytest.approx([LARGEST] * 2)
    (gradient,) = torch.autograd.grad(scale.sum(), made.log_scale)
    assert (gradient > 0).all()  # from there it may fall again


def test_without_a_head_the_backbone_gives_the_embedding():
    bare = ContrastiveEncoder(4, 64, {"a": {"width": 6}}, "conv", 6, encoder_width=4, head="none")
    eeg = torch.randn(3, 4, 64)
    assert torch.equal(bare(eeg)["a"], bare.encoder(eeg)) and "output.weight" not in bare.state_dict()


def test_parts_give_the_gradients_of_the_whole():
    made, _ = model()
    eeg, weights = torch.randn(6, 4, 64), torch.randn(6, 9)
    whole, parts = (
        torch.autograd.grad((made(eeg, torch.arange(6), n)[0] * weights).sum(), [*made.encoder.parameters()])
        for n in (1, 3)
    )
    torch.testing.assert_close(whole, parts)
    assert max(gradient.abs().max() for gradient in whole) > 1e-3


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("contrastive") / "shards")


def test_each_trial_has_the_features_of_its_picture(shards, tmp_path):
    files = read_targets([str(tiny_features(tmp_path / f"{n}.safetensors", shards, n)) for n in (5, 2)], "")
    targets = Targets(files, str(shards), 0, 0)
    for split, pictures in (("train", targets.pictures), ("val", targets.gallery[targets.truth])):
        digests = picture_digests(ShardSplit(shards, split))
        expected = [torch.cat([file.vectors[file.rows([digest])[0]] for file in files.values()]) for digest in digests]
        assert torch.equal(targets.vectors[pictures], torch.stack(expected))
    train = ShardSplit(shards, "train")
    assert targets.train.tolist() == list(range(len(train))) and not targets.new.any()
    assert targets.shown.sum() == len(train) and targets.shown[targets.gallery].sum() == 0
    pairs = [(train.info(i)["image"], train.info(i)["subject"]) for i in range(len(train))]
    assert len(set(zip(pairs, targets.alike.tolist(), strict=True))) == len(set(pairs)) == len(set(targets.alike))


def test_held_out_classes_are_not_trained_on_and_val_is_of_them_alone(shards, tmp_path):
    files = read_targets([str(tiny_features(tmp_path / "f.safetensors", shards, 5))], "")
    drawn = set()
    for seed in range(6):
        targets = Targets(files, str(shards), 1, seed)
        train, val = (ShardSplit(shards, split) for split in ("train", "val"))
        trained = {train.info(i)["label"] for i in targets.train.tolist()}
        asked = {val.info(i)["label"] for i in np.flatnonzero(targets.truth >= 0).tolist()}
        assert len(asked) == 1 and len(trained) == 2 and trained.isdisjoint(asked)
        assert targets.shown.sum() == len(targets.train) < len(train)  # nothing of them is in the features' mean
        assert sorted(set(targets.truth.tolist()) - {-1}) == list(range(len(targets.gallery)))
        drawn |= asked
    assert len(drawn) > 1
    with pytest.raises(ValueError, match="held_out_classes=2: train and val share 3 classes: hold out fewer"):
        Targets(files, str(shards), 2, 0)


def test_features_of_another_kind_or_of_other_pictures_are_refused(shards, tmp_path):
    image, text = (str(tiny_features(tmp_path / f"{kind}.safetensors", shards, 4, kind)) for kind in ("image", "text"))
    assert list(read_targets([image], text)) == ["image", "text"]
    with pytest.raises(ValueError, match=f"features={text} holds features of kind text, where image is asked for"):
        read_targets([text], "")
    with pytest.raises(ValueError, match=f"text_features={image} holds features of kind image"):
        read_targets([image], image)
    other = tiny_features(tmp_path / "other.safetensors", tiny_shards(tmp_path / "others", seed=1), 4)
    with pytest.raises(ValueError, match="other.safetensors is of other pictures: it has none of 27 of these"):
        Targets(read_targets([str(other)], ""), str(shards), 0, 0)


def test_targets_keep_their_own_numbers_when_they_are_loaded(tmp_path):
    """Whatever their names: the file of an exported model lists them by name."""
    targets = {"b": {"width": 3, "place": 0}, "a": {"width": 2, "place": 1}}
    model = ContrastiveEncoder(4, 64, targets, encoder="conv", encoder_width=4, n_features=8).eval()
    model.save_pretrained(tmp_path)
    again, eeg = ContrastiveEncoder.from_pretrained(tmp_path).eval(), torch.randn(2, 4, 64)
    for name, z in model(eeg).items():
        assert torch.equal(again(eeg)[name], z)
