"""`sorix-dist doctor`: what is right and wrong with this machine and environment, on one page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from sorix_dist.cli.parser import Parser
from sorix_dist.launch.doctor import Finding, examine
from sorix_dist.watchdog import leftovers
from sorix_dist.watchdog.launcher import detect

MARKS = {"ok": ("ok", "32"), "warning": ("!!", "33"), "error": ("XX", "31")}
"""The prefix of a line and its colour: green, yellow, red."""


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="explain what is wrong with this environment",
        description="Look at Python, BLAS, MPI, network, shared memory and schedulers, and try two ranks.",
        epilog="exit codes: 0 if several ranks can be trained on, 1 if something is in the way (a red line, XX).",
    )
    parser.add_argument("--json", action="store_true", help="print the findings for a program")
    parser.add_argument("--clean", action="store_true", help="remove the shared memory of dead MPI jobs")
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Prints the page; 1 if a line is red."""
    launch = detect(os.environ)
    if launch is not None and launch.rank > 0:  # under mpirun, rank 0 speaks for all
        return 0
    if arguments.clean:
        leftovers.clean_up(after=0.0)
    findings = []
    for finding in examine():
        findings.append(finding)
        if not arguments.json:
            print(line(finding, colour=coloured()), flush=True)
    bad = sum(finding.level == "error" for finding in findings)
    if arguments.json:
        page = {"healthy": not bad, "findings": [dataclasses.asdict(finding) for finding in findings]}
        print(json.dumps(page, indent=1))
    return 1 if bad else 0


def line(finding: Finding, *, colour: bool) -> str:
    """A finding on one line, and what to do about it on a second."""
    mark, code = MARKS[finding.level]
    if colour:
        mark = f"\x1b[{code}m{mark}\x1b[0m"
    text = f"{mark}  {finding.subject:14}  {finding.text}"
    return f"{text}\n{'':20}-> {finding.mend}" if finding.mend else text


def coloured() -> bool:
    """Whether standard output is a terminal, and its user allows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
