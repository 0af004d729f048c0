"""The command line and the variables that start ranks under each MPI, as pure functions."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sorix_dist.comm.blas import usable_cores
from sorix_dist.launch import LaunchError, ask
from sorix_dist.launch.hosts import HERE, Host, named, slots
from sorix_dist.watchdog.launcher import tasks_of_job

Flavour = Literal["openmpi5", "openmpi4", "mpich", "intel"]

BINDINGS = ("none", "core", "numa", "socket")  # the units to which a rank may be bound

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
"""Variables of schedulers and users that give mpirun its hosts and their slots."""

SCHEDULERS = ("SLURM_", "PBS_", "LSB_", "PE_", "FLUX_", "COBALT_")
"""Prefixes of the variables by which mpirun detects a scheduler's job."""

MAPPING = "PRTE_MCA_rmaps_default_mapping_policy"  # how Open MPI 5 places ranks, where the command line does not say it

MOST_PER_CORE = 8  # ranks for each usable core: more are a mistake that would only fill the memory

OPEN_MPI_TRANSPORTS = ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl")


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and variables to add to the environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line to paste into a POSIX shell, environment first."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*assignments, shlex.join(self.argv)])


def command(
    program: Sequence[str],
    ranks: int,
    *,
    hosts: Sequence[Host] = (),
    bind: str = "none",
    cores: int = 1,
    env: Mapping[str, str] | None = None,
    mpirun: Path | None = None,
    environ: Mapping[str, str] | None = None,
    root: bool | None = None,
) -> Command:
    """The command that starts `program` on `ranks` ranks. One rank on this host is the program itself, without MPI.

    program: the argv of one rank.
    hosts: where the ranks run, filled in this order; by default this host, or those of the scheduler's job.
    bind: what a rank is bound to, one of `BINDINGS`; cores: how many, if to cores.
    env: variables for the ranks on all hosts.
    mpirun: the launcher, by default `find_mpirun()`.
    environ: the environment of the command, by default this process's. Only `env` overrides a variable that is set.
    root: whether it will run as root, by default whether this process does.
    Raises ValueError if ranks < 1, the program is empty or the binding is unknown, LaunchError if there is no
    usable mpirun or there are more ranks than slots, or by default far more than cores.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    if not program:
        raise ValueError("program must name what to run, got nothing")
    if bind not in BINDINGS:
        raise ValueError(f"bind must be one of {', '.join(map(repr, BINDINGS))}, got {bind!r}")
    if hosts and ranks > slots(hosts):
        raise LaunchError(
            f"{ranks} ranks are more than the {slots(hosts)} slots of {named(hosts)}: give a host more slots "
            "(HOST:SLOTS), or start fewer ranks"
        )
    env = dict(env or {})
    if ranks == 1 and not hosts and bind == "none":
        return Command(tuple(program), env)
    environ = os.environ if environ is None else environ
    mpirun = find_mpirun(environ) if mpirun is None else mpirun
    if root is None:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
    kind = flavour(mpirun)
    one_host = all(host.name in HERE for host in hosts) if hosts else not hosts_from_outside(environ)
    if not hosts and one_host and (reason := too_many(ranks)):
        raise LaunchError(f"the number of ranks must be {reason}; --hosts localhost:{ranks} starts them nevertheless")
    if not hosts and not one_host:
        _check_slots(kind, ranks, environ)
    settings = _settings(kind, environ, root, one_host) | _pinning(kind, bind, cores)
    added = {name: value for name, value in settings.items() if name not in environ} | env
    if kind == "intel":
        added |= _reachable(mpirun, environ)
    passed_on = list(env) + ["PYTHONPATH"] * (bool(hosts) and "PYTHONPATH" in environ and "PYTHONPATH" not in env)
    options = _bound(kind, bind, cores, one_host)
    if kind.startswith("openmpi"):  # MPICH and Intel MPI pass all variables to other hosts
        options += [word for name in passed_on for word in ("-x", name)]
    if kind == "openmpi5" and not one_host and MAPPING in environ and "--map-by" not in options:
        # That variable, usually ":oversubscribe" for a small machine, would put all ranks on the first host.
        options = ["--map-by", "slot", *options]
    return Command((str(mpirun), *options, *_placed(kind, ranks, hosts, _guarded(program))), added)


def too_many(ranks: int) -> str:
    """How many ranks this host can run, if these are more; else an empty text."""
    cores = usable_cores()
    if ranks <= MOST_PER_CORE * cores:
        return ""
    return (
        f"at most {MOST_PER_CORE * cores}, {MOST_PER_CORE} for each of the {cores} usable cores, got {ranks}: "
        "more ranks are not faster than one for each core"
    )


def find_mpirun(environ: Mapping[str, str] | None = None) -> Path:
    """The mpirun of this Python environment, else the first on PATH; LaunchError if there is none.

    The environment's own comes first, also where the environment is not activated: mpi4py loads the library beside it,
    and ranks that another MPI has started would each count as the only one.
    """
    path = (os.environ if environ is None else environ).get("PATH", os.defpath)
    for folders in (str(Path(sys.prefix) / "bin"), path):
        for name in ("mpirun", "mpiexec"):
            if found := shutil.which(name, path=folders):
                return Path(found)
    raise LaunchError('no mpirun found, so only one rank can be started; pip install "sorix_dist[mpi]" brings one')


@functools.cache
def flavour(mpirun: Path) -> Flavour:
    """The MPI that a launcher belongs to, by its --version; LaunchError if it is unknown."""
    answer = ask([str(mpirun), "--version"], os.environ | _reachable(mpirun, os.environ), 60.0)
    text = answer.out + answer.err
    if version := re.search(r"\(Open MPI\) (\d+)\.", text):
        return "openmpi5" if int(version[1]) >= 5 else "openmpi4"
    if "Intel(R) MPI Library" in text:  # before MPICH: Intel's launcher is a Hydra too
        return "intel"
    if "HYDRA" in text:
        return "mpich"
    line = answer.why if answer.code is None else text.partition("\n")[0].strip()
    raise LaunchError(f"{mpirun} is not the launcher of Open MPI, MPICH or Intel MPI; --version says {line!r}")


def hosts_from_outside(environ: Mapping[str, str]) -> bool:
    """Whether a scheduler or a host file chooses the hosts; otherwise all ranks run on this one."""
    return any(environ.get(name) for name in HOSTS_FROM_OUTSIDE)


def on_this_host(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that give mpirun other hosts."""
    outside = set(HOSTS_FROM_OUTSIDE)
    return {name: value for name, value in environ.items() if name not in outside and not name.startswith(SCHEDULERS)}


def _check_slots(kind: Flavour, ranks: int, environ: Mapping[str, str]) -> None:
    """LaunchError if there are more ranks than tasks in a scheduler's job, which Open MPI takes for slots."""
    tasks = tasks_of_job(environ)
    if kind.startswith("openmpi") and tasks is not None and ranks > tasks:
        raise LaunchError(
            f"{ranks} ranks are more than the {tasks} tasks of this job: ask the scheduler for {ranks} tasks (Slurm: "
            f"--ntasks={ranks}), or start {tasks} ranks"
        )


def _placed(kind: Flavour, ranks: int, hosts: Sequence[Host], program: Sequence[str]) -> list[str]:
    """The arguments that say how many ranks run on which hosts, and the program."""
    if not hosts:
        return ["-n", str(ranks), *program]
    if kind != "intel":
        return ["--host" if kind.startswith("openmpi") else "-hosts", named(hosts), "-n", str(ranks), *program]
    argv: list[str] = []  # its -hosts has no slots, so each host gets a section of the command line
    for host in hosts:
        here = min(host.slots, ranks)
        ranks -= here
        if here:
            argv += [":"] * bool(argv) + ["-n", str(here), "-host", host.name, *program]
    return argv


def _bound(kind: Flavour, bind: str, cores: int, one_host: bool) -> list[str]:
    """The options that bind ranks."""
    if bind == "none" or kind == "intel":
        return []
    if kind == "mpich":
        return ["-bind-to", f"core:{cores}" if bind == "core" and cores > 1 else bind]
    if bind == "socket" and kind == "openmpi5":
        bind = "package"
    options = ["--bind-to", f"{bind}:overload-allowed"]
    mapping = "slot" + f":PE={cores}" * (bind == "core" and cores > 1)
    # With --map-by, Open MPI 5 ignores the environment's oversubscription.
    mapping += ":OVERSUBSCRIBE" * (one_host and kind == "openmpi5")
    return [*options, "--map-by", mapping] if ":" in mapping else options


def _pinning(kind: Flavour, bind: str, cores: int) -> dict[str, str]:
    """The variables that bind ranks under Intel MPI, and that keep Open MPI from binding them."""
    if kind == "intel" and bind != "none":
        return {"I_MPI_PIN": "1", "I_MPI_PIN_DOMAIN": str(cores) if bind == "core" and cores > 1 else bind}
    # Open MPI would bind each of two ranks to one core, with its BLAS threads and other jobs' ranks. An unbound rank on
    # a core of its own communicates as fast (measured).
    if kind == "openmpi5" and bind == "none":
        return {"PRTE_MCA_hwloc_default_binding_policy": "none"}
    if kind == "openmpi4" and bind == "none":
        return {"OMPI_MCA_hwloc_base_binding_policy": "none"}
    return {}


def _settings(kind: Flavour, environ: Mapping[str, str], root: bool, one_host: bool) -> dict[str, str]:
    """Variables that let this MPI start on any machine, at once and without a warning."""
    if kind in ("mpich", "intel"):
        return {}
    settings: dict[str, str] = {}
    if root:
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if not one_host:
        return settings
    # Always: Open MPI counts physical cores, this package logical ones.
    if kind == "openmpi5":
        settings[MAPPING] = ":oversubscribe"
    else:
        settings["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    # One host needs only shared memory; probing for networks takes a second.
    if not any(name in environ for name in OPEN_MPI_TRANSPORTS):
        settings["OMPI_MCA_pml"] = "ob1"
        settings["OMPI_MCA_btl"] = "self,sm" if kind == "openmpi5" else "self,vader"
    settings["OMPI_MCA_osc"] = "^ucx"  # else an error message for every shared window
    return settings


def _reachable(mpirun: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """A PATH with the launcher's folder, if it is missing: Intel's mpirun finds its helpers there."""
    folder, path = str(mpirun.parent), environ.get("PATH", os.defpath)
    return {} if folder in path.split(os.pathsep) else {"PATH": f"{folder}{os.pathsep}{path}"}


def _guarded(program: Sequence[str]) -> Sequence[str]:
    """The program, in a shell if an argument is ":", which every mpirun takes for the end of the program."""
    if ":" not in program:
        return program
    return ["/bin/sh", "-c", f"exec {shlex.join(program)}"]
