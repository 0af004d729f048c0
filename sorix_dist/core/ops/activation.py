"""The functions between the layers: of single elements, softmax along one axis, and dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from sorix_dist.core.arguments import in_range
from sorix_dist.core.capture import host
from sorix_dist.core.memory import read_only, scalar
from sorix_dist.core.op import like_input, op
from sorix_dist.core.ops.axes import along_axis, axes_of, axis_of, maxima
from sorix_dist.core.ops.elementwise import add, erf, mul
from sorix_dist.core.ops.shape import reshape, squeeze
from sorix_dist.core.placement import Shard, shard_of
from sorix_dist.core.random import Draws, functional_draws, words_by_row
from sorix_dist.core.tensor import Array, Tensor, as_array, shape_of

_BLOCK = 1 << 16  # elements: some arrays of this size stay in a core's cache during several passes
_FEW = 1 << 10  # elements, whose operation takes less than its call


@op()
def relu(x: Any) -> Any:
    """max(x, 0); the gradient at 0 is 0."""
    y = _positive_part(x)

    def to_x(g: Any, out: Any) -> Any:
        gradient = (y > scalar(0, y.dtype)).astype(g.dtype)
        gradient *= g
        return gradient

    return y, (to_x,)


def _positive_part(x: Any) -> Any:
    if x.dtype.kind != "f":
        return np.maximum(x, 0)
    if x.size <= _FEW:
        return np.maximum(x, scalar(0, x.dtype))
    # NumPy compares numbers with as many zeros three times as fast as with a single one.
    if x.size <= _BLOCK and x.flags.c_contiguous:
        return np.maximum(x, _zeros(x.shape, x.dtype))
    y = np.empty_like(x)
    if y.strides != x.strides:  # x has gaps in memory
        return np.maximum(x, 0)
    numbers, results, zeros = x.ravel("K"), y.ravel("K"), _zeros((_BLOCK,), y.dtype)
    for part in _blocks(y.size):
        some = numbers[part]
        np.maximum(some, zeros[: some.size], out=results[part])
    return y


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """At most _BLOCK zeros, which share their memory."""
    if shape == (_BLOCK,):
        return read_only(np.zeros(shape, dtype))
    return _zeros((_BLOCK,), dtype)[: math.prod(shape)].reshape(shape)


@op(promote="float")
def leaky_relu(x: Any, *, slope: float) -> Any:
    """x where x > 0, slope * x elsewhere."""
    # 0 times infinity is NaN, which a maximum spreads.
    y = (np.maximum if slope <= 1 else np.minimum)(x, x * slope) if slope else np.where(x > 0, x, x * slope)
    return y, (lambda g, out: np.where(x > 0, g, g * slope),)


@op(numpy=np.tanh, promote="float")
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    y = np.tanh(x)
    return y, (lambda g, out: g * (1 - y * y),)


@op(promote="float", called="sigmoid")
def logistic(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the 0 that it should
        y = 1 / (1 + np.exp(-x))
    return y, (lambda g, out: g * y * (1 - y),)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), of a tensor or an array."""
    return like_input(logistic, x)


@op(promote="float")
def silu(x: Any) -> Any:
    """x * sigmoid(x)."""

    def to_x(g: Any, out: Any) -> Any:
        s = sigmoid(x)
        return g * (s * (1 + x * (1 - s)))

    return x * sigmoid(x), (to_x,)


@op(promote="float")
def elu(x: Any, *, alpha: float) -> Any:
    """x where x > 0, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016)."""
    y = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    return y, (lambda g, out: np.where(x > 0, g, g * (y + alpha)),)


@op(promote="float")
def softplus(x: Any, *, beta: float, threshold: float) -> Any:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""
    scaled = beta * x
    smooth = (np.maximum(scaled, 0) + np.log1p(np.exp(-np.abs(scaled)))) / beta
    return np.where(scaled > threshold, x, smooth), (
        lambda g, out: np.where(beta * x > threshold, g, g * sigmoid(beta * x)),
    )


_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_by_tanh(x: Any) -> Any:
    return mul(mul(x, 0.5), add(tanh(mul(mul(x, _GELU_SCALE), add(mul(mul(x, x), _GELU_CUBIC), 1))), 1))


@op(composite=_gelu_by_tanh, promote="float", called="gelu")
def gelu_by_tanh(x: Any) -> Any:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    flat, shape = x.reshape(-1), x.shape
    s, y = np.empty_like(flat), np.empty_like(flat)  # s is (1 + tanh(...)) / 2, so y = x * s
    one, half = scalar(1, flat.dtype), scalar(0.5, flat.dtype)
    for part in _blocks(flat.size):
        a, b = flat[part], s[part]
        np.multiply(a, a, out=b)
        b *= _GELU_SCALE * _GELU_CUBIC
        b += _GELU_SCALE
        b *= a
        np.tanh(b, out=b)
        b += one
        b *= half
        np.multiply(a, b, out=y[part])

    def to_x(g: Any, out: Any) -> Any:
        # s * (1 + (1 - s) * x * 2 scale * (1 + 3 cubic x^2))
        incoming, gradient, spare = g.reshape(-1), np.empty_like(flat), np.empty_like(flat[:_BLOCK])
        for part in _blocks(flat.size):
            a, b, c = flat[part], s[part], gradient[part]
            np.multiply(a, a, out=c)
            c *= 6 * _GELU_SCALE * _GELU_CUBIC
            c += 2 * _GELU_SCALE
            c *= a
            c *= np.subtract(one, b, out=spare[: len(a)])
            c += one
            c *= b
            c *= incoming[part]
        return gradient.reshape(shape)

    return y.reshape(shape), (to_x,)


def _blocks(count: int) -> Iterator[slice]:
    """A long array in parts of _BLOCK elements."""
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


@op(promote="float", called="gelu")
def gelu_by_erf(x: Any) -> Any:
    """x times the probability that a standard normal number is below x."""

    def below(x: Any) -> Any:
        return (like_input(erf, x * math.sqrt(0.5)) + 1) * 0.5

    def to_x(g: Any, out: Any) -> Any:
        return g * (below(x) + x * (np.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))))

    return x * below(x), (to_x,)


@op(promote="float", rule=along_axis(False), called="softmax")
def softmax_along(x: Any, *, axis: int) -> Any:
    """exp(x) divided by its sum along `axis`."""
    y = np.exp(x - maxima(x, axis))
    y = y / y.sum(axis=axis, keepdims=True)
    return y, (lambda g, out: y * (g - np.sum(g * y, axis=axis, keepdims=True)),)


@op(promote="float", rule=along_axis(False), called="log_softmax")
def log_softmax_along(x: Any, *, axis: int) -> Any:
    """x minus the logarithm of the sum of exp(x) along `axis`."""
    y = x - maxima(x, axis)
    with np.errstate(divide="ignore"):  # an axis without elements
        y = y - np.log(np.exp(y).sum(axis=axis, keepdims=True))
    return y, (lambda g, out: g - np.exp(y) * np.sum(g, axis=axis, keepdims=True),)


@op(promote="float", rule=along_axis(False), called="logsumexp")
def log_sum_exp_along(x: Any, *, axis: int) -> Any:
    """log(sum(exp(x))) along `axis`, which stays with length 1; -inf where all x are."""
    highest = maxima(x, axis)
    highest = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        y = np.log(np.exp(x - highest).sum(axis=axis, keepdims=True)) + highest
    return y, (lambda g, out: g * np.exp(x - np.where(y == -np.inf, 0, y)),)


def softmax(X: Any, axis: int = -1, dim: int | None = None) -> Any:
    """exp(X) divided by its sum along `axis` (or `dim`)."""
    return softmax_along(X, axis=axis_of("softmax", X, axis if dim is None else dim))


def log_softmax(X: Any, axis: int = -1, dim: int | None = None) -> Any:
    """The logarithm of softmax(X), exact also where softmax underflows."""
    return log_softmax_along(X, axis=axis_of("log_softmax", X, axis if dim is None else dim))


def logsumexp(X: Any, dim: Any = -1, keepdim: bool = False) -> Any:
    """log(sum(exp(X))) along `dim`, one or several (None or (): all), without overflow."""
    found = axes_of("logsumexp", X, dim, empty_is_all=True)
    axes = tuple(range(len(shape_of(X)))) if found is None else found
    if not axes:
        return reshape(log_sum_exp_along(reshape(X, 1), axis=0), ())
    value = X
    for axis in axes:  # the logarithm of a sum of sums
        value = log_sum_exp_along(value, axis=axis)
    return value if keepdim else squeeze(value, axes)


_DRAWS = 16  # draws of 16 bits in the words of one step


def dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, draws: Draws | None = None
) -> Tensor:
    """In training, zeroes each element with probability p and divides the others by 1 - p.

    input: the batch is its first dimension; one row of the batch may be several consecutive rows of it.
    The mask of a row is a function of the seed, the layer, its call and the row's index in the global batch.
    draws: the layer's count of masks; without it, calls of this function count together. p is met to 2**-17.
    inplace: ignored, since arrays are never overwritten.
    """
    return _dropped("dropout", input, p, training, draws, None)


def dropout2d(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, draws: Draws | None = None
) -> Tensor:
    """In training, zeroes each channel of each row with probability p; input: (N, C, ...), else as `dropout`."""
    if np.ndim(input) < 2:
        raise ValueError(f"dropout2d: input must have shape (N, C, ...), got shape {tuple(shape_of(input))}")
    return _dropped("dropout2d", input, p, training, draws, 2)


def check_dropout(name: str, p: float) -> None:
    """TypeError or ValueError, for the function or layer `name`, unless p is a probability."""
    in_range(f"{name}: p", p, 0, 1, closed=True)


def _dropped(name: str, input: Any, p: float, training: bool, draws: Draws | None, dims: int | None) -> Tensor:
    """Dropout with one draw for each element of the first `dims` dimensions (None: of all)."""
    check_dropout(name, p)
    if not training or p == 0:
        return input if isinstance(input, Tensor) else Tensor(input)
    array = input.array if isinstance(input, Tensor) else as_array(input)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: input must be of floating point dtype, got {array.dtype}")
    drawn = array.shape[:dims]
    shape = (*drawn, *(1 for _ in array.shape[len(drawn) :]))
    return mul(input, _mask(float(p), drawn or (1,), draws, shard_of(input), array.dtype, shape))


@host
def _mask(p: float, drawn: tuple[int, ...], draws: Draws | None, place: Shard | None, dtype: Any, shape: Any) -> Array:
    """Factors of 0 or 1 / (1 - p), `drawn` of them, in `shape`."""
    words = words_by_row(drawn, functional_draws() if draws is None else draws, place, _DRAWS)
    fine = words.view(np.uint16).reshape(len(words), 4 * words.shape[1])[:, : math.prod(drawn) // max(1, len(words))]
    keep = fine >= min(round(p * 2**16), 2**16 - 1)
    return np.asarray(np.multiply(keep.reshape(shape), 1 / (1 - p) if p < 1 else 0.0, dtype=dtype))  # of one, too
