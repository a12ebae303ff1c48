"""What processes tell each other: rows of all, with gradients, for losses that see the global batch; results; and what
the file system says: a network one shows late, on some machines, what another one wrote. So rank 0 decides
(`decided_by_main`), and what it decided waits for the others to see it.
"""

import pickle
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from torch import distributed as dist

from neuroimagen.errors import sentence

# How torch, safetensors, accelerate and yaml say that a file cannot be written or read.
_SAID = (OSError, ValueError, RuntimeError, EOFError, KeyError)
ERRORS = (*_SAID, pickle.UnpicklingError, SafetensorError, yaml.YAMLError)
T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 90.0  # s that a rank waits to see what rank 0 sees: NFS keeps what it knows of a directory for up to 60


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


def _told(error: Exception) -> Exception:
    """The error as the command line makes a sentence of it."""
    if isinstance(error, (ValueError, OSError)):
        return error
    return ValueError(sentence(error) or str(error) or type(error).__name__)


def decided_by_main(look: Callable[[], T]) -> T:
    """What `look()` gives on rank 0, on every rank; it must hold no collective. Collective: every rank.

    Where it fails because of what it read (ERRORS), every rank raises a ValueError, or the OSError, that says so.
    """
    if world_size() == 1:
        return look()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = look()
        except ERRORS as error:  # the others wait to be told
            answer[1] = _told(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def on_every_rank(work: Callable[[], T]) -> T:
    """`work()`, which must hold no collective, of each rank. Collective: every rank.

    An error of reading (ERRORS) on one rank is one on all. What rank 0 could do, the others try again for PATIENCE
    seconds before they give up.
    """
    if world_size() == 1:
        return work()
    deadline, result, todo = time.monotonic() + PATIENCE, [], True
    while True:
        error: Exception | None = None
        if todo:
            try:
                result, todo = [work()], False
            except ERRORS as fault:
                error = fault
        about = error and (str(error) or type(error).__name__)
        everyone = gather_objects((about, platform.node(), time.monotonic() > deadline))
        failed = next((rank for rank, (said, _, _) in enumerate(everyone) if said), None)
        if failed is None:
            return result[0]
        said, node, _ = everyone[failed]
        if failed == 0:
            raise _told(error) if error else ValueError(said)
        if everyone[0][2]:
            raise ValueError(f"rank {failed} on {node} cannot do what rank 0 can: {said}")
        time.sleep(0.1)


def wait_for_files(paths: Iterable[Path]) -> None:
    """Return when every rank sees `paths`, which rank 0 sees; ValueError after PATIENCE seconds. Collective."""

    def look() -> None:
        for path in paths:
            if not path.exists():
                raise ValueError(f"{path} does not show there; all machines of a run need one shared file system")

    on_every_rank(look)


def spread(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """`work` of each part, by the processes in turn; the results in the parts' order, on every process.

    Collective: every rank, the same parts. An error of one (ERRORS) is raised by all.
    """
    if (world := world_size()) == 1:
        return [work(part) for part in parts]
    mine: list[R] | Exception
    try:
        mine = [work(part) for part in parts[dist.get_rank() :: world]]
    except ERRORS as fault:  # the others wait to be told
        mine = _told(fault)
    everyone = gather_objects(mine)
    for raised in everyone:
        if isinstance(raised, Exception):
            raise raised
    return [everyone[i % world][i // world] for i in range(len(parts))]
