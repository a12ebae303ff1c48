"""Stage 1b: the saliency map M_p(x) = G(z, f_θ(x)), by a conditional GAN (Eqs. 2-6).

Exports <run_dir>/model/generator (G) and model/features (the f_θ that G was trained with), averaged over steps (EMA).
"""

import dataclasses
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from neuroimagen.batches.augment import augment_eeg
from neuroimagen.batches.stream import train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.errors import load_trained
from neuroimagen.pixel import losses
from neuroimagen.pixel.augment import N_RANDOM, augment, policy
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Discriminator, Generator
from neuroimagen.pixel.validation import compare_pictures
from neuroimagen.run.directory import open_run
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.shards.format import read_manifest


@dataclasses.dataclass
class PixelSaliencyConfig(EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    features: str = path_option(help="run directory of stage 1a")
    finetune_features: bool = option(False, "train f_θ along with G instead of freezing it (docs/paper.md)")
    image_size: int = option(128, "side of the map in px: a power of two of at least 16")
    z_dim: int = option(128, "length of the noise z")
    generator_width: int = option(32, "channels of G at full size; doubles with every halving, at most 8 times")
    discriminator_width: int = option(64, "channels of D at half size; doubles with every halving, at most 8 times")
    spectral: bool = option(True, "spectral normalisation in D")
    augment: str = option("color,translation", "A of Eqs. 2-3: any of color,translation,cutout; empty for none")
    adversarial_weight: float = option(1.0, "α1 of Eq. 6")
    mode_seeking_weight: float = option(1.0, "α2 of Eq. 6")
    ssim_weight: float = option(10.0, "α3 of Eq. 6")
    pixel_weight: float = option(0.0, "of the pixels' mean squared error, beside Eq. 6, which has none (docs/paper.md)")
    learning_rate: float = option(2e-4, "of G's Adam")
    discriminator_learning_rate: float = option(2e-4, "of D's Adam")
    features_learning_rate: float = option(2e-4, "of f_θ, if it is trained along")
    weight_decay: float = option(0.0, "of G and of f_θ, if it is trained along")
    beta1: float = option(0.5, "of both Adams")
    beta2: float = option(0.999, "of both Adams")
    schedule: Literal["constant", "cosine"] = option("constant", "of all learning rates")
    ema_decay: float = option(0.999, "of the average of G's weights that is exported")

    def check(self) -> None:
        super().check()
        for name in ("eeg_shift", "eeg_channel_dropout", "eeg_noise", "eeg_band_mask"):
            if getattr(self, name) and not self.finetune_features:
                raise ValueError(f"{name} varies what f_θ learns from: it needs finetune_features=true")
        policy(self.augment)


def validate(run: Run, networks: nn.ModuleDict, config: PixelSaliencyConfig) -> dict[str, float]:
    """How like the pictures seen the val maps are, see compare_pictures. Collective: every rank."""
    networks.eval()

    def draw(eeg: torch.Tensor, z: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        return networks["generator"](z, networks["features"](eeg, subject)).float().add(1).div(2)

    return compare_pictures(run, config, draw, "truth_and_map")


def stacked(draws: torch.Tensor) -> torch.Tensor:
    """(n, k, m) -> (k * n, m): the draws of the first copy of the batch, then of the second, ..."""
    return draws.transpose(0, 1).flatten(0, 1)


def main(config: PixelSaliencyConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    features = load_trained(FeatureExtractor, open_run(config.features, "features") / "model")
    run = Run(config)
    if run.done:
        return 0
    both = {"n_features": features.n_features, "image_size": config.image_size}
    generator = Generator(**both, z_dim=config.z_dim, width=config.generator_width)
    discriminator = Discriminator(**both, width=config.discriminator_width, spectral=config.spectral)
    networks = nn.ModuleDict({"generator": generator, "features": features}).to(run.device)
    ema = AveragedModel(networks, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    averaged = cast(nn.ModuleDict, ema.module)
    run.accelerator.register_for_checkpointing(ema)

    betas = (config.beta1, config.beta2)
    groups = [{"params": generator.parameters()}, {"params": features.parameters()}]  # G and f_θ, each at its own rate
    optimizer_g = torch.optim.AdamW(groups, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, betas, fused=True)
    generator, discriminator, optimizer_g, optimizer_d = run.prepare(generator, discriminator, optimizer_g, optimizer_d)
    if config.finetune_features:
        features = run.prepare(features.train())
    else:
        features.requires_grad_(False).eval()
    judge = run.unwrap(discriminator)  # D as G sees it: its weights get no gradient
    run.resume()
    batches = train_batches(config.shards, **run.position, image_size=config.image_size)

    def paint(part: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """f_θ(x) and the maps M_p(x), two of each trial."""
        f = features(part["eeg"], part["subject"])
        return f, generator(torch.cat([part["z1"], part["z2"]]), torch.cat([f, f]))

    while run.going():
        batch = run.next(batches)
        batch["eeg"] = augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand)
        n = len(batch["image"])
        fade = warmup_cosine(run.step, config.max_steps) if config.schedule == "cosine" else 1.0
        set_learning_rate(optimizer_g, config.learning_rate * fade, config.features_learning_rate * fade)
        set_learning_rate(optimizer_d, config.discriminator_learning_rate * fade)
        batch["z1"], batch["z2"] = run.randn(n, config.z_dim), run.randn(n, config.z_dim)
        batch["u_d"] = torch.stack([run.rand(n, N_RANDOM) for _ in range(3)], 1)
        batch["u_g"] = torch.stack([run.rand(n, N_RANDOM) for _ in range(2)], 1)

        # D, Eq. 2: one call for real and fake. Its spectral norms are updated once a call in training mode.
        for number, part in enumerate(run.parts(batch)):
            with torch.set_grad_enabled(config.accumulate == 1):
                f, maps = paint(part)
            y = part["image"]
            discriminator.train(number == 0)
            seen = augment(torch.cat([y, maps.detach()]), stacked(part["u_d"]), config.augment)
            scores = discriminator(seen, torch.cat([f, f, f]).detach())
            loss_d = losses.hinge_d(scores[: len(y)], scores[len(y) :])
            run.backward(loss_d, part["key"], loss_d=loss_d)
        run.update(optimizer_d, discriminator, name="grad_norm_d")

        # G, Eqs. 3-6
        judge.requires_grad_(False)
        if config.accumulate > 1:
            run.reseed()  # f_θ drops out what it dropped when D saw it
        for number, part in enumerate(run.parts(batch)):
            if config.accumulate > 1:
                f, maps = paint(part)
            y, size = part["image"], len(part["image"])
            discriminator.train(number == 0)
            scores = judge(augment(maps, stacked(part["u_g"]), config.augment), torch.cat([f, f]).detach())
            adversarial = losses.hinge_g(scores)  # Eq. 3
            modes = losses.mode_seeking(maps[:size], maps[size:], part["z1"], part["z2"])  # Eq. 4
            similarity = losses.ssim_loss(maps, torch.cat([y, y]))  # Eq. 5
            alphas = (config.adversarial_weight, config.mode_seeking_weight, config.ssim_weight)
            loss_g = losses.generator_total(adversarial, modes, similarity, alphas)  # Eq. 6
            loss_g = loss_g + config.pixel_weight * F.mse_loss(maps, torch.cat([y, y]))
            terms = {"loss_g": loss_g, "adversarial": adversarial, "mode_seeking": modes, "ssim": 1 - similarity}
            run.backward(loss_g, part["key"], **terms)
        run.update(optimizer_g, networks, name="grad_norm_g")
        discriminator.train()
        judge.requires_grad_(True)
        ema.update_parameters(networks)
        run.advance(lr=config.learning_rate * fade)
        if run.validation_due():
            run.log(validate(run, averaged, config), prefix="val/")
    return run.finish(generator=averaged["generator"], features=averaged["features"])


if __name__ == "__main__":
    run_trainer(main, PixelSaliencyConfig)
