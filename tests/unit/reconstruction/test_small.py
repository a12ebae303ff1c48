"""The small latent diffusion model's parts."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.reconstruction.small_diffusion import (
    FIXED,
    byte_pairs,
    learn_tokenizer,
    make_autoencoder,
    make_denoiser,
)

CAPTIONS = ["An image of giant panda", "a small panda in the upper left on a blue background"]


def test_byte_pairs_by_hand():
    vocabulary, merges = byte_pairs({"ab", "abc"})
    # pairs: (a, b</w>) once, (a, b) once, (b, c</w>) once; ties go to the lexicographically largest: ("b", "c</w>")
    assert merges == [("b", "c</w>"), ("a", "bc</w>"), ("a", "b</w>")]
    assert vocabulary[-3:] == ["bc</w>", "abc</w>", "ab</w>"] and len(vocabulary) == 2 * 256 + 3


def test_words_of_the_captions_are_one_token_each():
    tokenizer = learn_tokenizer(CAPTIONS, 16)
    assert tokenizer.tokenize(CAPTIONS[0]) == ["an</w>", "image</w>", "of</w>", "giant</w>", "panda</w>"]
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=16, truncation=True).input_ids
    assert [len(i) for i in ids] == [16, 16]
    assert ids[0][0] == tokenizer.bos_token_id and ids[0][6:] == [tokenizer.eos_token_id] * 10


def test_the_tokenizer_is_a_function_of_the_captions():
    first, second = learn_tokenizer(CAPTIONS, 16), learn_tokenizer(CAPTIONS[::-1], 16)
    assert first.get_vocab() == second.get_vocab()


@given(st.text(max_size=40))
def test_any_text_encodes_within_the_vocabulary(text):
    tokenizer = TOKENIZER
    ids = tokenizer(text, truncation=True, max_length=16).input_ids
    assert 2 <= len(ids) <= 16 and max(ids) < len(tokenizer)


TOKENIZER = learn_tokenizer(CAPTIONS, 16)


def test_shapes():
    vae, unet = make_autoencoder(8, 4), make_denoiser(4, 8, (16, 32), 16)
    images = torch.zeros(2, 3, 64, 64)
    latents = vae.encode(images).latents
    assert latents.shape == (2, 4, 8, 8) and vae.decode(latents).sample.shape == images.shape
    assert unet(latents, torch.tensor([1, 2]), torch.zeros(2, 5, 16)).sample.shape == latents.shape


def test_the_last_timestep_is_pure_noise():
    scheduler = DDIMScheduler(**FIXED["scheduler"])
    clean, noise = torch.full((1, 4, 8, 8), 3.0), torch.randn(1, 4, 8, 8)
    assert torch.allclose(scheduler.add_noise(clean, noise, torch.tensor([999])), noise, atol=1e-6)


def test_the_embedded_models_name_no_place_of_the_machine_that_made_them():
    import neuroimagen

    files = sorted((Path(neuroimagen.__file__).parent / "embedded").rglob("*.json"))
    assert len(files) >= 6
    for file in files:
        if file.name != "tokenizer.json":
            assert '"/' not in file.read_text(), file


def test_checkpointing_gives_the_same_gradients_and_computes_blocks_twice():
    calls, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = make_denoiser(4, 8, (16, 32), 16).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        seen = []
        unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        out = unet(torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), torch.ones(2, 5, 16)).sample
        out.square().mean().backward()
        calls.append(len(seen))
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert calls == [1, 2]
    assert torch.allclose(*gradients, atol=1e-7) and gradients[0].abs().max() > 0
