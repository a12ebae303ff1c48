"""Stage 1a: f_θ, EEG features in which trials of one class lie together, by the triplet loss (Eq. 1).

Exports <run_dir>/model, a FeatureExtractor.
"""

import dataclasses
import sys
from typing import Literal

import torch
from torch import nn

from neuroimagen.batches.augment import augment_eeg
from neuroimagen.batches.stream import encoder_options, eval_batches, train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.encoders import EncoderConfig, start_from
from neuroimagen.pixel import losses
from neuroimagen.pixel.features import FeatureExtractor, knn_labels, linear_accuracy, retrieval_at_1
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.shards.format import read_manifest


@dataclasses.dataclass
class PixelFeaturesConfig(EncoderConfig, EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    n_features: int = option(128, "length of f_θ(x)")
    normalise: bool = option(True, "scale features to unit length")
    margin: float = option(1.0, "β of Eq. 1")
    mining: Literal["all", "semi-hard", "hard"] = option("semi-hard", "which triplets of the global batch count")
    classes_per_batch: int = option(0, "so many classes x trials_per_class in each global batch; 0: as they come")
    trials_per_class: int = option(0, "see classes_per_batch; their product is global_batch_size")
    learning_rate: float = option(3e-4, "of AdamW; falls to 0 along half a cosine")
    warmup: int = option(0, "steps of linear warm-up")
    weight_decay: float = option(0.0, "of AdamW")
    clip: float = option(1.0, "largest gradient norm")


def extract(run: Run, model: nn.Module, config: PixelFeaturesConfig, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, d) and labels (n,) of a whole split, the same on every rank. Collective: every rank."""
    features = [torch.zeros(0, config.n_features, device=run.device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=run.device)]
    for batch in eval_batches(config.shards, split, **run.share):
        batch = run.to_device(batch)
        features.append(model(batch["eeg"], batch["subject"]).float())
        labels.append(batch["label"])
    return run.gather(torch.cat(features)), run.gather(torch.cat(labels))


@torch.no_grad()
def validate(run: Run, model: nn.Module, config: PixelFeaturesConfig, names: dict[int, str]) -> dict[str, float]:
    """How well the features tell the classes of val trials apart, given the train split. Collective: every rank."""
    model.eval()
    train, val = extract(run, model, config, "train"), extract(run, model, config, "val")
    model.train()
    guesses = knn_labels(*train, val[0])
    run.class_table("val_knn", guesses, val[1], names)
    return {
        "retrieval_at_1": retrieval_at_1(*val),
        "knn_accuracy": (guesses == val[1]).double().mean().item(),
        "linear_accuracy": linear_accuracy(*train, *val),
    }


def main(config: PixelFeaturesConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    names = {c["label"]: c["name"] for c in manifest.classes}
    trials = manifest.splits["train"]["trials"]
    balance = (config.classes_per_batch, config.trials_per_class)
    few = losses.check_batch(config.global_batch_size, trials, len(names), *balance)
    run = Run(config)
    if run.done:
        return 0
    if few and run.is_main:
        print(few, file=sys.stderr, flush=True)
    model = FeatureExtractor(
        n_chans=manifest.n_chans,
        n_times=manifest.n_times,
        encoder=config.encoder,
        n_features=config.n_features,
        dropout=config.dropout,
        width=config.encoder_width,
        normalise=config.normalise,
        **encoder_options(config, manifest),
    )
    start_from(model.encoder, config.pretrained)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    batches = train_batches(
        config.shards,
        **run.position,
        classes_per_batch=config.classes_per_batch,
        trials_per_class=config.trials_per_class,
    )
    said = False
    while run.going():
        batch = run.next(batches)
        batch["eeg"] = augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand)
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        if config.accumulate == 1:
            features = model(batch["eeg"], batch["subject"])
        else:  # triplets need the whole batch: its features first, without a graph
            with torch.no_grad():
                features = torch.cat([model(part["eeg"], part["subject"]) for part in run.parts(batch)])
            features.requires_grad_()
        loss, active = losses.triplet(features, batch["label"], config.margin, config.mining)  # Eq. 1
        if config.accumulate == 1:
            run.backward(loss, batch["key"], loss=loss)
        else:  # then the gradient of each feature, and with it, part by part, that of the weights
            run.reseed()
            (batch["gradient"],) = torch.autograd.grad(loss, features)
            for part in run.parts(batch):
                inner = (model(part["eeg"], part["subject"]) * part["gradient"]).sum() * config.accumulate
                run.backward(inner, part["key"], loss=loss)
        anchors = losses.share_of_anchors(batch["label"])
        if not anchors and not said and run.is_main:
            said = True
            what = "no two trials of one class and one of another: it has no triplet, so Eq. 1 is 0 and teaches nothing"
            print(f"step {run.step}: the batch holds {what} (stats.jsonl: anchors)", file=sys.stderr, flush=True)
        run.update(optimizer, model, config.clip)
        run.advance(active=active, anchors=anchors, lr=lr)
        if run.validation_due():
            run.log(validate(run, run.unwrap(model), config, names), prefix="val/")
    return run.finish(model=model)


if __name__ == "__main__":
    run_trainer(main, PixelFeaturesConfig)
