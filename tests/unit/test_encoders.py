"""The contract of all encoders; what each one is, against its source; the layer of each person; braindecode's."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from neuroimagen.encoders import ENCODERS, EncoderConfig, make_encoder
from neuroimagen.encoders.backbones import ConvEncoder

LEAST = {"conv": 64, "tsconv": 80, "atm": 80}
MONTAGES = [(128, 440), (4, 230), (4, 115), (1, 64), (17, 101)]
CASES = [(kind, *shape) for kind in ENCODERS for shape in MONTAGES if shape[1] >= LEAST.get(kind, 1)]
OCCIPITAL = ["P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"]
needs_braindecode = pytest.mark.skipif(
    importlib.util.find_spec("braindecode") is None, reason="braindecode is not here"
)


def made(kind, n_chans, n_times, n_features, **more):
    """Narrow, with the deep path of conv moved off zero, where nothing below it would get a gradient."""
    torch.manual_seed(0)
    model = make_encoder(kind, n_chans, n_times, n_features, width=16 if ENCODERS[kind][1] else None, **more)
    if kind == "conv":
        nn.init.normal_(model.deep.weight)
    return model


def has_gradients(model):
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind, n_chans, n_times", CASES)
def test_any_montage_gives_finite_features_and_gradients_to_every_weight(kind, n_chans, n_times):
    model = made(kind, n_chans, n_times, 7)
    features = model(torch.randn(3, n_chans, n_times))
    assert features.shape == (3, 7) and features.isfinite().all()
    (features * torch.randn(3, 7)).sum().backward()  # their squares would be one constant after LayerNorm
    has_gradients(model)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ENCODERS)
def test_features_of_a_trial_do_not_depend_on_its_batch(kind, training):
    model = made(kind, 5, 100, 6).train(training)
    eeg = torch.randn(8, 5, 100)
    torch.testing.assert_close(model(eeg)[2:3], model(eeg[2:3]))


@pytest.mark.parametrize("kind", ENCODERS)
def test_dropout_is_of_training_alone(kind):
    model, eeg = made(kind, 5, 100, 6, dropout=0.5), torch.randn(8, 5, 100)
    assert not torch.equal(model(eeg), model(eeg))
    assert torch.equal(model.eval()(eeg), model(eeg))


@pytest.mark.parametrize("kind", ENCODERS)
def test_other_eeg_is_refused_with_a_sentence(kind):
    model = made(kind, 4, 100, 8)
    with pytest.raises(ValueError, match=r"4 channels.*\(2, 5, 100\)"):
        model(torch.zeros(2, 5, 100))
    if kind != "lstm":  # which reads any length
        with pytest.raises(ValueError, match=r"100 samples.*\(2, 4, 99\)"):
            model(torch.zeros(2, 4, 99))
    if least := LEAST.get(kind):
        with pytest.raises(
            ValueError, match=f"the {kind} encoder needs at least {least} time samples.*have {least - 1}"
        ):
            make_encoder(kind, 4, least - 1, 8)


def test_names_and_widths_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="lstm, conv, projection, tsconv, atm, simpleconv or braindecode:NAME"):
        make_encoder("transformer", 4, 100, 8)
    with pytest.raises(ValueError, match="encoder must be lstm, .*'LSTM'"):
        EncoderConfig(encoder="LSTM")
    for field in ({"encoder": "projection"}, {"encoder": "braindecode:EEGNet"}):
        with pytest.raises(ValueError, match="encoder_width=8.*leave it out"):
            EncoderConfig(**field, encoder_width=8)
    with pytest.raises(ValueError, match="encoder_width=0 must be at least 1"):  # not the usual width
        EncoderConfig(encoder_width=0)
    with pytest.raises(ValueError, match="pretrained=x/y: encoder=conv has no weights"):
        EncoderConfig(encoder="conv", pretrained="x/y")


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


@pytest.mark.parametrize("kind", ["conv", "simpleconv"])
def test_a_deep_encoder_learns_what_no_linear_function_can(kind):
    """The class is the phase-free presence of an oscillation: window means know nothing of it."""
    torch.manual_seed(0)
    label = torch.arange(256) % 2
    phase = torch.rand(256, 1) * 6.283
    wave = torch.sin(torch.arange(256)[None] * 0.6 + phase) * label[:, None]
    eeg = torch.stack([wave + 0.3 * torch.randn_like(wave), torch.randn_like(wave)], 1)
    model = ConvEncoder(2, 256, 2, width=16) if kind == "conv" else make_encoder(kind, 2, 256, 2, width=16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(eeg), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(eeg).argmax(1) == label).float().mean() > 0.9


def test_sizes_are_those_of_the_sources():
    """THINGS-EEG2's 250 samples: NICE and ATM-S flatten 40 x 36 = 1440 numbers; UBP's layers count by hand; SimpleConv
    has five blocks of (320, 320, 640) channels, kernel 3."""

    eeg, (mean, filters) = torch.randn(2, 1, 4, 250), list(make_encoder("tsconv", 4, 250, 8).body)[1:3]
    slow = nn.functional.avg_pool2d(nn.functional.conv2d(eeg, filters.weight, filters.bias), (1, 51), (1, 5))
    torch.testing.assert_close(filters(mean(eeg)), slow)

    def head(model):
        return next(layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.in_features == 1440)

    assert head(make_encoder("tsconv", 63, 250, 768)).out_features == 768
    assert head(make_encoder("atm", 63, 250, 1024)).out_features == 1024
    count = sum(p.numel() for p in make_encoder("projection", 17, 250, 1024).parameters())
    assert count == (17 * 250 + 1) * 1024 + (1024 + 1) * 1024 + 2 * 1024
    blocks = 5 * (2 * (320 * 320 * 3 + 3 * 320) + 320 * 640 * 3 + 640)
    ends = (17 + 1) * 320 + (320 + 1) * 640 + (250 + 1) + (640 + 1) * 128
    assert sum(p.numel() for p in make_encoder("simpleconv", 17, 250, 128).parameters()) == blocks + ends


@pytest.mark.parametrize("over", ["channels", "time"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_layer_of_each_person_begins_as_nothing_and_learns_of_its_own(kind, over):
    """SGD on what people 3 and 7 show leaves 5 alone; 99, who is not known, gets the mean of the three."""
    model = made(kind, 4, 100, 6, subjects=[7, 3, 5], subject_layer=over)
    eeg, people = torch.randn(4, 4, 100), torch.tensor([3, 7, 3, 7])
    torch.testing.assert_close(model(eeg, people), made(kind, 4, 100, 6)(eeg))
    assert {n for n in model.state_dict() if "front" not in n} == set(made(kind, 4, 100, 6).state_dict())
    (model(eeg, people) * torch.randn(4, 6)).sum().backward()
    has_gradients(model)
    assert not model.front.change.grad[1].any(), "3, 5, 7: a gradient of zeros for who is not there"
    torch.optim.SGD(model.parameters(), 0.1).step()
    with torch.no_grad():
        one = eeg[:1].expand(5, -1, -1)
        by = dict(zip((3, 5, 7, 99, None), model(one, torch.tensor([3, 5, 7, 99, 98])), strict=True))
        assert not any(torch.equal(by[a], by[b]) for a, b in ((3, 5), (3, 7), (5, 7), (99, 3), (99, 5)))
        assert torch.equal(by[99], by[None])
        torch.testing.assert_close(model(one[:1])[0], by[99])
        change = model.front.change.mean(0)
        mean = one[:1] + (change @ one[:1] if over == "channels" else one[:1] @ change)
        torch.testing.assert_close(model.features(mean)[0], by[99])


def test_a_layer_over_neither_channels_nor_time_is_refused():
    with pytest.raises(ValueError, match="subject_layer='space' is not one of none, channels, time"):
        make_encoder("lstm", 4, 100, 6, subjects=[1], subject_layer="space")


def test_options_are_those_that_the_encoder_needs():
    def no_one():
        raise AssertionError("read for nothing")

    assert EncoderConfig().encoder_options(["Cz"], 250.0, no_one) == {}
    layer = EncoderConfig(subject_layer="time").encoder_options(["Cz"], 250.0, lambda: [1, 2])
    assert layer == {"subjects": [1, 2], "subject_layer": "time"}
    library = EncoderConfig(encoder="braindecode:EEGNet").encoder_options(["Cz"], 250.0, no_one)
    assert library == {"channels": ["Cz"], "sfreq": 250.0}


def test_without_the_library_its_encoders_are_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    with pytest.raises(
        ValueError, match=r'braindecode:EEGNet needs braindecode.*pip install "neuroimagen\[braindecode\]"'
    ):
        make_encoder("braindecode:EEGNet", 4, 250, 8, sfreq=250.0)


# name, rate, samples, whether it reads channel names; BatchNorm's statistics are of the batch in training
MODELS = [("EEGNet", 250, 250), ("EEGConformer", 250, 250), ("ATCNet", 250, 1000), ("Labram", 200, 200)]
MODELS += [("BIOT", 200, 200), ("CBraMod", 200, 200)]


@needs_braindecode
@pytest.mark.parametrize("name, rate, n_times", MODELS)
def test_models_of_braindecode_keep_the_contract(name, rate, n_times):
    given = {"channels": OCCIPITAL, "sfreq": float(rate), "subjects": [1, 2]}
    model = make_encoder(f"braindecode:{name}", 17, n_times, 32, **given)
    eeg = torch.randn(3, 17, n_times)
    model.train()(eeg, torch.tensor([1, 2, 1])).mul(torch.randn(3, 32)).sum().backward()
    assert all((p.grad is not None and p.grad.any()) for p in model.parameters() if p.requires_grad)
    model.eval()
    torch.testing.assert_close(model(eeg)[1:2], model(eeg[1:2]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"17 channels.*\(2, 16, "):
        model(eeg[:2, :16])
    again = make_encoder(f"braindecode:{name}", 17, n_times, 32, **given)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(eeg), model(eeg))


@needs_braindecode
@pytest.mark.parametrize(
    "name, n_times, given, said",
    [
        ("Labram", 250, {"sfreq": 250.0, "channels": OCCIPITAL}, "of 200 Hz, the shards have 250 Hz.*resample=200"),
        ("Labram", 200, {"sfreq": 200.0}, "finds its channels by name, and the shards name none"),
        ("Labram", 200, {"sfreq": 200.0, "channels": ["E1", *OCCIPITAL[1:]]}, "not in LABRAM_CHANNEL_ORDER.*'E1'"),
        ("CBraMod", 250, {"sfreq": 200.0}, "17 channels x 250 samples at 200 Hz"),
        ("ATCNet", 250, {"sfreq": 250.0}, "smaller than the minimum required"),
        ("SignalJEPA", 128, {"sfreq": 128.0, "channels": OCCIPITAL}, "does not take 17 channels x 128 samples"),
        ("Labra", 200, {"sfreq": 200.0}, "no such model; Labram it has"),
    ],
)
def test_what_a_model_of_braindecode_does_not_take_is_refused(name, n_times, given, said):
    with pytest.raises(ValueError, match=said):
        make_encoder(f"braindecode:{name}", 17, n_times, 32, **given)


@needs_braindecode
def test_pretrained_weights_are_all_taken_but_the_last_layer(tmp_path):
    """Of a directory that braindecode wrote; a hub id goes the same way (not run here)."""
    from braindecode.models import Labram

    torch.manual_seed(1)
    there = Labram(n_outputs=5, n_chans=17, n_times=200, sfreq=200)
    there.save_pretrained(tmp_path / "labram")
    model = make_encoder("braindecode:Labram", 17, 200, 32, channels=OCCIPITAL, sfreq=200.0)
    model.start_from(str(tmp_path / "labram"))
    ours = model.model.state_dict()
    other = [name for name, value in there.state_dict().items() if not torch.equal(ours[name], value)]
    assert {name.partition(".")[0] for name in other} == {"final_layer"}
    conformer = make_encoder("braindecode:CBraMod", 17, 200, 32, sfreq=200.0)
    with pytest.raises(ValueError, match=r"encoder=braindecode:CBraMod from pretrained=.*labram does not take"):
        conformer.start_from(str(tmp_path / "labram"))
