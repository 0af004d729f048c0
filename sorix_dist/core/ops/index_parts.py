"""The parts of a NumPy index: which axis of the input each covers, and what they do with rows of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import is_integer
from sorix_dist.core.batch_numbers import of_all
from sorix_dist.core.capture import host, outside, recorders
from sorix_dist.core.placement import Shard, shard_of
from sorix_dist.core.tensor import Array, Tensor


def names_rows_of_all(place: Shard, parts: list[Any]) -> bool:
    """Whether what an index holds for the axis of the rows are numbers that follow from the batch, such as those of
    argsort(x): they are numbers of rows of the global batch."""
    axis = 0
    for part in parts:
        covers = _covers(part)
        if axis <= place.axis < axis + covers:
            return isinstance(part, Tensor) and part.place is not None and part.array.dtype.kind in "iu"
        axis += covers
    return False


def with_numbers(place: Shard | None, parts: list[Any]) -> tuple[Any, ...]:
    """The parts of an index with the numbers of the global batch, except along the axis of this rank's rows."""
    axis, found = 0, []
    for part in parts:
        found.append(of_all(part) if place is None or axis != place.axis else part)
        axis += _covers(part)
    return tuple(found)


def is_mask(part: Any) -> bool:
    """Whether a part of an index is an array of bools."""
    return getattr(getattr(part, "array", part), "dtype", None) == np.bool_


def _covers(part: Any) -> int:
    """The number of the input's dimensions that a part of an index covers."""
    return part.ndim if is_mask(part) else int(part is not None and part is not Ellipsis)


def of_each_axis(parts: list[Any], ndim: int) -> list[Any]:
    """The parts of an index with a slice for each of the `ndim` dimensions that it leaves out."""
    dots = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    hidden: list[Any] = [slice(None)] * (ndim - sum(map(_covers, parts)))
    return [*parts[:dots], *hidden, *parts[dots + 1 :]]


def with_masks_of_rows(place: Shard, parts: list[Any]) -> list[Any]:
    """The parts of an index, one for each axis or more, with this rank's part of masks over the rows of all ranks."""
    axis, found = 0, []
    for part in parts:
        covers = _covers(part)
        if is_mask(part) and axis <= place.axis < axis + covers and shard_of(part) is None:
            part = rules.rows_beside(part, place, covers + axis - place.axis)
        axis += covers
        found.append(part)
    return found


def rows_in_index(place: Shard, shape: tuple[int, ...], key: Any) -> Shard | None:
    """The placement of rows after NumPy's indexing; None if it selects them by position."""
    parts = of_each_axis([*key] if isinstance(key, tuple) else [key], len(shape))
    arrays = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray)]
    advanced = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray) or (arrays and is_integer(p))]
    together = bool(advanced) and advanced == list(range(advanced[0], advanced[-1] + 1))
    dims = max((1 if is_mask(parts[i]) else parts[i].ndim for i in arrays), default=0)
    axis, after = 0, 0 if together or not arrays else dims  # axes of the input and of the result so far
    for i, part in enumerate(parts):
        if together and i == advanced[0]:
            first, after = after, after + dims
        covers = _covers(part)
        if axis <= place.axis < axis + covers:
            if isinstance(part, slice):
                return _sliced_rows(place, part, after)
            if not is_mask(part) or len(arrays) > 1 or part.shape[place.axis - axis] != place.held:
                return None
            each = int(np.count_nonzero(part))
            if axis == place.axis and place.outer == 1:
                each = part.reshape(place.batch.held, part.size // max(1, place.batch.held)).sum(axis=1)
            return place.batch.selected(each).at(first if together else 0)
        axis += covers
        after += part is None or isinstance(part, slice)
    return None


def _sliced_rows(place: Shard, part: slice, axis: int) -> Shard | None:
    """All rows, or some of several batches that were concatenated; None for other slices."""
    if part.step not in (None, 1):
        return None
    length = place.held // place.outer
    if part.stop is None and (part.start is None or (part.start == 0 and (length or place.outer == 1))):
        return place.moved(axis)
    found = _of_concatenated(place, part, length, axis) if place.outer > 1 else None
    return found if place.outer > 1 and rules.on_every_rank(place, found is not None) else None


def _of_concatenated(place: Shard, part: slice, length: int, axis: int) -> Shard | None:
    """Some of several batches, each of `length` rows here; None if the slice cuts one."""
    if not length:  # a rank without rows doesn't know where a batch ends
        if part.start or part.stop:  # a position that does not follow from this rank's rows
            return None
        outer = 1 if part.stop == 0 and part.start in (None, 0) and place.outer > 1 else place.outer - 1
        return place.batch.at(axis, outer, place.inner)
    start, stop, _ = part.indices(place.held)
    if start % length or stop % length or stop <= start:
        return None
    return place.batch.at(axis, (stop - start) // length, place.inner)


def key_of(key: Any) -> Any:
    """An index with tensors and lists replaced by arrays."""
    if isinstance(key, tuple):
        return tuple(key_of(k) for k in key)
    if isinstance(key, list):
        return _of_list(key)
    if isinstance(key, Tensor):
        key = key.array
        if key.dtype == np.uint8:
            raise IndexError("an index of uint8 is a mask in PyTorch and names places in NumPy: x.bool() or x.long()")
    if recorders and getattr(key, "dtype", None) == np.bool_:
        outside("elements are selected by a mask, so that their number follows from values: use where()")
    return key


@host
def _of_list(key: list[Any]) -> Array:
    array = np.asarray(key)
    return array if array.size else array.astype(np.int64)
