"""A program that is measured from its start: its first steps and how it is run, for `plan` and for `profile`."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

WARM = 3
"""Steps that are not measured: they allocate buffers."""


def run_program(program: Sequence[str]) -> None:
    """Runs `SCRIPT [ARGUMENT ...]` or `-m MODULE [ARGUMENT ...]` in this process, as Python would."""
    is_module = program[0] == "-m"
    script, *arguments = program[is_module:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(script).resolve().parent))
    if is_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")
