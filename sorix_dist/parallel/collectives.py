"""Collectives on tensors, arrays and numbers. Every rank makes the same calls in the same order."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np

from sorix_dist.comm.protocol import Op
from sorix_dist.core import Tensor
from sorix_dist.parallel.world import world

T = TypeVar("T")


def all_reduce(x: T, op: Op = "sum") -> T:
    """The sum (or "max", "min") of x over all ranks, in place for a tensor or array; returns it.

    A Python number gives a new number.
    """
    array = _memory(x)
    world().all_reduce(array, op).wait()
    return cast(T, _back(x, array))


def broadcast(x: T, root: int = 0) -> T:
    """Rank `root`'s values for everybody, in place for a tensor or array; returns them."""
    array = _memory(x)
    world().broadcast(array, root)
    return cast(T, _back(x, array))


def all_gather(x: Any) -> list[Any]:
    """Every rank's x, in rank order; x has the same shape and dtype everywhere."""
    gathered = world().all_gather(np.ascontiguousarray(_memory(x)))
    if isinstance(x, Tensor):
        return [Tensor(part) for part in gathered]
    return list(gathered) if isinstance(x, np.ndarray) else [part.item() for part in gathered]


def barrier() -> None:
    """Returns when every rank has called it."""
    world().barrier()


def _memory(x: Any) -> np.ndarray[Any, Any]:
    array = x.array if isinstance(x, Tensor) else x
    return array if isinstance(array, np.ndarray) else np.array(array)


def _back(x: Any, array: np.ndarray[Any, Any]) -> Any:
    return x if isinstance(x, Tensor | np.ndarray) else array.item()
