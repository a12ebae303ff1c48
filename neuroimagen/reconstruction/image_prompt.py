"""An image prompt: the U-Net is told the embedding of a picture beside that of a caption, by an IP-Adapter (Ye et al.
2023, arXiv 2308.06721) of diffusers' own classes.

The embedding becomes 4 tokens, which each cross-attention reads by keys and values of their own. Weights are in the one
layout that diffusers' `load_ip_adapter` reads, image_proj.* and ip_adapter.N.to_k_ip, to_v_ip. A directory of
trainers/image_prompt.py holds image_prompt.json beside them: which features it was trained with. Their mean and
standard deviation are tensors of the same file, for such an adapter takes standardised features: nothing, the zeros
that stand for "no picture" in classifier-free guidance, is then the mean picture.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor
from diffusers.models.embeddings import ImageProjection
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neuroimagen.errors import quiet_libraries
from neuroimagen.files import write_atomic
from neuroimagen.text_files import read_text

WEIGHTS, ABOUT = "image_prompt.safetensors", "image_prompt.json"
TOKENS = 4  # what diffusers takes for granted of an adapter of pooled embeddings
OF_FEATURES = ("model", "revision", "layer", "pool", "size", "views")  # of a features file, what decides its numbers


@dataclasses.dataclass
class ImagePrompt:
    """An adapter that is in the U-Net of a pipeline."""

    name: str
    width: int  # D of the embeddings it takes
    features: dict[str, Any]  # OF_FEATURES that it was trained with; {}: a published one, which does not say
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    scale: float

    def fitting(self, targets: Mapping[str, Mapping[str, Any]], source: str) -> str:
        """The first of `targets`, {name: what a features file says of itself, and its width}, that it takes.

        ValueError, about `source`, if it takes none.
        """
        wanted = self.features | {"kind": "image", "width": self.width}
        for name, about in targets.items():
            if all(about.get(key) == value for key, value in wanted.items() if key != "model"):  # which may have moved
                return name
        there = "; ".join(
            ", ".join(f"{key} {about.get(key)}" for key in (*OF_FEATURES, "width")) for about in targets.values()
        )
        of = ", ".join(f"{key} {value}" for key, value in self.features.items()) or "any picture network"
        raise ValueError(
            f"image_prompt={self.name} takes {self.width} features of {of}; {source} has those of {there}: make "
            "features that fit it, or an adapter for these with trainers/image_prompt.py"
        )

    def inputs(self, pipe: Any, embeddings: Tensor | None, pictures: int, guided: bool) -> dict[str, Any]:
        """What `pipe` is called with to draw so many pictures from embeddings (pictures, D), in the features' units.

        None: as if no adapter were there, to the bit. guided: pictures with nothing to guide away from come first.
        """
        pipe.set_ip_adapter_scale(0.0 if embeddings is None else self.scale)
        told = torch.zeros(pictures, self.width) if embeddings is None else standardised(embeddings.float().cpu(), self)
        told = told.to(pipe.unet.device, pipe.unet.dtype)[:, None]
        return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(told), told]) if guided else told]}


def load_image_prompt(pipe: Any, image_prompt: str, scale: float) -> ImagePrompt:
    """Put an adapter into the U-Net of `pipe`, whose attention is chosen already, by diffusers' own `load_ip_adapter`.

    image_prompt: directory of trainers/image_prompt.py; or a published adapter's weights, a file or a hub id with the
        path of a file, such as h94/IP-Adapter/models/ip-adapter_sd15.safetensors; scale: of its attention
    ValueError: there is none, or it does not fit this pipeline, or not this attention.
    """
    path, about, mean, std = Path(image_prompt), {}, torch.zeros(1), torch.ones(1)
    source, subfolder, file = str(path.parent), "", path.name
    if path.is_dir():
        try:
            source, file, about = image_prompt, WEIGHTS, json.loads(read_text(path / ABOUT))["features"]
            with safe_open(path / WEIGHTS, "pt") as weights:
                mean, std = weights.get_tensor("mean"), weights.get_tensor("std")
        except Exception as error:  # of JSON, of safetensors, of the file system
            what = f"is no directory of trainers/image_prompt.py ({type(error).__name__}: {error})"
            raise ValueError(f"image_prompt={image_prompt} {what}") from None
    elif path.suffix != ".safetensors" or not (path.exists() or re.fullmatch(r"(\w[\w.-]*/){2,}[^/]+", image_prompt)):
        raise ValueError(
            f"image_prompt={image_prompt} is neither a directory of trainers/image_prompt.py nor a .safetensors file "
            "of an IP-Adapter, here or on the hub (owner/name/folder/file.safetensors)"
        )
    elif not path.exists():
        owner, name, *folders = image_prompt.split("/")[:-1]
        source, subfolder = f"{owner}/{name}", "/".join(folders)
    plain = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
    if "SlicedAttnProcessor" in plain:
        raise ValueError("attention=sliced cannot be had with image_prompt: use attention=sdpa")
    try:
        with quiet_libraries():
            pipe.load_ip_adapter(source, subfolder=subfolder, weight_name=file, image_encoder_folder=None)
    except Exception as error:  # hub, network, safetensors and shapes have no common base
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"image_prompt={image_prompt} cannot be loaded into this diffusion model: {reason}") from None
    projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    if not isinstance(projection, ImageProjection):
        raise ValueError(
            f"image_prompt={image_prompt} takes all tokens of a picture, or a face: use an adapter of pooled "
            "embeddings, such as ip-adapter_sd15.safetensors"
        )
    kind = IPAdapterXFormersAttnProcessor if "XFormersAttnProcessor" in plain else IPAdapterAttnProcessor2_0
    readers = adapted(pipe.unet)
    assert readers and all(type(reader) is kind for reader in readers), readers
    pipe.unet.requires_grad_(False).eval()
    return ImagePrompt(image_prompt, projection.image_embeds.in_features, about, mean, std, scale)


def standardised(features: Tensor, adapter: Any) -> Tensor:
    """Features (..., D), in their own units, as an `ImagePrompt` or `Adapter` takes them."""
    return (features - adapter.mean.to(features)) / adapter.std.to(features)


def adapted(unet: Any) -> list[Any]:
    """The attention processors of `unet` that an adapter is in, in its order."""
    return [processor for processor in unet.attn_processors.values() if hasattr(processor, "to_k_ip")]


class Adapter(nn.Module):
    """An adapter that is trained: its weights alone, so that one optimizer and one DDP wrapper drive them; the frozen
    U-Net that they are in is no part of the module."""

    mean: Tensor
    std: Tensor

    def __init__(self, pipe: Any, about: dict[str, Any], features: Tensor) -> None:
        """A new adapter in the U-Net of `pipe`, its keys and values those of the caption.

        about: of the features file that it is for; features (n, D): of the pictures it is trained on, whose mean and
        standard deviation are kept
        """
        super().__init__()
        unet, width = pipe.unet.requires_grad_(False), pipe.unet.config.cross_attention_dim
        linear = nn.Linear(features.shape[1], TOKENS * width)
        projection = {"proj.weight": linear.weight.detach(), "proj.bias": linear.bias.detach()}
        projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        crosses = [unet.get_submodule(n.removesuffix(".processor")) for n in unet.attn_processors if ".attn2." in n]
        own = {
            f"{2 * i + 1}.to_{x}_ip.weight": getattr(cross, f"to_{x}").weight.detach().clone()
            for i, cross in enumerate(crosses)
            for x in "kv"
        }
        with quiet_libraries():
            state = {"image_proj": projection, "ip_adapter": own}
            pipe.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
        self.projection = unet.encoder_hid_proj.image_projection_layers[0]
        self.readers = nn.ModuleList(adapted(unet))
        self.requires_grad_(True)
        self.unet, self.about = [unet], {key: about.get(key) for key in OF_FEATURES}
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0) + 1e-3)

    def forward(self, latents: Tensor, timesteps: Tensor, captions: Tensor, embeddings: Tensor) -> Tensor:
        """What the U-Net predicts from captions' embeddings (B, L, D_s) and standardised features (B, D)."""
        told = {"image_embeds": [embeddings[:, None]]}
        return self.unet[0](latents, timesteps, captions, added_cond_kwargs=told).sample

    def save_pretrained(self, directory: str) -> None:
        """The directory that `image_prompt=` takes; weights in half precision, as published ones are."""
        parts = {"proj": self.projection.image_embeds, "norm": self.projection.norm}
        state = {f"image_proj.{name}.{key}": x for name, part in parts.items() for key, x in part.state_dict().items()}
        for i, reader in enumerate(self.readers):
            for x in ("to_k_ip", "to_v_ip"):
                state[f"ip_adapter.{2 * i + 1}.{x}.weight"] = getattr(reader, x)[0].weight
        half = {name: x.detach().half().cpu().contiguous() for name, x in state.items()}
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_file(half | {"mean": self.mean.cpu(), "std": self.std.cpu()}, Path(directory) / WEIGHTS)
        about = {"features": self.about, "width": len(self.mean), "n_tokens": TOKENS}
        write_atomic(Path(directory) / ABOUT, json.dumps(about, indent=1) + "\n")
