"""`sorix-dist job`: a job script for a scheduler, filled in."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser, add_script, positive, script_with_arguments
from sorix_dist.launch.errors import LaunchError
from sorix_dist.launch.job import SCHEDULERS, Job, script

IN_THE_IMAGE = "kubernetes"  # whose folders, interpreter and script are not this machine's


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
    parser.add_argument("--time", type=seconds, default=3600, help="limit, as [DAYS-]H:MM:SS (default: 1:00:00)")
    parser.add_argument(
        "--warning", type=positive, default=120, metavar="SECONDS", help="time to save before the limit (default: 120)"
    )
    parser.add_argument("--memory", type=megabytes, help="memory of a host, for instance 16G (Slurm, PBS, ...)")
    parser.add_argument("--name", default="train", help="the job's name (default: train)")
    parser.add_argument("--account", help="who pays: Slurm's account, PBS's, LSF's project, Flux's bank")
    parser.add_argument("--queue", "--partition", dest="queue", help="the queue, which Slurm calls a partition")
    parser.add_argument("--env-setup", default="", metavar="COMMANDS", help="shell commands that the job needs first")
    parser.add_argument(
        "--python", help="the interpreter (default: this one, or with --env-setup the python that it finds)"
    )
    parser.add_argument("--directory", help="where the job runs (default: here; in a container: /workspace)")
    parser.add_argument("--srun", metavar="PMI", help="Slurm: start ranks by srun --mpi=PMI instead of mpirun")
    parser.add_argument("--parallel-environment", metavar="NAME", help="Grid Engine's (default: mpi)")
    parser.add_argument("--image", help="Kubernetes: the container's image")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to a new file instead of standard output")
    add_script(parser)
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Prints or writes the job script."""
    remote = arguments.kind == IN_THE_IMAGE
    directory = arguments.directory or ("/workspace" if remote else os.getcwd())
    if not remote:
        directory = os.path.abspath(directory)
        if not os.path.isdir(directory):
            raise LaunchError(f"--directory: there is no folder {directory!r}")
        if not arguments.is_module and not os.path.isfile(os.path.join(directory, arguments.script)):
            raise LaunchError(f"there is no script {arguments.script!r} in {directory!r}")
    job = Job(
        command=script_with_arguments(arguments),
        python=arguments.python or ("python" if remote or arguments.env_setup else sys.executable),
        directory=directory,
        nodes=arguments.nodes,
        ranks_per_node=arguments.ranks_per_node,
        cores_per_rank=arguments.cores_per_rank,
        seconds=arguments.time,
        warning=arguments.warning,
        name=arguments.name,
        account=arguments.account,
        queue=arguments.queue,
        memory=arguments.memory,
        setup=arguments.env_setup,
        srun=arguments.srun,
        image=arguments.image,
        parallel_environment=arguments.parallel_environment,
    )
    text = script(arguments.kind, job)
    if arguments.output is None:
        print(text, end="")
        return 0
    try:
        with arguments.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise LaunchError(f"--output: {str(arguments.output)!r} exists already; name a new file") from error
    except OSError as error:
        raise LaunchError(f"--output: {str(arguments.output)!r} cannot be written: {error.strerror}") from error
    submit = SCHEDULERS[arguments.kind].submit.format(shlex.quote(str(arguments.output)))
    print(f"wrote {arguments.output}; submit it with: {submit}", file=sys.stderr)
    return 0


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
