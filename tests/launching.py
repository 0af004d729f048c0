"""Start ranks as a user does, under a hard limit, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).parent / "mpirun"
"""The mpirun of the environment that runs the tests."""

needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason=f"there is no {MPIRUN}")

ROOT = Path(__file__).parent.parent

_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    # Open MPI 5: run as root, more ranks than cores, no second of probing for networks.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
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


def run_command(argv: Sequence[str], *, limit: float = 60.0, env: Mapping[str, str] | None = None) -> Ended:
    """Run `argv` with the variables `env` added and return what came of it.

    Fails the test if it takes more than `limit` seconds. All processes that it started, ranks included, which
    form groups of their own, are in its session and are killed by their ids.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **_ENVIRONMENT, **(env or {})},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _kill_session(process.pid)
        out, err = process.communicate()
        pytest.fail(f"{' '.join(argv)} was killed after {limit} s\n{out}\n{err}")
    finally:
        _kill_session(process.pid)
    return Ended(process.returncode, out, err, time.monotonic() - began)


def run_ranks(n: int, *arguments: str, limit: float = 60.0, env: Mapping[str, str] | None = None) -> Ended:
    """`mpirun -n N python ARGUMENTS` with the mpirun and the python of this environment."""
    return run_command([str(MPIRUN), "-n", str(n), sys.executable, *arguments], limit=limit, env=env)


def _kill_session(session: int) -> None:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
