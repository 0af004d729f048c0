"""What the measurements were made on."""

from __future__ import annotations

import platform
import re
from typing import Any

import numpy as np

from sorix_dist.comm.blas import libraries, usable_cores
from sorix_dist.comm.runtime import running_mpi
from sorix_dist.train.run_state import cpu


def describe() -> dict[str, Any]:
    """CPU, cores, BLAS, MPI and versions, as this process uses them now."""
    blas = [f"{library}, {threads} thread(s) a rank" for library, threads in libraries()]
    mpi = running_mpi()
    return {
        "cpu": cpu(),
        "cores": usable_cores(),
        "blas": "; ".join(blas) or "unknown to threadpoolctl",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "mpi": "none" if mpi is None else " ".join(re.split(r"[,\n\0]", mpi.Get_library_version())[0].split()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
