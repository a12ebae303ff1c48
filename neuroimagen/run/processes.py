"""The processes of a run: what was launched is what accelerate gives, or a ValueError."""

import datetime
import gc
import os
import signal
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from neuroimagen.run import environment, zero

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # of these values cuBLAS repeats its bits, and cuDNN those of an LSTM
WORKSPACES = (":4096:8", ":16:8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STOPPED = 143  # exit code after SIGTERM (128 + 15): run the same command again

_stop_signals: list[int] = []


def watch_stop_signal() -> None:
    """Make SIGTERM ask for a stop at the next step instead of killing the process."""
    _stop_signals.clear()
    signal.signal(signal.SIGTERM, lambda signum, frame: _stop_signals.append(signum))


def stop_requested() -> bool:
    return bool(_stop_signals)


def set_deterministic(wanted: bool) -> None:
    """Whether operations give the same bits each time on a GPU too, slower; call before CUDA starts.

    One that cannot raises a RuntimeError. ValueError if it is too late, or if the environment forbids it.
    """
    if wanted:
        if torch.cuda.is_initialized() and CUBLAS not in os.environ:
            raise ValueError(f"deterministic=true after CUDA has started: set {CUBLAS}={WORKSPACES[0]} beforehand")
        if os.environ.setdefault(CUBLAS, WORKSPACES[0]) not in WORKSPACES:
            raise ValueError(
                f"deterministic=true needs {CUBLAS}={' or '.join(WORKSPACES)}, but the environment has "
                f"{os.environ[CUBLAS]}: leave it out there"
            )
    if wanted != torch.are_deterministic_algorithms_enabled():  # this imports torch's compiler: seconds
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = wanted, False


def check_bf16(device: torch.device | str) -> None:
    """Raise ValueError for a GPU without bf16. torch would emulate it there: slower than fp32, and less exact."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name()} has no bf16; use precision=fp16 or fp32")


def set_tf32(allowed: bool) -> None:
    """Whether fp32 may be computed with 10 bits of mantissa on this process's GPUs, as torch allows in convolutions;
    ValueError if the environment has libraries do otherwise."""
    override = {"NVIDIA_TF32_OVERRIDE": ("", str(int(allowed)))}
    environment.refuse_variables(environment.FEWER_BITS | override, "which changes how exactly fp32 is computed")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def make_accelerator(precision: str, timeout_minutes: float = 30.0, tf32: bool = False, **kwargs: Any) -> Accelerator:
    """An Accelerator that is what was asked for, or a ValueError: accelerate itself never complains.

    timeout_minutes: how long a collective waits for a rank before it gives up; tf32: see set_tf32
    """
    modes = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    if precision not in modes:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(modes)}")
    environment.refuse_variables(environment.OTHER_WAYS, "which is another way to train than the config's")
    plugin = zero.make_plugin(precision) if zero.asked_for() else None
    accelerator = Accelerator(
        mixed_precision="no" if plugin else modes[precision],  # zero.py does its own autocast
        deepspeed_plugin=plugin,
        dynamo_backend="no",  # where nothing is said, a launcher's variables decide, and so for the next
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Every rank computes the same buffers; broadcasting them would break two forwards in one step.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=timeout_minutes)),
        ],
        **kwargs,
    )
    if plugin:
        zero.check_accelerator(accelerator)
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != accelerator.num_processes:
        raise ValueError(
            f"{asked} processes were launched but accelerate sees {accelerator.num_processes}; without GPUs launch "
            "with ACCELERATE_USE_CPU=yes accelerate launch --multi_gpu --num_processes N, "
            "and for one process unset a WORLD_SIZE of another job"
        )
    if accelerator.device.type == "cpu" and precision == "fp16":
        raise ValueError("precision=fp16 does nothing on a CPU; use fp32 or bf16")
    if precision == "bf16":
        check_bf16(accelerator.device)
    set_tf32(tf32)
    return accelerator


def leave_process_group() -> None:
    """End a distributed process cleanly; call when no model is alive any more.

    gloo may hang or abort if the group is destroyed while a DDP model lives (measured), hence the garbage collection.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
