"""The functions between the layers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sorix_dist.core.ops import activation as a
from tests.support.core.opcheck import ELEMENTWISE, Row

WITH_AXIS = [((3, 4),), ((2, 3, 0),), ((2, 3, 2),)]
NO_AXIS = {"0-d": "there is no axis to go along"}
LONG = [((400, 350),), ((2, 50, 3, 500),)]  # more than is computed at a time
ERF = np.vectorize(math.erf, otypes=[float])


def softmax(x, axis):
    e = np.exp(x)
    return e / e.sum(axis=axis, keepdims=True)


def log_sum_exp(x, axis):
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x).sum(axis=axis, keepdims=True))


def by_scipy(function):
    def apply(x):
        pytest.importorskip("scipy")
        return function(x)

    return apply


ROWS = [
    Row(a.relu, lambda x: np.maximum(x, 0), ELEMENTWISE + LONG, apart=(0,)),
    *(
        Row(a.leaky_relu, lambda x, slope: np.where(x > 0, x, slope * x), ELEMENTWISE, {"slope": slope}, apart=(0,))
        for slope in (0.01, 0.0, -0.5, 2.0)
    ),
    Row(a.tanh, np.tanh, ELEMENTWISE),
    Row(a.logistic, lambda x: 1 / (1 + np.exp(-x)), ELEMENTWISE),
    Row(a.silu, lambda x: x / (1 + np.exp(-x)), ELEMENTWISE),
    Row(a.elu, lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)), ELEMENTWISE, {"alpha": 1.3}, apart=(0,)),
    Row(
        a.softplus,
        lambda x, beta, threshold: np.where(beta * x > threshold, x, np.log1p(np.exp(beta * x)) / beta),
        ELEMENTWISE,
        {"beta": 2.0, "threshold": 1.0},
        apart=(0.5,),
    ),
    Row(
        a.gelu_by_tanh,
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        ELEMENTWISE + LONG,
    ),
    Row(by_scipy(a.gelu_by_erf), lambda x: x / 2 * (1 + ERF(x / np.sqrt(2))), ELEMENTWISE, covers="gelu_by_erf"),
    *(
        row
        for axis in (0, 1)
        for row in (
            Row(a.softmax_along, softmax, WITH_AXIS, {"axis": axis}, lacks=NO_AXIS),
            Row(
                a.log_softmax_along, lambda x, axis: x - log_sum_exp(x, axis), WITH_AXIS, {"axis": axis}, lacks=NO_AXIS
            ),
            Row(a.log_sum_exp_along, log_sum_exp, WITH_AXIS, {"axis": axis}, lacks=NO_AXIS),
        )
    ),
]
