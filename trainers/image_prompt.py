"""An image-prompt adapter for a latent diffusion model: it then draws from the features of a picture, with a caption or
without, as rows E of reconstruct.py do.

The diffusion model is frozen; what is trained, an IP-Adapter of diffusers' own classes, is in
neuroimagen/reconstruction/image_prompt.py. Exports <run_dir>/model, which reconstruct.py takes as `image_prompt=`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroimagen.batches.order import EpochOrder
from neuroimagen.batches.pictures import captions_of, check_pictures, load_pictures, my_pictures
from neuroimagen.config import TrainConfig, option, path_option, run_trainer
from neuroimagen.features.towers import load_tower
from neuroimagen.pictures import list_pictures, see
from neuroimagen.reconstruction import small_diffusion as small
from neuroimagen.reconstruction.image_prompt import Adapter, standardised
from neuroimagen.reconstruction.pipelines import is_lcm, is_xl, load_pipeline
from neuroimagen.run.collectives import decided_by_main, on_every_rank, spread
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine


@dataclass
class ImagePromptConfig(TrainConfig):
    images: str = path_option(help="folder of pictures, all below it are used; a captions file names them by file stem")
    captions: str = path_option("", "captions file (JSON lines of image, caption); empty: label captions only")
    val_images: str = path_option("", "folder of other pictures, to validate on; empty: none")
    pipeline: str = path_option(help="latent diffusion model, Stable Diffusion 1.x or 2.x: hub id or directory")
    model: str = path_option("embedded", "network of the features, with layer and pool as in neuroimagen features")
    layer: str = option("last", "hidden state of that network")
    pool: str = option("", "how its tokens become one vector")
    label_captions: float = option(0.5, "share of captions replaced by 'An image of <class>' (class = folder)")
    caption_dropout: float = option(0.5, "share of captions left empty: then the picture alone tells what is drawn")
    image_dropout: float = option(0.1, "share of features left out, for classifier-free guidance")
    gradient_checkpointing: bool = option(False, "compute activations twice to hold fewer of them")
    learning_rate: float = option(1e-3, "peak of AdamW; falls to 0 along half a cosine")
    warmup: int = option(50, "steps of linear warm-up before the cosine")
    weight_decay: float = option(1e-2, "of AdamW")
    ema_decay: float = option(0.999, "decay of the averaged adapter that is exported")

    def check(self) -> None:
        super().check()
        check_pictures(self.images, self.global_batch_size, self.captions, self.label_captions)


def read(paths: list[Path], tower: Any, vae: Any, config: Any, size: int) -> tuple[Tensor, Tensor]:
    """Of pictures the latents, scaled, on the CPU, and the features (n, D). Collective: every rank."""

    def features(some: list[Path]) -> Tensor:
        return tower.encode(torch.stack([tower.pixels(see(path.read_bytes()).image.convert("RGB")) for path in some]))

    found = spread(features, [paths[i : i + 32] for i in range(0, len(paths), 32)])
    pixels = on_every_rank(lambda: load_pictures(paths, size))
    return small.encode_all(vae, pixels, new_scale=False), torch.cat(found)


@torch.no_grad()
def validate(adapter: Any, scheduler: Any, latents: Tensor, told: Tensor, nothing: Tensor, of_noise: bool) -> dict:
    """The mean squared error without a caption: told the picture's features, and told nothing; the same noise always.

    latents (n, C, h, w); told (n, D), standardised; nothing (1, L, D_s): the empty caption
    """
    draw = torch.Generator().manual_seed(0)
    sums = torch.zeros(2, dtype=torch.float64)
    for clean, seen in zip(latents.split(64), told.split(64), strict=True):
        noise = torch.randn(clean.shape, generator=draw)
        steps = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=draw)
        target = noise if of_noise else scheduler.get_velocity(clean, noise, steps)
        noisy, caption = scheduler.add_noise(clean, noise, steps), nothing.expand(len(clean), -1, -1)
        for i, embedding in enumerate((seen, torch.zeros_like(seen))):
            found = adapter(*(x.to(nothing.device) for x in (noisy, steps, caption, embedding)))
            sums[i] += F.mse_loss(found.float().cpu(), target, reduction="sum") / target[0].numel()
    with_picture, without = (sums / len(latents)).tolist()
    return {"loss": with_picture, "loss_without": without}


def main(config: ImagePromptConfig) -> int:
    run = Run(config)
    if run.done:
        return 0
    if run.zero_stage == 3:
        raise ValueError("image_prompt averages its weights over steps, but ZeRO-3 cuts them up: use launch/zero2.yaml")
    pipe = on_every_rank(lambda: load_pipeline(config.pipeline)).to(run.device)
    if is_xl(pipe) or is_lcm(pipe):
        raise ValueError(f"pipeline={config.pipeline} is no Stable Diffusion 1.x or 2.x: use a published IP-Adapter")
    unet, scheduler, text_encoder = pipe.unet, pipe.scheduler, pipe.text_encoder.requires_grad_(False)
    size, of_noise = unet.config.sample_size * pipe.vae_scale_factor, scheduler.config.prediction_type == "epsilon"
    how = config.layer, config.pool, 0, torch.float32, run.device
    tower = on_every_rank(lambda: load_tower(config.model, "image", *how))
    paths = decided_by_main(lambda: list_pictures(config.images))
    latents, features = read(paths, tower, pipe.vae, config, size)
    scenes, labels = decided_by_main(lambda: captions_of(paths, config.captions))
    choices = small.tokenize(pipe.tokenizer, [scenes, labels, [""] * len(paths)], f"pipeline={config.pipeline}")
    adapter = Adapter(pipe, tower.about | {"views": ["original"]}, features).to(run.device).train()
    told = standardised(features, adapter)
    if held_out := decided_by_main(lambda: list_pictures(config.val_images) if config.val_images else []):
        val_latents, val_features = read(held_out, tower, pipe.vae, config, size)
        val = val_latents, standardised(val_features, adapter)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        adapter.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    ema = small.make_ema(adapter, config.ema_decay, run.device)
    run.accelerator.register_for_checkpointing(ema)
    model, optimizer = run.prepare(adapter, optimizer)
    run.resume()
    order, steps = EpochOrder(len(paths), config.seed), scheduler.config.num_train_timesteps
    while run.going():
        mine = my_pictures(order, run)
        clean, seen = latents[mine].to(run.device), told[mine].to(run.device)
        noise, uniform = run.randn(*clean.shape), run.rand(len(clean), 4)
        timesteps = (uniform[:, 0] * steps).long()
        kind = torch.where(uniform[:, 1] < config.label_captions, 1, 0)
        kind = torch.where(uniform[:, 2] < config.caption_dropout, 2, kind).cpu()
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        with torch.no_grad():
            captions = text_encoder(choices[kind, mine].to(run.device))[0]
        batch = {
            "name": [paths[i].stem for i in mine],
            "noisy": scheduler.add_noise(clean, noise, timesteps),
            "timestep": timesteps,
            "caption": captions,
            "seen": torch.where(uniform[:, 3:] < config.image_dropout, 0, seen),
            "target": noise if of_noise else scheduler.get_velocity(clean, noise, timesteps),
        }
        for part in run.parts(batch):
            with run.accelerator.autocast():
                prediction = model(part["noisy"], part["timestep"], part["caption"], part["seen"])
            loss = F.mse_loss(prediction.float(), part["target"])
            run.backward(loss, part["name"], loss=loss)
        run.update(optimizer, model, 1.0)
        ema.step(model.parameters())
        run.advance(lr=lr)
        if held_out and run.validation_due():
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            nothing = text_encoder(choices[2, :1].to(run.device))[0].detach()
            run.log(validate(run.unwrap(model), scheduler, *val, nothing, of_noise), prefix="val/")
            ema.restore(model.parameters())
    ema.copy_to(model.parameters())
    return run.finish(model=model)


if __name__ == "__main__":
    run_trainer(main, ImagePromptConfig)
