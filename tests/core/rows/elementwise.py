"""Arithmetic and functions of single elements."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import elementwise as e
from tests.support.core.opcheck import ELEMENTWISE, PAIRS, Row

ROWS = [
    Row(e.add, np.add, PAIRS),
    Row(e.sub, np.subtract, PAIRS),
    Row(e.mul, np.multiply, PAIRS),
    Row(e.div, np.divide, PAIRS, between=((-2, 2), (0.5, 2))),
    Row(e.pow, np.power, PAIRS, between=((0.5, 2), (-2, 2))),
    Row(e.remainder, np.remainder, PAIRS, between=((0.05, 0.9), (1, 2))),
    Row(e.remainder, np.remainder, PAIRS, between=((-0.9, -0.05), (1, 2))),
    Row(e.floor_divide, np.floor_divide, PAIRS, between=((-2, 2), (0.5, 2)), differentiable=False),
    Row(e.neg, np.negative, ELEMENTWISE),
    Row(e.exp, np.exp, ELEMENTWISE),
    Row(e.expm1, np.expm1, ELEMENTWISE),
    Row(e.log, np.log, ELEMENTWISE, between=(0.5, 3)),
    Row(e.log2, np.log2, ELEMENTWISE, between=(0.5, 3)),
    Row(e.log10, np.log10, ELEMENTWISE, between=(0.5, 3)),
    Row(e.log1p, np.log1p, ELEMENTWISE, between=(-0.5, 3)),
    Row(e.sqrt, np.sqrt, ELEMENTWISE, between=(0.5, 3)),
    Row(e.root, np.sqrt, ELEMENTWISE, between=(0.5, 3)),
    *(
        Row(e.power, lambda x, exponent: x**exponent, ELEMENTWISE, {"exponent": p}, between=(0.5, 3))
        for p in (3, 0.5, -1.5)
    ),
    Row(e.rsqrt, lambda x: 1 / np.sqrt(x), ELEMENTWISE, between=(0.5, 3)),
    Row(e.reciprocal, lambda x: 1 / x, ELEMENTWISE, between=(0.5, 3)),
    Row(e.square, lambda x: x**2, ELEMENTWISE),
    Row(e.sin, np.sin, ELEMENTWISE),
    Row(e.cos, np.cos, ELEMENTWISE),
    Row(e.tan, np.tan, ELEMENTWISE, between=(-1.2, 1.2)),
    Row(e.atan, np.arctan, ELEMENTWISE),
    Row(e.abs, np.abs, ELEMENTWISE, apart=(0,)),
    Row(e.sign, np.sign, ELEMENTWISE, apart=(0,)),
    Row(e.round, lambda x: np.rint(x), ELEMENTWISE, apart=(-1.5, -0.5, 0.5, 1.5), covers="round_to"),
    Row(e.floor, np.floor, ELEMENTWISE, apart=(-2, -1, 0, 1, 2)),
    Row(e.ceil, np.ceil, ELEMENTWISE, apart=(-2, -1, 0, 1, 2)),
    Row(
        e.cast_to,
        lambda x, dtype: x,
        ELEMENTWISE,
        options={"dtype": np.dtype(np.float64)},
        result=np.float64,
        tolerance=1e-6,
    ),
    Row(
        e.cut_to,
        lambda x, dtype: np.trunc(x),
        ELEMENTWISE,
        options={"dtype": np.dtype(np.int64)},
        apart=(-2, -1, 0, 1, 2),
        differentiable=False,
        result=np.int64,
    ),
]
