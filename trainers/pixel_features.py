"""Stage 1a: f_θ, EEG features in which trials of one class lie together, by the triplet loss (Eq. 1).

Exports <run_dir>/model, a FeatureExtractor.
"""

import dataclasses
from typing import Literal

import torch
from torch import nn

from neuroimagen.config import TrainConfig, option, run_trainer
from neuroimagen.data.shards import read_manifest
from neuroimagen.data.stream import eval_batches, train_batches
from neuroimagen.pixel import losses
from neuroimagen.pixel.features import FeatureExtractor, describe_features
from neuroimagen.run import Run, set_learning_rate, warmup_cosine


@dataclasses.dataclass
class PixelFeaturesConfig(TrainConfig):
    shards: str = option(help="shard directory made by neuroimagen shards")
    encoder: Literal["lstm", "conv"] = option("lstm", "EEG backbone: neuroimagen/encoders.py")
    encoder_width: int | None = option(None, "LSTM units (none: 128) or convolution channels (none: 64)")
    n_features: int = option(128, "length of f_θ(x)")
    normalise: bool = option(True, "scale features to unit length")
    dropout: float = option(0.0, "dropout in the backbone")
    margin: float = option(1.0, "β of Eq. 1")
    mining: Literal["all", "semi-hard", "hard"] = option("semi-hard", "which triplets of the global batch count")
    learning_rate: float = option(3e-4, "of AdamW; falls to 0 along half a cosine")
    warmup: int = option(0, "steps of linear warm-up")
    weight_decay: float = option(0.0, "of AdamW")
    clip: float = option(1.0, "largest gradient norm")


def extract(run: Run, model: nn.Module, config: PixelFeaturesConfig, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) and labels (n,) of a whole split, the same on every rank. Collective: every rank."""
    features = [torch.zeros(0, config.n_features, device=run.device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=run.device)]
    for batch in eval_batches(config.shards, split, batch_size=run.batch_size, rank=run.rank, world=run.world):
        batch = run.to_device(batch)
        features.append(model(batch["eeg"]).float())
        labels.append(batch["label"])
    # Ranks differ by a trial: pad, gather, drop what was padded.
    padded = run.accelerator.pad_across_processes([torch.cat(features), torch.cat(labels)], pad_index=-1)
    everyone, their_labels = run.gather(padded[0]), run.gather(padded[1])
    return everyone[their_labels >= 0], their_labels[their_labels >= 0]


@torch.no_grad()
def validate(run: Run, model: nn.Module, config: PixelFeaturesConfig) -> dict[str, float]:
    """How well the features tell the classes of val trials apart, given the train split. Collective: every rank."""
    model.eval()
    train, val = extract(run, model, config, "train"), extract(run, model, config, "val")
    model.train()
    return describe_features(*train, *val)


def main(config: PixelFeaturesConfig) -> int:
    manifest = read_manifest(config.shards)
    run = Run(config)
    model = FeatureExtractor(
        manifest.n_chans,
        manifest.n_times,
        config.encoder,
        config.n_features,
        config.dropout,
        config.normalise,
        config.encoder_width,
    )
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    batches = train_batches(
        config.shards,
        batch_size=run.batch_size,
        rank=run.rank,
        world=run.world,
        step=run.step,
        seed=config.seed,
        workers=config.workers,
    )
    while run.going():
        batch = run.to_device(next(batches))
        set_learning_rate(optimizer, config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup))
        features = model(batch["eeg"])
        loss, active = losses.triplet(features, batch["label"], config.margin, config.mining)  # Eq. 1
        run.backward(loss)
        run.clip(model, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        run.advance(loss=loss, active=active)
        if run.validation_due():
            run.log(validate(run, run.unwrap(model), config), prefix="val/")
    return run.finish(model=model)


if __name__ == "__main__":
    run_trainer(main, PixelFeaturesConfig)
