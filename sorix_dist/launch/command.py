"""The command line and the extra environment that start ranks, for every MPI, as pure functions."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sorix_dist.launch.errors import LaunchError

Flavour = Literal["openmpi5", "openmpi4", "mpich", "intel"]

HOSTS_FROM_OUTSIDE = (
    "SLURM_JOB_ID",
    "PBS_NODEFILE",
    "LSB_JOBID",
    "PE_HOSTFILE",
    "FLUX_JOB_ID",
    "PRTE_MCA_prte_default_hostfile",
    "OMPI_MCA_orte_default_hostfile",
    "HYDRA_HOST_FILE",
    "I_MPI_HYDRA_HOST_FILE",
)
"""Variables by which a scheduler or the user tells mpirun its hosts and how many ranks each one takes."""

SCHEDULERS = ("SLURM_", "PBS_", "LSB_", "PE_", "FLUX_", "COBALT_")
"""How the names of the variables begin by which mpirun finds that it runs in a scheduler's job."""

OPEN_MPI_TRANSPORTS = ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl")


@dataclass(frozen=True)
class Command:
    """What to execute: `argv`, and `env`, the variables to add to the environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line to paste into a POSIX shell, environment first."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*assignments, shlex.join(self.argv)])


def command(
    program: Sequence[str],
    ranks: int,
    *,
    mpirun: Path | None = None,
    environ: Mapping[str, str] | None = None,
    root: bool | None = None,
) -> Command:
    """What starts `program` on `ranks` ranks; one rank needs no MPI and is the program itself.

    program: the argv of one rank, its first element included.
    mpirun: the launcher, by default `find_mpirun()`.
    environ: the environment that the command will run in, by default this process's. Variables set there
        are never overridden.
    root: whether it will run as root, by default whether this process does.
    Raises ValueError if ranks < 1 or the program is empty, LaunchError if there is no usable mpirun.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    if not program:
        raise ValueError("program must name what to run, got nothing")
    if ranks == 1:
        return Command(tuple(program))
    environ = os.environ if environ is None else environ
    mpirun = find_mpirun(environ) if mpirun is None else mpirun
    if root is None:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
    kind = flavour(mpirun)
    added = {name: value for name, value in _settings(kind, environ, root).items() if name not in environ}
    if kind == "intel":
        added |= _reachable(mpirun, environ)
    return Command((str(mpirun), "-n", str(ranks), *_guarded(program)), added)


def find_mpirun(environ: Mapping[str, str] | None = None) -> Path:
    """The mpirun of this Python environment, else the first one on PATH; LaunchError if there is none.

    The environment's own comes first because mpi4py loads the MPI library that lies beside it, also when the
    environment is not activated; ranks started by another MPI would each believe to be alone.
    """
    path = (os.environ if environ is None else environ).get("PATH", os.defpath)
    for folders in (str(Path(sys.prefix) / "bin"), path):
        for name in ("mpirun", "mpiexec"):
            if found := shutil.which(name, path=folders):
                return Path(found)
    raise LaunchError('no mpirun found, so only one rank can be started; pip install "sorix_dist[mpi]" brings one')


@functools.cache
def flavour(mpirun: Path) -> Flavour:
    """Which MPI a launcher belongs to, by its --version; LaunchError if it is none that we know."""
    try:
        answer = subprocess.run(
            [mpirun, "--version"],
            env=os.environ | _reachable(mpirun, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{mpirun} --version failed: {error}") from error
    text = answer.stdout + answer.stderr
    if version := re.search(r"\(Open MPI\) (\d+)\.", text):
        return "openmpi5" if int(version[1]) >= 5 else "openmpi4"
    if "Intel(R) MPI Library" in text:  # before MPICH: Intel's launcher is a Hydra too
        return "intel"
    if "HYDRA" in text:
        return "mpich"
    said = next(iter(text.split("\n")), "").strip()
    raise LaunchError(f"{mpirun} is not the launcher of Open MPI, MPICH or Intel MPI; --version says {said!r}")


def hosts_from_outside(environ: Mapping[str, str]) -> bool:
    """Whether a scheduler or a host file decides on the hosts; otherwise all ranks run on this one."""
    return any(environ.get(name) for name in HOSTS_FROM_OUTSIDE)


def on_this_host(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would make mpirun start ranks on the hosts of a scheduler or a host file."""
    outside = set(HOSTS_FROM_OUTSIDE)
    return {name: value for name, value in environ.items() if name not in outside and not name.startswith(SCHEDULERS)}


def _settings(kind: Flavour, environ: Mapping[str, str], root: bool) -> dict[str, str]:
    """The variables that make this MPI start on any machine, at once and without a warning."""
    if kind in ("mpich", "intel"):
        return {}
    settings: dict[str, str] = {}
    if root:
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # Open MPI binds each of two ranks to one core, where its BLAS threads and every other job's ranks would
    # crowd; measured, an unbound rank on a core of its own communicates as fast.
    if kind == "openmpi5":
        settings["PRTE_MCA_hwloc_default_binding_policy"] = "none"
    else:
        settings["OMPI_MCA_hwloc_base_binding_policy"] = "none"
    if hosts_from_outside(environ):
        return settings
    # Always, not only for more ranks than cores: Open MPI counts physical cores and we count logical ones.
    if kind == "openmpi5":
        settings["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    else:
        settings["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    # Shared memory is all that one host needs; probing for networks costs a second.
    if not any(name in environ for name in OPEN_MPI_TRANSPORTS):
        settings["OMPI_MCA_pml"] = "ob1"
        settings["OMPI_MCA_btl"] = "self,sm" if kind == "openmpi5" else "self,vader"
    settings["OMPI_MCA_osc"] = "^ucx"  # else an error message for every shared window
    return settings


def _reachable(mpirun: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """A PATH that leads to the launcher's folder, if it does not yet: Intel's mpirun looks for its parts there."""
    folder, path = str(mpirun.parent), environ.get("PATH", os.defpath)
    return {} if folder in path.split(os.pathsep) else {"PATH": f"{folder}{os.pathsep}{path}"}


def _guarded(program: Sequence[str]) -> Sequence[str]:
    """The program, behind a shell if an argument is ":", where every mpirun takes the program to end."""
    if ":" not in program:
        return program
    return ["/bin/sh", "-c", f"exec {shlex.join(program)}"]
