"""Stage 0: a small latent diffusion model from scratch, or one fine-tuned on a lab's own stimuli.

Two parts, two runs: `part=autoencoder` learns the latent space, `part=denoiser` the U-Net (and text encoder) in it. The
run of the latter exports a whole StableDiffusionImg2ImgPipeline directory, which `reconstruct.py` takes as `pipeline=`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from neuroimagen.batches.order import EpochOrder
from neuroimagen.batches.pictures import captions_of, check_pictures, load_pictures, my_pictures, to_unit
from neuroimagen.config import TrainConfig, option, path_option, run_trainer
from neuroimagen.errors import load_trained
from neuroimagen.pictures import list_pictures
from neuroimagen.reconstruction import small_diffusion as small
from neuroimagen.reconstruction.pipelines import load_pipeline
from neuroimagen.run.collectives import decided_by_main, gather_rows, on_every_rank
from neuroimagen.run.directory import open_run
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine


@dataclass
class LatentDiffusionConfig(TrainConfig):
    images: str = path_option(help="folder of pictures, all below it are used; a captions file names them by file stem")
    captions: str = path_option("", "captions file (JSON lines of image, caption); empty: label captions only")
    part: Literal["autoencoder", "denoiser"] = option("denoiser", "what this run trains")
    init: str = path_option("", "pipeline directory to fine-tune; empty starts from scratch")
    autoencoder: str = path_option("", "run directory of part=autoencoder; empty takes the one in init")
    image_size: int = option(64, "px; pictures are resized and centre-cropped; a multiple of 16")
    latent_channels: int = option(16, "channels of the latent, at 1/8 of the picture's resolution")
    autoencoder_width: int = option(48, "channels of the autoencoder")
    latent_noise: float = option(0.05, "standard deviation of noise on the latents while the autoencoder learns")
    unet_channels: list[int] = option([96, 128], "channels of the U-Net's levels")
    text_width: int = option(128, "width of the caption embedding")
    n_tokens: int = option(24, "length of the caption embedding")
    label_captions: float = option(0.5, "share of captions replaced by 'An image of <class>' (class = folder)")
    caption_dropout: float = option(0.1, "share of captions left empty, for classifier-free guidance")
    gradient_checkpointing: bool = option(False, "part=denoiser: compute activations twice to hold fewer of them")
    learning_rate: float = option(1e-3, "peak of AdamW; falls to 0 along half a cosine")
    warmup: int = option(100, "steps of linear warm-up before the cosine")
    ema_decay: float = option(0.999, "decay of the averaged denoiser that is exported")

    def check(self) -> None:
        super().check()
        alone = self.part == "autoencoder"
        check_pictures(self.images, self.global_batch_size, None if alone else self.captions, self.label_captions)
        if alone and self.accumulate > 1:
            raise ValueError(
                "part=autoencoder measures its latents over the whole batch: use accumulate=1, more processes"
            )
        if not (alone or self.init or self.autoencoder):
            raise ValueError("part=denoiser needs autoencoder=RUN (a run of part=autoencoder) or init=PIPELINE")


def train_autoencoder(config: LatentDiffusionConfig, run: Run, pixels: torch.Tensor, paths: list[Path]) -> int:
    vae = on_every_rank(lambda: load_pipeline(config.init)).vae if config.init else None
    vae = vae or small.make_autoencoder(config.autoencoder_width, config.latent_channels)
    if not isinstance(vae, AutoencoderTiny):
        raise ValueError(f"part=autoencoder trains an AutoencoderTiny, not the {type(vae).__name__} of {config.init}")
    optimizer = torch.optim.AdamW(vae.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=1e-4, fused=True)
    model, optimizer = run.prepare(small.NoisyAutoencoder(vae).to(memory_format=torch.channels_last), optimizer)
    run.resume()
    order = EpochOrder(len(pixels), config.seed)
    while run.going():
        mine = my_pictures(order, run)
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        noise = config.latent_noise * run.randn(len(mine), vae.config.latent_channels, *(config.image_size // 8,) * 2)
        images = to_unit(pixels[mine]).to(run.device, memory_format=torch.channels_last)
        with run.accelerator.autocast():
            latents, decoded = model(images, noise)
        error = decoded - images
        # Unit latents over the global batch, channel by channel, so that the diffusion's unit noise fits them.
        everyone = gather_rows(latents)
        mean, std = everyone.mean((0, 2, 3)), everyone.std((0, 2, 3))
        spread = mean.square().mean() + (std - 1).square().mean()
        loss = error.square().mean() + 0.1 * error.abs().mean() + 0.01 * spread
        mse = (decoded.detach().clamp(-1, 1) - images).square().mean((1, 2, 3))
        psnr = (10 * torch.log10(4 / mse)).mean()
        run.backward(loss, [paths[i].stem for i in mine], loss=loss, psnr=psnr, latent_std=std.mean())
        run.update(optimizer, model, 1.0)
        run.advance(lr=lr)
        if run.step % 500 == 0 or run.step == config.max_steps:
            pairs = torch.cat([images[:8], decoded.detach()[:8]], 3).add(1).div(2)
            run.image("autoencoder", torch.cat(list(pairs), 1))
    return run.finish(vae=run.unwrap(model).vae)


def train_denoiser(config: LatentDiffusionConfig, run: Run, pixels: torch.Tensor, paths: list[Path]) -> int:
    if run.zero_stage == 3:
        raise ValueError(
            "part=denoiser averages its weights over steps, but ZeRO-3 cuts them up: launch with launch/zero2.yaml"
        )
    scenes, labels = decided_by_main(lambda: captions_of(paths, config.captions))
    vae, tokenizer, text_encoder, unet, scheduler = on_every_rank(lambda: small.make_parts(config, scenes + labels))
    if directory := config.autoencoder:
        vae = on_every_rank(lambda: load_trained(AutoencoderTiny, open_run(directory, "autoencoder") / "model"))
    # A new latent space needs a scale; a pipeline's own brings it.
    latents = small.encode_all(vae.to(run.device).eval(), pixels, new_scale=bool(config.autoencoder))
    choices = small.tokenize(tokenizer, [scenes, labels, [""] * len(paths)], f"init={config.init}")  # (3, n, L)
    model = small.TextAndUNet(text_encoder, unet).train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=1e-2, fused=True)
    ema = small.make_ema(model, config.ema_decay, run.device)
    run.accelerator.register_for_checkpointing(ema)
    model, optimizer = run.prepare(model.to(memory_format=torch.channels_last), optimizer)
    run.resume()
    of_noise = scheduler.config.prediction_type == "epsilon"
    order, steps = EpochOrder(len(paths), config.seed), scheduler.config.num_train_timesteps
    while run.going():
        mine = my_pictures(order, run)
        clean = latents[mine].to(run.device)
        noise, uniform = run.randn(*clean.shape), run.rand(len(clean), 3)
        timesteps = (uniform[:, 0] * steps).long()
        kind = torch.where(uniform[:, 1] < config.label_captions, 1, 0)
        kind = torch.where(uniform[:, 2] < config.caption_dropout, 2, kind).cpu()
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        batch = {
            "name": [paths[i].stem for i in mine],
            "noisy": scheduler.add_noise(clean, noise, timesteps),
            "timestep": timesteps,
            "tokens": choices[kind, mine].to(run.device),
            "target": noise if of_noise else scheduler.get_velocity(clean, noise, timesteps),
        }
        for part in run.parts(batch):
            with run.accelerator.autocast():
                prediction = model(part["noisy"], part["timestep"], part["tokens"])
            loss = F.mse_loss(prediction.float(), part["target"])
            run.backward(loss, part["name"], loss=loss)
        run.update(optimizer, model, 1.0)
        ema.step(model.parameters())
        run.advance(lr=lr)
    ema.copy_to(model.parameters())
    both = run.unwrap(model)
    return run.finish(pipeline=small.make_pipeline(vae, both.text_encoder, tokenizer, both.unet, scheduler))


def main(config: LatentDiffusionConfig) -> int:
    run = Run(config)
    if run.done:
        return 0
    paths = decided_by_main(lambda: list_pictures(config.images))
    pixels = on_every_rank(lambda: load_pictures(paths, config.image_size, progress=run.is_main))
    train = train_autoencoder if config.part == "autoencoder" else train_denoiser
    return train(config, run, pixels, paths)


if __name__ == "__main__":
    run_trainer(main, LatentDiffusionConfig)
