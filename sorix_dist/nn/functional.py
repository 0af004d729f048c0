"""Layers and losses as functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.ops.activation import relu
from sorix_dist.core.ops.loss import cross_entropy_of_classes
from sorix_dist.core.ops.matrix import linear as _linear
from sorix_dist.core.tensor import Array

__all__ = ["cross_entropy", "linear", "relu"]


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x @ weight + bias for x of shape (..., in), weight (in, out) and bias (1, out) or (out,)."""
    return _linear(x, weight, bias)


def cross_entropy(logits: Any, target: Any) -> Tensor:
    """The mean over the rows of log(sum(exp(logits))) - logits[target], from raw scores.

    logits: (N, C); target: N integers in [0, C). ValueError, TypeError or IndexError names what does not fit.
    """
    return cross_entropy_of_classes(logits, target=class_indices(target, np.shape(logits)))


def class_indices(target: Any, shape: tuple[int, ...]) -> Array:
    """`target` as the integer array that logits of `shape` (N, C) need, checked."""
    labels = target.array if isinstance(target, Tensor) else np.asarray(target)
    if len(shape) != 2:
        raise ValueError(f"cross_entropy: logits must have shape (N, C), got shape {tuple(shape)}")
    count, classes = shape
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise ValueError(
            f"cross_entropy: target must hold one class per row of logits, shape ({count},), got shape {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: target must hold integers (class indices), got dtype {labels.dtype}")
    # As unsigned numbers negative ones are large, so one pass finds both kinds of stranger.
    if count and int(labels.astype(np.uint64).max()) >= classes:
        row = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise IndexError(f"cross_entropy: target must be in [0, {classes}), got {labels[row]} in row {row}")
    return labels
