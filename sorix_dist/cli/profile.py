"""`sorix-dist profile`: where the time of a training step goes on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sorix_dist.bench.report import report, report_phases
from sorix_dist.bench.run import Plan, measure, phases, sorix_here
from sorix_dist.bench.workloads import WORKLOADS
from sorix_dist.cli.bench import end_on_sigterm, say, writable, write_json
from sorix_dist.cli.parser import Parser, positive


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "profile",
        help="measure what the parts of a training step cost",
        description="Measure the tape, convolution, training steps, synchronisation and memory, in 2 to 4 minutes; "
        "or, with --step, where each microsecond of a training step goes.",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=2, help="ranks to compare one with (default: 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in seconds and bytes")
    parser.add_argument("--sorix", metavar="PYTHON", help="an interpreter that has sorix, to compare memory with")
    parser.add_argument("--step", choices=WORKLOADS, metavar="WORKLOAD", help="say where the time of its step goes")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--long", action="store_true", help="train the large MLP W2 too")
    length.add_argument("--quick", action="store_true", help="a few seconds on 1 rank: only shows that it runs")
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Measures, prints the tables and writes the file."""
    path = writable("--json", arguments.json)
    end_on_sigterm()
    if arguments.step:
        results = phases(arguments.step, arguments.ranks, 0.2 if arguments.quick else 4.0)
        print(report_phases(results))
        write_json(path, results)
        return 0
    sorix = arguments.sorix or sorix_here()
    if arguments.quick:
        plan = Plan(ranks=(1,), rounds=1, seconds=0.05, nodes=1000, sorix=sorix)
    else:
        ranks = tuple(sorted({1, arguments.ranks}))
        workloads = [name for name in WORKLOADS if name != "W2" or arguments.long]
        plan = Plan(tuple(workloads), ranks, sorix=sorix)
    results = measure(plan, say)
    print(report(results))
    write_json(path, results)
    return 0
