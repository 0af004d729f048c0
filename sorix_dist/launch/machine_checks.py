"""Checks of the machine: Python, BLAS, cores, network, shared memory, schedulers. None of them loads MPI."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sorix_dist.comm.blas import VARIABLES, usable_cores
from sorix_dist.launch import cleanup
from sorix_dist.launch.processes import PYTHON, ask

SMALL = 256 << 20
"""Bytes of /dev/shm that a model and its gradients can soon exceed; a container has 64 MB by default."""

SCHEDULERS = {"sbatch": "Slurm", "qsub": "PBS or SGE", "bsub": "LSF", "flux": "Flux", "kubectl": "Kubernetes"}

KERNEL_CHOICE = "OPENBLAS_CORETYPE"
WIDE, NARROW = ("SkylakeX", "Cooperlake", "SapphireRapids"), "Haswell"
"""OpenBLAS's kernels for vectors of 512 and of 256 bits. Some CPUs compute 512 bits in two halves, and slower."""
WORTHWHILE = 0.97
"""A kernel that takes more than this share of the time is not recommended."""

_TIME_PRODUCT = """
import time
import numpy as np
from threadpoolctl import threadpool_info
x, w = np.ones((256, 1024), np.float32), np.ones((1024, 1024), np.float32)
def seconds():
    start = time.perf_counter()
    x @ w
    return time.perf_counter() - start
kernel = next((each.get("architecture") for each in threadpool_info() if each["user_api"] == "blas"), None)
print(kernel, min(seconds() for _ in range(50)))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's page. mend: what to do about it, "" if nothing; data: the same for programs."""

    subject: str
    level: Literal["ok", "warning", "error"]
    text: str
    mend: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


def python() -> Finding:
    """Which Python this is."""
    text = f"{platform.python_version()} at {sys.executable}, on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", text, data={"version": platform.python_version(), "executable": sys.executable})


def numpy() -> Finding:
    """NumPy, its BLAS, and whether the BLAS has more threads than there are cores."""
    import numpy as np
    from threadpoolctl import threadpool_info

    blas = next((each for each in threadpool_info() if each["user_api"] == "blas"), None)
    if blas is None:
        return Finding("NumPy", "warning", f"{np.__version__}, BLAS unknown: its threads cannot be limited")
    kernel, threads, cores = blas.get("architecture", "unknown"), blas["num_threads"], usable_cores()
    text = f"{np.__version__}, {blas['internal_api']} {blas['version']}, {kernel} kernel, {threads} threads"
    data = {"version": np.__version__, "blas": blas["internal_api"], "blas_version": blas["version"]}
    data |= {"kernel": kernel, "threads": threads}
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if threads > cores and variable is not None:  # without a variable the package cuts them to the cores
        text += f" on {cores} core{'s' * (cores != 1)}, which is slow: {variable}={os.environ[variable]}"
        return Finding("NumPy", "warning", text, f"unset {variable}", data)
    return Finding("NumPy", "ok", text, data=data)


def kernels(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether another of OpenBLAS's kernels is faster here: it chooses by what the CPU can do, not by a measurement."""
    if environ.get(KERNEL_CHOICE):
        return
    chosen, seconds = _time_product(environ)
    if chosen not in WIDE:
        return
    best = {chosen: seconds}
    for wanted in (NARROW, chosen, NARROW):  # in turn, because others may use the machine
        kernel, seconds = _time_product({**environ, KERNEL_CHOICE: wanted})
        if kernel != wanted:
            return
        best[kernel] = min(seconds, best.get(kernel, seconds))
    share = best[NARROW] / best[chosen]
    text = f"{NARROW} takes {share:.2f} of the time of {chosen}, which OpenBLAS has chosen, in large matrix products"
    mend = f"{KERNEL_CHOICE}={NARROW} in the environment of every rank, if it makes your steps faster; last bits change"
    yield Finding("Kernels", "ok", text, mend * (share < WORTHWHILE), {"chosen": chosen, "seconds": best})


def _time_product(environ: Mapping[str, str]) -> tuple[str, float]:
    """The kernel of a new process with one thread, and the seconds of its fastest product."""
    answer = ask([*PYTHON, "-c", _TIME_PRODUCT], {**environ, "OPENBLAS_NUM_THREADS": "1"}, 20.0)
    kernel, _, seconds = answer.out.strip().partition(" ")
    return (kernel, float(seconds)) if answer.code == 0 else ("", 0.0)


def cores() -> Finding:
    """The number of cores that this process may use."""
    usable, there = usable_cores(), os.cpu_count() or 1
    text = f"{usable} usable" + f" of {there}, by affinity or a container's quota" * (usable < there)
    return Finding("Cores", "ok", text, data={"usable": usable, "there": there})


def network() -> Finding:
    """The interfaces that are up, and whether this host's own name has an address."""
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


def _address(interface: str) -> str:
    """The IPv4 address of an interface, "" if it has none; only Linux tells."""
    if sys.platform != "linux":
        return "up"
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, siocgifaddr, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def shared_memory(folder: Path = cleanup.SHARED) -> list[Finding]:
    """The free shared memory, and segments of dead jobs in it."""
    if not folder.is_dir():
        return [Finding("Shared memory", "ok", f"there is no {folder} on this system")]
    usage = shutil.disk_usage(folder)
    text = f"{folder}: {_size(usage.free)} free of {_size(usage.total)}"
    data = {"free": usage.free, "total": usage.total}
    space = Finding("Shared memory", "ok", text, data=data)
    if usage.free < SMALL:
        mend = "start the container with --shm-size=2g, or as root: mount -o remount,size=2g /dev/shm"
        space = Finding("Shared memory", "warning", f"{text}: large models need more", mend, data)
    dead = cleanup.dead_segments(folder)
    if not dead:
        text = f"no shared memory of dead MPI jobs in {folder}"
        return [space, Finding("Left-overs", "ok", text, data={"files": []})]
    text = f"{len(dead)} segments of dead MPI jobs in {folder}, {_size(sum(segment.size for segment in dead))}"
    files = [str(segment.path) for segment in dead]
    return [space, Finding("Left-overs", "warning", text, "sorix-dist doctor --clean removes them", {"files": files})]


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.1f} MB"


def schedulers(environ: Mapping[str, str]) -> Finding:
    """Which schedulers' commands there are, and whether srun can start MPI ranks."""
    found = {tool: name for tool, name in SCHEDULERS.items() if shutil.which(tool, path=environ.get("PATH"))}
    text = ", ".join(f"{tool} ({name})" for tool, name in found.items()) or "none found"
    data: dict[str, object] = {"commands": list(found)}
    srun = shutil.which("srun", path=environ.get("PATH"))
    answer = ask([srun, "--mpi=list"], environ, 10.0) if srun else None
    if answer is None or answer.code != 0:
        return Finding("Schedulers", "ok", text, data=data)
    data["srun_pmix"] = "pmix" in answer.out + answer.err
    if data["srun_pmix"]:
        return Finding("Schedulers", "ok", f"{text}; srun --mpi=pmix starts ranks of Open MPI", data=data)
    mend = "start with sorix-dist run, or mpirun, inside the allocation"
    return Finding("Schedulers", "warning", f"{text}; srun knows no pmix, which Open MPI 5 needs", mend, data)
