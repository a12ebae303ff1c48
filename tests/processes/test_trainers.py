"""The contract of every trainer, on real processes.

Resume: cut off by SIGTERM, then by SIGKILL, it ends with the weights of an uncut run. Export: each of its models loads
by its class. Worlds: the number of processes, and of parts of a batch, is a matter of time and memory only.
"""

import json
import shutil
import signal
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from neuroimagen.baselines.brain2image import Brain2Image
from neuroimagen.baselines.neurovision import NeuroVision
from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.errors import load_trained
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.pixel.saliency import Generator
from neuroimagen.reconstruction.pipelines import load_pipeline
from neuroimagen.sample.encoder import SampleEncoder

STEPS = 8
TIMINGS = {"samples_per_second", "samples_per_second_per_device", "step_seconds", "data_seconds", "memory_gb"}


class Trainer(NamedTuple):
    """What a trainer promises."""

    exports: dict[str, Any]  # folder below model/ -> class; None: a whole pipeline
    worlds: dict[str, dict[str, int]] = {}  # name -> what must change nothing
    needs: str = ""  # the trainer whose run it stands on


TWO, PARTS = {"two": {"world": 2}}, {"one in four parts": {"accumulate": 4}}
TRAINERS = {
    # its loss looks beyond its rank
    "pixel_features": Trainer({".": FeatureExtractor}, TWO | PARTS | {"four": {"world": 4}}),
    "contrastive": Trainer(
        {".": ContrastiveEncoder},
        TWO
        | PARTS
        | {"four": {"world": 4}, "two in two parts, in chunks": {"world": 2, "accumulate": 2, "loss_chunk": 3}},
    ),
    # four processes, or parts, of two trials: as a rule one of the two people is not there
    "people": Trainer({".": FeatureExtractor}, PARTS | {"four": {"world": 4}}),
    "sample_semantics": Trainer({".": SampleEncoder}, TWO | PARTS),
    # two models, three optimizers
    "pixel_saliency": Trainer(
        {"features": FeatureExtractor, "generator": Generator},
        TWO | PARTS | {"two in two parts": {"world": 2, "accumulate": 2}},
        needs="pixel_features",
    ),
    "brain2image": Trainer({".": Brain2Image}),
    "neurovision": Trainer({".": NeuroVision}),
    "latent_diffusion": Trainer({".": AutoencoderTiny}, TWO),  # the autoencoder takes its batch whole
    "denoiser": Trainer({".": None}, TWO | PARTS, needs="latent_diffusion"),
    "image_prompt": Trainer({}, TWO | PARTS),
}
OF_PICTURES = ("latent_diffusion", "denoiser", "image_prompt")
NEEDS = {stage: trainer.needs for stage, trainer in TRAINERS.items() if trainer.needs}


def command(stage: str, study, run_dir, finished) -> list[str]:
    """A few steps of `stage` on the tiny study; `finished` names run directories of earlier stages."""
    common = [f"run_dir={run_dir}", f"max_steps={STEPS}", "log_every=1", "checkpoint_every=3", "global_batch_size=8"]
    shards = f"shards={study.shards}"
    pictures = [f"images={study.folder}/study/images", f"captions={study.folder}/study/captions.jsonl"]
    eeg = [shards, "encoder=conv", "n_features=16", "classifier_steps=3", "z_dim=8", "width=4"]
    specific = {
        "pixel_features": [shards, "encoder=conv", "n_features=16"],
        "people": [shards, "encoder=tsconv", "n_features=16", "subject_layer=time", "weight_decay=0.1"],
        "pixel_saliency": [
            *(shards, f"features={finished}", "finetune_features=true", "image_size=32", "z_dim=8"),
            *("generator_width=4", "discriminator_width=4"),
        ],
        "contrastive": [
            *(shards, f"features=[{study.folder}/picture.safetensors,{study.folder}/layer.safetensors]"),
            *(f"text_features={study.folder}/caption.safetensors", "text_weight=0.5", "mse_weight=1"),
            *("encoder=conv", "n_features=16", "eeg_smooth=0.3", "held_out_classes=1", "subject_layer=time"),
        ],
        "sample_semantics": [shards, f"pipeline={study.folder}/pipeline", "encoder=conv", "n_features=16"],
        "brain2image": [*eeg, "image_size=16", "norm=group"],
        "neurovision": [*eeg, "image_size=16", "phase_steps=1", "max_width=8"],
        "latent_diffusion": [*pictures, "part=autoencoder", "autoencoder_width=8", "latent_channels=4"],
        "denoiser": [
            *(*pictures, "part=denoiser", f"autoencoder={finished}", "latent_channels=4", "unet_channels=[16,32]"),
            *("text_width=16", "n_tokens=16"),
        ],
        "image_prompt": [*pictures, f"pipeline={study.folder}/pipeline", f"val_images={study.folder}/study/images"],
    }[stage]
    script = {"denoiser": "latent_diffusion", "people": "pixel_features"}.get(stage, stage)
    return [f"trainers/{script}.py", *common, *specific]


def weights(run_dir) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "model").rglob("*.safetensors"))
    assert files, f"{run_dir} exported nothing"
    return {f"{f.relative_to(run_dir)}:{k}": v for f in files for k, v in load_file(f).items()}


@pytest.fixture(scope="module")
def earlier(study, tmp_path_factory):
    """Runs that later stages build on."""
    made: dict[str, object] = {}

    def get(stage, start):
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp("earlier") / stage
            assert start(command(stage, study, made[stage], None), world=1).wait() == [0]
        return made[stage]

    return get


@pytest.mark.parametrize("stage", TRAINERS)
def test_cut_off_twice_ends_with_the_same_bits(stage, study, start, earlier, tmp_path):
    finished = earlier(NEEDS[stage], start) if stage in NEEDS else None
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(command(stage, study, whole, finished)).wait() == [0, 0]
    assert (whole / "DONE").exists()

    processes = start(command(stage, study, cut, finished), hold="neuroimagen.run.run:Run.advance:1")
    processes.wait_for_step(cut, 1)
    processes.signal(signal.SIGTERM, slice(1, 2))  # one rank is told; both must stop at the same step
    codes = processes.wait()
    assert codes == [143, 143] and (cut / "PREEMPTED").exists(), processes.log.read_text()[-2000:]
    assert not (cut / "model").exists()

    processes = start(command(stage, study, cut, finished), hold="neuroimagen.run.run:Run.advance:3")
    processes.wait_for_step(cut, 4)  # past the checkpoint of step 3
    processes.signal(signal.SIGKILL)
    processes.wait()
    assert not (cut / "DONE").exists()

    assert start(command(stage, study, cut, finished)).wait() == [0, 0]
    assert not (cut / "PREEMPTED").exists()
    a, b = weights(whole), weights(cut)
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, e.g. {different[0]}"
    steps = [line.split(",")[0] for line in (cut / "stats.jsonl").read_text().splitlines() if '"val/' not in line]
    assert len(steps) == len(set(steps)) == STEPS  # each step is logged once
    for folder, kind in TRAINERS[stage].exports.items():
        place = cut / "model" / folder
        assert load_trained(kind, place) if kind else load_pipeline(str(place))


@pytest.mark.parametrize("stage", [stage for stage, trainer in TRAINERS.items() if trainer.worlds])
def test_the_same_losses_gradients_and_weights(stage, start, study, earlier, tmp_path):
    """Losses and gradient norms to 1e-4 at the first step. Then Adam has divided by gradients that are nearly zero,
    where float rounding decides: to 1e-3, and what the weights have learnt to 2 % in the Euclidean norm."""
    finished = earlier(NEEDS[stage], start) if stage in NEEDS else None

    def run(name, world=1, steps=3, **options):
        options |= {"max_steps": steps}
        arguments = [*command(stage, study, tmp_path / name, finished), *(f"{k}={v}" for k, v in options.items())]
        processes = start(arguments, world)
        assert processes.wait() == [0] * world, processes.log.read_text()[-3000:]
        if not steps:
            return [], weights(tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        return lines, weights(tmp_path / name)

    _, initial = run("initial", steps=0)
    expected_lines, expected = run("one")
    for name, options in TRAINERS[stage].worlds.items():
        lines, tensors = run(name, **options)
        assert [line["step"] for line in lines] == [line["step"] for line in expected_lines], name
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line.keys() == expected_line.keys()
            near = 1e-4 if line["step"] == 1 else 1e-3
            for key in line.keys() - TIMINGS:
                assert line[key] == pytest.approx(expected_line[key], rel=near, abs=near / 10), (
                    name,
                    line["step"],
                    key,
                )
        moved = sum((expected[key].float() - initial[key].float()).square().sum() for key in expected) ** 0.5
        apart = sum((expected[key].float() - tensors[key].float()).square().sum() for key in expected) ** 0.5
        assert moved > 0 and apart / moved < 0.02, (name, (apart / moved).item())


@pytest.mark.parametrize("stage", [stage for stage in TRAINERS if stage not in OF_PICTURES])
def test_no_choice_sees_test(stage, study, start, earlier, tmp_path):
    """Without a byte of test, every trainer ends with the same weights and the same numbers on val. latent_diffusion.py
    and denoiser, its other part, take pictures and no shards."""
    blind = tmp_path / "shards"
    shutil.copytree(study.shards, blind)
    gone = [path for path in blind.glob("test*") if path.unlink() is None]
    assert len(gone) >= 2  # a tar and its index
    finished = earlier(NEEDS[stage], start) if stage in NEEDS else None
    for name, shards in (("whole", study.shards), ("blind", blind)):
        arguments = [
            f"shards={shards}" if a.startswith("shards=") else a
            for a in command(stage, study, tmp_path / name, finished)
        ]
        assert start([*arguments, "validate_every=4"], world=1).wait() == [0]
    a, b = (weights(tmp_path / name) for name in ("whole", "blind"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    logs = [
        [json.loads(line) for line in (tmp_path / n / "stats.jsonl").read_text().splitlines()]
        for n in ("whole", "blind")
    ]
    whole, unseen = ([{k: v for k, v in line.items() if k not in TIMINGS} for line in log] for log in logs)
    assert whole == unseen and any("val/" in key for line in whole for key in line)
