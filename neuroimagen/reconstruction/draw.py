"""From EEG to pictures, as trainers/reconstruct.py and NeuroImagen.reconstruct (model/model.py) both do it: a chunk of
trials is decoded once, then drawn row by row, a row when it is asked for; and how many trials a chunk may have."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from neuroimagen.reconstruction.controls import Gallery, draw_baseline
from neuroimagen.reconstruction.reconstructor import EncodedMaps, Reconstructor
from neuroimagen.rows import ROWS
from neuroimagen.run.seeds import seed_from

MOST_ON_GPU = 128  # pictures at once in the U-Net, guidance counted; beyond it a GPU is busy anyhow
MOST_ON_CPU = 4096  # cells of their latents; a core is busy with fewer (docs/measured/reconstruct.md)
RESERVE = 8  # a run is cut in at least so many chunks, if it has the trials, so that so many processes have work

FITS_NOT = "use a smaller chunk, fewer samples, precision=bf16, attention=sdpa or vae_tiling=true"


class Decoded(NamedTuple):
    """What stages 1 and 2, or what stands in their place, make of B trials."""

    maps: Tensor | None  # (B, 3, h, w) in [0, 1], M_p(x); None: no row starts from one
    embeddings: dict[str, Tensor]  # (B, L, D_s) or (B, samples, L, D_s) of each `Row.semantics`, (B, D) of `Row.image`


@torch.inference_mode()
def saliency_maps(eeg: Tensor, keys: Sequence[str], decoders: Any, seed: int, subject: Tensor | None = None) -> Tensor:
    """EEG (B, C, T), standardised, of `subject` (B,), through f_theta and g of `decoders`: M_p(x), (B, 3, h, w) in
    [0, 1]."""
    noises = [torch.Generator().manual_seed(seed_from(seed, "map", key)) for key in keys]
    z = torch.stack([torch.randn(decoders.g.z_dim, generator=noise) for noise in noises]).to(eeg.device)
    return decoders.g(z, decoders.f_theta(eeg, subject)).add(1).div(2)  # M_p(x) = G(z, f_θ(x))


@torch.inference_mode()
def decode(
    eeg: Tensor,
    keys: Sequence[str],
    decoders: Any,
    seed: int,
    rescale_embeddings: bool = False,
    subject: Tensor | None = None,
) -> Decoded:
    """EEG (B, C, T), standardised, through `decoders`: its f_theta and g, None for no maps, and each of its m_s.

    (seed, key) fixes the noise z of a map. rescale_embeddings: as far from the captions' mean as a caption is
    (SampleEncoder.rescaled); subject (B,): whose EEG it is, for models with a layer of each person
    """
    maps = None if decoders.g is None else saliency_maps(eeg, keys, decoders, seed, subject)
    embeddings = {kind: m_s(eeg, subject) for kind, m_s in decoders.m_s.items()}
    if rescale_embeddings:
        embeddings = {kind: decoders.m_s[kind].rescaled(embedding) for kind, embedding in embeddings.items()}
    return Decoded(maps, embeddings)


def draw(
    rows: Sequence[str],
    eeg: Tensor,
    keys: Sequence[str],
    decoded: Mapping[str, Decoded],
    diffusion: Reconstructor,
    settings: dict[str, Any],
    baselines: Mapping[str, Any] | None = None,
    gallery: Gallery | None = None,
    subject: Tensor | None = None,
) -> Iterator[Tensor]:
    """The pictures of each of `rows`, (B, samples, 3, H, W) in [0, 1], one row after the other.

    eeg (B, C, T), standardised; decoded: by `Row.of`, "trial" being what `decode` made of it
    settings: of Reconstructor.reconstruct, samples, seed, height and width among them
    baselines (by `Row.by`) and gallery, with subject (B,): for the rows that no diffusion model draws
    """
    encoded: dict[str, EncodedMaps] = {}
    samples, seed, size = settings["samples"], settings["seed"], settings["height"]
    for row in rows:
        about = ROWS[row]
        if about.by == "diffusion":
            maps, embeddings = decoded[about.of]
            embedding = embeddings[about.semantics] if about.semantics else None
            with saying_what_fits(len(keys)):  # F(M_p(x), M_s(x)), steps (1) to (4)
                if about.map and about.of not in encoded and maps is not None:  # once for all rows and samples
                    encoded[about.of] = diffusion.encode(maps, size, settings["width"])
                start = encoded[about.of] if about.map else None
                seen = embeddings[about.image] if about.image else None
                drawn = diffusion.reconstruct(embedding, start, keys, **settings, image_embeds=seen)
        elif about.by == "retrieval" and gallery:
            drawn = gallery(eeg, samples, subject)
        else:
            drawn = draw_baseline((baselines or {})[about.by], eeg, keys, samples, seed, size, subject)
        yield drawn


def find_chunk(diffusion: Reconstructor, trials: int, settings: Mapping[str, Any]) -> int:
    """The number of trials, out of `trials`, whose `samples` pictures each are drawn together without running out of
    memory on this device: the most that is of use, halved until two denoising steps and the decoding succeed.

    settings: of `Reconstructor.reconstruct`, all of them. Raises ValueError if not even one trial fits.
    """
    height, width = diffusion.picture_size(settings["height"], settings["width"])
    pictures = settings["samples"] * (2 if settings["guidance_scale"] > 1 and not diffusion.distilled else 1)
    if diffusion.device.type == "cpu":
        most = MOST_ON_CPU // (pictures * (height // diffusion.factor) * (width // diffusion.factor))
    else:
        most = MOST_ON_GPU // pictures
    chunk = max(1, min(most, -(-trials // RESERVE)))
    short = {**settings, "num_inference_steps": 2, "strength": 1.0}
    while chunk:
        try:
            embeds, maps = diffusion.nothing.expand(chunk, -1, -1), torch.zeros(chunk, 3, 8, 8)
            seen = torch.zeros(chunk, diffusion.image_prompt.width) if diffusion.image_prompt else None
            diffusion.reconstruct(embeds, maps, ["trial"] * chunk, **short, image_embeds=seen)
            return chunk
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        chunk //= 2
    raise ValueError(
        f"not even one trial's {settings['samples']} pictures of {height} x {width} px fit in the memory of "
        f"{diffusion.device}: {FITS_NOT}"
    )


@contextlib.contextmanager
def saying_what_fits(chunk: int) -> Iterator[None]:
    """Turn "out of memory" into a ValueError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise ValueError(f"out of memory with {chunk} trials drawn together: {FITS_NOT}") from None
