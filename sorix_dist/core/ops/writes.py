"""Writes into a tensor in place: which of the written numbers belong to this rank's rows.

A target that is rows of a batch takes this rank's rows. One that is the same on every rank, such as a memory bank,
takes the rows of all ranks. A target that a program made for the rows of this rank, as `zeros(len(x), 3)`, becomes rows
of the batch when rows are written to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.batch_numbers import here, is_of_batch, of_all
from sorix_dist.core.ops.axes import refused
from sorix_dist.core.ops.index_parts import is_mask, key_of, of_each_axis, rows_in_index, with_masks_of_rows
from sorix_dist.core.placement import REPLICATE, Partial, Shard, shard_of
from sorix_dist.core.rules import beside, on_every_rank, whole
from sorix_dist.core.tensor import Tensor

_NAME = "an in-place operation"


def written(target: Tensor, x: Any) -> Any:
    """The array, or the number, that an operand is for a write into the whole of `target`."""
    if not isinstance(x, Tensor | np.ndarray):
        return x if not is_of_batch(x) else here(x) if target.place is None else of_all(x)
    array = _array(_aligned(target, x, target.array.shape, target.place, ...))
    _follow(target, x)
    return array


def _follow(target: Tensor, x: Any) -> None:
    """Marks a target that a number of the batch is written to: beside it, x.shape[0] counts as in the global batch."""
    if target.place is None and target.leaf is None and isinstance(x, Tensor) and x.place is not None:
        target.place = REPLICATE


def assign(target: Tensor, key: Any, value: Any) -> None:
    """target[key] = value."""
    parts = key if isinstance(key, tuple) else (key,)
    place: Any = shard_of(target)
    placed = place is not None or shard_of(value) is not None or any(shard_of(part) is not None for part in parts)
    if not placed:
        target.array[key_of(key)] = _array(_sum_made_whole(value))
        _follow(target, value)
        return
    parts = tuple(of_each_axis([*parts], target.array.ndim))
    if _pairs_with_own_rows(target, parts):
        target.place = place = place or shard_of(parts[1])
        shape = (place.held, *target.array.shape[2:])
        target.array[key_of(parts)] = _array(_aligned(target, value, shape, place, ...))
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
        target.array[key] = _array(value)
    except ValueError as error:
        hint = "the rows of all ranks are written here: use sx.global_rows(x) where the index follows from len(x)"
        raise ValueError(f"{error}; {hint}" if shard_of(target) is None else str(error)) from None
    _follow(target, value)


def _array(x: Any) -> Any:
    return x.array if isinstance(x, Tensor) else x


def _sum_made_whole(x: Any) -> Any:
    """A sum over rows as that over the global batch, since no target is a part of such a sum."""
    place = getattr(x, "place", None)
    if not isinstance(place, Partial):
        return x
    # After its backward a loss shows the global value at no cost.
    after_backward = hasattr(x, "shown") and place.factor == place.factor
    return x.visible if after_backward else whole(x.detach(), _NAME)


def _aligned(target: Tensor, x: Any, shape: tuple[int, ...], place: Any, key: Any) -> Any:
    """An operand for a write into the region `key` of a target; shape, place: those of the region."""
    x = _sum_made_whole(x)
    x = x.detach() if isinstance(x, Tensor) else x
    rows = shard_of(x)
    if isinstance(place, Shard):
        at = len(shape) - place.axis
        if rows is not None and (len(x.shape) - rows.axis != at or not rows.like(place)):
            x = whole(x, _NAME)
        return beside(x, place, at)
    if rows is None or (rows.group.single and not rows.group.ordered):
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
    axis = 0
    for part in parts:
        rows = shard_of(part)
        if rows is not None and is_mask(part):
            at = axis + rows.axis
            fits = target.leaf is None and at < target.array.ndim and target.array.shape[at] == rows.held
            return rows.moved(at) if on_every_rank(rows, fits) else None
        axis += part.ndim if is_mask(part) else int(part is not None)
    return None


def _pairs_with_own_rows(target: Tensor, parts: tuple[Any, ...]) -> bool:
    """Whether an index pairs the numbers of this rank's rows with others, as in `y[arange(len(t)), t]`."""
    first = parts[0] if parts else None
    if len(parts) != 2 or not all(isinstance(part, Tensor | np.ndarray) for part in parts):
        return False
    rows = shard_of(target) or shard_of(parts[1])
    if rows is None or rows.axis or shard_of(first) is not None or target.leaf is not None:
        return False
    own, other = (np.asarray(_array(part)) for part in parts)
    fits = own.shape == other.shape == (rows.held,) == target.array.shape[:1] and own.dtype.kind in "iu"
    return on_every_rank(rows, fits and np.array_equal(own, np.arange(rows.held)))


def _looks_up_rows(place: Shard, parts: tuple[Any, ...]) -> bool:
    """Whether an index has integers that are rows of a batch: they name positions, of other rows on every split."""
    several = place.group.ordered or not place.group.single
    return several and any(shard_of(part) is not None and not is_mask(part) for part in parts)
