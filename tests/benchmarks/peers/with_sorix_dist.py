"""This package: any number of ranks, which mpirun has started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.parallel import world
from sorix_dist.utils.data import loader
from sorix_dist.utils.data.sampler import shard_bounds
from tests.benchmarks.machine import describe
from tests.benchmarks.products import multiply
from tests.benchmarks.steps import synchronisation
from tests.benchmarks.workloads import WORKLOADS, training_step

VERSION = sx.__version__


class Numbers(nn.Module):
    """A model of so many numbers."""

    def __init__(self, count: int) -> None:
        self.numbers = nn.Parameter(np.zeros(count, np.float32))


class Peer:
    """A rank. threads: of its BLAS, None for what the package chooses; hook: the name of a communication hook, or of
    the class of one; captured: whether `sx.compile` captures its steps."""

    def __init__(
        self,
        threads: int | None,
        rank: int,
        ranks: int,
        meeting: str,
        hook: str | None = None,
        captured: bool = False,
    ) -> None:
        if threads is not None:
            sx.init(threads=threads)
        self.rank = sx.rank()
        found = getattr(sx.comm_hooks, hook) if hook else None
        self.hook, self.captured = found() if isinstance(found, type) else found, captured
        if sx.size() != ranks:
            raise RuntimeError(f"expected {ranks} ranks, found {sx.size()}")

    def prepare(self, act: str, **options: Any) -> Callable[[], Any]:
        """A training step, the "products" of matrices in one, or a sum of so many `numbers`: by "all_reduce",
        or as a "backward" does it."""
        made: Callable[[], Any] = getattr(self, f"_{act}")(**options)
        return made

    def _step(self, workload: str, path: str) -> Callable[[], Any]:
        return training_step(replace(WORKLOADS[workload], rows=_rows(path)), self.hook, self.captured)

    def _products(self, workload: str, path: str) -> Callable[[], Any]:
        start, stop = shard_bounds(_rows(path), *loader.ranks())
        return partial(multiply, WORKLOADS[workload].products(stop - start))

    def _all_reduce(self, numbers: int) -> Callable[[], Any]:
        array = np.zeros(numbers, np.float32)
        return lambda: world().all_reduce(array)

    def _backward(self, numbers: int) -> Callable[[], Any]:
        return synchronisation(Numbers(numbers))["synchronisation"]

    def _memcpy(self, numbers: int) -> Callable[[], Any]:
        source, target = np.zeros(numbers, np.float32), np.ones(numbers, np.float32)
        return lambda: np.copyto(target, source)

    def describe(self) -> dict[str, Any]:
        """What it runs on."""
        return describe()


def _rows(path: str) -> int:
    """Of the batches of a stored workload."""
    with np.load(path) as stored:
        return int(stored["rows"])
