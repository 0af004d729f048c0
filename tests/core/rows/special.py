"""Functions of single elements beyond arithmetic, and systems of equations."""

from __future__ import annotations

import math

import numpy as np

from sorix_dist.core import algebra
from sorix_dist.core.ops import elementwise as s
from tests.support.core.opcheck import ELEMENTWISE, PAIRS, Row

ERF, ERFC = (np.vectorize(f, otypes=[float]) for f in (math.erf, math.erfc))
SHIFTS = "integers have no gradients and no floats: see test_torch_values"
MATRICES = {"0-d": "matrices"}


def quotient(x: np.ndarray, y: np.ndarray, mode: str) -> np.ndarray:
    return (np.floor if mode == "floor" else np.trunc)(x / y)


def factor_of_squares(x, cholesky=algebra.cholesky):
    return cholesky(np.matmul(x, np.swapaxes(x, -1, -2)))


def factor_of_squares_by_numpy(x: np.ndarray) -> np.ndarray:
    return factor_of_squares(x, np.linalg.cholesky)


def signs_and_logarithms(x: np.ndarray) -> np.ndarray:
    return np.stack(np.linalg.slogdet(x), -1)


ROWS = [
    Row(s.asin, np.arcsin, ELEMENTWISE, between=(-0.9, 0.9)),
    Row(s.acos, np.arccos, ELEMENTWISE, between=(-0.9, 0.9)),
    Row(s.sinh, np.sinh, ELEMENTWISE),
    Row(s.cosh, np.cosh, ELEMENTWISE),
    Row(s.asinh, np.arcsinh, ELEMENTWISE),
    Row(s.acosh, np.arccosh, ELEMENTWISE, between=(1.2, 3)),
    Row(s.atanh, np.arctanh, ELEMENTWISE, between=(-0.9, 0.9)),
    Row(s.exp2, np.exp2, ELEMENTWISE),
    Row(s.erf, ERF, ELEMENTWISE),
    Row(s.erfc, ERFC, ELEMENTWISE),
    Row(s.trunc, np.trunc, ELEMENTWISE, apart=(-2, -1, 0, 1, 2)),
    Row(s.atan2, np.arctan2, PAIRS, between=((-2, 2), (0.5, 2))),
    Row(s.fmod, np.fmod, PAIRS, between=((0.05, 0.9), (1, 2))),
    Row(s.fmod, np.fmod, PAIRS, between=((-0.9, -0.05), (1, 2))),
    Row(s.hypot, np.hypot, PAIRS, between=((0.5, 2), (-2, 2))),
    Row(s.logaddexp, np.logaddexp, PAIRS),
    *(
        Row(s.rounded_quotient, quotient, PAIRS, {"mode": mode}, between=((0.05, 0.9), (1, 2)))
        for mode in ("floor", "trunc")
    ),
    Row(algebra.solve_systems, np.linalg.solve, [((3, 3), (3, 2)), ((2, 1, 3, 3), (4, 3, 1)), ((0, 0), (0, 2))],
        between=((1, 2), (-2, 2)), tolerance=1e-9, lacks=MATRICES),
    Row(algebra.inv, np.linalg.inv, [((3, 3),), ((2, 2, 2),)], covers="solve_systems", tolerance=1e-8),
    Row(algebra.determinant, np.linalg.det, [((3, 3),), ((2, 2, 2),), ((0, 2, 2),)], tolerance=1e-9, lacks=MATRICES),
    Row(algebra.sign_and_logarithm, signs_and_logarithms, [((3, 3),), ((2, 2, 2),), ((0, 2, 2),)], tolerance=1e-8,
        lacks=MATRICES),
    Row(factor_of_squares, factor_of_squares_by_numpy, [((3, 3),), ((2, 2, 2),), ((0, 2, 2),)],
        covers="cholesky_factor", tolerance=1e-9, lacks=MATRICES),
]  # fmt: skip
