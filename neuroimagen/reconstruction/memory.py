"""How many trials are drawn together: as many as fit in memory, found by trial."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from neuroimagen.reconstruction.reconstructor import Reconstructor

MOST_ON_GPU = 128  # pictures at once in the U-Net, guidance counted; beyond it a GPU is busy anyhow
MOST_ON_CPU = 4096  # cells of their latents; a core is busy with fewer (docs/measured/reconstruct.md)
RESERVE = 8  # a run is cut in at least so many chunks, if it has the trials, so that so many processes have work

FITS_NOT = "use a smaller chunk, fewer samples, precision=bf16, attention=sdpa or vae_tiling=true"


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
            diffusion.reconstruct(embeds, maps, ["trial"] * chunk, **short)
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
