"""What contrastive.py reports on val: retrieval of the pictures seen."""

from pathlib import Path
from typing import Any

import torch

from neuroimagen.batches.stream import eval_batches
from neuroimagen.contrastive import losses
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.contrastive.targets import Targets
from neuroimagen.run.run import Run


@torch.no_grad()
def validate(run: Run, model: ContrastiveEncoder, targets: Targets, config: Any) -> dict[str, float]:
    """Whether val's pictures are found among each other, by single trials and by the mean of each picture's trials: by
    the mean cosine over `features`. new_classes: share of val in classes that train does not show. Collective."""
    model.eval()

    def unit(embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        compared = model.compared(embeddings)
        return torch.cat([compared[Path(file).stem] for file in config.features], 1)

    gallery = unit(model.named(targets.vectors[targets.gallery].to(run.device)))
    truth, n = torch.from_numpy(targets.truth).to(run.device), len(gallery)
    sums, counts = torch.zeros_like(gallery), torch.zeros(3, device=run.device)
    for batch in eval_batches(config.shards, "val", **run.share):
        batch = run.to_device(batch)
        place = truth[batch["index"]]
        z, place = unit(model(batch["eeg"], batch["subject"]))[place >= 0], place[place >= 0]
        sums.index_add_(0, place, z)
        counts += losses.found(z, gallery, place)
    model.train()
    sums, counts = run.accelerator.reduce(sums, "sum"), run.accelerator.reduce(counts, "sum")
    means = losses.found(sums, gallery, torch.arange(n, device=run.device))
    top1, top5, mean_top1, mean_top5 = torch.cat([counts[:2] / counts[2], means[:2] / n]).tolist()
    chance = {"chance_top1": 1 / n, "chance_top5": min(1, 5 / n), "new_classes": targets.new[targets.truth >= 0].mean()}
    return {"top1": top1, "top5": top5, "mean_top1": mean_top1, "mean_top5": mean_top5} | chance
