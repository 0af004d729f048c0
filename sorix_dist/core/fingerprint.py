"""Values that ranks compare: options as text, and the criteria that a backward has walked through."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any
from zlib import crc32

import numpy as np

from sorix_dist.core.graph import Described
from sorix_dist.core.random import Draws
from sorix_dist.core.tensor import Tensor, array_of

_FEW = 16  # numbers of an array that are shown


def as_text(value: Any) -> str | None:
    """A number, string, None, function or sequence of those as text; None for anything else. Floats have 7 digits,
    because processors may differ in the last ones."""
    if isinstance(value, tuple | list):
        parts = [as_text(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if value is None or isinstance(value, bool | np.bool_ | str | np.dtype | Integral):
        return str(value) if isinstance(value, np.generic) else repr(value)
    if isinstance(value, Real):
        return f"{float(value):.7g}"
    if isinstance(value, Draws):
        return f"masks of stream {value.number} from {value.calls} on"
    if callable(value) and not hasattr(value, "forward"):  # a function, not a module
        return getattr(value, "__qualname__", getattr(value, "__name__", None))
    return None


def array_as_text(value: Tensor | np.ndarray[Any, Any]) -> str:
    """The numbers of an array, or their count and a digest if there are more than 16."""
    array = array_of(value)
    numbers = np.asarray(array, np.float64).ravel().tolist()
    text = str(as_text(numbers))
    return text if len(numbers) <= _FEW else f"{len(numbers)} numbers with the digest {crc32(text.encode()):08x}"


Criteria = dict[int, Described]  # by digests of their options

_criteria: ContextVar[Criteria | None] = ContextVar("criteria", default=None)
collect_criteria = _criteria.set
"""Makes the backwards of this context add the criteria that they walk through to the given dict."""


def criterion_hook(fingerprint: int, criterion: Described) -> Callable[[Any], None]:
    """A hook for the losses of a criterion. fingerprint: a digest of its options, which must be the same on every
    rank."""

    def reached(gradient: Any) -> None:
        criteria = _criteria.get()
        if criteria is not None:
            criteria[fingerprint] = criterion

    reached.only_notes = True  # type: ignore[attr-defined]
    return reached
