"""The largest, the smallest, and sorting."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import choose
from sorix_dist.core.statistics import cummax, cummin
from tests.support.core.opcheck import Row

ANY = [((3, 4),), ((),), ((2, 3, 2),)]
ALONG = [((3, 4),), ((2, 3, 2),), ((0, 3),), ((3, 1),)]


def values(function: Any) -> Any:
    """The first of the two answers of a function."""

    def of(*inputs: Any, **options: Any) -> Any:
        return function(*inputs, **options)[0]

    of.__name__ = function.__name__
    return of


ROWS = [
    Row(choose.max, np.max, ANY, covers="extreme_over"),
    Row(choose.min, np.min, ANY, covers="extreme_over"),
    Row(choose.amax, lambda x, dim: np.max(x, dim), ALONG, options={"dim": 1}, covers="extreme_over"),
    Row(choose.amin, lambda x, dim, keepdim: np.min(x, dim, keepdims=keepdim), [((2, 3, 2),), ((0, 3, 2),)],
        options={"dim": (1, -1), "keepdim": True}, covers="extreme_over"),
    Row(values(choose.max), lambda x, dim: np.max(x, dim), ALONG, options={"dim": -1}, covers="take"),
    Row(values(choose.min), lambda x, dim, keepdim: np.min(x, dim, keepdims=keepdim), ALONG,
        options={"dim": 1, "keepdim": True}, covers="take"),
    Row(values(choose.sort), lambda x, dim: np.sort(x, dim), ALONG, options={"dim": 1}, covers="take"),
    Row(values(choose.sort), lambda x, dim, descending: -np.sort(-x, dim), [*ALONG, ((3, 0),)],
        options={"dim": 0, "descending": True}, covers="take"),
    Row(values(choose.topk), lambda x, k: -np.sort(-x, -1)[..., :k], [((3, 4),), ((0, 2),), ((2, 1, 3),)],
        options={"k": 2}, covers="take"),
    Row(values(choose.topk), lambda x, k, dim, largest: np.sort(x, dim)[:k], [((3, 4),), ((3, 0),)],
        options={"k": 2, "dim": 0, "largest": False}, covers="take"),
    Row(choose.argmax, np.argmax, ANY, differentiable=False, result=np.int64, covers="extreme_index"),
    Row(choose.argmin, np.argmin, ANY, differentiable=False, result=np.int64, covers="extreme_index"),
    Row(choose.argmax, np.argmax, ALONG, options={"axis": 1, "keepdims": True}, differentiable=False, result=np.int64,
        covers="extreme_index"),
    Row(choose.argmin, np.argmin, ALONG, options={"axis": 1}, differentiable=False, result=np.int64,
        covers="extreme_index"),
    Row(values(cummax), lambda x, dim: np.maximum.accumulate(x, dim), ALONG, options={"dim": 1},
        covers="running_index", lacks={"0-d": "is the element itself"}),
    Row(values(cummin), lambda x, dim: np.minimum.accumulate(x, dim), ALONG, options={"dim": 0},
        covers="running_index"),
    Row(choose.argsort, np.argsort, [*ALONG, ((3, 0),)], differentiable=False, result=np.int64, covers="sorting_order",
        lacks={"0-d": "is made a vector of one element first"}),
    Row(choose.argsort, lambda x, descending: np.argsort(-x), ALONG, options={"descending": True},
        differentiable=False, result=np.int64, covers="sorting_order"),
]  # fmt: skip
