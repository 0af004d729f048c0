"""Preemption: a scheduler's warning to any rank stops all ranks after the same step."""

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


class Preemption:
    """Listens for signals that announce the end, until it is closed.

    signals: those that do; by default SIGTERM and SIGUSR1. comm: an mpi4py communicator if not all ranks of the
    job train together. Python takes signals in its main thread; elsewhere only `request()` stops the run.

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
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                self._before[number] = signal.signal(number, self._receive)

    def request(self) -> None:
        """Stops the run as a signal does, from any rank and any thread."""
        self.requested = True

    @uncaptured
    def should_stop(self) -> bool:
        """Whether a signal has come to any rank: the same answer for all, who call it together, once a step.

        A signal that comes while this rank waits in MPI, where Python can't act, counts as soon as the wait ends.
        """
        self._flag[0] = self.requested
        self.comm.all_reduce(self._flag, "max")
        self.requested = bool(self._flag[0])
        return self.requested

    def exit(self) -> NoReturn:
        """Ends the program with EXIT_PREEMPTED, when all ranks have come here: called by all."""
        self.comm.barrier()
        sys.exit(EXIT_PREEMPTED)

    def close(self) -> None:
        """Gives the signals back to who had them before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
