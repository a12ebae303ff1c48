"""Linear decoders: window means by hand, LDA and ridge on data whose answer is known."""

import numpy as np
import torch

from neuroimagen.linear import PENALTIES, fit_lda, fit_ridge, window_means


def test_window_means_by_hand():
    eeg = np.arange(10.0).reshape(1, 2, 5)  # two channels of five samples at 100 Hz: windows of 2 and 3 samples
    assert window_means(eeg, 100, 0.025).tolist() == [[0.5, 3.0, 5.5, 8.0]]
    assert window_means(eeg[0], 100, 1).tolist() == [2.0, 7.0]  # one window at least
    assert window_means(eeg[0], 100, 0.001).tolist() == list(range(10))  # a sample at most


def test_window_means_equal_torchs_where_windows_are_even():
    eeg = np.random.default_rng(0).standard_normal((3, 4, 60)).astype(np.float32)
    other = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(eeg), 6).flatten(1)
    np.testing.assert_allclose(window_means(eeg, 1000, 0.01), other.numpy(), atol=1e-6)


def test_lda_reaches_the_bayes_rate_and_chance_where_there_is_nothing():
    rng = np.random.default_rng(0)
    labels, other = rng.integers(2, size=(2, 4000))
    mixing = rng.standard_normal((30, 30))
    clean = rng.standard_normal((8000, 30))
    clean[:, 0] += 2 * np.concatenate([labels, other])  # means that are 2 noise deviations apart, along one axis
    features = clean @ mixing
    lda = fit_lda(features[:4000], labels)
    assert abs((lda.predict(features[4000:]) == other).mean() - 0.841) < 0.02  # Phi(1)
    chance = fit_lda(features[:4000], rng.permutation(labels))
    assert abs((chance.predict(features[4000:]) == other).mean() - 0.5) < 0.03


def test_ridge_takes_the_penalty_that_is_best_on_val():
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((20, 3))
    x, val = rng.standard_normal((40, 20)), rng.standard_normal((500, 20))
    exact = fit_ridge(x, x @ weights, val, val @ weights)
    assert exact[-1].alpha == PENALTIES[0]
    one = fit_ridge(x, x @ weights[:, :1], val, val @ weights[:, :1])  # a single target, as a column
    assert one[-1].alpha == PENALTIES[0]
    noise = fit_ridge(x, rng.standard_normal((40, 3)), val, rng.standard_normal((500, 3)))
    assert noise[-1].alpha >= 1e4  # next to nothing is left of it
