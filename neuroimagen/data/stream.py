"""From a shard directory to batches, in an order that is a function of (seed, step) alone.

Train order: each epoch is one permutation of the split, f(seed, epoch); epochs are laid end to end; step s takes the
next world x batch_size trials, rank r the r-th contiguous slice of them. So a step number is all there is to resume,
every trial comes exactly once an epoch, and neither the number of processes (at one global batch size) nor of loader
workers changes what a step sees. No global random generator is drawn from.

A batch is a dict: "eeg" float32 (B, C, T), standardised by the manifest's train statistics; "label", "subject",
"index" (position in the split) int64 (B,); "key", "image_name" lists of str; and, if image_size is given, "image"
float32 (B, 3, S, S) in [-1, 1]: shortest side resized to S, centre crop.
"""

import atexit
import functools
import io
import itertools
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import get_worker_info

from neuroimagen.data.shard_files import ShardSplit

PICTURE_CACHE = 256 << 20  # bytes of decoded pictures kept by each process


def load_picture(data: bytes, size: int) -> torch.Tensor:
    """Decode a picture: uint8 (3, size, size), shortest side resized to `size`, centre crop."""
    with Image.open(io.BytesIO(data)) as picture:
        # JPEG decodes at 1/2, 1/4 or 1/8 for less work; twice the wanted size is kept, as PIL's own thumbnail() does.
        picture.draft("RGB", (2 * size, 2 * size))
        rgb = picture.convert("RGB")
    scale = size / min(rgb.size)
    width, height = (max(size, round(side * scale)) for side in rgb.size)
    left, top = (width - size) // 2, (height - size) // 2
    rgb = rgb.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


class Batcher:
    """Positions in a split -> batch dict. Decoded pictures are kept, up to PICTURE_CACHE bytes."""

    def __init__(self, split: ShardSplit, image_size: int | None) -> None:
        self.split, self.image_size = split, image_size
        self.mean = torch.tensor(split.manifest.channel_mean, dtype=torch.float32)[:, None]
        std = torch.tensor(split.manifest.channel_std, dtype=torch.float32)[:, None]
        self.std = torch.where(std > 0, std, 1.0)  # a channel that never moves stays at zero
        self.pictures: dict[str, torch.Tensor] = {}

    def __call__(self, indices: np.ndarray) -> dict[str, Any]:
        infos = [self.split.info(i) for i in indices]
        eeg = torch.empty(len(indices), *self.split.shape)
        for i, row in zip(indices, eeg, strict=True):
            self.split.eeg_into(i, row).sub_(self.mean).div_(self.std)  # trial by trial: it is still in the cache
        batch: dict[str, Any] = {
            "eeg": eeg,
            "label": torch.tensor([info["label"] for info in infos]),
            "subject": torch.tensor([info["subject"] for info in infos]),
            "index": torch.from_numpy(np.asarray(indices, dtype=np.int64)),
            "key": [self.split.keys[i] for i in indices],
            "image_name": [info["image"] for info in infos],
        }
        if self.image_size:
            pictures = [self.picture(i, info["image"]) for i, info in zip(indices, infos, strict=True)]
            batch["image"] = torch.stack(pictures).float().div_(127.5).sub_(1)
        return batch

    def picture(self, index: int, name: str) -> torch.Tensor:
        assert self.image_size
        if name not in self.pictures:
            picture = load_picture(self.split.picture(index), self.image_size)
            if (len(self.pictures) + 1) * picture.numel() > PICTURE_CACHE:
                return picture
            self.pictures[name] = picture
        return self.pictures[name]


class EpochOrder:
    """Positions start..stop of the endless train order of `n` trials -> indices."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.permutation = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.n)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.n)
            taken = min(stop - start, self.n - offset)
            parts.append(self.permutation(epoch)[offset : offset + taken])
            start += taken
        return np.concatenate(parts)


def _worker() -> tuple[int, int]:
    """(number, count) of this loader worker; (0, 1) without workers.

    Worker w of W makes batches w, w+W, ... and the loader takes from the workers in turn, so the order is that of none.
    """
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def _train_indices(n: int, seed: int, batch_size: int, rank: int, world: int, step: int) -> Iterator[np.ndarray]:
    number, workers = _worker()
    order = EpochOrder(n, seed)
    for s in itertools.count(step + number, workers):
        start = (s * world + rank) * batch_size
        yield order(start, start + batch_size)


def _eval_indices(n: int, batch_size: int, rank: int, world: int) -> Iterator[np.ndarray]:
    number, workers = _worker()
    mine = np.arange(rank, n, world)
    for start in range(number * batch_size, len(mine), workers * batch_size):
        yield mine[start : start + batch_size]


_open: "weakref.WeakSet[Iterator[dict[str, Any]]]" = weakref.WeakSet()


@atexit.register
def _close_loaders() -> None:
    """End loader workers while the interpreter can; later multiprocessing would send SIGTERM and wait for ever."""
    for batches in list(_open):
        batches.close()  # type: ignore[attr-defined]


def _load(
    indices: Callable[[], Iterator[np.ndarray]], split: ShardSplit, image_size: int | None, workers: int
) -> Iterator[dict[str, Any]]:
    loader = wds.WebLoader(
        wds.DataPipeline(indices, wds.map(Batcher(split, image_size))),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # or opening the loader draws from the global generator
    )

    def batches() -> Iterator[dict[str, Any]]:
        # A stop signal reaches every process of a job; the trainer answers it, its loader workers live on meanwhile.
        # They start with the first batch and keep the signal mask they are born with, so no signal can come too early.
        loaded = iter(loader)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT} if workers else ())
        try:
            first = list(itertools.islice(loaded, 1))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            yield from first
            yield from loaded
        finally:
            loaded.close()

    iterator = batches()
    _open.add(iterator)
    return iterator


def train_batches(
    shards: str | Path,
    *,
    split: str = "train",
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    step: int = 0,
    seed: int = 0,
    image_size: int | None = None,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches for one rank, beginning with those of `step`; see the module for their order and content.

    batch_size: trials a step on this rank. A global batch larger than the split spans several epochs.
    Raises ValueError for a shard directory that is not whole.
    """
    assert batch_size > 0 and 0 <= rank < world and step >= 0 and workers >= 0
    trials = ShardSplit(shards, split)
    return _load(
        functools.partial(_train_indices, len(trials), seed, batch_size, rank, world, step), trials, image_size, workers
    )


def eval_batches(
    shards: str | Path,
    split: str,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    image_size: int | None = None,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Each trial of `split` exactly once over all ranks: rank r gets trials r, r+world, ... in order; last batch short.

    A rank may get one batch more than another, or none: no collective may be called once a batch.
    """
    assert batch_size > 0 and 0 <= rank < world and workers >= 0
    trials = ShardSplit(shards, split)
    return _load(functools.partial(_eval_indices, len(trials), batch_size, rank, world), trials, image_size, workers)
