"""Measures what `sorix-dist plan` predicts from: the first steps of a script on one rank, and this machine.

python -m sorix_dist.train.planned '{"path": "measured.json", "seconds": 6}' (SCRIPT | -m MODULE) [ARGUMENT ...]

The script ends after these steps. Full batches and the first rows of batches take turns, which shows what a step costs
without any rows. Checkpoints are neither read nor written, nothing is recorded.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from sorix_dist.core.flat import Flat
from sorix_dist.core.op import marker
from sorix_dist.parallel.comm_hooks import Matrix, weight_matrices
from sorix_dist.parallel.coordinator import Coordinator
from sorix_dist.parallel.reducers import Bucket
from sorix_dist.train.cost_model import Border, PerRows, Step
from sorix_dist.train.machine import measure_machine
from sorix_dist.train.profile import KINDS, times_of_file
from sorix_dist.train.profiled import WARM, Enough, leave_files, run_program
from sorix_dist.train.timeline import REST, Timeline
from sorix_dist.utils.data.fetch import Indexed

SHARES = 1.0, 0.25, 1 / 16  # the shares of a batch's rows with which steps are measured in turns
LEAST = 3  # steps of each share, if there are as many batches
MOST = 300  # steps that are measured


@dataclass
class OneStep:
    """What one step took, in seconds; borders: when the backward came to each operation, and the complete bytes."""

    rows: int
    forward: float
    backward: float
    update: float
    rest: float
    borders: list[tuple[float, int]]
    nbytes: int


@dataclass
class Steps(Timeline):
    """A timeline that ends with each step, and begins again; raises Enough after `seconds`."""

    seconds: float = 6.0
    found: list[OneStep] = field(default_factory=list)
    walks: list[list[tuple[float, int]]] = field(default_factory=list)
    sent: int = 0  # bytes of the gradients that backwards have reached
    flats: list[Flat] = field(default_factory=list)  # of the trained models, as of the latest step
    count: int = 0
    deadline: float = 0.0

    def end_step(self) -> None:
        """A step has ended."""
        self.ended = perf_counter_ns()
        self.count += 1
        if self.count > WARM and self.sent and len(self.found) < MOST:
            self.found.append(self._step())
        if self.count == WARM:
            self.deadline = perf_counter() + self.seconds
        enough = len(self.found) >= MOST or perf_counter() > self.deadline
        if enough and self.count >= WARM + LEAST * len(SHARES):
            raise Enough
        for forgotten in (self.spans, self.waits, self.nodes, self.walks):
            forgotten.clear()
        self.layers[:] = [(marker(), self.layer)]
        self.sent, self.began = 0, perf_counter_ns()

    def _step(self) -> OneStep:
        kinds = self.times().kinds
        forward, backward, update = (kinds.pop(kind, 0.0) for kind in ("forward", "backward", "update"))
        for kind in ("agreement", "reduce", "checkpoint", "evaluation"):  # these are predicted, or no part of a step
            kinds.pop(kind, None)
        # What several backwards add up is sent after the last one.
        borders = self.walks[0] if len(self.walks) == 1 else [(0.0, 0)]
        return OneStep(self.rows, forward, backward, update, sum(kinds.values()), borders, self.sent)


def listen(steps: Steps) -> None:
    """Makes coordinators report backwards to `steps`, and the data loader cut batches."""
    original, synchronise, tasks = Coordinator.before_backward, Coordinator.synchronise, Indexed.tasks

    def before_backward(self: Coordinator, place: Any) -> Any:
        for bucket in self.buckets:
            bucket.nonfinite = "skip"  # a loss may not be defined for some rows of a batch
        factor, visitor = original(self, place)
        borders: list[tuple[float, int]] = []
        steps.walks.append(borders)
        buckets, began = self.buckets, perf_counter()

        def visit(edge: Any, gradient: Any) -> None:
            borders.append((perf_counter() - began, sum(map(_complete, buckets))))
            if visitor is not None:
                visitor(edge, gradient)

        return factor, visit

    def synchronised(self: Coordinator, scale: float) -> None:
        steps.sent += sum(
            leaf.local.allocated(leaf).nbytes for bucket in self.buckets for leaf in bucket.leaves if leaf.local.written
        )
        steps.flats = [bucket.flat for bucket in self.buckets]
        synchronise(self, scale)

    numbers = itertools.count()

    def cut_tasks(self: Indexed, *arguments: Any, **options: Any) -> Iterator[Any]:
        for rows, indices in tasks(self, *arguments, **options):
            count = max(1, round(len(indices) * SHARES[next(numbers) % len(SHARES)]))
            yield rows._replace(stop=rows.start + count, total=count), indices[:count]

    replacements: list[tuple[type, str, Callable[..., Any]]] = [
        (Coordinator, "before_backward", before_backward),
        (Coordinator, "synchronise", synchronised),
        (Indexed, "tasks", cut_tasks),
    ]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)


def _complete(bucket: Bucket) -> int:
    """The bytes of a bucket's last parameters whose gradients are written, as `HostsReducer` would send them."""
    first = len(bucket.leaves)
    while first and bucket.leaves[first - 1].local.written:
        first -= 1
    start = bucket.flat.starts[first] if first < len(bucket.leaves) else bucket.flat.size
    return int((bucket.flat.size - start) * bucket.flat.dtype.itemsize)


def fitted(found: list[OneStep], flats: list[Flat]) -> Step:
    """The typical step, its times by rows. With one number of rows only, all of a forward and a backward is taken to
    grow with the rows. flats: its parameters."""
    by_rows: dict[int, list[OneStep]] = defaultdict(list)
    for step in found:
        by_rows[step.rows].append(step)
    rows = max(by_rows, key=lambda count: (len(by_rows[count]) >= min(map(len, by_rows.values())), count))
    full = by_rows[rows]
    return Step(
        rows,
        _line(by_rows, "forward"),
        _line(by_rows, "backward"),
        _usual(found, "update"),
        _usual(full, "rest"),
        _typical_borders(full),
        round(float(np.median([step.nbytes for step in full]))),
        max((flat.dtype.itemsize for flat in flats), default=4),
        tuple(_matrices(flats)),
    )


def _matrices(flats: list[Flat]) -> Iterator[Matrix]:
    """The weight matrices of all flat storages, as if these were one array."""
    start = 0
    for flat in flats:
        yield from (matrix._replace(start=start + matrix.start) for matrix in weight_matrices(flat))
        start += flat.size


def _usual(steps: list[OneStep], name: str) -> float:
    return float(np.quantile([getattr(step, name) for step in steps], 0.1))


def _line(by_rows: dict[int, list[OneStep]], name: str) -> PerRows:
    """The line through the 10th percentiles, which other work on this machine changes least: least squares of relative
    errors, with no negative part."""
    rows = np.array([*by_rows])
    times = np.array([_usual(steps, name) for steps in by_rows.values()])
    if len(rows) > 1:
        each, fixed = np.polyfit(rows, times, 1, w=1 / times)
        if each > 0 and fixed > 0:
            return PerRows(float(fixed), float(each))
    largest = int(np.argmax(rows))
    return PerRows(0.0, float(times[largest] / rows[largest]))


def _typical_borders(steps: list[OneStep]) -> tuple[Border, ...]:
    """Medians over the steps with the usual number of operations."""
    lengths = [len(step.borders) for step in steps]
    usual = [step for step in steps if len(step.borders) == max(lengths, key=lengths.count)]
    times = np.median([[time / step.backward for time, _ in step.borders] for step in usual], axis=0)
    complete = np.median([[nbytes / step.nbytes for _, nbytes in step.borders] for step in usual], axis=0)
    return tuple(Border(min(time, 1.0), min(part, 1.0)) for time, part in zip(times.tolist(), complete.tolist()))


def step_of_trace(path: str) -> Step:
    """The step of a trace of `sorix-dist run --profile`, on one host: forwards and backwards grow with the rows of a
    rank, gradients are complete evenly during the backward, and are those of one square weight. ValueError for another
    file."""
    ranks = times_of_file(path)
    steps, rows, nbytes = ranks[0].steps, ranks[0].rows, ranks[0].nbytes
    if not steps or not rows or not nbytes or "captured step" in ranks[0].kinds:
        raise ValueError(
            f"{path!r} has no step to plan with: it needs some steps of a model wrapped in DistributedDataParallel, "
            "from a newer version, not captured (SORIX_DIST_COMPILE=off)"
        )
    means = {kind: sum(rank.kinds.get(kind, 0.0) for rank in ranks) / len(ranks) / steps for kind in KINDS}
    forward, backward = (PerRows(0.0, means[kind] * len(ranks) / rows) for kind in ("forward", "backward"))
    rest = sum(means[kind] for kind in ("loader", "zero_grad", REST))
    count = max(ranks[0].operations, 1)
    borders = tuple(Border(number / count, number / count) for number in range(count))
    side = math.isqrt(nbytes // 4)  # a trace does not have the shapes of the weights
    matrices = (Matrix(0, side, side),) if side else ()
    return Step(rows, forward, backward, means["update"] * len(ranks), rest, borders, nbytes, 4, matrices)


def main(options: str, *program: str) -> None:
    """Measures and writes to a file; a trace in place of a program is read."""
    given = json.loads(options)
    if program[0].endswith(".json"):
        try:
            step, count = step_of_trace(program[0]), 0
        except ValueError as error:
            sys.exit(f"plan: {error}")
    else:
        steps = first_steps(given["seconds"], *program)
        step, count = fitted(steps.found, steps.flats), len(steps.found)
    measured = {"step": asdict(step), "machine": asdict(measure_machine(step)), "steps": count}
    Path(given["path"]).write_text(json.dumps(measured), encoding="utf-8")


def first_steps(seconds: float, *program: str) -> Steps:
    """The steps of a program that Python runs until enough is known."""
    steps = Steps(seconds=seconds)
    listen(steps)
    leave_files()
    np.seterr(all="ignore")  # a loss of a part of a batch may divide by 0
    steps.start()
    try:
        run_program(program)
    except Enough:
        pass
    finally:
        steps.stop()
    if not steps.found:
        sys.exit(
            f"plan: {sys.argv[0]} made {steps.count} steps, and more than {WARM} are needed that sum gradients: a step "
            "ends with optimizer.step(), and its model is wrapped in sx.DistributedDataParallel"
        )
    return steps


if __name__ == "__main__":
    main(*sys.argv[1:])
