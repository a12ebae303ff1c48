"""The losses of the pixel-level stage, Equations 1 to 6 of the paper.

Each is a mean over this process's samples, so that the mean over processes (what DistributedDataParallel does with
gradients) is the loss of the global batch. Images are (batch, 3, S, S) in [-1, 1]; `ssim` alone takes [0, 1].
"""

import torch
from torch import distributed as dist
from torch.nn import functional as F

from neuroimagen.run.collectives import gather_rows, sum_over_processes, world_size


def triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float, mining: str = "semi-hard"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 1, max(0, β + |f(x_a) - f(x_p)|² - |f(x_a) - f(x_n)|²), averaged over the triplets that `mining` picks.

    Anchors are this process's rows, positives and negatives come from the global batch. Collective: every rank.

    - semi-hard (Schroff et al. 2015): for every anchor-positive pair the nearest negative that is farther than the
      positive, or, where none is, the farthest negative.
    - hard (Hermans et al. 2017, "batch hard"): for every anchor its farthest positive and nearest negative.
    - all (Hermans et al. 2017, "batch all"): every triplet, averaged over those whose loss is not zero.

    features (n, d), labels (n,) -> (loss, share of the picked triplets whose loss is not zero over all processes).
    A batch without a single triplet gives zero.
    """
    everyone, everyones_labels = gather_rows(features), gather_rows(labels)
    first = dist.get_rank() * len(features) if world_size() > 1 else 0
    # Differences, not the product formula: rounding there can make small distances negative.
    distance = (features[:, None] - everyone[None]).square().sum(-1)
    same = labels[:, None] == everyones_labels[None]
    itself = torch.ones_like(same).tril(first).triu(first)
    positive, negative = same & ~itself, ~same

    usable = positive.any(1) & negative.any(1)
    if mining == "hard":
        farthest = distance.masked_fill(~positive, -1).max(1).values
        nearest = distance.masked_fill(~negative, float("inf")).min(1).values
        values = F.relu(margin + farthest[usable] - nearest[usable])
    else:
        anchor, other = (positive & usable[:, None]).nonzero(as_tuple=True)
        to_positive = distance[anchor, other]
        if mining == "semi-hard":
            to_negative, is_negative = distance[anchor], negative[anchor]
            beyond = is_negative & (to_negative > to_positive[:, None])
            nearest = to_negative.masked_fill(~beyond, float("inf")).min(1).values
            farthest = to_negative.masked_fill(~is_negative, -1).max(1).values
            values = F.relu(margin + to_positive - torch.where(beyond.any(1), nearest, farthest))
        elif mining == "all":
            values = F.relu(margin + to_positive[:, None] - distance[anchor])[negative[anchor]]
        else:
            raise ValueError(f"mining must be all, semi-hard or hard, not {mining!r}")

    active = (values > 0).sum()
    count = sum_over_processes(torch.stack([active, torch.tensor(values.numel(), device=values.device)]).float())
    divisor = count[0] if mining == "all" else count[1]
    # `distance.sum() * 0` keeps the graph (and so every rank's collectives in backward) when nothing was picked.
    loss = world_size() * (values.sum() + distance.sum() * 0) / divisor.clamp(min=1)
    return loss, count[0] / count[1].clamp(min=1)


def share_of_anchors(labels: torch.Tensor) -> torch.Tensor:
    """Share of the global batch that can be an anchor of Eq. 1: one more of its class is there, and one of another.

    labels (n,) of this rank -> (), the same on every rank. Collective: every rank.
    """
    counts = gather_rows(labels).unique(return_counts=True)[1]
    return counts[counts > 1].sum() / counts.sum() * (len(counts) > 1)


def check_batch(size: int, trials: int, classes: int, classes_per_batch: int, trials_per_class: int) -> str | None:
    """Whether global batches of `size` out of `trials` of `classes` classes (taken as equally frequent) hold triplets.

    Returns None, or a sentence where fewer than half of a batch are anchors; ValueError where none can be.
    """
    if classes_per_batch or trials_per_class:
        if min(classes_per_batch, trials_per_class) < 2:
            raise ValueError(
                f"classes_per_batch={classes_per_batch} x trials_per_class={trials_per_class}: a triplet is two trials "
                "of a class and one of another, so both must be at least 2"
            )
        return None
    if size < 3 or classes < 2:
        raise ValueError(
            f"global_batch_size={size} of {classes} classes: a triplet is two trials of a class and one of another"
        )
    another = max(0.0, trials / classes - 1) / max(1, trials - 1)  # the next trial drawn is of the anchor's class
    share = 1 - (1 - another) ** (size - 1)
    if share >= 0.5:
        return None
    return (
        f"of {size} trials drawn at random some {share * size:.0f} have another of their class in the batch "
        f"({trials} trials of {classes} classes), the others are no anchors: see classes_per_batch, trials_per_class"
    )


def hinge_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Eq. 2: the discriminator's scores of A(y) and A(M_p(x)), each (n,)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: torch.Tensor) -> torch.Tensor:
    """Eq. 3: the discriminator's scores of A(M_p(x)), (n,)."""
    return -fake.mean()


def mode_seeking(image_1: torch.Tensor, image_2: torch.Tensor, z_1: torch.Tensor, z_2: torch.Tensor) -> torch.Tensor:
    """Eq. 4: -d_x(G(z1, f), G(z2, f)) / d_z(z1, z2), the mean over pairs.

    Mean absolute differences; the ratio of each pair does not depend on how the batch is cut (docs/paper.md).
    """
    d_x = (image_1 - image_2).abs().flatten(1).mean(1)
    d_z = (z_1 - z_2).abs().flatten(1).mean(1)
    return -(d_x / (d_z + 1e-5)).mean()


def _gaussian_blur_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, size): a Gaussian of 11 px, σ = 1.5, along one axis, mirrored at the borders; W X Wᵀ blurs a picture X."""
    offsets = torch.arange(-5, 6, device=like.device)
    window = torch.exp(-offsets.to(like.dtype).square() / (2 * 1.5**2))
    source = (torch.arange(size, device=like.device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    matrix = torch.zeros(size, size, dtype=like.dtype, device=like.device)
    return matrix.scatter_add_(1, source, (window / window.sum()).expand(size, -1))


def ssim(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair of pictures in [0, 1], (n,): Wang et al. 2004, Gaussian window of 11 px with
    σ = 1.5, K1 = 0.01, K2 = 0.03, each colour channel for itself, mean over channels and pixels.

    Pixels must not be negative (docs/paper.md, Eq. 5). Written out because two matrix products blur a batch of small
    maps many times faster than torchmetrics' grouped convolution does.
    """
    height, width = image.shape[-2:]
    if min(height, width) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 px, these are {height} x {width}")
    rows, columns = _gaussian_blur_matrix(height, image), _gaussian_blur_matrix(width, image)
    maps = torch.stack([image, truth, image * image, truth * truth, image * truth])
    mu_x, mu_y, xx, yy, xy = rows @ maps @ columns.T
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
    var_x, var_y = (xx - mu_x.square()).clamp(min=0), (yy - mu_y.square()).clamp(min=0)
    structure = (2 * (xy - mu_x * mu_y) + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def ssim_loss(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Eq. 5: 1 - SSIM, with the covariance σ_xM that SSIM has (docs/paper.md), of images in [-1, 1] taken to [0, 1]."""
    return 1 - ssim(image.add(1).div(2), truth.add(1).div(2)).mean()


def generator_total(
    adversarial: torch.Tensor, modes: torch.Tensor, similarity: torch.Tensor, alphas: tuple[float, float, float]
) -> torch.Tensor:
    """Eq. 6: α1 L_adv + α2 L_ms + α3 L_SSIM."""
    return alphas[0] * adversarial + alphas[1] * modes + alphas[2] * similarity
