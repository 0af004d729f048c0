"""Who synchronises gradients: what a backward asks and tells for parameters, and for what a forward has computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import Any, Literal
from weakref import ref
from zlib import crc32

import numpy as np

from sorix_dist.comm import watch
from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.core.graph import Described, Leaf, Node
from sorix_dist.core.tensor import Array, Rows
from sorix_dist.nn import Module
from sorix_dist.parallel.accumulate import NO_ROWS, Denominator
from sorix_dist.parallel.reduce import Reducer
from sorix_dist.parallel.replicas import PLAIN, Replicas
from sorix_dist.utils.data.sampler import share

_PRIME = (1 << 61) - 1

NonFinite = Literal["raise", "skip", "allow"]


def proportions(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks' numbers of rows in lowest terms: the same for (2, 1) rows and for their (4, 2) halves."""
    divisor = max(1, gcd(*counts))
    return tuple(count // divisor for count in counts)


@lru_cache(maxsize=64)
def even_proportions(total: int, size: int) -> tuple[int, ...]:
    """Those of a batch that a loader has shared out."""
    shares = [share(total, rank, size) for rank in range(size)]
    return proportions(tuple(stop - start for start, stop in shares))


class Synchronised(ABC):
    """What all that is synchronised in the same replicas has in common; implements `core.graph.Sync`."""

    replicas: Replicas

    @property
    def pending(self) -> bool:
        return self.replicas.pending

    def joined(self, other: Any) -> Any:
        if other.replicas is not self.replicas:
            raise RuntimeError(
                "one loss can't reach models that are wrapped in different communicators: wrap the second with "
                "comm=first.comm"
            )
        if isinstance(self, Member):
            return other
        return self if isinstance(other, Member) else self.joined_forward(other)

    @abstractmethod
    def joined_forward(self, other: Any) -> Any:
        """`joined` for two forwards."""

    def reduced(self) -> Any:
        return self

    @abstractmethod
    def factor(self) -> float:
        """The factor that makes this rank's loss its part of the global one."""

    def denominator(self) -> Denominator:
        """What the loss is divided by in the whole batch."""
        raise RuntimeError("accumulate: every backward must be that of a loss of what the model has computed")

    def begin(self) -> float:
        accumulation = self.replicas.accumulation
        weight = 1.0 if accumulation is None else accumulation.add(self.denominator())
        self.replicas.begin()
        return self.factor() * weight

    def visitor(self) -> Callable[[Node | Leaf, Any], None] | None:
        return None

    def end(self) -> None:
        self.replicas.end(NO_ROWS)

    def failed(self) -> None:
        self.replicas.failed()

    def stepped(self, alike: int, group: Described) -> None:
        replicas = self.replicas
        replicas.stepped[id(group)] = group
        replicas.updates += 1
        replicas.options = (31 * replicas.options + alike) % _PRIME  # two optimizers in another order give another one
        watch.begins("optimizer.step", replicas.meetings)

    def forget(self, leaf: Leaf) -> None:
        self.replicas.forget(leaf)


class Member(Synchronised):
    """One flat storage among the replicas: the `sync` of its leaves, which lives as long as they.

    It answers for what a model computes inside its forward, where rows are those of the batch, and for what is
    computed of the parameters alone, which is the same on every rank.
    wrapper: refers to the wrapped model; names: of its parameters; nonfinite: what becomes of their gradients when
    these are not finite.
    """

    number: int
    reducer: Reducer

    def __init__(self, wrapper: Module, replicas: Replicas, flat: Flat, names: list[str], nonfinite: NonFinite) -> None:
        self.wrapper = ref(wrapper)
        self.replicas = replicas
        self.flat = flat
        self.leaves = [leaf_of(parameter) for parameter in flat.parameters]
        self.names = names
        self.nonfinite = nonfinite

    def release(self) -> None:
        """Makes the parameters ordinary ones again, which no one synchronises."""
        self.flat.thaw()
        self.replicas.remove(self)

    def way(self) -> int:
        """How the next sum is to be added to what the parameters show: the same on all ranks that share it, each of
        which adds a part.

        0: as each rank likes, which has gradients of its own; PLAIN: it just takes their place, nothing is added to
        and no hook sees it; else a digest of where it is added to something, and where there are hooks.
        """
        if not self.flat.frozen or self.replicas.comm.size == 1:
            return 0
        if not any([leaf.total.written or leaf.hooks for leaf in self.leaves]):  # noqa: C419 (faster)
            return PLAIN
        return crc32(bytes([leaf.total.written + 2 * bool(leaf.hooks) for leaf in self.leaves])) + 2

    def joined_forward(self, other: Any) -> Any:
        return other

    def divisor(self, count: int) -> float:
        return count

    def mean_weight(self, parts: Array) -> float:
        if self.replicas.computing is not None:
            return self.replicas.computing.mean_weight(parts)
        denominator = float(np.sum(parts, dtype=np.float64))
        return 1 / denominator if denominator else 0.0

    def sum_weight(self) -> float:
        computing = self.replicas.computing
        return 1.0 if computing is None else computing.sum_weight()

    def factor(self) -> float:
        # Every rank computes the same: it counts once, in equal parts or, in reproducible mode, by itself.
        return 1.0 if self.replicas.shards is not None else 1 / self.replicas.comm.size


class Forward(Synchronised):
    """The `sync` of what one forward has computed: it remembers its rows, whatever is computed next.

    rows: those of this rank in the global batch; proportions: how the batch is shared out, the same for all ranks.
    The factor held / total makes the mean over this rank's rows its part of the mean over the global batch,
    and lets a term that is the same on every rank, such as a penalty on the weights, count once.
    """

    def __init__(self, replicas: Replicas, rows: Rows, proportions: tuple[int, ...]) -> None:
        self.replicas = replicas
        self.rows, self.proportions = rows, proportions
        self.held = rows.stop - rows.start
        self.noted: Denominator | None = None

    def _note(self, kind: str, value: float) -> None:
        """Notes what a loss is divided by; RuntimeError in an accumulation if another kind was noted before."""
        denominator = Denominator(kind, value)
        if self.replicas.accumulation is not None:
            denominator.joined(self.noted)
        self.noted = denominator

    def joined_forward(self, other: Any) -> Any:
        if self.proportions != other.proportions:
            raise RuntimeError(
                "one loss can't join results of batches that are shared out differently between the ranks "
                f"({self.rows.total} and {other.rows.total} rows, {self.held} and {other.held} of them "
                f"on rank {self.replicas.comm.rank}): call backward() for each of them, the gradients add up"
            )
        if self.replicas.accumulation is not None and self.noted is not None:
            self.noted.joined(other.noted)
        self.noted = self.noted or other.noted
        return self

    def divisor(self, count: int) -> float:
        self._note("rows", self.rows.total)
        return count

    def mean_weight(self, parts: Array) -> float:
        summed = np.array([np.sum(parts, dtype=np.float64)])
        self.replicas.comm.all_reduce(summed).wait()
        self._note("own", float(summed[0]))
        # Divided by what `begin` multiplies with.
        return self._over_factor() / float(summed[0]) if summed[0] else 0.0

    def sum_weight(self) -> float:
        self._note("sum", 1.0)
        return self._over_factor()

    def _over_factor(self) -> float:
        return self.rows.total / self.held if self.held else 0.0

    def factor(self) -> float:
        return self.held / self.rows.total if self.rows.total else 0.0

    def denominator(self) -> Denominator:
        return self.noted or Denominator("rows", self.rows.total)

    def end(self) -> None:
        self.replicas.end(self.rows)
