import pytest
import torch
from torch import nn

from neuroimagen.encoders import ENCODERS, ConvEncoder, make_encoder


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("n_chans, n_times", [(128, 440), (4, 230), (4, 115), (1, 64), (17, 101)])
def test_any_montage_gives_finite_features_and_gradients_to_every_weight(kind, n_chans, n_times):
    torch.manual_seed(0)
    model = make_encoder(kind, n_chans, n_times, 7, width=16)
    if kind == "conv":  # the deep path begins at zero: move it off, or what is below it gets no gradient
        nn.init.normal_(model.deep.weight)
    features = model(torch.randn(3, n_chans, n_times))
    assert features.shape == (3, 7) and features.isfinite().all()
    features.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_of_a_trial_do_not_depend_on_its_batch(kind):
    torch.manual_seed(0)
    model = make_encoder(kind, 5, 100, 6, width=16)
    eeg = torch.randn(8, 5, 100)
    torch.testing.assert_close(model(eeg)[2:3], model(eeg[2:3]))


def test_lstm_is_the_published_one():
    """Kavasidis et al. 2017: one LSTM layer of 128 units over all channels, then 128 rectified units."""
    model = make_encoder("lstm", 128, 440, 128)
    lstm = 4 * 128 * (128 + 128 + 2)
    assert sum(p.numel() for p in model.parameters()) == lstm + 128 * 128 + 128
    assert (model(torch.randn(4, 128, 440)) >= 0).all()


def test_lstm_reads_the_state_after_the_last_sample():
    model = make_encoder("lstm", 2, 20, 3, width=4)
    eeg = torch.randn(1, 2, 20, requires_grad=True)
    model(eeg).sum().backward()
    assert eeg.grad[0, :, -1].abs().sum() > 0


def test_conv_starts_as_a_linear_function():
    torch.manual_seed(0)
    model = make_encoder("conv", 4, 128, 5)
    a, b, zero = torch.randn(1, 4, 128), torch.randn(1, 4, 128), torch.zeros(1, 4, 128)
    torch.testing.assert_close(model(a + b) + model(zero), model(a) + model(b))


def test_conv_learns_what_no_linear_function_can():
    """The class is the phase-free presence of an oscillation: window means know nothing of it."""
    torch.manual_seed(0)
    label = torch.arange(256) % 2
    phase = torch.rand(256, 1) * 6.283
    wave = torch.sin(torch.arange(256)[None] * 0.6 + phase) * label[:, None]
    eeg = torch.stack([wave + 0.3 * torch.randn_like(wave), torch.randn_like(wave)], 1)
    model = ConvEncoder(2, 256, 2, width=16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(eeg), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(eeg).argmax(1) == label).float().mean() > 0.9


def test_wrong_input_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="at least 64 time samples"):
        make_encoder("conv", 4, 63, 8)
    with pytest.raises(ValueError, match="lstm or conv"):
        make_encoder("transformer", 4, 100, 8)
    with pytest.raises(ValueError, match=r"4 channels.*\(2, 5, 100\)"):
        make_encoder("conv", 4, 100, 8)(torch.zeros(2, 5, 100))
