"""How many cores this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_QUOTAS = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
"""Files below it, of version 2 and of version 1, that say a container's share of the host's cores: so many microseconds
("max" or -1 for no limit) in a period of so many."""


def own_cpus() -> set[int]:
    """The numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cut_to_quota(cpus: int, cgroup: Path = CGROUP) -> int:
    """So many CPUs, or fewer if the processes of this container together get less time than that, at least 1."""
    for files in _QUOTAS:
        with suppress(OSError):  # another version, no container, or not Linux
            granted, period = " ".join((cgroup / file).read_text(encoding="ascii") for file in files).split()
            if granted not in ("max", "-1"):
                return max(1, min(cpus, int(granted) // int(period)))
    return cpus


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's quota, at least 1."""
    return cut_to_quota(len(own_cpus()))
