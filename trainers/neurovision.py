"""Baseline: NeuroVision (Khare et al. 2022), a classifier of EEG, then a conditional progressive GAN for its classes.

Exports <run_dir>/model, a NeuroVision; its generator is averaged over steps (EMA).
"""

import dataclasses
import os
from typing import Literal, cast

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from neuroimagen.baselines import losses
from neuroimagen.baselines.neurovision import GROUP, Discriminator, NeuroVision, at_level, growth
from neuroimagen.baselines.validation import validate
from neuroimagen.batches.augment import augment_eeg
from neuroimagen.batches.stream import encoder_options, train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.encoders import EncoderConfig, start_from
from neuroimagen.pixel.saliency import doublings
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.shards.format import read_manifest


@dataclasses.dataclass
class NeuroVisionConfig(EncoderConfig, EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    n_features: int = option(128, "length of the backbone's output")
    classifier_steps: int = option(500, "first so many steps train the EEG classifier alone", at_least=1)
    classifier_learning_rate: float = option(1e-3, "of its Adam; falls to 0 along half a cosine")
    phase_steps: int = option(50, "steps of each level's fade-in, and of its training before the next", at_least=1)
    image_size: int = option(128, "side of the picture in px: a power of two of at least 16")
    z_dim: int = option(512, "length of the noise z")
    width: int = option(128, "channels at full size; doubles with every halving")
    max_width: int = option(512, "most channels of a level")
    class_weight: float = option(1.0, "of the class losses (AC-GAN) beside the adversarial ones")
    penalty_weight: float = option(10.0, "λ of the gradient penalty")
    drift_weight: float = option(1e-3, "of the mean square of real pictures' scores")
    learning_rate: float = option(1e-3, "of G's Adam")
    discriminator_learning_rate: float = option(1e-3, "of D's Adam")
    beta1: float = option(0.0, "of both Adams")
    beta2: float = option(0.99, "of both Adams")
    schedule: Literal["constant", "cosine"] = option("constant", "of both learning rates")
    ema_decay: float = option(0.999, "of the average of G's weights that is exported")

    def check(self) -> None:
        super().check()
        if self.accumulate > 1 or self.compile:
            raise ValueError("NeuroVision is not trained in parts or compiled: use accumulate=1, compile=false")
        world = int(os.environ.get("WORLD_SIZE", 1))
        if self.global_batch_size % (world * GROUP):
            raise ValueError(
                f"global_batch_size={self.global_batch_size} on {world} processes: each needs a multiple of {GROUP}, "
                "the trials that share a minibatch standard deviation"
            )
        growing = (2 * doublings(self.image_size) + 1) * self.phase_steps
        if self.classifier_steps + growing > self.max_steps:
            raise ValueError(
                f"max_steps={self.max_steps} is too short: classifier_steps={self.classifier_steps}, and growing to "
                f"{self.image_size} px takes {growing // self.phase_steps} phases of phase_steps={self.phase_steps}"
            )


def main(config: NeuroVisionConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    names = {c["label"]: c["name"] for c in manifest.classes}
    n_classes, levels = 1 + max(names), 1 + doublings(config.image_size)
    run = Run(config)
    if run.done:
        return 0
    pictures = {"image_size": config.image_size, "width": config.width, "max_width": config.max_width}
    model = NeuroVision(
        n_chans=manifest.n_chans,
        n_times=manifest.n_times,
        n_classes=n_classes,
        encoder=config.encoder,
        n_features=config.n_features,
        dropout=config.dropout,
        encoder_width=config.encoder_width,
        z_dim=config.z_dim,
        **pictures,
        **encoder_options(config, manifest),
    ).to(run.device)
    start_from(model.classifier.encoder, config.pretrained)
    discriminator = Discriminator(n_classes=n_classes, **pictures)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    averaged = cast(NeuroVision, ema.module)
    run.accelerator.register_for_checkpointing(ema)

    betas = (config.beta1, config.beta2)
    optimizer_c = torch.optim.Adam(model.classifier.parameters(), config.classifier_learning_rate, fused=True)
    optimizer_g = torch.optim.Adam(model.generator.parameters(), config.learning_rate, betas, fused=True)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, betas, fused=True)
    classifier, generator, optimizer_c, optimizer_g = run.prepare(
        model.classifier, model.generator, optimizer_c, optimizer_g
    )
    discriminator, optimizer_d = run.prepare(discriminator, optimizer_d)
    judge = run.unwrap(discriminator)  # D where its weights get no gradient, or only a second one
    run.resume()
    batches = train_batches(config.shards, **run.position, image_size=config.image_size)
    while run.going():
        batch = run.next(batches)
        keys, label = batch["key"], batch["label"]
        if run.step < config.classifier_steps:
            classifier.train()
            lr = config.classifier_learning_rate * warmup_cosine(run.step, config.classifier_steps)
            set_learning_rate(optimizer_c, lr)
            _, scores = classifier(augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand), batch["subject"])
            loss_c = F.cross_entropy(scores, label)
            run.backward(loss_c, keys, classification=loss_c)
            run.update(optimizer_c, classifier, name="grad_norm_c")
            run.note(lr=lr)
        else:  # the GAN learns from labels; the classifier's guesses take their place when it draws
            age = run.step - config.classifier_steps
            level, alpha = growth(age, config.phase_steps, levels)
            if age and growth(age - 1, config.phase_steps, levels)[0] < level:
                optimizer_g.state.clear()  # Adam's averages begin anew with the new layers, as in Karras et al.'s code
                optimizer_d.state.clear()
            steps = config.max_steps - config.classifier_steps
            fade = warmup_cosine(age, steps) if config.schedule == "cosine" else 1.0
            lr = config.learning_rate * fade
            set_learning_rate(optimizer_g, lr)
            set_learning_rate(optimizer_d, config.discriminator_learning_rate * fade)
            y, classes = at_level(batch["image"], level, alpha), F.one_hot(label, n_classes)
            drawn = generator(run.randn(len(label), config.z_dim), classes, level, alpha)

            # D: WGAN-GP (Gulrajani et al. 2017, Eq. 3), the drift term (Karras et al. 2018, A.1), AC-GAN
            scores, guesses = discriminator(torch.cat([y, drawn.detach()]), level, alpha)
            real, fake = scores.chunk(2)
            u = run.rand(len(label), 1, 1, 1)
            penalty = losses.gradient_penalty(
                lambda x, level=level, alpha=alpha: judge(x, level, alpha)[0], y, drawn.detach(), u
            )
            of_class = F.cross_entropy(guesses, torch.cat([label, label])) * 2  # of real ones plus of drawn ones
            loss_d = fake.mean() - real.mean() + config.penalty_weight * penalty
            loss_d = loss_d + config.drift_weight * real.square().mean() + config.class_weight * of_class
            run.backward(loss_d, keys, loss_d=loss_d, penalty=penalty, distance=real.mean() - fake.mean())
            run.update(optimizer_d, discriminator, name="grad_norm_d")

            # G
            judge.requires_grad_(False)
            score, guess = judge(drawn, level, alpha)
            of_class = F.cross_entropy(guess, label)
            loss_g = config.class_weight * of_class - score.mean()
            run.backward(loss_g, keys, loss_g=loss_g, class_g=of_class)
            run.update(optimizer_g, generator, name="grad_norm_g")
            judge.requires_grad_(True)
            ema.update_parameters(model)
            run.note(lr=lr, level=level, alpha=alpha)
        run.advance()
        if run.validation_due():
            draw = averaged.eval().draw if run.step > config.classifier_steps else None
            run.log(validate(run, config, model.classifier, draw, names), prefix="val/")
    return run.finish(model=averaged)


if __name__ == "__main__":
    run_trainer(main, NeuroVisionConfig)
