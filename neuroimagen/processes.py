"""The processes of a run: what was launched is what accelerate gives, or a ValueError."""

import datetime
import gc
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from neuroimagen import zero


def set_tf32(allowed: bool) -> None:
    """Whether fp32 may be computed with 10 bits of mantissa on this process's GPUs; torch allows it in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def make_accelerator(precision: str, timeout_minutes: float = 30.0, tf32: bool = False, **kwargs: Any) -> Accelerator:
    """An Accelerator that is what was asked for, or a ValueError: accelerate itself never complains.

    timeout_minutes: how long a collective waits for a rank before it gives up
    tf32: see set_tf32
    """
    modes = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    if precision not in modes:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(modes)}")
    plugin = zero.make_plugin(precision) if zero.asked_for() else None
    accelerator = Accelerator(
        mixed_precision="no" if plugin else modes[precision],  # zero.py does its own autocast
        deepspeed_plugin=plugin,
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
            "with ACCELERATE_USE_CPU=yes accelerate launch --multi_gpu --num_processes N"
        )
    if accelerator.device.type == "cpu" and precision == "fp16":
        raise ValueError("precision=fp16 does nothing on a CPU; use fp32 or bf16")
    if accelerator.device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{torch.cuda.get_device_name()} has no bf16; use precision=fp16 or fp32")
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
