"""Stage 2: EEG to the prompt embedding of the picture's caption, h_clip (Eq. 7).

The targets come from the reconstruction pipeline's own tokenizer and text encoder, so any diffusers text-to-image
directory sets their shape (77 x 768 for Stable Diffusion 1.x). Exports <run_dir>/model, a SampleEncoder.
"""

import dataclasses
from collections import Counter

import torch

from neuroimagen.batches.augment import augment_eeg
from neuroimagen.batches.stream import encoder_options, eval_batches, train_batches
from neuroimagen.config import EegAugmentConfig, TrainConfig, option, path_option, run_trainer
from neuroimagen.encoders import EncoderConfig, start_from
from neuroimagen.run.collectives import decided_by_main, on_every_rank
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine
from neuroimagen.sample.captions import embed_captions
from neuroimagen.sample.encoder import SampleEncoder, embedding_loss, nearest_caption
from neuroimagen.shards.format import Manifest, ShardError, ShardSplit, read_manifest
from neuroimagen.studies.captions import label_caption, read_captions


@dataclasses.dataclass
class SampleSemanticsConfig(EncoderConfig, EegAugmentConfig, TrainConfig):
    shards: str = path_option(help="shard directory made by neuroimagen shards")
    pipeline: str = path_option(help="latent diffusion model whose text encoder makes the targets: hub id or directory")
    captions: str = path_option("label", "label ('An image of <class name>'), or a file made by neuroimagen captions")
    n_features: int = option(512, "length of the backbone's output")
    learning_rate: float = option(1e-3, "of AdamW; falls to 0 along half a cosine")
    warmup: int = option(0, "steps of linear warm-up")
    weight_decay: float = option(0.0, "of AdamW")
    clip: float = option(0.0, "largest gradient norm; 0: no clipping")
    class_weights: bool = option(False, "uneven classes: weigh trials so that each class counts alike in Eq. 7")


class Targets:
    """ĥ_clip of every picture in train and val: distinct captions are embedded once."""

    def __init__(
        self, config: SampleSemanticsConfig, manifest: Manifest, written: dict[str, str], device: torch.device
    ) -> None:
        """written: what the captions file says."""
        names = self.names = {c["label"]: c["name"] for c in manifest.classes}
        self.row: dict[str, int] = {}  # picture -> row of `embeddings`
        labels: dict[str, int] = {}  # caption -> class
        rows: dict[str, int] = {}
        shown: Counter[tuple[str, int]] = Counter()  # train trials of each caption and class
        for split in ("train", "val"):
            lenient = split == "train" and config.max_bad_samples > 0
            trials = ShardSplit(config.shards, split, incomplete=lenient)
            for i in range(len(trials)):
                try:
                    info = trials.info(i)
                except ShardError:
                    if lenient:
                        continue  # the stream counts it and puts another in its place
                    raise
                image, label = info["image"], info["label"]
                if config.captions != "label" and image not in written:
                    raise ValueError(
                        f"captions file {config.captions} has no caption of {image}, shown in trial {info['trial']}: "
                        "make the file again from the pictures of this study"
                    )
                caption = label_caption(names[label]) if config.captions == "label" else written[image]
                self.row[image] = rows.setdefault(caption, len(rows))
                labels.setdefault(caption, label)
                shown[caption, label] += split == "train"
        self.embeddings = embed_captions(config.pipeline, list(rows), device).to(device)  # (n, L, D)
        self.labels = torch.tensor([labels[caption] for caption in rows], device=device)
        each = torch.zeros(max(names) + 1)  # train trials of each class
        for (_, label), n in shown.items():
            each[label] += n
        even = each.sum() / ((each > 0).sum() * each.clamp(min=1))  # n / (C n_c): 1 on average over the train trials
        self.of_class = (even if config.class_weights else torch.ones_like(each)).to(device)
        weight = torch.zeros(len(rows))
        for (caption, label), n in shown.items():
            weight[rows[caption]] += n * self.of_class[label].item()
        self.weights = (weight / weight.sum()).to(device)  # each caption's share of the train trials, so weighed

    def of(self, batch: dict) -> torch.Tensor:
        """(B, L, D) for a batch."""
        return self.embeddings[[self.row[image] for image in batch["image_name"]]]


@torch.no_grad()
def validate(run: Run, model: SampleEncoder, targets: Targets, config: SampleSemanticsConfig) -> dict[str, float]:
    """On val: Eq. 7, R² against predicting the train captions' mean, and whether the nearest train caption is of the
    class seen, over trials and as the mean over classes. Collective: every rank."""
    model.eval()
    sums = torch.zeros(2, device=run.device, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64, device=run.device)
    known, guesses, labels = targets.weights > 0, [none], [none]
    candidates, their_labels = targets.embeddings[known], targets.labels[known]
    for batch in eval_batches(config.shards, "val", **run.share):
        batch = run.to_device(batch)
        prediction, target = model(batch["eeg"], batch["subject"]).float(), targets.of(batch)
        guesses.append(their_labels[nearest_caption(prediction, candidates)])
        labels.append(batch["label"])
        error = (prediction - target).square().sum()
        baseline = (model.mean - target).square().sum()
        sums += torch.stack([error, baseline]).double()
    model.train()
    error, baseline = run.accelerator.reduce(sums, "sum").tolist()
    guess, label = run.gather(torch.cat(guesses)), run.gather(torch.cat(labels))
    run.class_table("val_nearest_caption", guess, label, targets.names)
    right = (guess == label).double()
    _, place, counts = label.unique(return_inverse=True, return_counts=True)
    balanced = (right / counts[place]).sum() / len(counts)
    found = {"loss": error / max(len(label), 1), "r2": 1 - error / max(baseline, 1e-12)}
    return found | {"class_accuracy": right.mean().item(), "balanced_accuracy": balanced.item()}


def main(config: SampleSemanticsConfig) -> int:
    manifest = read_manifest(config.shards)
    config.check_eeg(manifest.n_times, manifest.sfreq)
    run = Run(config)
    if run.done:
        return 0
    written = {} if config.captions == "label" else decided_by_main(lambda: read_captions(config.captions))
    targets = on_every_rank(lambda: Targets(config, manifest, written, run.device))
    n_tokens, width = targets.embeddings.shape[1:]
    model = SampleEncoder(
        n_chans=manifest.n_chans,
        n_times=manifest.n_times,
        n_tokens=n_tokens,
        width=width,
        encoder=config.encoder,
        n_features=config.n_features,
        dropout=config.dropout,
        encoder_width=config.encoder_width,
        **encoder_options(config, manifest),
    )
    start_from(model.encoder, config.pretrained)
    model.set_targets(targets.embeddings.cpu(), targets.weights.cpu())
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    batches = train_batches(config.shards, **run.position)
    while run.going():
        batch = run.next(batches)
        batch["eeg"] = augment_eeg(batch["eeg"], manifest.sfreq, config, run.rand)
        lr = config.learning_rate * warmup_cosine(run.step, config.max_steps, config.warmup)
        set_learning_rate(optimizer, lr)
        for part in run.parts(batch):
            weights = targets.of_class[part["label"]] if config.class_weights else None
            loss = embedding_loss(model(part["eeg"], part["subject"]), targets.of(part), weights)  # Eq. 7
            run.backward(loss, part["key"], loss=loss)
        run.update(optimizer, model, config.clip)
        run.advance(lr=lr)
        if run.validation_due():
            run.log(validate(run, run.unwrap(model), targets, config), prefix="val/")
    return run.finish(model=model)


if __name__ == "__main__":
    run_trainer(main, SampleSemanticsConfig)
