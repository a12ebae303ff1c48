"""The kinds of latent diffusion model that are drawn with, and their schedulers, on small random ones."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from tiny_models import SD2, TEXT_LENGTH, TEXT_WIDTH, tiny_lcm, tiny_pipeline, tiny_xl
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from neuroimagen.errors import load_trained, quiet_libraries
from neuroimagen.pixel.features import FeatureExtractor
from neuroimagen.reconstruction.draw import find_chunk, saying_what_fits
from neuroimagen.reconstruction.pipelines import SCHEDULERS, load_pipeline, set_scheduler
from neuroimagen.reconstruction.reconstructor import Reconstructor, noise_seed
from neuroimagen.run.seeds import seed_from
from neuroimagen.sample.captions import embed_captions

KEYS = ["s1_a", "s1_b", "s2_a"]
SETTINGS = {"strength": 0.5, "num_inference_steps": 6, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    found = {"sd1": tiny_pipeline(root / "sd1")}
    found["sd2"] = tiny_pipeline(root / "sd2", prediction_type="v_prediction", text_width=40, **SD2)
    found["lcm"] = tiny_lcm(root / "lcm", found["sd1"])
    found["xl"] = tiny_xl(root / "xl", found["sd1"])
    found["xl-turbo"] = tiny_xl(root / "xl-turbo", found["sd1"], zeros_for_empty=False)
    zero_snr = shutil.copytree(found["sd2"], root / "zero")
    config = json.loads((zero_snr / "scheduler" / "scheduler_config.json").read_text())
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    (zero_snr / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return found | {"zero": zero_snr}


def inputs(model: Reconstructor):
    generator = torch.Generator().manual_seed(3)
    shape = (len(KEYS), model.text_length, model.text_width)
    return torch.randn(shape, generator=generator), torch.rand(len(KEYS), 3, 16, 16, generator=generator)


def generators(sample: int, *more: str) -> list[torch.Generator]:
    seeds = [seed_from(0, key, sample) for key in KEYS]
    return [torch.Generator().manual_seed(seed_from(seed, *more) if more else seed) for seed in seeds]


def start(vae, maps: torch.Tensor, sample: int) -> torch.Tensor:
    """What each map starts from, as an image that diffusers takes for latents and encodes no more.

    So its own pipeline can be compared with: left to itself it draws from the posterior first and takes the noise from
    the same generator, and a row without a map, which has no posterior, would get another noise.
    """
    posterior = vae.encode(F.interpolate(maps, size=(64, 64), mode="bilinear").mul(2).sub(1)).latent_dist
    draw = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators(sample, "posterior")])
    return vae.config.scaling_factor * (posterior.mean + posterior.std * draw)


@pytest.mark.parametrize("with_map", [True, False])
@pytest.mark.parametrize("kind", ["sd2", "lcm", "xl", "xl-turbo"])
def test_each_kind_draws_what_its_diffusers_pipeline_draws(directories, kind, with_map):
    model = Reconstructor(str(directories[kind]))
    embeds, maps = inputs(model)
    got = model.reconstruct(embeds, maps if with_map else None, KEYS, samples=2, **SETTINGS)
    assert got.shape == (3, 2, 3, 64, 64) and not torch.equal(got[:, 0], got[:, 1])

    task = diffusers.AutoPipelineForImage2Image if with_map else diffusers.AutoPipelineForText2Image
    pipe = task.from_pretrained(directories[kind], use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    told = {"prompt_embeds": embeds, "num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "pt"}
    if kind.startswith("xl"):
        _, nothing, _, pooled = pipe.encode_prompt("", do_classifier_free_guidance=True)
        told |= {"pooled_prompt_embeds": pooled.expand(3, -1), "negative_pooled_prompt_embeds": pooled.expand(3, -1)}
        told["negative_prompt_embeds"] = nothing.expand(3, -1, -1)
        assert (nothing.abs().sum() == 0) == (kind == "xl")
    elif kind != "lcm":
        told["negative_prompt"] = [""] * 3
    for sample in range(2):
        if with_map:
            told |= {"image": start(pipe.vae, maps, sample), "strength": 0.5}
        assert torch.allclose(got[:, sample], pipe(**told, generator=generators(sample)).images, atol=1e-5)


@pytest.mark.parametrize(
    "strength, steps, timesteps",
    [  # of the 50 steps of 20 that it was distilled with, 19 to 999: the lowest 50 x strength, cut in equal parts
        (0.3, 4, [299, 239, 159, 79]),
        (0.8, 2, [799, 399]),
        (0.8, 4, [799, 599, 399, 199]),
        (0.1, 5, [99, 79, 59, 39, 19]),
        (1.0, 2, [999, 499]),
    ],
)
def test_a_consistency_model_takes_all_its_steps_from_the_share_of_its_schedule(
    directories, monkeypatch, strength, steps, timesteps
):
    model = Reconstructor(str(directories["lcm"]))
    seen, forward = [], model.img2img.unet.forward
    monkeypatch.setattr(model.img2img.unet, "forward", lambda *a, **k: seen.append(int(a[1])) or forward(*a, **k))
    embeds, maps = inputs(model)
    got = model.reconstruct(embeds, maps, KEYS, 1, strength=strength, num_inference_steps=steps, guidance_scale=3.0)
    assert seen == timesteps
    pipe = diffusers.LatentConsistencyModelImg2ImgPipeline.from_pretrained(directories["lcm"], use_safetensors=True)
    expected = pipe(
        prompt_embeds=embeds,
        image=start(pipe.vae, maps, 0),
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generators(0),
        output_type="pt",
    ).images
    assert torch.allclose(got[:, 0], expected, atol=1e-5)


OWN = {  # schedulers as models come with them: of second order, with other spacings of steps and noise
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "euler, karras": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler, linspace": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "sde, trailing": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "trailing", "use_karras_sigmas": True},
    ),
    "lcm": (diffusers.LCMScheduler, {}),  # in a Stable Diffusion directory, as with a distilled LoRA
}
NAMED = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}


@pytest.mark.parametrize("kind", ["sd2", "xl"])
def test_every_scheduler_goes_from_a_map_as_in_diffusers_image_to_image(directories, kind):
    model = Reconstructor(str(directories[kind]))
    own, parts, embeds, maps = model.img2img.scheduler, model.img2img.components, *inputs(model)
    nothing = {"negative_prompt_embeds": model.nothing.expand(3, -1, -1)}
    if kind == "xl":
        zeros = torch.zeros(3, 24)
        nothing |= {"pooled_prompt_embeds": zeros, "negative_pooled_prompt_embeds": zeros}
    assert set(NAMED) == set(SCHEDULERS) - {"lcm"}
    for name, (scheduler, told) in [*NAMED.items(), *OWN.items()]:
        reference = scheduler.from_config(own.config, **told)
        model.img2img.scheduler = own
        if name in NAMED:
            set_scheduler(model.img2img, name)
        else:
            model.img2img.scheduler = scheduler.from_config(own.config, **told)
        pipe = {"sd2": diffusers.StableDiffusionImg2ImgPipeline, "xl": diffusers.StableDiffusionXLImg2ImgPipeline}[kind]
        pipe = pipe(**parts | {"scheduler": reference}, **({"requires_safety_checker": False} if kind == "sd2" else {}))
        pipe.set_progress_bar_config(disable=True)
        for strength in (0.35, 0.8):
            settings = {"strength": strength, "num_inference_steps": 6, "guidance_scale": 3.0}
            got = model.reconstruct(embeds, maps, KEYS, 1, **settings)[:, 0]
            given = {"image": start(pipe.vae, maps, 0), "generator": generators(0), "output_type": "pt"}
            expected = pipe(prompt_embeds=embeds, **nothing, **settings, **given).images
            assert torch.allclose(got, expected, atol=1e-5), (name, strength)


@pytest.mark.parametrize("kind", ["sd1", "lcm"])
def test_rows_with_and_without_a_map_share_a_pictures_noise(directories, monkeypatch, kind):
    model = Reconstructor(str(directories[kind]))
    seen, forward = [], model.img2img.unet.forward
    monkeypatch.setattr(model.img2img.unet, "forward", lambda *a, **k: seen.append((a[0], a[1])) or forward(*a, **k))
    _, maps = inputs(model)
    first = []
    for given, strength in ((None, 1.0), (maps, 0.4), (maps, 0.8)):
        seen.clear()
        model.reconstruct(None, given, KEYS, samples=2, strength=strength, num_inference_steps=5)
        first.append(seen[0])
    # x_t = √ᾱ z + √(1-ᾱ) ε at two times t: z falls out, whatever the posterior gave.
    (noise, _), (x, t), (y, u) = first
    a, b = (model.img2img.scheduler.alphas_cumprod[int(time)] for time in (t, u))
    ratio = (a / b).sqrt()
    assert torch.allclose((x - ratio * y) / ((1 - a).sqrt() - ratio * (1 - b).sqrt()), noise, atol=1e-4)
    assert torch.equal(
        noise[:1], torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(noise_seed(0, "s1_a", 0)))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_xl_in_half_precision_encodes_and_decodes_as_diffusers_does(directories, monkeypatch, dtype):
    """fp32 in the encoder; in the decoder fp32 for fp16, which overflows there, and bf16 for bf16."""
    model = Reconstructor(str(directories["xl"]), dtype=dtype)
    embeds, maps = inputs(model)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**load_pipeline(str(directories["xl"]), dtype).components)
    image = F.interpolate(maps, size=(64, 64), mode="bilinear").mul(2).sub(1)
    latents = pipe.prepare_latents(image, None, 3, 1, dtype, "cpu", generators(0, "posterior"), add_noise=False)
    seen = {}
    for name in ("encode", "decode"):
        method = getattr(model.img2img.vae, name)

        def spy(x, name=name, method=method, **told):
            seen[name] = (x.dtype, model.img2img.vae.dtype)
            return method(x, **told)

        monkeypatch.setattr(model.img2img.vae, name, spy)
    got = model.reconstruct(embeds, maps, KEYS, 1, **SETTINGS)[:, 0]
    assert seen["encode"] == (torch.float32,) * 2 and model.img2img.vae.dtype == dtype
    assert seen["decode"] == ((torch.float32,) * 2 if dtype == torch.float16 else (dtype,) * 2)
    ours = model._scaled(model.encode(maps).latents(1, [noise_seed(0, key, 0) for key in KEYS]).to(dtype))
    assert torch.allclose(ours.float(), latents.float(), atol=1e-3)  # 0.011 apart where all is bf16
    zeros = {"negative_prompt_embeds": torch.zeros_like(embeds, dtype=dtype)}
    zeros |= dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), torch.zeros(3, 24, dtype=dtype))
    given = {"image": latents, "generator": generators(0), "output_type": "pt", **SETTINGS}
    expected = pipe(prompt_embeds=embeds.to(dtype), **zeros, **given).images
    assert torch.allclose(got, expected.float(), atol=0.02)


def test_the_guidance_of_a_consistency_model_is_an_input_of_one_forward_pass(directories, monkeypatch):
    model = Reconstructor(str(directories["lcm"]))
    assert model.scheduler == "LCMScheduler" and model.distilled
    calls, forward = [], model.img2img.unet.forward
    monkeypatch.setattr(model.img2img.unet, "forward", lambda *a, **k: calls.append((a[0], k)) or forward(*a, **k))
    embeds, maps = inputs(model)
    weak, strong = (
        model.reconstruct(embeds, maps, KEYS, samples=1, strength=1, num_inference_steps=2, guidance_scale=g)
        for g in (1.5, 9.0)
    )
    assert [len(sample) for sample, _ in calls] == [3] * 4 and calls[0][1]["timestep_cond"].shape == (3, 8)
    assert not torch.allclose(weak, strong, atol=1e-4)
    with pytest.raises(ValueError, match="51 is more than the 50"):
        model.reconstruct(embeds, maps, KEYS, num_inference_steps=51)
    with pytest.raises(ValueError, match="11 is more than the 10 that strength=0.2 leaves of the 50"):
        model.reconstruct(embeds, maps, KEYS, num_inference_steps=11, strength=0.2)


def test_the_pooled_embedding_of_xl_is_that_of_no_caption(directories):
    model = Reconstructor(str(directories["xl"]))
    assert (model.text_length, model.text_width) == (TEXT_LENGTH, 80) and model.pooled.shape == (1, 24)
    assert model.describe()["pooled_embedding"] == "of no caption"
    with pytest.raises(ValueError, match="32 .* takes 16 x 80"):  # of the first encoder alone
        model.reconstruct(torch.zeros(3, TEXT_LENGTH, TEXT_WIDTH), None, KEYS)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "lcm"])
def test_a_scheduler_keeps_what_the_model_was_trained_with(directories, name, one_thread):
    own = load_pipeline(str(directories["zero"])).scheduler.config
    if name == "pndm":  # it has no zero terminal SNR and would draw with another noise schedule
        with pytest.raises(ValueError, match="scheduler=pndm knows no rescale_betas_zero_snr=True"):
            Reconstructor(str(directories["zero"]), scheduler=name)
        model = Reconstructor(str(directories["sd2"]), scheduler=name)
        own = {**own, "timestep_spacing": "leading", "rescale_betas_zero_snr": False}
    else:
        model = Reconstructor(str(directories["zero"]), scheduler=name)
    assert model.scheduler == SCHEDULERS[name][0] == type(model.text2img.scheduler).__name__
    config = model.img2img.scheduler.config
    for key in ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "beta_schedule", "beta_end"):
        assert config.get(key) == own.get(key), key
    embeds, maps = inputs(model)
    for given in (maps, None):
        drawn = model.reconstruct(embeds, given, KEYS, samples=1, **SETTINGS)
        again = model.reconstruct(embeds.flip(0), given if given is None else given.flip(0), KEYS[::-1], 1, **SETTINGS)
        assert torch.equal(again.flip(0), drawn), "a picture depends on its place in the batch, or on the row before"


def test_schedulers_agree_on_the_picture_when_steps_are_many(directories):
    """They solve the same equation from the same noise; a v-prediction model taken for an epsilon one would not."""
    drawn = {}
    for name in ("ddim", "dpm++", "unipc", "euler"):
        model = Reconstructor(str(directories["sd2"]), scheduler=name)
        embeds, maps = inputs(model)
        wrong = name == "euler"  # the same, taken for a model that predicts the noise
        if wrong:
            model = Reconstructor(str(directories["sd2"]), scheduler="ddim")
            model.img2img.scheduler.register_to_config(prediction_type="epsilon")
        drawn[name] = model.reconstruct(embeds[:1], maps[:1], KEYS[:1], 1, strength=0.5, num_inference_steps=80)
    far = {name: (pictures - drawn["ddim"]).abs().mean() / drawn["ddim"].std() for name, pictures in drawn.items()}
    assert max(far["dpm++"], far["unipc"]) < 0.05 < 0.2 < far["euler"], far


def test_a_map_is_encoded_once_for_all_samples_and_rows(directories, monkeypatch):
    model = Reconstructor(str(directories["sd1"]))
    calls, encode = [], model.img2img.vae.encode
    monkeypatch.setattr(model.img2img.vae, "encode", lambda image: calls.append(len(image)) or encode(image))
    embeds, maps = inputs(model)
    encoded = model.encode(maps)
    rows = [model.reconstruct(given, encoded, KEYS, samples=2, **SETTINGS) for given in (embeds, None)]
    assert calls == [3]
    assert torch.equal(rows[0], model.reconstruct(embeds, maps, KEYS, samples=2, **SETTINGS))
    with pytest.raises(ValueError, match=r"encoded for pictures of \(64, 64\) px"):
        model.reconstruct(embeds, encoded, KEYS, height=32, width=32)


def test_speed_settings_change_the_layout_and_not_the_picture(directories):
    plain = Reconstructor(str(directories["sd1"]))
    fast = Reconstructor(str(directories["sd1"]), channels_last=True, vae_slicing=True, vae_tiling=True)
    assert fast.img2img.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert fast.img2img.vae.use_slicing and fast.img2img.vae.use_tiling and not plain.img2img.vae.use_slicing
    embeds, maps = inputs(plain)
    a, b = (model.reconstruct(embeds, maps, KEYS, samples=1, **SETTINGS) for model in (plain, fast))
    assert torch.allclose(a, b, atol=1e-4)


def test_the_chunk_is_halved_until_it_fits(directories, monkeypatch):
    model = Reconstructor(str(directories["sd1"]))
    forward, tried = model.img2img.unet.forward, []

    def small(sample, *args, **kwargs):
        tried.append(len(sample))
        if len(sample) > 30:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(model.img2img.unet, "forward", small)
    settings = {
        "samples": 3,
        "guidance_scale": 4.0,
        "num_inference_steps": 50,
        "strength": 0.8,
        "height": 64,
        "width": 64,
    }
    assert find_chunk(model, 10_000, settings) == 5  # 4096 / (3 x 2 x 8 x 8) = 10 trials; 60 latents do not fit, 30 do
    assert tried == [60, 30, 30]
    monkeypatch.setattr(model.img2img.unet, "forward", lambda *a, **k: small(torch.zeros(99)))
    with pytest.raises(ValueError, match="not even one trial's 3 pictures .* smaller chunk"):
        find_chunk(model, 20, settings)
    with pytest.raises(ValueError, match="out of memory with 4 trials .* smaller chunk"), saying_what_fits(4):
        small(torch.zeros(99))


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "is a StableDiffusion3Pipeline; Stable Diff"),
        (
            "model_index.json",
            {"text_encoder": [None, None]},
            "cannot be loaded as a Stable Diffusion pipeline: .*text_enc",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(directories, tmp_path, file, change, message):
    copy = shutil.copytree(directories["sd1"], tmp_path / "copy")
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Reconstructor(str(copy))


def test_parts_that_do_not_fit_together_are_refused(directories, tmp_path):
    inpainting = tiny_pipeline(tmp_path / "inpainting", in_channels=9)
    with pytest.raises(ValueError, match="inpainting or editing model: its U-Net takes 9 channels, its latents have 4"):
        load_pipeline(str(inpainting))
    wide = tiny_pipeline(tmp_path / "wide", cross_attention_dim=48)
    with pytest.raises(ValueError, match="its text embeddings are 32 wide, its U-Net takes 48"):
        load_pipeline(str(wide))
    no_guidance = shutil.copytree(directories["lcm"], tmp_path / "no_guidance")
    shutil.rmtree(no_guidance / "unet")
    shutil.copytree(directories["sd1"] / "unet", no_guidance / "unet")
    with pytest.raises(ValueError, match="not whole: the U-Net of a latent consistency model takes the guidance"):
        load_pipeline(str(no_guidance))
    other = load_pipeline(str(directories["lcm"]))
    other.scheduler = diffusers.DDIMScheduler.from_config(other.scheduler.config)
    with pytest.raises(ValueError, match="comes with a DDIMScheduler; use scheduler=lcm"):
        set_scheduler(other, "default")
    assert set_scheduler(other, "lcm") == "LCMScheduler"
    for kind, name in (("sd1", "lcm"), ("lcm", "ddim"), ("sd1", "dpm")):
        with pytest.raises(ValueError, match="consistency models|not one of default, ddim"):
            set_scheduler(load_pipeline(str(directories[kind])), name)


def test_models_load_in_silence(tmp_path, capfd):
    FeatureExtractor(4, 440, "conv", 5, width=4).save_pretrained(str(tmp_path / "features"))
    pipeline = tiny_pipeline(tmp_path / "pipeline")
    capfd.readouterr()
    load_pipeline(str(pipeline))
    load_trained(FeatureExtractor, tmp_path / "features")
    embed_captions(pipeline, ["a pizza"])
    assert capfd.readouterr() == ("", "")
    transformers_logging.disable_progress_bar()
    with quiet_libraries():
        print("what a library says")
    assert not transformers_logging.is_progress_bar_enabled() and diffusers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    print("what we say")
    assert capfd.readouterr().out == "what we say\n"
