"""What one rank does, or every rank for itself, and what all of them learn of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

from sorix_dist.comm import Comm

T = TypeVar("T")


def on_first_rank(comm: Comm, work: Callable[[], T]) -> T:
    """What `work`, which rank 0 does, returns or raises: on every rank. Called by all ranks.

    The result is a small object, pickled for the others.
    """
    result, error = _outcome(work) if comm.rank == 0 else (None, None)
    result, sent = comm.broadcast_object((result, _portable(error)))
    if error is not None:
        raise error
    if sent is not None:
        sent.add_note(f"raised on rank 0 of {comm.size}")
        raise sent
    return result  # type: ignore[no-any-return]


def on_every_rank(comm: Comm, work: Callable[[], T]) -> T:
    """What `work` returns on this rank; if it raises on any, the first of these ranks' error is raised on all others
    too. Called by all ranks."""
    result, error = _outcome(work)
    errors = comm.gather_objects(_portable(error))
    if error is not None:
        raise error
    for rank, other in enumerate(errors):
        if other is not None:
            other.add_note(f"raised on rank {rank} of {comm.size}")
            raise other
    return result  # type: ignore[return-value]


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - whoever asked raises it, when all ranks know
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """The error itself if it can be pickled, else one that says the same."""
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    except Exception:  # noqa: BLE001, S110 - a user's exception may do anything here
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
