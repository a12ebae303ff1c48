"""Multivariate noise normalisation (Guggenmos et al. 2018): a matrix a subject, learnt from its train trials alone."""

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

SMALLEST_NOISE = 1e-10  # variance, of the largest: a direction with less is rounding, as after an average reference


class NoiseCovariance:
    """Running mean of the covariances of many conditions, shrunk by as much as they disagree.

    That is the shrinkage of Ledoit & Wolf 2004 with a condition's covariance in the place of their sample's outer
    product: (error of the mean) / (distance of the mean from its target), towards no correlation between channels.
    Published code (Gifford et al. 2022) shrinks each condition before averaging, which leaves a bias however many
    conditions there are; here the shrinkage vanishes as they grow.
    """

    def __init__(self, n_chans: int) -> None:
        self.count, self.total, self.squares = 0, np.zeros((n_chans, n_chans)), np.zeros((n_chans, n_chans))

    def add(self, x: np.ndarray) -> None:
        """One condition: x (sets, n, n_chans), whose unbiased covariance over n is averaged over the sets."""
        x = x - x.mean(axis=1, keepdims=True)
        covariance = np.einsum("sni,snj->ij", x, x, optimize=True) / (len(x) * (x.shape[1] - 1))
        self.count += 1
        self.total += covariance
        self.squares += covariance**2

    def __call__(self) -> np.ndarray:
        """The covariance. Channels are compared in units of their standard deviation, which is not changed."""
        mean = self.total / self.count
        spread = np.sqrt(np.diag(mean))
        scale = np.outer(spread, spread) + (np.outer(spread, spread) == 0)
        error = (self.squares / self.count - mean**2) / scale**2 / max(self.count - 1, 1)
        distance = ((mean - np.diag(np.diag(mean))) / scale) ** 2
        shrinkage = min(1.0, float(error.sum()) / max(float(distance.sum()), 1e-30))
        return (1 - shrinkage) * mean + shrinkage * np.diag(np.diag(mean))


def learn_whiteners(
    kind: str,
    conditions: list[list[int]],
    read: Callable[[list[int]], tuple[int, np.ndarray] | None],
    n_chans: int,
    notes: list[str],
) -> dict[int, np.ndarray]:
    """Subject -> inverse square root (n_chans, n_chans) of its noise covariance, averaged over conditions.

    As in Gifford et al. 2022 (who take the test images too; we do not). A condition is the repetitions of an image,
    whose noise is what differs between them at each time (kind "time"), or one trial, over its time (kind "epochs").
    read: subject and EEG (repetitions, n_chans, n_times) of a condition, one of which is in memory at a time; None: to
    be left out. Directions without noise are said in `notes`.
    """
    time = kind == "time"
    noise: dict[int, NoiseCovariance] = {}
    for members in tqdm(conditions, unit="condition", desc="noise", disable=None):
        if (time and len(members) < 2) or not (found := read(members)):
            continue
        subject, x = found
        noise.setdefault(subject, NoiseCovariance(n_chans)).add(x.transpose(2, 0, 1) if time else x.transpose(0, 2, 1))
    if not noise:
        several = "whiten=time needs images that a subject saw more than once in train: whiten=epochs needs none"
        raise ValueError(several if time else "whiten=epochs finds no train trial to learn the noise from")
    whiteners = {}
    for subject, own in noise.items():
        values, vectors = np.linalg.eigh(own())
        kept = values > SMALLEST_NOISE * values[-1]
        if not kept.any():
            raise ValueError(f"whiten={kind}: the EEG of subject {subject} never moves in train")
        if not kept.all():
            notes.append(
                f"whitening: the {n_chans} channels of subject {subject} are worth {kept.sum()} (average "
                "reference, copied or flat channels); the rest of the directions is left at zero"
            )
        vectors, values = vectors[:, kept], values[kept]
        whiteners[subject] = vectors / np.sqrt(values) @ vectors.T
    return whiteners
