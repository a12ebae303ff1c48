"""deterministic=true and bf16, as far as they can be seen without a GPU. (Not run on one.)"""

import os
import re
import runpy
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import tiny_features, tiny_pipeline, tiny_shards
from torch.utils._python_dispatch import TorchDispatchMode

from neuroimagen.config import TrainConfig, load_config, run_command
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.run.processes import CUBLAS, check_bf16, make_accelerator, set_deterministic

TRAINERS = Path(__file__).parents[3] / "trainers"
# What torch's documentation lists as raising on CUDA -> the operators that do; of NLLLoss only the one of pictures.
RAISES = {
    "AvgPool3d": ["avg_pool3d_backward"],
    "AdaptiveAvgPool2d": ["_adaptive_avg_pool2d_backward"],  # AdaptiveAvgPool1d is that of pictures of height 1
    "AdaptiveAvgPool3d": ["_adaptive_avg_pool3d_backward"],
    "AdaptiveMaxPool2d": ["adaptive_max_pool2d_backward"],
    "FractionalMaxPool2d": ["fractional_max_pool2d_backward"],
    "FractionalMaxPool3d": ["fractional_max_pool3d_backward"],
    "MaxUnpool1d": ["max_unpool2d"],
    "MaxUnpool2d": ["max_unpool2d"],
    "MaxUnpool3d": ["max_unpool3d"],
    "interpolate": [
        *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"),
        *("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward"),
    ],
    "ReflectionPad1d": ["reflection_pad1d_backward"],
    "ReflectionPad2d": ["reflection_pad2d_backward"],
    "ReflectionPad3d": ["reflection_pad3d_backward"],
    "NLLLoss": ["nll_loss2d_forward"],
    "CTCLoss": ["_ctc_loss_backward", "_cudnn_ctc_loss"],
    "EmbeddingBag": ["_embedding_bag_dense_backward"],
    "put_": ["put_", "put"],
    "histc": ["histc"],
    "bincount": ["bincount"],
    "median": ["median.dim"],
    "grid_sample": ["grid_sampler_2d_backward", "grid_sampler_3d_backward"],
    "cumsum": ["cumsum"],
    "scatter_reduce": ["scatter_reduce", "scatter_reduce_"],
    "resize_": [],  # of quantized tensors
}
PEOPLE = ["subject_layer=channels", "eeg_shift=0.05", "eeg_noise=0.1"]
EEG = ["encoder=conv", "encoder_width=4", "n_features=5", *PEOPLE]
GAN = [*EEG, "image_size=16", "z_dim=4", "width=4", "classifier_steps=1"]
PICTURES = ["images={root}/shards_study/images", "image_size=32", "latent_channels=4"]
RUNS = {
    "pixel_features": [*EEG, "mining=semi-hard"],
    "pixel_features lstm": ["encoder=lstm", "n_features=5", "mining=hard"],
    "pixel_features projection": ["encoder=projection", "n_features=5", "subject_layer=time"],
    **{f"pixel_features {name}": [f"encoder={name}", *EEG[1:]] for name in ("tsconv", "atm", "simpleconv")},
    "pixel_saliency": [
        *("features={root}/features", "finetune_features=true", "image_size=16", "z_dim=4"),
        *("generator_width=4", "discriminator_width=4", "augment=color,translation,cutout"),
    ],
    "sample_semantics": [*EEG, "pipeline={root}/pipeline"],
    "contrastive": [*EEG, "features=[{root}/image.safetensors]", "eeg_smooth=0.3", "mse_weight=1", "accumulate=2"],
    "contrastive siglip": [*EEG, "features=[{root}/image.safetensors]", "loss=siglip"],
    "brain2image": GAN,
    "brain2image vae": [*GAN, "variant=vae"],
    "neurovision": [*GAN, "phase_steps=1"],
    "latent_diffusion autoencoder": [*PICTURES, "part=autoencoder", "autoencoder_width=8"],
    "latent_diffusion denoiser": [*PICTURES, "init={root}/pipeline"],
    "image_prompt": [PICTURES[0], "pipeline={root}/pipeline"],
}


class Operators(TorchDispatchMode):
    """Notes every operator that is called, backwards too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names |= {str(function).removeprefix("aten."), function._schema.name.removeprefix("aten::")}
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    yield
    set_deterministic(False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    tiny_shards(folder / "shards")
    tiny_features(folder / "image.safetensors", folder / "shards", 4)
    tiny_pipeline(folder / "pipeline")
    torch.manual_seed(0)
    FeatureExtractor(4, 440, "conv", 5, width=4, subjects=[1, 2]).save_pretrained(str(folder / "features" / "model"))
    for name in ("config.yaml", "DONE"):
        (folder / "features" / name).touch()
    return folder


def test_the_list_of_operators_is_that_of_this_torch():
    text = torch.use_deterministic_algorithms.__doc__.partition("operations will throw a\n")[2].partition(
        "In addition"
    )[0]
    assert set(re.findall(r":(?:class|func):`torch\.(?:\w+\.)*(\w+)`", text)) == set(RAISES)


@pytest.mark.parametrize("run", RUNS)
def test_trainers_use_no_operator_that_has_no_deterministic_version(run, root, tmp_path, monkeypatch):
    """torch takes another way for bilinear upsampling on a GPU if it is to be deterministic: so tensors say that they
    are not on a CPU."""
    stage = run.split()[0]
    trainer = runpy.run_path(str(TRAINERS / f"{stage}.py"), run_name="imported")
    given = [f"run_dir={tmp_path}/run", "max_steps=6", "global_batch_size=16", "deterministic=true"]
    given += [argument.format(root=root) for argument in RUNS[run]]
    given += [] if stage in ("latent_diffusion", "image_prompt") else [f"shards={root}/shards"]
    config = load_config(trainer["main"].__annotations__["config"], given, stage)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    with Operators() as operators:
        assert trainer["main"](config) == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert any("backward" in name for name in operators.names)
    assert not operators.names & {name for names in RAISES.values() for name in names}


def test_the_flags_are_set_and_taken_back(monkeypatch, tmp_path):
    from neuroimagen.run.run import Run

    def flags():
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    Run(TrainConfig(run_dir=str(tmp_path / "one"), deterministic=True))
    assert flags() == (True, True, False) and os.environ[CUBLAS] == ":4096:8"
    Run(TrainConfig(run_dir=str(tmp_path / "two")))
    assert flags() == (False, False, False)
    with pytest.raises(ValueError, match="deterministic: True there, False here"):
        Run(TrainConfig(run_dir=str(tmp_path / "one")))


def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(
        ValueError, match="needs CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8, but the environment has :0:0"
    ):
        set_deterministic(True)
    monkeypatch.setenv(CUBLAS, ":16:8")
    set_deterministic(True)
    assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.delenv(CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="after CUDA has started"):
        set_deterministic(True)
    set_deterministic(False)


def test_an_operator_without_a_deterministic_version_is_a_sentence(capsys):
    """put_ has none on a CPU either."""

    def main(config):
        set_deterministic(True)
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    assert run_command(main, TrainConfig, ["run_dir=run"], "", "") == 2
    said = capsys.readouterr().err
    assert said == (
        "error: deterministic=true, but torch's put_ does not have a deterministic implementation on this device: "
        "leave it out\n"
    )

    def broken(config):
        raise RuntimeError("another one")

    assert run_command(broken, TrainConfig, ["run_dir=run"], "", "") == 70  # a bug, with its traceback
    assert "RuntimeError: another one" in capsys.readouterr().err


@pytest.mark.parametrize("major, has", [(7, False), (8, True)])  # Volta and Turing emulate it; Ampere is the first
def test_bf16_that_is_emulated_is_refused(major, has, monkeypatch, root):
    """Answers of a device as torch 2.13 asks for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    about = type("Properties", (), {"major": major})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: about)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda *_: True)
    assert torch.cuda.is_bf16_supported()  # with emulation, as it is asked by default
    if has:
        check_bf16("cuda")
    else:
        with pytest.raises(ValueError, match="Tesla V100 has no bf16; use precision=fp16 or fp32"):
            check_bf16(torch.device("cuda", 0))
        with pytest.raises(ValueError, match="Tesla V100 has no bf16"):
            Reconstructor(str(root / "pipeline"), "cuda", torch.bfloat16)
        monkeypatch.setattr("accelerate.Accelerator.device", torch.device("cuda"))
        monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
        with pytest.raises(ValueError, match="Tesla V100 has no bf16"):
            make_accelerator("bf16")
    check_bf16("cpu")
