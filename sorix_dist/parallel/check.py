"""What ranks must agree on before anything is mixed, and who is told when they do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.nn import Module
from sorix_dist.parallel.board import BACKWARD, DOINGS, Place
from sorix_dist.parallel.world import communicator


def describe(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """One line per tensor: name, shape, dtype, and whether it is trained."""
    return [
        f"'{name}' of shape {tuple(t.array.shape)} and dtype {t.array.dtype}, requires_grad={t.requires_grad}"
        for name, t in tensors
    ]


def same_everywhere(comm: Comm, what: str, lines: list[str]) -> None:
    """ValueError on every rank, naming the first difference, if `lines` are not the same on all of them."""
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    digests = comm.gather_objects(digest)
    other = next((r for r, d in enumerate(digests) if d != digests[0]), None)
    if other is None:
        return
    ours, theirs = comm.share(lines, 0), comm.share(lines, other)
    first, second = next((a, b) for a, b in zip_longest(ours, theirs) if a != b)
    raise ValueError(
        f"{what} must be the same on every rank: rank 0 has {first or 'no more'}, "
        f"rank {other} has {second or 'no more'} at the same place"
    )


def describe_places(places: Sequence[Place], lines: Sequence[str], meeting: int) -> str:
    """What to say when the ranks meet at different places."""
    other = next(r for r, place in enumerate(places) if place != places[0])
    ours, theirs = _difference(places[0], places[other])
    return (
        f"the ranks are not at the same place in backward number {meeting}: rank 0 has {ours} at {lines[0]}, "
        f"rank {other} has {theirs} at {lines[other]}; no gradient was added"
    )


def _difference(a: Place, b: Place) -> tuple[str, str]:
    """The first thing that differs between two places, in words."""
    if a.doing != b.doing:
        ours, theirs = (f"come to {DOINGS[p.doing]}" for p in (a, b))
    elif a.doing != BACKWARD:
        ours = f"come to {DOINGS[a.doing]}"
        theirs = f"{ours} with other numbers (a learning rate, say, or another option)"
    elif (a.epoch, a.batch) != (b.epoch, b.batch):
        ours, theirs = (
            f"batch {p.batch} of epoch {p.epoch}" if p.batch >= 0 else "a batch that no loader made" for p in (a, b)
        )
    elif a.order != b.order:
        ours = "a loader's batch"
        theirs = (
            "that of a loader with another length, batch_size, shuffle or seed, or over other data (random without a "
            "seed? or each rank's own, which needs shard=False)"
        )
    elif a.updates != b.updates:
        ours, theirs = (f"{p.updates} optimizer updates" for p in (a, b))
    elif a.pieces != b.pieces:
        ours, theirs = (f"{p.pieces} backwards since the last synchronisation" for p in (a, b))
    else:
        ours = "come to backward"
        theirs = (
            "stepped optimizers with other options (a learning rate, say), so that its parameters have drifted, before "
            "it came to backward"
        )
    return ours, theirs


def assert_replicas_equal(model: Module, comm: object = None) -> None:
    """RuntimeError on every rank, naming the first parameter or buffer and the rank, unless all ranks have the same
    bytes in all of the model's state.

    Called by all ranks (of `comm`, an mpi4py communicator, if given). It reads all of the state; only digests of it
    are sent.
    """
    among = communicator(comm if comm is not None else getattr(model, "comm", None))
    state = [*model.named_parameters(), *model.named_buffers()]
    digests = [hashlib.blake2b(np.ascontiguousarray(t.array).tobytes(), digest_size=16).digest() for _, t in state]
    everywhere = among.gather_objects(digests)
    for rank, theirs in enumerate(everywhere):
        if len(theirs) != len(everywhere[0]):
            raise RuntimeError(f"the model has {len(everywhere[0])} tensors on rank 0 and {len(theirs)} on rank {rank}")
        for i, (first, second) in enumerate(zip(everywhere[0], theirs, strict=True)):
            if first != second:
                raise RuntimeError(
                    f"the replicas have drifted apart: '{state[i][0]}' of rank {rank} is not that of rank 0; was it "
                    "changed on some ranks only, or an optimizer step skipped?"
                )
