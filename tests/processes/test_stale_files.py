"""A file system that shows one rank an older listing than the others see: all go on alike, or all say one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
WORLDS = pytest.mark.parametrize("world, rank", [(2, 1), (4, 2)])


def command(run_dir) -> list[str]:
    """With a loss at step 9 that is not a number: where `made` was stopped."""
    options = {"max_steps": 12, "checkpoint_every": 4, "nan_at": "[9]", "global_batch_size": 8, "log_every": 1}
    options |= {"timeout_minutes": 0.5}
    return [str(HERE / "small_trainer.py"), f"run_dir={run_dir}", *(f"{k}={v}" for k, v in options.items())]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8, of which nothing else is left."""
    from conftest import Processes

    folder = tmp_path_factory.mktemp("made")
    processes = Processes(command(folder / "run"), 1, folder / "log")
    assert processes.wait() == [2] and "step 9, rank 0" in processes.log.read_text()
    return folder / "run"


@pytest.fixture
def stale(start, tmp_path):
    """stale(known, seconds, world, rank) -> (exit codes, log) of the rest of the run, on one rank of which `known` are
    the only files that show, for so many seconds (None: for ever)."""

    def go(known, seconds, world, rank, reads=None) -> tuple[list[int], str]:
        told = {"rank": rank, "root": str(tmp_path), "known": [str(path) for path in known], "seconds": seconds}
        told["reads"] = reads
        told["patience"] = 10 if seconds else 0.5
        arguments = [str(HERE / "stale.py"), *command(tmp_path / "run"), "nonfinite=skip"]
        processes = start(arguments, world, STALE=json.dumps(told))
        codes = processes.wait()
        return codes, processes.log.read_text()

    return go


def everything(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


@pytest.fixture
def expected(made, start, tmp_path):
    """The weights of the rest of the run, where all ranks see all files."""
    found = {}

    def weights(world: int) -> dict[str, torch.Tensor]:
        if world not in found:
            run = shutil.copytree(made, tmp_path / "expected")
            assert start([*command(run), "nonfinite=skip"], world).wait() == [0] * world
            found[world] = load_file(run / "model/model.safetensors")
        return found[world]

    return weights


def ends_right(tmp_path, expected, world, outcome) -> None:
    codes, said = outcome
    assert codes == [0] * world, said
    found, wanted = load_file(tmp_path / "run/model/model.safetensors"), expected(world)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def one_sentence(world, outcome, sentence) -> None:
    codes, said = outcome
    assert codes == [2] * world, said
    assert said.count(sentence) == world and "Traceback" not in said, said


@WORLDS
def test_resume(made, stale, expected, tmp_path, world, rank):
    shutil.copytree(made, tmp_path / "run")
    older = [path for path in everything(tmp_path) if "step-00000008" not in str(path)]
    outcome = stale(older, None, world, rank)
    one_sentence(world, outcome, "step-00000008")
    assert f"rank {rank} on " in outcome[1] and "need one shared file system" in outcome[1]
    ends_right(tmp_path, expected, world, stale(older, 0.5, world, rank))


def test_content(made, stale, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    outcome = stale([], None, 2, 1, str(run / "checkpoints/step-00000004"))
    one_sentence(2, outcome, "step-00000008 was not read alike by all ranks")


@WORLDS
def test_save(made, stale, expected, tmp_path, world, rank):
    shutil.copytree(made, tmp_path / "run")
    before = everything(tmp_path)
    one_sentence(world, stale(before, None, world, rank), "the checkpoint of step 12 could not be written")
    assert not list((tmp_path / "run").glob("checkpoints/*.partial"))
    assert (tmp_path / "run/checkpoints/step-00000008").exists() and not (tmp_path / "run/DONE").exists()
    ends_right(tmp_path, expected, world, stale(before, 0.5, world, rank))


@WORLDS
def test_claim(stale, tmp_path, world, rank):
    one_sentence(world, stale([], None, world, rank), "run/config.yaml does not show there")
    shutil.rmtree(tmp_path / "run")
    codes, said = stale([], 0.5, world, rank)
    assert codes == [0] * world, said
    assert (tmp_path / "run/DONE").exists()
