"""F: from the decoded semantics of an EEG trial to a picture, by a latent diffusion model (Lan et al. 2023, arXiv
2308.02510, "Combining Multi-level EEG Semantics with Diffusion Model").

    ŷ = F(M_p(x), M_s(x)):
    (1) the saliency map M_p(x) is resized to the resolution of the pictures,
    (2) encoded by the autoencoder and noised: a share `strength` of the noise schedule,
    (3) denoised by the U-Net, with the decoded embedding M_s(x) as input of its cross-attention and classifier-free
        guidance (Ho & Salimans 2022) away from the embedding of the empty caption,
    (4) decoded to a picture.

This takes tensors and knows nothing of EEG. Steps (2) to (4) are diffusers' own StableDiffusionImg2ImgPipeline, so any
directory or hub model of that layout works: Stable Diffusion 1.x, or a small model of one's own.

A picture depends on (seed, key, sample number) and the inputs, on nothing else: one CPU generator a picture draws its
noise. Two rows of an ablation that differ in inputs only share their noise. (A batch of another size may change the
last bits of a float, see docs; a batch of the same size in another order does not.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from neuroimagen.reconstruction.attention import set_attention
from neuroimagen.seeds import seed_from


def check_settings(samples: int, strength: float, guidance_scale: float, num_inference_steps: int) -> None:
    """Raise ValueError with one sentence for settings that no pipeline can honour."""
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one picture a trial must be drawn")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps}: at least one denoising step is needed")
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} is not in (0, 1]: it is the share of the noise schedule that is used")
    if int(num_inference_steps * strength) == 0:
        raise ValueError(
            f"num_inference_steps={num_inference_steps} with strength={strength} leaves no denoising step "
            f"(steps x strength, rounded down, is 0); use at least {int(1 / strength) + 1} steps"
        )
    if not guidance_scale >= 1:
        raise ValueError(f"guidance_scale={guidance_scale} is below 1, which stands for no guidance")


def load_pipeline(pipeline: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a hub id or a directory in diffusers layout; weights are safetensors only (nothing is unpickled).

    Raises ValueError with one sentence if it is neither, or is not whole.
    """
    local = Path(pipeline).is_dir()
    if not local and (pipeline.startswith((".", "/", "~")) or pipeline.count("/") != 1):
        raise ValueError(f"pipeline={pipeline} is neither a directory nor a hub id (owner/name)")
    if local and not (Path(pipeline) / "model_index.json").exists():
        raise ValueError(f"pipeline={pipeline} has no model_index.json, so it is not a diffusers pipeline directory")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns of an AutoencoderTiny where it expects an AutoencoderKL; both work
    for library in (logging, transformers_logging):
        library.disable_progress_bar()
    try:
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
            pipeline,
            dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
            local_files_only=local,
            use_safetensors=True,
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"pipeline={pipeline} cannot be loaded as a Stable Diffusion pipeline: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
        for library in (logging, transformers_logging):
            library.enable_progress_bar()
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Reconstructor:
    """A latent diffusion model that turns maps and prompt embeddings into pictures; see the module's docstring.

    text_length, text_width: the (L, D_s) of its text embeddings, 77 x 768 for Stable Diffusion 1.x
    size: (height, width) it was made for, in px; attention: the implementation in force (see attention.py)
    """

    def __init__(
        self,
        pipeline: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> None:
        """Load `pipeline` (hub id or directory). Raises ValueError if that, or `attention`, cannot be had."""
        self.name = str(pipeline)
        self.device = torch.device(device)
        self.dtype = dtype
        img2img = load_pipeline(self.name, dtype).to(self.device)
        for module in (img2img.unet, img2img.vae, img2img.text_encoder):
            module.requires_grad_(False).eval()
        self.attention = set_attention(img2img, attention, self.device)
        self.img2img = img2img
        # The same parts, started from noise alone. A scheduler has state, so each has its own.
        parts = {**img2img.components, "scheduler": type(img2img.scheduler).from_config(img2img.scheduler.config)}
        pipeline_from_noise: Any = StableDiffusionPipeline
        self.text2img = pipeline_from_noise(**parts, requires_safety_checker=False)
        self.text2img.set_progress_bar_config(disable=True)

        sample_size = img2img.unet.config.sample_size
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        self.factor = int(img2img.vae_scale_factor)  # px of a latent cell
        self.size = (height * self.factor, width * self.factor)
        if height * width >= 64 * 64:  # decode one by one: a batch of large pictures needs GBs and gains no speed
            img2img.vae.enable_slicing()
        with torch.inference_mode():
            self.empty = img2img.encode_prompt("", self.device, 1, False)[0]  # (1, L, D_s)
        self.text_length, self.text_width = self.empty.shape[1:]

    def check_embedding(self, length: int, width: int, source: str = "the prompt embedding") -> None:
        """Raise ValueError unless (L, D_s) is what this pipeline's cross-attention takes."""
        if (length, width) != (self.text_length, self.text_width):
            raise ValueError(
                f"{source} is {length} x {width} (tokens x width), but pipeline {self.name} takes "
                f"{self.text_length} x {self.text_width}; train the semantics with this pipeline, or use theirs"
            )

    def picture_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """(height, width) in px to be drawn; None is what the model was made for. Raises ValueError if impossible."""
        height, width = height or self.size[0], width or self.size[1]
        step = max(8, self.factor)
        if height < step or width < step or height % step or width % step:
            raise ValueError(f"a picture of {height} x {width} px: both must be multiples of {step} for {self.name}")
        return height, width

    @torch.inference_mode()
    def reconstruct(
        self,
        prompt_embeds: Tensor | None,
        maps: Tensor | None,
        keys: Sequence[str],
        samples: int = 3,
        seed: int = 0,
        strength: float = 0.8,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Draw `samples` pictures for each of B trials: (B, samples, 3, H, W) float32 in [0, 1], on the CPU.

        prompt_embeds: (B, L, D_s) decoded embeddings M_s(x), or (B, samples, L, D_s), one for each picture; None: the
            empty caption's, without guidance
        maps: (B, 3, h, w) in [0, 1], the saliency maps M_p(x); None: from pure noise, over the whole schedule
        keys: B names of trials; with `seed` and the sample number they fix the noise
        strength: share of the noise schedule a map goes through; ignored without maps
        height, width: px; None: what the pipeline was made for

        Raises ValueError for settings, shapes or values that this pipeline cannot honour.
        """
        check_settings(samples, strength, guidance_scale, num_inference_steps)
        size = self.picture_size(height, width)
        trials = len(keys)
        if trials == 0:
            return torch.empty(0, samples, 3, *size)
        if prompt_embeds is not None and prompt_embeds.ndim == 3:
            prompt_embeds = prompt_embeds[:, None].expand(-1, samples, -1, -1)
        for name, tensor, axes in (("prompt_embeds", prompt_embeds, 4), ("maps", maps, 4)):
            if tensor is not None and (tensor.ndim != axes or len(tensor) != trials):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but there are {trials} keys")
            if tensor is not None and not tensor.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinite values; the stage that decoded them has diverged")

        empty = self.empty.expand(trials * samples, -1, -1)
        guided = prompt_embeds is not None and guidance_scale > 1
        if prompt_embeds is None:
            embeds = empty
        else:
            self.check_embedding(*prompt_embeds.shape[2:])
            embeds = prompt_embeds.to(self.device, self.dtype).flatten(0, 1)
        noises = [seed_from(seed, key, sample) for key in keys for sample in range(samples)]
        inputs = {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": empty if guided else None,
            "guidance_scale": float(guidance_scale) if guided else 1.0,
            "num_inference_steps": num_inference_steps,
            "generator": [torch.Generator().manual_seed(noise) for noise in noises],
            "output_type": "pt",
        }
        if maps is None:
            images = self.text2img(height=size[0], width=size[1], **inputs).images
        else:
            if maps.shape[1] != 3 or maps.min() < 0 or maps.max() > 1:
                raise ValueError(f"maps must be (B, 3, h, w) in [0, 1], but are {tuple(maps.shape)}")
            # (1); antialias matters only where a map is larger than the picture
            image = F.interpolate(maps.float(), size=size, mode="bilinear", antialias=True).clamp(0, 1)
            image = image.to(self.device, self.dtype).repeat_interleave(samples, dim=0)
            images = self.img2img(image=image, strength=strength, **inputs).images  # (2), (3), (4)
        images = images.float().cpu()
        if not images.isfinite().all():
            raise ValueError(f"{self.name} in {self.dtype} drew NaN; use precision=fp32 or bf16")
        return images.unflatten(0, (trials, samples))
