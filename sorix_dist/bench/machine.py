"""What the measurements were made on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from sorix_dist.comm.mpi import running_mpi
from sorix_dist.launch.cores import usable_cores


def describe() -> dict[str, Any]:
    """CPU, cores, BLAS, MPI and versions, as this process uses them now."""
    blas = [
        f"{found['internal_api']} {found['version']}, kernel {found.get('architecture', 'unknown')}, "
        f"{found['num_threads']} thread(s) a rank"
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]
    mpi = running_mpi()
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "blas": "; ".join(blas) or "unknown to threadpoolctl",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "mpi": "none" if mpi is None else mpi.Get_library_version().splitlines()[0].strip(" ,\0"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
