"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the host's cores: "QUOTA PERIOD" in microseconds, or "max PERIOD"."""


def own_cpus() -> set[int]:
    """The numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cut_to_quota(cpus: int, quota: Path = CPU_QUOTA) -> int:
    """So many CPUs, or fewer if the processes of this container together get less time than that, at least 1."""
    try:
        granted, period = quota.read_text(encoding="ascii").split()
    except OSError:  # no container, or not Linux
        return cpus
    return cpus if granted == "max" else max(1, min(cpus, int(granted) // int(period)))


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's quota, at least 1."""
    return cut_to_quota(len(own_cpus()))
