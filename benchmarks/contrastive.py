"""The contrast in chunks beside the full matrix, and trials a second of the trainer beside a bare loop of its model.

    OMP_NUM_THREADS=1 python benchmarks/contrastive.py [rounds]      # 3 rounds: some 10 minutes on two cores

Losses: value and gradients of symmetric InfoNCE (and, last, SigLIP) of B random predictions and features, D = 512.

    plain        cross_entropy of the B x B logits and of their transpose, by autograd, in one process
    chunked      losses.info_nce, 512 rows at a time, in one process
    gathered     the same in two processes, B / 2 trials each, ids and sums of columns exchanged over gloo

s: processor seconds of a step (on one thread; what else the machine does counts less than in wall time), the worse of
the two processes, the median over the rounds (of B = 16,384: one round). MB: what the step adds to the peak of a
process that holds its inputs. Each measurement is a process of its own, and contenders take turns. A plain step that
would need more than PLAIN_LIMIT is left out.

Trainer: trainers/contrastive.py from shards, with its log, with one loader worker or none; bare loop: the same
ContrastiveEncoder (conv) and AdamW on EEG that lies in memory as float32, plain InfoNCE, clipping. Each a process of
its own that takes turns; medians of the steps after the first five, in wall time, and in processor time of the training
process, which is what the loop costs beside the reading of data when there are cores for workers.
"""

import itertools
import json
import multiprocessing
import os
import resource
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from neuroimagen.config import load_config
from neuroimagen.contrastive import losses
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.features.format import picture_digests, write_features
from neuroimagen.run.collectives import gather_rows
from neuroimagen.run.run import Run
from neuroimagen.shards.format import SPLITS, ShardSplit

REPO = Path(__file__).parents[1]
D, CHUNK, PLAIN_LIMIT = 512, 512, 6e9
BATCH, STEPS, WIDTH = 128, 30, 1024  # of the trainer


def plain(z: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits, truth = scale * z @ v.T, torch.arange(len(z))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(kind: str, size: int, rank: int, world: int, port: int, answers) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(rank)
    z = F.normalize(torch.randn(size // world, D), dim=1).requires_grad_()
    v, ids = F.normalize(torch.randn(size, D), dim=1), torch.arange(size // world) + rank * size // world
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)

    def step() -> None:
        everyone = gather_rows(ids)
        if kind == "plain":
            loss = plain(z, v, scale)
        elif kind == "siglip":
            loss = losses.siglip(z, v, everyone, scale, bias, CHUNK)
        else:
            loss = losses.info_nce(z, v, everyone, scale, CHUNK)
        loss.backward()

    before, seconds = peak(), []
    for _ in range(3 if size < 10_000 else 1):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    answers.put((min(seconds), peak() - before))
    if world > 1:
        dist.destroy_process_group()


def in_processes(kind: str, size: int, world: int) -> tuple[float, float]:
    """Seconds and megabytes, the worse of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    started = [context.Process(target=measure, args=(kind, size, r, world, port, answers)) for r in range(world)]
    for process in started:
        process.start()
    found = [answers.get(timeout=900) for _ in started]
    for process in started:
        process.join()
    return max(s for s, _ in found), max(mb for _, mb in found)


def compare_losses(rounds: int) -> None:
    print(f"{'B':>6} {'':10} {'s':>8} {'MB':>8}   of plain: time, memory", flush=True)
    for size in (1024, 4096, 16384):
        contenders = {
            "plain": ("plain", 1),
            "chunked": ("infonce", 1),
            "gathered": ("infonce", 2),
            "siglip": ("siglip", 1),
        }
        if 6 * 4 * size**2 > PLAIN_LIMIT:  # logits, two softmaxes, their gradients
            del contenders["plain"]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(rounds if size < 10_000 else 1):
            for name, (kind, world) in contenders.items():
                found[name].append(in_processes(kind, size, world))
        medians = {
            name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in found.items()
        }
        for name, (seconds, memory) in medians.items():
            ratio = [a / b for a, b in zip((seconds, memory), medians.get("plain", ()), strict=False)]
            print(
                f"{size:6} {name:10} {seconds:8.3f} {memory:8.0f}   {'  '.join(f'{x:.2f}' for x in ratio)}", flush=True
            )
        if "plain" not in contenders:
            print(f"{size:6} plain      left out: about {6 * 4 * size**2 / 1e9:.1f} GB")


def write_study(folder: Path) -> None:
    cli = [sys.executable, "-m", "neuroimagen.cli"]
    size = ["classes=8", "images_per_class=40", "n_subjects=2", "picture_size=32"]
    files = [f"eeg={folder}/study/eeg.pth", f"images={folder}/study/images", "splits=by_image", f"out={folder}/shards"]
    for command in (["simulate", f"out={folder}/study", *size], ["shards", *files]):
        subprocess.run([*cli, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    keys = sorted({key for split in SPLITS for key in picture_digests(ShardSplit(folder / "shards", split))})
    write_features(folder / "f.safetensors", torch.randn(len(keys), WIDTH), keys, {"kind": "image", "model": "random"})


def steps_of_trainer(folder: Path, workers: int, number: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each step of this process."""
    seen, advance = [], Run.advance

    def clocked(self, **values) -> None:
        advance(self, **values)
        seen.append((time.perf_counter(), time.process_time()))

    Run.advance = clocked  # type: ignore[method-assign]
    main = runpy.run_path(str(REPO / "trainers" / "contrastive.py"), run_name="imported")["main"]
    given = [
        f"shards={folder}/shards",
        f"features=[{folder}/f.safetensors]",
        f"run_dir={folder}/run-{workers}-{number}",
    ]
    given += [f"global_batch_size={BATCH}", f"max_steps={STEPS}", "encoder=conv", "checkpoint_every=0"]
    main(load_config(main.__annotations__["config"], [*given, f"workers={workers}"], "contrastive"))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(seen)]


def steps_of_bare_loop(folder: Path) -> list[tuple[float, float]]:
    """The same of a loop that a reader would write."""
    split = ShardSplit(folder / "shards", "train")
    eeg = torch.stack([split.eeg_into(i, torch.empty(split.shape)) for i in range(len(split))])
    eeg = (eeg - eeg.mean((0, 2), keepdim=True)) / eeg.std((0, 2), keepdim=True)
    features, seen = torch.randn(len(split), WIDTH), []
    model = ContrastiveEncoder(*split.shape, {"f": {"width": WIDTH}}, "conv", 512)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)
    for _ in range(STEPS):
        rows = torch.randperm(len(eeg))[:BATCH]
        z = F.normalize(model(eeg[rows])["f"], dim=1)
        loss = plain(z, F.normalize(features[rows], dim=1), model.log_scale.exp())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append((time.perf_counter(), time.process_time()))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(seen)]


def compare_trainer(rounds: int) -> None:
    contenders = {"bare loop": "bare", "trainer, 1 worker": "1", "trainer, none": "0"}
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder))
        for number in range(rounds):
            for name, which in contenders.items():
                command = [sys.executable, __file__, which, folder, str(number)]
                done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':18} {'trials/s':>8} {'per processor second':>21}   of the bare loop's: time, processor time")
    base = found["bare loop"]
    for name, each in found.items():
        wall, cpu = ([statistics.median(x[i] for x in each)] for i in (0, 1))
        ratio = [statistics.median(x[i] / y[i] for x, y in zip(each, base, strict=True)) - 1 for i in (0, 1)]
        told = "  ".join(f"{x:+.1%}" for x in ratio) if each is not base else ""
        print(f"{name:18} {BATCH / wall[0]:8.0f} {BATCH / cpu[0]:21.0f}   {told}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        place = Path(sys.argv[2])
        steps = (
            steps_of_bare_loop(place) if sys.argv[1] == "bare" else steps_of_trainer(place, *map(int, sys.argv[1:4:2]))
        )
        print(json.dumps([statistics.median(column) for column in zip(*steps[5:], strict=True)]))
    else:
        count = int(sys.argv[1]) if sys.argv[1:] else 3
        compare_trainer(count)
        compare_losses(count)
