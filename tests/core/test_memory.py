"""Freed pages are used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
import sorix_dist
np.ones(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is tuned for glibc only")
def test_arrays_of_a_step_cost_no_page_faults_in_the_next():
    def faults(**settings: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return int(done.stdout)

    # 50 arrays of 8 MB are 102,400 pages of 4 KB, or 200 of 2 MB where the kernel hands those out.
    assert faults() < 50
    assert faults(MALLOC_MMAP_THRESHOLD_="65536") >= 200  # the user's own settings win
