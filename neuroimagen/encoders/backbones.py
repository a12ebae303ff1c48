"""EEG backbones: a segment (batch, n_chans, n_times) to a feature vector (batch, n_features).

`lstm` is the encoder the paper names: one common LSTM reads all channels at every sample, its last state goes through a
fully connected layer with ReLU (Kavasidis et al. 2017, "Brain2Image"; Spampinato et al. 2017: 128 units, 128 features).

`conv` follows EEGChannelNet (Palazzo et al. 2020, "Decoding brain representations by multimodal learning of neural
activity and visual features"): spatial filters over the electrodes, parallel temporal convolutions with growing
dilation, residual blocks, one linear layer. What differs, and why, is listed at `ConvEncoder`.

`projection`, `tsconv`, `atm` and `simpleconv` are those that lead zero-shot retrieval on THINGS-EEG2 (docs/zoo.md).
Where their sources have BatchNorm they have GroupNorm over a trial: a trial's features do not depend on its batch, and
N processes compute what one would. `dropout` is that of the source's convolutions, 0.5 in most.

Input is standardised per channel; any n_chans >= 1 and n_times >= the class's `least`.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class SubjectLayer(nn.Module):
    """x + D_s x, or x + x D_s: a linear map of each person's own, over the channels (Défossez et al. 2023) or over time
    (ENIGMA, arXiv 2602.10361), without bias.

    D_s begins at zero, the map at the identity, and weight decay leads back there. Who is not among `subjects` gets the
    mean of all maps. These are one parameter, indexed by the batch: a person who is not in it has a gradient of zeros,
    so DistributedDataParallel waits for nobody, and Adam moves all alike on any number of processes.
    """

    numbers: torch.Tensor

    def __init__(self, subjects: Sequence[int], over: str, n_chans: int, n_times: int) -> None:
        super().__init__()
        if over not in ("channels", "time"):
            raise ValueError(f"subject_layer={over!r} is not one of none, channels, time")
        self.over, size = over, n_chans if over == "channels" else n_times
        self.change = nn.Parameter(torch.zeros(len(subjects), size, size))
        self.register_buffer("numbers", torch.tensor(sorted(subjects)))

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor | None) -> torch.Tensor:
        """eeg (B, C, T); subject (B,) int64, or None: nobody known."""
        asked = self.numbers.new_full((len(eeg),), -1) if subject is None else subject.to(self.numbers.device)
        same = asked[:, None] == self.numbers
        place = torch.where(same.any(1), same.int().argmax(1), len(self.numbers))
        change = torch.cat([self.change, self.change.mean(0, keepdim=True)])[place]
        return eeg + (change @ eeg if self.over == "channels" else eeg @ change)


class Encoder(nn.Module):
    """EEG (B, n_chans, n_times), subject (B,) int64 or None -> `features` of it (B, n_features).

    Subjects matter with a SubjectLayer in front alone, where make_encoder puts one.
    """

    least = 1  # samples that a trial must have
    any_length = False  # whether another n_times than it was made for will do

    def __init__(self, n_chans: int, n_times: int) -> None:
        super().__init__()
        self.n_chans, self.n_times = n_chans, n_times
        self.front: SubjectLayer | None = None

    def forward(self, eeg: torch.Tensor, subject: torch.Tensor | None = None) -> torch.Tensor:
        fixed = self.front is not None or not self.any_length
        if eeg.dim() != 3 or eeg.shape[1] != self.n_chans or (fixed and eeg.shape[2] != self.n_times):
            time = f"{self.n_times} samples" if fixed else "time"
            raise ValueError(
                f"this model reads EEG of shape (batch, {self.n_chans} channels, {time}) but was given "
                f"{tuple(eeg.shape)}: use shards of the recording set-up it was trained on"
            )
        return self.features(eeg if self.front is None else self.front(eeg, subject))

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class LSTMEncoder(Encoder):
    """Common LSTM over all channels, last state, linear, ReLU: features are not negative."""

    any_length = True

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float = 0.0, width: int = 128) -> None:
        super().__init__(n_chans, n_times)
        self.lstm = nn.LSTM(n_chans, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_features)

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
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


class ConvEncoder(Encoder):
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

    least = 64
    n_bins = 24

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__(n_chans, n_times)
        self.step = max(1, n_times // 110)
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

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        if self.front is None:
            means = F.adaptive_avg_pool1d(eeg, self.n_bins)
        else:  # as a product: on a GPU the pooling has no deterministic gradient for the layer in front
            means = eeg @ F.adaptive_avg_pool1d(torch.eye(self.n_times, device=eeg.device), self.n_bins)
        linear = self.linear(self.dropout(means.flatten(1)))
        x = self.spatial(F.avg_pool1d(eeg, self.step))
        x = self.residual(self.mix(torch.cat([conv(x) for conv in self.temporal], 1)))
        return linear + self.deep(self.dropout(x.flatten(1)))


class Residual(nn.Sequential):
    """x + what its layers make of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def projection(n_inputs: int, n_features: int, dropout: float) -> nn.Sequential:
    """The head that NICE, ATM-S and UBP share: linear, a residual layer, LayerNorm."""
    residual = Residual(nn.GELU(), nn.Linear(n_features, n_features), nn.Dropout(dropout))
    return nn.Sequential(nn.Linear(n_inputs, n_features), residual, nn.LayerNorm(n_features))


def shallow(n_chans: int, n_times: int, n_features: int, dropout: float, width: int) -> nn.Sequential:
    """NICE's TSConv, after ShallowNet (Schirrmeister et al. 2017), with its head: (B, n_chans, n_times) -> features.

    `width` temporal filters of 25 samples, means over 51 every 5, as many filters over all electrodes, a 1 x 1 layer.
    The means come first here, as both are linear: the same numbers for a sixth of the work. So evoked responses pass,
    oscillations of free phase hardly do.
    """
    return nn.Sequential(
        nn.Unflatten(1, (1, n_chans)),
        nn.AvgPool2d((1, 51), 1),
        nn.Conv2d(1, width, (1, 25), (1, 5)),
        nn.GroupNorm(1, width),
        nn.ELU(),
        nn.Conv2d(width, width, (n_chans, 1)),
        nn.GroupNorm(1, width),
        nn.ELU(),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, 1),
        nn.Flatten(),
        projection(width * ((n_times - 75) // 5 + 1), n_features, dropout),
    )


class ProjectionEncoder(Encoder):
    """EEGProject, of UBP (Wu et al. 2025, base/eeg_backbone.py; NeuroBridge has it too): the flattened trial through a
    linear layer, a residual one and LayerNorm. It has no width of its own."""

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float, width: int) -> None:
        super().__init__(n_chans, n_times)
        self.body = projection(n_chans * n_times, n_features, dropout)

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.body(eeg.flatten(1))


class TSConvEncoder(Encoder):
    """NICE (Song et al. 2024, nice_stand.py): `shallow`, which makes 1440 numbers of 250 samples, with 40 filters."""

    least = 75

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float, width: int) -> None:
        super().__init__(n_chans, n_times)
        self.body = shallow(n_chans, n_times, n_features, dropout, width)

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.body(eeg)


class ATMEncoder(Encoder):
    """ATM-S (Li et al. 2024, Retrieval/ATMS_retrieval.py): a layer of attention between the channels, each one token of
    all its samples (iTransformer: 4 heads, 256 units, half the dropout: .25), then `shallow`.

    The token's length is n_times, raised to a multiple of the heads, which 250 is not; no token names the subject.
    """

    least = 75

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float, width: int) -> None:
        super().__init__(n_chans, n_times)
        length, heads = -(-n_times // 4) * 4, 4
        layer = nn.TransformerEncoderLayer(length, heads, 256, dropout / 2, "gelu", batch_first=True)
        self.attention = nn.Sequential(nn.Linear(n_times, length), layer, nn.LayerNorm(length))
        self.body = shallow(n_chans, length, n_features, dropout, width)

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.body(self.attention(eeg))


class SimpleConvEncoder(Encoder):
    """Meta's BrainModule or SimpleConv (Défossez et al. 2023; aggregation over time: Benchetrit et al. 2024).

    Virtual channels mixed of the electrodes (there by attention to their places, which are unknown here); five blocks
    of two residual convolutions (kernel 3, dilations 1, 2, 4, 8, 16 round and round) and one with GLU; two 1 x 1
    layers, and between them a learnt weight of each sample, which may stand before the last as both are linear.
    """

    def __init__(self, n_chans: int, n_times: int, n_features: int, dropout: float, width: int) -> None:
        super().__init__(n_chans, n_times)

        def dilated(d: int) -> nn.Module:
            return Residual(nn.Conv1d(width, width, 3, padding=d, dilation=d), nn.GroupNorm(1, width), nn.GELU())

        blocks: list[nn.Module] = [nn.Conv1d(n_chans, width, 1)]
        for k in range(0, 10, 2):
            blocks += [dilated(2 ** (k % 5)), dilated(2 ** ((k + 1) % 5))]
            blocks += [nn.Conv1d(width, 2 * width, 3, padding=1), nn.GLU(1)]
        self.body = nn.Sequential(*blocks, nn.Conv1d(width, 2 * width, 1), nn.GELU())
        self.time = nn.Linear(n_times, 1)
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, n_features))

    def features(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.output(self.time(self.body(eeg)).squeeze(2))
