"""Measures what messages between hosts, sums and hooks cost on this machine, for `sorix-dist plan`."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any

import numpy as np

from sorix_dist.comm.blas import usable_cores
from sorix_dist.comm.ring import RingExchange, piece_size
from sorix_dist.comm.waiting import NAP
from sorix_dist.comm.world import Solo
from sorix_dist.parallel.comm_hooks import PowerSGD, matrices_in
from sorix_dist.parallel.float16 import Half
from sorix_dist.train.cost_model import RANK, Machine, Step

FEW = 4  # hosts for which the encoding of a message is measured


def measure_machine(step: Step) -> Machine:
    """Measures on this machine what messages and sums cost for the gradients of a step."""
    nbytes = step.nbytes
    short, long = (_message(count) for count in (16 << 10, 4 << 20))
    byte = max(long[0] - short[0], 0.0) / (long[1] - short[1])
    message = max(short[0] - short[1] * byte, 1e-6)
    core, host = _memory(min(max(nbytes, 1 << 20), 32 << 20))
    gradients = np.random.default_rng(0).standard_normal(max(nbytes // step.itemsize, 1)).astype(np.float32)
    piece = gradients[: math.ceil(piece_size(2 * gradients.size, FEW) / 2)]
    half, body = Half(), np.empty(2 * piece.size, np.uint8)

    def code() -> None:
        half.unpack(body, half.add(body, half.pack(piece, body), piece), piece)

    whole = slice(0, gradients.size)
    hook, comm = PowerSGD(RANK).of_matrices(matrices_in(step.matrices, whole)), Solo()
    fp16 = _least(code) * gradients.size / piece.size
    powersgd = _least(lambda: hook(comm, gradients))
    wakeup = _least(lambda: sleep(NAP)) / 2  # on average
    return Machine(message, byte, core, max(core, host), fp16, powersgd, wakeup=wakeup)


def _least(work: Callable[[], object]) -> float:
    """The 10th percentile of what a call takes, after a first one: of 3 to 30 calls, in about 0.2 seconds."""
    work()
    times: list[float] = []
    end = perf_counter() + 0.2
    while len(times) < 3 or (perf_counter() < end and len(times) < 30):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return float(np.quantile(times, 0.1))


class _Arriving:
    """A message that a rank waits for, from another one in this process, which works when this one waits."""

    def __init__(self, queue: deque[Any], buffer: Any, other_works: Callable[[], None]) -> None:
        self.queue, self.buffer, self.other_works, self.here = queue, buffer, other_works, False

    def Test(self) -> bool:
        if not self.here and self.queue:
            message = self.queue.popleft()
            self.buffer[: len(message)] = message
            self.here = True
        return self.here

    def Wait(self) -> None:
        while not self.Test():
            self.other_works()


class _Sent:
    def Test(self) -> bool:
        return True

    Wait = Test


def _message(nbytes: int) -> tuple[float, int]:
    """A rank's work in seconds for one message of a ring that sums `nbytes` bytes, and the bytes of the message.
    Measures two ranks in this process, and the time that the system takes to send as much to itself."""
    arrays = [np.ones(nbytes // 4, np.float32) for _ in range(2)]
    queues: list[deque[Any]] = [deque(), deque()]
    rings: list[RingExchange] = []

    def send(rank: int, message: Any) -> _Sent:
        queues[1 - rank].append(message)
        return _Sent()

    def receive(rank: int, buffer: Any) -> _Arriving:
        return _Arriving(queues[rank], buffer, lambda: rings[1 - rank].send(arrays[1 - rank], 0))

    for rank in range(2):
        comm: Any = SimpleNamespace(rank=rank, size=2)
        rings.append(RingExchange(comm, partial(send, rank), partial(receive, rank)))

    def sums() -> None:
        for ring, array in zip(rings, arrays):
            ring.sum(array, array)

    piece = math.ceil(piece_size(nbytes, 2))
    return _least(sums) / (2 * math.ceil(nbytes / piece)) + _through_the_system(piece), piece


def _through_the_system(nbytes: int) -> float:
    """Seconds to send a message to this machine itself, and to receive it."""
    message, buffer = bytes(nbytes), bytearray(nbytes)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:

            def through() -> None:
                one.sendall(message)
                missing = nbytes
                while missing:
                    missing -= other.recv_into(buffer, missing)

            return _least(through)


def _memory(nbytes: int) -> tuple[float, float]:
    """Memory bandwidth in bytes per second when arrays of `nbytes` bytes are added: of one thread, and of one thread on
    every core together."""
    cores, size = usable_cores(), nbytes // 4

    def rate(threads: int) -> float:
        arrays = np.ones((threads, 3, size), np.float32)

        def add(thread: int) -> None:
            one, other, total = arrays[thread]
            np.add(one, other, out=total)

        with ThreadPoolExecutor(threads) as pool:
            return 12 * threads * size / _least(lambda: wait([pool.submit(add, thread) for thread in range(threads)]))

    return rate(1), rate(cores)
