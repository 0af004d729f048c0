"""Normalisation: over the rows of the global batch, and over the features of each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import rules
from sorix_dist.core.capture import host
from sorix_dist.core.graph import Rule
from sorix_dist.core.op import memoize_last, op
from sorix_dist.core.ops.collective import all_reduced
from sorix_dist.core.ops.elementwise import add, div, mul, sqrt, sub
from sorix_dist.core.ops.matrix import column_sums, row_sums
from sorix_dist.core.ops.reduce import mean_over, sum_over
from sorix_dist.core.ops.shape import extents, reshape, with_rows
from sorix_dist.core.placement import SINGLE, Group, shard_of, tagged
from sorix_dist.core.rules import bare, rows_along
from sorix_dist.core.tensor import Array, Tensor, array_of, shape_of

Result = tuple[Array, tuple[Rule, ...]]
Observer = Callable[[int, Array, Array], None]
"""Called with the number of values per channel in the global batch, their means and mean squared deviations."""

# -- over the batch

_WHAT = "batch_norm"  # the name of its collectives


def _over_channels(x: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For x of shape (N, C, ...): the dimensions that are not C, and the shape of one number per channel."""
    return (0, *range(2, x.ndim)), (1, x.shape[1], *(1 for _ in x.shape[2:]))


def _batch_norm(x: Any, weight: Any, bias: Any, *, group: Group, eps: float, observe: Observer | None) -> Tensor:
    axes, shape = _over_channels(x)
    held = x.array.size // max(1, x.shape[1])
    count = max(1, int(group.reduce(np.array([float(held)]), _WHAT)[0]))
    mean = div(all_reduced(sum_over(x, axis=axes, keepdims=True), group=group, what=_WHAT), count)
    centred = sub(x, mean)
    squares = sum_over(mul(centred, centred), axis=axes, keepdims=True)
    deviation = sqrt(add(div(all_reduced(squares, group=group, what=_WHAT), count), eps))
    return _scaled(div(centred, deviation), weight, bias, shape)


def _channel_sums(x: Array, y: Array | None = None) -> Array:
    """The sums of x (N, C, ...), or of x * y, in each channel, in float64: of images that lie in memory as
    convolutions leave them (C, H, W, N) each row by itself in its own dtype, which is faster than NumPy's sums."""
    order = (1, *range(2, x.ndim), 0)
    turned, other = x.transpose(order), None if y is None else y.transpose(order)
    if x.ndim < 4 or not turned.flags.c_contiguous or not (other is None or other.flags.c_contiguous):
        return np.asarray(np.sum(x if y is None else x * y, axis=_over_channels(x)[0], dtype=np.float64))
    channels, high = turned.shape[:2]
    rows = turned.reshape(channels * high, math.prod(turned.shape[2:]))
    sums = row_sums(rows) if other is None else np.vecdot(rows, other.reshape(rows.shape))
    return np.asarray(sums.reshape(channels, high).sum(axis=1, dtype=np.float64))


def _scaled(x: Tensor, weight: Any, bias: Any, shape: tuple[int, ...]) -> Tensor:
    x = x if weight is None else mul(x, reshape(weight, shape))
    return x if bias is None else add(x, reshape(bias, shape))


def _check(name: str, input: Any, numbers: dict[str, Any], shape: tuple[int, ...], flat: bool = False) -> None:
    """Raises unless input is of floating point dtype, and each of `numbers` None or of `shape` (if `flat`, of as
    many numbers)."""
    if array_of(input).dtype.kind != "f":
        raise TypeError(f"{name}: input must be of floating point dtype, got {input.dtype}")
    for argument, value in numbers.items():
        given = shape if value is None else shape_of(value)
        if given != shape and not (flat and math.prod(given) == math.prod(shape)):
            raise ValueError(f"{name}: {argument} must have shape {shape}, got shape {given}")


@op(composite=_batch_norm, rule=rules.rows_at(0), called="batch_norm")
def batch_norm_of_rows(
    x: Array, weight: Array | None, bias: Array | None, *, group: Group, eps: float, observe: Observer | None
) -> Result:
    """x (N, C, ...) with mean 0 and variance 1 in each channel over all rows of the batch, times weight, plus bias.

    weight, bias: C numbers in any shape, or None; group: the ranks that have the other rows. The forward needs two sums
    over it, the backward to x one, also with no rows. ValueError for one value per channel (Ioffe and Szegedy 2015).
    """
    shape = _over_channels(x)[1]
    channels, x_dtype = x.shape[1], x.dtype
    # In float64, whatever the values are: an error of the mean would shift every result.
    summed = np.empty(channels + 1)
    summed[0] = x.size // max(1, channels)
    summed[1:] = _channel_sums(x)
    summed = group.reduce(summed, _WHAT)
    count = int(summed[0])
    if count == 1:
        raise ValueError(
            f"batch_norm: input must have more than 1 value per channel in training, got shape {x.shape}, which is all "
            "of the global batch (in reproducible mode of its virtual shard, whose statistics are its own: take larger "
            "batches, drop_last=True or fewer virtual shards)"
        )
    mean = summed[1:] / max(1, count)
    centred = np.subtract(x, mean.astype(x_dtype).reshape(shape))
    # The second pass, over deviations from the mean of all rows, loses nothing to a mean far from 0.
    squares = group.reduce(_channel_sums(centred, centred), _WHAT)
    variance = squares / max(1, count)
    if observe is not None and count:
        observe(count, mean, variance)
    inverse = (1 / np.sqrt(variance + eps)).astype(x_dtype).reshape(shape)
    factor = inverse if weight is None else inverse * weight.reshape(shape)
    shapes = [None if p is None else p.shape for p in (weight, bias)]

    @memoize_last
    def sums(g: Array) -> tuple[Array, Array]:
        return _channel_sums(g), _channel_sums(g, centred) * inverse.reshape(channels)

    def to_x(g: Array, out: Array | None) -> Array:
        gradient: Array
        everywhere = group.reduce(np.concatenate(sums(g)), _WHAT) / max(1, count)
        mean_g, slope = (part.astype(x_dtype).reshape(shape) for part in np.split(everywhere, 2))
        gradient = np.multiply(centred, slope * inverse)
        np.subtract(g, gradient, out=gradient)
        gradient -= mean_g
        gradient *= factor
        return gradient

    y = centred * factor
    if bias is not None:
        y += bias.reshape(shape)
    return y, (
        to_x,
        lambda g, out: sums(g)[1].astype(x_dtype).reshape(shapes[0]),
        lambda g, out: sums(g)[0].astype(x_dtype).reshape(shapes[1]),
    )


def batch_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation of input (N, C, ...): in training by the statistics of the global batch, which move
    running_mean and running_var (the unbiased variance) by the fraction `momentum`; else by those two.

    running_mean, running_var, weight, bias: C numbers in any shape, or None (both running ones needed unless
    training). ValueError names what does not fit.
    """
    shape = shape_of(input)
    if len(shape) < 2:
        raise ValueError(f"batch_norm: input must have shape (N, C, ...), got shape {shape}")
    numbers = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    _check("batch_norm", input, numbers, (shape[1],), flat=True)
    means, variances = (array_of(rules.whole(value, "batch_norm")) for value in (running_mean, running_var))
    if not training:
        if means is None or variances is None:
            raise ValueError("batch_norm: running_mean and running_var must be given unless training, got None")
        channels = (1, shape[1], *(1 for _ in shape[2:]))
        dtype = np.dtype(input.dtype)
        inverse, negative = _running(means, variances, eps, dtype, channels)
        scale = inverse if weight is None else mul(reshape(weight, channels), inverse)
        shift = mul(scale, negative)
        return add(mul(input, scale), shift if bias is None else add(shift, reshape(bias, channels)))

    def observe(count: int, mean: Array, variance: Array) -> None:
        for running, latest in ((means, mean), (variances, variance * (count / (count - 1)))):
            if running is not None:
                running += momentum * (latest.reshape(running.shape) - running)

    place = shard_of(input)
    if place is not None and (place.axis == 1 or place.group.ordered):
        input, place = rules.whole(input, "batch_norm"), None
    # Of a virtual shard the statistics are its own: they don't depend on which rank computes the others.
    group = SINGLE if place is None or place.group.isolated else place.group
    observer = observe if means is not None or variances is not None else None
    behind = place is not None and place.axis > 0  # rows along an axis of pixels, which makes no difference here
    x = bare(input) if behind else input
    result = batch_norm_of_rows(x, weight, bias, group=group, eps=eps, observe=observer)
    return tagged(result, place) if behind else result


@host
def _running(means: Array, variances: Array, eps: float, dtype: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """1 / sqrt(variance + eps) and -mean of each channel."""
    inverse = (1 / np.sqrt(variances + eps)).astype(dtype).reshape(shape)
    return inverse, -means.astype(dtype).reshape(shape)


# -- over the features of a row


def _layer_norm(x: Any, weight: Any, bias: Any, *, dims: int, eps: float) -> Tensor:
    axes, shape = tuple(range(x.ndim - dims, x.ndim)), tuple(x.shape[x.ndim - dims :])
    centred = sub(x, mean_over(x, axis=axes, keepdims=True))
    deviation = sqrt(add(mean_over(mul(centred, centred), axis=axes, keepdims=True), eps))
    return _scaled(div(centred, deviation), weight, bias, shape)


@op(composite=_layer_norm, rule=rules.rows_at(), called="layer_norm")
def layer_norm_of_features(x: Array, weight: Array | None, bias: Array | None, *, dims: int, eps: float) -> Result:
    """x with mean 0 and variance 1 over its last `dims` dimensions, times weight, plus bias (of their shape, or
    None), as one operation (Ba, Kiros and Hinton 2016)."""
    whole, tail = x.shape, x.shape[x.ndim - dims :]
    width = math.prod(tail)
    flat = (math.prod(whole[: x.ndim - dims]), width)
    features = x.reshape(flat)
    normal = features - row_sums(features)[:, None] / width
    inverse = 1 / np.sqrt(np.einsum("ij,ij->i", normal, normal) / width + eps)[:, None].astype(x.dtype)
    normal *= inverse
    scale = None if weight is None else weight.reshape(width)

    def to_x(g: Array, out: Array | None) -> Array:
        g = g.reshape(flat)
        gradient = g * (1 if scale is None else scale)
        slope = np.einsum("ij,ij->i", gradient, normal)[:, None] / width
        gradient -= row_sums(gradient)[:, None] / width
        gradient -= normal * slope
        gradient *= inverse
        return gradient.reshape(whole)

    y = normal * (1 if scale is None else scale)
    if bias is not None:
        y += bias.reshape(width)
    return y.reshape(whole), (
        to_x,
        lambda g, out: np.einsum("ij,ij->j", g.reshape(flat), normal).reshape(tail),
        lambda g, out: column_sums(g.reshape(flat)).reshape(tail),
    )


def layer_norm(
    input: Any, normalized_shape: int | Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Each row's features with mean 0 and variance 1, times weight, plus bias.

    normalized_shape: the last dimensions of input, over which it is normalised; weight, bias: of that shape.
    """
    tail = (normalized_shape,) if isinstance(normalized_shape, int | np.integer) else tuple(normalized_shape)
    shape = extents(input)
    if not tail or min(tail) < 1 or shape[-len(tail) :] != tail:
        raise ValueError(f"layer_norm: input must end in the dimensions normalized_shape {tail}, got shape {shape}")
    _check("layer_norm", input, {"weight": weight, "bias": bias}, tail)
    return layer_norm_of_features(input, weight, bias, dims=len(tail), eps=eps)


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Each row's groups of channels with mean 0 and variance 1, times weight, plus bias (Wu and He 2018).

    input: (N, C, ...), C a multiple of num_groups; weight, bias: (C,).
    """
    input = rows_along("group_norm", input, (0,))
    shape = shape_of(input)
    if len(shape) < 2:
        raise ValueError(f"group_norm: input must have shape (N, C, ...), got shape {shape}")
    count, channels, *pixels = shape
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"group_norm: num_groups must be >= 1 and divide {channels} channels, got {num_groups!r}")
    _check("group_norm", input, {"weight": weight, "bias": bias}, (channels,))
    groups = with_rows(input, (count, num_groups, int(np.prod(shape[1:])) // num_groups), shard_of(input))
    normal = layer_norm_of_features(groups, None, None, dims=1, eps=eps)
    return _scaled(with_rows(normal, shape, shard_of(normal)), weight, bias, (channels, *(1 for _ in pixels)))
