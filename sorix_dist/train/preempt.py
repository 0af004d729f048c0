"""Preemption: a scheduler's signal to any rank stops all ranks after the same step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn, Self

import numpy as np

from sorix_dist.core.capture import uncaptured
from sorix_dist.parallel.world import communicator
from sorix_dist.watchdog.launcher import EXIT_PREEMPTED

_listening: dict[int, list[Preemption]] = {}
_replaced: dict[int, Any] = {}
"""By signal: those that listen to it, and the handler before the first of them."""


def _receive(number: int, frame: FrameType | None) -> None:
    for preemption in _listening[number]:
        preemption.requested = True


class Preemption:
    """Listens for the signals that a scheduler sends before it ends a job.

    signals: by default SIGTERM and SIGUSR1. comm: an mpi4py communicator if only some ranks of the job train
    together. Python handles signals in the main thread only; made in another thread, this listens to none, and
    `request()` stops the run.

        preemption = sx.Preemption()
        for x, y in loader:
            ...
            if preemption.should_stop():
                checkpointer.save(step, model=model, optimizer=optimizer, loader=loader)
                checkpointer.wait()
                preemption.exit()
    """

    def __init__(self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGUSR1), comm: Any = None) -> None:
        self.comm = communicator(comm)
        self.requested = False
        self._flag = np.zeros(1, np.uint8)
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                _listening.setdefault(number, []).append(self)
                if signal.getsignal(number) is not _receive:
                    _replaced[number] = signal.signal(number, _receive)

    def request(self) -> None:
        """Asks all ranks to stop, as a signal does. Any rank and any thread may call it."""
        self.requested = True

    @uncaptured
    def should_stop(self) -> bool:
        """Whether any rank got a signal or a `request()`. A call of all ranks, once per step; all get the same answer.

        Python can't handle a signal while this rank waits in MPI; the signal counts when the wait ends.
        """
        self._flag[0] = self.requested
        self.comm.all_reduce(self._flag, "max")
        self.requested = bool(self._flag[0])
        return self.requested

    def exit(self) -> NoReturn:
        """Waits for all ranks, then ends the program with exit code EXIT_PREEMPTED. A call of all ranks."""
        self.comm.barrier()
        sys.exit(EXIT_PREEMPTED)

    def close(self) -> None:
        """Ends listening. The last one to listen to a signal restores its former handler."""
        for number, listening in _listening.items():
            if self in listening:
                listening[:] = [each for each in listening if each is not self]
                if not listening and signal.getsignal(number) is _receive:
                    signal.signal(number, _replaced[number] or signal.SIG_DFL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
