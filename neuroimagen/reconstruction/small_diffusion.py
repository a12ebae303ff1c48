"""A small latent diffusion model of the same classes as Stable Diffusion, in the same directory layout.

It makes the whole system run without a download (neuroimagen/embedded) and is what a lab can train on its own stimuli.
"""

import json
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from neuroimagen.batches.pictures import to_unit
from neuroimagen.reconstruction.pipelines import load_pipeline

FIXED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# CLIP's own word pattern (Radford et al. 2021, simple_tokenizer.py) for what Python's re knows as letters.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_"


def byte_pairs(words: set[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair encoding learnt until each word is one token: (vocabulary, merges), a function of the words alone.

    Not tokenizers' BpeTrainer, whose vocabulary differs from one call to the next.
    """
    parts = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in parts.values() for pair in pairwise(word)):
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((first, second))
        for word, old in parts.items():
            new: list[str] = []
            for part in old:
                if new and (new[-1], part) == (first, second):
                    new[-1] += part
                else:
                    new.append(part)
            parts[word] = tuple(new)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return letters + [f"{letter}</w>" for letter in letters] + [a + b for a, b in merges], merges


def learn_tokenizer(captions: list[str], n_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer in which each (ASCII) word of the captions is one token; any other text encodes in more."""
    words = {word for caption in captions for word in re.findall(CLIP_WORDS, caption.lower())}
    vocabulary, merges = byte_pairs({word for word in words if word.isascii()})
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_bytes(json.dumps({token: i for i, token in enumerate(vocabulary)}).encode())
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        Path(folder, "merges.txt").write_bytes("".join(line + "\n" for line in lines).encode())
        return CLIPTokenizer.from_pretrained(folder, model_max_length=n_tokens)


def make_autoencoder(width: int, latent_channels: int) -> AutoencoderTiny:
    """Pixels (B, 3, S, S) in [-1, 1] <-> latents (B, latent_channels, S/8, S/8)."""
    widths = {f"{part}_block_out_channels": (width,) * 4 for part in ("encoder", "decoder")}
    return AutoencoderTiny(**widths, latent_channels=latent_channels, **FIXED["autoencoder"])


def encode(vae: Any, images: Tensor) -> Tensor:
    """Latents before scaling: of an AutoencoderTiny, or the mean of an AutoencoderKL's distribution."""
    encoded = vae.encode(images)
    return encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()


@torch.no_grad()
def encode_all(vae: Any, pixels: Tensor, new_scale: bool) -> Tensor:
    """uint8 pixels (n, 3, S, S) -> latents, on the CPU, scaled; new_scale: to variance 1, kept in its config."""
    latents = torch.cat([encode(vae, to_unit(chunk).to(vae.device)).cpu() for chunk in pixels.split(64)])
    if new_scale:
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    return latents.mul_(vae.config.scaling_factor)


def tokenize(tokenizer: Any, texts: list[list[str]], named: str) -> Tensor:
    """k lists of n captions -> token ids (k, n, L). ValueError, about `named`, if the tokenizer does not say L."""
    length = tokenizer.model_max_length
    if length > 10**6:  # transformers' word for: it is not said
        raise ValueError(f"{named}: its tokenizer_config.json says no model_max_length; copy it anew")
    how = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return torch.stack([tokenizer(some, **how).input_ids for some in texts])


def make_denoiser(latent_channels: int, latent_size: int, channels: tuple[int, ...], width: int) -> Any:
    """U-Net over latents, conditioned on caption embeddings (B, L, width) by cross-attention at every level."""
    blocks = {f"{way.lower()}_block_types": (f"CrossAttn{way}Block2D",) * len(channels) for way in ("Down", "Up")}
    sides = dict.fromkeys(("in_channels", "out_channels"), latent_channels)
    levels = {"sample_size": latent_size, "block_out_channels": channels, "cross_attention_dim": width}
    return UNet2DConditionModel(**sides, **blocks, **levels, **FIXED["unet"])


def make_text_encoder(tokenizer: CLIPTokenizer, n_tokens: int, width: int) -> CLIPTextModel:
    """Captions -> embeddings (B, n_tokens, width)."""
    words: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": n_tokens}
    return CLIPTextModel(CLIPTextConfig(**sizes, **words, **FIXED["text_encoder"]))


class NoisyAutoencoder(nn.Module):
    """Pixels -> (latents, pixels decoded from latents + noise), without the 8-bit clamp of AutoencoderTiny.forward."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images, noise):
        latents = self.vae.encoder(images).float()
        return latents, self.vae.decoder(latents + noise).float()


class TextAndUNet(nn.Module):
    """Both trained parts of the denoiser as one module, so that one optimizer and one DDP wrapper drive them."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, latents, timesteps, token_ids):
        embedding = self.text_encoder(token_ids)[0]
        return self.unet(latents, timesteps, embedding).sample


def make_ema(model: nn.Module, decay: float, device: torch.device) -> EMAModel:
    """The average of `model`'s weights that sampling uses."""
    ema = EMAModel(model.parameters(), decay=decay, **FIXED["ema"])
    ema.to(device)
    return ema


def make_parts(config: Any, captions: list[str]) -> tuple[Any, CLIPTokenizer, CLIPTextModel, Any, Any]:
    """Autoencoder, tokenizer, text encoder, U-Net and scheduler of `config.init`; without it, no autoencoder, and parts
    that have learnt nothing yet but the captions' words.

    config: of trainers/latent_diffusion.py
    """
    if config.init:
        pipe = load_pipeline(config.init)
        return pipe.vae, pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.scheduler
    tokenizer = learn_tokenizer(captions, config.n_tokens)
    text_encoder = make_text_encoder(tokenizer, n_tokens=config.n_tokens, width=config.text_width)
    latents = {"latent_channels": config.latent_channels, "latent_size": config.image_size // 8}
    unet = make_denoiser(**latents, channels=tuple(config.unet_channels), width=config.text_width)
    return None, tokenizer, text_encoder, unet, DDIMScheduler(**FIXED["scheduler"])


def make_pipeline(
    vae: nn.Module, text_encoder: nn.Module, tokenizer: CLIPTokenizer, unet: nn.Module, scheduler: Any
) -> StableDiffusionImg2ImgPipeline:
    """The parts as one pipeline; `save_pretrained` writes the directory that `pipeline=` takes."""
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    nothing = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    return StableDiffusionImg2ImgPipeline(**parts, **nothing, requires_safety_checker=False)
