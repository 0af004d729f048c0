"""The ranks of this job as the rest of the package sees them, and the seed that they share."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from sorix_dist.comm import Comm, MpiComm
from sorix_dist.comm import world as comm_world
from sorix_dist.core import random as rng
from sorix_dist.utils.data import loader

_seeded: WeakKeyDictionary[Any, rng.Seed] = WeakKeyDictionary()


def init(timeout: float = 300, threads: int | str = "auto", comm: Any = None, backend: str = "auto") -> None:
    """Starts communication; called by itself, with the defaults, at first need.

    timeout: seconds that a rank may be late; threads: BLAS threads of this rank, "auto" for the cores of the
    host divided by its ranks; comm: an mpi4py communicator to work in; backend: "auto", "mpi" or "solo".
    All ranks give the same options.
    """
    comm_world.init(timeout=timeout, threads=threads, comm=comm, backend=backend)
    world()


def world() -> Comm:
    """The communicator of all ranks, which have agreed on a seed."""
    comm = comm_world.current()
    if comm not in _seeded:
        agree_on_seed(comm)
        _seeded[comm] = rng.seed()
    rng.inherit(_seeded[comm])
    return comm


def communicator(comm: Any = None) -> Comm:
    """Ours for an mpi4py communicator, itself for one of ours, that of all ranks for None."""
    if comm is None:
        return world()
    return comm if hasattr(comm, "all_reduce") else MpiComm(comm)


def agree_on_seed(comm: Comm) -> None:
    """Makes all ranks use one seed: the one that all of them set, or rank 0's own if none did.

    ValueError on every rank if they set different ones. Called by all ranks.
    """
    own = rng.seed()
    seeds = comm.gather_objects((own.value, own.chosen))
    chosen = [value if was_chosen else None for value, was_chosen in seeds]
    if any(value != chosen[0] for value in chosen):
        said = ", ".join(f"rank {r}: {'none' if value is None else value}" for r, value in enumerate(chosen))
        raise ValueError(f"manual_seed must be called with the same value on every rank, got {said}")
    if own.value != seeds[0][0]:
        rng.adopt(seeds[0][0])


def rank() -> int:
    """This process's number among all, from 0."""
    return world().rank


def size() -> int:
    """How many ranks train together."""
    return world().size


def local_rank() -> int:
    """This process's number among those of its host, from 0."""
    return world().local_rank


def is_main_process() -> bool:
    """Whether this is rank 0, which prints and saves."""
    return world().rank == 0


def _shares() -> tuple[int, int, int | None]:
    comm = world()
    return comm.rank, comm.size, None


loader.world = _shares
