"""`sorix-dist job`: a job script for a scheduler, filled in."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, check_script, positive, script_with_arguments
from sorix_dist.cli.run import add_options, check_options, given_options
from sorix_dist.launch import LaunchError
from sorix_dist.launch.job import SCHEDULERS, Job, script


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "job",
        help="write a job script for a scheduler",
        description="Write a job script that runs a Python script on the ranks of a scheduler's job.",
        usage="sorix-dist job KIND [OPTION ...] (SCRIPT | -m MODULE) [ARGUMENT ...]",
    )
    parser.add_argument("kind", metavar="KIND", choices=SCHEDULERS, help=f"one of {', '.join(SCHEDULERS)}")
    parser.add_argument("--nodes", type=positive, default=1, help="hosts (default: 1)")
    parser.add_argument("--ranks-per-node", type=positive, default=1, help="ranks of a host (default: 1)")
    parser.add_argument("--cores-per-rank", type=positive, default=1, help="cores of a rank (default: 1)")
    parser.add_argument(
        "--time", dest="seconds", type=seconds, default=3600, help="limit, as [DAYS-]H:MM:SS (default: 1:00:00)"
    )
    parser.add_argument(
        "--warning", type=positive, default=120, metavar="SECONDS", help="time to save before the limit (default: 120)"
    )
    parser.add_argument("--memory", type=megabytes, help="memory of a host, for instance 16G (Slurm, PBS, ...)")
    parser.add_argument("--name", default="train", help="the job's name (default: train)")
    parser.add_argument("--account", help="who pays: Slurm's account, PBS's, LSF's project, Flux's bank")
    parser.add_argument("--queue", "--partition", dest="queue", help="the queue, which Slurm calls a partition")
    parser.add_argument(
        "--directive",
        dest="directives",
        action="append",
        default=[],
        metavar="TEXT",
        help="an option of the scheduler as it is, for instance --directive=--exclusive; may be repeated",
    )
    parser.add_argument(
        "--env-setup", dest="setup", default="", metavar="COMMANDS", help="shell commands that must succeed first"
    )
    parser.add_argument(
        "--python",
        metavar="COMMAND",
        help="the interpreter, also in several words (default: this one, or with --env-setup the python that it finds)",
    )
    parser.add_argument("--directory", help="where the job runs (default: here; in a container: /workspace)")
    parser.add_argument("--srun", metavar="PMI", help="Slurm: start ranks by srun --mpi=PMI instead of mpirun")
    parser.add_argument("--parallel-environment", metavar="NAME", help="Grid Engine's (default: mpi)")
    parser.add_argument("--image", help="Kubernetes: the container's image")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to a new file instead of standard output")
    add_options(parser.add_argument_group("options of `sorix-dist run`, with which the job starts its ranks"))
    add_script(parser)
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Prints or writes the job script."""
    check_options(arguments)
    in_image = arguments.kind == "kubernetes"  # folders, interpreter and script are not this machine's
    directory = arguments.directory or ("/workspace" if in_image else os.getcwd())
    if not in_image:
        directory = os.path.abspath(directory)
        if not os.path.isdir(directory):
            raise LaunchError(f"--directory: there is no folder {directory!r}")
        check_script(arguments, directory)
    names = {field.name for field in dataclasses.fields(Job)}
    given = {name: value for name, value in vars(arguments).items() if name in names} | {
        "command": script_with_arguments(arguments),
        "python": _python(arguments.python, "python" if in_image or arguments.setup else sys.executable),
        "directory": directory,
        "run_options": given_options(arguments),
    }
    output: Path | None = arguments.output
    text = script(arguments.kind, Job(**given), output.name if output else "FILE")
    if output is None:
        print(text, end="")
        return 0
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise LaunchError(f"--output: {str(output)!r} exists already; name a new file") from error
    except OSError as error:
        raise LaunchError(f"--output: {str(output)!r} cannot be written: {error.strerror}") from error
    submit = SCHEDULERS[arguments.kind].submit.format(shlex.quote(str(output)))
    print(f"wrote {output}; submit it with: {submit}", file=sys.stderr)
    return 0


def _python(given: str | None, default: str) -> list[str]:
    """The words of --python; a path of a file that exists may have spaces."""
    if given is None or os.path.exists(given):
        return [given or default]
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise LaunchError(f"--python: expected the words of a command, got {given!r} ({error})") from error
    if not words:
        raise LaunchError("--python: expected the words of a command, got none")
    return words


def seconds(text: str) -> int:
    """An argparse type: [DAYS-]H:MM:SS in seconds."""
    if (found := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text, re.ASCII)) and re.search("[1-9]", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    raise argparse.ArgumentTypeError(f"expected [DAYS-]H:MM:SS above zero, for instance 1:30:00, got {text!r}")


def megabytes(text: str) -> int:
    """An argparse type: a number with the unit M, G or T."""
    found = re.fullmatch(r"(\d+)([MGT])", text, re.ASCII)
    if found and int(found[1]):
        return int(found[1]) * {"M": 1, "G": 1 << 10, "T": 1 << 20}[found[2]]
    raise argparse.ArgumentTypeError(f"expected a whole number with the unit M, G or T, for instance 16G, got {text!r}")
