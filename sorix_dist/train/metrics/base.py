"""The base class of metrics: counts of this rank, one collective that sums them, and a state to resume from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any, cast

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core.arguments import as_state
from sorix_dist.parallel.world import communicator


class Metric(ABC):
    """A number, or several, over all samples of all ranks.

    comm: an mpi4py communicator if not all ranks of the job update and compute it.

    A subclass defines the initial sums (`_nothing`: values that add up by +), adds samples to `self.seen` in `update`,
    and computes the value from the sums over all ranks in `_answer`. Each rank counts its own samples: with a loader
    that gives every rank all rows (`shard=False`) each sample counts once per rank.
    """

    options: tuple[str, ...] = ()
    """The names of the attributes that must be the same on all ranks."""

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.reset()

    def reset(self) -> None:
        """Sets the sums of this rank to those of no samples."""
        self.seen = self._nothing()

    @abstractmethod
    def update(self, found: Any, target: Any) -> None:
        """Adds samples of this rank, possibly none."""

    def compute(self) -> Any:
        """The value over all ranks since the last reset, with the same bits on any number of them. A call of all ranks.
        ValueError if a rank has another metric."""
        return self._answer(self._total())

    @abstractmethod
    def _nothing(self) -> dict[str, Any]: ...

    @abstractmethod
    def _answer(self, seen: dict[str, Any]) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks since the last reset, as JSON values, the same on each rank. A call of all ranks."""
        return {**self._named_options(), **{name: _plain(value) for name, value in self._total().items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict()`, on any number of ranks. All ranks call it; rank 0 then has seen everything.

        ValueError if the state is that of another metric.
        """
        options, nothing = self._named_options(), self._nothing()
        if as_state("load_state_dict", state_dict).keys() != {**options, **nothing}.keys():
            raise ValueError(
                f"load_state_dict: state_dict must have {', '.join([*options, *nothing])}, got {', '.join(state_dict)}"
            )
        for name, value in options.items():
            if state_dict[name] != value:
                raise ValueError(f"load_state_dict: {name} is {value!r} here and was {state_dict[name]!r}")
        seen = {name: _parsed(name, state_dict[name], like) for name, like in nothing.items()}
        self.seen = seen if self._communicator().rank == 0 else nothing

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.options)})"

    def _named_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def _communicator(self) -> Comm:
        if self._comm is None:
            return communicator()
        self._comm = communicator(self._comm)  # adopted once: it duplicates one of mpi4py's
        return cast(Comm, self._comm)

    def _total(self) -> dict[str, Any]:
        """The sum of what all ranks have seen; ValueError on every rank if one has another metric."""
        what = "compute() or state_dict() of a metric, a call of all ranks,"
        reports = self._communicator().gather_objects((repr(self), self.seen), what)
        for rank, (metric, _) in enumerate(reports):
            if metric != reports[0][0]:
                raise ValueError(
                    f"the metric must be the same on every rank: rank 0 has {reports[0][0]}, rank {rank} has {metric}"
                )
        return {name: reduce(add, (seen[name] for _, seen in reports)) for name in self.seen}


def _plain(value: Any) -> Any:
    """A sum as a JSON value; as text where JSON would lose digits, or has no such number."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [entry for part in value for entry in part.tolist()]
    return str(value)


def _parsed(name: str, plain: Any, like: Any) -> Any:
    if isinstance(like, list):
        return [np.asarray(plain)] if len(plain) else []
    if not isinstance(like, np.ndarray):
        return type(like)(plain)
    counts = np.asarray(plain)
    if counts.shape != like.shape or counts.dtype.kind != "i" or (counts < 0).any():
        raise ValueError(f"load_state_dict: {name} must be integers >= 0 of shape {like.shape}, got {counts}")
    return counts.astype(like.dtype)
