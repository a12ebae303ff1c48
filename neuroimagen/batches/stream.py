"""From a shard directory to batches, in an order that is a function of (seed, step) alone.

Train order (batches/order.py): each epoch is one permutation of the split, f(seed, epoch); epochs are laid end to end;
step s takes the next world x batch_size trials, rank r the r-th contiguous slice of them. So a step number is all there
is to resume, every trial comes exactly once an epoch, and neither the number of processes (at one global batch size)
nor of loader workers changes what a step sees. With classes_per_batch the global batch is instead P classes x K trials,
cut among the ranks in the same way. No global random generator is drawn from.

A batch is a dict: "eeg" float32 (B, C, T), standardised by the manifest's train statistics; "label", "subject", "index"
(position in the split) int64 (B,); "key", "image_name" lists of str; "skipped", the keys of trials that were found to
be unreadable when this batch was made; and, if image_size is given, "image" float32 (B, 3, S, S) in [-1, 1].

A trial that cannot be read ends the stream with a ValueError that names tar and trial. Train batches may instead
replace up to `max_bad_samples` such trials: each by a readable one that is a function of the trial and of what can be
read, so resume, workers and the number of processes still change nothing. Each rank counts for itself, from its start.

How a batch travels: whoever reads (a loader process, or this one) fills a slot of memory that both share with EEG as
stored and uint8 pictures; only here do they become float32, on the device.

How many workers: docs/shards.md. None by default, as without a GPU they want the cores that the steps want.
"""

import atexit
import bisect
import functools
import itertools
import math
import mmap
import multiprocessing
import signal
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from neuroimagen.batches.decode import load_picture
from neuroimagen.batches.order import BalancedOrder, EpochOrder, Order, eval_indices, train_indices, worker
from neuroimagen.run.collectives import decided_by_main, on_every_rank
from neuroimagen.shards.format import ShardSplit

PICTURE_CACHE = 256 << 20  # bytes of decoded pictures kept by each process
PREFETCH = 2  # batches that each worker makes ahead; 4 and 8 measured no faster


def channel_statistics(manifest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the train split's channels, (n_chans, 1) float32 each."""
    mean, std = (torch.tensor(x, dtype=torch.float32)[:, None] for x in (manifest.channel_mean, manifest.channel_std))
    return mean, torch.where(std > 0, std, 1.0)  # a channel that never moves stays at zero


class Batcher:
    """Positions in a split -> batch dict; `allowed` trials of it may be replaced because they cannot be read."""

    def __init__(self, split: ShardSplit, image_size: int | None, allowed: int = 0) -> None:
        self.split, self.image_size, self.allowed = split, image_size, allowed
        self.mean, self.std = channel_statistics(split.manifest)
        self.pictures: dict[str, tuple[int, torch.Tensor]] = {}  # name -> checksum of the file, pixels
        # What the JSON of each trial says, once it has been read: 25 bytes a trial.
        self.known = np.zeros(len(split), bool)
        self.label, self.subject = np.zeros((2, len(split)), np.int64)
        self.image = [""] * len(split)  # name of the picture
        self.groups: dict[int, np.ndarray] = {}  # label -> trials, if a substitute must be of the same class

    def __call__(self, indices: np.ndarray) -> dict[str, Any]:
        """A batch on the CPU. ValueError for a trial that cannot be read."""
        room = self.room(len(indices), torch.empty)
        told = self.read(indices, *room)
        if told["bad"]:
            raise ValueError(next(iter(told["bad"].values())))
        return self.finish(told, room, torch.device("cpu"))

    def room(self, n: int, empty: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where `read` puts n trials: EEG as stored (n, C, T), pictures uint8 (n, 3, S, S)."""
        size = self.image_size or 0
        return empty((n, *self.split.shape), dtype=self.split.dtype), empty((n, 3, size, size), dtype=torch.uint8)

    def read(self, indices: np.ndarray, eeg: torch.Tensor, image: torch.Tensor) -> dict[str, Any]:
        """Fill rows of `eeg` and `image`; returns the small fields, and "bad": {index: what is wrong with that trial}.

        Of more than `allowed` bad trials only "bad". OSError, which names the trial, if it is the machine's fault.
        """
        bad: dict[int, str] = {}
        taken = np.empty(len(indices), np.int64)
        for row, wanted in enumerate(indices.tolist()):
            for i in self.substitutes(wanted):
                if self.sound(i, bad, functools.partial(self.read_trial, i, eeg[row], image[row])):
                    taken[row] = i
                    break
                if len(bad) > self.allowed:
                    return {"bad": bad}
            else:
                return {"bad": bad}
        columns = {"label": self.label[taken], "subject": self.subject[taken], "index": taken}
        return {"bad": bad, "columns": columns, "image_name": [self.image[i] for i in taken.tolist()]}

    def sound(self, i: int, bad: dict[int, str], read: Callable[[], Any]) -> bool:
        """Whether trial i can be read; else `bad` gets what is wrong with it. OSError if that is the machine."""
        try:
            read()
            return True
        except OSError as error:
            raise OSError(error.errno, self.sentence(i, error)) from None
        except ValueError as error:
            bad[i] = self.sentence(i, error)
            return False

    def read_trial(self, i: int, eeg: torch.Tensor, image: torch.Tensor) -> None:
        self.read_info(i)
        low, high = self.split.eeg_into(i, eeg).aminmax()
        if not math.isfinite(low.item() - high.item()):
            raise ValueError("its EEG holds NaN or infinity")
        if self.image_size:
            image.copy_(self.picture(i))

    def read_info(self, i: int) -> None:
        if self.known[i]:
            return
        info = self.split.info(i)
        try:
            self.image[i] = sys.intern(str(info["image"]))
            self.label[i], self.subject[i] = int(info["label"]), int(info["subject"])
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"its JSON is not that of a trial: {error!r}") from None
        self.known[i] = True

    def picture(self, i: int) -> torch.Tensor:
        assert self.image_size
        data = self.split.picture(i)
        # The name is not enough: a damaged copy must fail, or look damaged, whether or not its twin is kept already.
        name, checksum = self.image[i], zlib.crc32(data)
        if (kept := self.pictures.get(name)) and kept[0] == checksum:
            return kept[1]
        picture = load_picture(data, self.image_size)
        if not kept and (len(self.pictures) + 1) * picture.numel() <= PICTURE_CACHE:
            self.pictures[name] = checksum, picture
        return picture

    def substitutes(self, i: int) -> Iterator[int]:
        """`i`, then what may stand for it: all trials, or those of its class, in steps of 0.62 of their number.

        So neighbours, which lie in one tar and are lost together, get different ones.
        """
        yield i
        group = self.groups.get(int(self.label[i]), range(len(self.split)))
        n, start = len(group), bisect.bisect_left(group, i)
        step = next(s for s in itertools.count(max(1, round(0.618 * n))) if math.gcd(s, n) == 1)
        for k in range(1, n):
            yield int(group[(start + k * step) % n])

    def sentence(self, i: int, error: Exception) -> str:
        """What is wrong with trial i; the tar and the key are named."""
        tar, key = self.split.paths[self.split.index[i]["tar"]], self.split.keys[i]
        said = " ".join(str(getattr(error, "strerror", None) or error).split())
        return said if key in said and tar.name in said else f"{tar}: trial {key} cannot be read ({said})"

    def read_labels(self) -> tuple[np.ndarray, dict[int, str]]:
        """(n,) the class of every trial, and what is wrong with those whose JSON cannot be read (they get -1)."""
        bad: dict[int, str] = {}
        for i in range(len(self.split)):
            if not self.sound(i, bad, functools.partial(self.read_info, i)) and len(bad) > self.allowed:
                break
        return np.where(self.known, self.label, -1), bad

    def finish(self, told: dict[str, Any], room: Sequence[torch.Tensor], device: torch.device) -> dict[str, Any]:
        """The batch, on `device`, from what `read` returned and filled; nothing in it shares memory with those."""
        columns = {name: torch.from_numpy(column) for name, column in told["columns"].items()}
        eeg, image = (part[: len(columns["index"])] for part in room)
        mean, std = self.mean.to(device), self.std.to(device)
        batch: dict[str, Any] = {"eeg": _as_float(eeg, device, lambda x: x.sub_(mean).div_(std)), **columns}
        batch["key"] = [self.split.keys[i] for i in told["columns"]["index"].tolist()]
        batch["image_name"] = told["image_name"]
        batch["skipped"] = [self.split.keys[i] for i in told["bad"]]
        if self.image_size:
            batch["image"] = _as_float(image, device, lambda x: x.div_(127.5).sub_(1))
        return batch


def _as_float(stored: torch.Tensor, device: torch.device, work: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    """A float32 copy of `stored` on `device`, changed by `work`."""
    step = 8  # rows at a time, while they are in the processor's cache
    if device.type == "cuda":
        # From pinned memory the copy runs while this process goes on. (Not run on a GPU yet.)
        stored, step = stored.pin_memory().to(device, non_blocking=True), len(stored)
    done = torch.empty(stored.shape, device=device)
    for rows, source in zip(done.split(step), stored.split(step), strict=True):
        work(rows.copy_(source))
    return done


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that this process and those it forks from now on share; /dev/shm, small in containers, is not used."""
    size = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


class _Reads:
    """A stage of the pipeline in each loader process: indices -> a filled slot and what `Batcher.read` says of it."""

    def __init__(self, batcher: Batcher, batch_size: int, workers: int) -> None:
        self.batcher = batcher
        # At any time a worker's batches are: PREFETCH in the making or waiting, one being finished by the consumer.
        self.each = PREFETCH + 1 if workers else 1
        n = self.each * max(1, workers)
        self.slots = [(*batcher.room(batch_size, _shared), _shared((1,), torch.int64)) for _ in range(n)]

    def __call__(self, stream: Iterator[np.ndarray]) -> Iterator[dict[str, Any]]:
        first = worker()[0] * self.each
        for number, indices in enumerate(stream):
            eeg, image, owner = self.slots[first + number % self.each]
            owner[0] = number
            try:
                told = self.batcher.read(indices, eeg, image)
            except OSError as error:  # as text: a loader process would wrap it in its traceback
                told = {"bad": {}, "machine": error.strerror}
            yield {"slot": first + number % self.each, "number": number, **told}


_open: "weakref.WeakSet[Iterator[dict[str, Any]]]" = weakref.WeakSet()


@atexit.register
def _close_loaders() -> None:
    """End loader workers while the interpreter can; later multiprocessing would send SIGTERM and wait for ever."""
    for batches in list(_open):
        batches.close()  # type: ignore[attr-defined]


def _load(
    indices: Callable[[], Iterator[np.ndarray]],
    batcher: Batcher,
    batch_size: int,
    workers: int,
    device: torch.device | str,
    bad: set[int],  # trials already found unreadable
) -> Iterator[dict[str, Any]]:
    reads = _Reads(batcher, batch_size, workers)
    loader = DataLoader(
        wds.DataPipeline(indices, reads),
        batch_size=None,
        collate_fn=lambda item: item,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context="fork" if workers else None,  # slots are shared by fork
        generator=torch.Generator(),  # or opening the loader draws from the global generator
    )
    device = torch.device(device)

    def finish(told: dict[str, Any]) -> dict[str, Any]:
        if "machine" in told:
            raise ValueError(told["machine"])
        _count_bad(told["bad"], bad, batcher.allowed)
        if "columns" not in told:
            raise ValueError(f"{batcher.split.folder}: no trial of {batcher.split.name} can be read")
        *room, owner = reads.slots[told["slot"]]
        batch = batcher.finish(told, room, device)
        assert owner.item() == told["number"], "a loader worker has overwritten a batch that was being read"
        return batch

    def batches() -> Iterator[dict[str, Any]]:
        loaded = None
        try:
            # A stop signal reaches every process of a job; the trainer answers it, its loader workers live on.
            # They start with the first batch and keep the signal mask they are born with, so no signal comes too early.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT} if workers else ())
            try:
                if workers:
                    multiprocessing.Lock()  # as each queue needs one: a loader that fails to start prints more
                loaded = iter(loader)
                first = list(itertools.islice(loaded, 1))
            except OSError as error:  # of starting: those of reading come as text
                raise ValueError(
                    f"workers={workers}: loader processes cannot be started ({error.strerror or error}): make "
                    "/dev/shm writable and allow more processes, or give workers=0"
                ) from None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield from map(finish, first)
            yield from map(finish, loaded)
        finally:
            if workers and loaded is not None:  # now: an exception's traceback may keep `loaded` until the process ends
                loaded._shutdown_workers()  # type: ignore[attr-defined]

    iterator = batches()
    _open.add(iterator)
    return iterator


def _count_bad(found: dict[int, str], seen: set[int], allowed: int) -> None:
    """Add `found` to `seen`, saying each once. ValueError as soon as there are more than `allowed`."""
    for i, sentence in found.items():
        if i in seen:
            continue
        seen.add(i)
        if len(seen) > allowed:
            raise ValueError(
                f"{sentence}: {f'{len(seen)} bad trials' if allowed else 'a bad trial'} with "
                f"max_bad_samples={allowed}; copy the shards again, or make them again (neuroimagen check lists all)"
            )
        print(f"skipped, bad trial {len(seen)} of at most {allowed}: {sentence}", file=sys.stderr, flush=True)


def train_batches(
    shards: str | Path,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    step: int = 0,
    seed: int = 0,
    image_size: int | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad_samples: int = 0,
    classes_per_batch: int = 0,
    trials_per_class: int = 0,
    order: Order | None = None,
) -> Iterator[dict[str, Any]]:
    """Endless batches of train for one rank, beginning with those of `step`; the module says in which order.

    batch_size: trials a step on this rank. A global batch larger than the split spans several epochs.
    max_bad_samples: so many different trials may be replaced because they cannot be read.
    classes_per_batch, trials_per_class: both 0, or the global batch is so many classes x so many trials of each, see
    BalancedOrder; then the JSON of every trial is read here (7 us a trial from a warm disk).
    order: of indices of the split, in place of EpochOrder.
    ValueError for shards that are not whole, and for a batch that is not classes x trials. Collective: every rank.
    """
    assert batch_size > 0 and 0 <= rank < world and min(step, workers, max_bad_samples) >= 0
    opened = on_every_rank(lambda: ShardSplit(shards, "train", max_bad_samples > 0))
    batcher = Batcher(opened, image_size, max_bad_samples)
    bad: set[int] = set()
    order = order or EpochOrder(len(batcher.split), seed)
    if classes_per_batch or trials_per_class:
        if classes_per_batch < 1 or classes_per_batch * trials_per_class != batch_size * world:
            raise ValueError(
                f"classes_per_batch={classes_per_batch} x trials_per_class={trials_per_class} is not "
                f"global_batch_size={batch_size * world}: give three numbers that fit (0 and 0: not balanced)"
            )
        labels, faults = decided_by_main(batcher.read_labels)  # one order for all ranks
        _count_bad(faults, bad, max_bad_samples)
        order = BalancedOrder(labels, classes_per_batch, trials_per_class, seed)
        batcher.groups = order.members
    indices = functools.partial(train_indices, order, batch_size, rank, world, step)
    return _load(indices, batcher, batch_size, workers, device, bad)


def encoder_options(config: Any, manifest: Any) -> dict[str, Any]:
    """What a trainer's model gives make_encoder of these shards, beside sizes: EncoderConfig.encoder_options.

    config: an EncoderConfig with shards and max_bad_samples. Collective: every rank.
    """

    def subjects() -> list[int]:
        batcher = Batcher(ShardSplit(config.shards, "train", config.max_bad_samples > 0), None, config.max_bad_samples)
        _, faults = batcher.read_labels()
        if len(faults) > batcher.allowed:
            raise ValueError(next(iter(faults.values())))
        return np.unique(batcher.subject[batcher.known]).tolist()

    return config.encoder_options(manifest.channels, manifest.sfreq, lambda: decided_by_main(subjects))


def eval_batches(
    shards: str | Path,
    split: str,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    image_size: int | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    max_bad_samples: int = 0,
) -> Iterator[dict[str, Any]]:
    """Each trial of train or val once over all ranks: rank r gets trials r, r+world, ... in order; last batch short.

    A rank may get one batch more than another, or none: no collective may be called once a batch. This call is one.
    ValueError for the first trial that cannot be read; none is replaced, but of train as `train_batches` does it.
    """
    assert batch_size > 0 and 0 <= rank < world and workers >= 0
    if split not in ("train", "val"):
        raise ValueError(f"split={split}: what is chosen is chosen on val; trainers/reconstruct.py draws test, once")
    allowed = max_bad_samples if split == "train" else 0
    batcher = Batcher(on_every_rank(lambda: ShardSplit(shards, split, incomplete=allowed > 0)), image_size, allowed)
    indices = functools.partial(eval_indices, len(batcher.split), batch_size, rank, world)
    return _load(indices, batcher, batch_size, workers, device, set())
