"""Which of OpenBLAS's kernels multiply matrices fastest on this CPU: it chooses by what the CPU can do, not by how fast
it does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sorix_dist.launch.answer import PYTHON, ask
from sorix_dist.launch.doctor.finding import Finding

CHOICE = "OPENBLAS_CORETYPE"
WIDE, NARROW = ("SkylakeX", "Cooperlake", "SapphireRapids"), "Haswell"
"""For vectors of 512 and of 256 bits: a CPU that computes 512 bits in two halves can be faster with the latter."""
WORTH = 0.97
"""Less of the time than this is worth a word."""

_MEASURE = """
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


def kernels(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether large products are faster with kernels that OpenBLAS has not chosen; nothing where there is no choice."""
    if environ.get(CHOICE):
        return
    chosen, usual = _measured(environ)
    if chosen not in WIDE:
        return
    best: dict[str, float] = {chosen: usual}
    for wanted in (NARROW, chosen, NARROW):  # in turn, because others may use the machine
        kernel, seconds = _measured({**environ, CHOICE: wanted})
        if kernel != wanted:
            return
        best[kernel] = min(seconds, best.get(kernel, seconds))
    share = best[NARROW] / best[chosen]
    text = f"{NARROW} takes {share:.2f} of the time of {chosen}, which OpenBLAS has chosen, in large matrix products"
    mend = ""
    if share < WORTH:
        mend = f"{CHOICE}={NARROW} in the environment of every rank, if it makes your steps faster; last bits change"
    yield Finding("Kernels", "ok", text, mend, {"chosen": chosen, "seconds": best})


def _measured(environ: Mapping[str, str]) -> tuple[str, float]:
    """The kernel that a process with one thread computes with, and the seconds of its fastest product."""
    answer = ask([*PYTHON, "-c", _MEASURE], {**environ, "OPENBLAS_NUM_THREADS": "1"}, 20.0)
    kernel, _, seconds = answer.out.strip().partition(" ")
    return (kernel, float(seconds)) if answer.code == 0 else ("", 0.0)
