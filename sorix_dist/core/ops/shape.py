"""Other shapes and other parts of the same elements."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from sorix_dist.core.op import OF_NUMPY, in_kind, op


@op()
def alias(x: Any) -> Any:
    """The same array as a new tensor."""
    return x, (lambda g, out: g,)


@op()
def reshape_to(x: Any, *, shape: Any) -> Any:
    """The elements in another shape, without a copy where possible."""
    was = x.shape
    return np.reshape(x, shape), (lambda g, out: np.reshape(g, was),)


@op()
def permute_to(x: Any, *, axes: Any) -> Any:
    """The dimensions in another order."""
    back = tuple(int(i) for i in np.argsort(axes))
    return np.transpose(x, axes), (lambda g, out: np.transpose(g, back),)


@op()
def expand_to(x: Any, *, shape: Any) -> Any:
    """The elements repeated to a larger shape, without a copy; the walk adds the gradients up again."""
    return np.broadcast_to(x, shape), (lambda g, out: g,)


@op()
def take(x: Any, *, index: Any) -> Any:
    """The elements that a NumPy index names; an element named twice gets both gradients."""
    shape = x.shape
    return x[index], (lambda g, out: scatter(g, index=index, shape=shape),)


@op()
def scatter_add_to(x: Any, *, index: Any, shape: Any) -> Any:
    """Zeros of `shape` with the elements of x added at a NumPy index: the transpose of `take`."""
    zeros = np.zeros(shape, x.dtype)
    np.add.at(zeros, index, x)
    return zeros, (lambda g, out: g[index],)


def scatter(x: Any, *, index: Any, shape: Any) -> Any:
    """`scatter_add_to` for a tensor or an array, answering in kind."""
    return in_kind(scatter_add_to, x, index=index, shape=shape)


def reshape(input: Any, *shape: Any) -> Any:
    """The elements of `input` in another shape; one entry may be -1, also when there are no elements."""
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    return reshape_to(input, shape=_without_unknown(np.shape(input), tuple(int(n) for n in shape)))


def _without_unknown(was: Any, shape: Any) -> Any:
    """`shape` with -1 replaced by what it stands for; NumPy itself refuses that for arrays of no elements."""
    if shape.count(-1) != 1 or prod(was):
        return shape
    known = [n for n in shape if n != -1]
    # Zero elements fit any length of the unknown dimension if another one is 0; then keep the batch's own 0.
    return (
        tuple(0 if n == -1 else n for n in shape)
        if prod(known)
        else tuple(prod(was[1:]) if n == -1 and was and was[0] == 0 else (0 if n == -1 else n) for n in shape)
    )


def transpose(input: Any, *axes: Any) -> Any:
    """The dimensions reversed, in the order `axes`, or (two axes of more) with those two exchanged."""
    if len(axes) == 1 and isinstance(axes[0], tuple | list):
        axes = tuple(axes[0])
    count = np.ndim(input)
    order = list(range(count))
    if not axes or axes == (None,):
        order.reverse()
    elif len(axes) == count:
        order = [a % count for a in axes]
        if sorted(order) != list(range(count)):
            order = list(range(count))
            first, second = axes
            order[first], order[second] = order[second], order[first]
    elif len(axes) == 2:
        first, second = axes
        order[first], order[second] = order[second], order[first]
    else:
        raise ValueError(f"transpose: axes must name all {count} dimensions or two of them, got {axes}")
    return permute_to(input, axes=tuple(order))


def swapaxes(input: Any, dim0: Any, dim1: Any) -> Any:
    """The dimensions with `dim0` and `dim1` exchanged."""
    order = list(range(np.ndim(input)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute_to(input, axes=tuple(order))


def flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Any:
    """The dimensions from `start_dim` to `end_dim` joined into one."""
    shape = np.shape(input)
    first, last = start_dim % max(1, len(shape)), end_dim % max(1, len(shape))
    return reshape_to(input, shape=(*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :]))


def index(input: Any, key: Any) -> Any:
    """`input[key]` as NumPy indexes; tensors in the key stand for their arrays."""
    return take(input, index=key_of(key))


def key_of(key: Any) -> Any:
    """An index with arrays in the place of tensors."""
    if isinstance(key, tuple):
        return tuple(key_of(k) for k in key)
    return getattr(key, "array", key)


OF_NUMPY[np.reshape] = reshape
OF_NUMPY[np.transpose] = transpose
OF_NUMPY[np.swapaxes] = swapaxes
OF_NUMPY[np.broadcast_to] = lambda array, shape: expand_to(array, shape=tuple(shape))
