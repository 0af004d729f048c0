"""`sorix-dist profile`: where the time of training steps goes, of a script or of a trace that was written before."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, check_output, check_script, positive, under
from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import command
from sorix_dist.launch.run import run
from sorix_dist.train.profile import table_of_file


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "profile",
        help="show where the time of a script's training steps goes",
        description="Run a training script, and print what takes how long in a step: loader, forward and backward by "
        "layer, agreement, sum, waiting, update; which rank the others wait for; and the functions that take longest. "
        "Or print this for TRACE.json, which --json, `sorix-dist run --profile` or sx.profile has written.",
        usage="sorix-dist profile [OPTION ...] (SCRIPT | -m MODULE | TRACE.json) [ARGUMENT ...]",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=1, help="number of ranks on this host (default: 1)")
    parser.add_argument("--steps", type=positive, default=50, help="steps to measure, and as many to profile")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write a timeline of all ranks, for ui.perfetto.dev")
    add_script(parser)
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Runs the script and returns its exit code, or prints a trace's table and returns 0."""
    path: Path | None = arguments.json
    check_output("--json", path)
    check_script(arguments)
    if not arguments.is_module and Path(arguments.script).suffix == ".json":
        try:
            print(table_of_file(arguments.script))
        except ValueError as error:
            raise LaunchError(str(error)) from error
        return 0
    program = under("profiled", arguments, steps=arguments.steps, path=path and os.path.abspath(path))
    return run(command(program, arguments.ranks)).code
