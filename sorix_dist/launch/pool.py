"""`Pool`: ranks that stay alive from one call to the next, such as the cells of a notebook."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from sorix_dist.comm.pickling import dumps, dumps_call
from sorix_dist.launch import LaunchError
from sorix_dist.launch.private import FOLDERS, PrivateFolder, dumps_result
from sorix_dist.launch.spawn import Result, check_call, check_num_proc, run
from sorix_dist.watchdog.launcher import detect

PAUSE = 0.01
"""Seconds between two looks into the folder of calls and results."""


class Pool:
    """Ranks of this host that are started once: `pool = sx.Pool(4)`, then `pool.run(train, (0.1,))` as often as needed.

    The state of imported modules persists between calls: the seed, and data that a function caches there. Functions
    are pickled again for each call. A call that fails, is interrupted or exceeds its limit ends all ranks, as in
    `sx.run`, and the next call starts new ones. `close()` or the end of the program ends the ranks.
    num_proc: how many; env: variables for them, over those of this process.
    """

    def __init__(self, num_proc: int = 2, *, env: Mapping[str, str] | None = None) -> None:
        check_num_proc("Pool", num_proc)
        self.num_proc, self._env = num_proc, env
        self._ranks: _Ranks | None = None
        atexit.register(self.close)

    def run(
        self,
        fn: Callable[..., Result],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """`fn(*args, **kwargs)` on every rank; returns the results in rank order, or raises what `sx.run` raises.

        timeout: seconds after which all ranks are ended, with TimeoutError; None for no limit.
        """
        check_call("Pool.run", fn, args)
        call = dumps_call(fn, tuple(args), dict(kwargs or {}))
        if self._ranks is None:
            self._ranks = _Ranks(self.num_proc, self._env)
        try:
            return self._ranks.call(call, timeout)
        except BaseException:
            self._ranks.end()
            self._ranks = None
            raise

    def close(self) -> None:
        """Ends the ranks."""
        if self._ranks is not None:
            self._ranks.finish()
            self._ranks = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Ranks:
    """Ranks started by `run` in a thread of this process; each executes the calls in order."""

    def __init__(self, num_proc: int, env: Mapping[str, str] | None) -> None:
        self._folder = PrivateFolder.make()
        self._lock: int | None = self._folder.lock()
        self._calls, self._num_proc = 0, num_proc
        self._error: BaseException | None = None
        self._ended = threading.Event()  # Thread.join, interrupted by Ctrl-C, takes a thread that runs for ended
        threading.Thread(target=self._run, args=(env,), name="ranks of a pool", daemon=True).start()

    def _run(self, env: Mapping[str, str] | None) -> None:
        try:
            run(_serve, (str(self._folder.path),), num_proc=self._num_proc, env=env)
        except BaseException as error:  # noqa: BLE001 - `call` raises it
            self._error = error
        finally:
            self._ended.set()

    def call(self, call: bytes, timeout: float | None) -> list[Any]:
        number, began = self._calls, time.monotonic()
        self._calls += 1
        self._folder.write(f"call-{number}", call)
        names = [f"result-{number}-{rank}" for rank in range(self._num_proc)]
        while not set(names) <= set(self._folder.names()):
            if timeout is not None and time.monotonic() > began + timeout:
                raise TimeoutError(f"Pool.run: not done after {timeout} s")
            if self._ended.wait(PAUSE):
                raise self._error or LaunchError("Pool.run: the ranks of the pool have ended")
        self._folder.take(f"call-{number}")
        return [self._folder.take(name) for name in names]

    def finish(self) -> None:
        """Ends the ranks when they have nothing to do."""
        if not self._ended.is_set():
            self._folder.write(f"call-{self._calls}", dumps(None))
            self._ended.wait(10)
        self.end()

    def end(self) -> None:
        """Ends the ranks at once: each has a thread that waits for the release of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            self._ended.wait(10)
            self._folder.remove()


def _serve(path: str) -> None:
    """The function of each rank: it executes calls in order, until there is None."""
    folder = PrivateFolder(Path(path))
    FOLDERS.append(PrivateFolder(Path(path)))
    threading.Thread(target=_end_with_pool, args=(folder,), daemon=True).start()
    launch = detect(os.environ)
    rank, number = launch.rank if launch is not None else 0, 0
    while True:
        while f"call-{number}" not in folder.names():
            time.sleep(PAUSE)
        call = folder.read(f"call-{number}")
        if call is None:
            return
        fn, args, kwargs = call
        folder.write(f"result-{number}-{rank}", dumps_result(fn(*args, **kwargs)))
        number += 1


def _end_with_pool(folder: PrivateFolder) -> None:
    folder.wait_for_end_of_caller()
    time.sleep(0.5)  # if the program has died, the thread of `main` removes all folders meanwhile
    os.kill(os.getpid(), signal.SIGKILL)
