"""The seed, and the stream of random numbers that layers are initialised from."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np


class Seed:
    """A seed, whether the user chose it, and the stream that grows from it."""

    def __init__(self, value: int, chosen: bool) -> None:
        self.value = value
        self.chosen = chosen
        self.generator = np.random.Generator(np.random.Philox(value))


_process = Seed(secrets.randbits(63), chosen=False)
_seed: ContextVar[Seed | None] = ContextVar("seed", default=None)


def seed() -> Seed:
    """The seed in force here."""
    return _seed.get() or _process


def inherit(given: Seed) -> None:
    """Takes over a seed and its stream, where this context has none: as in a thread that the program started."""
    if _seed.get() is None:
        _seed.set(given)


def adopt(value: int, chosen: bool = False) -> Seed:
    """Starts all random numbers of this rank anew from a seed."""
    fresh = Seed(value, chosen)
    _seed.set(fresh)
    return fresh


def manual_seed(value: int) -> np.random.Generator:
    """Starts all random numbers anew from `value`, an integer in [0, 2**63); returns their generator."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise ValueError(f"manual_seed: value must be an integer in [0, 2**63), got {value!r}")
    return adopt(int(value), chosen=True).generator


def generator() -> np.random.Generator:
    """The stream that random tensors and initial weights are drawn from."""
    return seed().generator


def stream(*key: int) -> np.random.Generator:
    """A stream of its own for a purpose: a function of the seed and the key alone, whoever asks."""
    words: list[Any] = [seed().value, *key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class PerSeed:
    """Something that is made anew after each `manual_seed`. A seed that the user has not chosen may still be replaced
    by rank 0's, which starts nothing anew."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._made: ContextVar[tuple[Seed | None, Any] | None] = ContextVar(name, default=None)
        self._make = make

    def __call__(self) -> Any:
        chosen = seed() if seed().chosen else None
        made = self._made.get()
        if made is None or made[0] is not chosen:
            made = chosen, self._make()
            self._made.set(made)
        return made[1]


def state() -> dict[str, Any]:
    """The seed and how far its stream was read: numbers, texts and arrays."""
    return {"seed": seed().value, "stream": generator().bit_generator.state}


def go_on(saved: dict[str, Any]) -> None:
    """Goes on where a `state()` was taken. What was counted since the seed was set stays counted."""
    here = seed()
    generator = np.random.Generator(np.random.Philox(0))
    generator.bit_generator.state = saved["stream"]
    here.value, here.generator = int(saved["seed"]), generator
