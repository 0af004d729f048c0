"""argparse with errors of one line."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from sorix_dist.launch import PYTHON, LaunchError


class Parser(argparse.ArgumentParser):
    """Options are written in full, and an error is one line without the usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_script(parser: Parser, action: str | type[argparse.Action] = "store") -> None:
    """Adds what ranks run: SCRIPT, or -m MODULE, and its arguments. action: what is done with these."""
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or a module's name after -m")
    parser.add_argument(
        "arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, action=action, help="passed to the script untouched"
    ).required = False


def script_with_arguments(arguments: Any) -> list[str]:
    """The script or module of `add_script` and its arguments, as they follow the interpreter on a command line."""
    return [*["-m"] * arguments.is_module, arguments.script, *arguments.arguments]


def under(module: str, arguments: Any, **options: Any) -> list[str]:
    """The command line of a rank that runs this script under a module of `sorix_dist.train`, which gets `options`."""
    return [*PYTHON, "-m", f"sorix_dist.train.{module}", json.dumps(options), *script_with_arguments(arguments)]


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


_BYTES = {"bit": 1 / 8, "B": 1.0}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def bandwidth(text: str) -> float:
    """An argparse type: bytes per second, of bits (`10gbit`, `100Mbit/s`) or bytes (`25GB/s`)."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([kKmMgGtT]?)(?:([bB]it)(?:/s)?|(B)/s)", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a bandwidth such as 10gbit, 100mbit or 25GB/s, got {text!r}")
    return float(found[1]) * _PREFIXES[found[2].lower()] * _BYTES[found[4] or "bit"]


def duration(text: str) -> float:
    """An argparse type: seconds, given with their unit."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(ns|us|ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time such as 20us, 1ms or 0.1s, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def check_output(option: str, path: Path | None) -> None:
    """LaunchError if a file can't be written."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise LaunchError(f"{option}: {str(path)!r} is not a file that can be written")


def check_script(arguments: Any, directory: str | None = None) -> None:
    """LaunchError if there is no script in `directory`, the current one if None. A folder with a __main__.py is one."""
    directory = directory or os.getcwd()
    script = Path(directory, arguments.script)
    if not arguments.is_module and not (script / "__main__.py" if script.is_dir() else script).exists():
        raise LaunchError(f"there is no script {arguments.script!r} in {directory!r}")
