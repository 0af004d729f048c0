"""Loaders as a rank of some size sees them, without any other rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sorix_dist.core import placement
from sorix_dist.utils.data import loader


@contextmanager
def place(rank: int, size: int, pieces: int | None = None) -> Iterator[None]:
    """Makes loaders believe that this is `rank` of `size`, which cut batches into `pieces`."""
    before, group = loader.world, placement._current
    loader.world = lambda: (rank, size, pieces)
    placement._current = lambda: placement.ALONE
    try:
        yield
    finally:
        loader.world = before
        placement._current = group
