"""`sorix-dist bench`: training steps on this machine, beside other libraries and the matrix products alone."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sorix_dist.bench import compare
from sorix_dist.bench.compare.contest import Plan, measure
from sorix_dist.bench.compare.contestants import Interpreters
from sorix_dist.bench.compare.table import tables
from sorix_dist.bench.workloads import WORKLOADS
from sorix_dist.cli.parser import Parser, positive
from sorix_dist.launch.answer import ask
from sorix_dist.launch.errors import LaunchError

CHART = Path(compare.__file__).with_name("chart.py")


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="compare training steps with those of other libraries on this machine",
        description="Compare training steps, sums over ranks and memory with torch, sorix and jax, as far as they "
        "are installed, in less than 10 minutes. All processes exist at once (about 10 GB with W2) and take turns.",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=2, help="ranks, and threads of others (default: 2)")
    parser.add_argument("-w", "--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS], help="default: all")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in seconds and bytes")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw them to a PNG file, where matplotlib is")
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="an interpreter that has the others")
    parser.add_argument("--sorix", metavar="PYTHON", help="one that has sorix, if another one")
    parser.add_argument("--quick", action="store_true", help="a short turn for each: only shows that it runs")
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Measures, prints the tables and writes the files."""
    path, chart = writable("--json", arguments.json), writable("--chart", arguments.chart)
    uneven = [name for name in arguments.workloads if WORKLOADS[name].rows % arguments.ranks]
    if arguments.ranks < 2 or uneven:
        raise LaunchError(f"--ranks: expected a number from 2 on that divides the batches, got {arguments.ranks}")
    interpreters = Interpreters(arguments.peers, arguments.sorix)
    plan = Plan(arguments.ranks, tuple(arguments.workloads), interpreters=interpreters)
    if arguments.quick:
        plan = plan.quick()
    end_on_sigterm()
    results = measure(plan, say)
    print(tables(results))
    write_json(path, results)
    if chart is not None:
        _draw(results, chart, arguments.peers)
    return 0


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


def writable(option: str, path: Path | None) -> Path | None:
    """The file of an option; LaunchError if it can't be written."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise LaunchError(f"{option}: {str(path)!r} is not a file that can be written")
    return path


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes the results to a file, if there is one."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def end_on_sigterm() -> None:
    """Makes SIGTERM an exit, so that the processes that were started end with this one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
