"""Trials a second, memory and disk of the stream beside what one would otherwise use.

    OMP_NUM_THREADS=1 python benchmarks/data.py [rounds]        # 3 rounds: some 4 minutes on two cores

Study: random, in the real shape (128 channels x 440 samples of 500; 500 x 375 px JPEGs), 2,048 train trials of 128
pictures. Batches of 32: EEG alone, with pictures at 64 px, with pictures at 224 px; 1 and 2 loader workers.

    ours              train_batches, no decoded picture kept
    ours, pictures kept   after the first epoch, while they fit into PICTURE_CACHE
    customary         the published loader (perceivelab/eeg_visual_classification) with the pictures that reconstruction
                      adds: the whole file in memory, the picture of each trial opened and resized by PIL
    litdata, mosaicml-streaming   float16 EEG and JPEG bytes in their formats (without pictures for EEG alone), the same
                      decoder and standardisation as ours, in their workers
    tar bytes         reads the same tars from end to end, nothing decoded: the limit of reading
    decode only       load_picture on JPEGs in memory, nothing else: the limit of decoding, in as many processes

Each measurement is a process of its own. All contenders take turns within a round, so that a busy machine slows all;
medians over the rounds. Memory: peak of what a contender and its 2 workers add at 224 px to a new process that has made
its imports (proportional set sizes without mapped files), in a pass of its own, for 512 and for 2,048 trials. All files
are in the page cache.
"""

import functools
import importlib.machinery
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from neuroimagen.batches import stream
from neuroimagen.batches.decode import load_picture
from neuroimagen.shards.format import ShardSplit
from neuroimagen.shards.pack import ShardsConfig, make_shards

BATCH, PICTURES, SMALL, LARGE = 32, 128, 512, 2048
SECONDS = 0.6  # of each measurement, and at least 8 batches
SIZES = (0, 64, 224)  # px; 0: EEG alone
Open = Callable[[Path, int, int], Iterator[Any]]  # folder, size, workers -> endless batches


def write_study(folder: Path, trials: int = SMALL) -> None:
    """`trials` train trials of PICTURES pictures, and four of one more picture in each of val and test."""
    rng = np.random.default_rng(0)
    images = [f"n02389026_{i}" for i in range(PICTURES + 2)]
    (folder / "images" / "n02389026").mkdir(parents=True)
    for image in images:
        coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize((500, 375))
        grain = np.array(coarse) + rng.normal(0, 8, (375, 500, 3))  # about 41 KB
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(
            folder / "images" / "n02389026" / f"{image}.JPEG", quality=75
        )
    shown = [n % PICTURES for n in range(trials)] + [PICTURES] * 4 + [PICTURES + 1] * 4
    made = [
        {
            "eeg": torch.from_numpy(rng.standard_normal((128, 500), dtype=np.float32)),
            "image": image,
            "label": 0,
            "subject": n // PICTURES % 6 + 1,
        }
        for n, image in enumerate(shown)
    ]
    torch.save({"dataset": made, "labels": ["n02389026"], "images": images}, folder / "eeg.pth")
    side = {"train": list(range(trials)), "val": list(range(trials, trials + 4))}
    torch.save({"splits": [side | {"test": list(range(trials + 4, trials + 8))}]}, folder / "splits.pth")
    shards = {"eeg": "eeg.pth", "images": "images", "splits_file": "splits.pth", "out": "shards"}
    make_shards(ShardsConfig(**{key: str(folder / name) for key, name in shards.items()}))


# ---- contenders: each opens endless batches


def ours(folder: Path, size: int, workers: int, keep: int = 0) -> Iterator[Any]:
    stream.PICTURE_CACHE = keep
    return stream.train_batches(folder / "shards", batch_size=BATCH, image_size=size or None, workers=workers)


class Customary(Dataset):
    """The published loader: everything in memory, one item a trial."""

    def __init__(self, folder: Path, size: int) -> None:
        loaded = torch.load(folder / "eeg.pth", weights_only=True)
        self.data, self.images, self.folder, self.size = loaded["dataset"], loaded["images"], folder, size

    def __len__(self) -> int:
        return len(self.data) - 8

    def __getitem__(self, n: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        item = self.data[n]
        eeg = item["eeg"].float()[:, 20:460]
        if not self.size:
            return eeg, item["label"], torch.zeros(0)
        image, size = self.images[item["image"]], self.size
        picture = Image.open(self.folder / "images" / image.split("_")[0] / f"{image}.JPEG").convert("RGB")
        scale = size / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        pixels = np.array(picture.crop((left, top, left + size, top + size)))
        return eeg, item["label"], torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def customary(folder: Path, size: int, workers: int) -> Iterator[Any]:
    data = Customary(folder, size)
    return endless(DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=True))


def prepared(eeg: np.ndarray, jpeg: bytes, label: int, size: int) -> tuple[torch.Tensor, int, torch.Tensor]:
    """What ours does to a trial, for the streaming libraries."""
    signal = torch.from_numpy(np.array(eeg)).view(128, 440).float().sub_(0.1).div_(1.1)
    image = load_picture(jpeg, size).float().div_(127.5).sub_(1) if size else torch.zeros(0)
    return signal, label, image


def stored(folder: Path, pictures: bool, i: int) -> dict[str, Any]:
    split = ShardSplit(folder / "shards", "train")
    return {
        "eeg": split.eeg(i).astype(np.float16),
        "jpeg": split.picture(i) if pictures else b"",
        "label": split.info(i)["label"],
    }


def write_litdata(folder: Path, pictures: bool, out: Path) -> None:
    import litdata

    n = len(ShardSplit(folder / "shards", "train"))
    litdata.optimize(
        functools.partial(stored, folder, pictures),
        list(range(n)),
        str(out),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def litdata_batches(folder: Path, size: int, workers: int) -> Iterator[Any]:
    import litdata

    class Trials(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return prepared(item["eeg"], item["jpeg"], item["label"], size)

    data = Trials(str(folder / f"litdata-{bool(size)}"), shuffle=True)
    return endless(litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, persistent_workers=True))


def import_streaming() -> Any:
    """mosaicml-streaming; where torchvision is missing or does not fit torch, empty names do for what is not used."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        for name in names:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[names[1]].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules[names[3]].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


def write_mosaic(folder: Path, pictures: bool, out: Path) -> None:
    columns = {"eeg": "ndarray:float16:128,440", "jpeg": "bytes", "label": "int"}
    with import_streaming().MDSWriter(out=str(out), columns=columns) as writer:
        for i in range(len(ShardSplit(folder / "shards", "train"))):
            writer.write(stored(folder, pictures, i))


def mosaic_batches(folder: Path, size: int, workers: int) -> Iterator[Any]:
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()

    class Trials(streaming.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return prepared(item["eeg"], item["jpeg"], item["label"], size)

    data = Trials(local=str(folder / f"mosaic-{bool(size)}"), shuffle=True, batch_size=BATCH)
    return endless(DataLoader(data, BATCH, num_workers=workers, persistent_workers=True))


CONTENDERS: dict[str, Open] = {
    "ours": ours,
    "ours, pictures kept": functools.partial(ours, keep=stream.PICTURE_CACHE),
    "customary": customary,
    "litdata": litdata_batches,
    "mosaicml-streaming": mosaic_batches,
}
LIBRARIES = {"litdata": ("litdata", write_litdata), "mosaicml-streaming": ("streaming", write_mosaic)}


# ---- the limits: the same work in as many plain processes


def read_tars(folder: Path, size: int, number: int) -> float:
    """Trials a second."""
    block, count, began = bytearray(1 << 20), 0, time.perf_counter()
    split = ShardSplit(folder / "shards", "train")
    while True:
        for path, tar in zip(split.paths, split.manifest.splits["train"]["shards"], strict=True):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(block):
                    pass
            count += tar["trials"]
            if (passed := time.perf_counter() - began) > SECONDS:
                return count / passed


def decode(folder: Path, size: int, number: int) -> float:
    split = ShardSplit(folder / "shards", "train")
    pictures = [split.picture(i) for i in range(PICTURES)]
    began = time.perf_counter()
    for count, data in enumerate(itertools.cycle(pictures)):
        load_picture(data, size)
        if (passed := time.perf_counter() - began) > SECONDS:
            return (count + 1) / passed
    raise AssertionError


LIMITS = {"tar bytes": read_tars, "decode only": decode}


def limit(work: Callable[[Path, int, int], float], folder: Path, size: int, workers: int) -> tuple[float, float]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        rates = pool.starmap(work, [(folder, size, number) for number in range(workers)], chunksize=1)
    return sum(rates), float("nan")


# ---- measuring


def rate(open_batches: Open, folder: Path, size: int, workers: int) -> tuple[float, float]:
    """(trials a second once it runs, seconds to the first batch)."""
    began = time.perf_counter()
    batches = open_batches(folder, size, workers)
    next(batches)
    first = time.perf_counter() - began
    kept = isinstance(open_batches, functools.partial)
    for _ in range((16 if kept else 4) * workers):
        next(batches)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS or count < 8 * BATCH:
        next(batches)
        count += BATCH
    return count / passed, first


def open_for(open_batches: Open, folder: Path, size: int, workers: int) -> tuple[float, float]:
    """For the memory: an epoch of the large study's length at most, as fast as it comes."""
    batches = open_batches(folder, size, workers)
    for _ in range(LARGE // BATCH // 2):
        next(batches)
    return 0.0, 0.0


def _child(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for output in (1, 2):  # also of what the libraries start
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    try:
        pipe.send(work(*arguments))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:300])
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)


def _memory_child(pipe: Any, module: str, *work_and_arguments: Any) -> None:
    """As `_child`, but with the library in memory before it says so, and begins when it is told to."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loaders, as where a program begins
    if module:
        import_streaming() if module == "streaming" else importlib.import_module(module)
    pipe.send("ready")
    pipe.recv()
    _child(pipe, work_and_arguments[0], work_and_arguments[1:])


def memory_of(pid: int) -> float:
    """MB that a process and all below it take; what they share counts once, mapped files (libraries) do not."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
            total += sum(int(text.split(f"\n{kind}:")[1].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem"))
    except (psutil.Error, OSError, IndexError):  # one has just ended
        return 0.0
    return total / 1000


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """work(*arguments) in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours_end, its_end = context.Pipe()
    process = context.Process(target=_child, args=(its_end, work, arguments))
    process.start()
    its_end.close()
    result = ours_end.recv() if ours_end.poll(120) else "no answer in 120 s"
    process.kill()
    process.join()
    if isinstance(result, str):
        raise RuntimeError(result)
    return result


def peak_memory(module: str, open_batches: Open, folder: Path) -> float:
    """MB that a contender and its 2 workers add at 224 px to a new process that has imported `module`.

    New, not forked: what a fork shares with its parent is counted in parts that shift.
    """
    context = multiprocessing.get_context("spawn")
    ours_end, its_end = context.Pipe()
    process = context.Process(target=_memory_child, args=(its_end, module, open_for, open_batches, folder, 224, 2))
    process.start()
    its_end.close()
    assert ours_end.poll(120) and ours_end.recv() == "ready" and process.pid
    before = peak = memory_of(process.pid)
    ours_end.send("go")
    while not ours_end.poll(0.02):
        peak = max(peak, memory_of(process.pid))
    result = ours_end.recv()
    process.kill()
    process.join()
    if isinstance(result, str):
        raise RuntimeError(result)
    return peak - before


def size_on_disk(folder: Path, name: str) -> float:
    """MB of all that a contender reads with pictures."""
    places = {"customary": ("eeg.pth", "images"), "litdata": ("litdata-True",), "mosaicml-streaming": ("mosaic-True",)}
    paths = [folder / place for place in places.get(name, ("shards",))]
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6


def prepare(folder: Path) -> dict[str, str]:
    """Write both studies in all formats; {contender: why it is left out}."""
    absent = {}
    for name, trials in (("small", SMALL), ("large", LARGE)):
        (folder / name).mkdir()
        write_study(folder / name, trials)
    for contender, (module, write) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            absent[contender] = f"not installed: pip install {contender}"
            continue
        try:
            import_streaming() if module == "streaming" else importlib.import_module(module)  # once, not in each child
            for name, pictures in (("small", True), ("large", True), ("large", False)):
                in_child(write, folder / name, pictures, folder / name / f"{contender.split('ml')[0]}-{pictures}")
        except (RuntimeError, ImportError) as error:
            absent[contender] = f"failed: {error}"
    return absent


def main(rounds: int = 3) -> None:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            shown, sys.stdout = sys.stdout, nowhere
            absent = prepare(folder)
            sys.stdout = shown
        large, rates, firsts = folder / "large", {}, {}  # type: Path, dict[Any, list[float]], dict[str, list[float]]
        load = [os.getloadavg()[0]]
        for _ in range(rounds):
            for size, workers in itertools.product(SIZES, (1, 2)):
                for name, open_batches in CONTENDERS.items():
                    if name in absent or (not size and "kept" in name):
                        continue
                    try:
                        speed, first = in_child(rate, open_batches, large, size, workers)
                    except RuntimeError as error:
                        absent[name] = f"failed: {error}"
                        continue
                    rates.setdefault((name, size, workers), []).append(speed)
                    if (size, workers) == (224, 1):
                        firsts.setdefault(name, []).append(first)
                for name, work in LIMITS.items():
                    if size or name == "tar bytes":
                        speed, _ = in_child(limit, work, large, size, workers)
                        rates.setdefault((name, size, workers), []).append(speed)
            load.append(os.getloadavg()[0])
        peaks = {
            (name, study): peak_memory(LIBRARIES.get(name, ("", None))[0], open_batches, folder / study)
            for name, open_batches in CONTENDERS.items()
            for study in ("small", "large")
            if name not in absent
        }
        report(folder, absent, {key: statistics.median(values) for key, values in rates.items()}, firsts, peaks, load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(
    folder: Path,
    absent: dict[str, str],
    rates: dict[Any, float],
    firsts: dict[str, list[float]],
    peaks: dict[Any, float],
    load: list[float],
) -> None:
    columns = list(itertools.product(SIZES, (1, 2)))
    print(f"{os.cpu_count()} cores, load {' '.join(f'{x:.1f}' for x in load)}; trials a second, px / workers:")
    heads = [f"{size or 'EEG'}/{workers}" for size, workers in columns]
    print(f"{'':22}" + "".join(f"{h:>8}" for h in [*heads, "1st ms", "disk MB", "MB@512", "MB@2048"]))
    for name in [*CONTENDERS, *LIMITS]:
        if name in absent:
            print(f"{name:22} {absent[name]}")
            continue
        cells = [rates.get((name, *column), float("nan")) for column in columns]
        if name in CONTENDERS:
            cells += [statistics.median(firsts[name]) * 1000, size_on_disk(folder / "large", name)]
            cells += [peaks[name, "small"], peaks[name, "large"]]
        print(f"{name:22}" + "".join(f"{'-' if np.isnan(x) else format(x, '.0f'):>8}" for x in cells))
    print("\nratios of ours (aim)")
    others = [name for name in LIBRARIES if name not in absent]

    def line(what: str, against: Callable[[tuple[int, int]], float]) -> None:
        ratios = [rates[("ours", *c)] / against(c) for c in columns]
        print(f"{what:36}" + "".join(f"{'-' if np.isnan(x) else format(x, '.2f'):>8}" for x in ratios))

    line("to customary (3)", lambda c: rates[("customary", *c)])
    if others:
        line("to the faster streaming library (1)", lambda c: max(rates[(name, *c)] for name in others))
    line("to decode only (0.8)", lambda c: rates.get(("decode only", *c), float("nan")))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
