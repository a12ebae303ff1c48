"""Views: each against another computation of it."""

import hashlib

import numpy as np
import scipy.ndimage
import torch
from PIL import Image

from neuroimagen.features.views import VIEWS

DIGEST = hashlib.sha256(b"picture").digest()
X = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))


def blurred(kernel):
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8  # of cv2.getGaussianKernel
    return np.stack([scipy.ndimage.gaussian_filter(c, sigma, mode="mirror", radius=kernel // 2) for c in X.numpy()])


def test_blur():
    np.testing.assert_allclose(VIEWS["blur"](X, DIGEST), blurred(15), atol=1e-5)
    small = torch.rand(3, 96, 96)
    assert VIEWS["blur"](small, DIGEST).shape == small.shape
    np.testing.assert_allclose(VIEWS["blur"](torch.full((3, 32, 32), 0.3), DIGEST), 0.3, atol=1e-6)


def test_fovea():
    """The middle keeps half of its sharpness, the corner none."""
    found, soft = VIEWS["fovea"](X, DIGEST).numpy(), blurred(51)
    np.testing.assert_allclose(found[:, 112, 112], (X.numpy()[:, 112, 112] + soft[:, 112, 112]) / 2, atol=1e-5)
    share = 0.5 * np.exp(-3 * 56 / np.hypot(111, 111))
    expected = share * X.numpy()[:, 112, 168] + (1 - share) * soft[:, 112, 168]
    np.testing.assert_allclose(found[:, 112, 168], expected, atol=1e-5)


def test_low_resolution_is_that_of_pil():
    smooth = np.asarray(Image.fromarray(np.uint8(X.permute(1, 2, 0) * 255)).resize((224, 224)))
    small = Image.fromarray(smooth).resize((22, 22), Image.Resampling.BILINEAR)
    expected = np.asarray(small.resize((224, 224), Image.Resampling.BILINEAR))
    found = VIEWS["low_resolution"](torch.from_numpy(smooth.copy()).permute(2, 0, 1) / 255, DIGEST)
    np.testing.assert_allclose(found.permute(1, 2, 0) * 255, expected, atol=1.5)


def test_mosaic_has_blocks_of_one_colour():
    found = VIEWS["mosaic"](X, DIGEST)
    assert len(np.unique(found[0])) == 44 * 44  # 224 // 5
    assert torch.equal(found[:, :5, :5], found[:, :1, :1].expand(3, 5, 5))
    assert torch.allclose(VIEWS["mosaic"](torch.full((3, 8, 8), 0.4), DIGEST), torch.tensor(0.4))
    # the value at the middle of the block, as cv2.resize takes it: nearly pixel 2 of a block of 5.09
    at = (np.arange(44) + 0.5) * 224 / 44 - 0.5
    expected = scipy.ndimage.map_coordinates(X[0].numpy(), np.meshgrid(at, at, indexing="ij"), order=1)
    np.testing.assert_allclose(found[0, 2::5, 2::5][:10, :10], expected[:10, :10], atol=1e-4)


def test_noise_is_the_pictures_own():
    grey = torch.full((3, 224, 224), 0.5)
    found = VIEWS["noise"](grey, DIGEST)
    assert torch.equal(found, VIEWS["noise"](grey, DIGEST))
    other = VIEWS["noise"](grey, hashlib.sha256(b"another").digest())
    assert np.corrcoef((found - grey).flatten(), (other - grey).flatten())[0, 1] < 0.02
    assert abs((found - grey).std() * 255 - 25) < 0.2 and abs((found - grey).mean()) < 0.001
    assert VIEWS["noise"](torch.ones(3, 9, 9), DIGEST).max() == 1


def test_the_original_is_itself():
    assert VIEWS["original"](X, DIGEST) is X
