"""Checks that ranks have equal values and models, and errors of one rank that all ranks raise."""

from __future__ import annotations

import hashlib
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from threading import get_ident
from time import monotonic
from typing import TypeVar
from zlib import crc32

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.core import random as rng
from sorix_dist.core.capture import uncaptured
from sorix_dist.nn.module import Module, options_of
from sorix_dist.store import files
from sorix_dist.watchdog import watch

T = TypeVar("T")

NEWS_SECONDS = 1.0
"""Seconds between two messages of rank 0 that its work goes on."""

_listeners: dict[int, Callable[[], None]] = {}
"""By thread, a function that is called after each piece of a file."""


def _progress() -> None:
    watch.works()
    if listener := _listeners.get(get_ident()):
        listener()


files.on_progress = _progress


@contextmanager
def on_progress(listener: Callable[[], None]) -> Iterator[None]:
    """Calls `listener` after each piece of a file that this thread reads or writes in this block."""
    _listeners[get_ident()] = listener
    try:
        yield
    finally:
        del _listeners[get_ident()]


def same_everywhere(comm: Comm, what: str, lines: list[str], hint: str = "") -> None:
    """ValueError on every rank, naming the first difference and the ranks that have it, if `lines` are not the same on
    all of them; hint: the way out. A call of all ranks."""
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    digests = comm.gather_objects(digest)
    others = [r for r, d in enumerate(digests) if d != digests[0]]
    if not others:
        return
    everywhere = comm.gather_objects(lines)
    first, second = next((a, b) for a, b in zip_longest(everywhere[0], everywhere[others[0]]) if a != b)
    alike = ", ".join(str(r) for r in others[1:] if everywhere[r] == everywhere[others[0]])
    raise ValueError(
        f"{what} must be the same on every rank: rank 0 has {first or 'no more'}, rank {others[0]} has "
        f"{second or 'no more'} at the same place{f', and so has rank {alike}' if alike else ''}{hint}"
    )


def describe_state(module: Module) -> list[str]:
    """One line for each parameter and buffer: name, shape, dtype, and whether it requires a gradient."""

    def line(name: str, tensor: Tensor) -> str:
        return f"'{name}' of shape {tuple(tensor.array.shape)} and dtype {tensor.array.dtype}"

    parameters = [
        f"{line(name, p)}{'' if p.requires_grad else ' that requires no gradient'}"
        for name, p in module.named_parameters()
    ]
    return parameters + [line(name, buffer) for name, buffer in module.named_buffers()]


def describe_modules(module: Module) -> list[str]:
    """One line for each module, of its class, and for each of its options and random streams."""
    lines = []
    for name, part in module.named_modules():
        where = f"module '{name}'" if name else "the model"
        what = f"{where} ({type(part).__name__})"
        lines += [what, *(f"{what} with {option} = {text}" for option, text in options_of(part).items())]
        for option, stream in vars(part).items():
            if isinstance(stream, rng.STREAMS):
                state = crc32(repr(rng.stream_state(stream)).encode())
                lines.append(f"{what} with {option} = a random stream whose state has the checksum {state}")
    return lines


@uncaptured
def on_first_rank(comm: Comm, work: Callable[[], T]) -> T:
    """Calls `work` on rank 0; every rank returns its result or raises its error. A call of all ranks.

    The result is pickled, so it should be small. Files that `work` reads or writes may take longer than the time-out.
    """
    result, error, last_news = None, None, monotonic()

    def progress() -> None:  # ranks of other hosts learn of it by messages alone
        nonlocal last_news
        if monotonic() - last_news > NEWS_SECONDS:
            comm.broadcast_object((False, None, None))
            last_news = monotonic()

    if comm.rank == 0:
        with on_progress(progress):
            result, error = _outcome(work)
    finished = False
    while not finished:
        finished, result, sent = comm.broadcast_object((True, result, _portable(error)))
    if error is not None:
        raise error
    if sent is not None:
        sent.add_note(f"raised on rank 0 of {comm.size}")
        raise sent
    return result  # type: ignore[return-value]


@uncaptured
def on_every_rank(comm: Comm, work: Callable[[], T]) -> T:
    """Calls `work` on every rank and returns this rank's result. If it raises on some ranks, the others raise the error
    of the first of these. A call of all ranks."""
    result, error = _outcome(work)
    there = None if error is None else f"there:\n{''.join(traceback.format_exception(error))}"
    errors = comm.gather_objects((_portable(error), there))
    if error is not None:
        raise error
    for rank, (other, there) in enumerate(errors):
        if other is not None:
            other.add_note(there)
            other.add_note(f"raised on rank {rank} of {comm.size}")
            raise other
    return result  # type: ignore[return-value]


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - the caller raises it, when all ranks know
        return None, error


def _portable(error: Exception | None) -> Exception | None:
    """A copy of the error without its traceback; a RuntimeError with its text if it can't be pickled."""
    if error is None:
        return None
    try:
        sent = pickle.loads(pickle.dumps(error))
        assert isinstance(sent, Exception)
    except Exception:  # noqa: BLE001 - a user's exception may do anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return sent
