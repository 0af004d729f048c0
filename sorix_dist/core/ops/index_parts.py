"""A NumPy index: which axis of the input each part covers, and what it does with rows of a batch. And writes in place:
which of the written numbers belong to this rank's rows.

A target that is rows of a batch takes this rank's rows. One that is the same on every rank, such as a memory bank,
takes the rows of all ranks. A target that a program made for the rows of this rank, as `zeros(len(x), 3)`, becomes rows
of the batch when rows are written to it. One that is a sum over rows becomes the sum over all ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import is_integer
from sorix_dist.core.batch_numbers import is_of_batch, of_all
from sorix_dist.core.capture import host, outside, recorders
from sorix_dist.core.expected import beside_rows
from sorix_dist.core.graph import recording
from sorix_dist.core.ops.axes import refused
from sorix_dist.core.placement import REPLICATE, Deferred, Partial, Shard, refuse_value, shard_of, tagged
from sorix_dist.core.rules import beside, on_every_rank, whole
from sorix_dist.core.tally import is_tally, of_everyone, of_sum, write
from sorix_dist.core.tensor import Array, Tensor, array_of, ndarray_of


def names_rows_of_all(place: Shard, parts: list[Any]) -> bool:
    """Whether what an index holds for the axis of the rows are numbers that follow from the batch, such as those of
    argsort(x): they are numbers of rows of the global batch."""
    part = next((part for part, axis, end in _with_axes(parts) if axis <= place.axis < end), None)
    return isinstance(part, Tensor) and part.place is not None and part.array.dtype.kind in "iu"


def with_numbers(place: Shard | None, parts: list[Any]) -> tuple[Any, ...]:
    """The parts of an index with the numbers of the global batch, except along the axis of this rank's rows."""
    rows = None if place is None else place.axis
    return tuple(part if axis == rows else of_all(part) for part, axis, _ in _with_axes(parts))


def numbers_of(parts: Iterable[Any]) -> list[Any]:
    """The parts of an index with arrays for ranges and lists, as in `x[range(len(x)), t]`."""
    return [_of_list([*part]) if isinstance(part, range | list) else part for part in parts]


def is_mask(part: Any) -> bool:
    """Whether a part of an index is an array of bools."""
    return getattr(array_of(part), "dtype", None) == np.bool_


def _covers(part: Any) -> int:
    """The number of the input's dimensions that a part of an index covers."""
    return part.ndim if is_mask(part) else int(part is not None and part is not Ellipsis)


def _with_axes(parts: Iterable[Any]) -> Iterator[tuple[Any, int, int]]:
    """Each part of an index with the range of the input's dimensions that it covers."""
    end = 0
    for part in parts:
        axis, end = end, end + _covers(part)
        yield part, axis, end


def of_each_axis(parts: list[Any], ndim: int) -> list[Any]:
    """The parts of an index with a slice for each of the `ndim` dimensions that it leaves out."""
    dots = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    hidden: list[Any] = [slice(None)] * (ndim - sum(map(_covers, parts)))
    return [*parts[:dots], *hidden, *parts[dots + 1 :]]


def with_masks_of_rows(place: Shard, parts: list[Any]) -> list[Any]:
    """The parts of an index, one for each axis or more, with this rank's part of masks over the rows of all ranks."""
    found = []
    for part, axis, end in _with_axes(parts):
        of_all_rows = is_mask(part) and axis <= place.axis < end and shard_of(part) is None
        found.append(rules.rows_beside(part, place, end - place.axis) if of_all_rows else part)
    return found


def rows_in_index(place: Shard, shape: tuple[int, ...], key: Any) -> Shard | None:
    """The placement of rows after NumPy's indexing; None if it selects them by position."""
    parts = of_each_axis([*key] if isinstance(key, tuple) else [key], len(shape))
    arrays = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray)]
    advanced = [i for i, p in enumerate(parts) if isinstance(p, np.ndarray) or (arrays and is_integer(p))]
    together = bool(advanced) and advanced == list(range(advanced[0], advanced[-1] + 1))
    dims = max((1 if is_mask(parts[i]) else parts[i].ndim for i in arrays), default=0)
    for part, axis, end in _with_axes(parts):
        if isinstance(part, np.ndarray | np.integer) and not axis <= place.axis < end:
            beside_rows(place, part)
    after = 0 if together or not arrays else dims  # axes of the result so far
    for i, (part, axis, end) in enumerate(_with_axes(parts)):
        if together and i == advanced[0]:
            first, after = after, after + dims
        if axis <= place.axis < end:
            if isinstance(part, slice):
                return _sliced_rows(place, part, after)
            if not is_mask(part) or len(arrays) > 1 or part.shape[place.axis - axis] != place.held:
                return None
            each = int(np.count_nonzero(part))
            if axis == place.axis and place.outer == 1:
                each = part.reshape(place.batch.held, part.size // max(1, place.batch.held)).sum(axis=1)
            return place.batch.selected(each).at(first if together else 0)
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
    if is_of_batch(part) and place.batch.known is not None:
        part, length = of_all(part), place.total // place.outer
    elif not length:  # a rank without rows doesn't know where a batch ends
        if part.start or part.stop:  # a position that does not follow from this rank's rows
            return None
        outer = 1 if part.stop == 0 and part.start in (None, 0) and place.outer > 1 else place.outer - 1
        return place.batch.at(axis, outer, place.inner)
    if max(part.stop or 0, -(part.start or 0)) > length * place.outer:  # beyond the rows of this rank
        return None
    start, stop, _ = part.indices(length * place.outer)
    if not length or start % length or stop % length or stop <= start:
        return None
    return place.batch.at(axis, (stop - start) // length, place.inner)


def key_of(key: Any) -> Any:
    """An index with tensors, ranges and lists replaced by arrays."""
    if isinstance(key, tuple):
        return tuple(key_of(k) for k in key)
    if isinstance(key, range | list):
        return _of_list([*key])
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


_NAME = "an in-place operation"


def written(target: Tensor, x: Any) -> Any:
    """The array, or the number, that an operand is for a write into the whole of `target`."""
    if not isinstance(x, Tensor | np.ndarray):
        return of_all(x)
    array = array_of(_aligned(target, of_everyone(x), target.array.shape, target.place, ...))
    _follow(target, x)
    return array


def _follow(target: Tensor, x: Any) -> None:
    """Marks a target that a number of the batch is written to: beside it, x.shape[0] counts as in the global batch."""
    if target.place is None and target.leaf is None and isinstance(x, Tensor) and x.place is not None:
        target.place = REPLICATE


def become_whole(target: Tensor) -> None:
    """Makes a target that is a sum over this rank's rows the sum over those of all ranks, a call of all ranks: what is
    written is no part of a sum. RuntimeError if something else has the same memory, since that would stay a part."""
    place = target.place
    if isinstance(place, Deferred):
        refuse_value(place, target.array, _NAME)
    if not isinstance(place, Partial) or place.group.parts == 1:
        return
    if target.array.base is not None or sys.getrefcount(target.array) > 2:  # those of the tensor and of this call
        raise RuntimeError(
            f"{_NAME} can't write to this sum over rows. Each rank holds only its part of the sum, and another tensor "
            "or array shares the memory, as after reshape(), detach() or numpy(): use sx.global_value(x), the sum over "
            "all ranks"
        )
    target.array = np.array(array_of(_sum_made_whole(target)))
    take_place(target, tagged(Tensor.of(target.array), REPLICATE))


def take_place(target: Tensor, value: Tensor) -> None:
    """Gives a target the placement of the value that it has become, and what a sum shows after its backward."""
    target.place = value.place
    for name in ("shown", "complete"):
        if hasattr(value, name):
            setattr(target, name, getattr(value, name))
        elif hasattr(target, name):
            delattr(target, name)


Store = Callable[[Tensor, Any, Any], None]


def _write(target: Tensor, index: Any, value: Any) -> None:
    target.array[index] = array_of(value)


def assign(target: Tensor, key: Any, value: Any, store: Store | None) -> None:
    """target[key] = value. store: writes a value to a NumPy index of the target so that gradients follow; None to write
    to the array."""
    become_whole(target)
    parts = key if isinstance(key, tuple) else (key,)
    place: Any = shard_of(target)
    write_to = store or _write
    if place is None and target.leaf is None and store is None:
        value = of_sum(value, _NAME)
    if is_tally(target) or is_tally(value):
        alike = not any(shard_of(part) is not None for part in (*parts, value))
        if place is None and target.leaf is None and store is None and alike:
            write(target, key_of(key), _sum_made_whole(value))
            return
        value = of_everyone(value)
        if is_tally(target):
            target.place = of_everyone(target).place
    placed = place is not None or shard_of(value) is not None or any(shard_of(part) is not None for part in parts)
    if not placed:
        write_to(target, key_of(key), _sum_made_whole(value))
        _follow(target, value)
        return
    parts = tuple(of_each_axis(numbers_of(parts), target.array.ndim))
    if _pairs_with_own_rows(target, parts):
        target.place = place = place or shard_of(parts[1])
        shape = (place.held, *target.array.shape[2:])
        write_to(target, key_of(parts), _aligned(target, value, shape, place, ...))
        return
    if place is None:
        place = _rows_of_mask(target, parts)
        target.place = target.place if place is None else place
    if isinstance(place, Shard):
        chosen = tuple(with_masks_of_rows(place, [*parts]))
        rows = None if _looks_up_rows(place, chosen) else rows_in_index(place, target.array.shape, key_of(chosen))
        if rows is None:
            refused(target, "an assignment by index")
        key = key_of(chosen)
    else:
        rows, key = None, key_of(tuple(whole(part, "an assignment") for part in parts))
    if place is None and any(shard_of(part) is not None for part in parts):
        value = whole(_sum_made_whole(value), _NAME)
    elif isinstance(value, Tensor | np.ndarray):
        value = _aligned(target, value, target.array[key].shape, rows, key)
    try:
        write_to(target, key, value)
    except ValueError as error:
        hint = "the rows of all ranks are written here: use sx.global_rows(x) where the index follows from len(x)"
        raise ValueError(f"{error}; {hint}" if shard_of(target) is None else str(error)) from None
    _follow(target, value)


def _sum_made_whole(x: Any) -> Any:
    """A sum over rows as that over the global batch."""
    place = getattr(x, "place", None)
    if not isinstance(place, Partial | Deferred):
        return x
    # After its backward a loss shows the global value at no cost.
    return x.visible if hasattr(x, "complete") else whole(_followed(x), _NAME)


def _followed(x: Tensor) -> Tensor:
    return x if recording.get() else x.detach()


def _aligned(target: Tensor, x: Any, shape: tuple[int, ...], place: Any, key: Any) -> Any:
    """An operand for a write into the region `key` of a target; shape, place: those of the region."""
    x = _sum_made_whole(x)
    x = _followed(x) if isinstance(x, Tensor) else x
    rows = shard_of(x)
    if isinstance(place, Shard):
        at = len(shape) - place.axis
        if rows is not None and (len(x.shape) - rows.axis != at or not rows.like(place)):
            x = whole(x, _NAME)
        x = beside(x, place, at)
        alike = place.group.ordered and getattr(x, "origin", None) is not None and shard_of(x) is None
        return rules.collective().spread(x, place, at, len(shape)) if alike else x
    if rows is None or rows.group.has_all:
        return x
    return x if _becomes_rows(target, rows, len(x.shape) - rows.axis, len(shape), key) else _of_all(x, shape)


def _of_all(x: Tensor, shape: tuple[int, ...]) -> Any:
    place = x.place
    assert isinstance(place, Shard)
    at = len(x.shape) - place.axis
    if place.group.ordered and len(shape) >= at and shape[-at] == place.total:
        raise RuntimeError(
            f"reproducible mode: {_NAME} writes rows of a batch into a tensor of {place.total} rows that every rank "
            "holds alike: write sx.global_value(x) into it"
        )
    return whole(x, _NAME)


def _becomes_rows(target: Tensor, rows: Shard, at: int, ndim: int, key: Any) -> bool:
    """Whether a target of no placement has this rank's rows along an axis, on every rank; it is tagged then."""
    axis = None
    for i, length in enumerate(target.array.shape) if target.leaf is None else ():
        if length == rows.held:
            lead = rows.moved(i)
            found = lead if key is ... else rows_in_index(lead, target.array.shape, key)
            axis = i if found is not None and ndim - found.axis == at else axis
    if not on_every_rank(rows, axis is not None):
        return False
    assert axis is not None
    target.place = rows.moved(axis)
    return True


def _rows_of_mask(target: Tensor, parts: tuple[Any, ...]) -> Shard | None:
    """The placement of a target of no placement that has this rank's rows, by a mask over them in the index."""
    for part, axis, _ in _with_axes(parts):
        rows = shard_of(part)
        if rows is not None and is_mask(part):
            at = axis + rows.axis
            fits = target.leaf is None and at < target.array.ndim and target.array.shape[at] == rows.held
            return rows.moved(at) if on_every_rank(rows, fits) else None
    return None


def _pairs_with_own_rows(target: Tensor, parts: tuple[Any, ...]) -> bool:
    """Whether an index pairs the numbers of this rank's rows with others, as in `y[range(len(t)), t]`."""
    first = parts[0] if parts else None
    if len(parts) != 2 or not all(isinstance(part, Tensor | np.ndarray) for part in parts):
        return False
    rows = shard_of(target) or shard_of(parts[1])
    if rows is None or rows.axis or shard_of(first) is not None or target.leaf is not None:
        return False
    own, other = (ndarray_of(part) for part in parts)
    fits = own.shape == other.shape == (rows.held,) == target.array.shape[:1] and own.dtype.kind in "iu"
    return on_every_rank(rows, fits and np.array_equal(own, np.arange(rows.held)))


def _looks_up_rows(place: Shard, parts: tuple[Any, ...]) -> bool:
    """Whether an index has integers that are rows of a batch: they name positions, of other rows on every split."""
    return not place.group.has_all and any(shard_of(part) is not None and not is_mask(part) for part in parts)
