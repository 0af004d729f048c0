"""Ranks as threads of this process: for tests and notebooks without MPI."""

from __future__ import annotations

import contextvars
import ctypes
import pickle
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.comm import reduction, validation
from sorix_dist.comm.pickling import dumps_call
from sorix_dist.comm.protocol import Array, Comm, Exchange, Op, Pieces, RankFailed, Started, Window, Wire
from sorix_dist.comm.ring import RingExchange
from sorix_dist.comm.shared_memory import SharedWindow, block_size, cut, locate
from sorix_dist.comm.world import using
from sorix_dist.watchdog.watch import CollectiveMismatch, waited

ENDING = 2.0  # seconds that ranks have to end after an interrupt or a time-out


class _Interrupted(BaseException):
    """Ends a rank's thread wherever it is."""


def run_threads(
    fn: Callable[..., Any], size: int, args: Sequence[Any] = (), *, timeout: float = 300.0, hosts: int = 1
) -> list[Any]:
    """Run `fn(*args)` on `size` ranks, each a thread of this process; return the results in rank order.

    Every rank gets its own copy of `fn` and `args`, made by cloudpickle: closures and functions of a
    notebook or script carry their own copies of what they refer to, while imported modules stay shared.
    Every rank has its own context variables and its own current communicator. The first exception of a rank
    is raised here, with its traceback; the other ranks' collectives end with RankFailed. After `timeout`
    seconds TimeoutError says where every rank is; its threads cannot be killed, but no collective of theirs
    returns. `hosts` spreads the ranks over that many pretended hosts, in equal blocks as far as possible.
    """
    if size < 1 or not 1 <= hosts <= size:
        raise ValueError(f"run_threads: size must be 1 or more and hosts from 1 to size, got {size}, {hosts}")
    if timeout <= 0:
        raise ValueError(f"run_threads: timeout must be more than 0 seconds, got {timeout}")
    original = dumps_call(fn, tuple(args), {})
    copies = [pickle.loads(original) for _ in range(size)]
    run = _Run([rank * hosts // size for rank in range(size)])
    world = _Rendezvous(run, range(size))
    results: list[Any] = [None] * size

    def work(rank: int) -> None:
        own_fn, own_args, _ = copies[rank]
        try:
            with using(ThreadComm(world, rank)):
                results[rank] = own_fn(*own_args)
        except BaseException as error:  # noqa: BLE001 - run_threads raises it
            run.fail(rank, error)
        finally:
            run.end(rank)

    threads = [
        threading.Thread(target=contextvars.Context().run, args=(work, rank), name=f"rank {rank}", daemon=True)
        for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    try:
        limit = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            run.fail(None, TimeoutError(f"run_threads: not done after {timeout} s; {_where(run, threads)}"))
    except BaseException as error:
        run.fail(None, error)
        _end(run, threads, error)
        raise
    if run.failure is not None:
        _end(run, threads, run.failure)
        raise run.failure
    return results


def _end(run: _Run, threads: Sequence[threading.Thread], error: BaseException) -> None:
    """Ends the ranks that still run. A note of `error` says which can't be ended: code outside of Python goes on.

    What counts is `run.ended`: a join that was interrupted takes a thread that runs for ended.
    """
    running = [thread for rank, thread in enumerate(threads) if rank not in run.ended]
    for thread in running:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Interrupted))
    with run.changed:
        run.changed.wait_for(lambda: len(run.ended) == len(threads), ENDING)
    if len(run.ended) < len(threads):
        error.add_note(f"these ranks end only when they come back to Python: {_where(run, threads)}")


def _where(run: _Run, threads: Sequence[threading.Thread]) -> str:
    frames = sys._current_frames()
    places = []
    for rank, thread in enumerate(threads):
        if rank in run.waiting:
            places.append(f"rank {rank} waits in {run.waiting[rank]}")
        elif rank not in run.ended and thread.ident in frames:
            line = traceback.extract_stack(frames[thread.ident])[-1]
            places.append(f"rank {rank} is at {line.filename}:{line.lineno} in {line.name}")
    return "; ".join(places)


class _Run:
    """The state that all ranks of one `run_threads` share; ranks are numbered in the whole run."""

    def __init__(self, host_of: list[int]) -> None:
        self.host_of = host_of
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.reason = ""
        self.ended: set[int] = set()
        self.waiting: dict[int, str] = {}

    def fail(self, rank: int | None, error: BaseException) -> None:
        """The run failed by `error` of `rank` (None: of the run itself); only the first failure counts."""
        with self.changed:
            if self.failure is None:
                self.failure = error
                self.reason = f"{type(error).__name__}: {error}"
                if rank is not None:
                    self.reason = f"rank {rank} failed with {self.reason}"
                    error.add_note(f"raised on rank {rank} of {len(self.host_of)}")
            self.changed.notify_all()

    def end(self, rank: int) -> None:
        with self.changed:
            self.ended.add(rank)
            self.changed.notify_all()

    def wait(self, ready: Callable[[], bool], rank: int, call: str, members: Sequence[int]) -> None:
        """Wait until `ready()`; RankFailed if one of `members` fails or ends first. The caller has locked `changed`."""
        self.waiting[rank] = call
        try:
            while not ready():
                self.check(rank, call, members)
                self.changed.wait()
        finally:
            del self.waiting[rank]

    def check(self, rank: int, call: str, members: Sequence[int]) -> None:
        if self.failure is not None:
            raise RankFailed(f"{call} of rank {rank} cannot be complete: {self.reason}") from self.failure
        missing = self.ended.intersection(members)
        if missing:
            raise RankFailed(f"{call} of rank {rank} cannot be complete: rank {min(missing)} has ended already")


class _Rendezvous:
    """The collectives of one communicator: a rank waits here until all others have made the same call."""

    def __init__(self, run: _Run, members: Sequence[int]) -> None:
        self.run = run
        self.members = tuple(members)
        self.given: dict[int, Any] = {}
        self.call = ""
        self.first = 0
        self.round = 0
        self.last = 0  # the member that came last to the latest collective
        self.result: Any = None

    def combine(self, rank: int, call: str, given: Any, combine: Callable[[list[Any]], Any]) -> Any:
        """Wait for all members, then return `combine` of what they gave, in rank order.

        The last rank to arrive combines while the others wait: it may write into arrays of all of them.
        """
        run, me = self.run, self.members[rank]
        with run.changed:
            run.check(me, call, self.members)
            if not self.given:
                self.call, self.first = call, rank
            elif call != self.call:
                error = CollectiveMismatch(
                    f"rank {rank} calls {call}, but rank {self.first} calls {self.call}: "
                    "every rank must make the same calls in the same order"
                )
                run.fail(me, error)
                raise error
            self.given[rank] = given
            if len(self.given) == len(self.members):
                self.result = combine([self.given[r] for r in range(len(self.members))])
                self.given = {}
                self.round += 1
                self.last = me
                run.changed.notify_all()
                return self.result
            now, began = self.round, time.perf_counter_ns()
            run.wait(lambda: self.round != now, me, call, self.members)
            waited(began, self.last)
            return self.result


class ThreadComm:
    """One rank's communicator inside `run_threads`, which makes it."""

    def __init__(self, world: _Rendezvous, rank: int) -> None:
        self._world = world
        self.rank = rank
        self.size = len(world.members)
        host_of = [world.run.host_of[member] for member in world.members]
        self.host, self.hosts, self.local_rank, self.local_size = locate(host_of, rank)
        self.cache: dict[Any, Any] = {}

    def _combine(self, call: str, given: Any, combine: Callable[[list[Any]], Any]) -> Any:
        return self._world.combine(self.rank, call, given, combine)

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        validation.check_array("all_reduce", array, written=True)
        validation.check_op("all_reduce", op)

        def combine(arrays: list[Array]) -> None:
            total = reduction.combined(arrays, op)
            for each in arrays:
                reduction.write(total, each)

        self._combine(f"all_reduce({op!r}) of {array.dtype} {array.shape}", array, combine)

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        validation.check_array("all_gather", array, written=False)
        stacked: Array = self._combine(f"all_gather of {array.dtype} {array.shape}", array, np.stack)
        return stacked.copy()

    def all_to_all(self, array: Array) -> Array:
        validation.check_one_each("all_to_all", array, self.size)
        all_sent: Array = self._combine(f"all_to_all of {array.dtype} {array.shape}", array, np.stack)
        return all_sent[:, self.rank].copy()

    def start_pieces(self, pieces: Pieces) -> Started:
        return reduction.one_by_one(self, pieces)

    def broadcast(self, array: Array, root: int = 0) -> None:
        validation.check_array("broadcast", array, written=True)
        validation.check_root("broadcast", root, self.size)

        def combine(arrays: list[Array]) -> None:
            for each in arrays:
                if each is not arrays[root]:
                    each[...] = arrays[root]

        self._combine(f"broadcast(root={root}) of {array.dtype} {array.shape}", array, combine)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        validation.check_root("broadcast_object", root, self.size)
        sent = pickle.dumps(value) if self.rank == root else b""
        received: bytes = self._combine(f"broadcast_object(root={root})", sent, lambda values: values[root])
        return value if self.rank == root else pickle.loads(received)

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        values: list[bytes] = self._combine(what, pickle.dumps(value), list)
        return [pickle.loads(each) for each in values]

    def split(self, color: int, key: int = 0) -> Comm:
        validation.check_split(color, key)
        return self._split("split", color, key)

    def _split(self, call: str, color: int, key: int) -> ThreadComm:
        def combine(wishes: list[tuple[int, int]]) -> dict[int, _Rendezvous]:
            members: dict[int, list[int]] = {}
            for rank in sorted(range(self.size), key=lambda rank: wishes[rank][1]):
                members.setdefault(wishes[rank][0], []).append(self._world.members[rank])
            return {each: _Rendezvous(self._world.run, members[each]) for each in members}

        part: _Rendezvous = self._combine(call, (color, key), combine)[color]
        return ThreadComm(part, part.members.index(self._world.members[self.rank]))

    def window(self, nbytes: int) -> Window:
        validation.check_nbytes(nbytes)
        local = self._split("window", self.host, 0)
        parts = local._combine("window", nbytes, lambda sizes: cut(np.zeros(block_size(sizes), np.uint8), sizes))
        return SharedWindow(list(parts), local.rank, barrier=local.barrier, free=local.barrier)

    def exchange(self, wire: Wire | None = None) -> Exchange | None:
        if not self.size == self.hosts > 1:
            return None
        inboxes = self._combine("exchange", None, lambda given: [deque() for _ in given])
        own, following = (_Mailbox(self._world, rank % self.size, inboxes) for rank in (self.rank, self.rank + 1))
        return RingExchange(self, following.send, own.receive, wire)

    def barrier(self) -> None:
        self._combine("barrier", None, lambda _: None)

    def abort(self, code: int = 1) -> None:
        error = SystemExit(code)
        self._world.run.fail(self._world.members[self.rank], error)
        raise error

    def __repr__(self) -> str:
        return f"ThreadComm(rank {self.rank} of {self.size} on host {self.host} of {self.hosts})"


class _Mailbox:
    """The messages to a rank from the one before it in the ring."""

    def __init__(self, world: _Rendezvous, rank: int, inboxes: list[deque[Array]]) -> None:
        self.world, self.messages = world, inboxes[rank]
        self.rank, self.sender = world.members[rank], world.members[rank - 1]

    def send(self, message: Array) -> _Sent:
        with self.world.run.changed:
            self.messages.append(message.copy())
            self.world.run.changed.notify_all()
        return _Sent()

    def receive(self, buffer: Array) -> _Receipt:
        return _Receipt(self, buffer)


class _Sent:
    """A request that is complete."""

    def Wait(self) -> None:
        return None

    def Test(self) -> bool:
        return True


class _Receipt:
    """A request for the next message. Requests are served in their order."""

    def __init__(self, mailbox: _Mailbox, buffer: Array) -> None:
        self._mailbox, self._buffer = mailbox, buffer
        self._complete = False

    def Wait(self) -> None:
        mailbox, run = self._mailbox, self._mailbox.world.run
        with run.changed:
            run.wait(lambda: bool(mailbox.messages), mailbox.rank, "an exchange", [mailbox.sender])
        self.Test()

    def Test(self) -> bool:
        if not self._complete and self._mailbox.messages:
            message = self._mailbox.messages.popleft()
            self._buffer[: message.nbytes] = message
            self._complete = True
        return self._complete
