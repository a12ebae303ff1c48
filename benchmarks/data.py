"""Trials a second: our shards and stream against the customary torch Dataset over the published files.

    OMP_NUM_THREADS=1 python benchmarks/data.py [rounds]

Study: random, in the real shape (128 channels x 500 samples, 500 x 375 px JPEGs), 512 train trials of 128 pictures.
The customary loader (perceivelab/eeg_visual_classification, plus the pictures that reconstruction work adds) holds
the whole EEG file in memory and opens the picture of each trial with PIL. The two take turns within a round, so that a
busy machine slows both; the medians over the rounds and their ratio are printed. Batch 32, pictures at 64 px.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from neuroimagen.data.shards import ShardsConfig, make_shards
from neuroimagen.data.stream import train_batches

BATCH, SIZE, TRIALS, PICTURES = 32, 64, 512, 128


class Customary(Dataset):
    """The published loader: everything in memory, one item a trial."""

    def __init__(self, folder: Path, pictures: bool) -> None:
        loaded = torch.load(folder / "eeg.pth", weights_only=True)
        self.data, self.images, self.folder, self.pictures = loaded["dataset"], loaded["images"], folder, pictures
        self.chosen = [i for i, item in enumerate(self.data) if item["image"] < PICTURES]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        item = self.data[self.chosen[n]]
        eeg = item["eeg"].float()[:, 20:460]
        if not self.pictures:
            return eeg, item["label"], torch.zeros(0)
        image = self.images[item["image"]]
        picture = Image.open(self.folder / "images" / image.split("_")[0] / f"{image}.JPEG").convert("RGB")
        width, height = picture.size
        scale = SIZE / min(width, height)
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        pixels = np.array(picture.crop((left, top, left + SIZE, top + SIZE)))
        return eeg, item["label"], torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def write_study(folder: Path) -> None:
    """Two thirds of the pictures train, the rest shared by val and test; each is shown four times."""
    rng = np.random.default_rng(0)
    n = PICTURES + 2
    images = [f"n02389026_{i}" for i in range(n)]
    (folder / "images" / "n02389026").mkdir(parents=True)
    for image in images:
        coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize((500, 375))
        grain = np.array(coarse) + rng.normal(0, 8, (375, 500, 3))  # about 56 KB, as ImageNet's
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(
            folder / "images" / "n02389026" / f"{image}.JPEG", quality=75
        )
    order = rng.permutation(n * 4)
    trials = [
        {"eeg": torch.from_numpy(rng.standard_normal((128, 500), dtype=np.float32)), "image": int(i % n), "label": 0}
        | {"subject": int(i // n) + 1}
        for i in order
    ]
    torch.save({"dataset": trials, "labels": ["n02389026"], "images": images}, folder / "eeg.pth")
    side = {name: [i for i, t in enumerate(trials) if test(t["image"])] for name, test in (
        ("train", lambda image: image < PICTURES), ("val", lambda image: image == PICTURES),
        ("test", lambda image: image == PICTURES + 1),
    )}  # fmt: skip
    torch.save({"splits": [side]}, folder / "splits.pth")


def epochs(open_batches: Callable[[], object], passes: int) -> list[float]:
    """Trials a second of each pass over the train split; the first counts the loader's opening."""
    rates, start = [], time.perf_counter()
    batches = iter(open_batches())  # type: ignore[call-overload]
    for _ in range(passes):
        for _ in range(TRIALS // BATCH):
            next(batches)
        now = time.perf_counter()
        rates.append(TRIALS / (now - start))
        start = now
    return rates


def customary(folder: Path, pictures: bool, workers: int) -> Callable[[], object]:
    data = Customary(folder, pictures)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers)

    def endless():
        while True:
            yield from loader

    return endless


def main(rounds: int = 5) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder)
        start = time.perf_counter()
        make_shards(
            ShardsConfig(
                out=str(folder / "shards"),
                eeg=str(folder / "eeg.pth"),
                images=str(folder / "images"),
                splits_file=str(folder / "splits.pth"),
            )
        )
        print(f"\npacking: {(TRIALS + 8) / (time.perf_counter() - start):.0f} trials a second")
        starts: dict[str, list[float]] = {"customary": [], "ours": []}
        for _ in range(rounds):
            start = time.perf_counter()
            Customary(folder, False)
            starts["customary"].append(time.perf_counter() - start)
            start = time.perf_counter()
            next(train_batches(folder / "shards", batch_size=BATCH))
            starts["ours"].append(time.perf_counter() - start)
        was, now = (statistics.median(starts[who]) for who in ("customary", "ours"))
        print(f"start: customary {was:.3f} s to hold the file, ours {now:.3f} s to the first batch, {was / now:.1f} x")
        print(f"{'trials a second':34}{'customary':>11}{'ours':>9}{'ratio':>8}")
        for pictures in (False, True):
            for workers in (0, 2):
                rates: dict[str, list[list[float]]] = {"customary": [], "ours": []}
                for _ in range(rounds):
                    rates["customary"].append(epochs(customary(folder, pictures, workers), 2))
                    rates["ours"].append(
                        epochs(
                            lambda: train_batches(
                                folder / "shards",
                                batch_size=BATCH,
                                image_size=SIZE if pictures else None,  # noqa: B023
                                workers=workers,  # noqa: B023
                            ),
                            2,
                        )
                    )
                for epoch in (0, 1):
                    was, now = (statistics.median(r[epoch] for r in rates[who]) for who in ("customary", "ours"))
                    what = (
                        f"{'EEG + picture' if pictures else 'EEG'}, {workers} workers, {('first', 'next')[epoch]} epoch"
                    )
                    print(f"{what:34}{was:11.0f}{now:9.0f}{now / was:8.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
