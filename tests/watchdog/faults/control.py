"""`make faults-control`: the same faults on bare mpi4py, or on PyTorch's DDP where it is installed, as a table.

A record of why the watch exists, not a test.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.launching import run_command, run_ranks
from tests.watchdog.faults.case import RANKS
from tests.watchdog.faults.cases import CASES

LIMIT = 15.0
TORCH = find_spec("torch") is not None
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]


def outcome(script: Path) -> str:
    """What came of the script: 'hang', 'wrong sum', or its exit code."""
    try:
        if TORCH:
            ended = run_command([*TORCHRUN, str(script)], limit=LIMIT)
        else:
            ended = run_ranks(RANKS, str(script), limit=LIMIT)
    except pytest.fail.Exception:
        return f"hang (killed after {LIMIT:g} s)"
    if "WRONG SUM" in ended.err:
        return f"wrong sum; exit code {ended.code} after {ended.seconds:.1f} s, because the script compares"
    return f"exit code {ended.code} after {ended.seconds:.1f} s"


def main() -> None:
    names = [name for name, case in CASES.items() if case.bare and any(word in name for word in sys.argv[1:] or [""])]
    names = [name for name in names if not (TORCH and "MPI" in CASES[name].script)]
    width = max(map(len, names))
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            script = Path(folder, "train.py")
            script.write_text(f"import tests.watchdog.faults.{'ddp' if TORCH else 'bare'} as sx\n" + CASES[name].script)
            print(f"{name:{width}}  {outcome(script)}", flush=True)


if __name__ == "__main__":
    main()
