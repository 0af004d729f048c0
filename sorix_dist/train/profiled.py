"""A script that is profiled from its start, as `sorix-dist profile` and `sorix-dist run --profile` run it on each rank:

python -m sorix_dist.train.profiled '{"path": "trace.json", "steps": 50}' (SCRIPT | -m MODULE) [ARGUMENT ...]

With a number of steps, Python's profiler then measures as many more.
"""

from __future__ import annotations

import cProfile
import functools
import json
import os
import pstats
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sorix_dist
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.train.checkpoint import Checkpointer
from sorix_dist.train.profile import profile
from sorix_dist.train.recorder import Recorder
from sorix_dist.watchdog.launcher import detect

WARM = 3  # steps that are not measured: they allocate buffers
FUNCTIONS = 15  # the functions that are listed


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


class Enough(BaseException):
    """Ends the script. A script catches Exception, not this."""


def leave_files() -> None:
    """Makes checkpointers and recorders neither read nor write files."""

    def records_nothing(self: Recorder, directory: Any, *_: Any, **__: Any) -> None:
        self.directory, self._file, self._events, self._writes = Path(directory), None, None, False

    Checkpointer._save = lambda self, step, *_: self.directory / f"{step}"  # type: ignore[method-assign]
    Checkpointer._read = lambda self: None  # type: ignore[method-assign]
    Recorder.__init__ = records_nothing  # type: ignore[method-assign]


class FunctionProfile:
    """Python's own profile of `steps` steps, those after the first `skip` ones."""

    def __init__(self, skip: int, steps: int) -> None:
        self.skip, self.steps, self.done = skip, steps, 0
        self.profiler = cProfile.Profile()

    def install(self) -> None:
        """Makes optimizers report to it."""
        original = Optimizer.step

        @functools.wraps(original)
        def step(*inputs: Any, **options: Any) -> Any:
            result = original(*inputs, **options)
            self.done += 1
            if self.done == self.skip:
                self.profiler.enable()
            elif self.done == self.skip + self.steps:
                self.profiler.disable()
            return result

        Optimizer.step = step  # type: ignore[method-assign]

    def table(self) -> str:
        """The functions that took longest; empty if no step was profiled."""
        self.profiler.disable()
        steps = min(self.done - self.skip, self.steps)
        if steps < 1:
            return ""
        found: dict[Any, Any] = pstats.Stats(self.profiler).stats  # type: ignore[attr-defined]
        slowest = sorted(found.items(), key=lambda item: item[1][2], reverse=True)[:FUNCTIONS]
        lines = ["\n", "Where Python's profiler sees the time on rank 0: calls a step, own microseconds a step"]
        for where, (_, calls, own, *_rest) in slowest:
            lines.append(f"  {calls / steps:8.1f} {own / steps * 1e6:10.0f}  {_where(*where)}")
        return "\n".join(lines)


def _where(file: str, line: int, function: str) -> str:
    """A function with its file, from the package's folder on."""
    path, package = Path(file), Path(sorix_dist.__file__).parent
    if file == "~":  # built in
        return function
    return f"{path.relative_to(package) if path.is_relative_to(package) else path.name}:{line} {function}"


def main(options: str, *program: str) -> None:
    """Runs the program as Python would. When it ends, rank 0 prints the tables, or where the trace is."""
    given = json.loads(options)
    steps: int | None = given["steps"]
    functions = None if steps is None else FunctionProfile(WARM + steps, steps)
    if functions is not None:
        functions.install()
    measured = profile(path=given["path"], warmup=WARM, steps=steps)
    alone = True
    measured.__enter__()
    try:
        run_program(program)
        alone = False
    except SystemExit as end:
        alone = end.code not in (None, 0)
        raise
    finally:
        # After an error the other ranks may never come here: each keeps what it has measured itself.
        measured.finish(alone)
        launch = detect(os.environ)
        if launch is None or launch.rank == 0:
            if functions is not None:
                print(measured.table() + functions.table(), flush=True)
            if given["path"] and alone:
                print(f"profile: {given['path']} was not written, because the script did not end well", flush=True)
            elif given["path"]:
                print(
                    f"profile: wrote {given['path']}: `sorix-dist profile` prints it, ui.perfetto.dev shows it",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
