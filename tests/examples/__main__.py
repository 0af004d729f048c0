"""Runs every example on one process and on several ranks, and prints the rows of the table in examples/README.md.

python -m tests.examples [NAME.py ...] [--ranks 2 4]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.support.launching import MPIRUN, ROOT, environment, kill_marked

EXAMPLES = ROOT / "examples"
WITH_TORCH = ROOT / ".venv-bench" / "bin"
"""Where `make .venv-bench/bench` has installed PyTorch and MPICH."""
LIMIT = 3600  # seconds

NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": sys.argv[2]}}).execute()
print(*["".join(str(o.get("text", o.get("data", ""))) for o in c.get("outputs", [])) for c in notebook.cells][-2:])
"""


def names() -> list[str]:
    """The examples, in the order of the table in their README."""
    listed = re.findall(r"^\| \[(\S+?)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    there = {path.name for kind in ("*.py", "*.ipynb") for path in EXAMPLES.glob(kind)}
    if odd := there ^ set(listed):
        raise SystemExit(f"{', '.join(sorted(odd))}: either no file, or no row in examples/README.md")
    return listed


def command(name: str, ranks: int) -> list[str]:
    """How `name` is started on that number of ranks; on 1 without MPI."""
    script = str(EXAMPLES / name)
    python, mpirun = sys.executable, str(MPIRUN)
    if name == "from_torch.py" and WITH_TORCH.is_dir():
        python, mpirun = str(WITH_TORCH / "python"), str(WITH_TORCH / "mpirun")
    start = [python] if ranks == 1 else [mpirun, "-n", str(ranks), python]
    if name.endswith(".ipynb"):
        return [sys.executable, "-c", NOTEBOOK, script, str(EXAMPLES)]
    if name == "compare.py":
        return [*start[-1:], script, "ranks-1.npz", f"ranks-{ranks}.npz"]
    if name == "train.py":
        return [*start, script, "--save", f"ranks-{ranks}.npz"]
    if name == "restart.py" and ranks > 1:
        run = [sys.executable, "-m", "sorix_dist", "run", "-n", str(ranks), "--max-restarts", "2"]
        return [*run, "--checkpoint", f"saved-{ranks}", script, "--checkpoint", f"saved-{ranks}"]
    return [*start, script, *(["--never"] if name == "restart.py" else [])]


def ran(argv: list[str], folder: str) -> tuple[str, float]:
    """The last line that a command prints, without speeds, or its error; and its seconds."""
    mark, began = uuid.uuid4().hex, time.perf_counter()
    try:
        done = subprocess.run(
            argv, cwd=folder, env=environment(mark), capture_output=True, text=True, timeout=LIMIT,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
        last = re.sub(r" *[\d,]+ (images|samples)/s", "", (lines or [""])[-1])
        return f"FAILED: {last}" if done.returncode else last, time.perf_counter() - began
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {LIMIT} s", LIMIT
    finally:
        kill_marked(mark)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME.py", help="default: all")
    options.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    args = options.parse_args()
    counts = [1, *args.ranks]
    print("| example | ends with | " + " | ".join(f"{n} {'process' if n == 1 else 'ranks'}" for n in counts) + " |")
    print("|---" * (2 + len(counts)) + "|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(EXAMPLES)
        for name in args.names or names():
            ends, seconds = zip(*(ran(command(name, n), folder) for n in counts), strict=True)
            failed = failed or any(end.startswith("FAILED") for end in ends)
            took = " | ".join(f"{s:.0f} s" for s in seconds)
            print(f"| {name} | {' / '.join(dict.fromkeys(ends))} | {took} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
