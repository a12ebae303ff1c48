"""Which latent diffusion models are drawn with, and how they are loaded: Stable Diffusion 1.x, 2.x, XL and their
distilled kin (turbo, latent consistency models), each in its own diffusers directory layout or from the hub; with which
scheduler, and which implementation of attention.

diffusers 0.42's newer `unet.set_attention_backend` does nothing on UNet2DConditionModel and says nothing, so
`set_attention` sets attention processors and then looks at what is really in force.
"""

import inspect
import logging
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import yaml
from diffusers import LatentConsistencyModelImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import is_xformers_available
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from neuroimagen.errors import quiet_libraries

Scheduler = Literal["default", "ddim", "pndm", "dpm++", "euler", "euler_a", "unipc", "lcm"]

IN_FORCE = {"xformers": "XFormersAttnProcessor", "sdpa": "AttnProcessor2_0", "sliced": "SlicedAttnProcessor"}
_FILE = yaml.safe_load(Path(__file__).with_name("schedulers.yaml").read_text(encoding="utf-8"))
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = _FILE["schedulers"]
KINDS = ("StableDiffusion", "LatentConsistencyModel", "StableDiffusionXL")
LAYOUTS: dict[str, Any] = {  # name of a class in model_index.json -> as loaded
    f"{kind}{how}Pipeline": getattr(diffusers, f"{kind}Img2ImgPipeline") for kind in KINDS for how in ("", "Img2Img")
}
log = logging.getLogger(__name__)


class _OwnImagePrompts:
    """Each picture with an image prompt of its own; diffusers would show those of all to each of them."""

    def prepare_ip_adapter_image_embeds(self, image, embeds, *_):
        return embeds


class _FromLatents(_OwnImagePrompts):
    """Image to image whose image is encoded already: `start` (n, C, h, w), scaled."""

    start: Tensor

    def prepare_latents(self: Any, image, timestep, batch_size, n, dtype, device, generator=None, *_):
        noise = randn_tensor(self.start.shape, generator=generator, device=device, dtype=dtype)
        return self.scheduler.add_noise(self.start, noise, timestep)


PIPELINES: dict[type, tuple[Any, Any]] = {  # as loaded -> as drawn with: from a map, from noise alone
    loaded: (
        type(f"FromLatents{kind}", (_FromLatents, loaded), {}),
        type(f"FromNoise{kind}", (_OwnImagePrompts, getattr(diffusers, f"{kind}Pipeline")), {}),
    )
    for kind, loaded in ((kind, LAYOUTS[f"{kind}Pipeline"]) for kind in KINDS)
}


def load_pipeline(pipeline: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a hub id or a directory in diffusers layout as its image-to-image pipeline; safetensors only.

    Nothing is unpickled, and the safety checker stays off: what is drawn is scored, black squares would be scored too.
    Raises ValueError with one sentence if it is neither, is not whole, or is no model of this kind.
    """
    local = Path(pipeline).is_dir()
    if not local and (pipeline.startswith((".", "/", "~")) or pipeline.count("/") != 1):
        raise ValueError(f"pipeline={pipeline} is neither a directory nor a hub id (owner/name)")
    if local and not (Path(pipeline) / "model_index.json").exists():
        raise ValueError(f"pipeline={pipeline} has no model_index.json, so it is not a diffusers pipeline directory")
    try:
        with quiet_libraries():
            index: Any = diffusers.DiffusionPipeline.load_config(pipeline, local_files_only=local)
        kind = index.get("_class_name", "file without a class name")
        if kind not in LAYOUTS or index.get("requires_aesthetics_score"):
            kind = "Stable Diffusion XL refiner" if index.get("requires_aesthetics_score") else kind
            raise _Refused(f"pipeline={pipeline} is a {kind}; Stable Diffusion 1.x, 2.x, XL and LCM can be drawn with")
        xl = LAYOUTS[kind] is StableDiffusionXLImg2ImgPipeline
        told: dict[str, Any] = {"feature_extractor": None, "image_encoder": None, "local_files_only": local}
        told |= {"add_watermarker": False} if xl else {"safety_checker": None, "requires_safety_checker": False}
        with quiet_libraries():  # diffusers warns of an AutoencoderTiny where it expects an AutoencoderKL; both work
            pipe = LAYOUTS[kind].from_pretrained(pipeline, dtype=dtype, use_safetensors=True, **told)
        _check_parts(pipe, pipeline)
    except _Refused as refusal:
        raise ValueError(str(refusal)) from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"pipeline={pipeline} cannot be loaded as a Stable Diffusion pipeline: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


class _Refused(Exception):
    """A pipeline that loads, but not for this."""


def is_xl(pipe: Any) -> bool:
    return isinstance(pipe, StableDiffusionXLImg2ImgPipeline)


def is_lcm(pipe: Any) -> bool:
    return isinstance(pipe, LatentConsistencyModelImg2ImgPipeline)


def _check_parts(pipe: Any, name: str) -> None:
    parts = ["unet", "vae", "scheduler", "text_encoder", "tokenizer"]
    parts += ["text_encoder_2", "tokenizer_2"] if is_xl(pipe) else []
    lacking = [part for part in parts if getattr(pipe, part) is None]
    if lacking:
        raise _Refused(f"pipeline={name} has no {', '.join(lacking)}, so it cannot draw from a decoded caption")
    takes, latents = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if takes != latents:
        kind = "an inpainting or editing model" if takes > latents else "not whole"
        raise _Refused(f"pipeline={name} is {kind}: its U-Net takes {takes} channels, its latents have {latents}")
    if is_lcm(pipe) and pipe.unet.config.time_cond_proj_dim is None:
        raise _Refused(f"pipeline={name} is not whole: the U-Net of a latent consistency model takes the guidance")
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if is_xl(pipe) else [pipe.text_encoder]
    gives, reads = sum(encoder.config.hidden_size for encoder in encoders), pipe.unet.config.cross_attention_dim
    if reads != gives:
        raise _Refused(f"pipeline={name} is not whole: its text embeddings are {gives} wide, its U-Net takes {reads}")


def set_scheduler(pipe: Any, scheduler: str) -> str:
    """Give `pipe` the scheduler of that name ("default": its own) with the settings its model was trained with.

    Returns the class name in force. Raises ValueError for an unknown name and for one that cannot honour the noise
    schedule or the prediction type of the model.
    """
    own, name = pipe.scheduler, type(pipe.scheduler).__name__
    if scheduler != "default":
        if scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={scheduler!r} is not one of default, {', '.join(SCHEDULERS)}")
        distilled = name == "LCMScheduler" or pipe.unet.config.time_cond_proj_dim is not None
        if distilled != (scheduler == "lcm"):
            why = "is for latent consistency models" if scheduler == "lcm" else "is not for latent consistency models"
            raise ValueError(f"scheduler={scheduler} {why}, and this pipeline's is {name}; use scheduler=default")
        name, told = SCHEDULERS[scheduler]
        kind = getattr(diffusers, name)
        known = inspect.signature(kind.__init__).parameters
        lost = [key for key in _FILE["of_the_model"] if own.config.get(key) and key not in known]
        if lost:
            settings = ", ".join(f"{key}={own.config[key]}" for key in lost)
            raise ValueError(f"scheduler={scheduler} knows no {settings}, which this model was trained with")
        pipe.scheduler = kind.from_config(own.config, **told)
    if is_lcm(pipe) and name != "LCMScheduler":
        raise ValueError(f"this pipeline is a latent consistency model but comes with a {name}; use scheduler=lcm")
    prediction = pipe.scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"this pipeline predicts {prediction!r}; only epsilon and v_prediction can be drawn with")
    return name


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
