"""Commands and trainers in broken environments: one sentence and exit code 2, or, of check, the faults and 1; what was
there stays as it was."""

import builtins
import errno
import hashlib
import io
import os
import random
import runpy
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import perceivelab_files
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from reconstruct_run import make_run
from tiny_models import tiny_blip, tiny_features, tiny_pipeline, tiny_shards, tiny_stage_runs

from neuroimagen.cli import COMMANDS, main
from neuroimagen.config import run_command

TRAINERS = Path(__file__).parents[2] / "trainers"
RANDOM = os.environ.get("HYPOTHESIS_PROFILE") == "random"  # make test-random
EACH, FIRST = (300, random.randrange(10**9)) if RANDOM else (12, 0)  # faults of each command; the first's seed
SMALL = ["max_steps=1", "global_batch_size=2", "encoder=conv", "n_features=4", "encoder_width=4"]
GAN = ["max_steps=8", *SMALL[1:], "z_dim=4", "image_size=16"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Small inputs of every command: pictures/, study/, shards/, pipeline/, blip/, runs/, run/ (scored)."""
    root = tmp_path_factory.mktemp("whole")
    perceivelab_files.write_study(root / "study")
    rng = np.random.default_rng(0)
    for name in ("n02389026", "n03888257"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            picture.save(root / "pictures" / name / f"{name}_{i}.png")
    tiny_shards(root / "runs/shards")
    tiny_pipeline(root / "pipeline")
    tiny_blip(root / "blip")
    tiny_stage_runs(root / "runs", root / "pipeline")
    for stage in ("saliency", "semantics_label", "semantics_blip"):
        path = root / "runs" / stage / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"shards": str(root / "runs/shards")}))
    shutil.copytree(root / "runs/saliency/model/features", root / "runs/features/model")
    for name in ("config.yaml", "DONE"):
        (root / "runs/features" / name).touch()
    tiny_features(root / "image.safetensors", root / "runs/shards", 4)
    make_run(root / "run", classes=2, pictures=2, subjects=1, samples=1)
    (root / "config.yaml").write_text("seed: 0\n")
    return root


RUNS = [f"{name}={{root}}/runs/{name}" for name in ("saliency", "semantics_label", "semantics_blip")]
# What to start -> its arguments, and the inputs, files or folders of files, that may be broken
WORK: dict[str, tuple[list[str], list[str]]] = {
    "simulate": (
        [
            "config={root}/config.yaml",
            "classes=2",
            "images_per_class=6",
            "n_subjects=1",
            "picture_size=32",
            "out={out}",
        ],
        ["config.yaml"],
    ),
    "shards": (
        ["eeg={root}/study/eeg.pth", "images={root}/study/images", "splits_file={root}/study/splits.pth", "n_chans=4"]
        + ["out={out}", "processes=1"],
        ["study", "study/eeg.pth", "study/splits.pth"],
    ),
    "audit": (
        ["eeg={root}/study/eeg.pth", "images={root}/study/images", "splits_file={root}/study/splits.pth", "n_chans=4"]
        + ["out={out}", "quick=true", "run={root}/run"],
        ["study", "study/eeg.pth", "run"],
    ),
    "new": (
        ["dataset=perceivelab", "eeg={root}/study/eeg.pth", "images={root}/study/images", "out={out}"],
        ["study", "study/eeg.pth"],
    ),
    "check": (["source={root}/runs/shards", "report={out}"], ["runs/shards"]),
    "captions": (["images={root}/pictures", "model={root}/blip", "out={out}"], ["pictures", "blip"]),
    "probe": (["images={root}/pictures", "out={out}", "picture_size=24", "size=32", "device=cpu"], ["pictures"]),
    "evaluate": (["run={root}/run", "classifier=embedded", "metrics=[paper]", "device=cpu"], ["run"]),
    "report": (["run={root}/run"], ["run"]),
    "export": (["pipeline={root}/pipeline", "shards={root}/runs/shards", *RUNS, "out={out}"], ["runs", "pipeline"]),
    "pixel_features": ([*SMALL, "global_batch_size=16", "shards={root}/runs/shards"], ["runs/shards"]),
    "pixel_saliency": (
        [*GAN[:2], "z_dim=4", "image_size=16", "generator_width=4", "discriminator_width=4"]
        + ["shards={root}/runs/shards", "features={root}/runs/features"],
        ["runs/shards", "runs/features"],
    ),
    "sample_semantics": (
        [*SMALL, "shards={root}/runs/shards", "pipeline={root}/pipeline", "captions=label"],
        ["runs/shards", "pipeline"],
    ),
    "contrastive": (
        [*SMALL, "shards={root}/runs/shards", "features=[{root}/image.safetensors]"],
        ["runs/shards", "image.safetensors"],
    ),
    "brain2image": ([*GAN, "width=4", "classifier_steps=1", "shards={root}/runs/shards"], ["runs/shards"]),
    "neurovision": (
        [
            *GAN,
            "global_batch_size=4",
            "width=4",
            "max_width=4",
            "classifier_steps=1",
            "phase_steps=1",
            "shards={root}/runs/shards",
        ],
        ["runs/shards"],
    ),
    "latent_diffusion": (
        [*SMALL[:2], "images={root}/pictures", "init={root}/pipeline", "image_size=32"],
        ["pictures", "pipeline"],
    ),
    "reconstruct": (
        ["shards={root}/runs/shards", "pipeline={root}/pipeline", *RUNS, "rows=[L+I]", "samples=1"]
        + ["num_inference_steps=2", "chunk=2"],
        ["runs", "pipeline"],
    ),
}
for name in WORK.keys() - COMMANDS.keys():
    WORK[name][0].append("run_dir={out}")
DAMAGE = ["missing", "empty", "junk", "half", "list", "object", "kind", "link"]


def start(name: str, arguments: list[str]) -> int:
    """The exit code of a command, or of a trainer in this process."""
    if name in COMMANDS:
        return main([name, *arguments])
    trainer = runpy.run_path(str(TRAINERS / f"{name}.py"), run_name="imported")["main"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return run_command(trainer, trainer.__annotations__["config"], arguments, name, "usage")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def damage(path: Path, how: str) -> None:
    """Break a file, which may be a link to the whole one, or a folder."""
    is_folder = path.is_dir()
    data = b"" if is_folder else path.read_bytes()
    shutil.rmtree(path) if is_folder else path.unlink()
    if how == "link":
        path.symlink_to(path.name)
    elif how == "kind":
        path.write_text("a file", encoding="utf-8") if is_folder else path.mkdir()
    elif is_folder:
        if how != "missing":
            path.mkdir()
    elif how != "missing":
        new = {"empty": b"", "junk": b"\x93\x00\xff junk \x80" * 40, "list": b"[1, 2]\n", "object": b'{"a": {}}\n'}
        path.write_bytes(new.get(how, data[: len(data) // 2]))


def tree(folder: Path) -> dict[str, str]:
    """Content of every file, but for what a stopped command keeps to go on from, and what a run writes of itself."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".partial" not in str(path) and ".part-" not in path.name
    }


def answered(name: str, code: int, said: str, what: object) -> None:
    assert "Traceback" not in said, (what, said)
    assert code in ((0, 1, 2) if name in ("check", "new") else (0, 2)), (what, code, said)
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == (code == 2), (what, code, said)
    if code == 2:
        assert said.strip().splitlines()[-1] == told[0] and len(told[0]) > 25, (what, said)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GIT_OPTIONAL_LOCKS", "0")  # a trainer's `git describe` writes no index, which could be cut off
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def copied(whole: Path, root: Path) -> Path:
    return Path(shutil.copytree(whole, root, copy_function=os.link))


@pytest.mark.parametrize("name", WORK)
def test_all_is_well_with_whole_inputs(name, whole, tmp_path, capsys):
    """Or the rest here would show nothing."""
    root = copied(whole, tmp_path / "in")
    if name == "report":
        assert start("evaluate", [a.format(root=root, out="") for a in WORK["evaluate"][0]]) == 0
    capsys.readouterr()
    code = start(name, [argument.format(root=root, out=tmp_path / "out") for argument in WORK[name][0]])
    said = capsys.readouterr().err
    assert code == 0 or name == "check", said
    answered(name, code, said, name)


@pytest.mark.hypothesis  # make test-random runs it too
@pytest.mark.parametrize("name", WORK)
def test_damaged_inputs(name, whole, tmp_path, capsys):
    arguments, inputs = WORK[name]
    victims = sorted({path.relative_to(whole) for place in inputs for path in (whole / place).rglob("*")})
    victims = [Path(place) for place in inputs] + [v for v in victims if "study" not in v.parts[1:]]
    for number in range(FIRST, FIRST + EACH):
        rng = random.Random(f"{name}{number}")
        victim, how = rng.choice(victims), rng.choice(DAMAGE)
        root, out = copied(whole, tmp_path / f"in-{number}"), tmp_path / f"out-{number}"
        damage(root / victim, how)
        before = tree(root)
        capsys.readouterr()
        code = start(name, [argument.format(root=root, out=out) for argument in arguments])
        AcceleratorState._reset_state(reset_partial_state=True)
        answered(name, code, capsys.readouterr().err, (victim, how))
        if code == 2:
            assert tree(root) == before, (victim, how)
        shutil.rmtree(root)
        shutil.rmtree(out, ignore_errors=True)


ERRNOS = ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "ESTALE"]
MAKERS = [name for name in WORK if any("{out}" in argument for argument in WORK[name][0])]


@pytest.mark.parametrize("name", MAKERS)
def test_places_that_cannot_be_written(name, whole, tmp_path, capsys):
    root = copied(whole, tmp_path / "in")
    (root / "file").write_text("mine")
    (root / "loop").symlink_to("loop")
    before = tree(tmp_path)
    # Never a real device: what is replaced by mistake is then one of the test's own.
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    for out in ("/proc/x", "/proc/x/y", f"{root}/socket", f"{root}/file", f"{root}/file/x", f"{root}/loop/x"):
        for place in (out, f"{tmp_path}/{'n' * 300}") if out == "/proc/x" else (out,):
            capsys.readouterr()
            code = start(name, [argument.format(root=root, out=place) for argument in WORK[name][0]])
            AcceleratorState._reset_state(reset_partial_state=True)
            said = capsys.readouterr().err
            answered(name, code, said, place)
            assert code == 2 and (place in said or str(Path(place).parent) in said), (place, code, said)
            assert tree(tmp_path) == before and stat.S_ISSOCK((root / "socket").stat().st_mode), place


@pytest.mark.hypothesis
@pytest.mark.parametrize("name", WORK)
def test_errors_of_the_system_while_files_are_opened(name, whole, tmp_path, capsys):
    """The n-th file of ours that is opened, to read or to write, fails as disks and file servers do."""
    opened, original = [], {"open": io.open, "os.open": os.open}
    for seed in range(FIRST, FIRST + EACH):
        rng = random.Random(f"{name}{seed}")
        n, code_name = rng.randrange(rng.choice([5, 40])), rng.choice(ERRNOS)
        number = getattr(errno, code_name)
        folder = tmp_path / f"{seed}"
        root, out = copied(whole, folder / "in"), folder / "out"
        opened.clear()

        def failing(which: str, folder: Path = folder, n: int = n, number: int = number) -> Callable:
            def open_(file, *args, **kwargs):
                if isinstance(file, (str, Path)) and str(file).startswith(str(folder)):
                    opened.append(file)
                    if len(opened) == n + 1:
                        raise OSError(number, os.strerror(number), str(file))
                return original[which](file, *args, **kwargs)

            return open_

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", failing("open"))
            patch.setattr(builtins, "open", failing("open"))
            patch.setattr(os, "open", failing("os.open"))
            code = start(name, [argument.format(root=root, out=out) for argument in WORK[name][0]])
        AcceleratorState._reset_state(reset_partial_state=True)
        said = capsys.readouterr().err
        answered(name, code, said, (n, code_name, opened[n : n + 1]))
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*MAKERS, "evaluate", "report"])
def test_a_disk_that_is_full(name, whole, tmp_path, capsys):
    """The kernel refuses what goes beyond so many bytes of a file, whoever writes it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 3000, 30000):
        folder = tmp_path / f"{size}"
        root, out = copied(whole, folder / "in"), folder / "out"
        if name == "report":
            assert start("evaluate", [a.format(root=root, out="") for a in WORK["evaluate"][0]]) == 0
        before = tree(root)
        capsys.readouterr()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            code = start(name, [argument.format(root=root, out=out) for argument in WORK[name][0]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        AcceleratorState._reset_state(reset_partial_state=True)
        answered(name, code, capsys.readouterr().err, size)
        assert code == 2 or size > 100 or name == "check", size
        if code == 2:
            assert {k: v for k, v in tree(root).items() if k in before} == before


@pytest.mark.parametrize("name, argument", [("captions", "model=owner/name"), ("evaluate", "classifier=owner/name")])
def test_a_hub_that_is_not_reached(name, argument, whole, tmp_path, capsys):
    arguments = [argument if a.startswith(argument.partition("=")[0] + "=") else a for a in WORK[name][0]]
    code = start(name, [a.format(root=whole, out=tmp_path / "out") for a in arguments])
    said = capsys.readouterr().err
    answered(name, code, said, argument)
    assert code == 2 and "owner/name" in said


@pytest.mark.parametrize("name", ["sample_semantics", "latent_diffusion", "reconstruct", "export"])
def test_a_pipeline_of_the_hub_that_is_not_reached(name, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = [a.replace("{root}/pipeline", "owner/name") for a in WORK[name][0]]
    code = start(name, [a.format(root=whole, out=tmp_path / "out") for a in arguments])
    said = capsys.readouterr().err
    answered(name, code, said, name)
    assert (code == 2 and "owner/name" in said) or (name == "export" and code == 0)


@pytest.mark.parametrize("name", ["probe", "evaluate"])
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu", "mps", "xpu", "tpu", ""])
def test_a_device_that_is_not_there(name, device, whole, tmp_path, capsys):
    if torch.cuda.is_available() and "cuda" in device:
        pytest.skip("there is one")
    arguments = [a.format(root=whole, out=tmp_path / "out") for a in WORK[name][0] if not a.startswith("device")]
    code = start(name, [*arguments, f"device={device}"])
    said = capsys.readouterr().err
    answered(name, code, said, device)
    assert code == 2 and f"device={device}" in said and not (tmp_path / "out").exists()
