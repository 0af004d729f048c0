"""The command `sorix-dist`: arguments in, words out. One module a subcommand."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from sorix_dist._version import __version__
from sorix_dist.cli import compare, doctor, job, plan, plot, profile, run
from sorix_dist.cli.parser import Parser
from sorix_dist.launch import LaunchError
from sorix_dist.watchdog.launcher import detect
from sorix_dist.watchdog.process import fill_standard_streams

SUBCOMMANDS = (run, compare, job, doctor, plan, plot, profile)
STARTING_RANKS = ("run", "compare", "profile", "plan")


def parser() -> Parser:
    """The parser of all command lines."""
    parser = Parser(prog="sorix-dist", description="Data-parallel training: the same script on any number of ranks.")
    parser.add_argument("--version", action="version", version=f"sorix_dist {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command line (by default this process's); returns the exit code, 2 for a wrong one."""
    fill_standard_streams()  # mpirun needs them too
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    try:
        arguments = parser().parse_args(argv)
        if arguments.subcommand in STARTING_RANKS:
            _refuse_several()
        code: int = arguments.main(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # argparse, after --help, --version or an error
        return int(end.code or 0)
    except LaunchError as error:
        print(f"sorix-dist {arguments.subcommand}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as of `| head`; what is not printed yet goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _refuse_several() -> None:
    """LaunchError in one of several processes of a launcher: each would start a separate job.

    Not at a terminal, which `srun --pty bash` gives to the first of its tasks only.
    """
    launch = detect(os.environ)
    if launch is not None and launch.several and not os.isatty(0):
        raise LaunchError(
            f"it starts ranks itself, and this process is one already ({launch}): call it once, without a launcher"
        )
