"""Linear decoders of EEG in closed form (scikit-learn): the floor that a trained network has to beat.

Features are the means of a trial over even windows, channel by channel, as in Perceptogram (window means and ridge
regression to CLIP and VAE latents, after Takagi & Nishimoto 2023) and in shrinkage LDA for evoked responses (Blankertz
et al. 2011, NeuroImage 56). Penalties are chosen on val, never on what is reported.
"""

from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

WINDOW = 0.05  # s, about; the deflections of an evoked response last 40 to 150 ms
PENALTIES = tuple(10.0**power for power in range(1, 7))  # of features of standard deviation 1


def window_means(eeg: np.ndarray, sfreq: float, window: float = WINDOW) -> np.ndarray:
    """EEG (..., n_chans, n_times) -> means over even windows of about `window` s, (..., n_chans * n_windows)."""
    n_times = eeg.shape[-1]
    edges = np.linspace(0, n_times, min(n_times, max(1, round(n_times / sfreq / window))) + 1).round().astype(int)
    means = np.add.reduceat(eeg, edges[:-1], axis=-1, dtype=np.float64) / np.diff(edges)
    return means.reshape(*eeg.shape[:-2], -1)


def fit_lda(features: np.ndarray, labels: np.ndarray) -> Any:
    """Linear discriminant analysis with the Ledoit-Wolf shrinkage, fitted to features (n, d) and labels (n,).

    It offers scikit-learn's predict, decision_function and classes_.
    """
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return make_pipeline(StandardScaler(), lda).fit(features, labels)


def fit_ridge(features: np.ndarray, targets: np.ndarray, val_features: np.ndarray, val_targets: np.ndarray) -> Any:
    """Ridge regression from features (n, d) to targets (n, k), with the penalty that has the least error on val."""
    fits = [make_pipeline(StandardScaler(), Ridge(penalty)).fit(features, targets) for penalty in PENALTIES]
    return min(fits, key=lambda fit: _error(fit, val_features, val_targets))


def _error(fit: Any, features: np.ndarray, targets: np.ndarray) -> float:
    return float(((fit.predict(features).reshape(targets.shape) - targets) ** 2).mean())  # of one column it gives (n,)
