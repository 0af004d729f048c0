"""One part of `profile`, on the ranks that this was started on:

    python -m tests.benchmarks.part PART SECONDS '{"option": value, ...}'

Rank 0 prints the result as its last line, in JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

import sorix_dist as sx
from tests.benchmarks import convolution, phases, steps, tape
from tests.benchmarks.machine import describe

PARTS: dict[str, Callable[..., Any]] = {
    "tape": tape.measure,
    "convolution": convolution.measure,
    "steps": steps.measure,
    "phases": phases.measure,
}


def main(part: str, limit: str, options: str) -> None:
    """Measures and prints; the kernel ends the process after `limit` seconds, wherever it hangs."""
    signal.alarm(int(limit))
    given = json.loads(options)
    sx.init(threads=1, virtual_shards=given.pop("virtual_shards", None))
    result = PARTS[part](**given)
    if sx.is_main_process():
        print(json.dumps({"result": result, "machine": describe()}), flush=True)


main(*sys.argv[1:])
