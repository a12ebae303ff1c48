"""Baseline: Brain2Image (Kavasidis et al. 2017), EEG features by classification, then pictures of them by a conditional
GAN (variant=gan) or a variational autoencoder (variant=vae).

Exports <run_dir>/model, a Brain2Image; the part that draws is averaged over steps (EMA).
"""

import dataclasses
from typing import Literal, cast

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from neuroimagen.baselines import losses
from neuroimagen.baselines.brain2image import Brain2Image, Discriminator
from neuroimagen.baselines.validation import class_means, validate
from neuroimagen.batches.augment import augment_eeg
from neuroimagen.batches.stream import encoder_options, train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.encoders import EncoderConfig, start_from
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.shards.format import read_manifest


@dataclasses.dataclass
class Brain2ImageConfig(EncoderConfig, EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    variant: Literal["gan", "vae"] = option("gan", "what draws: a conditional GAN, or a variational autoencoder")
    n_features: int = option(128, "length of the EEG features")
    classifier_steps: int = option(500, "first so many steps train the EEG features alone, by classification")
    classifier_learning_rate: float = option(1e-3, "of their Adam; falls to 0 along half a cosine")
    image_size: int = option(64, "side of the picture in px: a power of two of at least 16")
    z_dim: int = option(100, "length of the noise z; of the VAE's latent vector")
    width: int = option(64, "channels at half size; doubles with every halving, at most 8 times")
    norm: Literal["batch", "group"] = option("batch", "normalisation; batch needs GPUs on several processes")
    kl_weight: float = option(1.0, "of the VAE's second term; 1: the evidence lower bound")
    learning_rate: float = option(2e-4, "of the Adam of what draws")
    discriminator_learning_rate: float = option(2e-4, "of the discriminator's Adam")
    beta1: float = option(0.5, "of both Adams")
    beta2: float = option(0.999, "of both Adams")
    schedule: Literal["constant", "cosine"] = option("constant", "of both learning rates")
    ema_decay: float = option(0.999, "of the average of weights that is exported")

    def check(self) -> None:
        super().check()
        if self.accumulate > 1:
            raise ValueError("Brain2Image is not trained in parts: use accumulate=1, more processes")
        if not 0 < self.classifier_steps < self.max_steps:
            raise ValueError(
                f"classifier_steps={self.classifier_steps} must be at least 1 and leave some of max_steps="
                f"{self.max_steps} to learn to draw"
            )


def main(config: Brain2ImageConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    names = {c["label"]: c["name"] for c in manifest.classes}
    n_classes = 1 + max(names)
    run = Run(config)
    if run.done:
        return 0
    pictures = {"image_size": config.image_size, "width": config.width, "norm": config.norm}
    model = Brain2Image(
        n_chans=manifest.n_chans,
        n_times=manifest.n_times,
        n_classes=n_classes,
        variant=config.variant,
        encoder=config.encoder,
        n_features=config.n_features,
        dropout=config.dropout,
        encoder_width=config.encoder_width,
        z_dim=config.z_dim,
        **pictures,
        **encoder_options(config, manifest),
    ).to(run.device)
    start_from(model.classifier.encoder, config.pretrained)
    discriminator = Discriminator(n_classes=n_classes, n_features=config.n_features, **pictures)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    averaged = cast(Brain2Image, ema.module)
    run.accelerator.register_for_checkpointing(ema)

    betas = (config.beta1, config.beta2)
    optimizer_c = torch.optim.Adam(model.classifier.parameters(), config.classifier_learning_rate, fused=True)
    optimizer_g = torch.optim.Adam(model.generator.parameters(), config.learning_rate, betas, fused=True)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, betas, fused=True)
    classifier, generator, optimizer_c, optimizer_g = run.prepare(
        model.classifier, model.generator, optimizer_c, optimizer_g
    )
    discriminator, optimizer_d = run.prepare(discriminator, optimizer_d)
    judge = run.unwrap(discriminator)  # D as G sees it: its weights get no gradient
    run.resume()
    batches = train_batches(config.shards, **run.position, image_size=config.image_size)
    while run.going():
        batch = run.next(batches)
        keys, label = batch["key"], batch["label"]
        if run.step < config.classifier_steps:  # EEG features that tell the class
            classifier.train()
            lr = config.classifier_learning_rate * warmup_cosine(run.step, config.classifier_steps)
            set_learning_rate(optimizer_c, lr)
            _, scores = classifier(augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand), batch["subject"])
            loss_c = F.cross_entropy(scores, label)
            run.backward(loss_c, keys, classification=loss_c)
            run.update(optimizer_c, classifier, name="grad_norm_c")
        else:  # then pictures of these features
            if run.step == config.classifier_steps and config.variant == "gan":
                means = class_means(run, model.classifier, config.shards, n_classes)
                judge.class_features.copy_(means[0])
                judge.known.copy_(means[1])
            done = run.step - config.classifier_steps, config.max_steps - config.classifier_steps
            fade = warmup_cosine(*done) if config.schedule == "cosine" else 1.0
            lr = config.learning_rate * fade
            set_learning_rate(optimizer_g, lr)
            set_learning_rate(optimizer_d, config.discriminator_learning_rate * fade)
            y, z = batch["image"], run.randn(len(label), config.z_dim)
            with torch.no_grad():
                f = model.classifier.eval()(batch["eeg"], batch["subject"])[0]
            if config.variant == "vae":
                drawn, mean, log_variance = generator(z, f)
                loss_g, error, kl = losses.negative_elbo(drawn, y, mean, log_variance, config.kl_weight)
                run.backward(loss_g, keys, loss_g=loss_g, error=error, kl=kl)
            else:
                drawn = generator(z, f)
                # D: the wrong EEG is what represents another class, drawn at random
                other = judge.known & ~F.one_hot(label, n_classes).bool()
                wrong = judge.class_features[(run.rand(len(label), n_classes) * other).argmax(1)]
                right, mismatched = discriminator(y, torch.cat([f, wrong])).chunk(2)
                loss_d = losses.matching_d(right, mismatched, discriminator(drawn.detach(), f))
                run.backward(loss_d, keys, loss_d=loss_d)
                run.update(optimizer_d, discriminator, name="grad_norm_d")
                # G
                judge.requires_grad_(False)
                loss_g = losses.matching_g(judge(drawn, f))
                run.backward(loss_g, keys, loss_g=loss_g)
                judge.requires_grad_(True)
            run.update(optimizer_g, generator, name="grad_norm_g")
            ema.update_parameters(model)
        run.advance(lr=lr)
        if run.validation_due():
            draw = averaged.eval().draw if run.step > config.classifier_steps else None
            run.log(validate(run, config, model.classifier, draw, names), prefix="val/")
    return run.finish(model=averaged)


if __name__ == "__main__":
    run_trainer(main, Brain2ImageConfig)
