"""What a second process brings, for each trainer, and what Run costs against a bare torch loop.

    python benchmarks/scaling.py [rounds]        # writes the table of docs/measured/scaling.md, between its two marks

Each trainer makes the same global batch (64) with one process and with two, one thread each, with the sizes of
configs/demo.yaml on a simulated study; the two take turns. Throughput is the median over what stats.jsonl says of the
later half of the steps, the medians over the rounds are compared (two free cores: at most 2). On two
cores the processes share caches and memory, so less than 2 is lost to the machine, too; `limit` is what two copies of
the one-process run reach side by side, which share nothing but the machine.

Overhead: blocks of steps of stage 1a through Run and of the same model, batches and optimizer in a plain loop, in turns
in one process.
"""

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from neuroimagen.batches.stream import train_batches
from neuroimagen.cli import main as cli
from neuroimagen.config import TrainConfig
from neuroimagen.pixel import losses
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.run.run import Run

REPO = Path(__file__).parents[1]
MARKS = ("<!-- scaling: begin (python benchmarks/scaling.py) -->", "<!-- scaling: end -->")
STEPS = {"pixel_features": 80, "pixel_saliency": 30, "sample_semantics": 80, "autoencoder": 16, "denoiser": 16}
MODEL = {"n_chans": 128, "n_times": 440, "encoder": "lstm", "n_features": 128}


def start(folder: Path, stage: str, run_dir: Path, world: int) -> list[subprocess.Popen]:
    """`world` processes of one trainer."""
    options = {"run_dir": run_dir, "global_batch_size": 64, "max_steps": STEPS[stage], "log_every": 2}
    options |= {"checkpoint_every": 0, "validate_every": 0, "seed": 0}
    script, configs = stage, ["config=configs/demo.yaml"]
    if stage in ("autoencoder", "denoiser"):
        script, configs = "latent_diffusion", ["config=configs/latent_diffusion.yaml"]
        options |= {"part": stage, "images": folder / "study/images", "init": "neuroimagen/embedded/diffusion"}
    else:
        options["shards"] = folder / "shards"
    if stage == "pixel_saliency":
        options["features"] = folder / "features"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    processes = []
    for rank in range(world):
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, f"trainers/{script}.py", *configs, *(f"{k}={v}" for k, v in options.items())]
        with open(f"{run_dir}-{rank}.log", "w", encoding="utf-8") as log:
            processes.append(subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log))
    return processes


def finish(processes: list[subprocess.Popen], run_dir: Path) -> dict[str, float]:
    """Samples a second, last loss and peak memory of one process (GB)."""
    if any(process.wait() for process in processes):
        raise SystemExit(Path(f"{run_dir}-0.log").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "samples_per_second" in line]
    speed = statistics.median(line["samples_per_second"] for line in lines[len(lines) // 2 :])
    loss = lines[-1].get("loss", lines[-1].get("loss_g"))
    return {"speed": speed, "loss": loss, "memory": lines[-1]["memory_gb"]}


def scaling(folder: Path, stage: str, rounds: int) -> str:
    """One row of the table."""
    one, two, beside = [], [], []
    for number in range(rounds):
        name = folder / f"{stage}-{number}"
        one.append(finish(start(folder, stage, Path(f"{name}-one"), 1), Path(f"{name}-one")))
        two.append(finish(start(folder, stage, Path(f"{name}-two"), 2), Path(f"{name}-two")))
        pair = [(start(folder, stage, Path(f"{name}-{side}"), 1), Path(f"{name}-{side}")) for side in "ab"]
        beside.append(sum(finish(*run)["speed"] for run in pair))
    speed_1, speed_2 = (statistics.median(run["speed"] for run in runs) for runs in (one, two))
    difference = abs(two[0]["loss"] - one[0]["loss"]) / abs(one[0]["loss"])
    memory_1, memory_2 = one[0]["memory"], two[0]["memory"]
    return (
        f"| {stage} | {speed_1:.0f} | {speed_2:.0f} | {speed_2 / speed_1:.2f} | "
        f"{statistics.median(beside) / speed_1:.2f} | {difference:.1e} | {memory_1:.2f} | {memory_2:.2f} |"
    )


def overhead(folder: Path, rounds: int, block: int = 20) -> float:
    """Seconds of a step through Run over seconds of a bare step."""
    run = Run(TrainConfig(run_dir=f"{folder}/overhead", max_steps=100_000, checkpoint_every=0))
    models = [FeatureExtractor(**MODEL) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), 3e-4, fused=True) for model in models]
    model, optimizer = run.prepare(models[0], optimizers[0])
    run.resume()
    streams = [train_batches(f"{folder}/shards", batch_size=64) for _ in range(2)]

    def with_run() -> None:
        for _ in range(block):
            assert run.going()
            batch = run.next(streams[0])
            loss, active = losses.triplet(model(batch["eeg"]), batch["label"], 1.0)
            run.backward(loss, batch["key"], loss=loss)
            run.update(optimizer, model, 1.0)
            run.advance(active=active)

    def bare() -> None:
        for _ in range(block):
            batch = next(streams[1])
            loss, _ = losses.triplet(models[1](batch["eeg"]), batch["label"], 1.0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
            optimizers[1].step()
            optimizers[1].zero_grad()

    ratios = []
    for number in range(rounds + 1):
        seconds = []
        for loop in (with_run, bare) if number % 2 else (bare, with_run):
            began = time.perf_counter()
            loop()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1] if number % 2 else seconds[1] / seconds[0])
    return statistics.median(ratios[1:])  # the first block warms up


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = ["classes=16", "images_per_class=20", "n_subjects=2"]
        assert cli(["simulate", f"out={folder}/study", *study]) == 0
        files = [f"eeg={folder}/study/eeg.pth", f"images={folder}/study/images", "splits=by_image"]
        assert cli(["shards", f"out={folder}/shards", *files]) == 0
        finish(start(folder, "pixel_features", folder / "features", 1), folder / "features")
        head = "| trainer | 1 process, samples/s | 2 processes | ratio | limit | loss apart | GB, 1 | GB each, 2 |"
        lines = [head, "|" + "---|" * 8]
        for stage in STEPS:
            lines.append(scaling(folder, stage, rounds))
            print(lines[-1], flush=True)
        extra = (overhead(folder, 10 * rounds) - 1) * 100
    machine = f"{os.cpu_count()} cores ({platform.machine()}), no GPU, torch {torch.__version__}, one thread a process"
    lines += [
        "",
        f"{machine}; rounds: {rounds}, medians. Through Run a step of stage 1a takes",
        f"{extra:+.1f} % more time than in a bare torch loop with the same model, batches and optimizer.",
    ]
    print("\n".join(lines))
    page = REPO / "docs/measured/scaling.md"
    if page.exists() and MARKS[0] in page.read_text(encoding="utf-8"):
        before, rest = page.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        page.write_text("\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
