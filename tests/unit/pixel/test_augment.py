import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroimagen.pixel.augment import N_RANDOM, augment

HALF = torch.full((1, N_RANDOM), 0.5)  # no brightness, saturation 1, contrast 1, no shift


def numbers(**kwargs):
    names = ("brightness", "saturation", "contrast", "down", "right", "cut_row", "cut_column")
    return torch.tensor([[kwargs.get(name, 0.5) for name in names]])


def picture(size=16, n=1):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_middle_of_every_range_changes_nothing():
    torch.testing.assert_close(augment(picture(), HALF, "color,translation"), picture())
    assert torch.equal(augment(picture(), HALF, ""), picture())


def test_color_by_hand():
    image = torch.tensor([0.1, 0.4, 0.7])[None, :, None, None].expand(1, 3, 16, 16)
    brighter = augment(image, numbers(brightness=0.8), "color")
    torch.testing.assert_close(brighter, image + 0.3)
    grey = augment(image, numbers(saturation=0.0), "color")
    torch.testing.assert_close(grey, torch.full_like(image, 0.4))
    vivid = augment(image, numbers(saturation=0.75), "color")  # factor 1.5 about the pixel's mean
    torch.testing.assert_close(vivid[0, :, 0, 0], torch.tensor([-0.05, 0.4, 0.85]))
    flat = augment(picture(), numbers(contrast=0.0), "color")  # factor 0.5 about the picture's mean
    torch.testing.assert_close(flat, picture().mean() + 0.5 * (picture() - picture().mean()))


def test_translation_moves_by_whole_pixels_and_leaves_zeros():
    image = picture(16)  # shifts of -2..2: five values, each a fifth of the range
    moved = augment(image, numbers(down=0.99, right=0.01), "translation")  # 2 down, 2 to the left
    torch.testing.assert_close(moved[:, :, 2:, :-2], image[:, :, :-2, 2:])
    assert moved[:, :, :2].abs().sum() == 0 and moved[:, :, :, -2:].abs().sum() == 0


def test_cutout_removes_a_square_of_half_the_side():
    ones = torch.ones(1, 3, 16, 16)
    inner = augment(ones, numbers(cut_row=0.5, cut_column=0.5), "cutout")
    assert (inner == 0).sum() == 3 * 8 * 8 and inner[0, 0, 4:12, 4:12].sum() == 0
    corner = augment(ones, numbers(cut_row=0.0, cut_column=0.0), "cutout")
    assert (corner == 0).sum() == 3 * 4 * 4 and corner[0, 0, :4, :4].sum() == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from(["color", "translation", "cutout", "color,translation,cutout"]))
def test_a_sample_depends_on_its_own_numbers_only(seed, policy):
    generator = torch.Generator().manual_seed(seed)
    images, u = picture(16, 6), torch.rand(6, N_RANDOM, generator=generator)
    whole = augment(images, u, policy)
    parts = torch.cat([augment(images[i : i + 2], u[i : i + 2], policy) for i in (0, 2, 4)])
    assert whole.shape == images.shape and torch.equal(whole, parts)


def test_gradients_reach_the_picture_where_it_is_still_seen():
    image = picture().requires_grad_()
    augment(image, numbers(down=0.99, cut_row=0.9), "color,translation,cutout").sum().backward()
    assert (image.grad != 0).any() and image.grad.isfinite().all()


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="'blur' is unknown"):
        augment(picture(), HALF, "color,blur")
