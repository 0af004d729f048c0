"""`run` and `Pool`: ranks from a script, a REPL or a notebook, for one function or for several calls."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from sorix_dist.comm.pickling import dumps, dumps_call
from sorix_dist.comm.runtime import running_mpi
from sorix_dist.comm.threads import run_threads
from sorix_dist.launch import PYTHON, LaunchError, RankError, RemoteTraceback
from sorix_dist.launch.command import Command, command, on_this_host, too_many
from sorix_dist.launch.output import Output, live_environment
from sorix_dist.launch.private import FOLDERS, PrivateFolder, dumps_result
from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.process import kill_with_descendants

Result = TypeVar("Result")

BACKENDS = ("mpi", "threads")

GRACE = 2.0  # seconds that the launcher has to end its ranks before they are killed

_BANNER = re.compile(r"^(?:={20,}|-{20,})$", re.MULTILINE)
"""The first line of what MPICH and Open MPI print when a rank has died, below the cause."""

LEAVE = 5.0  # seconds that ranks have to end after the last of them has returned its result

# While the package is imported, the standard library comes first, so that it does not import a json.py of the caller's
# folder. The caller may have imported the package before that folder came into its path.
_RANK = """
import json, os, sys
path, library = json.loads(sys.argv[2]), os.path.dirname(os.__file__)
sys.path[:] = [library, library + "/lib-dynload", *path]
from sorix_dist.launch.private import main
sys.path[:] = path
main(sys.argv[1])
"""


def run(
    fn: Callable[..., Result],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int = 2,
    *,
    backend: str = "mpi",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Result]:
    """Runs `fn(*args, **kwargs)` on `num_proc` ranks of this host; returns the results in rank order.

    The ranks are new processes, started by mpirun and never forked. Functions, arguments and results travel by
    cloudpickle, so closures, lambdas and what a notebook has defined work; the script is not run again, and needs
    no `if __name__ == "__main__"`. What the ranks print appears here, each line behind its rank, `[0] ...`.
    backend: "mpi", or "threads" for ranks that are threads of this process: no MPI, no prefixes, and each rank has
        its own copy of what the function carries.
    timeout: seconds after which all ranks are ended, with TimeoutError; None for no limit.
    env: variables for the ranks, over those of this process.

    TypeError names an argument or a global that can't be sent. The first exception of a rank ends all of them and is
    raised here, with a note that names the rank and the rank's traceback as its cause. RankError if a rank ends without
    a result, LaunchError if no rank can be started.
    """
    _check(fn, args, num_proc, backend, timeout, env)
    if backend == "threads":
        whole = functools.partial(fn, **kwargs or {})
        try:
            return run_threads(whole, num_proc, args, timeout=1e9 if timeout is None else timeout)
        except SystemExit as ended:  # of a rank: it must not end this program too
            raise RankError(f"a rank ended by sys.exit({ended.code!r})") from ended
    _check_can_start(num_proc)
    call = dumps_call(fn, tuple(args), dict(kwargs or {}))
    environ = on_this_host(os.environ | live_environment() | dict(env or {}))
    folder = PrivateFolder.make()
    lock = folder.lock()
    began = leftovers.now()
    try:
        folder.write("call", call)
        path = [entry for entry in sys.path if isinstance(entry, str)]  # as Python's import, which passes over a Path
        start = _start([*PYTHON, "-c", _RANK, str(folder.path), json.dumps(path)], num_proc, environ)
        with Output([folder.pipe(f"output-{rank}") for rank in range(num_proc)]) as output:
            code = _run(start.argv, environ | start.env, output, folder, timeout)
            return _results(folder, num_proc, code, output.unprefixed)
    finally:
        os.close(lock)  # a rank that is left ends itself now
        folder.remove()
        leftovers.clean_up(began)


def _check(fn: Any, args: Any, num_proc: Any, backend: Any, timeout: Any, env: Any) -> None:
    _check_call("run", fn, args)
    _check_num_proc("run", num_proc)
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"run: backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
        raise ValueError(f"run: timeout must be a number of seconds above 0, or None, got {timeout!r}")
    if env is not None and backend == "threads":
        raise ValueError("run: env is for processes; threads share the environment of this one")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"run: env must map names to strings, got {name!r}: {value!r}")


def _check_call(caller: str, fn: Any, args: Any) -> None:
    """TypeError unless `fn` is a function and `args` a sequence of its arguments."""
    if not callable(fn):
        raise TypeError(f"{caller}: fn must be a function, got {type(fn).__name__}")
    if not isinstance(args, Sequence) or isinstance(args, str):
        hint = f"; num_proc={args} is the number of ranks" if isinstance(args, int) else ""
        raise TypeError(f"{caller}: args must be a tuple of the function's arguments, such as (x,), got {args!r}{hint}")


def _check_num_proc(caller: str, num_proc: Any) -> None:
    """ValueError unless this host could run `num_proc` ranks."""
    if not isinstance(num_proc, int) or isinstance(num_proc, bool) or num_proc < 1:
        raise ValueError(f"{caller}: num_proc must be a whole number of at least 1, got {num_proc!r}")
    if reason := too_many(num_proc):
        raise ValueError(f"{caller}: num_proc must be {reason}")


def _check_can_start(num_proc: int) -> None:
    """LaunchError in a process that is a rank itself, and without mpi4py."""
    launch, mpi = detect(os.environ), running_mpi()
    if launch is not None or (mpi is not None and mpi.COMM_WORLD.size > 1):
        here = launch or f"rank {mpi.COMM_WORLD.rank} of {mpi.COMM_WORLD.size}"  # type: ignore[union-attr]
        raise LaunchError(
            f"run starts ranks of its own, but this process is one already ({here}): call the function itself, or "
            'use backend="threads"'
        )
    if num_proc > 1 and importlib.util.find_spec("mpi4py") is None:
        raise LaunchError(
            'run needs mpi4py and an MPI: pip install "sorix_dist[mpi]", or use backend="threads", which needs neither'
        )


def _start(program: Sequence[str], num_proc: int, environ: Mapping[str, str]) -> Command:
    try:
        return command(program, num_proc, environ=environ)
    except LaunchError as error:
        raise LaunchError(f'run: {error}; backend="threads" needs none') from error


def _run(
    argv: Sequence[str], environ: Mapping[str, str], output: Output, folder: PrivateFolder, timeout: float | None
) -> int | None:
    """Runs the launcher until it ends, or a rank has failed; returns its exit code, None if it was ended here."""
    with subprocess.Popen(
        argv,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # only this process gets a Ctrl-C of the terminal, and it ends the others
    ) as process:
        assert process.stdout is not None
        output.add(process.stdout)
        done = 0.0
        limit = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while process.poll() is None:
                output.show(0.05)
                if time.monotonic() > limit:
                    raise TimeoutError(f"run: not done after {timeout} s; {_missing(folder, len(output.ranks))}")
                if any(name.startswith("failure-") for name in folder.names()):
                    with suppress(subprocess.TimeoutExpired):  # other ranks may report their failures meanwhile
                        process.wait(GRACE)
                    break
                if not done and not _missing(folder, len(output.ranks)):
                    done = time.monotonic()
                if done and time.monotonic() > done + LEAVE:
                    warnings.warn(
                        f"run: all ranks have returned their results, but their processes did not end within {LEAVE:g} "
                        "s (an atexit function, a thread that is no daemon, or a child process) and were killed",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                    break
        finally:
            code = process.poll()
            _end(process)
            output.show(0)
        return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the launcher and all ranks, by SIGTERM first, because a killed MPI does not remove its shared memory."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        kill_with_descendants(process.pid)


def _results(folder: PrivateFolder, num_proc: int, code: int | None, printed: str) -> list[Any]:
    """The results of all ranks; raises the first failure. printed: the output of the launcher itself."""
    failures = []
    for rank in range(num_proc):
        with suppress(FileNotFoundError):
            failures.append((rank, *folder.read(f"failure-{rank}")))
    if failures:
        rank, _, pickled, line, text = min(failures, key=lambda failure: failure[1])
        raise _raised(rank, num_proc, pickled, line) from RemoteTraceback(text)
    missing = _missing(folder, num_proc)
    if missing:
        cause = _BANNER.split(printed)[0].strip() or _BANNER.sub("", printed).strip()
        told = f"; it printed:\n{cause}" if cause else ""
        raise RankError(f"run: the launcher ended with code {code}, but {missing}{told}")
    return [_result(folder, rank) for rank in range(num_proc)]


def _result(folder: PrivateFolder, rank: int) -> Any:
    try:
        return folder.read(f"result-{rank}")
    except Exception as error:
        error.add_note(f"while the result of rank {rank} was unpickled")
        raise


def _raised(rank: int, num_proc: int, pickled: bytes | None, line: str) -> Exception:
    """The exception of a rank, or its text where it cannot be unpickled here."""
    where = f"rank {rank} of {num_proc}"
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except Exception:  # noqa: BLE001 - unpickling runs the class's code; the text is raised instead
            error = None
        if isinstance(error, Exception):
            error.add_note(f"raised on {where}")
            return error
    return RankError(f"{where} ended by {line}")


def _missing(folder: PrivateFolder, num_proc: int) -> str:
    there = folder.names()
    ranks = [str(rank) for rank in range(num_proc) if f"result-{rank}" not in there]
    return f"there is no result of rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" if ranks else ""


# -- ranks that stay alive from one call to the next, such as the cells of a notebook

PAUSE = 0.01  # seconds between two looks into the folder of calls and results


class Pool:
    """Ranks of this host that are started once: `pool = sx.Pool(4)`, then `pool.run(train, (0.1,))` as often as needed.

    The state of imported modules persists between calls: the seed, and data that a function caches there. Functions
    are pickled again for each call. A call that fails, is interrupted or exceeds its limit ends all ranks, as in
    `sx.run`, and the next call starts new ones. `close()` or the end of the program ends the ranks.
    num_proc: how many; env: variables for them, over those of this process.
    """

    def __init__(self, num_proc: int = 2, *, env: Mapping[str, str] | None = None) -> None:
        _check_num_proc("Pool", num_proc)
        self.num_proc, self._env = num_proc, env
        self._ranks: _Ranks | None = None
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)

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
        _check_call("Pool.run", fn, args)
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

    def _forget(self) -> None:
        """This process was forked: the ranks are its parent's."""
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
