"""Each trainer on two real processes: cut off by SIGTERM, then by SIGKILL, it ends with the weights of an uncut run."""

import signal

import pytest
import torch
from safetensors.torch import load_file

STEPS = 8


def command(stage: str, study, run_dir, finished) -> list[str]:
    """A few steps of `stage` on the tiny study; `finished` names run directories of earlier stages."""
    common = [f"run_dir={run_dir}", f"max_steps={STEPS}", "log_every=1", "checkpoint_every=3", "global_batch_size=8"]
    shards = f"shards={study.shards}"
    pictures = [f"images={study.folder}/study/images", f"captions={study.folder}/study/captions.jsonl"]
    eeg = [shards, "encoder=conv", "n_features=16", "classifier_steps=3", "z_dim=8", "width=4"]
    specific = {
        "pixel_features": [shards, "encoder=conv", "n_features=16"],
        "pixel_saliency": [
            *(shards, f"features={finished}", "finetune_features=true", "image_size=32", "z_dim=8"),
            *("generator_width=4", "discriminator_width=4"),
        ],
        "sample_semantics": [shards, f"pipeline={study.folder}/pipeline", "encoder=conv", "n_features=16"],
        "brain2image": [*eeg, "image_size=16", "norm=group"],
        "neurovision": [*eeg, "image_size=16", "phase_steps=1", "max_width=8"],
        "latent_diffusion": [*pictures, "part=autoencoder", "autoencoder_width=8", "latent_channels=4"],
        "denoiser": [
            *(*pictures, "part=denoiser", f"autoencoder={finished}", "latent_channels=4", "unet_channels=[16,32]"),
            *("text_width=16", "n_tokens=16"),
        ],
    }[stage]
    script = "latent_diffusion" if stage == "denoiser" else stage
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


NEEDS = {"pixel_saliency": "pixel_features", "denoiser": "latent_diffusion"}


@pytest.mark.parametrize(
    "stage",
    [
        "pixel_features",
        "sample_semantics",
        "pixel_saliency",
        "brain2image",
        "neurovision",
        "latent_diffusion",
        "denoiser",
    ],
)
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
