"""Stage 0: a small latent diffusion model from scratch, or one fine-tuned on a lab's own stimuli.

Two parts, two runs: `part=autoencoder` learns the latent space, `part=denoiser` the U-Net (and text encoder) in it. The
run of the latter exports a whole StableDiffusionImg2ImgPipeline directory, which `reconstruct.py` takes as `pipeline=`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from neuroimagen.batches.order import EpochOrder
from neuroimagen.batches.pictures import class_names, load_pictures, to_unit
from neuroimagen.config import TrainConfig, option, path_option, run_trainer
from neuroimagen.errors import load_trained
from neuroimagen.pictures import list_pictures
from neuroimagen.reconstruction.pipelines import load_pipeline
from neuroimagen.reconstruction.small_diffusion import (
    NoisyAutoencoder,
    TextAndUNet,
    encode,
    learn_tokenizer,
    make_autoencoder,
    make_denoiser,
    make_ema,
    make_pipeline,
    make_scheduler,
    make_text_encoder,
)
from neuroimagen.run.collectives import decided_by_main, gather_rows, on_every_rank
from neuroimagen.run.directory import open_run
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.studies.captions import label_caption, read_captions
from neuroimagen.studies.classes import BY_WNID


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


def train_autoencoder(config: LatentDiffusionConfig, run: Run, pixels: torch.Tensor, paths: list[Path]) -> int:
    if config.accumulate > 1:
        raise ValueError("part=autoencoder measures its latents over the whole batch: use accumulate=1, more processes")
    vae = on_every_rank(lambda: load_pipeline(config.init)).vae if config.init else None
    vae = vae or make_autoencoder(config.autoencoder_width, config.latent_channels)
    if not isinstance(vae, AutoencoderTiny):
        raise ValueError(f"part=autoencoder trains an AutoencoderTiny, not the {type(vae).__name__} of {config.init}")
    optimizer = torch.optim.AdamW(
        vae.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    vae_channels = vae.config.latent_channels
    model, optimizer = run.prepare(NoisyAutoencoder(vae).to(memory_format=torch.channels_last), optimizer)
    run.resume()
    order = EpochOrder(len(pixels), config.seed)
    while run.going():
        mine = my_pictures(order, run)
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        noise = config.latent_noise * run.randn(len(mine), vae_channels, *(config.image_size // 8,) * 2)
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
    scenes = labels = [label_caption(name) for name in class_names(paths)]
    if config.captions:
        captions = decided_by_main(lambda: read_captions(config.captions))
        if missing := [p for p in paths if p.stem not in captions]:
            raise ValueError(
                f"{config.captions} has no caption for {missing[0].name} ({len(missing)} pictures lack one)"
            )
        scenes = [captions[p.stem] for p in paths]
    if config.init:
        pipe = on_every_rank(lambda: load_pipeline(config.init))
        tokenizer, text_encoder, unet, scheduler = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.scheduler
    elif not config.autoencoder:
        raise ValueError("part=denoiser needs autoencoder=RUN (a run of part=autoencoder) or init=PIPELINE")
    else:
        tokenizer = learn_tokenizer(scenes + labels, config.n_tokens)
        text_encoder = make_text_encoder(tokenizer, config.n_tokens, config.text_width)
        unet = make_denoiser(
            config.latent_channels, config.image_size // 8, tuple(config.unet_channels), config.text_width
        )
        scheduler = make_scheduler()
    if config.autoencoder:
        vae = on_every_rank(
            lambda: load_trained(AutoencoderTiny, open_run(config.autoencoder, "autoencoder") / "model")
        )
    else:
        vae = pipe.vae
    vae = vae.to(run.device).eval()
    with torch.no_grad():
        latents = torch.cat([encode(vae, to_unit(chunk).to(run.device)).cpu() for chunk in pixels.split(64)])
    if config.autoencoder:  # a new latent space; a pipeline's own brings its scale
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    latents *= vae.config.scaling_factor

    length = tokenizer.model_max_length
    if length > 10**6:  # transformers' word for: it is not said
        raise ValueError(f"init={config.init}: its tokenizer_config.json says no model_max_length; copy it anew")

    def tokens(texts: list[str]) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids

    choices = torch.stack([tokens(scenes), tokens(labels), tokens([""] * len(paths))])  # (3, n, L)
    model = TextAndUNet(text_encoder, unet).train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    ema = make_ema(model, config.ema_decay)
    ema.to(run.device)
    run.register(ema=ema)
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
    trained = run.unwrap(model)
    return run.finish(pipeline=make_pipeline(vae, trained.text_encoder, tokenizer, trained.unet, scheduler))


def my_pictures(order: EpochOrder, run: Run) -> torch.Tensor:
    """This rank's slice of the step's global batch, as indices."""
    start = (run.step * run.world + run.rank) * run.batch_size
    return torch.from_numpy(order(start, start + run.batch_size))


def check_pictures(config: LatentDiffusionConfig) -> None:
    """ValueError unless the pictures fill a batch and, for part=denoiser, their captions tell them apart."""
    paths = list_pictures(config.images)
    if len(paths) < config.global_batch_size:
        raise ValueError(
            f"images={config.images} holds {len(paths)} pictures, fewer than a batch (global_batch_size="
            f"{config.global_batch_size}): add some, or lower it"
        )
    if config.part == "autoencoder":
        return
    if config.captions and (twins := [name for name, n in Counter(path.stem for path in paths).items() if n > 1]):
        raise ValueError(f"images={config.images} holds several {twins[0]}, which captions={config.captions} would mix")
    if config.captions and not config.label_captions:
        return
    top = {Path(config.images)} if len(set(class_names(paths))) > 1 else {path.parent for path in paths}
    if loose := [path for path in paths if path.parent in top and path.parent.name not in BY_WNID]:
        raise ValueError(
            f"images={config.images}: {len(loose)} pictures, such as {loose[0]}, lie in no class folder, so that each "
            f"would be captioned {label_caption(loose[0].parent.name)!r}: sort them into a folder for each class, or "
            "give captions=FILE label_captions=0"
        )


def main(config: LatentDiffusionConfig) -> int:
    check_pictures(config)
    run = Run(config)
    if run.done:
        return 0
    paths = decided_by_main(lambda: list_pictures(config.images))
    pixels = on_every_rank(lambda: load_pictures(paths, config.image_size, progress=run.is_main))
    if config.part == "autoencoder":
        return train_autoencoder(config, run, pixels, paths)
    return train_denoiser(config, run, pixels, paths)


if __name__ == "__main__":
    run_trainer(main, LatentDiffusionConfig)
