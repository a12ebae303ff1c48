"""What processes tell each other: for losses that see the global batch, rows of all, with gradients; results."""

from typing import Any

import torch
from torch import distributed as dist


class _Gather(torch.autograd.Function):
    """Rows of all processes, in rank order; the gradient of a row is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, ...) on each of w processes -> (w * n, ...), differentiable. Collective: every rank, equal n."""
    return _Gather.apply(rows) if world_size() > 1 else rows


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' `values`, in place. Collective: every rank, equal shapes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(item: Any) -> list[Any]:
    """`item` of each process, in rank order; they come from our own processes. Collective: every rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items
