import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuroimagen.sample.encoder import SampleEncoder, embedding_loss, nearest_caption


def make(n_features=8):
    torch.manual_seed(0)
    return SampleEncoder(4, 100, 3, 5, encoder="conv", n_features=n_features, encoder_width=8)


def test_shape_of_the_prompt_embedding():
    assert make()(torch.randn(2, 4, 100)).shape == (2, 3, 5)


def test_eq7_by_hand():
    prediction, target = torch.zeros(2, 2, 2), torch.tensor([[[1.0, 0], [0, 2]], [[0, 0], [3, 0]]])
    assert embedding_loss(prediction, target).item() == pytest.approx((1 + 4 + 9) / 2)


def test_class_weights_count_each_class_alike(monkeypatch):
    """Class 0 has 6 train trials (4 and 2 of two captions), class 1 has 2, class 2 is in val only."""
    path = Path(__file__).parents[3] / "trainers" / "sample_semantics.py"
    trainer = SimpleNamespace(**runpy.run_path(str(path)))
    shown = {"train": [("a", 0)] * 4 + [("b", 0)] * 2 + [("c", 1)] * 2, "val": [("a", 0), ("d", 2)]}

    class Split:
        def __init__(self, folder, name, incomplete):
            self.trials = shown[name]

        def __len__(self):
            return len(self.trials)

        def info(self, i):
            image, label = self.trials[i]
            return {"image": image, "label": label, "trial": i}

    generator = torch.Generator().manual_seed(0)
    embedded = {f"says {image}": torch.randn(3, 5, generator=generator) for image in "abcd"}
    written = {image: f"says {image}" for image in "abcd"}
    fakes = {
        "ShardSplit": Split,
        "embed_captions": lambda pipeline, captions, device: torch.stack([embedded[caption] for caption in captions]),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(trainer.Targets.__init__.__globals__, name, fake)
    manifest = SimpleNamespace(classes=[{"label": label, "name": str(label)} for label in range(3)])
    config = trainer.SampleSemanticsConfig(run_dir="", shards="", pipeline="", captions="file", class_weights=True)
    targets = trainer.Targets(config, manifest, written, torch.device("cpu"))
    assert targets.of_class[:2].tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    labels = torch.tensor([label for _, label in shown["train"]])
    assert targets.of_class[labels].mean().item() == pytest.approx(1)
    # Centre and scale of the output: 1/2 for class 1, and for class 0's captions 1/2 as 4 : 2.
    share = torch.tensor([1 / 3, 1 / 6, 1 / 2, 0])
    assert targets.weights.tolist() == pytest.approx(share.tolist())
    # Eq. 7 of all train trials is then the mean over classes of the mean within each; as is that of two processes.
    prediction = torch.randn(8, 3, 5, generator=generator)
    target = targets.of({"image_name": [image for image, _ in shown["train"]]})
    each = (prediction - target).square().sum((1, 2))
    wanted = (each[:6].mean() + each[6:].mean()) / 2
    weights = targets.of_class[labels]
    assert embedding_loss(prediction, target, weights).item() == pytest.approx(wanted.item())
    halves = [embedding_loss(prediction[i::2], target[i::2], weights[i::2]) for i in range(2)]
    assert torch.stack(halves).mean().item() == pytest.approx(wanted.item())
    plain = trainer.Targets(dataclasses.replace(config, class_weights=False), manifest, written, torch.device("cpu"))
    assert plain.weights.tolist() == [4 / 8, 2 / 8, 2 / 8, 0]


def test_targets_set_centre_and_scale():
    """Three trials saw caption 0, one saw caption 1: mean (3a + b) / 4, variance 3/16 (a - b)²."""
    model = make()
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    b[0] = a[0]  # the first token is the same for every caption
    model.set_targets(torch.stack([a, b]), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(model.mean, (3 * a + b) / 4)
    torch.testing.assert_close(model.std, (3 / 16) ** 0.5 * (a - b).abs())
    prediction = model(torch.randn(6, 4, 100))
    torch.testing.assert_close(prediction[:, 0], a[0].expand(6, 5))  # what never varies is exact from the start
    assert (prediction[:, 1:] - model.mean[1:]).abs().max() > 0


def test_centre_and_scale_come_back_from_disk(tmp_path):
    model, eeg = make(), torch.randn(2, 4, 100)
    model.set_targets(torch.randn(4, 3, 5), torch.full((4,), 0.25))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(SampleEncoder.from_pretrained(tmp_path)(eeg), model(eeg))


def test_nearest_caption():
    captions = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.full((2, 2), 5.0)])
    asked = torch.stack([torch.full((2, 2), 0.4), torch.full((2, 2), 3.5)])
    assert nearest_caption(asked, captions).tolist() == [0, 2]


def test_it_learns_a_linear_code():
    """EEG that carries the caption in one channel's mean: Eq. 7 falls far below that of the mean caption."""
    model = make(n_features=32)
    captions = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    seen = torch.arange(64) % 4
    eeg = torch.randn(64, 4, 100) * 0.3
    eeg[torch.arange(64), seen] += 1
    model.set_targets(captions, torch.full((4,), 0.25))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = embedding_loss(model(eeg), captions[seen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    baseline = embedding_loss(model.mean.expand(64, 3, 5), captions[seen])
    assert loss < 0.1 * baseline
    assert (nearest_caption(model(eeg), captions) == seen).float().mean() > 0.95


def test_a_rescaled_embedding_keeps_its_direction_and_has_the_captions_length():
    """Captions at 1, -1 along one entry and 3, -3 along another: their mean is 0, their RMS length sqrt(5)."""
    model = SampleEncoder(2, 64, 1, 2, encoder="lstm", n_features=4)
    captions = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[0.0, 3.0]], [[0.0, -3.0]]])
    model.set_targets(captions + 10, torch.full((4,), 0.25))
    shrunk = torch.tensor([[[10.3, 10.4]], [[10.0, 9.9]]])
    found = model.rescaled(shrunk) - 10
    expected = 5**0.5 * torch.tensor([[[0.6, 0.8]], [[0.0, -1.0]]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model.rescaled(torch.full((1, 1, 2), 10.0)).tolist() == [[[10.0, 10.0]]]  # it says nothing: no direction
