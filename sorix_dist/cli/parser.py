"""argparse with errors of one line."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Options are written in full, and an error is one line without the usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_script(parser: Parser) -> None:
    """Adds what ranks run: SCRIPT, or -m MODULE, and its arguments."""
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or a module's name after -m")
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="passed to the script untouched"
    ).required = False


def script_with_arguments(arguments: Any) -> list[str]:
    """The script or module of `add_script` and its arguments, as they follow the interpreter on a command line."""
    return [*["-m"] * arguments.is_module, arguments.script, *arguments.arguments]


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _number(text, 1)


def whole(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return number


def seconds(text: str) -> float:
    """An argparse type: a number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return number


def assignment(text: str) -> tuple[str, str]:
    """An argparse type: NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
