"""Checks of the machine: Python, BLAS, cores, network, shared memory, schedulers. None of them loads MPI."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from sorix_dist.comm.blas import VARIABLES, usable_cores
from sorix_dist.launch import segments
from sorix_dist.launch.answer import ask
from sorix_dist.launch.doctor.finding import Finding

SMALL = 256 << 20
"""Bytes of /dev/shm that a model and its gradients can soon exceed; a container has 64 MB by default."""

SCHEDULERS = {"sbatch": "Slurm", "qsub": "PBS or SGE", "bsub": "LSF", "flux": "Flux", "kubectl": "Kubernetes"}


def python() -> Finding:
    """Which Python this is."""
    text = f"{platform.python_version()} at {sys.executable}, on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", text, data={"version": platform.python_version(), "executable": sys.executable})


def numpy() -> Finding:
    """NumPy and the BLAS that it computes with."""
    import numpy as np
    from threadpoolctl import threadpool_info

    libraries = [each for each in threadpool_info() if each["user_api"] == "blas"]
    if not libraries:
        return Finding("NumPy", "warning", f"{np.__version__}, BLAS unknown: its threads cannot be limited")
    blas = libraries[0]
    kernel, threads, cores = blas.get("architecture", "unknown"), blas["num_threads"], usable_cores()
    text = f"{np.__version__}, {blas['internal_api']} {blas['version']}, {kernel} kernel, {threads} threads"
    data = {"version": np.__version__, "blas": blas["internal_api"], "blas_version": blas["version"]}
    data |= {"kernel": kernel, "threads": threads}
    said = next((f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)), None)
    if threads > cores and said is not None:  # without a word of the user's they are cut to the cores
        text += f" on {cores} core{'s' * (cores != 1)}, which is slow: {said}"
        return Finding("NumPy", "warning", text, f"unset {said.partition('=')[0]}", data)
    return Finding("NumPy", "ok", text, data=data)


def cores() -> Finding:
    """How many cores this process may use."""
    usable, there = usable_cores(), os.cpu_count() or 1
    text = f"{usable} usable" + f" of {there}, by affinity or a container's quota" * (usable < there)
    return Finding("Cores", "ok", text, data={"usable": usable, "there": there})


def network() -> Finding:
    """The interfaces that are up, and whether this host's own name leads to an address."""
    found = {name: address for _, name in socket.if_nameindex() if (address := _address(name))}
    text = ", ".join(f"{name} {address}" for name, address in found.items()) or "no interface is up"
    host = socket.gethostname()
    data = {"interfaces": found, "host": host}
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        mend = f"add a line to /etc/hosts: 127.0.1.1 {host}"
        return Finding("Network", "warning", f"{text}; this host's name, {host}, has no address", mend, data)
    return Finding("Network", "ok", f"{text}; host {host}", data=data)


_SIOCGIFADDR = 0x8915


def _address(interface: str) -> str:
    """The IPv4 address of an interface, '' if it has none; Linux only."""
    if sys.platform != "linux":
        return "up"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def shared_memory(folder: Path = segments.SHARED) -> list[Finding]:
    """How much there is, and what dead jobs have left of it."""
    if not folder.is_dir():
        return [Finding("Shared memory", "ok", f"there is no {folder} on this system")]
    usage = shutil.disk_usage(folder)
    text = f"{folder}: {_size(usage.free)} free of {_size(usage.total)}"
    data = {"free": usage.free, "total": usage.total}
    space = Finding("Shared memory", "ok", text, data=data)
    if usage.free < SMALL:
        mend = "start the container with --shm-size=2g, or as root: mount -o remount,size=2g /dev/shm"
        space = Finding("Shared memory", "warning", f"{text}: large models need more", mend, data)
    old = segments.left_over(folder)
    left = Finding("Left-overs", "ok", f"no shared memory of dead MPI jobs in {folder}", data={"files": []})
    if old:
        files = [str(segment.path) for segment in old]
        text = f"{len(old)} segments of dead MPI jobs in {folder}, {_size(sum(segment.size for segment in old))}"
        left = Finding("Left-overs", "warning", text, "sorix-dist doctor --clean removes them", {"files": files})
    return [space, left]


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.1f} MB"


def schedulers(environ: Mapping[str, str]) -> Finding:
    """Which schedulers' commands there are, and by which ways srun can start MPI ranks."""
    found = {tool: name for tool, name in SCHEDULERS.items() if shutil.which(tool, path=environ.get("PATH"))}
    text = ", ".join(f"{tool} ({name})" for tool, name in found.items()) or "none found"
    srun = shutil.which("srun", path=environ.get("PATH"))
    ways = ask([srun, "--mpi=list"], environ, 10.0) if srun else None
    if ways is None or ways.code != 0:
        return Finding("Schedulers", "ok", text, data={"commands": list(found)})
    pmix = "pmix" in ways.out + ways.err
    data = {"commands": list(found), "srun_pmix": pmix}
    if pmix:
        return Finding("Schedulers", "ok", f"{text}; srun --mpi=pmix starts ranks of Open MPI", data=data)
    mend = "start with sorix-dist run, or mpirun, inside the allocation"
    return Finding("Schedulers", "warning", f"{text}; srun knows no pmix, which Open MPI 5 needs", mend, data)
