"""Loaders as a rank of some size sees them, without any other rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sorix_dist.core import placement


@contextmanager
def place(rank: int, size: int, pieces: int | None = None) -> Iterator[None]:
    """Makes loaders believe that this is `rank` of `size`, which cut batches into `pieces`."""
    group = placement.Group()
    group.rank, group.size, group.virtual_shards = rank, size, pieces
    before = placement._current
    placement._current = lambda: group
    try:
        yield
    finally:
        placement._current = before
