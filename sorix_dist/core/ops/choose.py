"""Elements chosen by a condition or by size: where, clamp, triangles, the largest, and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.arguments import named
from sorix_dist.core.capture import host, of_shapes
from sorix_dist.core.dtype import common_dtype
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import along, along_axis, axes_of, axis_of, with_ones
from sorix_dist.core.ops.indexing import gather
from sorix_dist.core.ops.shape import extents, reshape, squeeze
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.rules import aligned_operands, bare, whole, whole_sums
from sorix_dist.core.tensor import Array, Tensor, ndarray_of, shape_of


@op(promote="common", rule=rules.choosing, called="where")
def select(x: Any, y: Any, *, condition: Any) -> Any:
    """Elements of x where `condition`, an array of bools, is true, of y elsewhere."""
    return np.where(condition, x, y), (
        lambda g, out: np.where(condition, g, 0),
        lambda g, out: np.where(condition, 0, g),
    )


def where(condition: Any, x: Any, y: Any) -> Any:
    """Elements of x where the condition, of bools, is true, of y elsewhere; all three broadcast."""
    if ndarray_of(condition).dtype != np.bool_:
        raise TypeError(f"where: condition must hold bools, got {ndarray_of(condition).dtype}; compare it, as by != 0")
    if isinstance(x, int | float) and isinstance(y, int | float):
        x = _number(x, common_dtype((x, y)))
    if all(shard_of(operand) is None for operand in (condition, x, y)):
        return select(x, y, condition=ndarray_of(whole(condition, "where")))
    operands, place = aligned_operands("where", whole_sums((condition, x, y), "where"))
    condition, x, y = map(bare, operands)
    return tagged(select(x, y, condition=ndarray_of(condition)), place)


def _extremum(name: str, ufunc: np.ufunc, wins: np.ufunc, meaning: str) -> Any:
    """The operation that takes x where `wins(x, y)`, y where `wins(y, x)`; equal elements share the gradient."""

    def of_two(x: Any, y: Any) -> Any:
        return ufunc(x, y), (
            lambda g, out: np.where(x == y, g * 0.5, np.where(wins(x, y), g, 0)),
            lambda g, out: np.where(x == y, g * 0.5, np.where(wins(x, y), 0, g)),
        )

    return op(numpy=ufunc, promote="common")(named(of_two, name, meaning))


maximum = _extremum("maximum", np.maximum, np.greater, "The larger of two elements; equal ones share the gradient.")
minimum = _extremum("minimum", np.minimum, np.less, "The smaller of two elements; equal ones share the gradient.")


@op(promote="common", called="clamp")
def clamp_between(x: Any, low: Any, high: Any) -> Any:
    """x, but at least `low` and at most `high` (None: no bound); on a bound the gradient is x's."""
    value = x if low is None else np.maximum(x, low)
    value = value if high is None else np.minimum(value, high)

    def to_x(g: Any, out: Any) -> Any:
        outside = False if low is None else x < low
        return np.where(outside if high is None else (x > high) | outside, 0, g)

    def to_low(g: Any, out: Any) -> Any:
        return np.where(x < low if high is None else (x < low) & (low < high), g, 0)

    def to_high(g: Any, out: Any) -> Any:
        return np.where(x > high if low is None else (x > high) | (high < low), g, 0)

    return value, (to_x, to_low, to_high)


def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """The elements, but at least `min` and at most `max`, numbers or tensors that broadcast."""
    if min is None and max is None:
        raise ValueError("clamp: at least one of min and max must be given, got None for both")
    return clamp_between(input, min, max)


def masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """`input` with `value` wherever `mask`, which broadcasts to it, is true; the dtype stays."""
    flags = ndarray_of(mask)
    if flags.dtype != np.bool_:
        raise TypeError(f"masked_fill: mask must hold bools, got dtype {flags.dtype}")
    if np.size(value) != 1:
        raise ValueError(f"masked_fill: value must be one number, got shape {shape_of(value)}")
    kind = ndarray_of(input).dtype
    filled = value.astype(kind) if isinstance(value, Tensor) else Tensor.of(_number(value, kind))
    return where(mask if isinstance(mask, Tensor) else flags, filled, input)


@host
def _number(value: Any, kind: Any) -> Array:
    return np.asarray(value).astype(kind).reshape(())


def tril(input: Any, diagonal: int = 0) -> Any:
    """The lower triangle of matrices, up to `diagonal` above the main one; 0 elsewhere."""
    return _triangle("tril", input, lambda rows, columns: np.tri(rows, columns, diagonal, dtype=bool))


def triu(input: Any, diagonal: int = 0) -> Any:
    """The upper triangle of matrices, from `diagonal` above the main one; 0 elsewhere."""
    return _triangle("triu", input, lambda rows, columns: ~np.tri(rows, columns, diagonal - 1, dtype=bool))


def _triangle(name: str, input: Any, mask: Callable[[int, int], Array]) -> Any:
    shape, place = shape_of(input), shard_of(input)
    if len(shape) < 2:
        raise ValueError(f"{name}: input must have at least two dimensions, got shape {shape}")
    if place is not None and place.axis >= len(shape) - 2:  # rows of the batch are rows or columns of the matrix
        input = whole(input, name)
    zero = False if ndarray_of(input).dtype == np.bool_ else 0
    return select(input, zero, condition=of_shapes(mask(*shape_of(input)[-2:])))


class ValuesAndIndices(NamedTuple):
    """Elements, and where along a dimension they were (int64)."""

    values: Tensor
    indices: Tensor


@op(rule=along_axis(None), called="max or min")
def extreme_over(x: Any, *, axis: Any, keepdims: Any, largest: bool) -> Any:
    """The largest (or smallest) element along `axis` (None: of all); equal ones share the gradient."""
    shape = with_ones(x.shape, axis)
    y = (np.max if largest else np.min)(x, axis=axis, keepdims=keepdims)

    def to_x(g: Any, out: Any) -> Any:
        extreme = x == np.reshape(y, shape)
        return np.where(extreme, np.reshape(g, shape), 0) / np.sum(extreme, axis=axis, keepdims=True)

    return y, (to_x,)


@op(differentiable=False, rule=along_axis(None), called="argmax or argmin")
def extreme_index(x: Any, *, axis: int | None, keepdims: Any, largest: bool) -> Any:
    """The index along `axis` (None: in the flattened input) of the first largest (or smallest) element."""
    return (np.argmax if largest else np.argmin)(x, axis=axis, keepdims=keepdims), ()


@op(differentiable=False, rule=along_axis(False), called="cummax or cummin")
def running_index(x: Any, *, axis: int, largest: bool) -> Any:
    """The index along `axis` of the last largest (or smallest) element up to each, of NaN if there was one."""
    extreme = (np.maximum if largest else np.minimum).accumulate(x, axis=axis)
    steps = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.maximum.accumulate(np.where((x == extreme) | (x != x), steps, 0), axis=axis), ()


@op(differentiable=False, rule=along_axis(False), called="argsort")
def sorting_order(x: Any, *, axis: int, descending: bool) -> Any:
    """The indices that sort along `axis`; equal elements keep their order."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable"), ()
    backwards = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - backwards, ()


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


def _axis(name: str, input: Any, dim: Any) -> int | None:
    axes = None if dim is None else (axis_of(name, input, dim),)
    _refuse_empty(name, input, axes)
    return axes[0] if axes is not None and len(shape_of(input)) else None


def _refuse_empty(name: str, input: Any, axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The axes; ValueError if there is nothing along them to compare."""
    shape = extents(input)
    if 0 in shape and any(n == 0 and (axes is None or i in axes) for i, n in enumerate(shape)):
        raise ValueError(f"{name}: there must be an element to choose from, got shape {shape} and dim={axes}")
    return axes


def _extremes(largest: bool) -> Any:
    """amax, max and argmax, or amin, min and argmin."""
    name, large, of_two = ("max", "larg", maximum) if largest else ("min", "small", minimum)

    def over(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        axes = _refuse_empty(f"a{name}", input, axes_of(f"a{name}", input, dim, empty_is_all=True))
        return extreme_over(input, axis=axes, keepdims=keepdim, largest=largest)

    def index_of(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
        at = _axis(f"arg{name}", input, axis if dim is None else dim)
        return extreme_index(input, axis=at, keepdims=keepdim or keepdims, largest=largest)

    def extreme(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
        dim, keepdim = axis if dim is None else dim, keepdim or keepdims
        if isinstance(dim, Tensor | np.ndarray):
            return of_two(input, dim)
        if dim is None:
            return over(input, None, keepdim)
        at = _axis(name, input, dim)
        order = extreme_index(input, axis=at, keepdims=at is not None, largest=largest)
        if at is None:  # a 0-d input
            return ValuesAndIndices(reshape(input, ()), order)
        values = gather(input, at, order)
        if keepdim:
            return ValuesAndIndices(values, order)
        return ValuesAndIndices(squeeze(values, at), squeeze(order, at))

    meaning = f"""The {large}est element; with `dim`, (values, indices) along it; with a second tensor, the {large}er
    of each two.

    Of equal elements, the first is taken along `dim`; over everything they share the gradient.
    """
    alone = f"The {large}est element, along `dim` (one or several) if given; equal ones share the gradient."
    where = f"The index of the first {large}est element along `dim` (or `axis`), else in the flattened input."
    return named(over, f"a{name}", alone), named(extreme, name, meaning), named(index_of, f"arg{name}", where)


amax, max, argmax = _extremes(True)
amin, min, argmin = _extremes(False)
