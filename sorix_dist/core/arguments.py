"""Checks of arguments that layers, optimizers and schedulers take alike."""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any

import numpy as np

from sorix_dist.core.device import raise_for_device
from sorix_dist.core.dtype import or_float32


def parameter_dtype(device: Any, dtype: Any) -> np.dtype[Any]:
    """The dtype of a layer's parameters, float32 for None; raises for any device but "cpu"."""
    raise_for_device(device)
    return or_float32(dtype)


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_int(name: str, value: Any, least: int) -> int:
    """`value` as an int; ValueError, with `name`, unless it is an integer >= `least`."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def int_or_none(name: str, value: Any, least: float = -inf) -> int | None:
    """`value` as an int, or None; ValueError, with `name`, unless it is None or an integer >= `least`."""
    if value is not None and (not is_integer(value) or value < least):
        raise ValueError(f"{name} must be an integer {f'>= {least} ' if least > -inf else ''}or None, got {value!r}")
    return None if value is None else int(value)


def at_least(least: int, owner: str = "", **numbers: Any) -> None:
    """ValueError that names the first argument (of `owner`, if given) that is not an integer >= `least`."""
    for argument, value in numbers.items():
        as_int(f"{owner}: {argument}" if owner else argument, value, least)


def in_range(name: str, value: Any, low: float, high: float = inf, *, closed: bool = False) -> None:
    """TypeError unless `value` is a number, ValueError unless it lies in [low, high), or with `closed` in [low, high].

    Without an upper bound it must be finite, or with `closed` may be infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if low <= number < high or (closed and number == high):
        return
    if high < inf:
        bounds = f"in [{low:g}, {high:g}{']' if closed else ')'}"
    else:
        bounds = "finite" if number == inf else f">= {low:g}"
    raise ValueError(f"{name} must be {bounds}, got {value}")
