"""What the arithmetic of this process runs on."""

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
    """What is known of the libraries that use threads: looking for them takes longer than asking them."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas() -> list[tuple[str, int]]:
    """Each BLAS that is loaded, with its version and kernel, and its number of threads."""
    return [
        (
            f"{found['internal_api']} {found['version']}, kernel {found.get('architecture', 'unknown')}",
            found["num_threads"],
        )
        for found in _libraries().info()
        if found["user_api"] == "blas"
    ]
