"""`sorix-dist compare`: whether a script's first steps are the same on one process and on several ranks."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, check_script, positive, under
from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import command
from sorix_dist.launch.run import run
from sorix_dist.train.compared import Backward, differences, read

TOLERANCE = 1e-3  # relative: sums in another order differ by 1e-6 in float32, and steps of Adam make more of it
DIFFERENT = 1  # the exit code


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="check that a script gives the same on one process and on several ranks",
        description="Run the first steps of a training script on one process and on several ranks, and compare the "
        "losses and gradients of each backward. The first one that differs is named with its line; the exit code is "
        f"then {DIFFERENT}. Checkpoints are neither read nor written.",
        usage="sorix-dist compare [OPTION ...] (SCRIPT | -m MODULE) [ARGUMENT ...]",
    )
    parser.add_argument("-n", "--ranks", type=positive, default=3, help="number of ranks on this host (default: 3)")
    parser.add_argument("--steps", type=positive, default=10, help="backwards to compare (default: 10)")
    add_script(parser)
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Runs the script twice and prints what differs; returns 0 if nothing does, else 1 or the code of a failed run."""
    check_script(arguments)
    if arguments.ranks < 2:
        raise LaunchError("-n must be at least 2: one process is compared with several ranks")
    with tempfile.TemporaryDirectory(prefix="sorix_dist-compare-") as folder:
        found: list[list[Backward]] = []
        for ranks in (1, arguments.ranks):
            code, backwards = _backwards(arguments, ranks, Path(folder, f"{ranks}.json"))
            if code:
                print(f"compare: the run on {_named(ranks)} ended with exit code {code}")
                return code
            if ranks == 1 and not backwards:
                print(
                    "compare: the script made no backward of a model that is wrapped in DistributedDataParallel, or "
                    "in other processes, as by sx.run: call the function that trains in the script itself. "
                    "autograd.grad is not compared"
                )
                return DIFFERENT
            found.append(backwards)
        compared = [*differences(*found)]
        different = next((text for text, distance in compared if distance > TOLERANCE), None)
        if different is None:
            largest = max(distance for _, distance in compared)
            print(
                f"compare: the losses and gradients of {len(found[0])} backwards are the same on one process and on "
                f"{_named(arguments.ranks)} (largest relative difference: {largest:.1e})"
            )
            return 0
        print(f"compare: {different}")
        code, again = _backwards(arguments, 1, Path(folder, "again.json"))
        if not code and any(distance > TOLERANCE for _, distance in differences(found[0], again)):
            print("Two runs on one process differ as well: seed the random numbers, as sx.manual_seed(0) does.")
    return DIFFERENT


def _backwards(arguments: Any, ranks: int, path: Path) -> tuple[int, list[Backward]]:
    """The exit code of a run of the script, and what its backwards have left."""
    program = under("compared", arguments, path=str(path), steps=arguments.steps)
    code = run(command(program, ranks, env={"SORIX_DIST_COMPILE": "off"})).code
    return code, [] if code else read(path)


def _named(ranks: int) -> str:
    return "one process" if ranks == 1 else f"{ranks} ranks"
