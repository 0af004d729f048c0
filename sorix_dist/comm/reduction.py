"""How communicators combine the arrays of all ranks where no MPI does it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from sorix_dist.comm.protocol import Array, Comm, Op, Pieces, Started

_FUNCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def combined(arrays: Sequence[Array], op: Op) -> Array:
    """What `Comm.all_reduce` makes of these arrays, one of each rank; float16 in float32."""
    wide = np.float32 if arrays[0].dtype == np.float16 else arrays[0].dtype
    total: Array = reduce(_FUNCTIONS[op], arrays[1:], arrays[0].astype(wide))
    return total


def write(total: Array, array: Array) -> None:
    """Overwrites an array by a total, which is rounded if that is wider."""
    with np.errstate(over="ignore"):
        array[...] = total


def one_by_one(comm: Comm, pieces: Pieces) -> Started:
    """`Comm.start_pieces` without anything under way: all pieces travel at the end, one after the other."""

    def finish() -> None:
        for piece in range(pieces.count):
            received = comm.all_to_all(pieces.send(piece))
            pieces.receive(piece, comm.all_gather(pieces.combine(piece, received)))

    return Started(lambda: None, finish)
