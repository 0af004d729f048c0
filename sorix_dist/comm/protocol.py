"""The interface of all communicators, and the errors that they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Op = Literal["sum", "max", "min"]


class SharedMemoryFull(MemoryError):
    """The ranks of a host asked for more shared memory than it has: all ranks raise it, and may continue."""


class RankFailed(RuntimeError):
    """Another rank failed or ended, so this rank's collective can never complete."""


class Window(Protocol):
    """Memory that all ranks of this host see, made by `Comm.window`."""

    parts: list[NDArray[np.uint8]]
    """One array per rank of this host, in local-rank order: zeros at first, aligned to 64 bytes. What one rank wrote,
    the others may read after a `barrier()`. The memory lives as long as any rank has an array made from it."""
    local_rank: int
    """Position of this rank's own part in `parts`."""

    def barrier(self) -> None:
        """Wait for all ranks of this host; afterwards each of them sees what the others wrote before."""

    def sync(self) -> None:
        """A memory fence without a barrier. A rank that reads a word written after this call, and then calls it too,
        also sees everything that was written before it."""

    def close(self) -> None:
        """Free the memory: a collective of this host's ranks. No array made from `parts` may be used afterwards.
        Closing twice is allowed."""


class Wire(Protocol):
    """The encoding of the numbers in an exchange."""

    itemsize: int | None
    """Bytes of a number in a message; None: the same as in memory."""

    def pack(self, numbers: Array, body: Array) -> float:
        """Encode numbers into the bytes of a message's body. Return a scale, which the message carries beside it."""

    def add(self, body: Array, scale: float, numbers: Array) -> float:
        """Add numbers to those encoded in a body, in place. Return the new scale."""

    def unpack(self, body: Array, scale: float, out: Array) -> None:
        """Decode the numbers of a body."""


class Exchange(Protocol):
    """Sums one-dimensional arrays over ranks that are all on different hosts. A rank may begin before the others are
    ready."""

    def send(self, array: Array, start: int) -> None:
        """Send what can be sent without waiting, given that the numbers of `array` from `start` on are ready.

        Call it again, also with the same start, to pass on what has arrived. These numbers must not change until `sum`
        of the same array. Not a collective.
        """

    def sum(self, array: Array, out: Array, start_over: bool = False, agreed: bool = False) -> None:
        """Write the sum of the ranks' arrays, the same bits on all; `out` may be `array`. A call of all ranks.

        start_over: forget what was sent, because it has changed on a rank; the same on all ranks, for an array as long
        as before. agreed: the ranks know that all of them make this call, so it need not be compared.
        """


class Pieces(Protocol):
    """Arrays that ranks send each other piece by piece: each rank combines its share of every piece."""

    count: int
    """Number of pieces, the same on every rank."""

    def send(self, piece: int) -> Array:
        """A new array of shape (size, ...): entry r is for rank r."""

    def combine(self, piece: int, received: Array) -> Array:
        """What all ranks get, made of the entries for this rank, which are stacked in rank order."""

    def receive(self, piece: int, combined: Array) -> None:
        """Take what the ranks have combined, stacked in rank order."""


class Started(NamedTuple):
    """Messages that travel while this rank does something else.

    advance: does what can be done without waiting, and is no collective; finish: waits for the end, a call of all
    ranks.
    """

    advance: Callable[[], None]
    finish: Callable[[], None]


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
    cache: dict[Any, Any]
    """Objects that its users cache for its lifetime on this rank. They may refer to it."""

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        """Replace `array` on every rank by its sum, maximum or minimum over all ranks, elementwise.

        The sum of booleans is their logical or, as with NumPy's `+`; float16 is summed in float32 and
        rounded once. What max and min make of a NaN depends on the MPI.
        """

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        """Every rank's array, stacked in rank order: a new array of shape (size, *array.shape).

        meanwhile: may be called over and over while other hosts are waited for; it must not wait itself.
        """

    def all_to_all(self, array: Array) -> Array:
        """Send entry i of `array`, of shape (size, ...), to rank i; return the entries sent to this rank, stacked in
        rank order: a new array of the same shape."""

    def start_pieces(self, pieces: Pieces) -> Started:
        """Starts for each piece in turn an `all_to_all` of what it sends, and an `all_gather` of what it combines.
        Other calls may come before the end. Between hosts several pieces travel at once; on one host all travel at the
        end. A call of all ranks, which waits for none."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite `array` on every rank by the array of rank `root`."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """The `value` of rank `root` on every rank: a small Python object, pickled for the others."""

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        """Every rank's `value`, in rank order, on every rank: small Python objects, pickled. what: the name in errors
        and reports, the same on every rank."""

    def split(self, color: int, key: int = 0) -> Comm:
        """A communicator of the ranks that gave the same `color` (>= 0), ordered by (key, rank)."""

    def window(self, nbytes: int) -> Window:
        """Shared memory of this host's ranks, with `nbytes` bytes for this rank: a collective of all ranks. Ranks may
        give different numbers, 0 included."""

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        """An `Exchange` between the ranks of this communicator, encoded by `wire`; None unless there are several, and
        each on a host of its own. A collective of all ranks."""

    def barrier(self) -> None:
        """Wait until every rank has called it."""

    def abort(self, code: int = 1) -> None:
        """End all ranks at once with the exit code `code` (1 to 255), from any one of them."""
