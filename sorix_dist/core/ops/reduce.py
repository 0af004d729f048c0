"""Many elements into one: sums, means, variances, products, norms; and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import numpy as np

from sorix_dist.core.arguments import named
from sorix_dist.core.batch_numbers import of_all
from sorix_dist.core.capture import host
from sorix_dist.core.deferred import deferred
from sorix_dist.core.op import op
from sorix_dist.core.ops.axes import after_reduction, along, along_axis, axes_of, axis_of, normalized_axes, with_ones
from sorix_dist.core.ops.choose import amax, amin
from sorix_dist.core.ops.elementwise import abs as absolute
from sorix_dist.core.ops.elementwise import add, cast, eq, half_in_float32, mul, ne, power, root, sign, square, sub
from sorix_dist.core.ops.indexing import take
from sorix_dist.core.ops.shape import extents, reshape, reshape_to, unsqueeze
from sorix_dist.core.placement import SUM, Partial, Shard, shard_of, tagged
from sorix_dist.core.rules import Answer, Apply, Inputs, Options, collective, linear_place, whole
from sorix_dist.core.sums import scaled_sum, sum_in_blocks
from sorix_dist.core.tensor import Array, Tensor, shape_of


def sum_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """A sum along axes: over rows it is a Partial."""
    x, place = inputs[0], inputs[0].place
    if not isinstance(place, Shard):
        return linear_place(place)
    axes = normalized_axes(options["axis"], x.array.ndim)
    if place.axis not in axes:
        return after_reduction(place, axes, options["keepdims"])
    if place.group.ordered:
        return _summed_in_order(x, axes, options["keepdims"], None, SUM)
    return place.batch.partial(SUM)


def mean_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """A mean along axes: over rows it is a sum divided by the global number of elements."""
    x, place = inputs[0], inputs[0].place
    axes = normalized_axes(options["axis"], x.array.ndim)
    if not isinstance(place, Shard) or place.axis not in axes:
        return sum_rule(apply, inputs, options)
    held, total = counts(x, axes)
    if place.group.ordered:
        x = x if x.array.dtype.kind == "f" else cast(x, np.float32)
        return _summed_in_order(x, axes, options["keepdims"], total, place.rows.total)
    if options.get("count") is None:
        return apply(x, **{**options, "count": total})
    return place.batch.partial(place.rows.total, options["count"] / held if held else 0.0)


def divided_rule(apply: Apply, inputs: Inputs, options: Options) -> Answer:
    """A sum of all elements, divided by a `divisor` over the whole batch; `held` is this rank's share of that."""
    x, place = inputs[0], inputs[0].place
    if place.__class__ is not Shard:
        return linear_place(place)
    divisor, held, denominator = options["divisor"], options["held"], options.get("denominator")
    if denominator is None:
        denominator = (place.batch.known or place.rows).total
    if place.group.ordered:
        return _summed_in_order(x, tuple(range(x.array.ndim)), False, divisor, denominator)
    if divisor.__class__ is float:
        return place.batch.partial(denominator, _ratio(divisor, held))
    return place.batch.partial(denominator, divisor / held if held else 0.0)


@host
def _ratio(divisor: float, held: float) -> float:
    return divisor / held if held else 0.0


def _summed_in_order(
    x: Tensor, axes: tuple[int, ...], keepdims: Any, divisor: float | None, denominator: float
) -> Tensor:
    shape, place = x.array.shape, x.place
    assert isinstance(place, Shard)
    total = collective().add_up(x, with_ones(shape, axes), divisor)
    if not keepdims:
        total = reshape_to(total, shape=tuple(n for i, n in enumerate(shape) if i not in axes))
    return tagged(total, place.batch.partial(denominator))


def counts(x: Any, axes: tuple[int, ...] | None = None) -> tuple[int, int]:
    """The number of elements along the axes (None: all) on this rank, and in the global batch."""
    shape, everywhere = shape_of(x), extents(x)
    axes = tuple(range(len(shape))) if axes is None else axes
    return math.prod(shape[axis] for axis in axes), math.prod(everywhere[axis] for axis in axes)


@op(rule=sum_rule, called="sum")
def sum_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The sum along `axis` (None: over everything), in x's own dtype; of bools and integers in int64."""
    shape, ones = x.shape, _with_ones(x, axis)
    value = sum_in_blocks(x if x.dtype.kind == "f" else x.astype(np.int64), axis, keepdims)
    return value, (lambda g, out: np.broadcast_to(np.reshape(g, ones), shape),)


@op(rule=mean_rule, called="mean")
def mean_over(x: Any, *, axis: Any, keepdims: Any, count: int | None = None) -> Any:
    """The mean along `axis` (None: over everything), in x's own dtype, of integers in float32; NaN of no elements.

    count: of the elements, if these are not all.
    """
    shape, ones = x.shape, _with_ones(x, axis)
    if count is None:
        count = math.prod(n for n, k in zip(shape, ones, strict=True) if k == 1)
    half, integers = x.dtype == np.float16, x.dtype.kind != "f"
    total = sum_in_blocks(x.astype(np.float32) if half or integers else x, axis, keepdims)
    value = total / count if count else total * np.nan
    value = value.astype(np.float16) if half else value
    turned = np.ndim(value) > 1 and value.flags.fnc

    def to_x(g: Any, out: Any) -> Any:
        each = g / count if count else g
        # Same memory order as x: a product of the two then reads both arrays sequentially.
        each = np.asfortranarray(each) if turned and not isinstance(each, Tensor) else each
        return np.broadcast_to(np.reshape(each, ones), shape)

    return value, (to_x,)


@op(rule=divided_rule, called="mean")
def sum_divided(x: Any, *, divisor: float, held: float, denominator: float | None = None) -> Any:
    """The sum of all elements divided by `divisor`, 0 if that is 0; `held` is this rank's share of the divisor.

    denominator: see `core.placement.Partial`; needed if not every row counts the same.
    """
    shape, ones = x.shape, (1,) * x.ndim
    scale = 1 / divisor if divisor else 0.0

    def to_x(g: Any, out: Any) -> Any:
        each = g * scale
        if isinstance(each, Tensor):
            return np.broadcast_to(np.reshape(each, ones), shape)
        return np.ndarray(shape, each.dtype, each, strides=(0,) * len(shape))  # the same in a tenth of the time

    return scaled_sum(x, scale), (to_x,)


def batch_mean(x: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The sum of all elements divided by how many there are in the global batch along `axes` (None: all); 0 of none."""
    held, total = counts(x, axes)
    return sum_divided(x, divisor=total, held=held)


def weighted_mean(x: Any, weights: Array) -> Any:
    """The sum of x divided by the sum of the weights over the global batch; 0 if that is 0.

    x: values times weights.
    """
    held, place = global_sum(weights, None), shard_of(x)
    if place is not None and place.group.isolated:
        parts = sum_divided(x, divisor=1, held=1, denominator=SUM), Tensor.of(np.asarray(held))
        return deferred(_quotient, tuple(tagged(part, place.batch.partial(SUM)) for part in parts), {})
    total = global_sum(weights, x)
    return sum_divided(x, divisor=total, held=held, denominator=total)


def _quotient(x: Tensor, weight: Tensor) -> Tensor:
    """A sum divided by that of its weights; 0 if that is 0."""
    denominator = float(weight.array)
    mean: Tensor = mul(x, 1 / denominator if denominator else 0.0)
    return tagged(
        mean, Partial(x.place.group, denominator, 1.0, x.place.held) if isinstance(x.place, Partial) else None
    )


@host
def global_sum(numbers: Array, like: Any) -> float:
    """The sum of numbers, one or several for each row of a tensor `like`, over the global batch."""
    place = shard_of(like)
    if place is None:
        return float(np.sum(numbers, dtype=np.float64))
    if place.group.ordered:
        each = len(numbers) // max(1, place.batch.held)

        def of_some(rows: Any) -> Array:
            start, stop = place.batch.local(rows.start, rows.stop)
            return np.asarray(np.sum(numbers[start * each : stop * each], dtype=np.float64)).reshape(1)

        return float(place.group.add_up(of_some, place.batch.whole.rows)[0])
    total = np.array([np.sum(numbers, dtype=np.float64)])
    return float(place.group.reduce(total, "a mean over the weights or labels of all rows")[0])


def _product(x: Any, *, axis: int) -> Any:
    factors = [take(x, index=along(axis, i)) for i in range(x.shape[axis])]
    return reduce(mul, factors) if factors else add(sum_over(x, axis=axis, keepdims=False), 1)


@op(composite=_product, rule=along_axis(True), called="prod")
def product_over(x: Any, *, axis: int) -> Any:
    """The product along `axis`; its gradient is right where elements are 0, as it divides by none."""

    def before_each(x: Array) -> Array:
        ones = np.ones_like(x[along(axis, slice(0, 1))])
        return np.cumprod(np.concatenate([ones, x[along(axis, slice(0, -1))]], axis), axis)

    def to_x(g: Any, out: Any) -> Any:
        after = np.flip(before_each(np.flip(x, axis)), axis)
        return np.expand_dims(g, axis) * before_each(x) * after

    return np.prod(x, axis=axis, dtype=None if x.dtype.kind == "f" else np.int64), (to_x,)


@op(rule=along_axis(False), called="cumsum")
def cumulative_sum(x: Any, *, axis: int) -> Any:
    """The sums of all elements up to each along `axis`."""
    kind = x.dtype if x.dtype.kind == "f" else np.int64
    return np.cumsum(x, axis=axis, dtype=kind), (lambda g, out: np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis),)


def sum(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The sum of the elements, along `axis` (or `dim`) if given."""
    return sum_over(X, axis=axes_of("sum", X, dim, axis, empty_is_all=True), keepdims=keepdims or keepdim)


def mean(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None, keepdim: bool = False) -> Any:
    """The mean of the elements, along `axis` (or `dim`) if given; of no elements NaN.

    Over rows of a batch it is that over the global batch.
    """
    return mean_over(X, axis=axes_of("mean", X, dim, axis, empty_is_all=True), keepdims=keepdims or keepdim)


def _widened(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of float16, whose squares and powers overflow, computed in float32; integers are float32 too."""
    of_floats = half_in_float32(function)

    @wraps(function)
    def wide(x: Any, *arguments: Any, **options: Any) -> Any:
        kind = x.array.dtype.kind if isinstance(x, Tensor) else np.asarray(x).dtype.kind
        return of_floats(x if kind == "f" else cast(x, np.float32), *arguments, **options)

    return wide


def _spread(name: str, of_variance: Callable[[Any], Any], meaning: str) -> Any:
    def spread(
        X: Any,
        axis: Any = None,
        *ambiguous: Any,
        dim: Any = None,
        keepdims: Any = False,
        keepdim: bool = False,
        unbiased: bool = True,
        correction: float | None = None,
    ) -> Any:
        if ambiguous:
            raise TypeError(
                f"{name}: give unbiased and keepdims by keyword: in their position PyTorch and NumPy mean different "
                "things"
            )
        if isinstance(axis, bool):  # var(x, unbiased) of PyTorch
            axis, correction = None, int(axis)
        axes = axes_of(name, X, dim, axis, empty_is_all=True)
        centred = square(sub(X, mean_over(X, axis=axes, keepdims=True)))
        count = counts(X, axes)[1]
        divisor = count - (int(unbiased) if correction is None else correction)
        scale = 1 / divisor if divisor > 0 else math.inf if count > 1 else math.nan
        return of_variance(mul(sum_over(centred, axis=axes, keepdims=keepdims or keepdim), scale))

    return _widened(named(spread, name, meaning))


var = _spread(
    "var",
    lambda x: x,
    """The sum of squared distances from the mean, divided by the number of elements minus `correction`.

    correction: 1 by default (Bessel's), 0 with `unbiased=False`. If that is not positive, infinite, or NaN of equal
        elements.
    """,
)
std = _spread("std", root, "The square root of `var`, with the same arguments; its gradient at 0 is 0.")


def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The product of the elements, along `dim` (or `axis`) if given."""
    dim = axis if dim is None else dim
    if dim is None:
        product = product_over(reshape(whole(input, "prod"), -1), axis=0)
        return reshape(product, (1,) * len(shape_of(input))) if keepdim or keepdims else product
    at = axis_of("prod", input, dim)
    if not shape_of(input):
        return product_over(reshape(input, 1), axis=0)
    value = product_over(input, axis=at)
    return unsqueeze(value, at) if keepdim or keepdims else value


def cumsum(input: Any, dim: Any = None, *, axis: Any = None) -> Any:
    """The sums of all elements up to each along `dim` (or `axis`)."""
    dim = axis if dim is None else dim
    if dim is None:
        raise TypeError("cumsum: dim must be given")
    at = axis_of("cumsum", input, dim)
    return cumulative_sum(input, axis=at) if shape_of(input) else sum_over(input, axis=None, keepdims=False)


@_widened
def norm(input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Any:
    """The p-norm of the elements, along `dim` if given: (sum |x|^p)^(1/p); p may be "fro" (2), inf or -inf."""
    axes, p = axes_of("norm", input, dim, axis, empty_is_all=True), of_all(p)
    if p in ("fro", 2, None):
        return root(sum_over(square(input), axis=axes, keepdims=keepdim))
    if not isinstance(p, int | float):
        raise ValueError(f"norm: p must be a number, inf or 'fro', got {p!r}")
    sizes = absolute(input)
    if math.isinf(p):
        return (amax if p > 0 else amin)(sizes, axes, keepdim)
    if p == 0:
        return sum_over(mul(sign(sizes), sign(sizes)), axis=axes, keepdims=keepdim)
    if p == 1:
        return sum_over(sizes, axis=axes, keepdims=keepdim)
    return power(sum_over(power(sizes, exponent=p), axis=axes, keepdims=keepdim), exponent=1 / p)


def _with_ones(x: Array, axis: Any) -> tuple[int, ...]:
    """The shape that a reduction of x along NumPy's `axis` has with keepdims=True."""
    return with_ones(x.shape, normalized_axes(axis, x.ndim))


def _flags(flags: Any, x: Any) -> Any:
    """Bools, as uint8 of a tensor of uint8, which held bools in early versions of PyTorch."""
    return flags.astype(np.uint8) if x.dtype == np.uint8 else flags


@op(differentiable=False, rule=along_axis(None), called="all")
def all_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """Whether all elements along `axis` (None: all of them) are not 0."""
    return _flags(np.all(x, axis=axis, keepdims=keepdims), x), ()


@op(differentiable=False, rule=along_axis(None), called="any")
def any_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """Whether an element along `axis` (None: of all) is not 0."""
    return _flags(np.any(x, axis=axis, keepdims=keepdims), x), ()


def all(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether all elements, along `dim` (or `axis`) if given, are not 0."""
    axes, keepdims = axes_of("all", input, dim, axis), keepdim or keepdims
    if _counts_rows(input, axes):
        return eq(sum_over(eq(input, 0), axis=axes, keepdims=keepdims), 0)
    return all_over(input, axis=axes, keepdims=keepdims)


def any(input: Any, dim: Any = None, keepdim: bool = False, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether at least one element, along `dim` (or `axis`) if given, is not 0."""
    axes, keepdims = axes_of("any", input, dim, axis), keepdim or keepdims
    if _counts_rows(input, axes):
        return ne(sum_over(ne(input, 0), axis=axes, keepdims=keepdims), 0)
    return any_over(input, axis=axes, keepdims=keepdims)


def _counts_rows(input: Any, axes: tuple[int, ...] | None) -> bool:
    """Whether a reduction of flags is over rows of several ranks, which then send a count instead of the rows."""
    rows = shard_of(input)
    if rows is None or rows.group.has_all or input.array.dtype == np.uint8:
        return False
    return axes is None or rows.axis in axes
