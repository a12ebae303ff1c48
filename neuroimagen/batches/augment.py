"""Augmentation of EEG on the device it is on, for train batches only (config.EegAugmentConfig has the fields).

What happens to a trial is a function of its own random numbers, which are its rows of draws for the global batch
(Run.rand), so the number of processes changes nothing. Pictures are augmented by neuroimagen/pixel/augment.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroimagen.config import EegAugmentConfig


def augment_eeg(eeg: Tensor, sfreq: float, config: EegAugmentConfig, rand: Callable[..., Tensor]) -> Tensor:
    """eeg (n, C, T), standardised, at `sfreq` Hz -> the same shape; `eeg` itself if nothing is asked for.

    rand(n, k): uniform numbers in [0, 1), one row a trial. Nothing is drawn for what is off.
    Raises ValueError for values that make no sense.
    """
    n, n_chans, n_times = eeg.shape
    config.check_eeg(n_times, sfreq)
    if config.eeg_shift:
        most = round(config.eeg_shift * sfreq)
        eeg = shift(eeg, torch.floor(rand(n, 1)[:, 0] * (2 * most + 1)).long().clamp(max=2 * most) - most)
    if config.eeg_band_mask:
        limit = min(config.eeg_band_limit, sfreq / 2)
        low = rand(n, 1)[:, 0] * (limit - config.eeg_band_mask)
        eeg = mask_band(eeg, sfreq, low, low + config.eeg_band_mask)
    if config.eeg_smooth:  # a moving average, over what there is of its window at the two ends
        window = config.eeg_smooth_window
        smooth = F.avg_pool1d(eeg, window, 1, window // 2, count_include_pad=False)
        eeg = torch.where((rand(n, n_chans) < config.eeg_smooth)[:, :, None], smooth, eeg)
    if config.eeg_noise:
        # A seed a trial instead of normal numbers for the global batch: those would be drawn on every rank's CPU.
        parts = (rand(n, 2).double() * 2**24).long()  # rand has 24 bits
        noise = torch.empty_like(eeg)
        for row, seed in zip(noise, (parts[:, 0] << 24 | parts[:, 1]).tolist(), strict=True):
            row.normal_(generator=torch.Generator(eeg.device).manual_seed(seed))
        eeg = eeg + config.eeg_noise * noise
    if config.eeg_channel_dropout:
        eeg = eeg * (rand(n, n_chans) >= config.eeg_channel_dropout)[:, :, None]
    return eeg


def averaged(batch: dict[str, Any], k: int) -> dict[str, Any]:
    """A batch of n x k trials, as RepeatedOrder has them -> of n: the mean EEG of each k, and all else of the first."""
    own = {name: values[::k] for name, values in batch.items() if name != "skipped"}
    return batch | own | {"eeg": batch["eeg"].unflatten(0, (-1, k)).mean(1)} if k > 1 else batch


def shift(eeg: Tensor, samples: Tensor) -> Tensor:
    """Trial i moves by samples[i] (later if above 0); zeros, the mean of the train set, come in from outside."""
    source = torch.arange(eeg.shape[2], device=eeg.device)[None] - samples[:, None]  # (n, T)
    inside = (source >= 0) & (source < eeg.shape[2])
    index = source.clamp(0, eeg.shape[2] - 1)[:, None].expand(eeg.shape)
    return eeg.gather(2, index) * inside[:, None]


def mask_band(eeg: Tensor, sfreq: float, low: Tensor, high: Tensor) -> Tensor:
    """Remove frequencies low[i]..high[i], Hz, both included, from all channels of trial i."""
    frequency = torch.fft.rfftfreq(eeg.shape[2], 1 / sfreq, device=eeg.device)[None]
    outside = (frequency < low[:, None]) | (frequency > high[:, None])
    return torch.fft.irfft(torch.fft.rfft(eeg) * outside[:, None], n=eeg.shape[2])
