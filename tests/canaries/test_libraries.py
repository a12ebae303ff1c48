"""Library behaviour that the product leans on: an upgrade that changes it must say so here, not in a result."""

import importlib
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import tiny_pipeline


class Exploit:
    def __reduce__(self):
        return print, ("code ran",)


def test_torch_load_with_weights_only_refuses_code(capsys):
    file = io.BytesIO()
    torch.save({"dataset": [Exploit()]}, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert "code ran" not in capsys.readouterr().out


def test_webdataset_asks_for_a_nodesplitter(tmp_path, monkeypatch):
    import webdataset as wds

    with wds.TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write({"__key__": "a", "txt": "hello"})
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError):
        list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))


def test_webdataset_passes_over_what_is_cut_at_a_member(tmp_path):
    """Hence a manifest with counts and SHA-256 of every tar."""
    import webdataset as wds

    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as tar:
        for key in "abc":
            tar.write({"__key__": key, "txt": "hello"})
    assert len(list(wds.WebDataset(str(path), shardshuffle=False))) == 3
    path.write_bytes(path.read_bytes()[: 2 * 1024])  # header and content of two samples, 512 bytes each
    assert len(list(wds.WebDataset(str(path), shardshuffle=False))) < 3


def test_opening_a_loader_draws_from_the_global_generator():
    """Hence torch is seeded before each step, and batches come from a stream of our own."""
    before = torch.get_rng_state()
    next(iter(torch.utils.data.DataLoader([0, 1])))
    assert not torch.equal(before, torch.get_rng_state())


def test_more_processes_on_a_cpu_need_multi_gpu():
    """`accelerate launch --cpu --num_processes 2` starts one process; hence the launch files say which."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "t.py"]
    for extra, several in (["--cpu"], False), (["--multi_gpu"], True):
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*extra, *words]))
        assert bool(arguments.multi_gpu) == several


def test_too_few_steps_for_a_strength_fail_inside_diffusers(tmp_path):
    """Hence check_settings refuses what draws no step."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_pipeline(tmp_path / "pipe"), safety_checker=None)
    embedding = torch.zeros(1, *pipe.text_encoder(torch.arange(16)[None])[0].shape[1:])
    given = {"prompt_embeds": embedding, "negative_prompt_embeds": embedding, "image": torch.rand(1, 3, 64, 64)}
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        pipe(**given, strength=0.3, num_inference_steps=3)


def test_set_attention_backend_does_nothing_on_the_unet_of_stable_diffusion(tmp_path):
    """Hence reconstruction/pipelines.py sets processors and looks at what is in force."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline(tmp_path / "pipe") / "unet")
    before = {k: type(v).__name__ for k, v in unet.attn_processors.items()}
    try:
        unet.set_attention_backend("native")
    except (AttributeError, ValueError):
        pytest.skip("this version has no such setter")
    assert {k: type(v).__name__ for k, v in unet.attn_processors.items()} == before


def test_one_generator_a_picture_makes_batches_permutable(tmp_path):
    """The byte-for-byte claim of stage 3 rests on it."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_pipeline(tmp_path / "pipe"), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embedding = pipe.text_encoder(torch.arange(16)[None].expand(4, -1))[0].detach()

    def draw(order: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(100 + i) for i in order]
        kwargs = {"prompt_embeds": embedding[order], "negative_prompt_embeds": torch.zeros_like(embedding)}
        out = pipe(image=images[order], generator=generators, num_inference_steps=4, output_type="pt", **kwargs)
        return out.images

    there, back = draw([0, 1, 2, 3]), draw([3, 1, 0, 2])
    assert torch.equal(there[[3, 1, 0, 2]], back)


def test_property_tests_draw_the_same_examples_whatever_is_imported(tmp_path, monkeypatch):
    """Hypothesis draws constants of our modules, too, where tests/conftest.py does not tell it otherwise."""
    import hypothesis
    from hypothesis import strategies as st

    if hypothesis.settings.get_current_profile_name() != "fixed":
        pytest.skip("make test-random is to draw others")
    drawn: list[list[int]] = [[]]

    @hypothesis.given(st.integers())
    def draw(number):
        drawn[-1].append(number)

    draw()
    drawn.append([])
    (tmp_path / "a_module_of_ours.py").write_text("\n".join(f"x{i} = {i}" for i in range(1000, 1200)))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("a_module_of_ours")
    draw()
    assert drawn[-2] == drawn[-1] and len(set(drawn[-1])) > 30


def test_a_launch_file_cannot_choose_the_rendezvous(tmp_path):
    """accelerate launch ignores these keys of a file: launch/many_nodes.yaml leaves them to the command line."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = tmp_path / "launch.yaml"
    ours = (Path(__file__).parents[2] / "launch" / "many_nodes.yaml").read_text()
    file.write_text(ours + "rdzv_backend: c10d\nsame_network: true\n")
    words = ["--config_file", str(file), "--num_machines", "2", "--num_processes", "4", "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (arguments.rdzv_backend, arguments.same_network) == ("static", False)
    assert arguments.multi_gpu and arguments.num_machines == 2
