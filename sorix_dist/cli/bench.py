"""`sorix-dist bench`: what a training step costs on this machine, beside its matrix products."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sorix_dist.bench.report import report
from sorix_dist.bench.run import Plan, measure, sorix_here
from sorix_dist.bench.workloads import WORKLOADS
from sorix_dist.cli.parser import Parser, positive
from sorix_dist.launch.errors import LaunchError


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="measure training steps on this machine",
        description="Measure the tape, convolution, training steps, synchronisation and memory, in 2 to 4 minutes.",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=2, help="ranks to compare one with (default: 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in seconds and bytes")
    parser.add_argument("--sorix", metavar="PYTHON", help="an interpreter that has sorix, to compare memory with")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--long", action="store_true", help="train the large MLP W2 too")
    length.add_argument("--quick", action="store_true", help="a few seconds on 1 rank: only shows that it runs")
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Measures, prints the tables and writes the file."""
    path = arguments.json
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise LaunchError(f"--json: {str(path)!r} is not a file that can be written")
    sorix = arguments.sorix or sorix_here()
    if arguments.quick:
        plan = Plan(ranks=(1,), rounds=1, seconds=0.05, nodes=1000, sorix=sorix)
    else:
        ranks = tuple(sorted({1, arguments.ranks}))
        workloads = [name for name in WORKLOADS if name != "W2" or arguments.long]
        plan = Plan(tuple(workloads), ranks, sorix=sorix)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its processes end with it
    results = measure(plan, lambda what: print(f"measuring {what} ...", file=sys.stderr, flush=True))
    print(report(results))
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0
