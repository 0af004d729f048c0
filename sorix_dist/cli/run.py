"""`sorix-dist run`: a script on this host's cores, or on the hosts of a scheduler's allocation."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, positive
from sorix_dist.launch.command import command, hosts_from_outside
from sorix_dist.launch.cores import usable_cores
from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.run import run


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a script on several ranks",
        description="Run a Python script on several MPI ranks; one rank needs no MPI.",
        usage="sorix-dist run [-n RANKS] [--dry-run] (SCRIPT | -m MODULE) [ARGUMENT ...]",
    )
    parser.add_argument("-n", "--ranks", type=positive, help="number of ranks (default: the usable cores of this host)")
    parser.add_argument("--dry-run", action="store_true", help="print the command line instead of running it")
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or a module's name after -m")
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="passed to the script untouched"
    ).required = False
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Runs the script and returns its exit code."""
    if not arguments.is_module and not Path(arguments.script).exists():
        raise LaunchError(f"there is no script {arguments.script!r} in {os.getcwd()!r}")
    target = ["-m", arguments.script] if arguments.is_module else [arguments.script]
    to_run = command([sys.executable, *target, *arguments.arguments], arguments.ranks or default_ranks())
    if arguments.dry_run:
        print(to_run)
        return 0
    return run(to_run)


def default_ranks() -> int:
    """One rank a core; LaunchError where the cores of this host are not all that the job has."""
    if hosts_from_outside(os.environ):
        raise LaunchError("in a scheduler's allocation, or with a host file, say the number of ranks with -n")
    return usable_cores()
