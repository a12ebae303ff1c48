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
