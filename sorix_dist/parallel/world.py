"""The ranks of this job as the rest of the package sees them, and the seed that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sorix_dist.comm import Comm, adopt, blas
from sorix_dist.comm import world as comm_world
from sorix_dist.core import placement
from sorix_dist.core import random as rng
from sorix_dist.core.fingerprint import as_text
from sorix_dist.parallel.consistency import same_everywhere
from sorix_dist.parallel.groups import Ranks, group_of
from sorix_dist.parallel.virtual_shards import check_virtual_shards


@dataclass(frozen=True)
class _World:
    """The seed and the options that all ranks of a communicator have agreed on."""

    seed: rng.Seed
    options: dict[str, Any]


_DEFAULTS: dict[str, Any] = {"timeout": 300, "threads": "auto", "backend": "auto", "virtual_shards": None}


def init(
    timeout: float = 300,
    threads: int | str = "auto",
    comm: Any = None,
    backend: str = "auto",
    virtual_shards: int | None = None,
) -> None:
    """Starts communication. Without this call, the first use of the ranks starts it with the defaults.

    timeout: seconds that a rank may be late; threads: BLAS threads of this rank, "auto" for the cores of the
    host divided by its ranks; comm: an mpi4py communicator to work in; backend: "auto", "mpi" or "solo".
    virtual_shards: turns on reproducible mode: a power of two, at least the number of ranks, usually 8. Every global
    batch is cut into this number of pieces, and sums over pieces have a fixed order. So the weights are bit for bit
    the same on any number of ranks up to it. Each rank then uses one BLAS thread.
    ValueError on every rank unless all give the same options; RuntimeError if the ranks are already in use with other
    `virtual_shards`.
    """
    options = {"timeout": timeout, "threads": threads, "backend": backend, "virtual_shards": virtual_shards}
    if virtual_shards is not None:
        check_virtual_shards(virtual_shards, 1)
        if threads not in ("auto", 1):
            raise ValueError(f"init: threads must be 1 or 'auto' with virtual_shards, got {threads!r}")
        threads = 1
    if comm_world.is_initialized():  # before threads=1, which the user has not asked for, is refused
        _refuse_other_shards(comm_world.current().cache.get(_World), virtual_shards)
    _agreed(comm_world.init(timeout=timeout, threads=threads, comm=comm, backend=backend), options)


def world() -> Comm:
    """The communicator of all ranks. Its first use agrees on options and on a seed."""
    comm = comm_world.current()
    rng.inherit(_agreed(comm, None).seed)
    return comm


def virtual_shards(comm: Comm) -> int | None:
    """The number of virtual shards of a communicator's batches in reproducible mode, else None."""
    known = comm.cache.get(_World)
    count = None if known is None else known.options["virtual_shards"]
    return count if count is None else int(count)


def _agreed(comm: Comm, options: dict[str, Any] | None) -> _World:
    """The agreement of the ranks of `comm`, which compare options and seeds at first use."""
    known: _World | None = comm.cache.get(_World)
    if known is None:
        wanted = _DEFAULTS if options is None else options
        for name, value in wanted.items():
            same_everywhere(comm, f"init: {name}", [str(as_text(value))])
        check_virtual_shards(wanted["virtual_shards"], comm.size)
        if wanted["virtual_shards"] is not None:
            blas.limit(1)
            # Other kernels give other bits.
            hint = "; set OPENBLAS_CORETYPE (such as Haswell) or NPY_DISABLE_CPU_FEATURES to what all of them have"
            same_everywhere(comm, "init: with virtual_shards, NumPy's and the BLAS's kernels", [blas.kernels()], hint)
        agree_on_seed(comm)
        known = comm.cache[_World] = _World(rng.seed(), wanted)
    elif options is not None:
        _refuse_other_shards(known, options["virtual_shards"])
    return known


def _refuse_other_shards(known: _World | None, wanted: int | None) -> None:
    if known is not None and known.options["virtual_shards"] != wanted:
        raise RuntimeError(
            f"init: virtual_shards={wanted!r} instead of {known.options['virtual_shards']!r}, but the ranks are in use "
            "already; call init before anything else that uses them"
        )


def communicator(comm: Any = None) -> Comm:
    """The `Comm` for an mpi4py communicator; a `Comm` is returned as it is, None gives that of all ranks."""
    if comm is None:
        return world()
    return adopt(comm)


def agree_on_seed(comm: Comm) -> None:
    """Makes all ranks use one seed: the one that all of them set, or rank 0's random one if none did.

    ValueError on every rank if they set different ones. A call of all ranks.
    """
    own = rng.seed()
    seeds = comm.gather_objects((own.value, own.chosen))
    chosen = [value if was_chosen else None for value, was_chosen in seeds]
    if any(value != chosen[0] for value in chosen):
        found = ", ".join(f"rank {r}: {'none' if value is None else value}" for r, value in enumerate(chosen))
        raise ValueError(f"manual_seed must be called with the same value on every rank, got {found}")
    if own.value != seeds[0][0]:
        rng.adopt(seeds[0][0])


def rank() -> int:
    """The number of this process among all ranks, from 0."""
    return world().rank


def size() -> int:
    """The number of ranks that train together."""
    return world().size


def local_rank() -> int:
    """The number of this process among the ranks of its host, from 0."""
    return world().local_rank


def is_main_process() -> bool:
    """Whether this is rank 0, which prints and saves."""
    return world().rank == 0


def current_group() -> Ranks:
    """The group of all ranks, among which loaders shard their batches."""
    comm = world()
    return group_of(comm, virtual_shards(comm))


placement.set_current_group(current_group)
