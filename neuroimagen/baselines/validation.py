"""What both baselines report on the val split, and the grid of pictures that they save."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from neuroimagen.batches.stream import Batcher, eval_batches
from neuroimagen.pixel.losses import ssim
from neuroimagen.run.run import Run
from neuroimagen.run.seeds import seed_from
from neuroimagen.shards.format import ShardSplit

Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def validate(
    run: Run,
    classifier: torch.nn.Module,
    draw: Draw | None,
    shards: str,
    image_size: int,
    z_dim: int,
    names: dict[int, str],
) -> dict[str, float]:
    """Accuracy of the EEG classifier on val and, if `draw` is given, how like the pictures seen its pictures are: SSIM,
    SSIM to another trial's picture, Pearson's r over pixels.

    The noise of a picture depends on (seed, trial) alone. Saves a grid: truth above picture. Collective: every rank.
    """
    classifier.eval()
    split, sums = ShardSplit(shards, "val"), torch.zeros(4, device=run.device, dtype=torch.float64)
    pictures, none = Batcher(split, image_size), torch.zeros(0, dtype=torch.int64, device=run.device)
    guesses, labels = [none], [none]
    batches = eval_batches(shards, "val", batch_size=64, rank=run.rank, world=run.world, image_size=image_size)
    for number, batch in enumerate(batches):
        batch = run.to_device(batch)
        guesses.append(classifier(batch["eeg"])[1].argmax(1))
        labels.append(batch["label"])
        if draw is None:
            continue
        seeds = [seed_from(run.config.seed, "validation", i) for i in batch["index"].tolist()]
        z = torch.stack([torch.randn(z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds])
        drawn, truth = draw(batch["eeg"], z.to(run.device)).float(), batch["image"].add(1).div(2)
        half_way_round = (batch["index"].cpu().numpy() + len(split) // 2) % len(split)
        others = pictures(half_way_round)["image"].to(run.device).add(1).div(2)
        centred = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (drawn, truth)]
        r = F.cosine_similarity(centred[0], centred[1])
        similarity = [ssim(drawn, x) for x in (truth, others)]
        sums += torch.stack([torch.ones_like(r), *similarity, r]).sum(1).double()
        if number == 0:
            rows = torch.stack([truth, drawn], 1)[: 8 * (len(drawn) // 8) or None][:24]  # (n, 2, 3, S, S)
            n = 8 if len(rows) >= 8 else len(rows)
            run.image("truth_and_drawn", rows.unflatten(0, (-1, n)).permute(3, 0, 2, 4, 1, 5).flatten(4).flatten(1, 3))
    guess, label = run.gather(torch.cat(guesses)), run.gather(torch.cat(labels))
    run.class_table("val_classifier", guess, label, names)
    values = {"accuracy": (guess == label).double().mean().item()}
    if draw is not None:
        total = run.accelerator.reduce(sums, "sum")
        means = (total[1:] / total[0].clamp(min=1)).tolist()
        values |= dict(zip(("ssim", "ssim_other", "pixel_correlation"), means, strict=True))
    return values


@torch.no_grad()
def class_means(
    run: Run, classifier: torch.nn.Module, shards: str, n_classes: int, max_bad_samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of each class over the train split (n_classes, n_features), zero for a class without trials, and
    which classes have some (n_classes,). Collective: every rank."""
    classifier.eval()
    sums: torch.Tensor | float = 0.0
    share = {"batch_size": run.batch_size, "rank": run.rank, "world": run.world}
    for batch in eval_batches(shards, "train", max_bad_samples=max_bad_samples, **share):
        features = classifier(batch["eeg"].to(run.device))[0].double()
        one_hot = F.one_hot(batch["label"].to(run.device), n_classes).double()
        sums = sums + one_hot.T @ torch.cat([features, torch.ones_like(features[:, :1])], 1)
    total = run.accelerator.reduce(sums, "sum")
    return (total[:, :-1] / total[:, -1:].clamp(min=1)).float(), total[:, -1] > 0
