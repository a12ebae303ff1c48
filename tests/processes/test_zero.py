"""DeepSpeed on two real processes on the CPU: ZeRO-1, 2 and 3 compute and export what DDP does, stop and continue."""

import functools
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from test_trainers import TIMINGS

pytest.importorskip("deepspeed", reason='needs pip install "neuroimagen[deepspeed]"')

STEPS = 6
REPO = Path(__file__).parents[2]


def command(stage: str, study, run_dir, *more: str) -> list[str]:
    """A few steps on the tiny study. With 64 features one layer has more than the 100,000 weights that ZeRO-3 keeps
    whole; a norm of 0.05 clips every gradient."""
    common = [f"run_dir={run_dir}", f"max_steps={STEPS}", "log_every=1", "checkpoint_every=3", "global_batch_size=8"]
    eeg = [f"shards={study.shards}", "encoder=conv", "n_features=64", "clip=0.05", "validate_every=4"]
    specific = {
        "pixel_features": eeg,
        "sample_semantics": [*eeg, f"pipeline={study.folder}/pipeline"],
        "contrastive": [*eeg, f"features=[{study.folder}/picture.safetensors]", "loss=siglip"],
        "latent_diffusion": [*(f"images={study.folder}/study/images", f"init={study.folder}/pipeline", "warmup=0")],
    }[stage]
    return [f"trainers/{stage}.py", *common, *specific, *more]


@functools.cache
def environment_of(stage: int) -> dict[str, str]:
    """What `accelerate launch --config_file launch/zero<stage>.yaml` adds to the environment of its processes."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    words = ["--config_file", f"{REPO}/launch/zero{stage}.yaml", "train.py"]
    with mock.patch.object(launch, "deepspeed_launcher") as launcher:
        launch.launch_command(launch.launch_command_parser().parse_args(words))
    _, environment = prepare_deepspeed_cmd_env(launcher.call_args.args[0])
    added = {k: v for k, v in environment.items() if k not in os.environ}
    assert added["ACCELERATE_USE_DEEPSPEED"] == "true" and added["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    return added


def under(stage: int, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """`arguments` and environment for Processes, as launch/zero<stage>.yaml sets them."""
    return ["tests/processes/quick_deepspeed.py", *arguments], environment_of(stage)


def exported(run_dir) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "model").rglob("*.safetensors"))
    return {f"{file.parent.name}.{k}": v for file in files for k, v in load_file(file).items()}


def losses(run_dir) -> list[dict]:
    """The lines of stats.jsonl without the clock's."""
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """made(start, stage, zero, *more) -> the run directory of a finished run; each is computed once."""
    runs: dict[tuple, object] = {}

    def get(start, stage: str, zero: int, *more: str):
        if (stage, zero, more) not in runs:
            run_dir = tmp_path_factory.mktemp("whole") / stage
            arguments, environment = command(stage, study, run_dir, *more), {}
            if zero:
                arguments, environment = under(zero, arguments)
            if zero == 1:  # as a user starts it; the launcher starts two
                launcher = ["-m", "accelerate.commands.launch", "--config_file", f"launch/zero{zero}.yaml"]
                processes = start([*launcher, *arguments], world=1, fresh=True)
            else:
                processes = start(arguments, **environment)
            assert set(processes.wait()) == {0}, processes.log.read_text()[-3000:]
            runs[stage, zero, more] = run_dir
        return runs[stage, zero, more]

    return get


# Adam makes much of rounding where gradients are nearly zero; latent_diffusion has such weights, and under DeepSpeed
# its convolutions are not channels_last.
TRAINERS = [
    ("pixel_features", 1, 1e-6),
    ("latent_diffusion", 2, 3e-4),
    ("sample_semantics", 3, 1e-6),
    ("contrastive", 2, 1e-6),
]


@pytest.mark.parametrize("stage, zero, tolerance", TRAINERS)
def test_zero_ends_where_ddp_ends(stage, zero, tolerance, start, made):
    from diffusers import UNet2DConditionModel

    from neuroimagen.contrastive.encoder import ContrastiveEncoder
    from neuroimagen.pixel.features import FeatureExtractor
    from neuroimagen.sample.encoder import SampleEncoder

    ddp, run = made(start, stage, 0), made(start, stage, zero)
    assert json.loads((run / "environment.json").read_text())["zero_stage"] == zero
    a, b = exported(ddp), exported(run)
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}")
    for theirs, ours in zip(losses(ddp), losses(run), strict=True):
        assert "grad_norm" in ours or stage != "latent_diffusion"
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)  # training and validation
    kinds = {"pixel_features": FeatureExtractor, "sample_semantics": SampleEncoder, "contrastive": ContrastiveEncoder}
    part = "model" if stage in kinds else "unet"
    folder = run / "model" if stage in kinds else run / "model" / "unet"
    loaded = kinds.get(stage, UNet2DConditionModel).from_pretrained(str(folder)).state_dict()
    written = {k.removeprefix(f"{part}."): v for k, v in b.items() if k.startswith(f"{part}.")}
    torch.testing.assert_close(loaded, written, rtol=0, atol=0)


@pytest.mark.parametrize("stage, zero, _", TRAINERS[1:])  # 1 and 2 are one code in DeepSpeed
def test_stopped_and_continued_zero_ends_with_the_same_bits(stage, zero, _, study, start, made, tmp_path):
    whole, cut = made(start, stage, zero), tmp_path / "cut"
    arguments, environment = under(zero, command(stage, study, cut))
    processes = start(arguments, hold="neuroimagen.run.run:Run.advance:1", **environment)
    processes.wait_for_step(cut, 1)
    processes.signal(signal.SIGTERM, slice(1, 2))
    assert processes.wait() == [143, 143], processes.log.read_text()[-3000:]
    assert (cut / "PREEMPTED").exists() and not (cut / "model").exists()

    if zero == 2:
        one = {**environment, "RANK": "0", "LOCAL_RANK": "0"}  # as the launcher starts one
        for begin in (lambda: start(arguments, world=1, **one), lambda: start(command(stage, study, cut))):
            other = begin()
            assert set(other.wait()) == {2}, other.log.read_text()[-3000:]
            said = other.log.read_text()
            assert "written with ZeRO-2 on 2 processes" in said and "launch/zero2.yaml --num_processes 2" in said
            assert "Traceback" not in said
        assert "cannot be continued with ZeRO-2 on 1:" in (tmp_path / "log-1.txt").read_text()

    assert start(arguments, **environment).wait() == [0, 0]
    assert losses(cut) == losses(whole)
    a, b = exported(whole), exported(cut)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert len(list((cut / "checkpoints").iterdir())) == 2


def test_bf16_is_autocast_as_in_ddp(start, made):
    ddp, run = (made(start, "pixel_features", zero, "precision=bf16", "max_steps=3") for zero in (0, 3))
    plain = made(start, "pixel_features", 0)
    first, theirs, fp32 = (losses(d)[0]["loss"] for d in (run, ddp, plain))  # of the same weights and batch
    assert first == pytest.approx(theirs, rel=1e-6) and abs(first - fp32) > 1e-4
    a, b = exported(ddp), exported(run)
    assert {v.dtype for v in a.values()} == {v.dtype for v in b.values()} == {torch.float32}
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_the_gan_and_reconstruct_are_refused(study, start, made, tmp_path):
    common = [f"run_dir={tmp_path / 'gan'}", f"shards={study.shards}"]
    small = [f"features={made(start, 'pixel_features', 0)}", "image_size=32", "generator_width=4"]
    gan = ["trainers/pixel_saliency.py", *common, *small, "discriminator_width=4", "global_batch_size=8"]
    for trainer in (gan, ["trainers/reconstruct.py", *common, f"pipeline={study.folder}/pipeline"]):
        arguments, environment = under(2, trainer)
        processes = start(arguments, **environment)
        assert processes.wait() == [2, 2], processes.log.read_text()[-3000:]
        assert "launch with launch/one_node.yaml" in processes.log.read_text()


@pytest.mark.parametrize(
    "setting, value, precision, said",
    [
        ("DEEPSPEED_ZERO_STAGE", "0", "fp32", "zero_stage=0 is not offered"),
        ("GRADIENT_CLIPPING", "1.0", "fp32", "gradient_clipping=1.0: leave it out"),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "fp32", "offload_param_device=cpu: leave it out"),
        ("DEEPSPEED_CONFIG_FILE", "ds.json", "fp32", "config_file=ds.json: leave it out"),
        ("USE_CPU", "yes", "fp16", "fp16 is not offered under DeepSpeed"),
        ("USE_CPU", "no", "fp32", "there is no GPU"),
        ("USE_CPU", "yes", "fp32", "needs its launcher"),
    ],
)
def test_what_would_not_be_done_is_refused(setting, value, precision, said, monkeypatch):
    if torch.cuda.is_available() and "GPU" in said:
        pytest.skip("there is one")
    from neuroimagen.run.processes import make_accelerator

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(f"ACCELERATE_{setting}", value)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match=said):
        make_accelerator(precision)


def test_deepspeed_that_is_not_installed_is_named(monkeypatch):
    from neuroimagen.run.processes import make_accelerator

    for name, value in {"USE_DEEPSPEED": "true", "USE_CPU": "yes"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match=r'pip install "neuroimagen\[deepspeed\]"'):
        make_accelerator("fp32")


def test_deepspeed_that_accelerate_does_not_take_is_refused():
    from neuroimagen.run import zero

    class Plain:
        distributed_type = "MULTI_CPU"

    with pytest.raises(ValueError, match="accelerate chose MULTI_CPU: start with"):
        zero.check_accelerator(Plain())
