"""The processor and the BLAS of this process."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any


def cpu() -> str:
    """The name of the processor."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _libraries() -> Any:
    """The libraries with threads. Finding them takes longer than querying them."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas() -> list[tuple[str, int]]:
    """Each loaded BLAS: its name with version and kernel, and its number of threads."""
    return [
        (
            f"{found['internal_api']} {found['version']}, kernel {found.get('architecture', 'unknown')}",
            found["num_threads"],
        )
        for found in _libraries().info()
        if found["user_api"] == "blas"
    ]
