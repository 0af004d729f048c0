"""`sorix-dist profile`: where the time of a script's training steps goes."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, positive, script_with_arguments
from sorix_dist.launch.command import command
from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.processes import PYTHON
from sorix_dist.launch.run import run


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "profile",
        help="show where the time of a script's training steps goes",
        description="Run a training script, and print what loader, forward, backward and optimizer take in a step, and "
        "the functions that take longest.",
        usage="sorix-dist profile [OPTION ...] (SCRIPT | -m MODULE) [ARGUMENT ...]",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=1, help="number of ranks on this host (default: 1)")
    parser.add_argument("--steps", type=positive, default=50, help="steps to measure, and as many to profile")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to a file, in seconds")
    add_script(parser)
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Runs the script and returns its exit code."""
    path: Path | None = arguments.json
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise LaunchError(f"--json: {str(path)!r} is not a file that can be written")
    if not arguments.is_module and not Path(arguments.script).is_file():
        raise LaunchError(f"there is no script {arguments.script!r} in {os.getcwd()!r}")
    options = json.dumps({"steps": arguments.steps, "json": path and str(path.absolute())})
    program = [*PYTHON, "-m", "sorix_dist.train.profile", options, *script_with_arguments(arguments)]
    return run(command(program, arguments.ranks)).code
