"""Fills existing tensors, or their `data`, with starting values, in place; every function returns what it was given.

Fans are the numbers of inputs and outputs of one unit. A matrix is (in, out), as in `Linear`; a weight with
more dimensions is (out, in, *kernel), as in the convolutions, and its fans are times the kernel's size.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.arguments import as_int, checked, in_range, one_of
from sorix_dist.core.keywords import missing_from
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.ops.index_parts import become_whole
from sorix_dist.core.tensor import Array, array_of


@checked
def uniform_(t: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fills with numbers drawn uniformly from [a, b)."""
    if not a <= b:
        raise ValueError(f"uniform_: a must be <= b, got a = {a} and b = {b}")
    return _fill(t, rng.generator().uniform(a, b, _shape(t)))


@checked
def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fills with normally distributed numbers."""
    return _fill(t, rng.generator().normal(mean, _deviation("normal_", std), _shape(t)))


@checked
def trunc_normal_(t: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills with normally distributed numbers in [a, b]: the inverse of their distribution, at uniform numbers.

    ValueError if [a, b] is empty, or so far out that it holds none of the distribution.
    """
    from statistics import NormalDist  # slow to import, and rarely used

    normal = NormalDist(mean, _deviation("trunc_normal_", std))
    if std == 0 and a <= mean <= b:
        return _fill(t, mean)
    low, high = (normal.cdf(a), normal.cdf(b)) if std else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"trunc_normal_: [a, b] must hold some of the distribution, got [{a}, {b}] for {mean} ± {std}")
    # The ends of (0, 1) have no finite inverse.
    levels = np.clip(rng.generator().uniform(low, high, prod(_shape(t))), 1e-300, np.nextafter(1.0, 0.0))
    values = np.array([normal.inv_cdf(level) for level in levels.tolist()])
    return _fill(t, np.clip(values, a, b).reshape(_shape(t)))


@checked
def constant_(t: Tensor, val: float) -> Tensor:
    """Fills with one number."""
    return _fill(t, val)


def zeros_(t: Tensor) -> Tensor:
    """Fills with 0."""
    return _fill(t, 0.0)


def ones_(t: Tensor) -> Tensor:
    """Fills with 1."""
    return _fill(t, 1.0)


@checked
def xavier_uniform_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform with variance gain² · 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""
    in_range("xavier_uniform_: gain", gain, 0)
    bound = sqrt(3) * gain * sqrt(2 / _positive(sum(fans(t))))
    return uniform_(t, -bound, bound)


@checked
def xavier_normal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with variance gain² · 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""
    in_range("xavier_normal_: gain", gain, 0)
    return normal_(t, 0.0, gain * sqrt(2 / _positive(sum(fans(t)))))


@checked
def kaiming_uniform_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Uniform with variance gain² / fan (He et al. 2015); `a` is the slope of a leaky ReLU that follows."""
    bound = sqrt(3) * _kaiming_deviation(t, a, mode, nonlinearity)
    return uniform_(t, -bound, bound)


@checked
def kaiming_normal_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal with variance gain² / fan (He et al. 2015); `a` is the slope of a leaky ReLU that follows."""
    return normal_(t, 0.0, _kaiming_deviation(t, a, mode, nonlinearity))


@checked
def orthogonal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Orthogonal rows, or columns if there are fewer of those, each of length `gain` (Saxe et al. 2014).

    Dimensions after the first count as one. The Q of a QR of normal numbers, with the signs of R's diagonal,
    is uniform over all such matrices.
    """
    fans(t)  # at least two dimensions
    rows = _shape(t)[0]
    columns = prod(_shape(t)[1:])
    if not rows * columns:
        return t
    q, r = np.linalg.qr(rng.generator().standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return _fill(t, gain * (q if rows >= columns else q.T).reshape(_shape(t)))


def eye_(t: Tensor) -> Tensor:
    """Fills a matrix with the identity."""
    shape = _shape(t)
    if len(shape) != 2:
        raise ValueError(f"eye_: t must be a matrix, got shape {shape}")
    return _fill(t, np.eye(shape[0], shape[1]))


@checked
def dirac_(t: Tensor, groups: int = 1) -> Tensor:
    """Fills the weight (out, in, *kernel) of a convolution with 1 to 3 dimensions so that each group of outputs is its
    inputs, as far as there are any."""
    shape = _shape(t)
    if not 3 <= len(shape) <= 5 or shape[0] % as_int("dirac_: groups", groups, 1):
        raise ValueError(f"dirac_: t must be (out, in, *kernel) with out a multiple of {groups}, got shape {shape}")
    values, each = np.zeros(shape), shape[0] // groups
    for i in range(min(each, shape[1])):
        place: Any = (slice(i, None, each), i, *(n // 2 for n in shape[2:]))
        values[place] = 1
    return _fill(t, values)


@checked
def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the scale of what passes through a function; `param`: the slope of "leaky_relu"."""
    if isinstance(nonlinearity, str) and nonlinearity == "leaky_relu":
        return sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    gains = {"linear": 1.0, "identity": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": sqrt(2), "selu": 3 / 4}
    one_of("nonlinearity", nonlinearity, *sorted([*gains, "leaky_relu"]))
    return gains[nonlinearity]


def fans(t: Tensor) -> tuple[int, int]:
    """The fan-in and fan-out of a weight; ValueError if it has fewer than two dimensions."""
    shape = _shape(t)
    if len(shape) < 2:
        raise ValueError(
            f"Fan in and fan out can not be computed for tensor with fewer than 2 dimensions, got shape {shape}"
        )
    if len(shape) == 2:
        return shape[0], shape[1]
    kernel = prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def _kaiming_deviation(t: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    one_of("mode", mode, "fan_in", "fan_out")
    fan = fans(t)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / sqrt(_positive(fan))


def _positive(fan: int) -> int:
    return max(fan, 1)  # a tensor without elements needs no scale


def _deviation(name: str, std: float) -> float:
    in_range(f"{name}: std", std, 0)
    return std


def _array(t: Tensor) -> Array:
    array = array_of(t)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"t must be a Tensor, got {type(t).__name__}")
    return array


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(_array(t).shape)


def _fill(t: Tensor, values: Any) -> Tensor:
    if isinstance(t, Tensor):
        become_whole(t)
    array = _array(t)
    refuse_frozen(array)
    np.copyto(array, values, casting="same_kind")
    return t


__getattr__ = missing_from(__name__, globals())
