"""Does the saliency map M_p(x) follow the picture as well as a linear model of the EEG does?

    python benchmarks/saliency.py [RUNS [split]]        runs/demo val

RUNS: what launch/demo.sh or launch/paper.sh filled (shards, pixel_saliency). split: val, or test for the report.
Compares, at 32 px, the maps, the mean train picture, and a ridge regression in closed form from window means of the EEG
to an 8 x 8 picture, whose windows and penalty are chosen on val. Prints SSIM on [0, 1], SSIM if the maps are dealt out
at random (mean over some 40 cyclic shifts), and Pearson's r over the pixels of a trial.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from neuroimagen.batches.stream import Batcher
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.losses import ssim
from neuroimagen.pixel.saliency import Generator
from neuroimagen.reconstruction.draw import decode
from neuroimagen.shards.format import ShardSplit

SIDE = 32


def load(shards: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """EEG (n, C, T), pictures (n, 3, SIDE, SIDE) in [0, 1] and keys of a split."""
    batch = Batcher(found := ShardSplit(shards, split), SIDE)(np.arange(len(found)))
    return batch["eeg"], batch["image"].add(1).div(2), batch["key"]


def score(maps: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """SSIM, SSIM dealt out at random, r."""
    maps = F.interpolate(maps, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)
    shifts = range(1, len(truth), max(1, len(truth) // 40))
    other = sum(ssim(maps, truth.roll(k, 0)).mean().item() for k in shifts) / len(shifts)
    centred = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (maps, truth)]
    return ssim(maps, truth).mean().item(), other, F.cosine_similarity(*centred).mean().item()


def ridge(
    eeg: torch.Tensor, pictures: torch.Tensor, others: torch.Tensor, n_windows: int, penalty: float
) -> torch.Tensor:
    """Pictures (m, 3, 8, 8) of `others` (m, C, T), learnt from eeg (n, C, T) and pictures (n, 3, S, S)."""
    x, z = (F.adaptive_avg_pool1d(e, n_windows).flatten(1).double() for e in (eeg, others))
    mean, std = x.mean(0), x.std(0)
    x, z = (x - mean) / std, (z - mean) / std
    y = F.interpolate(pictures, (8, 8), mode="area").flatten(1).double()
    kernel = x @ x.T + penalty * x.shape[1] * torch.eye(len(x), dtype=x.dtype)
    return (z @ x.T @ torch.linalg.solve(kernel, y - y.mean(0)) + y.mean(0)).float().unflatten(1, (3, 8, 8))


def main(runs: Path, split: str = "val") -> None:
    train, val, asked = (load(runs / "shards", name) for name in ("train", "val", split))
    grid = [(windows, penalty) for windows in (8, 12, 16, 24) for penalty in (0.03, 0.06, 0.1, 0.2)]
    best = max(grid, key=lambda choice: score(ridge(*train[:2], val[0], *choice), val[1])[2])

    model = runs / "pixel_saliency" / "model"
    f_theta = FeatureExtractor.from_pretrained(str(model / "features")).eval()
    g = Generator.from_pretrained(str(model / "generator")).eval()
    decoders = SimpleNamespace(f_theta=f_theta, g=g, m_s={})
    parts = zip(asked[0].split(64), range(0, len(asked[2]), 64), strict=True)
    maps = torch.cat([decode(eeg, asked[2][i : i + 64], decoders, seed=0).maps for eeg, i in parts])
    rows = {
        "the maps M_p(x)": maps,
        f"ridge, {best[0]} windows, penalty {best[1]}": ridge(*train[:2], asked[0], *best),
        "the mean train picture": train[1].mean(0, keepdim=True).expand(len(maps), -1, -1, -1),
    }
    print(f"{runs}, {split}: {len(maps)} trials\n{'':36} SSIM  dealt out   gain      r")
    for name, drawn in rows.items():
        found, other, r = score(drawn, asked[1])
        print(f"{name:36} {found:.3f}      {other:.3f}  {found - other:.3f}  {r:.3f}")


if __name__ == "__main__":
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    if not (runs / "pixel_saliency" / "DONE").exists():
        print(f"not run: {runs} holds no finished pixel_saliency; make demo first")
        sys.exit(len(sys.argv) > 1)
    main(runs, *sys.argv[2:3])
