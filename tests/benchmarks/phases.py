"""Where the time of a training step goes, seen from inside by cheap timers, and by Python's profiler."""

from __future__ import annotations

import cProfile
import gc
import pstats
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import sorix_dist
from sorix_dist.core.flat import leaf_of
from sorix_dist.core.ops import matrix
from sorix_dist.parallel import broadcast
from sorix_dist.parallel.reducers import Bucket
from tests.benchmarks.measure import summary, timed
from tests.benchmarks.workloads import WORKLOADS, prepared

PARTS = {
    "consensus": {"agree": "agreement, waiting for the others", "commit": "waiting for their sums"},
    "reducer": {
        "begin_backward": "getting ready",
        "end_backward": "own gradients made ready",
        "reduce": "sum over the ranks",
        "is_finite": "looking for NaN",
        "commit": "added to grad",
    },
}
"""What is timed inside a backward: methods of the consensus and of the reducer."""
FUNCTIONS = 15


class Clock:
    """Adds up what named parts of a step take, one step after the other.

    stage: the name of the part that is running, "" outside of all.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.step: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times a block as a stage."""
        before, self.stage = self.stage, name
        start = perf_counter()
        yield
        self.step[name] += perf_counter() - start
        self.stage = before

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is timed as part of the stage in which it is called."""

        def called(*inputs: Any, **options: Any) -> Any:
            start = perf_counter()
            result = function(*inputs, **options)
            self.step[f"{self.stage}: {name}"] += perf_counter() - start
            return result

        return called

    def end_step(self) -> None:
        """Begins the next one."""
        self.steps.append(dict(self.step))
        self.step.clear()


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Seconds of the parts of a step of a workload on this rank, and the functions that take longest. Called by all.

    parts: "step" as a whole, stages, and "STAGE: PART" within them, of which "products" are those of matrices;
    functions: (where, calls, seconds of its own) in a step, the profiler's own cost included.
    """
    workload = WORKLOADS[name]
    model, optimizer, batches = prepared(workload)
    clock = Clock()

    def step() -> None:
        with clock.part("step"):
            x, y = next(batches)
            with clock.part("zero_grad"):
                optimizer.zero_grad()
            with clock.part("forward"):
                loss = workload.loss(model(x), y)
            with clock.part("backward"):
                loss.backward()
            with clock.part("optimizer"):
                optimizer.step()
        clock.end_step()

    once = min(timed(step) for _ in range(5))
    count = max(5, int(broadcast(np.array([seconds / once]))[0]))
    with _functions_by_time(count) as functions:
        for _ in range(count):
            step()
    clock.steps.clear()
    _time_inside(model, clock)
    matmul, dot = np.matmul, matrix.dot
    np.matmul, matrix.dot = (clock.around("products", product) for product in (matmul, dot))  # type: ignore[assignment]
    try:
        for _ in range(count):
            step()
    finally:
        np.matmul, matrix.dot = matmul, dot
    gc.collect()
    parts = dict.fromkeys(part for found in clock.steps for part in found)
    return {
        "parts": {part: summary(found.get(part, 0.0) for found in clock.steps) for part in parts},
        "functions": functions,
    }


def _time_inside(model: Any, clock: Clock) -> None:
    """Times what happens between ranks at the end of a backward, once for each flat storage of parameters."""
    flats = {leaf_of(parameter).flat for parameter in model.parameters()}
    for bucket in (flat.keeper for flat in flats if flat is not None):
        assert isinstance(bucket, Bucket)
        places = {"consensus": bucket.coordinator.consensus, "reducer": bucket.reducer}
        for place, methods in PARTS.items():
            for method, name in methods.items():
                if method not in vars(places[place]):  # else it is timed already
                    setattr(places[place], method, clock.around(name, getattr(places[place], method)))


@contextmanager
def _functions_by_time(count: int) -> Iterator[list[tuple[str, float, float]]]:
    """A list that holds, after the block, the functions in which most time of `count` steps was spent."""
    functions: list[tuple[str, float, float]] = []
    with cProfile.Profile() as profile:
        yield functions
    found: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    slowest = sorted(found.items(), key=lambda item: item[1][2], reverse=True)[:FUNCTIONS]
    for (file, line, function), (_, calls, own, *_) in slowest:
        functions.append((_where(file, line, function), calls / count, own / count))


def _where(file: str, line: int, function: str) -> str:
    """A function with its place, from the package's folder on."""
    path, package = Path(file), Path(sorix_dist.__file__).parent
    if file == "~":  # built in
        return function
    return f"{path.relative_to(package) if path.is_relative_to(package) else path.name}:{line} {function}"
