"""The contrast of predicted embeddings with the pictures of the global batch, and what a retrieval finds.

With B trials in the global batch, their predictions z_i and the features v_j of their pictures, all of unit length, the
logits are s z_i·v_j + b. Each rank has the rows of its own trials and all B columns, and reads them `chunk` rows at a
time: the B x B matrix is nowhere whole. Each loss is a mean over this process's trials, so that the mean over processes
(what DistributedDataParallel does with gradients) is the loss of the global batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neuroimagen.run.collectives import gather_rows, world_size

# Of logits (rows, B) and, of the same size, which pairs belong together -> their sum and its derivative by the logits
Term = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Rows(torch.autograd.Function):
    """The sum of `term` over a rank's rows of logits. The gradients are computed beside it, while a chunk is there."""

    @staticmethod
    def forward(ctx, z, v, scale, bias, ids, term, chunk):  # type: ignore[override]
        first = dist.get_rank() * len(z) if world_size() > 1 else 0
        mine = ids[first : first + len(z)]
        total, by_scale, by_bias = z.new_zeros(3)
        by_z = torch.empty_like(z)
        for rows in (slice(start, start + chunk) for start in range(0, len(z), chunk)):
            cosine = z[rows] @ v.T
            value, slope = term(scale * cosine + bias, mine[rows][:, None] == ids)
            total, by_bias = total + value, by_bias + slope.sum()
            by_scale = by_scale + (slope * cosine).sum()
            by_z[rows] = scale * (slope @ v)
        ctx.save_for_backward(by_z, by_scale, by_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[override]
        by_z, by_scale, by_bias = (gradient * by for by in ctx.saved_tensors)
        return by_z, None, by_scale, by_bias, None, None, None


def info_nce(z: Tensor, v: Tensor, ids: Tensor, scale: Tensor, chunk: int = 512) -> Tensor:
    """Symmetric InfoNCE, the mean of two cross-entropies: of the picture given the trial (rows of the logits), and of
    the trial given the picture (columns). Oord et al. 2018; Radford et al. 2021, "CLIP".

    Where several trials share an id, their pairs share the target probability evenly: none is another's negative.

    z (n, D): this rank's predictions; v (B, D), ids (B,): of the global batch, in rank order. Collective: every rank.
    """
    with torch.no_grad():
        columns = torch.full_like(v[:, 0], -torch.inf)  # Σ_i exp(logit_ij) of each picture j, as a logarithm
        for part in z.split(chunk):
            columns = torch.logaddexp(columns, (scale * (part @ v.T)).logsumexp(0))
        columns = gather_rows(columns[None]).logsumexp(0)

    def term(logits: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        target, rows = same.to(logits) / same.sum(1, keepdim=True), logits.logsumexp(1, keepdim=True)
        slope = ((logits - rows).exp() + (logits - columns).exp()) / 2 - target  # that of `columns` is in it
        return rows.sum() / 2 - (target * logits).sum(), slope

    own = _Rows.apply(z, v, scale, torch.zeros_like(scale), ids, term, chunk)
    return own / len(z) + columns.mean() / 2


def siglip(z: Tensor, v: Tensor, ids: Tensor, scale: Tensor, bias: Tensor, chunk: int = 512) -> Tensor:
    """-Σ log σ(±logit_ij) / B over all pairs, + where trial i and picture j have one id: Zhai et al. 2023, "SigLIP".

    Arguments as `info_nce`; every pair is a question of its own, so pairs of one id need not share anything.
    """

    def term(logits: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        sign = torch.where(same, 1.0, -1.0).to(logits)
        return -F.logsigmoid(sign * logits).sum(), -sign * (-sign * logits).sigmoid()

    return _Rows.apply(z, v, scale, bias, ids, term, chunk) / len(z)


def found(z: Tensor, v: Tensor, truth: Tensor, chunk: int = 512) -> Tensor:
    """How many predictions find their picture, as the nearest and among the five nearest, and of how many: (3,).

    z (n, D), v (m, D): of unit length, or several such side by side; truth (n,): the picture's row of v. A picture as
    near as the true one, or at no finite cosine, counts as nearer.
    """
    counts = torch.zeros(3, device=z.device)
    for part, own in zip(z.split(chunk), truth.split(chunk), strict=True):
        cosine = part @ v.T
        nearer = (~(cosine < cosine.gather(1, own[:, None]))).sum(1) - 1
        counts += torch.stack([nearer < 1, nearer < 5, nearer >= 0]).sum(1)
    return counts
