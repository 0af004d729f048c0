"""Comparisons, logic, and questions about many elements: nothing of it has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.ops import elementwise, reduce
from sorix_dist.core.ops import elementwise as e
from sorix_dist.core.ops.elementwise import cast, round
from tests.support.core.opcheck import ELEMENTWISE, PAIRS, Row


def rounded(function: Callable[..., Any], kind: Any = np.float64) -> Callable[..., Any]:
    """The function of its inputs rounded to whole numbers, so that equal ones and zeros occur."""

    def of(*inputs: Any, **options: Any) -> Any:
        if isinstance(inputs[0], Tensor):
            return function(*(cast(round(x), kind) for x in inputs), **options)
        return function(*(np.rint(np.asarray(x)).astype(kind) for x in inputs), **options)

    of.__name__ = function.__name__
    return of


def row(operation: Any, reference: Any, cases: Any, kind: Any = np.float64, **more: Any) -> Row:
    options = {"between": (-1.4, 1.4), "differentiable": False, "result": np.bool_, **more}
    return Row(rounded(operation, kind), rounded(reference, kind), cases, **options)


ROWS = [
    *(row(o, r, PAIRS) for o, r in (
        (e.eq, np.equal), (e.ne, np.not_equal), (e.lt, np.less), (e.le, np.less_equal), (e.gt, np.greater),
        (e.ge, np.greater_equal), (e.logical_and, np.logical_and), (e.logical_or, np.logical_or),
        (e.logical_xor, np.logical_xor),
    )),
    *(row(o, r, PAIRS, kind, result=kind) for kind in (np.int64, np.bool_) for o, r in (
        (e.bitwise_and, np.bitwise_and), (e.bitwise_or, np.bitwise_or), (e.bitwise_xor, np.bitwise_xor),
    )),
    row(elementwise.bitwise_left_shift, np.left_shift, PAIRS, np.int64, result=np.int64, between=(0, 3)),
    row(elementwise.bitwise_right_shift, np.right_shift, PAIRS, np.int64, result=np.int64, between=(0, 3)),
    row(e.bitwise_not, np.invert, ELEMENTWISE, np.int64, result=np.int64),
    row(e.bitwise_not, np.invert, ELEMENTWISE, np.bool_),
    row(e.logical_not, np.logical_not, ELEMENTWISE),
    *(Row(o, r, ELEMENTWISE, differentiable=False, result=np.bool_)
      for o, r in ((e.isnan, np.isnan), (e.isinf, np.isinf), (e.isfinite, np.isfinite))),
    *(row(o, r, ELEMENTWISE, options={"keepdims": keep}, covers=name)
      for o, r, name in ((reduce.all, np.all, "all_over"), (reduce.any, np.any, "any_over")) for keep in (False, True)),
    *(row(o, r, [((3, 2),), ((0, 2),), ((2, 0),)], options={"axis": 1}, covers=name)
      for o, r, name in ((reduce.all, np.all, "all_over"), (reduce.any, np.any, "any_over"))),
]  # fmt: skip
