"""F: from the decoded semantics of an EEG trial to a picture, by a latent diffusion model (Lan et al. 2023, arXiv
2308.02510, "Combining Multi-level EEG Semantics with Diffusion Model").

    ŷ = F(M_p(x), M_s(x)):
    (1) the saliency map M_p(x) is resized to the resolution of the pictures,
    (2) encoded by the autoencoder and noised: a share `strength` of the noise schedule,
    (3) denoised by the U-Net, with the decoded embedding M_s(x) as input of its cross-attention and classifier-free
        guidance (Ho & Salimans 2022) away from the embedding of the empty caption,
    (4) decoded to a picture.

Steps (2) to (4) are diffusers' own image-to-image pipelines (pipelines.py), with two differences: a map is encoded
once, whatever the number of samples and rows that start from it (`encode`), and its draw from the autoencoder's
posterior has a generator of its own. A picture depends on (seed, key, sample number) and the inputs, on nothing else:
one CPU generator a picture draws its noise, which all rows share. (A batch of another size, or another number of
threads, may change the last bits of a float: docs/reconstruct.md.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from neuroimagen.config import Limited, option
from neuroimagen.reconstruction.image_prompt import ImagePrompt, load_image_prompt
from neuroimagen.reconstruction.pipelines import PIPELINES, is_lcm, is_xl, load_pipeline, set_attention, set_scheduler
from neuroimagen.run.processes import check_bf16, set_tf32
from neuroimagen.run.seeds import seed_from


@dataclasses.dataclass
class EncodedMaps:
    """Saliency maps of B trials after steps (1) and (2): what the autoencoder makes of them, at a picture size."""

    parameters: Tensor  # (B, 2C, h, w) of the posterior that an AutoencoderKL gives, or (B, C, h, w) latents
    drawn: bool  # whether they are those of a posterior, to be drawn from
    size: tuple[int, int]  # (height, width) of the pictures, px

    def __len__(self) -> int:
        return len(self.parameters)

    def latents(self, samples: int, noises: Sequence[int]) -> Tensor:
        """(B * samples, C, h, w): each picture's own draw from its map's posterior.

        noises: what each picture's noise is seeded with. The posterior has a generator of its own beside it, so that
        what a picture starts from takes nothing from the stream that the rows share.
        """
        if not self.drawn:
            return self.parameters.repeat_interleave(samples, dim=0)
        posteriors = map(DiagonalGaussianDistribution, self.parameters.repeat_interleave(samples, dim=0).split(1))
        seeds = [seed_from(noise, "posterior") for noise in noises]
        return torch.cat([p.sample(torch.Generator().manual_seed(s)) for p, s in zip(posteriors, seeds, strict=True)])


# Arguments that are fields of trainers/reconstruct.py too: of Reconstructor, and of its `reconstruct`
LOADED_WITH = (
    *("attention", "scheduler", "channels_last", "compile", "vae_slicing", "vae_tiling"),
    *("image_prompt", "image_prompt_scale"),
)
DRAWN_WITH = ("samples", "seed", "strength", "guidance_scale", "num_inference_steps")


@dataclasses.dataclass
class Settings(Limited):
    """What is drawn with where nobody says otherwise: by the trainer, an exported model and `Reconstructor` alike.
    Strength, guidance and steps as in diffusers' StableDiffusionImg2ImgPipeline, samples as in the paper's Figure 3.
    """

    samples: int = option(3, "pictures a trial and row", at_least=1)
    seed: int = option(0, "noise is a function of (seed, trial key, sample number)")
    strength: float = option(0.8, "share of the noise schedule that a map goes through", above=0, at_most=1)
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none", at_least=1)
    num_inference_steps: int = option(50, "steps of the whole noise schedule", at_least=1)
    rescale_embeddings: bool = option(
        False, "move each decoded embedding as far from the train captions' mean as captions are (docs/paper.md)"
    )
    image_prompt_scale: float = option(
        1.0, "how much the attention to an image prompt counts, beside the text's", at_least=0
    )
    image_size: int | None = option(None, "side in px; none: what the pipeline was made for")
    chunk: int = option(4, "trials drawn together, which may change last bits; 0: found by trial", at_least=0)


def check_settings(**settings: Any) -> None:
    """ValueError for settings that no pipeline can honour."""
    Settings(**settings)


class Reconstructor:
    """A latent diffusion model that turns maps and prompt embeddings into pictures; see the module's docstring.

    text_length, text_width: the (L, D_s) of its text embeddings, 77 x 768 for Stable Diffusion 1.x
    size: (height, width) it was made for, in px; attention: the implementation in force (see pipelines.py)
    scheduler: class name of the scheduler in force
    """

    def __init__(
        self,
        pipeline: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
        scheduler: str = "default",
        channels_last: bool = False,
        compile: bool = False,
        vae_slicing: bool | None = None,
        vae_tiling: bool = False,
        image_prompt: str | None = None,
        image_prompt_scale: float = Settings.image_prompt_scale,
    ) -> None:
        """Load `pipeline` (hub id or directory) as the settings say (docs/reconstruct.md: what each does).

        Raises ValueError if the pipeline, `attention`, `scheduler` or `image_prompt` cannot be had.
        """
        self.name, self.device, self.dtype = str(pipeline), torch.device(device), dtype
        set_tf32(False)
        if dtype == torch.bfloat16:
            check_bf16(self.device)
        loaded = load_pipeline(self.name, dtype)
        self.scheduler = set_scheduler(loaded, scheduler)
        loaded.to(self.device)
        self.xl, self.lcm = is_xl(loaded), is_lcm(loaded)
        unet, vae = loaded.unet, loaded.vae
        for network in (unet, vae, loaded.text_encoder, *([loaded.text_encoder_2] if self.xl else [])):
            network.requires_grad_(False).eval()
        self.attention = set_attention(loaded, attention, self.device)
        self.image_prompt: ImagePrompt | None = None
        if image_prompt:
            self.image_prompt = load_image_prompt(loaded, image_prompt, image_prompt_scale)
        self.distilled = unet.config.time_cond_proj_dim is not None  # guidance is an input: one half only
        # The same parts, started from a map or from noise alone. A scheduler has state, so each has its own.
        scheduler_of_its_own = type(loaded.scheduler).from_config(loaded.scheduler.config)
        more: dict[str, Any] = {"requires_safety_checker": False}
        if self.xl:
            zeros = loaded.config.force_zeros_for_empty_prompt
            more = {"add_watermarker": False, "force_zeros_for_empty_prompt": zeros}
        from_map, from_noise = PIPELINES[type(loaded)]
        self.img2img = from_map(**loaded.components, **more)
        self.text2img = from_noise(**loaded.components | {"scheduler": scheduler_of_its_own}, **more)
        for pipe in (self.img2img, self.text2img):
            pipe.set_progress_bar_config(disable=True)

        side = unet.config.sample_size  # of the latents, (height, width) or both in one
        height, width = (side, side) if isinstance(side, int) else side
        self.factor = int(loaded.vae_scale_factor)  # px of a latent cell
        self.size = (height * self.factor, width * self.factor)
        # Decode one by one: a batch of large pictures needs GBs and gains no speed.
        if height * width >= 64 * 64 if vae_slicing is None else vae_slicing:
            vae.enable_slicing()
        if vae_tiling:
            vae.enable_tiling()
        if channels_last:
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
        # The embeddings of the empty caption, (1, L, D_s), and of XL also its pooled one, (1, P); and what the model
        # takes for "no caption": the same, or zeros where the pipeline's config says so.
        self.pooled: Tensor | None = None
        with torch.inference_mode():
            if self.xl:
                found = loaded.encode_prompt("", device=self.device, do_classifier_free_guidance=True)
                self.empty, self.nothing, _, self.pooled = found
            else:
                self.empty = self.nothing = loaded.encode_prompt("", self.device, 1, False)[0]
        self.text_length, self.text_width = self.empty.shape[1:]
        if compile:
            unet.compile()  # in place; after the attention processors are set

    def describe(self) -> dict[str, Any]:
        """What rows.json keeps of how it draws."""
        about = {
            "pipeline_class": ("Latent Consistency Model" if self.lcm else "Stable Diffusion") + " XL" * self.xl,
            "scheduler": self.scheduler,
            "prediction_type": self.img2img.scheduler.config.get("prediction_type", "epsilon"),
            "embedding": [self.text_length, self.text_width],
            "safety_checker": "off",
        }
        if self.image_prompt:
            about["image_prompt"] = self.image_prompt.features | {"width": self.image_prompt.width}
        return about | ({"pooled_embedding": "of no caption"} if self.xl else {})

    def check_steps(self, num_inference_steps: int, strength: float = 1.0) -> None:
        """Raise ValueError for more steps than the noise schedule has, or, from a map (`strength`), for none.

        A latent consistency model takes all its steps from the share of its schedule that the strength leaves; others
        take that share of the steps.
        """
        config = self.img2img.scheduler.config
        most = config.get("original_inference_steps") or config["num_train_timesteps"]
        asked = f"num_inference_steps={num_inference_steps}"
        if num_inference_steps > most:
            raise ValueError(f"{asked} is more than the {most} of {self.name} ({self.scheduler})")
        if self.lcm and num_inference_steps > int(most * strength):
            raise ValueError(
                f"{asked} is more than the {int(most * strength)} that strength={strength} leaves of the {most} of "
                f"{self.name}; use fewer steps or more strength"
            )
        if not self.lcm and int(num_inference_steps * strength) == 0:
            raise ValueError(
                f"{asked} with strength={strength} leaves no denoising step (steps x strength, rounded down, is 0); "
                f"use at least {int(1 / strength) + 1} steps"
            )

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
    def encode(self, maps: Tensor, height: int | None = None, width: int | None = None) -> EncodedMaps:
        """Steps (1) and (2) but for the noise: maps M_p(x) (B, 3, h, w) in [0, 1] to latents of a picture size in px.

        Once is enough for all samples and rows. Raises ValueError for maps that are none.
        """
        size = self.picture_size(height, width)
        finite = bool(maps.isfinite().all())
        if maps.ndim != 4 or maps.shape[1] != 3 or not finite or maps.min() < 0 or maps.max() > 1:
            odd = "" if finite else "; they hold NaN or infinite values: the stage that decoded them has diverged"
            raise ValueError(f"maps must be (B, 3, h, w) in [0, 1], but are {tuple(maps.shape)}{odd}")
        # (1); antialias matters only where a map is larger than the picture
        image = F.interpolate(maps.float(), size=size, mode="bilinear", antialias=True).clamp(0, 1).mul(2).sub(1)
        vae, pixels = self.img2img.vae, image.to(self.device, self.dtype)
        upcast = self.xl and vae.config.get("force_upcast")  # diffusers encodes so, and in float16 also decodes so
        if upcast:
            vae.float()
        found = vae.encode(pixels.to(vae.dtype))
        if upcast:
            nn.Module.to(vae, self.dtype)  # not diffusers' own `to`, which warns each time
        drawn = hasattr(found, "latent_dist")
        return EncodedMaps(found.latent_dist.parameters if drawn else found.latents, drawn, size)

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents as the U-Net knows them: of mean 0 and variance 1."""
        config = self.img2img.vae.config
        if self.xl and config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (latents.new_tensor(config[k])[:, None, None] for k in ("latents_mean", "latents_std"))
            return (latents - mean) * config.scaling_factor / std
        return config.scaling_factor * latents

    @torch.inference_mode()
    def reconstruct(
        self,
        prompt_embeds: Tensor | None,
        maps: Tensor | EncodedMaps | None,
        keys: Sequence[str],
        samples: int = Settings.samples,
        seed: int = Settings.seed,
        strength: float = Settings.strength,
        guidance_scale: float = Settings.guidance_scale,
        num_inference_steps: int = Settings.num_inference_steps,
        height: int | None = None,
        width: int | None = None,
        image_embeds: Tensor | None = None,
    ) -> Tensor:
        """Draw `samples` pictures for each of B trials: (B, samples, 3, H, W) float32 in [0, 1], on the CPU.

        prompt_embeds: (B, L, D_s) decoded embeddings M_s(x), or (B, samples, L, D_s), one for each picture; None: the
            empty caption's, without guidance if there are no image_embeds either
        maps: (B, 3, h, w) in [0, 1], the saliency maps M_p(x), or what `encode` made of them; None: from pure noise,
            over the whole schedule
        keys: B names of trials; with `seed` and the sample number they fix the noise
        strength: share of the noise schedule a map goes through; ignored without maps
        height, width: px; None: what the pipeline was made for
        image_embeds: (B, D) features of pictures, in their own units, for an image_prompt; None: drawn without it

        Raises ValueError for settings, shapes or values that this pipeline cannot honour.
        """
        Settings(samples, seed, strength, guidance_scale, num_inference_steps)
        self.check_steps(num_inference_steps, 1.0 if maps is None else strength)
        size = self.picture_size(height, width)
        trials = len(keys)
        if trials == 0:
            return torch.empty(0, samples, 3, *size)
        if prompt_embeds is not None and prompt_embeds.ndim == 3:
            prompt_embeds = prompt_embeds[:, None].expand(-1, samples, -1, -1)
        for name, tensor, axes in (("prompt_embeds", prompt_embeds, 4), ("image_embeds", image_embeds, 2)):
            if tensor is not None and (tensor.ndim != axes or len(tensor) != trials):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but there are {trials} keys")
            if tensor is not None and not tensor.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinite values; the stage that decoded them has diverged")
        if image_embeds is not None:
            if self.image_prompt is None or image_embeds.shape[1] != self.image_prompt.width:
                takes = f"takes {self.image_prompt.width}" if self.image_prompt else "has no image_prompt"
                raise ValueError(f"image_embeds of {image_embeds.shape[1]} were given, but {self.name} {takes}")
            image_embeds = image_embeds.repeat_interleave(samples, dim=0)
        if maps is not None and len(maps) != trials:
            raise ValueError(f"maps of {len(maps)} trials, but there are {trials} keys")
        if isinstance(maps, Tensor):
            maps = self.encode(maps, *size)
        if maps is not None and maps.size != size:
            raise ValueError(f"maps encoded for pictures of {maps.size} px, but {size} px are asked for")

        guided = guidance_scale > 1 and (prompt_embeds is not None or image_embeds is not None)
        embeds = nothing = self.nothing.expand(trials * samples, -1, -1)
        if prompt_embeds is not None:
            self.check_embedding(*prompt_embeds.shape[2:])
            embeds = prompt_embeds.to(self.device, self.dtype).flatten(0, 1)
        noises = [noise_seed(seed, key, sample) for key in keys for sample in range(samples)]
        inputs: dict[str, Any] = {
            "prompt_embeds": embeds,
            "guidance_scale": float(guidance_scale) if guided else 1.0,
            "num_inference_steps": num_inference_steps,
            "generator": [torch.Generator().manual_seed(noise) for noise in noises],
            "output_type": "pt",
        }
        if not self.lcm:  # which takes the guidance as an input of its U-Net
            inputs["negative_prompt_embeds"] = nothing if guided else None
        if self.pooled is not None:
            pooled = self.pooled.expand(trials * samples, -1)  # of no caption, on both sides of the guidance
            inputs |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled if guided else None}
        if self.image_prompt:
            halves = guided and not self.distilled
            inputs |= self.image_prompt.inputs(self.img2img, image_embeds, trials * samples, halves)
        if maps is None:
            images = self.text2img(height=size[0], width=size[1], **inputs).images
        else:
            self.img2img.start = self._scaled(maps.latents(samples, noises).to(self.dtype))
            placeholder = torch.zeros(1, 3, 8, 8)  # which the pipeline asks for; `start` is what it begins with
            images = self.img2img(image=placeholder, strength=strength, **inputs).images
        images = images.float().cpu()
        if not images.isfinite().all():
            raise ValueError(f"{self.name} in {self.dtype} drew NaN; use precision=fp32 or bf16")
        return images.unflatten(0, (trials, samples))


def noise_seed(seed: int, key: str, sample: int) -> int:
    """What a picture's noise is seeded with."""
    return seed_from(seed, key, sample)
