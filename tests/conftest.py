"""A tiny simulated study and its shards, made once for all tests that start real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import Forked
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

REPO = Path(__file__).parents[1]
PATIENCE = 600  # seconds until a test calls it a hang, on however busy a machine

# Property tests: `fixed` draws the same examples on every machine, `make test-random` others each time. Neither keeps
# examples, nor minds a busy machine; no test sets anything of this for itself.
calm = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", max_examples=60, derandomize=True, **calm)
settings.register_profile("random", max_examples=3000, print_blob=True, **calm)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
if settings.get_current_profile_name() == "fixed":  # or it draws constants of those of our modules imported by then
    providers.is_local_module_file = lambda path: False  # type: ignore[attr-defined]


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="random moments at which test_random_kills cuts a run")


def pytest_sessionfinish():
    Forked.end()


@pytest.fixture(autouse=True)
def no_run_is_held():
    """A run that ends in an error holds its directory as long as its process lives: here many more tests."""
    yield
    if module := sys.modules.get("neuroimagen.run.directory"):
        for run_dir in list(module._held):
            module.release(run_dir)


@pytest.fixture(scope="session", autouse=True)
def a_hub_that_is_not_reached_is_known_at_once():
    """The hub's client waits 23 s for each file that it cannot reach, and asks for six of them."""
    from huggingface_hub.utils import _http

    for function in (_http.http_backoff, _http._http_backoff_base):
        function.__kwdefaults__ |= {"base_wait_time": 0, "max_wait_time": 0}


@pytest.fixture
def one_thread():
    """Bits of a sum depend on how many threads share it: one, as in the processes that the tests start."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fp32_is_fp32():
    """TF32 is allowed before the test and must not be after it."""
    import torch

    parts = {"matrix products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
    for part in parts.values():
        part.allow_tf32 = True
    yield
    assert not [name for name, part in parts.items() if part.allow_tf32], "TF32 may be used in these"


@dataclass
class Study:
    folder: Path  # study/, shards/, pipeline/, picture, layer and caption.safetensors

    @property
    def shards(self) -> Path:
        return self.folder / "shards"


def run_cli(*arguments: str) -> None:
    from neuroimagen.cli import main

    assert main(list(arguments)) == 0


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Study:
    sys.path.insert(0, str(REPO / "tests"))
    from tiny_models import tiny_features, tiny_pipeline

    folder = tmp_path_factory.mktemp("study")
    size = ["classes=4", "images_per_class=6", "n_subjects=2", "picture_size=64"]
    run_cli("simulate", f"out={folder}/study", *size)
    files = [f"eeg={folder}/study/eeg.pth", f"images={folder}/study/images", "splits=by_image"]
    run_cli("shards", f"out={folder}/shards", *files, "shard_size=16")
    tiny_pipeline(folder / "pipeline")
    for name, width, kind in (("picture", 24, "image"), ("layer", 8, "image"), ("caption", 12, "text")):
        tiny_features(folder / f"{name}.safetensors", folder / "shards", width, kind)
    return Study(folder)


class Processes:
    """`world` real processes of one trainer over gloo on this machine's CPU; started directly, to save the launcher.

    They begin after the imports (forked.py), unless `fresh`. hold="module:function:N" makes the last rank wait there,
    and so its peers, which exchange something at each step: see forked.hold_where_told.
    """

    def __init__(
        self, arguments: list[str], world: int, log: Path, fresh: bool = False, hold: str = "", **environment: str
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {
            **os.environ,
            "ACCELERATE_USE_CPU": "yes",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPO),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            **environment,
        }
        if world == 1 and "LOCAL_RANK" not in environment:
            shared = {k: v for k, v in shared.items() if k not in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
        self.log = log
        self.all: list[Forked | subprocess.Popen] = []
        for rank in range(world):
            ranked = {**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})}
            if hold and rank == world - 1:
                ranked["HOLD"] = hold
            if not fresh:
                self.all.append(Forked(arguments, ranked, log))
                continue
            with open(log, "a", encoding="utf-8") as out:
                command = [sys.executable, *arguments]
                self.all.append(subprocess.Popen(command, cwd=REPO, env=ranked, stdout=out, stderr=out))

    def wait(self, timeout: float = PATIENCE) -> list[int]:
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(1, deadline - time.monotonic())) for p in self.all]
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"not finished after {timeout} s:\n{self.log.read_text()[-3000:]}") from None

    def wait_like_a_launcher(self, patience: float = 15) -> list[int]:
        """The exit codes; once one process has ended, those that do not follow are killed, as a launcher does it."""
        self.all[0].poll()
        deadline = None
        while any(p.poll() is None for p in self.all):
            if deadline is None and any(p.poll() is not None for p in self.all):
                deadline = time.monotonic() + patience
            if deadline and time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            time.sleep(0.05)
        return [p.returncode for p in self.all]

    def signal(self, number: int, ranks: slice = slice(None)) -> None:
        for process in self.all[ranks]:
            if process.poll() is None:
                process.send_signal(number)

    def wait_for_step(self, run_dir: Path, step: int, timeout: float = PATIENCE) -> None:
        """Until stats.jsonl shows `step`; the trainer must still be running then."""
        deadline = time.monotonic() + timeout
        stats = run_dir / "stats.jsonl"
        while time.monotonic() < deadline:
            if stats.exists() and f'"step": {step},' in stats.read_text():
                return
            if any(p.poll() is not None for p in self.all):
                break
            time.sleep(0.02)
        raise AssertionError(f"step {step} not seen:\n{self.log.read_text()[-3000:]}")


@pytest.fixture
def start(tmp_path):
    """start(arguments, world) -> Processes; whatever is left is killed at the end."""
    started = []

    def begin(arguments: list[str], world: int = 2, **options) -> Processes:
        started.append(Processes(arguments, world, tmp_path / f"log-{len(started)}.txt", **options))
        return started[-1]

    yield begin
    for processes in started:
        processes.signal(signal.SIGKILL)
