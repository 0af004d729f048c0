"""Many elements into one, and running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import reduce
from tests.support.core.opcheck import ELEMENTWISE, Row

ANY = [*ELEMENTWISE, ((2, 3, 2),)]
SOLID = [((3, 4),), ((),), ((2, 3, 2),)]
ALONG = [((3, 4),), ((2, 3, 2),), ((0, 3),), ((3, 1),)]


def p_norm(x: Any, p: float, **options: Any) -> Any:
    """The norm by its definition."""
    return np.sum(np.abs(x) ** p, **options) ** (1 / p)


ROWS = [
    Row(reduce.sum, np.sum, ANY, covers="sum_over"),
    Row(reduce.sum, np.sum, ANY, options={"keepdims": True}, covers="sum_over"),
    Row(reduce.sum, np.sum, ALONG, options={"axis": -1}, covers="sum_over"),
    Row(reduce.sum, np.sum, [((2, 3, 2),), ((0, 3, 2),)], options={"axis": (0, -1), "keepdims": True},
        covers="sum_over"),
    Row(reduce.mean, np.mean, SOLID, covers="mean_over"),
    Row(reduce.mean, np.mean, ALONG, options={"axis": 1}, covers="mean_over"),
    Row(reduce.mean, np.mean, [((2, 3, 2),)], options={"axis": (0, 2), "keepdims": True}, covers="mean_over"),
    Row(reduce.var, lambda x: np.var(x, ddof=1), [((3, 4),)], covers="mean_over"),
    Row(reduce.var, lambda x, axis, correction: np.var(x, axis, ddof=correction), [((3, 4),), ((2, 3, 2),), ((3, 0),)],
        options={"axis": 0, "correction": 0}, covers="mean_over"),
    Row(reduce.std, lambda x, dim, keepdim: np.std(x, dim, ddof=1, keepdims=keepdim), [((3, 4),), ((0, 4),)],
        options={"dim": 1, "keepdim": True}, covers="mean_over"),
    Row(reduce.sum_divided, lambda x, divisor, held: np.sum(x) / 7, ANY, options={"divisor": 7, "held": 3}),
    Row(reduce.sum_divided, lambda x, divisor, held: np.zeros(()), ANY, options={"divisor": 0, "held": 0}),
    Row(reduce.prod, np.prod, ANY, covers="product_over"),
    Row(reduce.prod, np.prod, ALONG, options={"axis": 1}, covers="product_over"),
    Row(reduce.prod, np.prod, ALONG, options={"axis": 0, "keepdims": True}, covers="product_over"),
    Row(reduce.cumsum, np.cumsum, [*ALONG, ((3, 0),)], options={"axis": 1}, covers="cumulative_sum",
        lacks={"0-d": "a 0-d tensor is its own running sum; no operation is needed"}),
    Row(reduce.cumsum, np.cumsum, ALONG, options={"axis": 0}, covers="cumulative_sum"),
    Row(reduce.norm, lambda x: np.sqrt(np.sum(x**2)), SOLID, covers="root"),
    Row(reduce.norm, lambda x, dim, keepdim: np.sqrt(np.sum(x**2, dim, keepdims=keepdim)), ALONG,
        options={"dim": 1, "keepdim": True}, covers="root"),
    Row(reduce.norm, lambda x, p: p_norm(x, p), [((3, 4),)], options={"p": 1}, apart=(0,), covers="sum_over"),
    Row(reduce.norm, lambda x, p, dim: p_norm(x, p, axis=dim), [((3, 4),), ((0, 4),)], options={"p": 3, "dim": 1},
        apart=(0,), covers="sum_over"),
    Row(reduce.norm, lambda x, p: np.max(np.abs(x)), [((3, 4),)], options={"p": float("inf")}, apart=(0,),
        covers="extreme_over"),
]  # fmt: skip
