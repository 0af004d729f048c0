"""Changes in place of arrays that a backward still needs, which make its gradients wrong.

PyTorch counts the changes of each tensor, and compares the count when a backward uses the tensor. Here a change notes
the number of the next operation, and a backward looks only at the operations before the last change.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any
from weakref import ref

import numpy as np
from numpy.lib.array_utils import byte_bounds

from sorix_dist.core.capture import RecordedRule
from sorix_dist.core.graph import Node
from sorix_dist.core.op import marker

last = -1
"""The operation before the last change: those of smaller numbers may need what was changed."""
_changed: dict[int, tuple[Any, dict[tuple[int, int], int]]] = {}
"""By the id of the array that owns the memory: it, and of each part that was changed the operation before it."""


def note(array: np.ndarray[Any, Any]) -> None:
    """Notes that an array is changed in place."""
    global last
    owner = _owner(array)
    key = id(owner)
    if key not in _changed:
        _changed[key] = ref(owner, lambda _: _changed.pop(key, None)), {}
    last = _changed[key][1][byte_bounds(array)] = marker()


def refuse_changed(node: Node) -> None:
    """RuntimeError if the rules of an operation need an array that was changed after it."""
    for array in _needed(node.rules):
        parts = _changed.get(id(_owner(array)), (None, {}))[1]
        start, stop = byte_bounds(array) if parts else (0, 0)
        if any(number > node.number and a < stop and start < b for (a, b), number in [*parts.items()]):
            raise RuntimeError(
                f"the gradient of '{node.op.apply.__name__}' needs a tensor of shape {array.shape} that was changed in "
                "place after it, as x.mul_() and x[i] = ... do: use x.clone() in the operation, or change it after "
                "the backward"
            )


def _owner(array: Any) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _needed(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The arrays that a rule closes over, also in functions and tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            yield from _needed(cell.cell_contents)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _needed(entry)
    elif isinstance(value, RecordedRule):
        yield from _needed(value.rule)
