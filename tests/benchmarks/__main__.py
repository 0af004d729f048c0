"""`python -m tests.benchmarks compare`, `... hosts` and `... profile`: arguments in, tables out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, check_output, positive
from sorix_dist.launch import LaunchError, ask
from tests.benchmarks import hosts, run
from tests.benchmarks.compare import contest, table
from tests.benchmarks.compare.contestants import Interpreters
from tests.benchmarks.report import report, report_phases
from tests.benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
CHART = Path(__file__).with_name("compare") / "chart.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command line (by default this process's); returns the exit code, 2 for a wrong one."""
    parser = Parser(prog="benchmarks", description="Measure training steps on this machine.")
    subparsers = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    _add_compare(subparsers)
    _add_hosts(subparsers)
    _add_profile(subparsers)
    try:
        arguments = parser.parse_args(argv)
        # Ranks do not have the current folder on their path.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return int(arguments.main(arguments) or 0)
    except SystemExit as end:  # argparse, after --help or an error, and SIGTERM
        return int(end.code or 0)
    except LaunchError as error:
        print(f"benchmarks {arguments.benchmark}: error: {error}", file=sys.stderr)
        return 2


def _add_compare(subparsers: argparse._SubParsersAction[Parser]) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="compare training steps with those of other libraries",
        description="Compare training steps, sums over ranks and memory with torch, sorix and jax, as far as they "
        "are installed, in less than 12 minutes. All processes exist at once (about 10 GB with W2) and take turns.",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=2, help="ranks, and threads of others (default: 2)")
    parser.add_argument("-w", "--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS], help="default: all")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in seconds and bytes")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw them to a PNG file, where matplotlib is")
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="an interpreter that has the others")
    parser.add_argument("--sorix", metavar="PYTHON", help="one that has sorix, if another one")
    parser.add_argument("--quick", action="store_true", help="a short turn for each: only shows that it runs")
    parser.set_defaults(main=compare)


def _add_hosts(subparsers: argparse._SubParsersAction[Parser]) -> None:
    parser = subparsers.add_parser(
        "hosts",
        help="compare training steps over links between hosts",
        description="Compare training steps, exact and compressed, with torch DDP's over links of 1 Gbit/s between "
        "hosts of this machine. They take turns as those of `compare` do. Needs root on Linux.",
    )
    parser.add_argument("-w", "--workloads", nargs="+", choices=WORKLOADS, default=["W1"], help="default: W1")
    parser.add_argument("--layouts", nargs="+", choices=hosts.LAYOUTS, default=[*hosts.LAYOUTS], help="default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="of turns for each layout (default: 30)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in milliseconds")
    parser.set_defaults(main=hosts.main)


def _add_profile(subparsers: argparse._SubParsersAction[Parser]) -> None:
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
    parser.set_defaults(main=profile)


def compare(arguments: Any) -> None:
    """Measures, prints the tables and writes the files."""
    chart = arguments.chart
    check_output("--json", arguments.json)
    check_output("--chart", chart)
    uneven = [name for name in arguments.workloads if WORKLOADS[name].rows % arguments.ranks]
    if arguments.ranks < 2 or uneven:
        raise LaunchError(f"--ranks: expected a number from 2 on that divides the batches, got {arguments.ranks}")
    interpreters = Interpreters(arguments.peers, arguments.sorix)
    plan = contest.Plan(arguments.ranks, tuple(arguments.workloads), interpreters=interpreters)
    if arguments.quick:
        plan = plan.quick()
    end_on_sigterm()
    results = contest.measure(plan, say)
    print(table.tables(results))
    write_json(arguments.json, results)
    if chart is not None:
        _draw(results, chart, arguments.peers)


def profile(arguments: Any) -> None:
    """Measures, prints the tables and writes the file."""
    check_output("--json", arguments.json)
    end_on_sigterm()
    if arguments.step:
        results = run.phases(arguments.step, arguments.ranks, 0.2 if arguments.quick else 4.0)
        print(report_phases(results))
    else:
        sorix = arguments.sorix or run.sorix_here()
        if arguments.quick:
            plan = run.Plan(ranks=(1,), rounds=1, seconds=0.05, nodes=1000, sorix=sorix)
        else:
            workloads = ("W1", "W2", "W3", "W4", "W5") if arguments.long else run.Plan.workloads
            plan = run.Plan(workloads, tuple(sorted({1, arguments.ranks})), sorix=sorix)
        results = run.measure(plan, say)
        print(report(results))
    write_json(arguments.json, results)


def _draw(results: dict[str, Any], chart: Path, interpreter: str) -> None:
    """Draws the chart with the matplotlib of an interpreter, or says that there is none."""
    stored = chart.with_suffix(".json.part")
    write_json(stored, results)
    try:
        answer = ask([interpreter, str(CHART), str(stored), str(chart)], os.environ, 100.0)
    finally:
        stored.unlink()
    if answer.code != 0:
        print(f"no chart: {answer.why} (in {interpreter})", file=sys.stderr)


def say(what: str) -> None:
    """Tells what is measured now."""
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes the results to a file, if there is one."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def end_on_sigterm() -> None:
    """Makes SIGTERM an exit, so that the processes that were started end with this one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


if __name__ == "__main__":
    sys.exit(main())
