"""The options of modules as text, so that ranks can compare them."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.ops.dropout import Draws
from sorix_dist.nn.module import Module


def options_of(module: Module) -> dict[str, str]:
    """The module's own public attributes that are numbers, texts, None, functions or sequences of those, by name.

    What changes while it works is not among them: tensors, arrays, whether it trains.
    """
    found = {
        name: text
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (text := as_text(value)) is not None
    }
    if shown := module.extra_repr():
        found["extra_repr()"] = shown
    return found


def as_text(value: Any) -> str | None:
    """A number, text, None, function or sequence of those as text, floats without the last digits, in which processors
    may differ; None for anything else."""
    if isinstance(value, tuple | list):
        parts = [as_text(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if value is None or isinstance(value, bool | np.bool_ | str | np.dtype | Integral):
        return str(value) if isinstance(value, np.generic) else repr(value)
    if isinstance(value, Real):
        return f"{float(value):.7g}"
    if isinstance(value, Draws):
        return f"masks of stream {value.number} from {value.calls} on"
    if isinstance(value, Callable | np.ufunc) and not isinstance(value, Module | Tensor):  # type: ignore[arg-type]
        return getattr(value, "__qualname__", getattr(value, "__name__", None))
    return None
