"""`sorix-dist run`: a script on this host's cores, on hosts of the user's, or on those of a scheduler's allocation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import (
    Parser,
    add_script,
    assignment,
    check_output,
    check_script,
    positive,
    script_with_arguments,
    seconds,
    under,
    whole,
)
from sorix_dist.comm.blas import VARIABLES, usable_cores
from sorix_dist.launch import LaunchError
from sorix_dist.launch.command import BINDINGS, Command, command, hosts_from_outside
from sorix_dist.launch.hosts import Host, allocated, check_answers, named, parse_hosts, read_hostfile, silent, slots
from sorix_dist.launch.output import LIVE, is_live, logged
from sorix_dist.launch.run import run, run_on_hosts, supervise
from sorix_dist.store.checkpoint_folder import newest_steps
from sorix_dist.watchdog.launcher import tasks_of_job

EPILOG = """\
exit codes: the script's own; 2 for a wrong command line; 70 if all seemed well but rank 0 did not reach the end of
the script (known with --checkpoint, and on several hosts if rank 0 is on this one); 75 if the script was preempted and
has saved its work; 124 after --timeout; 128 + the number of the signal that ended it."""

OPTIONS = (
    "--threads", "--bind", "--env", "--log-dir", "--tee", "--profile", "--timeout", "--checkpoint", "--max-restarts",
)  # fmt: skip
"""The options that a job script can pass on."""


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a script on several ranks",
        description="Run a Python script on several MPI ranks; one rank on this host needs no MPI.",
        usage="sorix-dist run [OPTION ...] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        epilog=EPILOG,
    )
    parser.add_argument("-n", "--ranks", type=positive, help="number of ranks (default: the usable cores of this host)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hosts", metavar="A:2,B:2", help="the hosts, each with its number of ranks")
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="the same as a file, a host a line")
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the command line instead of running it")
    add_script(parser)
    parser.set_defaults(main=main)


def add_options(parser: argparse._ActionsContainer) -> None:
    """Adds `OPTIONS`."""
    parser.add_argument("--threads", type=positive, metavar="T", help="BLAS threads of a rank (default: its share)")
    parser.add_argument(
        "--bind", choices=BINDINGS, default="none", help="bind a rank to --threads cores, a socket ... (default: none)"
    )
    parser.add_argument("--env", type=assignment, action="append", metavar="K=V", help="a variable for all ranks")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="append what rank R prints to DIR/rank-R.log")
    parser.add_argument("--tee", action="store_true", help="with --log-dir: print it here too, [R] before each line")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a timeline of all ranks, which `sorix-dist profile` prints"
    )
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end the job after this time")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="the folder of its Checkpointer; rank 0 must reach the script's end",
    )
    parser.add_argument(
        "--max-restarts",
        type=whole,
        default=0,
        metavar="N",
        help="with --checkpoint: start again after a crash, until two attempts in a row save no later step",
    )


def check_options(arguments: Any) -> None:
    """LaunchError if `OPTIONS` exclude each other."""
    if arguments.tee and arguments.log_dir is None:
        raise LaunchError("--tee needs --log-dir DIR: without it all is printed here anyway")
    check_output("--profile", arguments.profile)
    if arguments.max_restarts and arguments.checkpoint is None:
        raise LaunchError("--max-restarts needs --checkpoint DIR, where the script saves and finds its work")


def given_options(arguments: Any) -> list[str]:
    """The `OPTIONS` that the user gave, as words of a command line."""
    words: list[str] = []
    for option in OPTIONS:
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if option == "--env":
            words += [f"--env={name}={text}" for name, text in value or ()]
        elif value is True:
            words.append(option)
        elif value and value != "none":
            words += [option, str(value)]
    return words


def main(arguments: Any) -> int:
    """Runs the script and returns its exit code."""
    job = ScriptOnHosts(arguments)
    if arguments.dry_run:
        print(job.start(job.hosts, {}))
        return 0
    if arguments.log_dir is None and is_live():
        os.environ[LIVE] = "1"
    check_answers(job.hosts, os.environ)
    if arguments.checkpoint is None and len(job.hosts or allocated(os.environ)) > 1:
        return run_on_hosts(lambda env: job.start(job.hosts, env), say, arguments.timeout)
    if arguments.checkpoint is None:
        return run(job.start(job.hosts, {}), limit=arguments.timeout).code
    try:
        arguments.checkpoint.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--checkpoint {str(arguments.checkpoint)!r}: {error.strerror}") from error
    try:
        return supervise(
            lambda attempt, env: job.start(job.remaining() if attempt else job.hosts, env),
            arguments.checkpoint.absolute(),
            max_restarts=arguments.max_restarts,
            newest_steps=newest_steps,
            say=say,
            limit=arguments.timeout,
        )
    except KeyboardInterrupt:  # between two attempts
        return 130


class ScriptOnHosts:
    """A script and where it runs, from the arguments of the command line; LaunchError if they make no sense."""

    def __init__(self, arguments: Any) -> None:
        check_script(arguments)
        check_options(arguments)
        self.program = [sys.executable, *script_with_arguments(arguments)]
        if arguments.profile is not None:
            self.program = under("profiled", arguments, steps=None, path=os.path.abspath(arguments.profile))
        self.env: dict[str, str] = {}
        if arguments.threads is not None:
            self.env |= dict.fromkeys(VARIABLES, str(arguments.threads))
        if arguments.log_dir is not None:
            self.program = logged(self.program, arguments.log_dir.absolute(), tee=arguments.tee)
            self.env["PYTHONUNBUFFERED"] = "1"  # what a killed rank printed is in its log
        self.env |= dict(arguments.env or ())
        self.bind: str = arguments.bind
        self.cores: int = arguments.threads or 1
        self.hosts: tuple[Host, ...] = ()
        if arguments.hosts is not None:
            self.hosts = parse_hosts(arguments.hosts)
        elif arguments.hostfile is not None:
            self.hosts = read_hostfile(arguments.hostfile)
        self.ranks: int = arguments.ranks or (slots(self.hosts) if self.hosts else default_ranks())

    def start(self, hosts: Sequence[Host], env: Mapping[str, str]) -> Command:
        """The command, on those of the hosts that remain."""
        ranks = min(self.ranks, slots(hosts)) if hosts and hosts is not self.hosts else self.ranks
        return command(self.program, ranks, hosts=hosts, bind=self.bind, cores=self.cores, env={**self.env, **env})

    def remaining(self) -> Sequence[Host]:
        """The hosts that still answer, where there are several; LaunchError if none does."""
        hosts = self.hosts or allocated(os.environ)
        gone = silent(hosts, os.environ) if len(hosts) > 1 else {}
        for host, reason in gone.items():
            say(f"host {host.name} does not answer any more ({reason}); going on without it")
        answering = tuple(host for host in hosts if host not in gone)
        if hosts and not answering:
            raise LaunchError(f"none of the hosts {named(hosts)} answers any more")
        return answering if gone else self.hosts


def say(line: str) -> None:
    """Prints a line of this command's own."""
    print(f"sorix-dist run: {line}", file=sys.stderr, flush=True)


def default_ranks() -> int:
    """The tasks of a scheduler's job, else one rank a core; LaunchError where the number is unknown."""
    if hosts_from_outside(os.environ):
        tasks = tasks_of_job(os.environ)
        if tasks is None:
            raise LaunchError("in a scheduler's allocation, or with a host file, give the number of ranks with -n")
        return tasks
    return usable_cores()
