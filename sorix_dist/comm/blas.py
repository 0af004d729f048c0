"""The cores that a rank may use and the threads of its BLAS: the ranks of a host share its cores.

Uncapped, every rank's BLAS takes all cores, and training is 6 to 24 times slower on 4 ranks. A number that the user
set by one of `VARIABLES` is not changed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sorix_dist import _blas
from sorix_dist.watchdog.launcher import detect

if TYPE_CHECKING:
    from sorix_dist.comm.protocol import Comm

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

CGROUP = Path("/sys/fs/cgroup")
_QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
"""A container's CPU quota, by version 2 and version 1 of cgroups: microseconds of CPU time ("max" or -1: no limit) per
period of microseconds."""

_set_here: dict[str, str] = {}


def own_cpus() -> set[int]:
    """The numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cut_to_quota(cpus: int, cgroup: Path = CGROUP) -> int:
    """The smaller of `cpus` and the CPU quota of this container, at least 1."""
    for files in _QUOTAS:
        with suppress(OSError):  # another version, no container, or not Linux
            granted, period = " ".join((cgroup / file).read_text(encoding="ascii") for file in files).split()
            if granted not in ("max", "-1"):
                return max(1, min(cpus, int(granted) // int(period)))
    return cpus


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's quota, at least 1."""
    return cut_to_quota(len(own_cpus()))


_SET, _GET = {"x86_64": (314, 315), "aarch64": (274, 275)}.get(platform.machine(), (0, 0))
"""The numbers of sched_setattr(2) and sched_getattr(2), which glibc has no functions for."""
_SLICE = 20_000_000  # nanoseconds; the default is 1.4 to 3 ms


class _Schedule(ctypes.Structure):
    """struct sched_attr of Linux."""

    _fields_ = [
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64), ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64), ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]  # fmt: skip


def ask_for_long_slices() -> bool:
    """Ask Linux (6.12 and later) to let this thread compute for 20 ms at a time; return whether it agreed.

    Where ranks share a core and rarely wait for each other, as in LocalSGD, each switch refills the core's cache:
    steps of W1 take 4 % less.
    """
    if sys.platform != "linux" or not _SET:
        return False
    system, now = ctypes.CDLL(None).syscall, _Schedule()
    if system(_GET, 0, ctypes.byref(now), ctypes.sizeof(now), 0) or now.policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return False
    now.runtime = _SLICE
    return bool(system(_SET, 0, ctypes.byref(now), 0) == 0)


def cap_early(environ: MutableMapping[str, str]) -> int | None:
    """Cap the BLAS threads at import, from what the launcher says; return their number, None if nothing was changed.

    So NumPy work before `init` is not slowed down. A NumPy that is loaded later reads `environ`; threadpoolctl sets
    one that is loaded already.
    """
    ranks = _launched_here(environ)
    if ranks == 1 or _chosen_by_user(environ):
        return None
    threads = max(1, cut_to_quota(len(own_cpus())) // ranks)
    _set(environ, threads)
    return threads


def cap(comm: Comm, threads: int | str, environ: MutableMapping[str, str]) -> int | None:
    """Set the BLAS threads of this rank: a collective. Return their number, None if it stays as it is.

    'auto' takes the distinct CPUs of this host's ranks, cut to the container's quota, divided by the number of these
    ranks: at least 1, at most the CPUs of this rank. Ranks that the launcher started here but that are not in `comm`
    count too. A rank alone on its host, without a quota, is not capped. An int is taken as given, whatever the
    environment says.
    """
    cpus = own_cpus()
    masks = comm.gather_objects((comm.host, sum(1 << cpu for cpu in cpus)))
    union = 0
    for host, mask in masks:
        if host == comm.host:
            union |= mask
    cores = cut_to_quota(union.bit_count())
    ranks = max(comm.local_size, _launched_here(environ))
    if isinstance(threads, int):
        _warn_of_crowd(f"threads={threads}", threads, ranks, cores, comm.rank)
        _set(environ, threads)
        return threads
    chosen = _chosen_by_user(environ)
    number = max(1, min(len(cpus), cores // ranks))
    if chosen is None and (ranks > 1 or number < len(cpus)):
        _set(environ, number)
        return number
    if chosen is not None and environ[chosen].isdigit():
        _warn_of_crowd(f"{chosen}={environ[chosen]}", int(environ[chosen]), ranks, cores, comm.rank)
    return None


def limit(threads: int) -> None:
    """Make the BLAS of this process use `threads` threads, whatever was set before."""
    _set(os.environ, threads)


def libraries() -> list[tuple[str, int]]:
    """Each loaded BLAS: its name with version and kernel, and its number of threads."""
    return [
        (f"{each.internal_api} {each.version}, kernel {_blas.kernels(each)}", each.num_threads)
        for each in _blas.libraries()
    ]


def kernels() -> str:
    """Everything that determines the bits of a matrix product on this rank: NumPy, its SIMD extensions, and the BLAS
    with its kernel, which the CPU or a variable such as OPENBLAS_CORETYPE selects."""
    import numpy as np

    blas = [name for name, _ in libraries()]
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return f"NumPy {np.__version__} with {', '.join(found) or 'no extensions'}; {', '.join(sorted(blas)) or 'no BLAS'}"


def _warn_of_crowd(setting: str, threads: int, ranks: int, cores: int, rank: int) -> None:
    """On rank 0, warn of more BLAS threads than cores."""
    if rank == 0 and threads > max(1, cores // ranks):
        here = "this process" if ranks == 1 else f"{ranks} ranks of this host"
        each = "" if ranks == 1 else " each"
        warnings.warn(
            f"{setting} gives {here} {threads} BLAS threads{each} on {cores} core{'s' * (cores > 1)}, which is slow; "
            f"unset it, or give threads={max(1, cores // ranks)}",
            RuntimeWarning,
            stacklevel=5,
        )


def _launched_here(environ: MutableMapping[str, str]) -> int:
    """The processes that the launcher started on this host, 1 if it does not say."""
    launch = detect(environ)
    return launch.local_size or 1 if launch is not None else 1


def _chosen_by_user(environ: MutableMapping[str, str]) -> str | None:
    """The first of VARIABLES that this module has not set itself."""
    for name in VARIABLES:
        if environ.get(name) and environ[name] != _set_here.get(name):
            return name
    return None


def _set(environ: MutableMapping[str, str], threads: int) -> None:
    for name in VARIABLES:  # for a BLAS that is loaded later, and for child processes of this rank
        environ[name] = _set_here[name] = str(threads)
    if "numpy" in sys.modules:
        _blas.limit_threads(threads)
