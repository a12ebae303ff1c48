"""Image prompts, by diffusers' own IP-Adapter, on small random pipelines of the layouts of Stable Diffusion."""

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TEXT_LENGTH, TEXT_WIDTH, TINY_TARGETS, tiny_image_prompt, tiny_lcm, tiny_pipeline, tiny_xl

from neuroimagen.contrastive.encoder import ContrastiveEncoder
from neuroimagen.reconstruction.decoders import Decoders
from neuroimagen.reconstruction.image_prompt import Adapter, ImagePrompt
from neuroimagen.reconstruction.pipelines import load_pipeline
from neuroimagen.reconstruction.reconstructor import Reconstructor, noise_seed

WIDTH = 12
ABOUT = {"model": "some network", "revision": "1", "layer": "last", "pool": "mean", "size": 32, "views": ["original"]}
KEYS = ["s1_a", "s2_b"]
HOW = {"samples": 2, "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{layout: (pipeline, a directory of trainers/image_prompt.py for it)}"""
    root = tmp_path_factory.mktemp("prompted")
    sd = tiny_pipeline(root / "sd")
    pipelines = {"sd": sd, "xl": tiny_xl(root / "xl", sd), "lcm": tiny_lcm(root / "lcm", sd)}
    return {
        kind: (str(path), str(tiny_image_prompt(root / f"{kind}_prompt", path, WIDTH, ABOUT)))
        for kind, path in pipelines.items()
    }


@pytest.fixture(scope="module", params=["sd", "xl", "lcm"])
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def models(made, layout):
    pipeline, adapter = made[layout]
    return Reconstructor(pipeline), Reconstructor(pipeline, image_prompt=adapter)


def some(seed, trials=2):
    """Features around 2, as the tiny adapter's."""
    return 2 + 3 * torch.randn(trials, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_the_features_decide_the_picture(models):
    _, told = models
    first, again, other = (told.reconstruct(None, None, KEYS, image_embeds=some(seed), **HOW) for seed in (0, 0, 1))
    assert torch.equal(first, again) and (first - other).abs().amax((2, 3, 4)).min() > 0.01
    alone = told.reconstruct(None, None, KEYS[1:], image_embeds=some(0)[1:], **HOW)  # the other trial decides nothing
    assert torch.allclose(alone, first[1:], atol=1e-4)


def test_rows_without_features_are_drawn_as_without_an_adapter_to_the_bit(models):
    plain, told = models
    embeds = torch.randn(2, told.text_length, told.text_width, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told.reconstruct(embeds, None, KEYS, image_embeds=some(0), **HOW)  # leaves nothing behind
    for given in ((embeds, None), (embeds, maps), (None, maps)):
        assert torch.equal(told.reconstruct(*given, KEYS, **HOW), plain.reconstruct(*given, KEYS, **HOW))


def test_a_scale_of_nothing_is_no_adapter(made, layout, models):
    pipeline, adapter = made[layout]
    model = Reconstructor(pipeline, image_prompt=adapter, image_prompt_scale=0.0)
    embeds = torch.randn(2, model.text_length, model.text_width, generator=torch.Generator().manual_seed(1))
    drawn = model.reconstruct(embeds, None, KEYS, image_embeds=some(0), **HOW)
    assert torch.allclose(drawn, models[0].reconstruct(embeds, None, KEYS, **HOW), atol=1e-5)
    halves = Reconstructor(pipeline, image_prompt=adapter, image_prompt_scale=0.5)
    assert not torch.allclose(drawn, halves.reconstruct(embeds, None, KEYS, image_embeds=some(0), **HOW), atol=1e-3)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_diffusers_draws_the_same_from_the_same_file(made, kind):
    """load_ip_adapter and the text-to-image pipeline, called as diffusers' documentation does."""
    pipeline, adapter = made[kind]
    name = {"sd": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}[kind]
    pipe = getattr(diffusers, name).from_pretrained(pipeline)
    pipe.load_ip_adapter(adapter, subfolder="", weight_name="image_prompt.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    model = Reconstructor(pipeline, image_prompt=adapter, image_prompt_scale=0.7)
    kept = load_file(f"{adapter}/image_prompt.safetensors")
    features, told = some(0, 1), (some(0, 1) - kept["mean"]) / kept["std"]
    noise = torch.Generator().manual_seed(noise_seed(0, KEYS[0], 0))
    embeds = {"prompt_embeds": model.empty, "negative_prompt_embeds": model.nothing}
    if kind == "xl":
        embeds |= {"pooled_prompt_embeds": model.pooled, "negative_pooled_prompt_embeds": model.pooled}
    theirs = pipe(
        **embeds,
        ip_adapter_image_embeds=[torch.stack([torch.zeros_like(told), told])],
        **{"guidance_scale": 3.0, "num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt"},
        generator=noise,
    ).images
    ours = model.reconstruct(model.empty, None, KEYS[:1], image_embeds=features, **HOW | {"samples": 1})
    assert torch.allclose(ours[:, 0], theirs, atol=1e-4)


def test_the_mean_features_tell_nothing_that_guidance_could_strengthen(made):
    """They are standardised to the zeros that stand for no picture."""
    pipeline, adapter = made["sd"]
    model = Reconstructor(pipeline, image_prompt=adapter)
    mean = load_file(f"{adapter}/image_prompt.safetensors")["mean"].expand(2, -1)
    weak, strong = (
        model.reconstruct(None, None, KEYS, image_embeds=mean, **HOW | {"guidance_scale": scale}) for scale in (1, 9)
    )
    assert torch.allclose(weak, strong, atol=1e-3)
    strong, weak = (
        model.reconstruct(None, None, KEYS, image_embeds=some(0), **HOW | {"guidance_scale": scale}) for scale in (9, 1)
    )
    assert not torch.allclose(weak, strong, atol=1e-2)


def test_weights_alone_are_taken_in_the_features_own_units(made, tmp_path):
    """As published ones are."""
    pipeline, adapter = made["sd"]
    kept = load_file(f"{adapter}/image_prompt.safetensors")
    file = tmp_path / "ip-adapter.safetensors"
    save_file({name: x for name, x in kept.items() if "." in name}, file)
    published = Reconstructor(pipeline, image_prompt=str(file))
    ours = Reconstructor(pipeline, image_prompt=adapter)
    standard = (some(0) - kept["mean"]) / kept["std"]
    drawn = published.reconstruct(None, None, KEYS, image_embeds=standard, **HOW)
    assert torch.allclose(drawn, ours.reconstruct(None, None, KEYS, image_embeds=some(0), **HOW), atol=1e-4)
    target = {"kind": "image", "width": WIDTH, "model": "any"}
    assert published.image_prompt.fitting({"caption": target | {"kind": "text"}, "picture": target}, "x") == "picture"


def test_features_that_do_not_fit_are_refused(made):
    model = Reconstructor(made["sd"][0], image_prompt=made["sd"][1])
    right = ABOUT | {"kind": "image", "width": WIDTH, "preprocessing": "beside the point"}
    find = model.image_prompt.fitting
    assert find({"other": right | {"layer": 3}, "this": right}, "contrastive=runs/c") == "this"
    for wrong in ({"layer": 3}, {"pool": "cls"}, {"revision": "2"}, {"width": 7}, {"kind": "text"}, {"size": 64}):
        with pytest.raises(ValueError, match=r"takes 12 features of model some network.*contrastive=runs/c has those"):
            find({"a": right | wrong}, "contrastive=runs/c")
    assert find({"moved": right | {"model": "/elsewhere/some network"}}, "x") == "moved"  # the revision says which
    with pytest.raises(ValueError, match="image_embeds of 7 were given, but .* takes 12"):
        model.reconstruct(None, None, KEYS, image_embeds=torch.zeros(2, 7), **HOW)
    with pytest.raises(ValueError, match="image_embeds holds NaN"):
        model.reconstruct(None, None, KEYS, image_embeds=torch.full((2, WIDTH), torch.nan), **HOW)
    with pytest.raises(ValueError, match="has no image_prompt"):
        Reconstructor(made["sd"][0]).reconstruct(None, None, KEYS, image_embeds=some(0), **HOW)


def test_adapters_that_cannot_be_had_are_refused_in_a_sentence(made, tmp_path, monkeypatch):
    pipeline, adapter = made["sd"]
    refused = {
        **dict.fromkeys(
            ("nowhere", "a.safetensors", "models/a.safetensors", "../x/y/a.safetensors", "/no/models/a.safetensors"),
            "neither a directory of trainers/image_prompt.py nor a .safetensors file",
        ),
        made["xl"][1]: "cannot be loaded into this diffusion model",
        str(tmp_path): "is no directory of trainers/image_prompt.py",
        "owner/name/models/a.safetensors": "cannot be loaded into this diffusion model",
    }
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, sentence in refused.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            Reconstructor(pipeline, image_prompt=name)
        assert f"image_prompt={name}" in str(caught.value)
    with pytest.raises(ValueError, match="attention=sliced cannot be had with image_prompt"):
        Reconstructor(pipeline, image_prompt=adapter, attention="sliced")
    state = load_file(f"{adapter}/image_prompt.safetensors")
    plus = {name: x for name, x in state.items() if name.startswith("ip_adapter")} | plus_projection()
    save_file(plus, tmp_path / "plus.safetensors")
    with pytest.raises(ValueError, match="use an adapter of pooled"):
        Reconstructor(pipeline, image_prompt=str(tmp_path / "plus.safetensors"))


def test_decoded_features_are_as_long_as_those_of_train():
    """By hand: each measured in its own spread, 3; the root mean square of 12 numbers of variance 1 is sqrt(12)."""
    encoder = ContrastiveEncoder(4, 100, TINY_TARGETS, n_features=8).eval()
    encoder.mean.fill_(2.0)
    encoder.std.fill_(3.0)
    eeg = torch.randn(5, 4, 100)
    decoded = Decoders.features(SimpleNamespace(contrastive=encoder, target="picture"), eeg, torch.ones(5).long())
    raw = encoder(eeg)["picture"].detach()
    assert torch.allclose(((decoded - 2) / 3).norm(dim=1), torch.full((5,), 12**0.5))
    assert torch.allclose(torch.cosine_similarity(decoded - 2, raw - 2), torch.ones(5))


def plus_projection():
    """The projection of an IP-Adapter Plus Full Face, which takes all tokens."""
    shapes = {"proj.0": (WIDTH, WIDTH), "proj.2": (TEXT_WIDTH, WIDTH)}
    found = {f"image_proj.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    found |= {f"image_proj.{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    return found | {
        "image_proj.proj.3.weight": torch.ones(TEXT_WIDTH),
        "image_proj.proj.3.bias": torch.zeros(TEXT_WIDTH),
    }


def test_what_is_trained_is_what_is_kept(made, tmp_path):
    """After a step the file holds the new weights, in half precision, and the U-Net is as it was."""
    pipe = load_pipeline(made["sd"][0])
    before = {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    features = some(3, 20)
    adapter = Adapter(pipe, ABOUT | {"preprocessing": 1}, features)
    optimizer = torch.optim.SGD(adapter.parameters(), 0.1)
    latents, captions = torch.randn(2, 4, 8, 8), torch.randn(2, TEXT_LENGTH, TEXT_WIDTH)
    adapter(latents, torch.tensor([1, 500]), captions, torch.randn(2, WIDTH)).square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in adapter.parameters())
    optimizer.step()
    after = pipe.unet.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    adapter.save_pretrained(str(tmp_path / "kept"))
    kept = load_file(tmp_path / "kept" / "image_prompt.safetensors")
    assert torch.equal(kept["image_proj.proj.weight"], adapter.projection.image_embeds.weight.half())
    assert torch.allclose(kept["mean"], features.mean(0)) and torch.allclose(kept["std"], features.std(0), atol=2e-3)
    about = json.loads((tmp_path / "kept" / "image_prompt.json").read_text())
    assert about == {"features": ABOUT, "width": WIDTH, "n_tokens": 4}


def test_features_of_other_views_are_refused_with_what_differs():
    about = {"model": "net", "views": ["original"]}
    fits = ImagePrompt("ours", 4, about, torch.zeros(4), torch.ones(4), 1.0)
    other = about | {"kind": "image", "width": 4, "views": ["blur"]}
    assert fits.fitting({"a": other, "b": other | {"views": ["original"]}}, "run") == "b"
    with pytest.raises(ValueError, match=r"takes 4 features of .*views \['original'\]; run has .*views \['blur'\]"):
        fits.fitting({"a": other}, "run")
