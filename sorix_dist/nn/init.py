"""Fills existing tensors with starting values."""

from __future__ import annotations

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng


def uniform_(t: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fills with numbers drawn uniformly from [a, b)."""
    return _fill(t, rng.generator().uniform(a, b, t.array.shape))


def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fills with normally distributed numbers."""
    return _fill(t, rng.generator().normal(mean, std, t.array.shape))


def constant_(t: Tensor, val: float) -> Tensor:
    """Fills with one number."""
    return _fill(t, val)


def zeros_(t: Tensor) -> Tensor:
    """Fills with 0."""
    return _fill(t, 0.0)


def ones_(t: Tensor) -> Tensor:
    """Fills with 1."""
    return _fill(t, 1.0)


def _fill(t: Tensor, values: object) -> Tensor:
    np.copyto(t.array, values, casting="same_kind")  # type: ignore[arg-type]
    return t
