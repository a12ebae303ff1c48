"""How many trials are drawn together: as many as fit in memory, found by trial."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size

from neuroimagen.reconstruction.reconstructor import Reconstructor, Settings

MOST_ON_GPU = 128  # pictures at once in the U-Net, guidance counted; beyond it a GPU is busy anyhow
MOST_ON_CPU = 4096  # cells of their latents; a core is busy with fewer (docs/reconstruct.md)
RESERVE = 8  # a run is cut in at least so many chunks, if it has the trials, so that so many processes have work

FITS_NOT = "use a smaller chunk, fewer samples, precision=bf16, attention=sdpa or vae_tiling=true"


def find_chunk(diffusion: Reconstructor, trials: int, settings: Mapping[str, Any]) -> int:
    """The number of trials, out of `trials`, whose `samples` pictures each are drawn together without running out of
    memory on this device: the most that is of use, halved until two denoising steps and the decoding succeed.

    settings: of `Reconstructor.reconstruct`. Raises ValueError if not even one trial fits.
    """
    height, width = diffusion.picture_size(settings.get("height"), settings.get("width"))
    halves = 2 if settings.get("guidance_scale", Settings.guidance_scale) > 1 and not diffusion.distilled else 1
    pictures = settings.get("samples", Settings.samples) * halves
    if diffusion.device.type == "cpu":
        most = MOST_ON_CPU // (pictures * (height // diffusion.factor) * (width // diffusion.factor))
    else:
        most = MOST_ON_GPU // pictures
    chunk = max(1, min(most, -(-trials // RESERVE)))

    def halve() -> int:
        nonlocal chunk
        chunk //= 2
        return chunk

    def attempt(n: int) -> int:
        embeds = diffusion.nothing.expand(n, -1, -1)
        short = {"num_inference_steps": 2, "strength": 1.0}
        diffusion.reconstruct(embeds, torch.zeros(n, 3, 8, 8), ["trial"] * n, **{**settings, **short})
        return n

    try:
        return find_executable_batch_size(attempt, chunk, reduce_batch_size_fn=halve)()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise ValueError(
            f"not even one trial's {settings.get('samples', 3)} pictures of {height} x {width} px fit in the memory of "
            f"{diffusion.device}: {FITS_NOT}"
        ) from None


@contextlib.contextmanager
def saying_what_fits(chunk: int) -> Iterator[None]:
    """Turn "out of memory" into a ValueError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise ValueError(f"out of memory with {chunk} trials drawn together: {FITS_NOT}") from None
