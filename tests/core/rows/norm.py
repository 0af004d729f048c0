"""Normalisation, against means and variances of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import norm
from sorix_dist.core.placement import SINGLE
from tests.support.core.opcheck import Row

Array = np.ndarray[Any, Any]


def over_batch(x: Array, weight: Array | None, bias: Array | None, *, eps: float, **_: Any) -> Array:
    if not x.size:
        return x
    axes = (0, *range(2, x.ndim))
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    shape = (1, x.shape[1], *(1 for _ in x.shape[2:]))
    return normal * (1 if weight is None else weight.reshape(shape)) + (0 if bias is None else bias.reshape(shape))


def over_features(x: Array, weight: Array | None, bias: Array | None, *, dims: int, eps: float) -> Array:
    axes = tuple(range(x.ndim - dims, x.ndim))
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return normal * (1 if weight is None else weight) + (0 if bias is None else bias)


def group_norm(x: Any, weight: Any, bias: Any, *, num_groups: int) -> Any:
    return norm.group_norm(x, num_groups, weight, bias)


def over_groups(x: Array, weight: Array, bias: Array, *, num_groups: int) -> Array:
    grouped = x.reshape(len(x), num_groups, x.shape[1] // num_groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    normal = (grouped - grouped.mean(axes, keepdims=True)) / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


LACKS = {"0-d": "there must be features to normalise"}
BATCHES = [
    ((5, 3), (1, 3), (1, 3)),
    ((5, 3), (3,), None),
    ((2, 3, 4), None, (3,)),
    ((2, 3, 2, 2), (3,), (3,)),
    ((0, 3), (1, 3), (1, 3)),
    ((0, 3, 2, 2), (3,), (3,)),
]
ROWS = [
    Row(
        norm.batch_norm_of_rows,
        over_batch,
        BATCHES,
        {"group": SINGLE, "eps": 1e-2, "observe": None},
        lacks=LACKS,
    ),
    Row(
        norm.layer_norm_of_features,
        over_features,
        [((4, 3), (3,), (3,)), ((2, 3, 5), (5,), None), ((2, 5), None, (5,)), ((0, 3), (3,), (3,))],
        {"dims": 1, "eps": 1e-2},
        lacks=LACKS,
    ),
    Row(
        norm.layer_norm_of_features,
        over_features,
        [((2, 3, 5), (3, 5), (3, 5)), ((0, 3, 5), (3, 5), None), ((3, 5), (3, 5), (3, 5))],
        {"dims": 2, "eps": 1e-5},
        lacks=LACKS,
    ),
    Row(
        group_norm,
        over_groups,
        [((2, 4, 3, 2), (4,), (4,)), ((0, 4, 3, 2), (4,), (4,))],
        {"num_groups": 2},
        covers="layer_norm_of_features",
    ),
]
