"""Numbers that reproducible mode computes after a forward, because they follow from sums over all rows.

A forward sees one virtual shard at a time. `loss.sqrt()` of a mean over rows, or the quotient of two sums, waits until
every shard has added its part. Until then its array holds NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import numpy as np

from sorix_dist.core.graph import Leaf, no_grad, recording
from sorix_dist.core.placement import Deferred, Partial, Shard, computing, refuse_value
from sorix_dist.core.tensor import Tensor


def waits(inputs: Sequence[Any]) -> bool:
    """Whether an operation on these operands waits: one is a sum over a virtual shard, and none has rows."""
    places = [x.place for x in inputs if isinstance(x, Tensor)]
    partial = any(isinstance(p, Partial) and p.group.isolated for p in places)
    return partial and not any(isinstance(p, Shard) for p in places)


def deferred(apply: Callable[..., Tensor], inputs: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The result of an operation on sums over a virtual shard, or on other deferred numbers. RuntimeError where it
    can't wait: beside rows, for integers, and outside of the forward."""
    batch = computing.get(get_ident())
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    places = [x.place for x in tensors if x.place is not None]
    sums = [p for p in places if isinstance(p, Deferred | Partial) and p.group.isolated]
    with no_grad(), np.errstate(all="ignore"):
        bare = [Tensor.of(x.array) if isinstance(x, Tensor) else x for x in inputs]
        example = apply(*bare, **options).array
    ours = batch is not None and all(p.group is batch.group and getattr(p, "batch", batch) is batch for p in sums)
    if batch is None or not ours or example.dtype.kind != "f" or any(isinstance(p, Shard) for p in places):
        refuse_value(sums[0], example, apply.__name__)
    result = Tensor.of(np.full_like(example, np.nan))
    result.place = Deferred(batch, apply, tuple(inputs), options)
    if recording.get() and any(x.origin is not None for x in tensors):
        result.origin = Leaf(example.shape, example.dtype)  # it only says that there is a gradient
    return result
