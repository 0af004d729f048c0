"""When a run stops: a scheduler's signal to any rank, or a number that improves no more, stops all ranks alike."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Literal, NoReturn, Self

import numpy as np

from sorix_dist.core.arguments import as_int, as_number, as_state, one_of
from sorix_dist.core.capture import uncaptured
from sorix_dist.parallel.world import communicator
from sorix_dist.watchdog.launcher import EXIT_PREEMPTED

_listening: dict[int, list[Preemption]] = {}  # by signal, those that listen to it
_replaced: dict[int, Any] = {}  # by signal, the handler before the first of them


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


class EarlyStopping:
    """Decides to stop when a number has not improved for some epochs, with the same answer on every rank.

    monitor: the name of the number, for `fit`; patience: the epochs without a better one after which to stop;
    min_delta: by how much it must be better than the best one to count; mode: whether "min" or "max" is better.
    comm: an mpi4py communicator if not all ranks of the job train together. A part of a checkpoint.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        *,
        comm: Any = None,
    ) -> None:
        one_of("EarlyStopping: mode", mode, "min", "max")
        if not isinstance(monitor, str):
            raise TypeError(f"EarlyStopping: monitor must be the name of a number, got {monitor!r}")
        if not as_number("EarlyStopping: min_delta", min_delta) >= 0:
            raise ValueError(f"EarlyStopping: min_delta must be a number >= 0, got {min_delta!r}")
        self.monitor, self.min_delta, self.mode = monitor, float(min_delta), mode
        self.patience = as_int("EarlyStopping: patience", patience, 1)
        self.best, self.epochs_without = math.inf if mode == "min" else -math.inf, 0
        self._comm = comm

    @property
    def stopped(self) -> bool:
        """Whether `patience` epochs have passed without an improvement."""
        return self.epochs_without >= self.patience

    @uncaptured
    def should_stop(self, value: Any) -> bool:
        """Records the number of an epoch; returns whether to stop. Rank 0's number counts, and NaN is no improvement. A
        call of all ranks."""
        value = communicator(self._comm).broadcast_object(as_number("should_stop: value", value))
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta:
            self.best, self.epochs_without = value, 0
        else:
            self.epochs_without += 1
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """The best number, and the number of epochs since."""
        return {"best": self.best, "epochs_without": self.epochs_without}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        state_dict = as_state("load_state_dict", state_dict, "best", "epochs_without")
        self.best, self.epochs_without = float(state_dict["best"]), int(state_dict["epochs_without"])
