"""What every stage that draws from EEG reports on the val split, and the grid of pictures that it saves."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from neuroimagen.batches.stream import Batcher, eval_batches
from neuroimagen.pixel.losses import ssim
from neuroimagen.run.run import Run
from neuroimagen.run.seeds import seed_from
from neuroimagen.shards.format import ShardSplit

Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def compare_pictures(
    run: Run, config: Any, draw: Draw | None, name: str, look: Callable[[dict], None] = lambda batch: None
) -> dict[str, float]:
    """How like the pictures seen on val the drawn ones are: SSIM, SSIM to another trial's picture, Pearson's r over
    pixels; without `draw`, nothing. Collective: every rank.

    config: has shards, image_size, z_dim, seed. The noise of a picture depends on (seed, trial) alone.
    draw: EEG (n, C, T), noise (n, z_dim), subject (n,) -> pictures (n, 3, S, S) in [0, 1]; look: is shown each batch
    Saves the grid `name`: truth above picture.
    """
    split, sums = ShardSplit(config.shards, "val"), torch.zeros(4, device=run.device, dtype=torch.float64)
    pictures, size = Batcher(split, config.image_size), config.image_size
    batches = eval_batches(config.shards, "val", batch_size=64, rank=run.rank, world=run.world, image_size=size)
    for number, batch in enumerate(map(run.to_device, batches)):
        look(batch)
        if draw is None:
            continue
        seeds = [seed_from(config.seed, "validation", i) for i in batch["index"].tolist()]
        z = torch.stack([torch.randn(config.z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds])
        drawn = draw(batch["eeg"], z.to(run.device), batch["subject"]).float()
        truth = batch["image"].add(1).div(2)
        half_way_round = (batch["index"].cpu().numpy() + len(split) // 2) % len(split)
        others = pictures(half_way_round)["image"].to(run.device).add(1).div(2)
        centred = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (drawn, truth)]
        r = F.cosine_similarity(centred[0], centred[1])
        similarity = [ssim(drawn, x) for x in (truth, others)]
        sums += torch.stack([torch.ones_like(r), *similarity, r]).sum(1).double()
        if number == 0:
            rows = torch.stack([truth, drawn], 1)[: 8 * (len(drawn) // 8) or None][:24]  # (n, 2, 3, S, S)
            n = 8 if len(rows) >= 8 else len(rows)
            run.image(name, rows.unflatten(0, (-1, n)).permute(3, 0, 2, 4, 1, 5).flatten(4).flatten(1, 3))
    if draw is None:
        return {}
    total = run.accelerator.reduce(sums, "sum")
    means = (total[1:] / total[0].clamp(min=1)).tolist()
    return dict(zip(("ssim", "ssim_other", "pixel_correlation"), means, strict=True))
