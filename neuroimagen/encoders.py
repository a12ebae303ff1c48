"""EEG backbones: a segment (batch, n_chans, n_times) to a feature vector (batch, n_features).

`lstm` is the encoder the paper names: one common LSTM reads all channels at every sample, its last state goes through a
fully connected layer with ReLU (Kavasidis et al. 2017, "Brain2Image"; Spampinato et al. 2017: 128 units, 128 features).

`conv` follows EEGChannelNet (Palazzo et al. 2020, "Decoding brain representations by multimodal learning of neural
activity and visual features"): spatial filters over the electrodes, parallel temporal convolutions with growing
dilation, residual blocks, one linear layer. What differs, and why, is listed at `ConvEncoder`.

Input is standardised per channel; any n_chans >= 1 and, for `conv`, n_times >= 64.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LSTMEncoder(nn.Module):
    """Common LSTM over all channels, last state, linear, ReLU: features are not negative."""

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float = 0.0, width: int = 128) -> None:
        super().__init__()
        self.n_chans = n_chans
        self.lstm = nn.LSTM(n_chans, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_features)

    def forward(self, eeg: torch.Tensor) -> torch.Tensor:
        check_eeg(eeg, self.n_chans)
        states, _ = self.lstm(eeg.transpose(1, 2))
        return F.relu(self.output(self.dropout(states[:, -1])))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, at half the rate in time."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv1d(width, width, 3, stride=2, padding=1),
            nn.GroupNorm(1, width),
        )
        self.shortcut = nn.AvgPool1d(2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.body(x) + self.shortcut(x))


class ConvEncoder(nn.Module):
    """EEGChannelNet's blocks, made to run on any montage and fast on a CPU.

    - Time is first averaged in steps of n_times // 110 samples: 440 at 1 kHz become 110 at 250 Hz, twice the 95 Hz
      where the published files end.
    - The spatial block comes before the temporal one. EEGChannelNet's first temporal filters are the same for every
      electrode, so linear filters of space and time may change places; mixing width / 2 virtual channels out of the
      electrodes first makes all later layers cheaper. Only the all-electrodes kernel is kept: kernels over 64
      neighbouring rows mean nothing in a montage whose order is unknown.
    - Temporal convolutions have the source's dilations 1, 2, 4, 8, 16; kernel 9 at 250 Hz for 33 at 1 kHz. Two residual
      blocks instead of four, GroupNorm instead of BatchNorm: features of a trial do not depend on its batch.
    - A linear path (means over `n_bins` windows of time, one linear layer) runs beside the deep one, which begins at
      zero: an evoked response is near a linear function of the picture, and this part is learnt in a few steps.
    """

    n_bins = 24

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        if n_times < 64:
            raise ValueError(f"the conv encoder needs at least 64 time samples a trial, the shards have {n_times}")
        self.n_chans, self.step = n_chans, max(1, n_times // 110)
        n_filters = max(1, width // 2)
        self.spatial = nn.Conv1d(n_chans, n_filters, 1)
        dilations = (1, 2, 4, 8, 16)
        self.temporal = nn.ModuleList(
            nn.Conv1d(n_filters, n_filters, 9, stride=2, dilation=d, padding=4 * d, groups=n_filters) for d in dilations
        )
        self.mix = nn.Sequential(
            nn.GroupNorm(1, n_filters * len(dilations)), nn.GELU(), nn.Conv1d(n_filters * len(dilations), width, 1)
        )
        self.residual = nn.Sequential(ResidualBlock(width, dropout), ResidualBlock(width, dropout))
        self.dropout = nn.Dropout(dropout)
        length = math.ceil(n_times // self.step / 8)  # the temporal and two residual blocks halve it, rounding up
        self.deep = nn.Linear(width * length, n_features)
        nn.init.zeros_(self.deep.weight)
        self.linear = nn.Linear(n_chans * self.n_bins, n_features)

    def forward(self, eeg: torch.Tensor) -> torch.Tensor:
        check_eeg(eeg, self.n_chans)
        linear = self.linear(self.dropout(F.adaptive_avg_pool1d(eeg, self.n_bins).flatten(1)))
        x = self.spatial(F.avg_pool1d(eeg, self.step))
        x = self.residual(self.mix(torch.cat([conv(x) for conv in self.temporal], 1)))
        return linear + self.deep(self.dropout(x.flatten(1)))


def check_eeg(eeg: torch.Tensor, n_chans: int) -> None:
    """Refuse EEG of another montage with a sentence instead of a matrix-size error."""
    if eeg.dim() != 3 or eeg.shape[1] != n_chans:
        raise ValueError(
            f"this model reads EEG of shape (batch, {n_chans} channels, time) but was given {tuple(eeg.shape)}: "
            "use shards of the recording set-up it was trained on"
        )


# name -> class, its usual width
ENCODERS: dict[str, tuple[type[nn.Module], int]] = {
    "lstm": (LSTMEncoder, 128),
    "conv": (ConvEncoder, 64),
}


def make_encoder(
    kind: str, n_chans: int, n_times: int, n_features: int, dropout: float = 0.0, width: int | None = None
) -> nn.Module:
    """The backbone named `kind`; width: LSTM units (none: 128) or convolution channels (none: 64)."""
    if kind not in ENCODERS:
        raise ValueError(f"encoder must be {' or '.join(ENCODERS)}, not {kind!r}")
    backbone, usual = ENCODERS[kind]
    return backbone(n_chans, n_times, n_features, dropout, width or usual)
