"""The checks behind `sorix-dist doctor`: is this machine and environment fit for training on several ranks?

MPI is loaded in other processes, under a limit: a broken MPI may hang or abort.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from sorix_dist import _blas
from sorix_dist.comm import mismatch
from sorix_dist.comm.blas import VARIABLES, usable_cores
from sorix_dist.launch import PYTHON, Answer, LaunchError, ask
from sorix_dist.launch.command import command, find_mpirun, flavour, on_this_host
from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.launcher import detect, tasks_of_job

SMALL = 256 << 20  # bytes of /dev/shm that a model and its gradients can soon exceed; a container has 64 MB by default

SCHEDULERS = {"sbatch": "Slurm", "qsub": "PBS or SGE", "bsub": "LSF", "flux": "Flux", "kubectl": "Kubernetes"}

KERNEL_CHOICE = "OPENBLAS_CORETYPE"
WIDE, NARROW = ("SkylakeX", "Cooperlake", "SapphireRapids"), "Haswell"
"""OpenBLAS's kernels for vectors of 512 and of 256 bits. Some CPUs compute 512 bits in two halves, and slower."""
WORTHWHILE = 0.97  # a kernel that takes more than this share of the time is not recommended

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


def examine() -> Iterator[Finding]:
    """Runs all checks, in a few seconds; yields each finding as soon as it is known."""
    environ = dict(os.environ)
    yield python()
    yield numpy()
    yield from kernels(environ)
    yield cores()
    yield from checks(environ)
    yield network()
    yield from shared_memory()
    yield schedulers(environ)


def python() -> Finding:
    """Which Python this is."""
    text = f"{platform.python_version()} at {sys.executable}, on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", text, data={"version": platform.python_version(), "executable": sys.executable})


def numpy() -> Finding:
    """NumPy, its BLAS, and whether the BLAS has more threads than there are cores."""
    import numpy as np

    blas = next(iter(_blas.libraries()), None)
    if blas is None:
        return Finding("NumPy", "warning", f"{np.__version__}, BLAS unknown: its threads cannot be limited")
    kernel, threads, cores = _blas.kernels(blas), blas.num_threads, usable_cores()
    text = f"{np.__version__}, {blas.internal_api} {blas.version}, {kernel} kernel, {threads} threads"
    data = {"version": np.__version__, "blas": blas.internal_api, "blas_version": blas.version}
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
    """The IPv4 address of an interface, "" if it has none; known on Linux only."""
    if sys.platform != "linux":
        return "up"
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, siocgifaddr, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def shared_memory(folder: Path = Path(leftovers.SHARED)) -> list[Finding]:
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
    dead = leftovers.dead_segments(folder)
    if not dead:
        text = f"no shared memory of dead MPI jobs in {folder}"
        return [space, Finding("Left-overs", "ok", text, data={"files": []})]
    text = f"{len(dead)} segments of dead MPI jobs in {folder}, {_size(sum(segment.size for segment in dead))}"
    files = [str(segment.path) for segment in dead]
    return [space, Finding("Left-overs", "warning", text, "sorix-dist doctor --clean removes them", {"files": files})]


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


# -- MPI

LIMIT = 60.0  # seconds for one process or job; a sound one takes about one

_HYDRA = ("MPICH", "Intel MPI", "MVAPICH")  # they start each other's ranks
LIBRARIES = {"openmpi5": ("Open MPI",), "openmpi4": ("Open MPI",), "mpich": _HYDRA, "intel": _HYDRA}
"""The libraries that each launcher can start ranks of."""

RANK_VARIABLES = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "MPI_LOCAL", "HYDI_", "MV2_COMM_", "PALS_", "JSM_")
"""Prefixes of the variables that make a process a rank of a job."""

_LIBRARY = """
import json, os, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
vendor, version = MPI.get_vendor()
maps = open("/proc/self/maps") if os.path.exists("/proc/self/maps") else ()
path = next((line.split()[-1] for line in maps if "/libmpi" in line and "abi" not in line), None)
print(json.dumps([vendor, version, MPI.Get_library_version(), path]))
"""

_REDUCE = """
import json, time
import numpy as np
from sorix_dist.comm import init
world = init()
assert world.size == 2, f"the two processes are {world.size} ranks each"
speeds = {}
for size in (4 << 10, 1 << 20, 16 << 20):
    array = np.full(size // 4, world.rank + 1, np.float32)
    world.all_reduce(array)
    assert (array == 3).all(), "the sum over two ranks is wrong"
    times = []
    for _ in range(20):
        world.barrier()
        began = time.perf_counter()
        world.all_reduce(array)
        times.append(time.perf_counter() - began)
    speeds[size] = sorted(times)[len(times) // 2]
if world.rank == 0:
    print("MEASURED", json.dumps(speeds), flush=True)
world.barrier()
"""

_WINDOW = """
from sorix_dist.comm import init
world = init()
window = world.window(1 << 20)
window.parts[window.local_rank][:] = world.rank + 1
window.barrier()
total = sum(int(part[0]) for part in window.parts)
assert total == 3, f"a rank sees {total} instead of 3"
window.close()
if world.rank == 0:
    print("SHARED", flush=True)
"""

_SURVIVES = """
import os, signal
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Set_errhandler(MPI.ERRORS_RETURN)
world.Barrier()
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    world.Barrier()
except MPI.Exception:
    os.write(1, b"SURVIVED\\n")
os._exit(0)
"""


def plain(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process on this host that no launcher has started."""
    here = on_this_host(environ)
    if detect(environ) is None:
        return here
    return {name: value for name, value in here.items() if not name.startswith(RANK_VARIABLES)}


def checks(environ: Mapping[str, str]) -> list[Finding]:
    """All checks of MPI, but those that an error before them makes impossible."""
    if importlib.util.find_spec("mpi4py") is None:
        text = "not installed: only one process can train, or ranks that are threads"
        return [Finding("mpi4py", "error", text, mismatch.INSTALL), ranks(environ)]
    found = [Finding("mpi4py", "ok", metadata.version("mpi4py"), data={"version": metadata.version("mpi4py")})]
    several = mismatch.several_mpis(detect(environ), mismatch.installed_mpis())
    if several is not None:
        text, _, mend = several.partition(". Keep one: ")
        found.append(Finding("MPI packages", "error", text.partition(", but ")[2], mend))
    library, vendor, version = _library(environ)
    launcher = _launcher(vendor, environ)
    found += [library, launcher, ranks(environ, vendor, version)]
    if "error" not in (library.level, launcher.level):
        found += _two_ranks(environ, vendor, version)
    return found


def _library(environ: Mapping[str, str]) -> tuple[Finding, str, tuple[int, ...]]:
    """The MPI library that mpi4py loads: the finding, the vendor and the version."""
    answer = ask([*PYTHON, "-c", _LIBRARY], plain(environ), LIMIT)
    if answer.code != 0:
        missing = "cannot load MPI library" in answer.err
        text = "mpi4py finds no MPI library" if missing else f"mpi4py cannot be loaded: {answer.why}"
        given = mismatch.chosen_library(environ)
        if given:
            text += f", with {' and '.join(f'{name}={environ[name]}' for name in given)}"
        return Finding("MPI library", "error", text, f"unset {' '.join(given)}" if given else mismatch.INSTALL), "", ()
    vendor, version, text, path = json.loads(answer.out.splitlines()[-1])
    words = " ".join(re.split(r"[\n\0]", text)[0].strip(", ").split())
    data = {"vendor": vendor, "version": version, "path": path}
    return Finding("MPI library", "ok", words + (f" at {path}" if path else ""), data=data), vendor, tuple(version)


def _launcher(vendor: str, environ: Mapping[str, str]) -> Finding:
    """Compares the mpirun that `sorix-dist run` takes, and the shell's, with the library."""
    try:
        mpirun = find_mpirun(environ)
        kind = flavour(mpirun)
    except LaunchError as error:
        return Finding("mpirun", "error", str(error).partition(";")[0], mismatch.INSTALL)
    data = {"path": str(mpirun), "flavour": kind}
    text = f"{kind} at {mpirun}"
    if not vendor:
        return Finding("mpirun", "ok", text, data=data)
    if vendor not in LIBRARIES[kind]:
        text += f" does not belong to the library, {vendor}: every rank would be alone, or abort"
        return Finding("mpirun", "error", text, f"install an MPI into {sys.prefix}: {mismatch.INSTALL}", data)
    first = shutil.which("mpirun", path=environ.get("PATH"))
    if first and Path(first).resolve() != mpirun.resolve():
        try:
            other = flavour(Path(first))
        except LaunchError:
            return Finding("mpirun", "ok", f"{text}; the shell's {first} is none", data=data)
        if vendor not in LIBRARIES[other]:
            mend = f"sorix-dist run, or {mpirun} in full, or activate the environment"
            text += f" belongs to the library, but the shell finds {first} first, of another MPI"
            return Finding("mpirun", "warning", text, mend, data)
    return Finding("mpirun", "ok", f"{text}, which belongs to the library", data=data)


def ranks(environ: Mapping[str, str], vendor: str = "", version: tuple[int, ...] = ()) -> Finding:
    """The launcher's variables for this process, and whether the MPI library agrees with them."""
    launch = detect(environ)
    if launch is None:
        tasks = tasks_of_job(environ)
        job = f"; a scheduler's job of {tasks} tasks" if tasks else ""
        return Finding("Ranks", "ok", f"1: no launcher has started this process{job}", data={"size": 1, "tasks": tasks})
    wrong = mismatch.before_init(launch, vendor, version, environ) if vendor else None
    connected = any(name.startswith(("PMI_", "PMIX_", "MV2_COMM_", "PALS_", "OMPI_COMM")) for name in environ)
    if wrong is None and vendor and launch.several and not connected:  # MPI will take it for the only process
        wrong = mismatch.after_init(launch, 0, 1, vendor)
    data = {"rank": launch.rank, "size": launch.size, "launcher": launch.name}
    return Finding("Ranks", "ok" if wrong is None else "error", wrong or str(launch), data=data)


def _two_ranks(environ: Mapping[str, str], vendor: str, version: tuple[int, ...]) -> list[Finding]:
    """Tries two ranks on this host: a sum, shared memory, and whether one survives the other."""
    reduced = _run_two(environ, _REDUCE)
    if reduced.code != 0 or "MEASURED " not in reduced.out:
        mend = "run the mpirun line of `sorix-dist run -n 2 --dry-run SCRIPT` by hand to see all that it says"
        return [Finding("2 ranks", "error", f"all-reduce fails: {reduced.why}", mend)]
    measured = json.loads(reduced.out.partition("MEASURED ")[2].splitlines()[0])
    speeds = {int(size): seconds for size, seconds in measured.items()}
    text = ", ".join(f"{_size(size)} in {_time(seconds)}" for size, seconds in speeds.items())
    found = [Finding("2 ranks", "ok", f"all-reduce is right: {text}", data={"seconds": speeds})]
    shared = _run_two(environ, _WINDOW)
    if shared.code == 0 and "SHARED" in shared.out:
        found.append(Finding("Shared windows", "ok", "two ranks see one memory"))
    else:
        mend = 'see /dev/shm above; training works with storage="replicated" too'
        found.append(Finding("Shared windows", "error", f"they fail: {shared.why}", mend))
    if vendor != "Open MPI" or version < (5,):
        text = f"no: {vendor} ends a job with its first killed rank; Open MPI 5 can go on"
        return [*found, Finding("ULFM", "ok", text, data={"works": False})]
    survived = _run_two(environ, _SURVIVES, "--with-ft", "ulfm")
    works = "SURVIVED" in survived.out
    text = "yes: a rank goes on after another was killed (mpirun --with-ft ulfm)" if works else f"no: {survived.why}"
    return [*found, Finding("ULFM", "ok" if works else "warning", text, data={"works": works})]


def _run_two(environ: Mapping[str, str], script: str, *options: str) -> Answer:
    here = plain(environ)
    start = command([*PYTHON, "-c", script], 2, environ=here)
    began = leftovers.now()
    answer = ask([start.argv[0], *options, *start.argv[1:]], here | start.env, LIMIT)
    leftovers.clean_up(began)  # it is killed when it hangs, and one of its ranks kills itself
    return answer


def _size(number: int) -> str:
    unit, name = next((each for each in ((1 << 30, "GB"), (1 << 20, "MB")) if number >= each[0]), (1 << 10, "KB"))
    return f"{number / unit:.4g} {name}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
