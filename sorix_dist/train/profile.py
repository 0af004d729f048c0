"""Runs a script and measures the parts of its training steps. One rank of `sorix-dist profile`:

python -m sorix_dist.train.profile '{"steps": 50, "json": null}' (SCRIPT | -m MODULE) [ARGUMENT ...]
"""

from __future__ import annotations

import cProfile
import functools
import json
import os
import pstats
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import sorix_dist
from sorix_dist.core import Tensor, is_grad_enabled
from sorix_dist.nn import Module
from sorix_dist.optim.optimizer import Optimizer
from sorix_dist.parallel import is_main_process, size
from sorix_dist.utils.data import loader

WARM = 3
"""Steps that are not measured: they allocate buffers."""
FUNCTIONS = 15
"""The functions that are listed."""


class StepProfile:
    """Measures `steps` steps by the clock, and as many more by Python's profiler, on this rank.

    A step ends with `Optimizer.step`. `stages` has the seconds of each stage in each step; the rest of a step (losses
    that are functions, metrics, printing) is in "step" only.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.stages: list[dict[str, float]] = []
        self.profiler = cProfile.Profile()
        self._times: dict[str, float] = defaultdict(float)
        self._stage = ""
        self._done = -WARM
        self._began = perf_counter()

    def install(self) -> None:
        """Makes the package's classes report to this profile."""
        self._around(Module, "__call__", "forward", when=is_grad_enabled)
        self._around(Tensor, "backward", "backward")
        self._around(Optimizer, "zero_grad", "zero_grad")
        self._around(Optimizer, "step", "optimizer", then=self._end_step)
        module: Any = loader
        ahead = module.ahead
        module.ahead = lambda *inputs: self._timed(ahead(*inputs))

    def _around(
        self, owner: type, name: str, stage: str, when: Callable[[], bool] = lambda: True, then: Any = lambda: None
    ) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*inputs: Any, **options: Any) -> Any:
            if self._stage or not when():  # a part of another stage
                return original(*inputs, **options)
            self._stage, start = stage, perf_counter()
            try:
                result = original(*inputs, **options)
            finally:
                self._stage = ""
                self._times[stage] += perf_counter() - start
            then()
            return result

        setattr(owner, name, timed)

    def _timed(self, batches: Any) -> Iterator[Any]:
        with closing(batches):
            while True:
                start = perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    self._times["loader"] += perf_counter() - start
                yield batch

    def _end_step(self) -> None:
        now = perf_counter()
        if 0 <= self._done < self.steps:
            self.stages.append({"step": now - self._began, **self._times})
        self._done += 1
        if self._done == self.steps:
            self.profiler.enable()
        elif self._done == 2 * self.steps:
            self.profiler.disable()
        self._times.clear()
        self._began = perf_counter()

    def results(self) -> dict[str, Any]:
        """Median and 10th percentile of each stage in seconds, and (function, calls, own seconds) of a step."""
        self.profiler.disable()
        profiled = min(self._done, 2 * self.steps) - self.steps
        functions = []
        if profiled > 0:
            found: dict[Any, Any] = pstats.Stats(self.profiler).stats  # type: ignore[attr-defined]
            slowest = sorted(found.items(), key=lambda item: item[1][2], reverse=True)[:FUNCTIONS]
            functions = [(_where(*where), calls / profiled, own / profiled) for where, (_, calls, own, *_) in slowest]
        columns = {name: [stages.get(name, 0.0) for stages in self.stages] for name in self._names()}
        stages = {
            name: {"median": float(np.median(times)), "p10": float(np.percentile(times, 10))}
            for name, times in columns.items()
        }
        return {"ranks": size(), "steps": len(self.stages), "stages": stages, "functions": functions}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for stages in self.stages for name in stages))


def table(results: dict[str, Any]) -> str:
    """The results as text, in microseconds."""
    if not results["steps"]:
        return f"profile: no step was measured: the script called Optimizer.step at most {WARM} times"
    whole = results["stages"]["step"]["median"]
    lines = [f"A training step on {results['ranks']} rank(s), as rank 0 sees it; medians of {results['steps']} steps"]
    rest = 2 * whole - sum(found["median"] for found in results["stages"].values())
    rows = {name: found["median"] for name, found in results["stages"].items()} | {"all else": max(0.0, rest)}
    lines += [f"  {name:12} {seconds * 1e6:12.0f} us {seconds / whole:7.1%}" for name, seconds in rows.items()]
    if results["functions"]:
        lines += ["", "Where Python's profiler sees the time: calls a step, own microseconds a step"]
        lines += [f"  {calls:8.1f} {own * 1e6:10.0f}  {where}" for where, calls, own in results["functions"]]
    return "\n".join(lines)


def _where(file: str, line: int, function: str) -> str:
    """A function with its file, from the package's folder on."""
    path, package = Path(file), Path(sorix_dist.__file__).parent
    if file == "~":  # built in
        return function
    return f"{path.relative_to(package) if path.is_relative_to(package) else path.name}:{line} {function}"


def main(options: str, *program: str) -> None:
    """Runs the program as Python would; rank 0 prints the table when it ends, whatever ends it."""
    given = json.loads(options)
    profile = StepProfile(given["steps"])
    profile.install()
    is_module = program[0] == "-m"
    script, *arguments = program[is_module:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(script).resolve().parent))
    try:
        if is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    finally:
        if is_main_process():
            results = profile.results()
            print(table(results), flush=True)
            if given["json"]:
                Path(given["json"]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
