"""PyTorch's functions of many numbers: running products, medians, counts, searches, draws, and what mends numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from sorix_dist.core import functions as f
from sorix_dist.core import random
from sorix_dist.core.algebra import in_one_dtype
from sorix_dist.core.arguments import named, raise_for_device
from sorix_dist.core.batch_numbers import of_all
from sorix_dist.core.capture import outside
from sorix_dist.core.create import number_of, randn_like
from sorix_dist.core.dtype import as_dtype
from sorix_dist.core.ops.axes import axis_of
from sorix_dist.core.ops.choose import ValuesAndIndices, running_index
from sorix_dist.core.ops.elementwise import trunc
from sorix_dist.core.placement import REPLICATE, Shard, shard_of, tagged
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Array, Tensor, array_of, as_array, shape_of


def _all(input: Any, name: str) -> Array:
    """The numbers of all rows of the batch, without a gradient."""
    outside(f"{name} can't be captured")
    return as_array(whole(input.detach() if isinstance(input, Tensor) else input, name))


def _counted(array: Array, input: Any) -> Tensor:
    """What was found in `input`: in rows of a batch the same on every rank."""
    return tagged(Tensor(array), None if getattr(input, "place", None) is None else REPLICATE)


# -- of one element


def lerp(input: Any, end: Any, weight: Any) -> Any:
    """input + weight * (end - input)."""
    return f.add(input, f.mul(f.sub(end, input), weight))


def _of_two(name: str, chosen: Callable[[Any, Any], Any], meaning: str) -> Callable[[Any, Any], Any]:
    def function(input: Any, other: Any) -> Any:
        x, y = in_one_dtype(input, other)
        return f.where(f.logical_or(chosen(x, y), f.isnan(y)), x, y)

    return named(function, name, meaning)


fmax = _of_two("fmax", f.ge, "The larger of two elements, or the one that is no NaN.")
fmin = _of_two("fmin", f.le, "The smaller of two elements, or the one that is no NaN.")


def clamp_min(input: Any, min: Any) -> Any:
    """Elements below `min` become that."""
    return f.clamp(input, min)


def clamp_max(input: Any, max: Any) -> Any:
    """Elements above `max` become that."""
    return f.clamp(input, max=max)


def deg2rad(input: Any) -> Any:
    """Degrees in radians."""
    return f.mul(input, math.pi / 180)


def rad2deg(input: Any) -> Any:
    """Radians in degrees."""
    return f.mul(input, 180 / math.pi)


def frac(input: Any) -> Any:
    """The fractional part, with the sign of the number."""
    return f.sub(input, trunc(input))


def xlogy(input: Any, other: Any) -> Any:
    """input * log(other), 0 where input is 0 and other no NaN."""
    input, other = in_one_dtype(input, other, to_float=True)
    nothing = (input == 0) & ((other <= 0) | (other == math.inf))
    return f.where(nothing, 0.0, f.mul(input, f.log(f.where(nothing, 1.0, other))))


def logit(input: Any, eps: float | None = None) -> Any:
    """log(x / (1 - x)), of x between eps and 1 - eps if that is given."""
    x = input if input.is_floating_point() else input.float()
    x = x if eps is None else x.clamp(eps, 1 - eps)
    return f.log(f.div(x, f.sub(1, x)))


def nan_to_num(input: Any, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Any:
    """Replaces NaN and infinities by numbers: by default 0, and the largest and lowest of the dtype."""
    if array_of(input).dtype.kind != "f":
        return input.clone()
    limits = np.finfo(array_of(input).dtype)
    x = f.where(f.isnan(input), 0.0 if nan is None else nan, input)
    x = f.where(x == math.inf, float(limits.max if posinf is None else posinf), x)
    return f.where(x == -math.inf, float(limits.min if neginf is None else neginf), x)


def isclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |input - other| <= atol + rtol * |other|, element by element."""
    return Tensor(np.asarray(np.isclose(_all(input, "isclose"), _all(other, "isclose"), rtol, atol, equal_nan)))


def isposinf(input: Any) -> Any:
    """Where elements are infinite and positive."""
    return f.logical_and(f.isinf(input), f.gt(input, 0))


def isneginf(input: Any) -> Any:
    """Where elements are infinite and negative."""
    return f.logical_and(f.isinf(input), f.lt(input, 0))


def float_power(input: Any, exponent: Any) -> Any:
    """input ** exponent in float64."""
    base, power = (x.double() if isinstance(x, Tensor) else x for x in (input, exponent))
    return f.pow(base if isinstance(base, Tensor) else f.tensor(base, dtype="float64"), power)


# -- along a dimension


def cumprod(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """The products of all elements up to each along `dim`; integers in int64."""
    at, place = axis_of("cumprod", input, dim), shard_of(input)
    kind = as_dtype(dtype) if dtype is not None else array_of(input).dtype
    x = input.astype(kind if kind.kind == "f" or dtype is not None else np.int64)
    x = whole(x, "cumprod") if place is None or place.axis == at else x
    if not shape_of(x) or not x.shape[at]:
        return x.clone()
    if not x.requires_grad and place is None:
        return Tensor(np.cumprod(x.array, at, dtype=array_of(x).dtype))
    return f.stack(list(accumulate(f.unbind(x, at), f.mul)), at)


def _running(name: str, word: str) -> Callable[[Any, int], Any]:
    def running(input: Any, dim: int) -> Any:
        at = axis_of(name, input, dim)
        if not shape_of(input):
            return ValuesAndIndices(input.clone(), f.tensor(0))
        index = running_index(input, axis=at, largest=name == "cummax")
        return ValuesAndIndices(f.gather(input, at, index), index)

    meaning = f"(values, indices) of the {word} of all elements up to each along `dim`"
    return named(running, name, f"{meaning}, of equal ones the last; NaN after a NaN.")


cummax, cummin = _running("cummax", "largest"), _running("cummin", "smallest")


def median(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median, of an even number of elements the lower one; with `dim`, (values, indices) along it; NaN of NaN."""
    if dim is None:
        x = whole(input, "median").reshape(-1)
        value = median(x.detach(), 0).values
        if f.isnan(value).item() or array_of(x).dtype.kind != "f":
            return value
        return f.amax(f.where(x == value, x, -math.inf))  # equal ones share the gradient
    at, place = axis_of("median", input, dim), shard_of(input)
    input = whole(input, "median") if place is not None and place.axis == at else input
    shape = shape_of(input)
    if not shape:
        return ValuesAndIndices(input.clone(), f.tensor(0))
    if not shape[at]:
        raise IndexError(f"median: there must be an element to choose along dim {at}, got shape {shape}")
    index = f.argsort(input, at).select(at, (shape[at] - 1) // 2)
    missing = f.isnan(input)
    index = f.unsqueeze(f.where(missing.any(at), missing.byte().argmax(at), index), at)
    values = f.gather(input, at, index)
    return ValuesAndIndices(*((values, index) if keepdim else (values.squeeze(at), index.squeeze(at))))


def aminmax(input: Any, *, dim: int | None = None, keepdim: bool = False) -> tuple[Any, Any]:
    """(the smallest, the largest) element, along `dim` if given."""
    return f.amin(input, dim, keepdim), f.amax(input, dim, keepdim)


def var_mean(input: Any, dim: Any = None, **options: Any) -> tuple[Any, Any]:
    """(var, mean) with the same arguments."""
    over = None if isinstance(dim, bool) else dim
    return f.var(input, dim, **options), f.mean(input, over, keepdim=options.get("keepdim", False))


def std_mean(input: Any, dim: Any = None, **options: Any) -> tuple[Any, Any]:
    """(std, mean) with the same arguments."""
    over = None if isinstance(dim, bool) else dim
    return f.std(input, dim, **options), f.mean(input, over, keepdim=options.get("keepdim", False))


def nansum(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The sum of the elements that are not NaN."""
    return f.sum(f.where(f.isnan(input), 0, input), dim, keepdim)


def nanmean(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The mean of the elements that are not NaN."""
    return f.div(nansum(input, dim, keepdim), f.sum(f.logical_not(f.isnan(input)), dim, keepdim))


def count_nonzero(input: Any, dim: Any = None) -> Any:
    """The number of elements that are not 0, along `dim` if given."""
    return f.sum(input != 0, dim)


def dist(input: Any, other: Any, p: float = 2) -> Any:
    """The p-norm of input - other."""
    return f.sub(input, other).norm(p)


# -- found and counted


def nonzero(input: Any, *, as_tuple: bool = False) -> Any:
    """The indices (n, dimensions) of the elements that are not 0, or a tuple of one vector for each dimension."""
    array = _all(input, "nonzero")
    found = np.nonzero(np.atleast_1d(array)) if as_tuple else (np.argwhere(array),)
    tensors = tuple(_counted(x, input) for x in found)
    return tensors if as_tuple else tensors[0]


def unique(
    input: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The different elements (slices along `dim`), sorted; with the index of each element's own, and with counts."""
    array = _all(input, "unique")
    values, inverse, counts = np.unique(array, return_inverse=True, return_counts=True, axis=dim, equal_nan=False)
    inverse = inverse.reshape(array.shape if dim is None else -1)
    wanted = [values, *([inverse] if return_inverse else []), *([counts] if return_counts else [])]
    return _counted(values, input) if len(wanted) == 1 else tuple(_counted(x, input) for x in wanted)


def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Tensor:
    """The counts of the integers 0, 1, ... in a vector, or the sums of their weights; at least `minlength` entries."""
    array = _all(input, "bincount")
    if array.ndim != 1 or array.dtype.kind not in "iub" or (array.size and array.min() < 0):
        raise ValueError(f"bincount: input must be a vector of integers >= 0, got {array.dtype} of shape {array.shape}")
    counts = np.bincount(array, None if weights is None else _all(weights, "bincount"), minlength)
    kind = np.float32 if weights is not None and as_array(weights).dtype == np.float32 else counts.dtype
    return _counted(counts.astype(kind), input)


def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is one of `test_elements`."""
    return Tensor(np.asarray(np.isin(_all(elements, "isin"), _all(test_elements, "isin"), assume_unique, invert)))


def searchsorted(
    sorted_sequence: Any,
    values: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Tensor:
    """The indices to insert values into a sorted vector: before equal elements, or behind them if `right`.

    Of several vectors (..., n) each has values (..., m) of its own. sorter: their argsort, if they are not sorted.
    """
    sequences, wanted = _all(sorted_sequence, "searchsorted"), _all(values, "searchsorted")
    if sequences.ndim != 1 and sequences.shape[:-1] != wanted.shape[:-1]:
        raise ValueError(
            f"searchsorted: sorted_sequence {sequences.shape} must be a vector or like values {wanted.shape}, but for "
            "the last dimension"
        )
    if sorter is not None:
        sequences = np.take_along_axis(sequences, _all(sorter, "searchsorted"), -1)
    indices = np.empty(wanted.shape, np.int32 if out_int32 else np.int64)
    for row in np.ndindex(sequences.shape[:-1]):
        indices[row] = np.searchsorted(sequences[row], wanted[row], side or ("right" if right else "left"))  # type: ignore[call-overload]
    return Tensor(indices)


def bucketize(input: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """The number of the bucket that each element falls into, between sorted boundaries."""
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


# -- drawn at random


def multinomial(input: Any, num_samples: int, replacement: bool = False) -> Tensor:
    """`num_samples` indices drawn by the weights in a vector, or in each row of a matrix."""
    place, num_samples = shard_of(input), of_all(num_samples)
    if place is not None and (place.axis or len(shape_of(input)) == 1):
        place = None  # one draw among all rows
    weights = (_all(input, "multinomial") if place is None else np.asarray(input.array)).astype(np.float64)
    rows = np.atleast_2d(weights)
    if weights.ndim not in (1, 2) or not np.isfinite(rows).all() or (rows < 0).any() or (rows.sum(1) <= 0).any():
        raise ValueError("multinomial: input must hold finite weights >= 0 with a positive sum in each row")
    if not replacement and num_samples > (rows > 0).sum(1).min(initial=num_samples):
        raise ValueError(f"multinomial: {num_samples} samples without replacement need that many weights above 0")
    chances = rows / rows.sum(1, keepdims=True)
    if place is not None:
        return tagged(Tensor.of(_drawn_by_row(chances, num_samples, replacement, place)), place)
    generator = random.generator()
    drawn = [generator.choice(len(row), num_samples, replacement, row) for row in chances]
    found = Tensor(np.array(drawn, np.int64).reshape(*weights.shape[:-1], num_samples))
    return found if shard_of(input) is None else tagged(found, REPLICATE)


def _drawn_by_row(chances: Array, count: int, replacement: bool, place: Shard) -> Array:
    """`count` indices for each row: where the distribution passes a number, or, without replacement, the first of
    exponential times (Efraimidis and Spirakis 2006)."""
    if replacement:
        passed = np.cumsum(chances, axis=1)
        passed /= passed[:, -1:]
        return np.asarray((passed[:, None] <= random.uniform_by_row((len(chances), count), place)[..., None]).sum(2))
    with np.errstate(divide="ignore"):
        times = -np.log1p(-random.uniform_by_row(chances.shape, place)) / chances
    return np.argsort(times, axis=1)[:, :count]


def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, dtype: Any = None, device: Any = "cpu") -> Tensor:
    """Numbers drawn from normal distributions, of the shape that `mean` and `std` broadcast to, or of `size`."""
    shape = np.broadcast_shapes(shape_of(mean), shape_of(std)) if size is None else tuple(size)
    raise_for_device(device)
    kinds = [np.dtype(np.float32) if dtype is None else as_dtype(dtype)]
    kinds += [array_of(x).dtype for x in (mean, std) if isinstance(x, Tensor)]
    if any(shard_of(x) is not None for x in (mean, std)):
        drawn: Any = randn_like(f.add(mean, std).detach())
    else:
        drawn = Tensor(np.asarray(random.generator().standard_normal(shape, np.float32).astype(kinds[-1])))
    draws: Tensor = f.add(f.mul(drawn, std), mean)
    return draws


def randint_like(input: Any, low: int, high: int | None = None, *, dtype: Any = None, device: Any = "cpu") -> Tensor:
    """Integers drawn uniformly from [low, high), or from [0, low), in the shape and dtype of `input`."""
    raise_for_device(device)
    low, high = map(number_of, (0, low) if high is None else (low, high))
    rows, kind = shard_of(input), as_array(input).dtype if dtype is None else as_dtype(dtype)
    if rows is None:
        return Tensor(np.asarray(random.generator().integers(low, high, shape_of(input))).astype(kind))
    drawn = low + np.floor(random.uniform_by_row(shape_of(input), rows) * (high - low))
    return tagged(Tensor.of(drawn.astype(kind)), rows)


argwhere = nonzero
__all__ = [
    "aminmax", "argwhere", "bincount", "bucketize", "clamp_max", "clamp_min", "count_nonzero", "cummax", "cummin",
    "cumprod", "deg2rad", "dist", "float_power", "fmax", "fmin", "frac", "isclose", "isin", "isneginf", "isposinf",
    "lerp", "logit", "median", "multinomial", "nan_to_num", "nanmean", "nansum", "nonzero", "normal", "rad2deg",
    "randint_like", "searchsorted", "std_mean", "unique", "var_mean", "xlogy",
]  # fmt: skip
_FUNCTIONS = (
    "bucketize", "isin", "normal", "randint_like", "searchsorted", "std_mean", "var_mean",
)  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {name: globals()[name] for name in __all__ if name not in _FUNCTIONS}
