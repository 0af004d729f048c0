"""Embeddings as a function."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.ops.indexing import table_rows
from sorix_dist.core.placement import shard_of, tagged
from sorix_dist.core.rules import whole


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` (n, features) that `input`, integers in [0, n) of any shape, names.

    The row `padding_idx` gets no gradient. TypeError if `input` does not hold integers, IndexError if one is out
    of range.
    """
    weight = whole(weight, "embedding") if shard_of(weight) is not None else weight
    index = input.array if isinstance(input, Tensor) else np.asarray(input)
    count = len(weight)
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding: input must hold integers, got dtype {index.dtype}")
    # As unsigned numbers negative ones are large, so one pass finds both kinds of stranger.
    if index.size and int(index.astype(np.uint64).max()) >= count:
        where = tuple(int(i) for i in np.argwhere((index < 0) | (index >= count))[0])
        raise IndexError(f"embedding: input must be in [0, {count}), got {index[where]} at {where}")
    if padding_idx is not None:
        if not -count <= padding_idx < count:
            raise ValueError(f"embedding: padding_idx must be in [{-count}, {count}), got {padding_idx}")
        padding_idx %= count
    rows = shard_of(input)
    if rows is None:
        return table_rows(weight, index=index, skip=padding_idx)
    if rows.group.ordered and isinstance(weight, Tensor) and weight.requires_grad:
        return table_rows(weight, index=whole(input, "embedding").array, skip=padding_idx)
    return tagged(table_rows(whole(weight, "embedding"), index=index, skip=padding_idx), rows)
