"""Dimensions that users name: checked, and counted from 0."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from sorix_dist.core.tensor import Tensor


def shape_of(input: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, or what NumPy makes an array of."""
    return input.array.shape if isinstance(input, Tensor) else np.shape(input)


def broadcasts_to(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be repeated to the shape `whole`."""
    try:
        return np.broadcast_shapes(shape, whole) == tuple(whole)
    except ValueError:
        return False


def axis_of(name: str, input: Any, dim: Any, more: int = 0) -> int:
    """`dim` counted from 0; IndexError (for the function `name`) if `input`, with `more` dimensions, has it not."""
    shape = shape_of(input)
    count = len(shape) + more
    try:
        axis = dim.__index__()
    except AttributeError:
        raise TypeError(f"{name}: dim must be an integer, got {dim!r}") from None
    # A 0-d tensor is taken as a row of one element where that makes sense, as in PyTorch.
    limit = max(1, count)
    if not -limit <= axis < limit:
        raise IndexError(f"{name}: dim must be in [{-limit}, {limit}) for a tensor of shape {shape}, got {axis}")
    return int(axis) % limit


def axes_of(name: str, input: Any, dim: Any, axis: Any = None) -> tuple[int, ...] | None:
    """The dimensions to reduce over, given as `dim` or `axis`: None (all), one or several; counted from 0."""
    if dim is None:
        dim = axis
    elif axis is not None:
        raise TypeError(f"{name}: dim and axis mean the same; only one can be given, got dim={dim!r}, axis={axis!r}")
    if dim is None:
        return None
    if not isinstance(dim, tuple | list):
        axes: tuple[int, ...] = (axis_of(name, input, dim),)
    else:
        axes = tuple([axis_of(name, input, d) for d in dim])
    if len(axes) > 1 and len(set(axes)) < len(axes):
        raise ValueError(f"{name}: dim must name each dimension once, got {dim!r}")
    return axes if shape_of(input) else None


def along(axis: int, part: Any) -> tuple[Any, ...]:
    """The index that takes `part` along `axis`, and everything along the others."""
    return (*(slice(None),) * axis, part)


def parts_along(axis: int, sizes: Iterable[int]) -> list[tuple[Any, ...]]:
    """The indices of consecutive parts of these sizes along `axis`."""
    ends = accumulate(sizes, initial=0)
    return [along(axis, slice(start, end)) for start, end in pairwise(ends)]


def with_ones(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that a reduction over `axes` (None: all) has if it keeps its dimensions."""
    return tuple(1 if axes is None or i in axes else n for i, n in enumerate(shape))
