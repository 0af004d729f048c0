"""Parameters and their gradients in flat arrays, so that optimizers and all-reduces see one long slice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core.graph import Accumulator, Leaf, Sync, editing, zero
from sorix_dist.core.memory import ALIGNMENT, PRIVATE, ParameterMemory, digest_of
from sorix_dist.core.tensor import Array, Tensor

BLOCK = 1 << 15  # elements: a block of some arrays of this size fits into a core's cache

_changes = itertools.count(1)
_version = 0


def version() -> int:
    """A number that changes whenever a parameter of this process moves to other memory or gets another `sync`."""
    return _version


def _changed() -> None:
    global _version
    _version = next(_changes)


def padded_size(parameter: Tensor) -> int:
    """The number of elements of a parameter in a flat array, padded with zeros to whole cache lines."""
    unit = ALIGNMENT // parameter.array.itemsize
    return -(-parameter.array.size // unit) * unit


def layout(parameters: Iterable[Tensor]) -> tuple[list[int], int]:
    """The offset of each parameter in a flat array, and the length of the array, in elements."""
    starts, end = [], 0
    for parameter in parameters:
        starts.append(end)
        end += padded_size(parameter)
    return starts, end


def within(start: int, stop: int, part: slice) -> slice:
    """The intersection of the elements `start` to `stop` - 1 with a part of an array; it may be empty."""
    first = max(start, part.start)
    return slice(first, max(first, min(stop, part.stop)))


class Flat:
    """Parameters of one dtype in one array `data`, their gradients in another, `grad`, with the same layout.

    Parameters do not lose their values, nor their gradients.
    memory: that of the arrays; frozen: whether the parameters' views of them are read-only; edited: a copy
    of `data` that the parameters show between `open` and `close`.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            _refuse_to_move(leaf_of(parameter))
        self.parameters = list(parameters)
        self.dtype = self.parameters[0].array.dtype
        self.starts, self.size = layout(self.parameters)
        self._start_of = {id(p): start for p, start in zip(self.parameters, self.starts, strict=True)}
        self.memory: ParameterMemory = PRIVATE
        self.frozen = False
        self.edited: Array | None = None
        self.keeper: Any = None  # an object to keep alive as long as this storage
        self.data = self.memory.zeros(self.size, self.dtype)
        self.grad = self.memory.zeros(self.size, self.dtype)
        for parameter, data, grad in zip(self.parameters, self.views(self.data), self.views(self.grad), strict=True):
            leaf = leaf_of(parameter)
            np.copyto(data, parameter.array)
            _move_gradient(leaf, grad)
            leaf.flat = self
        self._show(self.data)

    @property
    def own(self) -> slice:
        """The elements of the arrays that this process changes."""
        return self.memory.own_slice(self.size, self.dtype)

    def start_of(self, parameter: Tensor) -> int:
        """The offset of a parameter in the flat arrays, in elements."""
        return self._start_of[id(parameter)]

    def views(self, flat: Array) -> list[Array]:
        """The part of each parameter in an array of this layout, in the parameter's shape."""
        return [
            flat[start : start + p.array.size].reshape(p.array.shape)
            for start, p in zip(self.starts, self.parameters, strict=True)
        ]

    def clear_gaps(self, array: Array, part: slice) -> None:
        """Zeroes the padding between parameters in a part of an array of this layout."""
        for start, end, p in zip(self.starts, [*self.starts[1:], self.size], self.parameters, strict=True):
            array[within(start + p.array.size, end, part)] = 0

    def freeze(self, memory: ParameterMemory) -> None:
        """Moves to `memory`, with the values of the process that writes, and makes the parameters' views read-only.
        Gradients are discarded. A call of all processes that share the memory."""
        if memory is not self.memory:
            data, grad = memory.zeros(self.size, self.dtype), memory.zeros(self.size, self.dtype)
            if memory.writes:
                np.copyto(data, self.data)
            memory.fence("DistributedDataParallel")
            self.memory, self.data, self.grad = memory, data, grad
        self.frozen = True
        for parameter, view in zip(self.parameters, self.views(self.grad), strict=True):
            leaf = leaf_of(parameter)
            zero((leaf,))
            leaf.local = leaf.total = Accumulator(view, frozen=True)
        self._show(self.data)

    def thaw(self) -> None:
        """Makes the parameters ordinary ones again: with their values and gradients, in private memory, without
        synchronisation."""
        if self.edited is not None:
            raise RuntimeError("unwrap: the parameters are being edited; unwrap after the end of `with model.edit():`")
        shared, self.memory, self.frozen, self.keeper = (self.data, self.grad), PRIVATE, False, None
        self.data, self.grad = (self.memory.zeros(self.size, self.dtype) for _ in shared)
        np.copyto(self.data, shared[0])
        np.copyto(self.grad, shared[1])
        for parameter, view in zip(self.parameters, self.views(self.grad), strict=True):
            leaf = leaf_of(parameter)
            written = leaf.total.written
            leaf.local = leaf.total = Accumulator(view)
            leaf.total.written = written
            leaf.sync = leaf.view = None
        self._show(self.data)

    def _show(self, array: Array) -> None:
        for parameter, view in zip(self.parameters, self.views(array), strict=True):
            view.flags.writeable = not self.frozen or array is not self.data
            parameter.array = view
        _changed()

    def open(self) -> Array:
        """Makes the parameters views of a writeable copy of `data` until `close`; returns the copy."""
        if self.edited is not None:
            raise RuntimeError("edit: the model's parameters are being edited already")
        self.edited = self.data.copy()
        self._show(self.edited)
        return self.edited

    def show_gradients(self, array: Array) -> None:
        """Makes the parameters' gradients views of a writeable copy of `grad`, or of `grad` itself again."""
        for parameter, view in zip(self.parameters, self.views(array), strict=True):
            view.flags.writeable = not self.frozen or array is not self.grad
            leaf_of(parameter).total.shown = view

    def close(self, keep: bool) -> None:
        """Makes the parameters views of `data` again; `keep`: with the values in the copy of the process that writes. A
        call of all processes that share the memory."""
        edited, self.edited = self.edited, None
        assert edited is not None
        if keep:
            self.memory.fence("edit")
            if self.memory.writes:
                np.copyto(self.data, edited)
            self.memory.fence("edit")
        self._show(self.data)


def synchronise(flat: Flat, sync: Sync) -> None:
    """Makes `sync` synchronise the gradients of a flat storage."""
    for parameter in flat.parameters:
        leaf_of(parameter).sync = sync
    _changed()


def leaf_of(parameter: Tensor) -> Leaf:
    """The leaf of a parameter, made if it never had a gradient."""
    if parameter.leaf is None:
        needed = parameter.requires_grad
        parameter.requires_grad_(True).requires_grad_(needed)
    assert parameter.leaf is not None
    return parameter.leaf


def flat_of(parameter: Tensor) -> Flat:
    """The flat storage of a parameter that has one."""
    flat = leaf_of(parameter).flat
    assert flat is not None
    return flat


def flatten(parameters: Iterable[Tensor]) -> list[Flat]:
    """Flat storages of the parameters, one per dtype; existing ones are used if they fit.

    A parameter that is given twice is stored once.
    """
    by_dtype: dict[Any, list[Tensor]] = {}
    for parameter in {id(p): p for p in parameters}.values():
        by_dtype.setdefault(parameter.array.dtype, []).append(parameter)
    flats = []
    for group in by_dtype.values():
        flat = leaf_of(group[0]).flat
        if flat is not None and [*map(id, flat.parameters)] == [*map(id, group)]:
            flats.append(flat)
        else:
            flats.append(Flat(group))
    return flats


def convert(tensor: Tensor, dtype: np.dtype[Any]) -> None:
    """Converts a tensor to another dtype, in private memory; it keeps its gradient and hooks."""
    if tensor.array.dtype == dtype:
        return
    leaf = tensor.leaf
    if leaf is not None:
        _refuse_to_move(leaf)
        leaf.dtype, leaf.flat, leaf.view = dtype, None, None
        _move_gradient(leaf, None)
    tensor.array = tensor.array.astype(dtype)
    _changed()


def _refuse_to_move(leaf: Leaf) -> None:
    if leaf.sync is not None:
        raise RuntimeError(
            "the parameter's gradient is shared between ranks, so it can't move to other memory: "
            "convert and combine models before they are wrapped"
        )


def _move_gradient(leaf: Leaf, array: Array | None) -> None:
    """Moves the gradient of a leaf to `array`, or to private memory in the leaf's dtype."""
    before = leaf.total
    leaf.local = leaf.total = Accumulator(array)
    if before.written and before.array is not None:
        np.copyto(leaf.total.allocated(leaf), before.array)
        leaf.total.written = True


class Run(NamedTuple):
    """The elements `start` to `stop` of a flat storage: consecutive parameters.

    first: the index of the first of them in the given parameters.
    """

    flat: Flat
    start: int
    stop: int
    first: int


def runs(parameters: Sequence[Tensor], chosen: Iterable[int], joined: Callable[[int, int], bool]) -> list[Run]:
    """The longest runs of those parameters, all in flat storages, whose indices are `chosen`.

    joined: whether a parameter may be in one run with the chosen one before it.
    """
    found: list[Run] = []
    before = -1
    for i in chosen:
        flat = flat_of(parameters[i])
        start = flat.start_of(parameters[i])
        stop = start + padded_size(parameters[i])
        if found and found[-1].flat is flat and found[-1].stop == start and joined(before, i):
            found[-1] = found[-1]._replace(stop=stop)
        else:
            found.append(Run(flat, start, stop, i))
        before = i
    return found


def _with_gradient(parameters: Iterable[Tensor]) -> Iterator[tuple[Tensor, Leaf]]:
    """The parameters that have a gradient, without duplicates, with their leaves."""
    for parameter in {id(p): p for p in parameters}.values():
        if parameter.leaf is not None and parameter.leaf.total.written:
            yield parameter, parameter.leaf


def gradients(parameters: Iterable[Tensor]) -> list[Array]:
    """The gradients of those parameters that have one, in as few one-dimensional arrays as possible."""
    arrays, flat = [], []
    for parameter, leaf in _with_gradient(parameters):
        if leaf.flat is None:
            arrays.append(leaf.total.allocated(leaf).reshape(-1))
        else:
            flat.append(parameter)
    return arrays + [run.flat.grad[run.start : run.stop] for run in runs(flat, range(len(flat)), lambda *_: True)]


@contextmanager
def changing_gradients(parameters: Iterable[Tensor], action: str, *numbers: float) -> Iterator[list[Array]]:
    """A context that gives this process's slices of the existing gradients, to be changed: one-dimensional arrays
    without padding. A call, with the same numbers, of all processes that share them; they also leave it together."""
    edit = editing.get()
    if edit is not None:
        with edit.settled(), changing_gradients(parameters, action, *numbers) as own:
            yield own
        return
    own, memories = [], {}
    for parameter, leaf in _with_gradient(parameters):
        if leaf.view is not None and leaf.view.origin is not None:
            leaf.view = None  # a `grad` made with create_graph would have the old numbers
        if leaf.flat is None:
            own.append(leaf.total.allocated(leaf).reshape(-1))
            continue
        flat, start = leaf.flat, leaf.flat.start_of(parameter)
        memories[id(flat.memory)] = flat.memory
        own.append(flat.grad[within(start, start + parameter.array.size, flat.own)])
    for memory in memories.values():
        memory.fence(action, digest_of(*numbers))
    yield own
    for memory in memories.values():
        memory.fence(action)


def zero_gradients(parameters: Iterable[Tensor]) -> None:
    """Zeroes existing gradients, and discards pending ones."""
    given = list(parameters)
    for parameter in given:
        leaf = parameter.leaf
        if leaf is not None and leaf.sync is not None:
            leaf.sync.discard(leaf)
    with changing_gradients(given, "zero_grad") as own:
        for array in own:
            array.fill(0)
