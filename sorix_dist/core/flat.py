"""Parameters and their gradients in flat arrays, so that an optimizer or an all-reduce sees one long slice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.graph import Accumulator
from sorix_dist.core.tensor import Array, Tensor

ALIGNMENT = 64  # bytes: a cache line, and the widest vector of today's CPUs

_changes = itertools.count(1)
_version = 0


def version() -> int:
    """A number that changes whenever a parameter of this process has moved to other memory."""
    return _version


def _changed() -> None:
    global _version
    _version = next(_changes)


def zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """A zeroed one-dimensional array that starts on a cache line."""
    memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + count * dtype.itemsize].view(dtype)


def layout(parameters: Iterable[Tensor]) -> tuple[list[int], int]:
    """Where each of the parameters starts in a flat array, in elements, and how long that array is."""
    starts, end = [], 0
    for parameter in parameters:
        starts.append(end)
        unit = ALIGNMENT // parameter.array.itemsize
        end += -(-parameter.array.size // unit) * unit
    return starts, end


class Flat:
    """Parameters of one dtype in one array `data`, their gradients in another, `grad`, with the same layout.

    The values of the parameters are kept, and so are gradients they have. `local` is where a backward
    writes: `grad` itself, until `localize` names another array.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.dtype = self.parameters[0].array.dtype
        self.starts, self.size = layout(self.parameters)
        self._start_of = {id(p): start for p, start in zip(self.parameters, self.starts, strict=True)}
        self.data = zeros(self.size, self.dtype)
        self.grad = self.local = zeros(self.size, self.dtype)
        for parameter, data, grad in zip(self.parameters, self.views(self.data), self.views(self.grad), strict=True):
            parameter.requires_grad_(parameter.requires_grad)
            leaf = leaf_of(parameter)
            np.copyto(data, parameter.array)
            parameter.array = data
            before = leaf.total
            leaf.local = leaf.total = Accumulator(grad)
            if before.written and before.array is not None:
                np.copyto(grad, before.array)
                leaf.total.written = True
            leaf.flat = self
        _changed()

    def start_of(self, parameter: Tensor) -> int:
        """Where a parameter starts in the flat arrays, in elements."""
        return self._start_of[id(parameter)]

    def views(self, flat: Array) -> list[Array]:
        """The part of each parameter in an array of this layout, in the parameter's shape."""
        return [
            flat[start : start + p.array.size].reshape(p.array.shape)
            for start, p in zip(self.starts, self.parameters, strict=True)
        ]

    def localize(self, local: Array) -> None:
        """Makes `local` the array that a backward writes to, apart from the gradients that parameters show."""
        self.local = local
        for parameter, view in zip(self.parameters, self.views(local), strict=True):
            leaf_of(parameter).local = Accumulator(view)
        _changed()


def leaf_of(parameter: Tensor) -> Any:
    """The leaf of a parameter, made if it never had a gradient."""
    if parameter.leaf is None:
        needed = parameter.requires_grad
        parameter.requires_grad_(True).requires_grad_(needed)
    return parameter.leaf


def flatten(parameters: Iterable[Tensor]) -> list[Flat]:
    """Flat storages, one per dtype, that hold the parameters; those that they have are used if they fit exactly."""
    by_dtype: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.array.dtype, []).append(parameter)
    flats = []
    for group in by_dtype.values():
        flat = leaf_of(group[0]).flat
        same = flat is not None and len(flat.parameters) == len(group)
        if same and all(a is b for a, b in zip(flat.parameters, group, strict=True)):
            flats.append(flat)
        else:
            flats.append(Flat(group))
    return flats
