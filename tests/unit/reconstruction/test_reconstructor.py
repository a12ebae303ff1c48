"""F (steps (1) to (4) of the paper), attention, and the picture files, on small random pipelines."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, tiny_pipeline
from torch.nn import functional as F

from neuroimagen.reconstruction.picture_files import PictureFiles, whole
from neuroimagen.reconstruction.pipelines import in_force, load_pipeline, set_attention
from neuroimagen.reconstruction.reconstructor import Reconstructor
from neuroimagen.run.seeds import seed_from

KEYS = ["s1_a", "s1_b", "s2_a", "s2_b"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """As Stable Diffusion 1.x (AutoencoderKL, noise prediction), and AutoencoderTiny, 16 channels, v-prediction."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny = tiny_pipeline(root / "tiny", vae="tiny", latent_channels=16, prediction_type="v_prediction")
    return {"kl": tiny_pipeline(root / "kl"), "tiny": tiny}


@pytest.fixture(scope="module", params=["kl", "tiny"])
def model(request, directories):
    return Reconstructor(str(directories[request.param]))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(4, TEXT_LENGTH, TEXT_WIDTH, generator=generator)
    return embeds, torch.rand(4, 3, 16, 16, generator=generator)


class Spy:
    """Calls of a module's method, with their arguments and results."""

    def __init__(self, monkeypatch, owner, name):
        self.calls, original = [], getattr(owner, name)

        def wrapper(*args, **kwargs):
            result = original(*args, **kwargs)
            self.calls.append((args, kwargs, result))
            return result

        monkeypatch.setattr(owner, name, wrapper)


def test_size_and_embedding_shape_come_from_the_pipeline(model):
    assert model.size == (64, 64)
    assert (model.text_length, model.text_width) == (TEXT_LENGTH, TEXT_WIDTH)
    assert model.attention == "sdpa"


@pytest.mark.parametrize("semantics", [True, False])
@pytest.mark.parametrize("with_map", [True, False])
def test_every_row_gives_pictures_that_depend_on_their_noise_only(model, inputs, semantics, with_map):
    embeds, maps = (inputs[0] if semantics else None), (inputs[1] if with_map else None)
    before = torch.get_rng_state()
    images = model.reconstruct(embeds, maps, KEYS, samples=2, num_inference_steps=4)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was touched"
    assert images.shape == (4, 2, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.001
    assert not torch.equal(images[:, 0], images[:, 1]), "two samples share their noise"

    order = [2, 0, 3, 1]
    permuted = model.reconstruct(
        None if embeds is None else embeds[order],
        None if maps is None else maps[order],
        [KEYS[i] for i in order],
        samples=2,
        num_inference_steps=4,
    )
    assert torch.equal(permuted, images[order]), "a picture depends on its place in the batch"
    alone = model.reconstruct(
        None if embeds is None else embeds[1:2],
        None if maps is None else maps[1:2],
        KEYS[1:2],
        samples=1,
        num_inference_steps=4,
    )
    assert torch.allclose(alone[0, 0], images[1, 0], atol=1e-4)
    other = model.reconstruct(embeds, maps, KEYS, samples=2, num_inference_steps=4, seed=1)
    assert not torch.allclose(other, images, atol=1e-4)


def test_it_is_what_the_diffusers_pipeline_draws(directories, inputs, fp32_is_fp32):
    model = Reconstructor(str(directories["kl"]))
    embeds, maps = inputs
    got = model.reconstruct(embeds, maps, KEYS, samples=1, num_inference_steps=6, strength=0.5, guidance_scale=3.0)
    pipe = load_pipeline(str(directories["kl"]))
    posterior = pipe.vae.encode(F.interpolate(maps, size=(64, 64), mode="bilinear").mul(2).sub(1)).latent_dist
    seeds = [seed_from(seed_from(0, key, 0), "posterior") for key in KEYS]
    draw = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    expected = pipe(
        prompt_embeds=embeds,
        negative_prompt=[""] * 4,
        image=pipe.vae.config.scaling_factor * (posterior.mean + posterior.std * draw),  # which it takes for latents
        strength=0.5,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed_from(0, key, 0)) for key in KEYS],
        output_type="pt",
    ).images
    assert torch.allclose(got[:, 0], expected, atol=1e-5)


def test_steps_1_and_2_resize_encode_and_noise_the_map(directories, inputs, monkeypatch):
    model = Reconstructor(str(directories["tiny"]))
    encode = Spy(monkeypatch, model.img2img.vae, "encode")
    unet = Spy(monkeypatch, model.img2img.unet, "forward")
    maps = torch.full((1, 3, 16, 16), 0.25)
    maps[:, 0] = 1.0
    model.reconstruct(None, maps, KEYS[:1], samples=2, num_inference_steps=10, strength=0.6)
    pixels = encode.calls[0][0][0]
    assert pixels.shape == (1, 3, 64, 64)
    assert torch.allclose(pixels[0, :, 5, 5], torch.tensor([1.0, -0.5, -0.5]))  # [0, 1] -> [-1, 1]
    latent = encode.calls[0][2].latents * model.img2img.vae.config.scaling_factor

    sample, t = unet.calls[0][0][:2]
    assert int(t) == 501  # 10 steps of 100 from 901 down (offset 1); 0.6 of them: 501, 401, 301, 201, 101, 1
    share = model.img2img.scheduler.alphas_cumprod[int(t)]  # forward process: x_t = √ᾱ z + √(1-ᾱ) ε
    for number in range(2):
        noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seed_from(0, KEYS[0], number)))
        expected = share.sqrt() * latent + (1 - share).sqrt() * noise
        assert torch.allclose(sample[number : number + 1], expected, atol=1e-5)


def test_step_3_guides_away_from_the_empty_caption(model, inputs, monkeypatch):
    embeds, maps = inputs
    unet = Spy(monkeypatch, model.img2img.unet, "forward")
    model.reconstruct(embeds, maps, KEYS, samples=2, num_inference_steps=10, strength=0.6)
    assert len(unet.calls) == 6
    context = unet.calls[0][1]["encoder_hidden_states"]
    assert torch.equal(context[:8], model.empty.expand(8, -1, -1))
    assert torch.equal(context[8:], embeds.repeat_interleave(2, 0))
    unet.calls.clear()
    model.reconstruct(embeds, None, KEYS, samples=1, num_inference_steps=10, strength=0.6)
    assert len(unet.calls) == 10, "without a map the whole schedule is run"
    unet.calls.clear()
    model.reconstruct(None, maps, KEYS, samples=1, num_inference_steps=10, strength=0.6)
    assert torch.equal(unet.calls[0][1]["encoder_hidden_states"], model.empty.expand(4, -1, -1))
    unet.calls.clear()
    model.reconstruct(embeds, maps, KEYS, samples=1, num_inference_steps=10, strength=0.6, guidance_scale=1.0)
    assert torch.equal(unet.calls[0][1]["encoder_hidden_states"], embeds)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_row_does_not_depend_on_the_row_drawn_before(directories, inputs, tmp_path, name):
    import diffusers

    pipe = load_pipeline(str(directories["kl"]))
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    embeds, maps = inputs
    settings = {"samples": 1, "num_inference_steps": 6, "strength": 0.5}
    first = Reconstructor(str(tmp_path))
    plain = first.reconstruct(embeds, None, KEYS, **settings)
    mapped = first.reconstruct(embeds, maps, KEYS, **settings)
    assert torch.equal(first.reconstruct(embeds, None, KEYS, **settings), plain)
    assert torch.equal(Reconstructor(str(tmp_path)).reconstruct(embeds, maps, KEYS, **settings), mapped)


def test_other_sizes(directories, inputs):
    model = Reconstructor(str(directories["kl"]))
    images = model.reconstruct(*inputs, KEYS, samples=1, num_inference_steps=2, height=32, width=96)
    assert images.shape == (4, 1, 3, 32, 96)
    assert model.reconstruct(None, None, [], samples=2).shape == (0, 2, 3, 64, 64)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_inference_steps": 4, "strength": 0.2}, "leaves no denoising step .* at least 6 steps"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"num_inference_steps": -3}, "must be at least 1"),
        ({"strength": 0.0}, "must be above 0"),
        ({"strength": 1.5}, "must be at most 1"),
        ({"strength": float("nan")}, "strength=nan must be"),
        ({"guidance_scale": 0.5}, "must be at least 1"),
        ({"guidance_scale": float("nan")}, "must be at least 1"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"height": 60}, "multiples of 8"),
        ({"keys": KEYS[:3]}, "there are 3 keys"),
        ({"prompt_embeds": torch.zeros(4, 77, 768)}, "77 x 768 .* takes 16 x 32"),
        ({"prompt_embeds": torch.full((4, TEXT_LENGTH, TEXT_WIDTH), torch.nan)}, "NaN"),
        ({"maps": torch.full((4, 3, 8, 8), torch.inf)}, "NaN"),
        ({"maps": -torch.ones(4, 3, 8, 8)}, r"\[0, 1\]"),
        ({"maps": torch.ones(4, 1, 8, 8)}, r"\(B, 3, h, w\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(model, inputs, change, message):
    arguments = {"prompt_embeds": inputs[0], "maps": inputs[1], "keys": KEYS, "num_inference_steps": 4} | change
    with pytest.raises(ValueError, match=message):
        model.reconstruct(**arguments)


def test_what_cannot_be_loaded_is_refused(directories, tmp_path):
    with pytest.raises(ValueError, match="neither a directory nor a hub id"):
        load_pipeline("/no/such/directory")
    with pytest.raises(ValueError, match="model_index.json"):
        load_pipeline(str(tmp_path))
    broken = shutil.copytree(directories["kl"], tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(broken / "unet" / "elsewhere")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_pipeline(str(broken))
    # a pickle in place of the safetensors is not opened
    (broken / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_pipeline(str(broken))


def test_attention_is_what_was_asked_for(directories, inputs):
    pipe = load_pipeline(str(directories["kl"]))
    expectations = {"sliced": "SlicedAttnProcessor", "sdpa": "AttnProcessor2_0", "auto": "AttnProcessor2_0"}
    for name, expected in expectations.items():
        assert set_attention(pipe, name, "cpu") == ("sdpa" if name == "auto" else name)
        assert in_force(pipe) == {expected}
    with pytest.raises(ValueError, match="xformers.*(pip install|CUDA)"):
        set_attention(pipe, "xformers", "cpu")
    with pytest.raises(ValueError, match="not one of auto, xformers, sdpa, sliced"):
        set_attention(pipe, "flash", "cpu")
    settings = {"samples": 1, "num_inference_steps": 3}
    plain = Reconstructor(str(directories["kl"]), attention="sdpa").reconstruct(*inputs, KEYS, **settings)
    sliced = Reconstructor(str(directories["kl"]), attention="sliced").reconstruct(*inputs, KEYS, **settings)
    assert torch.allclose(plain, sliced, atol=1e-4)


def test_diffusers_own_setter_still_does_nothing(directories):
    """Canary: when this fails, attention.py may use `set_attention_backend` instead of processors."""
    pipe = load_pipeline(str(directories["kl"]))
    before = in_force(pipe)
    pipe.unet.set_attention_backend("native")
    assert in_force(pipe) == before == {"AttnProcessor2_0"}


def test_picture_files(tmp_path):
    pictures = PictureFiles(tmp_path, ["a", "b", "c"], ["I", "L+I"], samples=2, chunk=2)
    assert pictures.chunks == [["a", "b"], ["c"]]
    assert [path.name for path in pictures.files("L+I", 0)] == ["a_0.png", "a_1.png", "b_0.png", "b_1.png"]
    assert pictures.files("maps", 1) == [tmp_path / "maps" / "c.png"]
    assert pictures.begin([], {}) == {0: ["I", "L+I"], 1: ["I", "L+I"]}
    values = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 4, 5)
    pictures.save("truth", 1, [values])
    pictures.save("maps", 1, [values])
    pictures.save("I", 1, [values, values])
    assert pictures.lacking(pictures.missing()) == {0: ["I", "L+I"], 1: ["L+I"]}
    pixels = np.asarray(Image.open(tmp_path / "images" / "I" / "c_1.png"))
    assert pixels.shape == (4, 5, 3) and pixels[2, 3].tolist() == [0, 128, 255]
    pictures.save("L+I", 1, [values, values])
    assert pictures.lacking(pictures.missing()) == {0: ["I", "L+I"]}
    (tmp_path / "maps" / "c.png").unlink()
    assert pictures.lacking(pictures.missing())[1] == ["I", "L+I"], "a lost map is made again"
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: data[:-50] + bytes(50),
    ],
)
def test_what_a_crash_leaves_of_a_picture_is_noticed(tmp_path, damage):
    path = tmp_path / "a.png"
    assert not whole(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)
    assert whole(path) and whole(path, (6, 8)) and not whole(path, (8, 6))
    path.write_bytes(damage(path.read_bytes()))
    assert not whole(path)


def test_a_picture_of_another_kind_is_not_ours(tmp_path):
    for name, mode in (("grey.png", "L"), ("alpha.png", "RGBA")):
        Image.new(mode, (8, 8)).save(tmp_path / name)
        assert not whole(tmp_path / name)
