"""A communicator that finds ranks out of step before their messages are mixed."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from sorix_dist.comm import table as layout
from sorix_dist.comm import watch
from sorix_dist.comm.arguments import check_array, check_nbytes, check_one_each, check_op, check_root, check_split
from sorix_dist.comm.errors import CollectiveMismatch, SharedMemoryFull
from sorix_dist.comm.protocol import Array, Comm, Exchange, Op, Window, Wire, Work
from sorix_dist.comm.site import call_site
from sorix_dist.comm.table import DEPTH, State
from sorix_dist.comm.watch import Channel, Row

T = TypeVar("T")

SURE_SECONDS = 0.002
"""How long a difference must last: words of another processor's may be seen in another order than they were written."""


@lru_cache(maxsize=4096)
def signature(text: str) -> int:
    """A number for a text: the same on every rank, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 | 1


_BARRIER = signature("barrier of a window")
_CLOSE = signature("close of a window")
_GOODBYE = "has ended (its script came to its end, or sys.exit)"


class Checked:
    """The communicator `inner`, every collective of which is compared with those of the other ranks first.

    The ranks of one host compare in their table: who comes to a collective looks at who is there already. Ranks of
    several hosts, or without a table, send each other 16 bytes. A difference in the operation, its root, dtype or shape
    is a CollectiveMismatch before anything is mixed; all-reduces that are alike but in another order are found at the
    second of them, where the source names their arguments differently. After a collective that has failed on a rank,
    that rank makes no further calls here.
    """

    def __init__(self, inner: Comm) -> None:
        self.inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self.local_rank = inner.local_rank
        self.local_size = inner.local_size
        self.host = inner.host
        self.hosts = inner.hosts
        self.kept: dict[Any, Any] = {}
        row = watch.row()
        self._row = row
        with watch.wrapping(inner.size):
            self.channel = Channel(row, inner.share(secrets.randbits(62) | 1))
            seen = row is not None and row.table.shared
            places = inner.gather_objects((row.rank, self.channel.at) if row is not None and seen else (-1, -1))
        self._members = [page for page, _ in places]
        self._by_memory = inner.hosts == 1 and all(at >= 0 for _, at in places)
        self._others = [(rank, at) for rank, (_, at) in enumerate(places) if rank != inner.rank]
        self._latest = "", ""

    def all_reduce(self, array: Array, op: Op = "sum") -> Work:
        self._check(check_array, "all_reduce", array, written=True)
        self._check(check_op, "all_reduce", op)
        return self._call(_text("all_reduce", array.dtype, array.shape, op), self.inner.all_reduce, array, op)

    def all_gather(self, array: Array) -> Array:
        self._check(check_array, "all_gather", array, written=False)
        return self._call(_text("all_gather", array.dtype, array.shape), self.inner.all_gather, array)

    def all_to_all(self, array: Array) -> Array:
        self._check(check_one_each, "all_to_all", array, self.size)
        return self._call(_text("all_to_all", array.dtype, array.shape), self.inner.all_to_all, array)

    def broadcast(self, array: Array, root: int = 0) -> None:
        self._check(check_array, "broadcast", array, written=True)
        self._check(check_root, "broadcast", root, self.size)
        self._call(_text("broadcast", array.dtype, array.shape, root), self.inner.broadcast, array, root)

    def share(self, value: Any, root: int = 0) -> Any:
        self._check(check_root, "share", root, self.size)
        return self._call(f"share(root={root})", self.inner.share, value, root)

    def gather_objects(self, value: Any) -> list[Any]:
        return self._call("gather_objects", self.inner.gather_objects, value)

    def split(self, color: int, key: int = 0) -> Comm:
        self._check(check_split, color, key)
        return Checked(self._call("split", self.inner.split, color, key))

    def window(self, nbytes: int) -> Window:
        self._check(check_nbytes, nbytes)
        return WatchedWindow(self._call("window", self.inner.window, nbytes), self.channel)

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        inner = self._call(f"exchange of {type(wire).__name__}", self.inner.exchange, wire)
        return None if inner is None else CheckedExchange(inner, self._call)

    def barrier(self) -> None:
        self._call("barrier", self.inner.barrier)

    def goodbye(self) -> None:
        """This rank's script has ended. Ranks of other hosts, whose guards cannot see it, hear of it when they
        call this too or, as a CollectiveMismatch, at their next collective.
        """
        if self._by_memory:
            return
        if self._row is not None:
            self._row.set(State.ENDED)
        if self.channel.refused is not None:
            return
        self._latest = _GOODBYE, ""
        with suppress(CollectiveMismatch):  # the others say it
            self._compare_by_message(-1, 0)

    def abort(self, code: int = 1) -> None:
        watch.all_is_said()
        self.inner.abort(code)

    def __repr__(self) -> str:
        return repr(self.inner)

    def _check(self, check: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Raise what is wrong with a call's arguments. It counts as a call: other ranks, whose arguments may be right,
        are as far after it as this one."""
        wrong = None
        try:
            check(*arguments, **options)
        except (TypeError, ValueError) as error:
            wrong = error
        if wrong is not None:
            self._call(f"a call with a wrong argument ({wrong})", _raise, wrong)

    def _call(self, what: str, collective: Callable[..., T], *arguments: Any) -> T:
        """Say what this rank calls, compare it with what the others call, and call it."""
        site = call_site()
        mine = signature(what)
        name = signature(site.argument) if site.function == "all_reduce" and what.startswith("all_reduce") else 0
        self._latest = what, site.where
        if self._row is not None:
            self._row.say(what, site.where)
        try:
            count = self.channel.enter(mine, name)
            if not self._by_memory:
                self._compare_by_message(count, mine)
                return collective(*arguments)
            self._compare(count, mine, name)
            result = collective(*arguments)
            # Two that came at the same moment may not have seen each other.
            self._compare(count, mine, name)
            return result
        except BaseException as error:
            in_step = isinstance(error, SharedMemoryFull) or (collective is _raise and error is arguments[0])
            if not in_step:
                self.channel.refuse(error)
            raise
        finally:
            self.channel.leave()

    def _compare(self, count: int, mine: int, name: int) -> None:
        """Raise CollectiveMismatch if a rank that has come to its collective of this number is at another one."""
        row = self._row
        assert row is not None
        words, slot = row.words, count % DEPTH
        for rank, at in self._others:
            reached = words[at + layout.COUNT]
            if reached < count:
                if reached <= count - DEPTH:
                    self._let_come(row, at, count)
            elif words[at + slot + layout.SIGNATURES] != mine:
                self._confirm(row, rank, at, count, mine)
            elif name and words[at + slot + layout.CALLS] != name:
                self._confirm_order(row, rank, at, count)

    def _let_come(self, row: Row, at: int, count: int) -> None:
        """Wait for a rank that is so far behind that it could not compare any more."""
        while row.words[at + layout.COUNT] <= count - DEPTH and not self._has_gone(row, at):
            time.sleep(0.0005)

    def _has_gone(self, row: Row, at: int) -> bool:
        """Whether a rank has let go of this communicator, after its last collective: its channel may be that of another
        communicator by now."""
        return row.words[at + layout.KEY] != row.words[self.channel.at + layout.KEY]

    def _confirm(self, row: Row, rank: int, at: int, count: int, mine: int) -> None:
        """Raise if the other rank's collective of this number is still another one after a moment."""
        time.sleep(SURE_SECONDS)
        reached = row.words[at + layout.COUNT]
        same = row.words[at + count % DEPTH + layout.SIGNATURES] == mine
        if same or self._has_gone(row, at) or reached >= count + DEPTH:
            return
        seen = row.table.see(self._members[rank])
        theirs = _words(seen.text) if seen is not None and reached == count else "something else"
        raise self._mismatch(count, rank, theirs)

    def _confirm_order(self, row: Row, rank: int, at: int, count: int) -> None:
        """Raise if this collective and the one before have changed places on the other rank."""
        here = self.channel.at
        now, before = count % DEPTH, (count - 1) % DEPTH

        def calls(first: int, slot: int) -> tuple[int, int]:
            return row.words[first + slot + layout.SIGNATURES], row.words[first + slot + layout.CALLS]

        mine = calls(here, before), calls(here, now)
        theirs = calls(at, now), calls(at, before)
        unnamed = any(name == 0 for _, name in (*mine, *theirs))
        ended = row.words[at + layout.COUNT] > count + 1 or self._has_gone(row, at)
        if unnamed or mine[0] == mine[1] or mine != theirs or ended:
            return
        raise CollectiveMismatch(
            f"{_words(self._latest)} is collective {count} of rank {self.rank}, and rank {rank} called it before the "
            f"one that rank {self.rank} called before: every rank must make the same calls in the same order, and "
            "these sums are wrong"
        )

    def _compare_by_message(self, count: int, mine: int) -> None:
        said = self.inner.all_gather(np.array([mine, count], np.int64))
        differing = (said != said[0]).any(axis=1)
        if differing.any():
            texts = self.inner.gather_objects(_words(self._latest))
            other = int(differing.argmax()) if not differing[self.rank] else 0
            raise self._mismatch(count, other, texts[other])

    def _mismatch(self, count: int, rank: int, theirs: str) -> CollectiveMismatch:
        if theirs != _GOODBYE:
            theirs = f"calls {theirs}"
        return CollectiveMismatch(
            f"{_words(self._latest)} is collective {count} of rank {self.rank}, but rank {rank} {theirs}: "
            "every rank must make the same calls in the same order"
        )


class CheckedExchange:
    """The exchange `inner`, whose sums are called by a `Checked` communicator's `call`."""

    def __init__(self, inner: Exchange, call: Callable[..., None]) -> None:
        self.send, self.withdraw = inner.send, inner.withdraw
        self._sum, self._call = inner.sum, call

    def sum(self, array: Array, out: Array) -> None:
        self._call(_text("exchange", array.dtype, array.shape), self._sum, array, out)


class WatchedWindow:
    """The window `inner`, whose barriers count as collectives of the communicator that made it."""

    def __init__(self, inner: Window, channel: Channel) -> None:
        self.inner = inner
        self.parts: list[NDArray[np.uint8]] = inner.parts
        self.local_rank = inner.local_rank
        self._channel = channel

    def barrier(self) -> None:
        if not self.parts:
            self.inner.barrier()  # says that it is closed
        self._call(_BARRIER, self.inner.barrier)

    def close(self) -> None:
        if not self.parts:
            return
        self.parts = []
        self._call(_CLOSE, self.inner.close)

    def _call(self, signature: int, collective: Callable[[], None]) -> None:
        try:
            self._channel.enter(signature)
            collective()
        except BaseException as error:
            self._channel.refuse(error)
            raise
        finally:
            self._channel.leave()


def _raise(error: Exception) -> NoReturn:
    raise error


def _words(text: tuple[str, str]) -> str:
    return " at ".join(filter(None, text))


@lru_cache(maxsize=4096)
def _text(call: str, dtype: np.dtype[Any], shape: tuple[int, ...], how: object = None) -> str:
    return f"{call} of {dtype} {shape}" if how is None else f"{call}({how!r}) of {dtype} {shape}"
