"""Which implementation of attention the diffusion model runs: xformers, torch's own (sdpa), or slices that save memory.

diffusers 0.42's newer `unet.set_attention_backend` does nothing on UNet2DConditionModel and says nothing, so this sets
attention processors and then looks at what is really in force.
"""

import logging
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import is_xformers_available

IN_FORCE = {"xformers": "XFormersAttnProcessor", "sdpa": "AttnProcessor2_0", "sliced": "SlicedAttnProcessor"}

log = logging.getLogger(__name__)


def in_force(pipe: Any) -> set[str]:
    """Class names of the attention processors that the U-Net will really call."""
    return {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}


def set_attention(pipe: Any, attention: str, device: torch.device | str) -> str:
    """Make `pipe` (a diffusers pipeline with a `unet`) use `attention`; returns the name that is in force.

    "auto" takes xformers where it is installed and the device is a CUDA GPU, else sdpa
    (torch.nn.functional.scaled_dot_product_attention). Raises ValueError for a name that is none of these, and for
    xformers where it cannot run.
    """
    device = torch.device(device)
    if attention not in ("auto", *IN_FORCE):
        raise ValueError(f"attention={attention!r} is not one of auto, {', '.join(IN_FORCE)}")
    if attention == "auto":
        if device.type == "cuda" and is_xformers_available():
            try:
                return set_attention(pipe, "xformers", device)
            except ValueError as error:
                log.warning("%s", error)
        return set_attention(pipe, "sdpa", device)

    pipe.unet.set_attn_processor(AttnProcessor2_0())  # also undoes xformers or slices set before
    if hasattr(pipe.vae, "set_attn_processor"):
        pipe.vae.set_attn_processor(AttnProcessor2_0())
    if attention == "xformers":
        if device.type != "cuda":
            raise ValueError(f"attention=xformers needs a CUDA GPU, this run is on {device.type}; use attention=sdpa")
        try:
            pipe.enable_xformers_memory_efficient_attention()  # runs a small case itself and raises what goes wrong
        except Exception as failure:
            remedy = 'pip install "neuroimagen[xformers]", or use attention=sdpa'
            raise ValueError(f"attention=xformers does not run here ({failure}): {remedy}") from None
    elif attention == "sliced":
        heads = [m.sliceable_head_dim for m in pipe.unet.modules() if hasattr(m, "sliceable_head_dim")]
        # "auto" cuts the heads in two, which a layer of one head does not survive
        pipe.enable_attention_slicing("auto" if min(heads, default=1) > 1 else "max")

    found = in_force(pipe)
    if found != {IN_FORCE[attention]}:
        raise ValueError(
            f"attention={attention} was asked for, but this pipeline's U-Net ({type(pipe.unet).__name__}) uses "
            f"{', '.join(sorted(found)) or 'no attention'}; choose another attention"
        )
    return attention
