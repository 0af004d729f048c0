"""By size: the largest, the smallest, where they are, and sorting."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import along, axes_of, axis_of, shape_of, with_ones
from sorix_dist.core.ops.choose import maximum, minimum
from sorix_dist.core.ops.indexing import gather
from sorix_dist.core.ops.shape import extents, reshape, squeeze
from sorix_dist.core.tensor import Tensor


class ValuesAndIndices(NamedTuple):
    """Elements, and where along a dimension they were (int64)."""

    values: Tensor
    indices: Tensor


@op(rule=rules.along(None))
def extreme_over(x: Any, *, axis: Any, keepdims: Any, largest: bool) -> Any:
    """The largest (or smallest) element along `axis` (None: of all); equal ones share the gradient."""
    kept = with_ones(x.shape, axis)
    y = (np.max if largest else np.min)(x, axis=axis, keepdims=keepdims)

    def to_x(g: Any, out: Any) -> Any:
        where = x == np.reshape(y, kept)
        return np.where(where, np.reshape(g, kept), 0) / np.sum(where, axis=axis, keepdims=True)

    return y, (to_x,)


@op(differentiable=False, rule=rules.along(None))
def place_of_largest(x: Any, *, axis: int | None, keepdims: Any) -> Any:
    """Where along `axis` (None: in the flattened input) the first largest element is."""
    return np.argmax(x, axis=axis, keepdims=keepdims), ()


@op(differentiable=False, rule=rules.along(None))
def place_of_smallest(x: Any, *, axis: int | None, keepdims: Any) -> Any:
    """Where along `axis` (None: in the flattened input) the first smallest element is."""
    return np.argmin(x, axis=axis, keepdims=keepdims), ()


@op(differentiable=False, rule=rules.along(False))
def sorting_order(x: Any, *, axis: int, descending: bool) -> Any:
    """The indices that sort along `axis`; equal elements keep their order."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable"), ()
    backwards = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - backwards, ()


def amax(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element, along `dim` (one or several) if given; equal ones share the gradient."""
    axes = _of_some("amax", input, axes_of("amax", input, dim))
    return extreme_over(input, axis=axes, keepdims=keepdim, largest=True)


def amin(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element, along `dim` (one or several) if given; equal ones share the gradient."""
    axes = _of_some("amin", input, axes_of("amin", input, dim))
    return extreme_over(input, axis=axes, keepdims=keepdim, largest=False)


def max(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The largest element; with `dim`, (values, indices) along it; with a second tensor, the larger of each two.

    Of equal elements, the first is taken along `dim`; over everything they share the gradient.
    """
    return _extreme("max", input, axis if dim is None else dim, keepdim or keepdims)


def min(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The smallest element; with `dim`, (values, indices) along it; with a second tensor, the smaller of each two.

    Of equal elements, the first is taken along `dim`; over everything they share the gradient.
    """
    return _extreme("min", input, axis if dim is None else dim, keepdim or keepdims)


def argmax(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Where the first largest element is: along `dim` (or `axis`), else in the flattened input."""
    at = _place("argmax", input, axis if dim is None else dim)
    return place_of_largest(input, axis=at, keepdims=keepdim or keepdims)


def argmin(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Where the first smallest element is: along `dim` (or `axis`), else in the flattened input."""
    at = _place("argmin", input, axis if dim is None else dim)
    return place_of_smallest(input, axis=at, keepdims=keepdim or keepdims)


def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """The indices that sort along `dim`; the sort is stable in any case."""
    at = axis_of("argsort", input, dim)
    if not shape_of(input):
        return reshape(sorting_order(reshape(input, 1), axis=at, descending=descending), ())
    return sorting_order(input, axis=at, descending=descending)


def sort(input: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> ValuesAndIndices:
    """(values, indices) sorted along `dim`; equal elements keep their order."""
    order = argsort(input, dim, descending)
    return ValuesAndIndices(gather(input, dim, order), order)


def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:
    """(values, indices) of the k largest (or smallest) elements along `dim`, sorted in any case."""
    at = axis_of("topk", input, dim)
    count = (extents(input) or (1,))[at]
    if not 0 <= k <= count:
        raise ValueError(f"topk: k must be in [0, {count}] for a tensor of shape {shape_of(input)}, got {k}")
    order = argsort(input, dim, descending=largest)
    if shape_of(input):
        order = order[along(at, slice(0, k))]
    return ValuesAndIndices(gather(input, dim, order), order)


def _extreme(name: str, input: Any, dim: Any, keepdim: bool) -> Any:
    """What `max` and `min` do."""
    of_all, of_two, place = (amax, maximum, place_of_largest) if name == "max" else (amin, minimum, place_of_smallest)
    if isinstance(dim, Tensor | np.ndarray):
        return of_two(input, dim)
    if dim is None:
        return of_all(input, None, keepdim)
    at = _place(name, input, dim)
    if at is None:  # a 0-d input
        return ValuesAndIndices(reshape(input, ()), place(input, axis=None, keepdims=False))
    order = place(input, axis=at, keepdims=True)
    values = gather(input, at, order)
    if keepdim:
        return ValuesAndIndices(values, order)
    return ValuesAndIndices(squeeze(values, at), squeeze(order, at))


def _place(name: str, input: Any, dim: Any) -> int | None:
    axes = None if dim is None else (axis_of(name, input, dim),)
    _of_some(name, input, axes)
    return axes[0] if axes is not None and len(shape_of(input)) else None


def _of_some(name: str, input: Any, axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The axes; ValueError if there is nothing along them to compare."""
    shape = extents(input)
    if 0 in shape and any(n == 0 and (axes is None or i in axes) for i, n in enumerate(shape)):
        raise ValueError(f"{name}: there must be an element to choose from, got shape {shape} and dim={axes}")
    return axes
