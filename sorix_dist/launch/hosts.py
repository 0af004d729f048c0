"""The hosts of a job: parsed from options and files, asked of a scheduler, and tested for an answer."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sorix_dist.launch import LaunchError, ask
from sorix_dist.watchdog.launcher import tasks_by_node

HERE = ("localhost", "127.0.0.1", "::1")

AGENTS = ("PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent", "HYDRA_LAUNCHER_EXEC", "I_MPI_HYDRA_BOOTSTRAP_EXEC")
"""Variables that replace ssh as the command that reaches other hosts."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*|\[[0-9A-Fa-f:]+\]")
_HELP = "expected HOST or HOST:SLOTS, with a whole number of slots of at least 1"


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it takes."""

    name: str
    slots: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def slots(hosts: Iterable[Host]) -> int:
    """The slots of all hosts together."""
    return sum(host.slots for host in hosts)


def named(hosts: Iterable[Host]) -> str:
    """The hosts as `--hosts` takes them, and as Open MPI and MPICH do."""
    return ",".join(map(str, hosts))


def parse_hosts(text: str) -> tuple[Host, ...]:
    """The hosts of 'a:2,b:2'; LaunchError with the item that is wrong."""
    return _distinct([_host(part.strip(), f"--hosts {text!r}") for part in text.split(",")], f"--hosts {text!r}")


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a file, a line each: 'a', 'a:2' (as MPICH writes it) or 'a slots=2' (as Open MPI does); # comments.

    LaunchError with file and line for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise LaunchError(f"--hostfile {str(path)!r} cannot be read: {reason}") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}:{number}"
        if len(words) == 2 and (given := re.fullmatch(r"slots=(.*)", words[1])):
            words = [f"{words[0]}:{given[1]}"]
        if len(words) > 1:
            raise LaunchError(f"{where}: {line.strip()!r} is no host: expected HOST, HOST:SLOTS or HOST slots=SLOTS")
        hosts.append(_host(words[0], where))
    if not hosts:
        raise LaunchError(f"--hostfile {str(path)!r} names no host")
    return _distinct(hosts, str(path))


def _host(text: str, where: str) -> Host:
    name, count = text, "1"
    if ":" in text and not text.endswith("]"):  # the colons of [::1] are its own
        name, _, count = text.rpartition(":")
    if not _NAME.fullmatch(name) or not count.isdecimal() or int(count) < 1:
        raise LaunchError(f"{where}: {text!r} is no host: {_HELP}")
    return Host(name, int(count))


def _distinct(hosts: Sequence[Host], where: str) -> tuple[Host, ...]:
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise LaunchError(f"{where}: host {name!r} is named twice; name it once, with all its slots")
    return tuple(hosts)


def allocated(environ: Mapping[str, str]) -> tuple[Host, ...]:
    """The hosts of the scheduler's job around this process; none if there is no job, or its hosts are unknown."""
    try:
        if environ.get("SLURM_JOB_NODELIST"):
            return _slurm(environ["SLURM_JOB_NODELIST"], environ.get("SLURM_TASKS_PER_NODE", ""))
        if environ.get("PBS_NODEFILE"):  # a line a task
            names = Path(environ["PBS_NODEFILE"]).read_text(encoding="utf-8").split()
            return tuple(Host(name, names.count(name)) for name in dict.fromkeys(names))
        if environ.get("LSB_MCPU_HOSTS"):  # "a 2 b 2"
            words = environ["LSB_MCPU_HOSTS"].split()
            return tuple(Host(name, int(count)) for name, count in zip(words[::2], words[1::2]))
        if environ.get("PE_HOSTFILE"):  # "a 2 queue@a UNDEFINED", a line a host
            lines = Path(environ["PE_HOSTFILE"]).read_text(encoding="utf-8").splitlines()
            return tuple(Host(line.split()[0], int(line.split()[1])) for line in lines if line.strip())
    except (OSError, ValueError, IndexError, LaunchError):
        return ()
    return ()


def _slurm(nodes: str, tasks: str) -> tuple[Host, ...]:
    names = ask(["scontrol", "show", "hostnames", nodes], os.environ, 30.0).out.split()
    counts = tasks_by_node(tasks)
    counts += [1] * (len(names) - len(counts))
    return tuple(map(Host, names, counts))


def silent(hosts: Iterable[Host], environ: Mapping[str, str], limit: float = 15.0) -> dict[Host, str]:
    """The hosts on which mpirun could not start a command, each with the reason."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import

    hosts = list(hosts)
    with ThreadPoolExecutor(max_workers=16) as pool:
        reasons = pool.map(lambda host: _reason(host.name, environ, limit), hosts)
        return {host: reason for host, reason in zip(hosts, reasons) if reason}


def probe(name: str, environ: Mapping[str, str]) -> list[str]:
    """The command that runs `true` on a host, reached as mpirun reaches it."""
    if environ.get("SLURM_JOB_ID"):
        return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={name}", "true"]
    given = next((environ[variable] for variable in AGENTS if environ.get(variable)), "ssh")
    agent = shlex.split(given.partition(":")[0])  # Open MPI takes a list, in order of preference
    if Path(agent[0]).name == "ssh":
        agent += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
    return [*agent, name, "true"]


def _reason(name: str, environ: Mapping[str, str], limit: float) -> str:
    if name in (*HERE, socket.gethostname(), socket.gethostname().partition(".")[0]):
        return ""
    argv = probe(name, environ)
    try:
        answer = ask(argv, {**os.environ, **environ}, limit)
    except LaunchError as error:
        return str(error)
    if answer.code is None:
        return f"no answer in {limit:g} s"
    lines = (answer.err.strip() or answer.out.strip()).splitlines()
    return "" if answer.code == 0 else (lines[-1] if lines else f"{argv[0]} ended with code {answer.code}")


def check_answers(hosts: Iterable[Host], environ: Mapping[str, str]) -> None:
    """LaunchError if a host does not answer."""
    for host, reason in silent(hosts, environ).items():
        raise LaunchError(
            f"host {host.name!r} does not answer ({reason}); `{shlex.join(probe(host.name, environ))}` must work "
            "without a password, or leave the host out"
        )
