"""Matrix products and sums of products."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core.ops import matrix
from sorix_dist.core.ops.matrix import einsum
from tests.support.core.opcheck import Row

PRODUCTS = [
    ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3,), (2, 3, 2)), ((2, 3, 2), (2,)),
    ((2, 3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2)), ((2, 3), (4, 3, 2)), ((2, 1, 2, 3), (4, 3, 2)),
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 2)), ((2, 3, 0), (0, 2)), ((0,), (0,)), ((3, 2), (2, 0)),
]  # fmt: skip
LINEAR = [
    ((4, 3), (3, 2), (1, 2)), ((4, 3), (3, 2), (2,)), ((4, 3), (3, 2), None), ((2, 4, 3), (3, 2), (1, 2)),
    ((3,), (3, 2), (2,)), ((0, 3), (3, 2), (1, 2)), ((2, 0, 3), (3, 2), (2,)), ((4, 0), (0, 2), (2,)),
    ((2, 40), (40, 800), (800,)), ((0, 40), (40, 800), None),  # few rows and large weights
]  # fmt: skip


def by_equation(equation: str) -> Any:
    def sums(*operands: Any) -> Any:
        return einsum(equation, *operands)

    sums.__name__ = f"einsum {equation}"
    return sums


def row(equation: str, *cases: Any) -> Row:
    reference = lambda *operands: np.einsum(equation, *operands)  # noqa: E731
    return Row(by_equation(equation), reference, list(cases), tolerance=1e-11, covers="matrix_product")


ROWS = [
    Row(matrix.matmul, np.matmul, PRODUCTS, covers="matrix_product", lacks={"0-d": "numbers are no matrices"}),
    Row(matrix.linear, lambda x, w, b: x @ w + (0 if b is None else b.reshape(-1)), LINEAR,
        lacks={"0-d": "there must be features"}),
    Row(matrix.outer, np.outer, [((3,), (2,)), ((0,), (2,))], covers="mul"),
    row("ij,jk->ik", ((2, 3), (3, 4)), ((0, 3), (3, 2)), ((2, 0), (0, 3))),
    row("ij,jk", ((2, 3), (3, 4))),
    row("ij->ji", ((2, 3),)),
    row("ij", ((2, 3),)),
    row("ba", ((2, 3),)),
    row("ii->i", ((3, 3),)),
    row("ii", ((3, 3),)),
    row("iji->j", ((3, 2, 3),)),
    row("ij->", ((2, 3),), ((0, 3),)),
    row("i,i->", ((3,), (3,))),
    row("i,i->i", ((3,), (3,))),
    row("i,j->ji", ((3,), (2,))),
    row("ij,i->j", ((2, 3), (2,))),
    row("bhqd,bhkd->bhqk", ((2, 2, 3, 2), (2, 2, 4, 2))),
    row("...ij,...jk->...ik", ((2, 2, 3), (2, 3, 2)), ((2, 1, 2, 3), (4, 3, 2)), ((2, 3), (3, 2))),
    row("...i->...", ((2, 3),), ((3,),)),
    row("i...,i->...", ((2, 3, 2), (2,))),
    row("ij,jk,kl->il", ((2, 3), (3, 2), (2, 4))),
    row("a,b,a,b->ab", ((2,), (3,), (2,), (3,))),
    row("ij,kl->ik", ((2, 3), (2, 4))),
    row(",ij->ij", ((), (2, 3))),
    row("->", ((),)),
]  # fmt: skip
