"""What accelerate and transformers do about DeepSpeed and loss scaling, where zero.py and run.py lean on it."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def plugin(monkeypatch):
    pytest.importorskip("deepspeed", reason='needs pip install "neuroimagen[deepspeed]"')
    from accelerate.utils import DeepSpeedPlugin

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    return lambda **kwargs: DeepSpeedPlugin(zero_stage=3, gradient_accumulation_steps=1, **kwargs)


def test_accelerate_drops_deepspeed_where_the_cpu_is_asked_for(plugin, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert Accelerator(deepspeed_plugin=plugin()).distributed_type != "DEEPSPEED"


def test_clipping_is_filled_in_unless_it_is_said_to_be_none(plugin):
    assert plugin().deepspeed_config["gradient_clipping"] == "auto"  # Accelerator.prepare turns it into 1.0
    assert "gradient_clipping" not in plugin(gradient_clipping=0.0).deepspeed_config


def test_zero3_would_cut_up_every_pretrained_model_of_transformers(plugin):
    from transformers.integrations import is_deepspeed_zero3_enabled

    made = plugin(zero3_init_flag=False)  # the flag does not help
    made.set_deepspeed_weakref()
    assert is_deepspeed_zero3_enabled()
    made.dschf = None
    assert not is_deepspeed_zero3_enabled()


def test_a_checkpoint_keeps_the_scale_of_fp16(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)  # on a GPU precision=fp16 makes it
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    accelerator.scaler.scale(weight.sum() * float("inf")).backward()
    accelerator.scaler.step(optimizer)
    accelerator.scaler.update()
    assert weight.item() == 1 and accelerator.scaler.get_scale() == 64  # skipped and halved
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    accelerator.load_state(str(tmp_path / "state"))
    assert accelerator.scaler.get_scale() == 64
