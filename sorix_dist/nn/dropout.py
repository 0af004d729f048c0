"""Dropout layers: the mask of a row is the same, whoever holds the row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, Self

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.ops import dropout
from sorix_dist.nn.module import Module

_numbers: ContextVar[tuple[rng.Seed | None, Iterator[int]] | None] = ContextVar("numbers", default=None)


def _next_number() -> int:
    """The number of a new layer: how many came before it since the seed was set, the same on every rank."""
    # A seed that was not set by the user may still be replaced by rank 0's: it must not count anew.
    seed = rng.seed() if rng.seed().chosen else None
    known = _numbers.get()
    if known is None or known[0] is not seed:
        known = (seed, itertools.count())
        _numbers.set(known)
    return next(known[1])


class _Dropout(Module):
    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        dropout.check(type(self).__name__, p, inplace)
        self.p = p
        self.draws = dropout.Draws(_next_number())

    @property
    def calls(self) -> int:
        """How many masks this layer has drawn: what a checkpoint must keep, besides the seed, to go on alike."""
        return self.draws.calls

    @calls.setter
    def calls(self, value: int) -> None:
        self.draws.calls = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy is another layer: with the same number, two of them in one model would drop alike.
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(deepcopy({k: v for k, v in vars(self).items() if k != "draws"}, memo))
        made.draws = dropout.Draws(_next_number())
        return made

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(_Dropout):
    """In training, zeroes each element with probability p and divides the others by 1 - p (Srivastava et al. 2014).

    The first dimension is the batch. A row's mask follows from the seed, the layer, its call and the row's place
    in the global batch, so that it does not change with the number of ranks.
    """

    def forward(self, x: Any) -> Tensor:
        return dropout.dropout(x, self.p, self.training, draws=self.draws)


class Dropout2d(_Dropout):
    """In training, zeroes whole channels of inputs (N, C, ...) with probability p; else as Dropout."""

    def forward(self, x: Any) -> Tensor:
        return dropout.dropout2d(x, self.p, self.training, draws=self.draws)
