"""How many cores this process may use."""

from __future__ import annotations

from pathlib import Path

from sorix_dist.comm.blas import own_cpus

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the host's cores: "QUOTA PERIOD" in microseconds, or "max PERIOD"."""


def usable_cores(quota: Path = CPU_QUOTA) -> int:
    """Cores that this process may use: its CPU affinity, cut to the container's quota, at least 1."""
    affinity = len(own_cpus())
    try:
        granted, period = quota.read_text(encoding="ascii").split()
    except OSError:  # no container, or not Linux
        return affinity
    if granted == "max":
        return affinity
    return max(1, min(affinity, int(granted) // int(period)))
