"""EEG to the image (and text) features of the picture seen, by contrast with all pictures of the global batch.

The targets are files made by `neuroimagen features`; docs/contrastive.md has the formulas. Exports <run_dir>/model, a
ContrastiveEncoder.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from neuroimagen.batches.augment import augment_eeg, averaged
from neuroimagen.batches.stream import encoder_options, train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.contrastive import losses
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.contrastive.targets import Targets, read_targets
from neuroimagen.contrastive.validation import validate
from neuroimagen.encoders import EncoderConfig, start_from
from neuroimagen.run.collectives import gather_rows
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.shards.format import read_manifest


@dataclasses.dataclass
class ContrastiveConfig(EncoderConfig, EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    features: list[str] = path_option(help="image features files made by neuroimagen features: [a.safetensors, ...]")
    weights: list[float] = option([], "of the contrast with each of these files; none given: 1 each")
    text_features: str = path_option("", "a file of text features, of captions of the same pictures")
    text_weight: float = option(0.0, "of the contrast with text_features", at_least=0)
    mse_weight: float = option(0.0, "of the mean squared error of the offsets from each file of features", at_least=0)
    loss: Literal["infonce", "siglip"] = option("infonce", "the contrast")
    positives: Literal["picture", "class", "trial"] = option("picture", "trials of one are not each other's negatives")
    standardise: Literal["none", "centre", "each"] = option("centre", "how offsets are measured; cosines are of these")
    loss_chunk: int = option(512, "trials of a rank compared with all others at once, for memory alone", at_least=1)
    average_k: int = option(1, "trials of one picture and subject whose mean EEG is a train trial", at_least=1)
    held_out_classes: int = option(
        0, "so many, drawn by seed, are not trained on, and val is of them alone", at_least=0
    )
    n_features: int = option(512, "length of the backbone's output")
    head: Literal["linear", "none"] = option(
        "linear", "after the backbone; none: it gives the embedding, n_features wide"
    )
    learning_rate: float = option(3e-4, "of AdamW; falls to 0 along half a cosine")
    warmup: int = option(0, "steps of linear warm-up")
    weight_decay: float = option(1e-4, "of AdamW")
    clip: float = option(1.0, "largest gradient norm; 0: no clipping")

    def check(self) -> None:
        n, weights = len(self.features), self.weights
        if not n or len(weights) not in (0, n):
            raise ValueError(
                f"{n} features files with {len(weights)} weights: give at least one file, and each a weight"
            )
        names = Counter(Path(file).stem for file in (*self.features, self.text_features))
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(f"two features files are called {twice[0]}: leave one out, or rename it if it is another")
        if bool(self.text_features) != (self.text_weight > 0):
            raise ValueError("text_features and a text_weight above 0 belong together: give both, or neither")
        if not all(weight > 0 or (weight == 0 and self.mse_weight) for weight in weights):
            raise ValueError(
                f"weights={weights} must be above 0 (beside an mse_weight also 0): leave a file out instead"
            )
        if self.max_bad_samples:
            raise ValueError("max_bad_samples is not offered here, as the picture of every trial is looked up first")


def objective(
    config: ContrastiveConfig, widths: dict[str, int], outputs: Any, truth: torch.Tensor, own: slice, ids: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and its terms for the log. outputs: the model's for this rank's trials; truth (B, ΣD): offsets of the
    global batch's pictures, of this rank's in `own`; ids (B,): equal for positives. Collective: every rank."""
    offsets, scale, bias = outputs
    loss, terms = torch.zeros((), device=ids.device), {}
    weights = [*(config.weights or [1.0] * len(config.features)), config.text_weight]
    parts = zip(widths, offsets.split([*widths.values()], 1), truth.split([*widths.values()], 1), strict=True)
    for i, (name, z, v) in enumerate(parts):
        unit = F.normalize(z, dim=1), F.normalize(v, dim=1), ids
        if config.loss == "infonce":
            contrast = losses.info_nce(*unit, scale[i], config.loss_chunk)
        else:
            contrast = losses.siglip(*unit, scale[i], bias[i], config.loss_chunk)
        loss, terms[f"contrast_{name}"] = loss + weights[i] * contrast, contrast
        if config.mse_weight and i < len(config.features):
            terms[f"mse_{name}"] = F.mse_loss(z, v[own])
            loss = loss + config.mse_weight * terms[f"mse_{name}"]
    return loss, terms


def main(config: ContrastiveConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    config.check()
    files = read_targets(config.features, config.text_features)
    widths = {name: file.width for name, file in files.items()}
    if config.head == "none" and [config.n_features] != [*widths.values()]:
        raise ValueError(f"head=none needs one features file and n_features={[*widths.values()][0]}, its width")
    run = Run(config)
    if run.done:
        return 0
    targets = Targets(files, config.shards, config.held_out_classes, config.seed)
    model = ContrastiveEncoder(
        n_chans=manifest.n_chans,
        n_times=manifest.n_times,
        targets={name: file.about | {"width": file.width} for name, file in files.items()},
        encoder=config.encoder,
        n_features=config.n_features,
        dropout=config.dropout,
        encoder_width=config.encoder_width,
        loss=config.loss,
        standardise=config.standardise,
        head=config.head,
        **encoder_options(config, manifest),
    )
    start_from(model.encoder, config.pretrained)
    model.set_targets(targets.vectors, targets.shown)
    truth = model.offsets(targets.vectors).to(run.device)
    pictures = torch.from_numpy(targets.pictures).to(run.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    position = run.position | {"batch_size": config.average_k * run.batch_size}
    batches = train_batches(config.shards, **position, order=targets.order(config.seed, config.average_k))
    own = slice(run.rank * run.batch_size, (run.rank + 1) * run.batch_size)
    while run.going():
        batch = averaged(run.next(batches), config.average_k)
        batch["eeg"] = augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand)
        batch["picture"] = pictures[batch["index"]]
        ids = batch[{"trial": "index", "class": "label"}.get(config.positives, "picture")]
        seen, ids = gather_rows(torch.stack([batch["picture"], ids], 1)).T
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        outputs = model(batch["eeg"], batch["subject"], config.accumulate)
        loss, terms = objective(config, widths, outputs, truth[seen], own, ids)
        run.backward(loss * config.accumulate, batch["key"], loss=loss, **terms)  # the model itself goes part by part
        run.update(optimizer, model, config.clip)
        run.advance(lr=lr, **{f"scale_{name}": scale for name, scale in zip(widths, outputs[1], strict=True)})
        if run.validation_due():
            run.log(validate(run, run.unwrap(model), targets, config), prefix="val/")
    return run.finish(model=model)


if __name__ == "__main__":
    run_trainer(main, ContrastiveConfig)
