"""A communicator that finds ranks out of step before their messages are mixed."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import lru_cache, partial
from time import perf_counter_ns
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from sorix_dist.comm import reduction, validation
from sorix_dist.comm.protocol import Array, Comm, Exchange, Op, Pieces, SharedMemoryFull, Started, Window, Wire
from sorix_dist.watchdog import status_page as layout
from sorix_dist.watchdog import watch
from sorix_dist.watchdog.call_site import call_site
from sorix_dist.watchdog.status_page import DEPTH, State
from sorix_dist.watchdog.watch import Channel, CollectiveMismatch, RankPage, waited

T = TypeVar("T")

SETTLED = 0.002  # seconds that a difference must last: a processor may see another one's writes out of order

MESSAGE, HEAD = 256, 16
"""Bytes by which ranks of several hosts compare a call, and those of it that are compared. An array that fits into the
others travels in this message."""


@lru_cache(maxsize=4096)
def signature(text: str) -> int:
    """A hash of `text` that is the same on every rank and never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 | 1


_BARRIER = signature("barrier of a window")
_CLOSE = signature("close of a window")
_NOTHING = np.zeros(0, np.uint8)
_GOODBYE = "has ended (its script came to its end, or sys.exit)"
_RULE = "every rank must make the same calls in the same order"


class Checked:
    """The communicator `inner`, where every collective is first compared with those of the other ranks.

    Ranks of one host compare through their status pages: a rank that enters a collective looks at those that are in it
    already. Ranks of several hosts, or without status pages, exchange a short message, which also carries the array of
    an all-reduce or an all-gather of up to 240 bytes. A difference in the operation, its root, dtype or shape raises
    CollectiveMismatch before data is mixed. Two equal all-reduces in swapped order are found at the second one if the
    source names their arguments. After a collective fails on a rank, this communicator refuses all further calls there.
    """

    def __init__(self, inner: Comm) -> None:
        self.inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self.local_rank = inner.local_rank
        self.local_size = inner.local_size
        self.host = inner.host
        self.hosts = inner.hosts
        self.cache: dict[Any, Any] = {}
        page = watch.page()
        self._page = page
        with watch.wrapping(inner.size):
            self.channel = Channel(page, inner.broadcast_object(secrets.randbits(62) | 1))
            own = (0, -1, ()) if page is None else (page.rank, self.channel.at, page.pages.identity)
            pages, channels, files = zip(*inner.gather_objects(own))
        self._page_of = pages
        self._by_memory = inner.hosts == 1 and min(channels) >= 0 and set(files) == {own[2]} != {()}
        self._others = [(rank, at) for rank, at in enumerate(channels) if rank != inner.rank]
        self._latest = ""
        self._agreed = False

    def agreed(self) -> Checked:
        """This communicator for calls that all ranks are known to make: ranks of several hosts do not compare them."""
        view = copy(self)
        view._agreed = True
        return view

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        self._check(validation.check_array, "all_reduce", array, written=True)
        self._check(validation.check_op, "all_reduce", op)
        text = _text("all_reduce", array.dtype, array.shape, op)
        everywhere = self._call(text, self.inner.all_reduce, array, op, carried=array)
        if everywhere is not None:
            reduction.write(reduction.combined(everywhere, op), array)

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        self._check(validation.check_array, "all_gather", array, written=False)
        gather = partial(self.inner.all_gather, meanwhile=meanwhile)
        text = _text("all_gather", array.dtype, array.shape)
        return self._call(text, gather, array, meanwhile=meanwhile, carried=array)

    def all_to_all(self, array: Array) -> Array:
        self._check(validation.check_one_each, "all_to_all", array, self.size)
        return self._call(_text("all_to_all", array.dtype, array.shape), self.inner.all_to_all, array)

    def start_pieces(self, pieces: Pieces) -> Started:
        advance, finish = self.inner.start_pieces(pieces)
        return Started(advance, partial(self._call, f"sum in {pieces.count} pieces", finish))

    def broadcast(self, array: Array, root: int = 0) -> None:
        self._check(validation.check_array, "broadcast", array, written=True)
        self._check(validation.check_root, "broadcast", root, self.size)
        self._call(_text("broadcast", array.dtype, array.shape, root), self.inner.broadcast, array, root)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        self._check(validation.check_root, "broadcast_object", root, self.size)
        return self._call(f"broadcast_object(root={root})", self.inner.broadcast_object, value, root)

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        return self._call(what, self.inner.gather_objects, value)

    def split(self, color: int, key: int = 0) -> Comm:
        self._check(validation.check_split, color, key)
        return Checked(self._call("split", self.inner.split, color, key))

    def window(self, nbytes: int) -> Window:
        self._check(validation.check_nbytes, nbytes)
        return WatchedWindow(self._call("window", self.inner.window, nbytes), self.channel)

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        inner = self._call(f"exchange of {type(wire).__name__}", self.inner.exchange, wire)
        return None if inner is None else CheckedExchange(inner, self._call)

    def barrier(self) -> None:
        self._call("barrier", self.inner.barrier)

    def goodbye(self) -> None:
        """Tell the other hosts, whose guards cannot see it, that this rank's script has ended.

        They learn of it when they call this too or, as a CollectiveMismatch, at their next collective.
        """
        if self._by_memory:
            return
        if self._page is not None:
            self._page.set(State.ENDED)
        if self.channel.refused is not None:
            return
        self._latest = _GOODBYE
        with suppress(CollectiveMismatch):  # the other ranks raise it too, and report it
            self._compare_by_message(-1, 0, _NOTHING)

    def abort(self, code: int = 1) -> None:
        watch.mark_reported()
        self.inner.abort(code)

    def __repr__(self) -> str:
        return repr(self.inner)

    def _check(self, check: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Run a check of a call's arguments. An error counts as a call, so that this rank stays in step with ranks
        whose arguments are right."""
        wrong = None
        try:
            check(*arguments, **options)
        except (TypeError, ValueError) as error:
            wrong = error
        if wrong is not None:
            self._call(f"a call with a wrong argument ({wrong})", _raise, wrong)

    def _call(
        self,
        what: str,
        collective: Callable[..., T],
        *arguments: Any,
        meanwhile: Callable[[], None] | None = None,
        agreed: bool = False,
        carried: Array | None = None,
    ) -> T:
        """Publish the call `what`, compare it with those of the other ranks unless they have `agreed` on it, and make
        it. meanwhile: see `Comm.all_gather`; carried: an array. Where the message of the comparison carries it, the
        result is that of all ranks instead."""
        site = call_site()
        mine = signature(what)
        name = signature(site.argument) if site.function == "all_reduce" and what.startswith("all_reduce") else 0
        self._latest = f"{what} at {site.where}" if site.where else what
        if self._page is not None:
            self._page.say(what, site.where, collective=True)
        try:
            count = self.channel.enter(mine, name)
            if not self._by_memory:
                if not (agreed or self._agreed):
                    if carried is not None and carried.nbytes <= MESSAGE - HEAD:
                        return self._compare_by_message(count, mine, carried, meanwhile)  # type: ignore[return-value]
                    self._compare_by_message(count, mine, _NOTHING, meanwhile)
                return collective(*arguments)
            self._compare(count, name)
            began = perf_counter_ns()
            result = collective(*arguments)
            waited(began)  # on one host a message takes little else
            # Two ranks that entered at the same moment may not have seen each other.
            self._compare(count, name)
            return result
        except BaseException as error:
            in_step = isinstance(error, SharedMemoryFull) or (collective is _raise and error is arguments[0])
            if not in_step:
                self.channel.refuse(error)
            raise
        finally:
            self.channel.leave()

    def _compare(self, count: int, name: int) -> None:
        """Raise CollectiveMismatch if another rank's collective `count`, or its latest one where it is behind, is
        a different one."""
        page, here = self._page, self.channel.at
        assert page is not None
        words = page.words
        for rank, at in self._others:
            reached = words[at + layout.COUNT]
            if reached < count - DEPTH + 2:
                reached = self._wait_for(page, at, count)
            shared = count if reached > count else reached
            slot = shared % DEPTH
            if words[at + slot + layout.SIGNATURES] != words[here + slot + layout.SIGNATURES]:
                self._confirm(page, rank, at, shared)
            elif name and shared == count and words[at + slot + layout.NAMES] != name:
                self._confirm_order(page, rank, at, count)

    def _wait_for(self, page: RankPage, at: int, count: int) -> int:
        """Wait for a rank so far behind that this one's next call could replace one that it has not compared; return
        the number of its latest collective."""
        while (reached := page.words[at + layout.COUNT]) < count - DEPTH + 2 and not self._is_closed(page, at):
            time.sleep(0.0005)
        return reached

    def _is_closed(self, page: RankPage, at: int) -> bool:
        """Whether another rank has freed this communicator: its channel may belong to a later one."""
        return page.words[at + layout.KEY] != page.words[self.channel.at + layout.KEY]

    def _confirm(self, page: RankPage, rank: int, at: int, count: int) -> None:
        """Raise if the other rank's collective `count` is still a different one after a moment."""
        time.sleep(SETTLED)
        here, slot = self.channel.at, count % DEPTH + layout.SIGNATURES
        if page.words[at + slot] != page.words[here + slot] and not self._is_closed(page, at):
            mine = self._latest if count == self.channel.count else self._collective(page, page.rank, here, count)
            raise self._mismatch(mine, count, rank, self._collective(page, self._page_of[rank], at, count))

    def _collective(self, page: RankPage, number: int, at: int, count: int) -> str:
        """A description of a rank's collective `count`, from its page."""
        status = page.pages.read(number)
        if status is None:
            return "something else"
        hashed, ahead = page.words[at + count % DEPTH + layout.SIGNATURES], page.words[at + layout.COUNT] - count
        texts = [text for text in page.pages.calls(number, status.entered - ahead) if signature(text[0]) == hashed]
        if not texts and not ahead:  # it has no text of its own, such as a window's barrier
            texts = [status.text]
        return " at ".join(filter(None, texts[0])) if texts else "something else"

    def _confirm_order(self, page: RankPage, rank: int, at: int, count: int) -> None:
        """Raise if this collective and the previous one are swapped on the other rank."""
        words, here = page.words, self.channel.at
        now, before = count % DEPTH, (count - 1) % DEPTH

        def call(channel: int, slot: int) -> tuple[int, int]:
            return words[channel + slot + layout.SIGNATURES], words[channel + slot + layout.NAMES]

        first, second = call(here, before), call(here, now)
        swapped = (first, second) == (call(at, now), call(at, before))
        moved_on = words[at + layout.COUNT] > count + 1 or self._is_closed(page, at)
        if not swapped or first == second or 0 in (first[1], second[1]) or moved_on:
            return
        raise CollectiveMismatch(
            f"{self._latest} is collective {count} of rank {self.rank}, and rank {rank} called it before the "
            f"one that rank {self.rank} called before: {_RULE}, and these sums are wrong"
        )

    def _compare_by_message(
        self, count: int, mine: int, carried: Array, meanwhile: Callable[[], None] | None = None
    ) -> Array:
        """Compare this call with those of the other ranks; return every rank's array that the message carries."""
        began = perf_counter_ns()
        message, end = np.zeros(MESSAGE, np.uint8), HEAD + carried.nbytes
        message[:HEAD].view(np.int64)[:] = mine, count
        message[HEAD:end] = carried.reshape(-1).view(np.uint8)
        received = self.inner.all_gather(message, meanwhile)
        waited(began)
        differing = (received[:, :HEAD] != received[0, :HEAD]).any(axis=1)
        if differing.any():
            texts = self.inner.gather_objects(self._latest)
            other = int(differing.argmax()) if not differing[self.rank] else 0
            raise self._mismatch(self._latest, count, other, texts[other])
        result = np.empty((self.size, *carried.shape), carried.dtype)
        result.reshape(self.size, carried.size).view(np.uint8)[:] = received[:, HEAD:end]
        return result

    def _mismatch(self, mine: str, count: int, rank: int, theirs: str) -> CollectiveMismatch:
        if theirs != _GOODBYE:
            theirs = f"calls {theirs}"
        return CollectiveMismatch(
            f"{mine} is collective {count} of rank {self.rank}, but rank {rank} {theirs}: {_RULE}"
        )


class CheckedExchange:
    """The exchange `inner`, whose sums are collectives of a `Checked` communicator."""

    def __init__(self, inner: Exchange, call: Callable[..., None]) -> None:
        self.send = inner.send
        self._sum, self._call = inner.sum, call

    def sum(self, array: Array, out: Array, start_over: bool = False, agreed: bool = False) -> None:
        what = _text("exchange", array.dtype, array.shape)
        self._call(what, self._sum, array, out, start_over, agreed=agreed)


class WatchedWindow:
    """The window `inner`, whose barriers count as collectives of the communicator that made it."""

    def __init__(self, inner: Window, channel: Channel) -> None:
        self.inner = inner
        self.parts: list[NDArray[np.uint8]] = inner.parts
        self.local_rank = inner.local_rank
        self.sync = inner.sync
        self.barrier: Callable[[], None] = partial(channel.call, _BARRIER, inner.barrier)
        self._channel = channel

    def close(self) -> None:
        if not self.parts:
            return
        self.parts = []
        try:
            self._channel.call(_CLOSE, self.inner.close)
        finally:
            self.barrier = self.inner.barrier  # raises: it is closed


def agreed(comm: Comm) -> Comm:
    """A communicator for calls that all ranks are known to make in this order; see `Checked.agreed`."""
    return comm.agreed() if isinstance(comm, Checked) else comm


def _raise(error: Exception) -> NoReturn:
    raise error


@lru_cache(maxsize=4096)
def _text(call: str, dtype: np.dtype[Any], shape: tuple[int, ...], how: object = None) -> str:
    return f"{call} of {dtype} {shape}" if how is None else f"{call}({how!r}) of {dtype} {shape}"
