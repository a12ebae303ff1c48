"""A small latent diffusion model of the same classes as Stable Diffusion, in the same directory layout.

It makes the whole system run without a download (neuroimagen/embedded) and is what a lab can train on its own stimuli.
"""

import json
import tempfile
from pathlib import Path

from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# The word pattern of CLIP's own tokenizer (Radford et al. 2021, openai/CLIP simple_tokenizer.py).
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_tokenizer(captions: list[str], n_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make each word of the captions one token; any other text still encodes."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    characters = [chr(c) for c in range(33, 127)]  # each also as a word's last letter
    tokenizer.train_from_iterator([*sorted(set(captions)), *characters], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(model["vocab"]))
        Path(folder, "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=n_tokens)


def make_autoencoder(width: int, latent_channels: int) -> AutoencoderTiny:
    """Pixels (B, 3, S, S) in [-1, 1] <-> latents (B, latent_channels, S/8, S/8).

    AutoencoderTiny (Ollin Boer Bohan's TAESD) without blocks at full resolution, where a CPU would spend its time.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 0),
        latent_channels=latent_channels,
    )


def make_denoiser(latent_channels: int, latent_size: int, channels: tuple[int, ...], width: int) -> nn.Module:
    """U-Net over latents, conditioned on caption embeddings (B, L, width) by cross-attention at every level."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer, n_tokens: int, width: int) -> CLIPTextModel:
    """Captions -> embeddings (B, n_tokens, width)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=n_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_pipeline(vae: nn.Module, text_encoder: nn.Module, tokenizer: CLIPTokenizer, unet: nn.Module):
    """The four parts as a StableDiffusionImg2ImgPipeline, with Stable Diffusion's noise schedule and v-prediction."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,  # Lin et al. 2023: sampling starts from pure noise, so training must see it
    )
    return StableDiffusionImg2ImgPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
