"""Runs every example on one process and on two ranks, and prints what each ends with, for examples/README.md.

python -m tests.examples
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.launching import MPIRUN, ROOT, environment

SKIPPED = {"compare.py"}  # which compares what two runs have saved
OPTIONS = {"restart.py": ["--never"]}
LIMIT = 1500  # seconds


def ran(command: list[str]) -> tuple[str, float]:
    """The last line that a command prints, or its error, and its seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        done = subprocess.run(
            command, cwd=folder, env=environment("examples", None), capture_output=True, text=True, timeout=LIMIT,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    said = [line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()]
    return (said or [""])[-1] if done.returncode == 0 else f"FAILED: {said[-1:]}", time.perf_counter() - began


def main() -> int:
    print("| example | ends with | 1 process | 2 ranks |\n|---|---|---|---|")
    failed = False
    for script in sorted((ROOT / "examples").glob("*.py")):
        if script.name in SKIPPED:
            continue
        command = [sys.executable, str(script), *OPTIONS.get(script.name, [])]
        alone, seconds = ran(command)
        ranks, together = ran([str(MPIRUN), "-n", "2", *command])
        failed = failed or alone.startswith("FAILED") or ranks.startswith("FAILED")
        ends = alone if alone == ranks else f"{alone} / {ranks}"
        print(f"| `{script.name}` | {ends} | {seconds:.0f} s | {together:.0f} s |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
