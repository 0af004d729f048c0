"""Layers and losses as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.arguments import one_of
from sorix_dist.core.arrange import unflatten
from sorix_dist.core.capture import host
from sorix_dist.core.expected import beside_rows
from sorix_dist.core.keywords import missing_from, publish
from sorix_dist.core.ops import matrix
from sorix_dist.core.ops.activation import dropout, dropout2d
from sorix_dist.core.ops.choose import where
from sorix_dist.core.ops.elementwise import add, logical_and
from sorix_dist.core.ops.indexing import one_hot, table_rows, take
from sorix_dist.core.ops.join import pad
from sorix_dist.core.ops.norm import batch_norm, group_norm, layer_norm
from sorix_dist.core.ops.shape import reshape, squeeze, unsqueeze
from sorix_dist.core.ops.shape import swapaxes as transpose
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.rules import rows_along, whole
from sorix_dist.core.tensor import ndarray_of, shape_of
from sorix_dist.nn.functional import activation, distance, loss, resize, spatial
from sorix_dist.nn.functional.activation import *  # noqa: F403
from sorix_dist.nn.functional.attention import scaled_dot_product_attention
from sorix_dist.nn.functional.distance import *  # noqa: F403
from sorix_dist.nn.functional.loss import *  # noqa: F403
from sorix_dist.nn.functional.resize import *  # noqa: F403
from sorix_dist.nn.functional.spatial import *  # noqa: F403

__all__ = [
    "batch_norm", "bilinear", "dropout", "dropout2d", "embedding", "embedding_bag", "group_norm", "instance_norm",
    "layer_norm", "linear", "one_hot", "pad", "rms_norm", "scaled_dot_product_attention", *activation.__all__,
    *distance.__all__, *loss.__all__, *resize.__all__, *spatial.__all__,
]  # fmt: skip


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """input (..., in) @ weight.T + bias, as in PyTorch: weight (out, in) or (in,), bias (out,); nn.Linear's W is the
    transpose, (in, out)."""
    weight = as_tensor(weight)
    if weight.ndim == 2:
        return matrix.linear(input, transpose(weight, 0, 1), bias)
    product = matrix.matmul(input, weight)
    return product if bias is None else add(product, bias)


def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Tensor:
    """input1 (..., n), weight (out, n, m) and input2 (..., m) multiplied along n and m, plus bias (out,)."""
    outputs, first, second = shape_of(weight)
    columns = reshape(transpose(weight, 0, 1), first, outputs * second)
    by_first = unflatten(matrix.matmul(input1, columns), -1, (outputs, second))
    product: Tensor = squeeze(matrix.matmul(by_first, unsqueeze(input2, -1)), -1)
    return product if bias is None else add(product, bias)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` (n, features) that `input`, integers in [0, n) of any shape, names.

    The row `padding_idx` gets no gradient. TypeError if `input` does not hold integers, IndexError if one is out
    of range.
    """
    weight = whole(weight, "embedding") if shard_of(weight) is not None else weight
    index = ndarray_of(input)
    count = len(weight)
    _check_index(index, count)
    if padding_idx is not None:
        if not -count <= padding_idx < count:
            raise ValueError(f"embedding: padding_idx must be in [{-count}, {count}), got {padding_idx}")
        padding_idx %= count
    rows = shard_of(input)
    if rows is None:
        return table_rows(weight, index=index, skip=padding_idx)
    beside_rows(rows, weight)
    if rows.group.ordered and isinstance(weight, Tensor) and weight.requires_grad:
        return table_rows(weight, index=whole(input, "embedding").array, skip=padding_idx)
    return tagged(table_rows(whole(weight, "embedding"), index=index, skip=padding_idx), rows)


def embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    *,
    mode: str = "mean",
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The "sum", "mean" or "max" of the rows of `weight` that each bag of integers names, zeros for an empty bag.

    input: one bag a row (B, L), or all bags in one vector. offsets: where each bag starts in that vector, which on
    several ranks is that of all ranks. include_last_offset: the last offset is the end of the last bag.
    per_sample_weights: factors in the shape of `input`, for the sum. padding_idx: integers that do not count.
    """
    one_of("embedding_bag: mode", mode, "mean", "sum", "max")
    if per_sample_weights is not None and mode != "sum":
        raise ValueError(f'embedding_bag: per_sample_weights need mode "sum", got {mode!r}')
    input, factors = as_tensor(input), per_sample_weights
    if (input.ndim, offsets is None) not in ((2, True), (1, False)):
        raise ValueError(
            f"embedding_bag: input must be (B, L), or a vector with offsets, got shape {tuple(input.shape)}"
        )
    counts = None if padding_idx is None else input != (padding_idx % len(weight))
    if offsets is not None:
        input, factors = whole(input, "embedding_bag"), whole(factors, "embedding_bag")
    if factors is not None and (len(shape_of(factors)), shape_of(factors)[-1:]) != (input.ndim, input.array.shape[-1:]):
        raise ValueError(
            f"embedding_bag: per_sample_weights must have the shape {tuple(input.shape)} of input, got "
            f"{tuple(shape_of(factors))}"
        )
    if offsets is not None:
        starts = np.asarray(whole(offsets, "embedding_bag"))
        places, inside = _bags(starts[:-1] if include_last_offset else starts, len(input))
        input, factors = take(input, index=places), None if factors is None else take(factors, index=places)
        counts = as_tensor(inside) if counts is None else logical_and(take(counts, index=places), inside)
    rows = embedding(input, weight, padding_idx)
    rows = rows if factors is None else rows * unsqueeze(factors, -1)
    if not rows.array.shape[1]:
        return rows.sum(1)
    if counts is None:
        return rows.max(1).values if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)
    number, counts = counts.sum(1, keepdim=True), unsqueeze(counts, -1)
    if mode == "max":
        return where(number > 0, where(counts, rows, -np.inf).max(1).values, 0.0)
    total = where(counts, rows, 0.0).sum(1)
    return total if mode == "sum" else total / number.clamp(min=1)


def _bags(starts: Any, length: int) -> tuple[Any, Any]:
    """For each bag of a vector the places of its entries, padded by 0, and which of them are inside."""
    if starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
        raise ValueError(
            f"embedding_bag: offsets must be a vector of integers, got shape {starts.shape} and dtype {starts.dtype}"
        )
    starts = starts.astype(np.int64)
    sizes = np.diff(starts, append=length)
    if starts.size and (starts[0] != 0 or (sizes < 0).any()):
        raise ValueError(f"embedding_bag: offsets must start at 0 and rise to at most {length}, got {starts.tolist()}")
    steps = np.arange(max(sizes, default=0))
    inside = steps < sizes[:, None]
    return np.where(inside, starts[:, None] + steps, 0), inside


@host
def _check_index(index: Any, count: int) -> None:
    """TypeError or IndexError unless an array holds integers in [0, count)."""
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: input must hold integers, got dtype {index.dtype}")
    # As unsigned numbers negative ones are large, so one pass finds both kinds of stranger.
    if index.size and int(index.astype(np.uint64).max()) >= count:
        where = tuple(int(i) for i in np.argwhere((index < 0) | (index >= count))[0])
        raise IndexError(f"embedding: input must be in [0, {count}), got {index[where]} at {where}")


def instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of each row of input (N, C, ...) with mean 0 and variance 1, times weight, plus bias, both (C,)
    (Ulyanov et al. 2016). Running statistics are not supported; `momentum` has no meaning without them."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise ValueError("instance_norm: running_mean and running_var must be None and use_input_stats True")
    input = rows_along("instance_norm", input, (0,))
    return group_norm(input, max(1, shape_of(input)[1]), weight, bias, eps)


def rms_norm(input: Any, normalized_shape: int | Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimensions `normalized_shape`, times weight of that shape (Zhang and
    Sennrich 2019). eps: the smallest number that changes 1 in the input's dtype, if None."""
    x = as_tensor(input)
    tail = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not tail or tuple(x.shape[-len(tail) :]) != tail:
        raise ValueError(f"rms_norm: input must end in the dimensions {tail}, got shape {tuple(x.shape)}")
    eps = float(np.finfo(x.array.dtype).eps) if eps is None else eps
    wide = x.float() if x.dtype == "float16" else x  # squares of float16 overflow
    squares = (wide * wide).mean(tuple(range(-len(tail), 0)), keepdims=True)
    scaled = (wide * (squares + eps).rsqrt()).astype(x.dtype)
    return scaled if weight is None else scaled * weight


publish(globals(), __all__)
__getattr__ = missing_from(__name__, globals())
