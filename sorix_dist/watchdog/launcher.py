"""The launcher's environment variables (rank r of n), and the file by which a script reports its completion."""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Environ = Mapping[str, str]

_SLURM_NO_RANKS = 0xFFFFFFF0
"""Step numbers from here on are Slurm's own: batch script, extern, interactive and pending steps."""

COMPLETION_FILE = "SORIX_DIST_COMPLETION"  # the variable that names the file of `report_completion`

EXIT_PREEMPTED = 75
"""The exit code of a script that was preempted, saved its work and is to be started again (EX_TEMPFAIL of
sysexits.h)."""


@dataclass(frozen=True)
class Launch:
    """One process of a parallel launch; None if the launcher does not say."""

    name: str
    """The launcher: 'Open MPI', 'MPICH' (also Intel MPI), 'Slurm srun', ..."""
    rank: int
    size: int | None
    local_rank: int | None
    local_size: int | None

    @property
    def several(self) -> bool:
        """Whether more than one process was started; true if the launcher does not say."""
        return self.size is None or self.size > 1

    def __str__(self) -> str:
        return f"rank {self.rank} of {'an unknown number' if self.size is None else self.size}, by {self.name}"


def detect(environ: Environ) -> Launch | None:
    """The launch that this process is part of, or None if no launcher started it.

    A process can see variables of several launchers (mpirun inside a batch job, whose daemons srun
    started): the innermost one, an MPI's own, comes first.
    """
    for read in _LAUNCHERS:
        launch = read(environ)
        if launch is not None:
            return launch
    return None


def tasks_of_job(environ: Environ) -> int | None:
    """The number of tasks of a scheduler's job; None outside a job, or if only cores were requested."""
    if _number(environ, "SLURM_NTASKS") is not None:
        return _number(environ, "SLURM_NTASKS")
    try:
        with open(environ.get("PBS_NODEFILE", ""), encoding="utf-8") as lines:  # a line a task
            return sum(1 for line in lines if line.strip()) or None
    except OSError:
        return None


def tasks_by_node(listed: str) -> list[int]:
    """The tasks on nodes 0, 1, ... in Slurm's notation: [4, 4, 3] for '4(x2),3'; empty if it is malformed."""
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", listed):
        return []
    entries = re.findall(r"(\d+)(?:\(x(\d+)\))?", listed)
    return [int(tasks) for tasks, times in entries for _ in range(int(times or 1))]


def _number(environ: Environ, name: str) -> int | None:
    text = environ.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _by(
    name: str, rank: str, size: str, local_rank: str = "", local_size: str = "", only_with: str = ""
) -> Callable[[Environ], Launch | None]:
    """A function that reads the launch from the variables of the launcher `name`."""

    def read(environ: Environ) -> Launch | None:
        this_rank, ranks = _number(environ, rank), _number(environ, size)
        if this_rank is None or (ranks is None and size) or (only_with and only_with not in environ):
            return None
        return Launch(name, this_rank, ranks, _number(environ, local_rank), _number(environ, local_size))

    return read


def _slurm_srun(environ: Environ) -> Launch | None:
    """A task of srun; the batch script is not one, though it has SLURM_PROCID=0 too."""
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    step = _number(environ, "SLURM_STEP_ID")
    if step is None:
        step = _number(environ, "SLURM_STEPID")
    if rank is None or size is None or step is None or step >= _SLURM_NO_RANKS:
        return None
    return Launch("Slurm srun", rank, size, _number(environ, "SLURM_LOCALID"), _slurm_local_size(environ))


def _slurm_local_size(environ: Environ) -> int | None:
    node = _number(environ, "SLURM_NODEID")
    tasks = tasks_by_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return tasks[node] if node is not None and node < len(tasks) else None


_OMPI, _MV2, _JSM = "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "JSM_NAMESPACE_"

_LAUNCHERS: tuple[Callable[[Environ], Launch | None], ...] = (
    _by("Open MPI", _OMPI + "RANK", _OMPI + "SIZE", _OMPI + "LOCAL_RANK", _OMPI + "LOCAL_SIZE"),
    _by("MVAPICH2", _MV2 + "RANK", _MV2 + "SIZE", _MV2 + "LOCAL_RANK", _MV2 + "LOCAL_SIZE"),
    _by("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", only_with="MPI_LOCALRANKID"),
    _by("Cray PALS", "PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    _by("LSF jsrun", _JSM + "RANK", _JSM + "SIZE", _JSM + "LOCAL_RANK", _JSM + "LOCAL_SIZE"),
    _by("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    _slurm_srun,
    _by("PMI", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    _by("PMIx", "PMIX_RANK", "", only_with="PMIX_NAMESPACE"),
)


def report_completion(environ: MutableMapping[str, str], rank: int) -> None:
    """Make rank 0 create the file that `environ` names, and write to it when its script ends without an error.

    An exit code of 0 does not prove that: fault-tolerant MPIs return it even if all ranks were killed, Open MPI if a
    host was lost, and so does a rank that leaves by `os._exit(0)`. Child processes inherit no such request.
    """
    path = environ.pop(COMPLETION_FILE, None)
    if path and rank == 0:
        with suppress(OSError):  # the caller finds no file, or an empty one, and says so
            Path(path).touch()
        atexit.register(_complete, Path(path), os.getpid())


def is_complete(path: Path) -> bool:
    """Whether rank 0 has reported its completion."""
    return path.exists() and bool(path.read_bytes())


def _complete(path: Path, rank: int) -> None:
    # A child that rank 0 forked may end long before it. An uncaught exception sets last_value, before sys.excepthook.
    if os.getpid() == rank and not hasattr(sys, "last_value"):
        with suppress(OSError):
            path.write_bytes(b"complete")
