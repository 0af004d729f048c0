"""What can go wrong between ranks."""

from __future__ import annotations


class CollectiveMismatch(RuntimeError):
    """Two ranks made different calls where every rank must make the same."""


class SharedMemoryFull(MemoryError):
    """The ranks of a host asked for more shared memory than it has: raised on all ranks together, which can go on."""


class RankFailed(RuntimeError):
    """Another rank failed or ended, so that this rank's collective can never be complete."""
