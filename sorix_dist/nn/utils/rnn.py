"""Sequences of several lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sorix_dist.core import Tensor, as_tensor
from sorix_dist.core.keywords import missing_from
from sorix_dist.core.ops.join import pad, stack

__all__ = ["pad_sequence"]


def pad_sequence(sequences: Sequence[Any], batch_first: bool = False, padding_value: float = 0.0) -> Tensor:
    """Sequences (T_i, ...) as one tensor (T, N, ...), or (N, T, ...) with `batch_first`: each with `padding_value` up
    to the longest. ValueError for sequences whose other dimensions differ."""
    given = [as_tensor(x) for x in sequences]
    if not given or any(x.ndim == 0 or x.shape[1:] != given[0].shape[1:] for x in given):
        shapes = ", ".join(str(tuple(x.shape)) for x in given[:8]) or "none"
        raise ValueError(f"pad_sequence: sequences must differ in their first dimension only, got shapes {shapes}")
    longest = max(len(x) for x in given)
    padded = [pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)), value=padding_value) for x in given]
    return stack(padded, dim=0 if batch_first else 1)


__getattr__ = missing_from(__name__, globals())
