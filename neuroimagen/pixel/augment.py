"""A, the differentiable augmentation of the discriminator's input (Zhao et al. 2020, "DiffAugment").

Random numbers come in as an argument, one row a sample, so that what happens to a sample does not depend on how many
processes share the batch. Published ranges: brightness ±0.5, saturation 0..2, contrast 0.5..1.5 (on images in [-1, 1]),
translation ±1/8 of the side, cutout of a square of half the side.
"""

import torch

N_RANDOM = 7  # brightness, saturation, contrast, shift down, shift right, cutout row, cutout column


def _window(values: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Uniform (n,) in [0, 1) -> whole numbers low..high, both included."""
    return (low + torch.floor(values * (high - low + 1))).long().clamp(max=high)


def policy(text: str) -> list[str]:
    """The parts of a comma-separated policy; ValueError for one that there is not."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in ("color", "translation", "cutout")]:
        raise ValueError(f"augmentation {unknown[0]!r} is unknown: choose from color, translation, cutout")
    return parts


def augment(images: torch.Tensor, random: torch.Tensor, chosen: str = "color,translation,cutout") -> torch.Tensor:
    """images (n, 3, S, S) -> the same shape; random (n, N_RANDOM) uniform in [0, 1); chosen: see `policy`.

    Differentiable in `images`. Outside the picture, after a shift or under a cutout, there are zeros (mid grey).
    """
    parts = policy(chosen)
    n, _, height, width = images.shape
    u = random.to(images.dtype)
    if "color" in parts:
        column = u[:, :, None, None, None]
        images = images + (column[:, 0] - 0.5)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (2 * column[:, 1])
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (0.5 + column[:, 2])
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    if "translation" in parts:
        from_row = rows[None] - _window(u[:, 3], -(height // 8), height // 8)[:, None]
        from_column = columns[None] - _window(u[:, 4], -(width // 8), width // 8)[:, None]
        rows_inside, columns_inside = (from_row >= 0) & (from_row < height), (from_column >= 0) & (from_column < width)
        sample = torch.arange(n, device=images.device)[:, None, None]
        place = sample, from_row.clamp(0, height - 1)[:, :, None], from_column.clamp(0, width - 1)[:, None, :]
        moved = images.permute(0, 2, 3, 1)[place].permute(0, 3, 1, 2)
        images = moved * (rows_inside[:, :, None] & columns_inside[:, None, :])[:, None]
    if "cutout" in parts:
        top = _window(u[:, 5], 0, height)[:, None] - height // 4  # centre anywhere: the square may hang over an edge
        left = _window(u[:, 6], 0, width)[:, None] - width // 4
        in_rows = (rows[None] >= top) & (rows[None] < top + height // 2)
        in_columns = (columns[None] >= left) & (columns[None] < left + width // 2)
        images = images * ~(in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return images
