"""Arithmetic and functions of single elements."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import elementwise as e
from tests.core.opcheck import ELEMENTWISE, PAIRS, Row

ROWS = [
    Row(e.add, np.add, PAIRS),
    Row(e.sub, np.subtract, PAIRS),
    Row(e.mul, np.multiply, PAIRS),
    Row(e.div, np.divide, PAIRS, between=((-2, 2), (0.5, 2))),
    Row(e.pow, np.power, PAIRS, between=((0.5, 2), (-2, 2))),
    Row(e.neg, np.negative, ELEMENTWISE),
    Row(e.exp, np.exp, ELEMENTWISE),
    Row(e.log, np.log, ELEMENTWISE, between=(0.5, 3)),
    Row(e.sqrt, np.sqrt, ELEMENTWISE, between=(0.5, 3)),
    Row(e.eq, np.equal, PAIRS, differentiable=False, result=bool),
    Row(e.ne, np.not_equal, PAIRS, differentiable=False, result=bool),
    Row(e.lt, np.less, PAIRS, differentiable=False, result=bool),
    Row(e.le, np.less_equal, PAIRS, differentiable=False, result=bool),
    Row(e.gt, np.greater, PAIRS, differentiable=False, result=bool),
    Row(e.ge, np.greater_equal, PAIRS, differentiable=False, result=bool),
]
