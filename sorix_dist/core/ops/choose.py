"""One of several elements at each place: where, the larger, the smaller, between bounds, masks and triangles."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import shape_of
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.promote import common_dtype
from sorix_dist.core.rules import bare, together, whole, whole_sums
from sorix_dist.core.tensor import Tensor


@op(promote="common", rule=rules.choosing)
def select(x: Any, y: Any, *, condition: Any) -> Any:
    """Elements of x where `condition`, an array of bools, is true, of y elsewhere."""
    return np.where(condition, x, y), (
        lambda g, out: np.where(condition, g, 0),
        lambda g, out: np.where(condition, 0, g),
    )


def where(condition: Any, x: Any, y: Any) -> Any:
    """Elements of x where the condition holds, of y elsewhere; all three broadcast."""
    if isinstance(x, int | float) and isinstance(y, int | float):
        x = np.asarray(x, common_dtype((x, y)))
    return _selected(condition, x, y)


def _selected(condition: Any, x: Any, y: Any) -> Any:
    """`select` by a condition that may be rows of a batch."""
    if all(shard_of(operand) is None for operand in (condition, x, y)):
        return select(x, y, condition=_array(whole(condition, "where")))
    operands, place = together("where", whole_sums((condition, x, y), "where"))
    condition, x, y = map(bare, operands)
    return tagged(select(x, y, condition=_array(condition)), place)


def _array(x: Any) -> Any:
    return x.array if isinstance(x, Tensor) else np.asarray(x)


@op(numpy=np.maximum, promote="common")
def maximum(x: Any, y: Any) -> Any:
    """The larger of two elements; equal ones share the gradient."""
    return np.maximum(x, y), (
        lambda g, out: np.where(x == y, g * 0.5, np.where(x > y, g, 0)),
        lambda g, out: np.where(x == y, g * 0.5, np.where(x > y, 0, g)),
    )


@op(numpy=np.minimum, promote="common")
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two elements; equal ones share the gradient."""
    return np.minimum(x, y), (
        lambda g, out: np.where(x == y, g * 0.5, np.where(x < y, g, 0)),
        lambda g, out: np.where(x == y, g * 0.5, np.where(x < y, 0, g)),
    )


@op(promote="common")
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
    flags = _array(mask)
    if flags.dtype != np.bool_:
        raise TypeError(f"masked_fill: mask must hold bools, got dtype {flags.dtype}")
    if np.size(value) != 1:
        raise ValueError(f"masked_fill: value must be one number, got shape {shape_of(value)}")
    return _selected(mask if isinstance(mask, Tensor) else flags, value, input)


def tril(input: Any, diagonal: int = 0) -> Any:
    """The lower triangle of matrices, up to `diagonal` above the main one; 0 elsewhere."""
    input = _whole_matrix(input)
    rows, columns = _matrix("tril", input)
    return select(input, 0, condition=np.tri(rows, columns, diagonal, dtype=bool))


def triu(input: Any, diagonal: int = 0) -> Any:
    """The upper triangle of matrices, from `diagonal` above the main one; 0 elsewhere."""
    input = _whole_matrix(input)
    rows, columns = _matrix("triu", input)
    return select(0, input, condition=np.tri(rows, columns, diagonal - 1, dtype=bool))


def _whole_matrix(input: Any) -> Any:
    """The input, gathered if rows of a batch lie along one of its last two dimensions."""
    place = shard_of(input)
    return input if place is None or place.axis < len(shape_of(input)) - 2 else whole(input, "a triangle of a matrix")


def _matrix(name: str, input: Any) -> tuple[int, int]:
    shape = shape_of(input)
    if len(shape) < 2:
        raise ValueError(f"{name}: input must have at least two dimensions, got shape {shape}")
    return shape[-2], shape[-1]
