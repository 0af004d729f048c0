"""Writes down the first backwards of a script, as `sorix-dist compare` runs it on one process and on several ranks:

python -m sorix_dist.train.compared '{"path": "backwards.json", "steps": 10}' (SCRIPT | -m MODULE) [ARGUMENT ...]

The script ends after these. Checkpoints are neither read nor written, nothing is recorded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from sorix_dist.core.tensor import Array, Tensor
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.train.profiled import Enough, leave_files, run_program
from sorix_dist.watchdog.call_site import call_site
from sorix_dist.watchdog.launcher import detect

KEPT = 256  # elements of a gradient, at equal distances
NOISE = 1e-3  # of the largest gradient: smaller ones may be 0 but for rounding


@dataclass
class Backward:
    """What a backward has left, the same on every rank. where: its line; losses: their global values; gradients: some
    elements of each, by the parameter's name and shape."""

    where: str
    losses: list[float]
    gradients: dict[str, list[float]]


def listen(found: list[Backward], steps: int) -> None:
    """Makes coordinators add their backwards to `found`, and raise Enough when there are as many as `steps`."""
    after_backward, synchronise = Coordinator.after_backward, Coordinator.synchronise
    losses: list[Tensor] = []

    def noted(self: Coordinator, loss: Tensor, terms: Sequence[Tensor] = ()) -> None:
        if loss.array.size == 1:
            losses.append(loss)
        after_backward(self, loss, terms)

    def synchronised(self: Coordinator, scale: float) -> None:
        synchronise(self, scale)
        gradients = {
            f"{name!r} of shape {leaf.shape} in wrapped model {bucket.number}": _elements(leaf.total.array)
            for bucket in self.buckets
            for name, leaf in zip(bucket.names, bucket.leaves, strict=True)
            if leaf.total.written and leaf.total.array is not None
        }
        found.append(Backward(call_site().where, [loss.item() for loss in losses], gradients))
        losses.clear()
        if len(found) == steps:
            raise Enough

    Coordinator.after_backward, Coordinator.synchronise = noted, synchronised  # type: ignore[method-assign]


def _elements(array: Array) -> list[float]:
    numbers = np.ravel(array)
    return [float(number) for number in numbers[:: 1 + len(numbers) // KEPT]]


def differences(one: Sequence[Backward], several: Sequence[Backward]) -> Iterator[tuple[str, float]]:
    """What backwards of one process and of several ranks have left, in words, and the relative difference; infinite
    where the lines of the backwards are others."""
    for number, (a, b) in enumerate(zip_longest(one, several), 1):
        if a is None or b is None or a.where != b.where:
            here, there = ("none" if each is None else f"at {each.where}" for each in (a, b))
            yield f"backward {number}: {here} on one process, {there} on several ranks", np.inf
            return
        where = f"backward {number}, at {a.where}"
        for x, y in zip(a.losses, b.losses, strict=False):
            yield f"{where}: the loss is {x:.6g} on one process and {y:.6g} on several ranks", _distance([x], [y])
        largest = max((abs(x) for gradient in a.gradients.values() for x in gradient), default=0.0)
        for name, gradient in a.gradients.items():
            if name in b.gradients:  # a model that is no longer used may be on one side only
                yield f"{where}: the gradient of {name}", _distance(gradient, b.gradients[name], NOISE * largest)


def _distance(one: list[float], several: list[float], least: float = 0.0) -> float:
    """The largest difference, relative to the largest element, or to `least` if that is larger."""
    x, y = np.array(one), np.array(several)
    if np.array_equal(x, y, equal_nan=True):
        return 0.0
    distance = float(np.abs(x - y).max() / max(np.abs(x).max(), np.abs(y).max(), least))
    return distance if np.isfinite(distance) else np.inf


def read(path: Path) -> list[Backward]:
    """The backwards of a file; none if the script made none."""
    return [Backward(**each) for each in json.loads(path.read_text(encoding="utf-8"))]


def main(options: str, *program: str) -> None:
    """Runs the program as Python would, until it has made enough backwards; rank 0 writes them to a file."""
    given = json.loads(options)
    found: list[Backward] = []
    listen(found, given["steps"])
    leave_files()
    try:
        with suppress(Enough):
            run_program(program)
    finally:
        launch = detect(os.environ)
        if launch is None or launch.rank == 0:
            Path(given["path"]).write_text(json.dumps([asdict(each) for each in found]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
