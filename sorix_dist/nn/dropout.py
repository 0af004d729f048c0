"""Dropout layers: the mask of a row is the same, whoever holds the row."""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any, Self

from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.ops import activation as dropout
from sorix_dist.nn.module import Module

# How many layers were made since the seed was set, the same on every rank.
_numbers = rng.PerSeed("numbers", itertools.count)


class _Dropout(Module):
    _in_repr = ("p",)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        dropout.check(type(self).__name__, p, inplace)
        self.p = p
        self.draws = rng.Draws(next(_numbers()))

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
        made.draws = rng.Draws(next(_numbers()))
        return made


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
