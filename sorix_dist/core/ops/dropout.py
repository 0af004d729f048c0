"""Random numbers that belong to the rows of the global batch, whoever holds them: dropout's masks, and draws in the
shape of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from sorix_dist.core import random as rng
from sorix_dist.core.ops.elementwise import mul
from sorix_dist.core.placement import ALONE, Batch, Rows, Shard, shard_of
from sorix_dist.core.tensor import Array, Tensor, as_array

_BLOCK = 4  # 64-bit words that one step of Philox's counter makes
_DRAWS = _BLOCK * 4  # draws of 16 bits in them
_OF_FUNCTIONS = 2**63  # the number of `dropout` called as a function; layers count from 0


class Draws:
    """The masks of one layer, numbered: the layer's own number, and how many masks it has drawn.

    calls: the masks that each shard of the batch has seen so far. It belongs into a checkpoint: a layer
    that goes on with the same number of calls draws the masks of an undisturbed run.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._before = 0  # calls of every shard
        self._since: dict[int, int] = {}  # further ones, by shard: a process may compute several, one by one

    @property
    def calls(self) -> int:
        return self._before + max(self._since.values(), default=0)

    @calls.setter
    def calls(self, value: int) -> None:
        self._before, self._since = int(value), {}

    def next(self, shard: int) -> int:
        """The number of this mask among those of `shard`."""
        since = self._since.get(shard, 0)
        self._since[shard] = since + 1
        return self._before + since


functional_draws = rng.PerSeed("functional", lambda: Draws(_OF_FUNCTIONS))
"""The masks of `dropout` called as a function, counted anew from each `manual_seed`."""
row_draws = rng.PerSeed("rows", lambda: Draws(_OF_FUNCTIONS + 1))
"""The draws in the shape of rows of a batch (`randn_like` and its kin), counted in the same way."""


def dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, draws: Draws | None = None
) -> Tensor:
    """In training, zeroes each element with probability p and divides the others by 1 - p.

    input: the batch is its first dimension; one row of the batch may be several consecutive rows of it.
    The mask of a row is a function of the seed, the layer, its call and the row's place in the global batch.
    draws: the layer's count of masks; without it, calls of this function count together. p is met to 2**-17.
    inplace: ignored, since arrays are never overwritten.
    """
    check("dropout", p)
    if not training or p == 0:
        return input if isinstance(input, Tensor) else Tensor(input)
    shape = np.shape(input)
    return _masked(input, p, shape if shape else (1,), shape, draws)


def dropout2d(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, draws: Draws | None = None
) -> Tensor:
    """In training, zeroes each channel of each row with probability p; input: (N, C, ...), else as `dropout`."""
    check("dropout2d", p)
    shape = np.shape(input)
    if len(shape) < 2:
        raise ValueError(f"dropout2d: input must have shape (N, C, ...), got shape {tuple(shape)}")
    if not training or p == 0:
        return input if isinstance(input, Tensor) else Tensor(input)
    return _masked(input, p, shape[:2], (*shape[:2], *(1 for _ in shape[2:])), draws)


def check(name: str, p: float) -> None:
    """ValueError, for the function or layer `name`, unless p is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p must be a probability in [0, 1], got {p!r}")


def _masked(input: Any, p: float, drawn: tuple[int, ...], shape: tuple[int, ...], draws: Draws | None) -> Tensor:
    """input times a mask of `drawn` elements, first dimension the rows, in `shape`."""
    dtype = (input.array if isinstance(input, Tensor) else as_array(input)).dtype
    if dtype.kind != "f":
        raise TypeError(f"dropout: input must be of floating point dtype, got {dtype}")
    keep = _kept(p, drawn, functional_draws() if draws is None else draws, shard_of(input))
    scale = 1 / (1 - p) if p < 1 else 0.0
    return mul(input, np.multiply(keep, scale, dtype=dtype).reshape(shape))


def _kept(p: float, shape: tuple[int, ...], draws: Draws, place: Shard | None) -> Array:
    """Which elements stay."""
    words = words_by_row(shape, draws, place, _DRAWS)
    units = len(words)
    fine = words.view(np.uint16).reshape(units, 4 * words.shape[1])[:, : int(np.prod(shape)) // max(1, units)]
    kept: Array = fine >= min(round(p * 2**16), 2**16 - 1)
    return kept.reshape(shape)


def words_by_row(shape: tuple[int, ...], draws: Draws, place: Shard | None, per_step: int) -> Array:
    """Random 64-bit words for an array of `shape`, of which `place` are the rows (None: the first axis has all rows):
    (units, words), with one unit for each element along the rows' axis and those before it.

    per_step: how many elements four words are for. The words of a row are a function of the seed, of `draws` and of
    the row's place in the global batch: they begin at a step of the counter of their own, whose upper words are the
    numbers of the layer and of its call.
    """
    if place is None or place.axis >= len(shape):
        count = shape[0] if shape else 1
        place = Batch(Rows(0, count, count), ALONE).at(0)
        shape = shape or (1,)
    call, rows = draws.next(place.batch.shard), place.rows
    steps = -(-int(np.prod(shape[place.axis + 1 :])) // per_step)
    key = np.array([rng.seed().value, 0], np.uint64)
    blocks = []
    for before in range(int(np.prod(shape[: place.axis])) * place.outer):
        first = (before * rows.total + rows.start) * place.inner
        counter = np.array([first * steps, 0, draws.number, call], np.uint64)
        count = place.batch.held * place.inner * steps * _BLOCK
        blocks.append(np.asarray(np.random.Philox(counter=counter, key=key).random_raw(count), np.uint64))
    words = blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.empty(0, np.uint64)])
    units = int(np.prod(shape[: place.axis + 1]))
    return words.reshape(units, steps * _BLOCK)


def uniform_by_row(shape: tuple[int, ...], place: Shard) -> Array:
    """Numbers from [0, 1) of float64, one for each element of rows of a batch."""
    words = words_by_row(shape, row_draws(), place, _BLOCK)
    width = int(np.prod(shape[place.axis + 1 :]))
    return ((words[:, :width] >> np.uint64(11)) * 2.0**-53).reshape(shape)


def normal_by_row(shape: tuple[int, ...], place: Shard) -> Array:
    """Numbers of float64 from the normal distribution, one for each element of rows (Box and Muller 1958)."""
    u, v = uniform_by_row(shape, place), uniform_by_row(shape, place)
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))
