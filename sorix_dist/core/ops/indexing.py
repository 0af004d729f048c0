"""Elements by tensors of indices, as PyTorch names them: gather, index_select, scatter_add, one_hot."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.device import raise_for_device
from sorix_dist.core.ops.axes import along, axis_of, shape_of
from sorix_dist.core.ops.elementwise import add, cast
from sorix_dist.core.ops.shape import expand_to, reshape, scatter_add_to, take
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.rules import bare, beside, refused, together, whole, whole_sums
from sorix_dist.core.tensor import Array, Tensor


def gather(input: Any, dim: int, index: Any) -> Any:
    """`out[i][j] = input[index[i][j]][j]` for dim 0, and so on: elements by their index along `dim`.

    index: integers, as many dimensions as input, no larger than it in the others. The result has its shape.
    """
    if not shape_of(input):
        return reshape(take(reshape(input, 1), index=_indices("gather", index, 1)), shape_of(index))
    input, index = _of_each_row("gather", input, dim, index)
    rows = shard_of(input) or shard_of(index)
    result = take(input if rows is None else bare(input), index=_grid_along("gather", input, dim, index))
    return result if rows is None else tagged(result, rows)


def _of_each_row(name: str, input: Any, dim: int, *others: Any) -> tuple[Any, ...]:
    """The operands of a function that looks up along `dim`, so that each row of a batch looks up in itself, or in what
    is the same everywhere. Else all of them with the rows of all ranks."""
    at, place = axis_of(name, input, dim), shard_of(input)
    if place is not None and place.axis != at:
        others = tuple(beside(other, place, len(shape_of(input)) - place.axis) for other in others)
    rows = [p for other in others if (p := shard_of(other)) is not None]
    if place is None and not rows:
        return (input, *others)
    fits = all(p.axis == rows[0].axis and p.like(rows[0]) for p in rows)
    if place is not None:
        fits = fits and place.axis != at and all(p.axis == place.axis and p.like(place) for p in rows)
    else:
        fits = fits and len(rows) == len(others) and rows[0].axis == at and not rows[0].group.ordered
    return (input, *others) if fits else tuple(whole(x, name) for x in (input, *others))


def take_along_dim(input: Any, indices: Any, dim: int) -> Any:
    """`gather` with the arguments in NumPy's order."""
    return gather(input, dim, indices)


def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """`input` with the elements of `src` added where `gather` with the same `dim` and `index` would read."""
    input, index, src = _of_each_row("scatter_add", input, dim, index, src)
    rows = shard_of(input) or shard_of(src)
    if rows is not None and shard_of(input) is None:
        input, index, src = (whole(x, "scatter_add") for x in (input, index, src))
        rows = None
    if rows is not None:
        return tagged(scatter_add(bare(input), dim, bare(index), bare(src)), rows)
    key = _grid_along("scatter_add", input, dim, index)
    shape = shape_of(index)
    if len(shape_of(src)) != len(shape) or any(n > m for n, m in zip(shape, shape_of(src), strict=True)):
        raise ValueError(f"scatter_add: src must be at least of index's shape {shape}, got {shape_of(src)}")
    part = take(src, index=tuple(slice(0, n) for n in shape))
    return add(input, scatter_add_to(part, index=key, shape=shape_of(input)))


def index_select(input: Any, dim: int, index: Any) -> Any:
    """The slices of `input` that a vector of integers names, along `dim`."""
    at, rows = axis_of("index_select", input, dim), shard_of(index)
    if rows is not None:
        if shard_of(input) is None and not rows.group.ordered:
            return tagged(index_select(input, at, bare(index)), rows.moved(at))
        index = whole(index, "index_select")
    place = shard_of(input)
    if place is not None and place.axis == at:
        input = refused(input, "index_select")
    chosen = _indices("index_select", index, shape_of(input)[at])
    if chosen.ndim > 1:
        raise ValueError(f"index_select: index must be a vector, got shape {chosen.shape}")
    return take(input, index=along(at, chosen.reshape(-1)))


def masked_select(input: Any, mask: Any) -> Any:
    """The elements where `mask` is true, as a vector; both broadcast."""
    (input, mask), place = together("masked_select", whole_sums((input, mask), "masked_select"))
    flags = mask.array if isinstance(mask, Tensor) else np.asarray(mask)
    if flags.dtype != np.bool_:
        raise TypeError(f"masked_select: mask must hold bools, got dtype {flags.dtype}")
    shape = np.broadcast_shapes(shape_of(input), flags.shape)
    full = expand_to(bare(input), shape=shape)
    return take(full if place is None else tagged(full, place), index=np.broadcast_to(flags, shape))


def one_hot(input: Any, num_classes: int = -1) -> Any:
    """For integers in [0, num_classes), rows of zeros with a 1 at that place (int64); -1: as many as there are."""
    rows = shard_of(input)
    if rows is not None:
        if num_classes == -1:
            labels = whole(input, "one_hot").array
            num_classes = int(labels.max()) + 1 if labels.size else -1
        return tagged(one_hot(bare(input), num_classes), rows)
    labels = input.array if isinstance(input, Tensor) else np.asarray(input)
    if num_classes == -1:
        if not labels.size:
            raise ValueError("one_hot: num_classes must be given for an input without elements")
        num_classes = int(labels.max()) + 1
    labels = _indices("one_hot", labels, num_classes, negative=False)
    return Tensor.of((labels[..., None] == np.arange(num_classes)).astype(np.int64))


def diag(input: Any, diagonal: int = 0, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Any:
    """The matrix with a vector on its `diagonal` (above the main one if positive), or the diagonal of a matrix.

    With `requires_grad` the result is a new leaf, without a history.
    """
    raise_for_device(device)
    input = whole(input, "diag")
    shape = shape_of(input)
    if len(shape) not in (1, 2):
        raise ValueError(f"diag: input must be a vector or a matrix, got shape {shape}")
    above, below = max(diagonal, 0), max(-diagonal, 0)
    if len(shape) == 1:
        places = np.arange(shape[0])
        size = shape[0] + above + below
        result = scatter_add_to(input, index=(places + below, places + above), shape=(size, size))
    else:
        places = np.arange(max(0, min(shape[0] - below, shape[1] - above)))
        result = take(input, index=(places + below, places + above))
    if dtype is not None:
        result = cast(result, dtype)
    return result.detach().requires_grad_() if requires_grad else result


def _indices(name: str, index: Any, limit: int, negative: bool = True) -> Array:
    """The index as integers in range; TypeError or IndexError (for the function `name`) otherwise."""
    array = index.array if isinstance(index, Tensor) else np.asarray(index)
    if array.dtype.kind not in "iu":
        if array.size:
            raise TypeError(f"{name}: indices must be integers, got dtype {array.dtype}")
        array = array.astype(np.int64)
    lowest = -limit if negative else 0
    if array.size and not (lowest <= array.min() and array.max() < limit):
        outside = array[(array < lowest) | (array >= limit)].ravel()[0]
        raise IndexError(f"{name}: indices must be in [{lowest}, {limit}), got {outside}")
    return array


def _grid_along(name: str, input: Any, dim: int, index: Any) -> tuple[Array, ...]:
    """The NumPy index that takes elements by `index` along `dim` and stays in place along the others."""
    shape = shape_of(input)
    at = axis_of(name, input, dim)
    array = _indices(name, index, shape[at] if shape else 1)
    if array.ndim != len(shape) or any(
        n > m for i, (n, m) in enumerate(zip(array.shape, shape, strict=True)) if i != at
    ):
        raise ValueError(
            f"{name}: index must have as many dimensions as input, and be no larger except along dim {at}, "
            f"got shape {array.shape} for input of shape {shape}"
        )
    return tuple(array if i == at else grid for i, grid in enumerate(np.ogrid[tuple(slice(n) for n in array.shape)]))
