"""What a communicator is: the one interface between the ranks, whatever carries the messages."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Op = Literal["sum", "max", "min"]


class Work(Protocol):
    """A collective on its way: its array belongs to the caller again after `wait()`."""

    def wait(self) -> None:
        """Return when the collective is complete on this rank."""


class _Done:
    def wait(self) -> None:
        return None


DONE: Work = _Done()
"""A Work that is complete already."""


class Window(Protocol):
    """Memory that all ranks of this host see, made by `Comm.window`."""

    parts: list[NDArray[np.uint8]]
    """One array per rank of this host, in local-rank order: the same memory on each of them, filled with
    zeros at first, 64-byte aligned. What one rank wrote, the others may read after a `barrier()`. The memory lives as
    long as any rank holds an array made from it."""
    local_rank: int
    """Position of this rank's own part in `parts`."""

    def barrier(self) -> None:
        """Wait for all ranks of this host; afterwards each of them sees what the others wrote before."""

    def close(self) -> None:
        """Give the memory back: a call of all ranks of this host. No array made from `parts` may be used
        afterwards. Closing twice is allowed."""


class Wire(Protocol):
    """How numbers travel in a message."""

    itemsize: int | None
    """Bytes of a number; None: as many as in memory."""

    def packed(self, numbers: Array) -> Array:
        """The bytes that stand for some numbers, up to 64 of them more than the numbers take: as many for as many
        numbers on every rank. It may be the memory of the numbers themselves."""

    def add(self, first: Array, second: Array, out: Array) -> None:
        """Writes the sum of the numbers that the messages of rank 0 and rank 1 stand for."""


class Exchange(Protocol):
    """Sums of one-dimensional arrays over two ranks, of which parts may be sent before the other rank is there."""

    def send(self, array: Array, start: int) -> None:
        """Starts to send what stands at or after `start`, as far as it fits into messages, and is not sent yet.

        It stays as it is until `sum`, which is to be called with the same array, or `withdraw`. A call of this rank.
        """

    def withdraw(self) -> None:
        """What was sent does not count: this rank goes on with another array or other numbers. A call of this rank."""

    def sum(self, array: Array, out: Array) -> None:
        """Writes the sum of both ranks' arrays, the same bits on both; `out` may be `array`. A call of both ranks."""


class Comm(Protocol):
    """The ranks that work together: all of them make the same calls in the same order.

    Arrays are C-contiguous ndarrays of bool, (u)int8 to (u)int64, float16, float32 or float64 in the
    machine's byte order, of one shape and dtype on all ranks; anything else raises TypeError or ValueError
    before a message is sent.
    """

    rank: int
    """0 to size - 1."""
    size: int
    """Number of ranks."""
    local_rank: int
    """Position among the ranks of this host, in rank order."""
    local_size: int
    """Number of ranks of this host."""
    host: int
    """Number of this rank's host, 0 to hosts - 1, counted in the order of the hosts' first ranks."""
    hosts: int
    """Number of hosts."""
    kept: dict[Any, Any]
    """What its users keep as long as it lives, on this rank: it may refer to the communicator itself."""

    def all_reduce(self, array: Array, op: Op = "sum") -> Work:
        """Replace `array` on every rank by its sum, maximum or minimum over all ranks, elementwise.

        The sum of booleans is their logical or, as with NumPy's `+`; float16 is summed in float32 and
        rounded once. What max and min make of a NaN depends on the MPI.
        """

    def all_gather(self, array: Array) -> Array:
        """Every rank's array, stacked in rank order: a new array of shape (size, *array.shape)."""

    def all_to_all(self, array: Array) -> Array:
        """What every rank has for this one: of an array of shape (size, ...) on every rank, entry i goes to rank i,
        and the entries that come here are stacked in rank order, a new array of the same shape."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite `array` on every rank by the array of rank `root`."""

    def share(self, value: Any, root: int = 0) -> Any:
        """The `value` of rank `root` on every rank: a small Python object, pickled for the others."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank: small Python objects, pickled."""

    def split(self, color: int, key: int = 0) -> Comm:
        """A communicator of the ranks that gave the same `color` (>= 0), ordered by (key, rank)."""

    def window(self, nbytes: int) -> Window:
        """Shared memory of this host's ranks with a part of `nbytes` bytes (0 is allowed, and each rank may
        ask for a different number) for this rank. Made by all ranks together."""

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        """What sums arrays of any size over the two ranks of this communicator, each on a host of its own, by
        messages in which numbers travel as `wire` says; None where there are other ranks. Made by all ranks together.
        """

    def barrier(self) -> None:
        """Wait until every rank has called it."""

    def abort(self, code: int = 1) -> None:
        """End all ranks at once with the exit code `code` (1 to 255), from any one of them."""
