"""precision=fp16 scales losses: each gradient is divided by the scale once, whichever optimizers there are.

The scaler is torch's, on the CPU, with autocast off: scaled by powers of two, gradients are those of fp32 to the bit.
"""

import runpy
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from tiny_models import tiny_shards
from torch.optim import optimizer as hooks

from neuroimagen.config import TrainConfig, load_config
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.run import run as running

TRAINERS = Path(__file__).parents[3] / "trainers"
GAN = ["image_size=16", "z_dim=4"]
SMALL = {
    "pixel_saliency": [*GAN, "finetune_features=true", "generator_width=4", "discriminator_width=4"],
    "brain2image": [*GAN, "encoder=conv", "encoder_width=4", "n_features=5", "width=4", "classifier_steps=1"],
    "neurovision": [*GAN, "encoder=conv", "encoder_width=4", "width=4", "classifier_steps=1", "phase_steps=1"],
}


def scaled(precision, *args, **kwargs):
    """An accelerator as precision=fp16 gives it on a GPU; the scale doubles after every step."""
    accelerator = make_accelerator(precision, *args, **kwargs)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    accelerator.native_amp, accelerator.autocast_handler = True, AutocastKwargs(enabled=False)
    accelerator.state._mixed_precision = "fp16"
    return accelerator


make_accelerator = running.processes.make_accelerator


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_shards(folder / "shards")
    torch.manual_seed(0)
    FeatureExtractor(4, 440, "conv", 5, width=4).save_pretrained(str(folder / "features" / "model"))
    for name in ("config.yaml", "DONE"):
        (folder / "features" / name).touch()
    return folder


@pytest.fixture
def gradients():
    """[the gradients an optimizer is about to step along, for each step of each optimizer]"""
    seen = []

    def note(optimizer, *_):
        each = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append([grad.clone() for grad in each])

    handle = hooks.register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "stage, accumulate", [("pixel_saliency", 1), ("pixel_saliency", 2), ("brain2image", 1), ("neurovision", 1)]
)
def test_a_trainer_steps_along_the_gradients_of_fp32(stage, accumulate, study, gradients, tmp_path, monkeypatch):
    trainer = runpy.run_path(str(TRAINERS / f"{stage}.py"), run_name="imported")
    arguments = [f"shards={study}/shards", *SMALL[stage], "max_steps=6", "global_batch_size=8"]
    arguments += [f"features={study}/features"] if stage == "pixel_saliency" else []
    config = trainer["main"].__annotations__["config"]
    found = []
    for name, make in (("fp32", make_accelerator), ("fp16", scaled)):
        monkeypatch.setattr(running.processes, "make_accelerator", make)
        given = [*arguments, f"run_dir={tmp_path / name}", f"accumulate={accumulate}"]
        assert trainer["main"](load_config(config, given, stage)) == 0
        found.append(list(gradients))
        gradients.clear()
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(found[0]) == len(found[1]) >= 5
    for plain, unscaled in zip(*found, strict=True):
        assert [grad.shape for grad in plain] == [grad.shape for grad in unscaled]
        assert any(grad.any() for grad in plain)
        for a, b in zip(plain, unscaled, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)


def test_only_what_is_stepped_is_unscaled(gradients, tmp_path, monkeypatch):
    """By hand: the loss w * x has the gradient x. Two optimizers have gradients when the first one steps."""
    monkeypatch.setattr(running.processes, "make_accelerator", scaled)
    run = running.Run(TrainConfig(run_dir=str(tmp_path / "run"), global_batch_size=1))
    models = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    models = [run.prepare(model, torch.optim.SGD(model.parameters(), 0.1)) for model in models]
    assert run.going()
    for (model, _), x in zip(models, (3.0, 5.0), strict=True):
        run.backward(model(torch.full((1, 1), x)).sum(), [])
    (first, optimizer), (second, other) = models
    run.update(optimizer, first)
    assert gradients.pop()[0].item() == 3.0
    assert second.weight.grad.item() == 5.0 * 2**10
    assert first.weight.grad is None
