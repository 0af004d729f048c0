"""Data sets with one copy per host, in memory that its ranks share."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.memory import ALIGNMENT
from sorix_dist.core.tensor import Array
from sorix_dist.parallel.consistency import on_every_rank, same_everywhere
from sorix_dist.parallel.world import communicator
from sorix_dist.utils.data.nested import map_arrays

T = TypeVar("T")


def host_shared(make: Callable[[], T], comm: Any = None) -> T:
    """Calls `make()` on one rank of each host, and returns its arrays in memory that all ranks of the host share.

    make: a function without arguments that returns an array, or a tuple, list or dict of arrays (and of small
        values that pickle can copy), the same on every host.
    comm: an mpi4py communicator if not all ranks of the job call this.

    The arrays are read-only. Their memory is freed by a later call when no rank uses them any more. The rank that calls
    `make` needs twice the memory while it copies: read larger data from a memory map. TypeError unless `make`
    returns arrays of numbers, ValueError if hosts differ. An exception of `make` is raised on all ranks. A call of all
    ranks.
    """
    ranks = communicator(comm)
    made: Any = None

    def planned() -> _Plan | None:
        nonlocal made
        if ranks.local_rank != 0:
            return None
        made = make()
        plan = _Plan.of(made)
        pickle.dumps(plan)  # fails here if it can't be sent, before other ranks wait for it
        return plan

    own = on_every_rank(ranks, planned)
    plan = next(p for host, p in ranks.gather_objects((ranks.host, own)) if host == ranks.host and p is not None)
    same_everywhere(ranks, "host_shared: what make returns", [*map(str, plan.specs)])
    window = ranks.window(plan.size if ranks.local_rank == 0 else 0)
    if ranks.local_rank == 0:
        plan.fill(window.parts[0], made)
        made = None
    window.barrier()
    result: T = plan.views(_ReadOnly(window.parts[0]))
    return result


@dataclass(frozen=True)
class _Spec:
    """The offset, shape and dtype of an array in the memory."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class _Plan:
    """The layout of nested arrays in one block of memory: their structure, with a number for each array."""

    structure: Any
    specs: tuple[_Spec, ...]

    @property
    def size(self) -> int:
        return self.specs[-1].stop

    @classmethod
    def of(cls, made: Any) -> _Plan:
        specs: list[_Spec] = []

        def laid_out(array: Any) -> Array:
            if isinstance(array, Tensor) or array.dtype.hasobject:
                kind = "a Tensor" if isinstance(array, Tensor) else f"an array of {array.dtype}"
                raise TypeError(f"host_shared: make must return arrays of numbers, got {kind}")
            start = -(-specs[-1].stop // ALIGNMENT) * ALIGNMENT if specs else 0
            specs.append(_Spec(start, array.shape, array.dtype))
            return np.array(len(specs) - 1)

        structure = map_arrays(made, laid_out)
        if not specs:
            raise TypeError(
                f"host_shared: make must return an array, or a tuple, list or dict of arrays, got {type(made).__name__}"
            )
        return cls(structure, tuple(specs))

    def fill(self, block: Array, made: Any) -> None:
        """Copies the arrays to their offsets."""
        specs = iter(self.specs)

        def copy(array: Array) -> Array:
            spec = next(specs)
            np.copyto(_seen(block, spec), array)
            return array

        map_arrays(made, copy)

    def views(self, memory: _ReadOnly) -> Any:
        """The structure with read-only arrays in the memory."""
        block = np.asarray(memory)
        return map_arrays(self.structure, lambda number: _seen(block, self.specs[int(number)]))


def _seen(block: Array, spec: _Spec) -> Array:
    return block[spec.start : spec.stop].view(spec.dtype).reshape(spec.shape)


class _ReadOnly:
    """The base of the arrays: it keeps the memory alive, and NumPy can't make a view of it writeable."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "data": (memory.ctypes.data, True),
        }
