"""The losses of the baselines. Each is a mean over this process's samples, so that the mean over processes (what
DistributedDataParallel does with gradients) is the loss of the global batch."""

from collections.abc import Callable

import torch
from torch.nn import functional as F


def negative_elbo(
    images: torch.Tensor, truth: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, kl_weight: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kingma & Welling 2014, Eqs. 3 and 10: -log p(image | z) + KL(q(z) || N(0, 1)), for pixels of unit variance, up to
    a constant.

    images, truth (n, 3, S, S); mean, log_variance (n, d) of q -> (loss, half the squared error of a
    picture, KL of a picture)
    """
    error = (images - truth).square().flatten(1).sum(1).mean() / 2
    kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
    return error + kl_weight * kl, error, kl


def matching_d(right: torch.Tensor, wrong: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Reed et al. 2016, Algorithm 1: scores (logits) of a picture with its EEG, of the same with another class's EEG,
    and of a drawn picture with the EEG it was drawn from; the two kinds of wrong count half each."""
    return F.softplus(-right).mean() + (F.softplus(wrong).mean() + F.softplus(fake).mean()) / 2


def matching_g(fake: torch.Tensor) -> torch.Tensor:
    """-log D of drawn pictures (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def gradient_penalty(
    judge: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, fake: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """Gulrajani et al. 2017, Eq. 3: (|∇ judge| - 1)² at a random place between each real and fake picture.

    u (n, 1, 1, 1): where, 0 at the real one and 1 at the fake one
    """
    between = torch.lerp(real, fake, u).requires_grad_()
    (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
