"""DeepSpeed ZeRO under Run: what accelerate and DeepSpeed would decide silently is decided here, or refused.

The launcher (launch/zero*.yaml) says that DeepSpeed runs and at which stage; the config of the run says precision,
batch size and clipping. Weights stay fp32 and bf16 is autocast, so that ZeRO computes what DDP computes and exports the
same files. ZeRO-1 splits the optimizer's state over processes, 2 the gradients too, 3 the weights too.
"""

import copy
import json
import os
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, convert_outputs_to_fp32, parse_flag_from_env
from torch import Tensor, nn

MARKER = "launch.json"  # in each checkpoint: how the processes that wrote it were launched


def asked_for() -> bool:
    """Whether the launcher asked for DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def make_plugin(precision: str) -> Any:
    """accelerate's DeepSpeedPlugin for what the launcher asked for, or ValueError; before the Accelerator is made."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2", "3"):
        raise ValueError(f"DeepSpeed with zero_stage={stage} is not offered: launch with launch/zero2.yaml (1, 2 or 3)")
    if precision == "fp16":
        raise ValueError("precision=fp16 is not offered under DeepSpeed; use bf16 or fp32, or launch/one_node.yaml")
    ours = "GRADIENT_CLIPPING", "DEEPSPEED_CONFIG_FILE", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
    for name in (*ours, "DEEPSPEED_OFFLOAD_PARAM_DEVICE"):
        value = os.environ.get(f"ACCELERATE_{name}", "none")
        if value not in ("none", "auto"):
            raise ValueError(
                f"the launcher asks for {name.lower()}={value}: leave it out, as launch/zero{stage}.yaml does; the "
                "config of the run decides batch size, precision and clipping, and nothing is offloaded"
            )
    # accelerate drops DeepSpeed in silence where this is set; a PartialState made before keeps both.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if not cpu and not torch.cuda.is_available():
        raise ValueError("there is no GPU: to run DeepSpeed on the CPU put ACCELERATE_USE_CPU=yes in front")
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed  # noqa: F401
        from accelerate.utils import DeepSpeedPlugin
    except ImportError:
        raise ValueError('DeepSpeed was asked for but is not installed: pip install "neuroimagen[deepspeed]"') from None
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(f"DeepSpeed needs its launcher: accelerate launch --config_file launch/zero{stage}.yaml")
    if cpu:
        PartialState(cpu=True)
        del os.environ["ACCELERATE_USE_CPU"]
    return DeepSpeedPlugin(
        zero_stage=int(stage), gradient_accumulation_steps=1, gradient_clipping=0.0, zero3_init_flag=False
    )


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise ValueError unless DeepSpeed is what accelerate will do."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise ValueError(
            f"DeepSpeed was asked for, but accelerate chose {accelerator.distributed_type}: start with "
            "accelerate launch --config_file launch/zero2.yaml"
        )
    # DeepSpeed's, each step:
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+` is deprecated", FutureWarning)
    # While this lives, every from_pretrained of transformers splits its weights over the processes under ZeRO-3.
    accelerator.state.deepspeed_plugin.dschf = None


def stage_of(accelerator: Accelerator) -> int:
    """1, 2 or 3; 0 without DeepSpeed."""
    return accelerator.state.deepspeed_plugin.zero_stage if accelerator.distributed_type == "DEEPSPEED" else 0


def mark(checkpoint: Path, stage: int, world: int) -> None:
    (checkpoint / MARKER).write_text(json.dumps({"zero_stage": stage, "processes": world}), encoding="utf-8")


def check_mark(checkpoint: Path, stage: int, world: int) -> None:
    """Raise ValueError if `checkpoint` cannot be read at this stage and with this many processes."""
    marker = checkpoint / MARKER
    there = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {"zero_stage": 0}
    if there["zero_stage"] == stage and (stage == 0 or there["processes"] == world):
        return
    written, launcher = "no DeepSpeed", "launch/one_node.yaml"
    if number := there["zero_stage"]:
        written, launcher = f"ZeRO-{number} on {there['processes']} processes", f"launch/zero{number}.yaml"
        launcher += f" --num_processes {there['processes']}"
    now = f"ZeRO-{stage} on {world}" if stage else "no DeepSpeed"
    raise ValueError(
        f"{checkpoint} was written with {written} and cannot be continued with {now}: "
        f"launch with {launcher}, or choose another run_dir"
    )


class Zero:
    """One model and its optimizer under DeepSpeed: what Run's methods call there, and the optimizer's face.

    `step` clips, steps and clears the gradient; accelerate's wrapper does all of it inside backward, with a fixed norm.
    """

    def __init__(self, accelerator: Accelerator, objects: list[Any], precision: str, batch_size: int) -> None:
        models = [item for item in objects if isinstance(item, nn.Module)]
        if len(models) != 1 or len(objects) != 2:
            raise ValueError(
                "this stage trains several models at once and DeepSpeed drives one: launch with launch/one_node.yaml"
            )
        model, plugin = models[0], accelerator.state.deepspeed_plugin
        if precision == "bf16":  # as accelerate does it without DeepSpeed
            forward = torch.autocast(accelerator.device.type, torch.bfloat16)(type(model).forward)
            model.forward = MethodType(convert_outputs_to_fp32(forward), model)
        self.stage = plugin.zero_stage
        # DeepSpeed makes the weights views of flat buffers (safetensors refuses them) or, at stage 3, cuts them up:
        # validation and export read a copy. It stays off the device while the model trains.
        self.copy, self._lent = copy.deepcopy(model), False
        for parameter in model.parameters():  # DeepSpeed cannot broadcast channels_last; .contiguous() skips 1 x 1
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batch_size
        prepared = accelerator.prepare(*objects)
        self.accelerator, self.engine = accelerator, prepared[objects.index(model)]
        self._norm = torch.zeros((), device=accelerator.device)
        self.prepared = tuple(self.engine if item is self.engine else self for item in prepared)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.engine.optimizer.param_groups

    def backward(self, loss: Tensor) -> None:
        if self._lent:
            self.copy.cpu()
            self._lent = False
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(loss)

    def clip(self, norm: float) -> Tensor:
        """Clip at the next step; the returned norm is filled in then, which is when DeepSpeed knows it."""
        self.engine.optimizer.clip_grad, self._norm = norm, torch.full_like(self._norm, torch.nan)
        return self._norm

    def step(self) -> None:
        self.engine.step()
        self._norm.copy_(torch.as_tensor(self.engine.get_global_grad_norm()))

    def zero_grad(self) -> None:
        """Nothing: `step` has done it."""

    def unwrap(self) -> nn.Module:
        """A copy of the model with all its weights as they are now, until the next backward. Collective: every rank."""
        import deepspeed

        self._lent = True
        self.copy.to(self.accelerator.device)
        with deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()), enabled=self.stage == 3):
            self.copy.load_state_dict(self.engine.module.state_dict())
        return self.copy
