"""What goes wrong on a cluster, done to real processes: kills, hangs, full disks, numbers that are not finite."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuroimagen.shards.format import ShardSplit

REPO = Path(__file__).parents[2]
TRAINER = str(Path(__file__).with_name("small_trainer.py"))
STEP = "neuroimagen.run.run:Run.advance:{}"  # where to hold a rank, see forked.hold_where_told


def command(run_dir, **options) -> list[str]:
    options = {"max_steps": 40, "log_every": 1, "checkpoint_every": 5, "global_batch_size": 8} | options
    return [TRAINER, f"run_dir={run_dir}", *(f"{name}={value}" for name, value in options.items())]


def weights(run_dir) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model/model.safetensors")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contrastive(run_dir, study) -> list[str]:
    """As many steps of the trainer whose ranks exchange the most."""
    inputs = [f"shards={study.shards}", f"features=[{study.folder}/picture.safetensors]"]
    return [
        "trainers/contrastive.py",
        *command(run_dir)[1:],
        *inputs,
        "encoder=conv",
        "encoder_width=4",
        "n_features=8",
    ]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """uncut(start) -> the weights of `command`, or of another, on two processes, never cut off."""
    folder = tmp_path_factory.mktemp("uncut")

    def get(start, of=command, name="small") -> dict[str, torch.Tensor]:
        run_dir = folder / name
        if not run_dir.exists():
            assert start(of(run_dir), 2).wait() == [0, 0]
        return weights(run_dir)

    return get


def test_a_killed_rank_is_noticed_and_the_run_can_go_on(start, uncut, tmp_path):
    processes = start(command(tmp_path / "run"), 2, hold=STEP.format(6))
    processes.wait_for_step(tmp_path / "run", 6)
    processes.signal(signal.SIGKILL, slice(1, 2))
    codes = processes.wait()  # far below timeout_minutes: the broken connection tells
    said = processes.log.read_text()
    assert codes == [2, -signal.SIGKILL] and "see which ended first" in said and "Traceback" not in said, said[-2000:]
    assert start(command(tmp_path / "run"), 2).wait() == [0, 0]
    assert equal(weights(tmp_path / "run"), uncut(start))


def test_a_hung_rank_shows_where_it_is_and_the_others_give_up(start, tmp_path):
    processes = start(command(tmp_path / "run", hang_at=3, timeout_minutes=0.3), 2)
    deadline = time.monotonic() + 900
    while processes.all[0].poll() is None:
        assert time.monotonic() < deadline, processes.log.read_text()[-3000:]
        time.sleep(0.1)
    assert processes.all[0].returncode not in (0, 143) and processes.all[1].poll() is None
    said = processes.log.read_text()
    lines = Path(TRAINER).read_text(encoding="utf-8").splitlines()
    hanging = next(number for number, line in enumerate(lines, 1) if "time.sleep(3600)" in line)
    assert f'small_trainer.py", line {hanging} in main' in said, said[-3000:]  # the stack of the rank that hangs
    assert "imed out" in said


def test_a_second_run_on_one_run_dir_is_refused(start, tmp_path):
    first = start(command(tmp_path / "run"), 1, hold=STEP.format(1))
    first.wait_for_step(tmp_path / "run", 1)
    second = start(command(tmp_path / "run"), 2)
    assert second.wait() == [2, 2]
    assert f"in use by process {first.all[0].pid} on" in second.log.read_text()
    first.signal(signal.SIGUSR1)  # go on
    assert first.wait() == [0], first.log.read_text()
    assert start(command(tmp_path / "run"), 1).wait() == [0]  # done; nothing is left locked


@pytest.mark.parametrize("before, after", [(2, 1), (1, 3)])
def test_another_number_of_processes_continues_and_says_so(start, tmp_path, before, after):
    options = {"global_batch_size": 6}
    processes = start(command(tmp_path / "run", **options), before, hold=STEP.format(3))
    processes.wait_for_step(tmp_path / "run", 3)
    processes.signal(signal.SIGTERM)
    assert processes.wait() == [143] * before
    processes = start(command(tmp_path / "run", **options), after)
    assert processes.wait() == [0] * after, processes.log.read_text()
    assert f"saved by {before} processes, on {after}" in processes.log.read_text()
    assert start(command(tmp_path / "whole", **options), after).wait() == [0] * after
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all((whole[name] - cut[name]).abs().max() < 1e-5 for name in whole)


def test_a_loss_that_is_not_finite_names_step_rank_and_samples(start, tmp_path):
    processes = start(command(tmp_path / "run", nan_at="[7]"), 2)
    assert processes.wait() == [2, 2], processes.log.read_text()
    said = processes.log.read_text()
    assert "step 7, rank 1: loss is nan" in said and "step 7: the loss of another rank" in said
    found = json.loads((tmp_path / "run/nonfinite-00000007-rank1.json").read_text())
    assert found["keys"] == [f"sample-7-1-{i}" for i in range(4)] and found["loss"] == "nan"
    # the same command with nonfinite=skip goes on from the checkpoint
    processes = start(command(tmp_path / "run", nan_at="[7]", nonfinite="skip"), 2)
    assert processes.wait() == [0, 0], processes.log.read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if line["step"] == 40 and "lr" in line] == [1]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_run_that_has_diverged_does_not_skip_for_ever(start, tmp_path):
    steps = str(list(range(5, 40))).replace(" ", "")
    processes = start(command(tmp_path / "run", nan_at=steps, nonfinite="skip"), 1)
    assert processes.wait() == [2]
    assert "it has diverged" in processes.log.read_text() and not (tmp_path / "run/DONE").exists()


def test_a_trial_that_cannot_be_read_stops_the_run_or_is_counted(start, study, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(study.shards, shards)
    split = ShardSplit(shards, "train")
    row = split.index[3]
    with open(split.paths[row["tar"]], "r+b") as tar:
        tar.seek(int(row["json"][0]))
        tar.write(b"]")
    size = ["encoder=conv", "n_features=16", "global_batch_size=8", "max_steps=8", "log_every=1"]  # past an epoch
    trainer = ["trainers/pixel_features.py", f"shards={shards}", f"run_dir={tmp_path}/run", *size]
    processes = start(trainer, 1)
    assert processes.wait() == [2]
    said = processes.log.read_text()
    assert split.paths[row["tar"]].name in said and split.keys[3] in said and "Traceback" not in said, said
    shutil.rmtree(tmp_path / "run")
    processes = start([*trainer, "max_bad_samples=1"], 1)
    assert processes.wait() == [0], processes.log.read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [line["bad_trials"] for line in lines if "bad_trials" in line][-1] == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(start, small_disk):
    run_dir = small_disk / "run"
    # 1.2 MB of weights and optimizer state a checkpoint; the filler comes when the first is whole
    options = {"width": 16000}
    processes = start(command(run_dir, **options), 2, hold=STEP.format(5))
    processes.wait_for_step(run_dir, 5)
    deadline = time.monotonic() + 900
    while not (run_dir / "checkpoints/step-00000005").exists():
        assert time.monotonic() < deadline, processes.log.read_text()
        time.sleep(0.02)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    os.truncate(filler, max(0, filler.stat().st_size - (64 << 10)))  # room for the log, not for a checkpoint
    processes.signal(signal.SIGUSR1, slice(1, 2))  # go on
    assert processes.wait() == [2, 2], processes.log.read_text()
    said = processes.log.read_text()
    assert "could not be written" in said and "is kept; make room and run the same command" in said, said[-2000:]
    assert not list(run_dir.glob("checkpoints/*.partial"))
    filler.unlink()
    processes = start(command(run_dir, **options), 2)
    assert processes.wait() == [0, 0], processes.log.read_text()
    assert "continuing at step 5" in processes.log.read_text() or "continuing at step 10" in processes.log.read_text()


@pytest.mark.parametrize("trainer", ["small", "contrastive"])
def test_random_kills(trainer, start, uncut, study, tmp_path, request):
    """SIGKILL or SIGTERM, to one rank or to all, at random moments from the first import on: the run always ends with
    the weights of an uncut one. Three moments here; `make test-kills` tries twenty."""
    moments = request.config.getoption("--kills")
    of = command if trainer == "small" else functools.partial(contrastive, study=study)
    chance = random.Random(moments)
    for moment in range(moments):
        run_dir, early = tmp_path / f"run-{moment}", moment % 3 == 0
        delay, step = chance.uniform(0, 1), chance.randint(1, 30)
        processes = start(of(run_dir), 2, fresh=early, hold="" if early else STEP.format(step))
        number, ranks = chance.choice([signal.SIGKILL, signal.SIGTERM]), chance.choice([slice(None), slice(1)])
        if early:
            time.sleep(5 * delay)  # the imports take as long, and more on a busy machine
        else:
            processes.wait_for_step(run_dir, step)
            processes.signal(signal.SIGUSR1, slice(1, 2))  # go on
            time.sleep(0.05 * delay)
        processes.signal(number, ranks)
        codes = processes.wait_like_a_launcher()
        print(f"{moment}: {number.name} to {ranks}, {'early' if early else 'late'}: {codes}")
        if codes != [0, 0]:
            processes = start(of(run_dir), 2)
            assert processes.wait() == [0, 0], processes.log.read_text()[-3000:]
        assert (run_dir / "DONE").exists() and equal(weights(run_dir), uncut(start, of, trainer)), moment
