"""What processes tell each other: for losses that see the global batch, rows of all, with gradients; results."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed as dist

T = TypeVar("T")
R = TypeVar("R")


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


def spread(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """`work` of each part, by the processes in turn; the results in the parts' order, on every process.

    Collective: every rank, the same parts. A ValueError of one is raised by all.
    """
    world, rank = world_size(), dist.get_rank() if world_size() > 1 else 0
    mine: list[R] = []
    error: ValueError | None = None
    try:
        mine = [work(part) for part in parts[rank::world]]
    except ValueError as fault:  # the others wait to be told
        error = fault
    everyone = gather_objects((mine, error))
    for _, raised in everyone:
        if raised is not None:
            raise raised
    return [everyone[i % world][0][i // world] for i in range(len(parts))]
