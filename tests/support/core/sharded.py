"""Rows of a larger batch in a single process, and a rank that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Batch, Group, Rows, tagged

Array = np.ndarray[Any, Any]


class OneOfTwo(Group):
    """A rank beside another one.

    answer: makes the sum over both ranks of this one's part; None if nothing may be asked.
    asked: what it was asked for; told: what it was to tell the user.
    """

    parts = 2
    single = False

    def __init__(self, answer: Callable[[Array], Array] | None = None) -> None:
        self.answer = answer
        self.asked: list[Array] = []
        self.told: list[str] = []

    def reduce(self, array: Array, what: str) -> Array:
        assert self.answer is not None, f"{what} asks the other ranks"
        self.asked.append(np.array(array))
        return np.array(self.answer(array))

    def counts(self, held: int) -> tuple[int, int]:
        return 0, int(self.reduce(np.array(held), "the number of selected rows"))

    def warn(self, message: str) -> None:
        self.told.append(message)


def sharded(
    input: Any,
    start: int,
    total: int,
    group: Group | None = None,
    *,
    axis: int = 0,
    each: int = 1,
    shard: int | None = None,
    trained: bool = False,
) -> Tensor:
    """A tensor whose axis holds rows of a batch of `total`, from `start` on, `each` elements for one of them.

    shard: the virtual shard of reproducible mode that is being computed, if any.
    """
    array = np.asarray(input)
    rows = Rows(start, start + array.shape[axis] // each, total)
    group = OneOfTwo() if group is None else group
    group.isolated = shard is not None
    batch = Batch(rows, group, shard or 0)
    return tagged(Tensor(array, requires_grad=trained), batch.at(axis, inner=each))
