"""Sums and means."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.op import OF_NUMPY, op


@op()
def sum_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The sum along `axis` (None: over everything), in x's own dtype."""
    shape, kept = x.shape, _with_ones(x.shape, axis)
    value = np.sum(x, axis=axis, keepdims=keepdims)
    return value, (lambda g, out: np.broadcast_to(np.reshape(g, kept), shape),)


@op()
def mean_over(x: Any, *, axis: Any, keepdims: Any) -> Any:
    """The mean along `axis` (None: over everything); of no elements it is NaN."""
    shape, kept = x.shape, _with_ones(x.shape, axis)
    count = max(1, x.size) // max(1, int(np.prod(kept)))
    total = np.sum(x, axis=axis, keepdims=keepdims)
    value = total / count if x.size else total * np.nan
    return value, (lambda g, out: np.broadcast_to(np.reshape(g / count, kept), shape),)


def sum(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None) -> Any:
    """The sum of the elements, along `axis` (or `dim`) if given."""
    return sum_over(X, axis=axis if dim is None else dim, keepdims=keepdims)


def mean(X: Any, axis: Any = None, keepdims: Any = False, *, dim: Any = None) -> Any:
    """The mean of the elements, along `axis` (or `dim`) if given."""
    return mean_over(X, axis=axis if dim is None else dim, keepdims=keepdims)


def _with_ones(shape: Any, axis: Any) -> Any:
    """The shape that a reduction with keepdims=True has."""
    axes = range(len(shape)) if axis is None else [a % len(shape) for a in np.atleast_1d(axis)]
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


OF_NUMPY[np.sum] = sum
OF_NUMPY[np.mean] = mean
