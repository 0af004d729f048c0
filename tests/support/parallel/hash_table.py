"""The hashes of examples/reproduce.py on several numbers of ranks, under one or several MPIs, as a table.

python -m tests.support.parallel.hash_table --python .venv/bin/python --python .venv-openmpi/bin/python

Exits with 1 if one in reproducible mode is not as all others, or if fast mode has the same bits on every number of
ranks, so that the equality would say nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.launching import ROOT, run_command

SCRIPT = str(ROOT / "examples" / "reproduce.py")
RANKS = (1, 2, 3, 4, 5, 8)
WITHOUT_MPI = 0  # ranks of a run without mpirun

Row = tuple[str, str, int, dict[str, str]]  # mode, MPI, ranks, and the hash of each model


def hashes(python: str, ranks: int, *options: str) -> dict[str, str]:
    """What one run prints."""
    launcher = [] if ranks == WITHOUT_MPI else [str(Path(python).parent / "mpirun"), "-n", str(ranks)]
    ended = run_command([*launcher, python, SCRIPT, *options], limit=150)
    if ended.code != 0:
        raise RuntimeError(f"{python}, {ranks} ranks: exit code {ended.code}\n{ended.out}\n{ended.err}")
    return dict(line.split() for line in ended.out.splitlines())


def vendor(python: str) -> str:
    """The name of the MPI of an environment."""
    ask = "from mpi4py import MPI; print(MPI.get_vendor()[0])"
    return run_command([python, "-c", ask], limit=60).out.strip()


def table(pythons: Sequence[str], ranks: Sequence[int] = RANKS, steps: int = 50) -> list[Row]:
    """All runs in reproducible mode, and those in fast mode under the first MPI."""
    names = {python: vendor(python) for python in pythons}
    rows = [("reproducible", "no MPI", 1, hashes(pythons[0], WITHOUT_MPI, f"--steps={steps}"))]
    rows += [
        ("reproducible", names[python], n, hashes(python, n, f"--steps={steps}")) for python in pythons for n in ranks
    ]
    rows += [("fast", names[pythons[0]], n, hashes(pythons[0], n, f"--steps={steps}", "--fast")) for n in ranks]
    return rows


def wrong(rows: Sequence[Row]) -> list[str]:
    """What is not as it has to be, in words."""
    found = []
    for model in rows[0][3]:
        kept = {row[3][model] for row in rows if row[0] == "reproducible"}
        fast = {row[3][model] for row in rows if row[0] == "fast"}
        if len(kept) != 1:
            found.append(f"{model}: {len(kept)} different hashes in reproducible mode")
        if len(fast) == 1:
            found.append(f"{model}: fast mode has the same bits everywhere, so equal ones prove nothing")
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", action="append", default=[], help="of an environment with an MPI; may be repeated")
    options.add_argument("--steps", type=int, default=50)
    args = options.parse_args()
    rows = table(args.python or [sys.executable], steps=args.steps)
    models = list(rows[0][3])
    print(f"{'mode':<13} {'MPI':<9} {'ranks':>5}  {'  '.join(f'{m:<16}' for m in models)}")
    for mode, mpi, n, found in rows:
        print(f"{mode:<13} {mpi:<9} {n:>5}  {'  '.join(f'{found[m][:16]:<16}' for m in models)}")
    problems = wrong(rows)
    print("\n".join(problems) or "reproducible mode: the same bits in every row; fast mode: other bits")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
