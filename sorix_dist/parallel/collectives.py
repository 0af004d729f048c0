"""Collectives on tensors, arrays and numbers. Every rank makes the same calls in the same order."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeVar, cast

import numpy as np

from sorix_dist.comm.protocol import Op
from sorix_dist.core import Tensor
from sorix_dist.parallel.world import world

T = TypeVar("T")
_OF_NUMBERS: dict[str, Any] = {"sum": sum, "max": max, "min": min}


def all_reduce(x: T, op: Op = "sum") -> T:
    """The sum (or "max", "min") of x over all ranks, in place for a tensor or array; returns it.

    A Python number gives a new number; ranks may mix integers and floats.
    """
    if not isinstance(x, Tensor | np.ndarray):
        if op not in _OF_NUMBERS:
            raise ValueError(f"all_reduce: op must be one of {', '.join(_OF_NUMBERS)}, got {op!r}")
        if not isinstance(x, Real | np.generic):
            raise TypeError(f"all_reduce: x must be a tensor, an array or a number, got {type(x).__name__}")
        return cast(T, _OF_NUMBERS[op](world().gather_objects(x)))
    array = _memory(x)
    world().all_reduce(array, op).wait()
    return x


def broadcast(x: T, root: int = 0) -> T:
    """Rank `root`'s values for everybody, in place for a tensor or array; returns them."""
    if not isinstance(x, Tensor | np.ndarray):
        return cast(T, world().share(x, root))
    array = _memory(x)
    world().broadcast(array, root)
    return x


def all_gather(x: Any) -> list[Any]:
    """Every rank's x, in rank order; a tensor or array has the same shape and dtype everywhere."""
    if not isinstance(x, Tensor | np.ndarray):
        return world().gather_objects(x)
    gathered = world().all_gather(np.ascontiguousarray(_memory(x)))
    return [Tensor(part) for part in gathered] if isinstance(x, Tensor) else list(gathered)


def barrier() -> None:
    """Returns when every rank has called it."""
    world().barrier()


def _memory(x: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.array if isinstance(x, Tensor) else x
