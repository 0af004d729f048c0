"""What ranks must agree on before anything is mixed, and who is told when they do not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from sorix_dist.comm import Comm
from sorix_dist.core import Tensor
from sorix_dist.nn.module import Module, options_of
from sorix_dist.parallel.board import BACKWARD, DOINGS, Place
from sorix_dist.parallel.world import communicator


def describe_state(module: Module) -> list[str]:
    """One line for each parameter and buffer: name, shape, dtype, and whether it requires a gradient."""

    def line(name: str, tensor: Tensor) -> str:
        return f"'{name}' of shape {tuple(tensor.array.shape)} and dtype {tensor.array.dtype}"

    parameters = [
        f"{line(name, p)}{'' if p.requires_grad else ' that requires no gradient'}"
        for name, p in module.named_parameters()
    ]
    return parameters + [line(name, buffer) for name, buffer in module.named_buffers()]


def describe_modules(module: Module) -> list[str]:
    """One line for each module, of its class, and for each of its options."""
    lines = []
    for name, part in module.named_modules():
        where = f"module '{name}'" if name else "the model"
        what = f"{where} ({type(part).__name__})"
        lines += [what, *(f"{what} with {option} = {text}" for option, text in options_of(part).items())]
    return lines


def same_everywhere(comm: Comm, what: str, lines: list[str]) -> None:
    """ValueError on every rank, naming the first difference and the ranks that have it, if `lines` are not the same on
    all of them."""
    digest = hashlib.sha256("\n".join(lines).encode()).digest()
    digests = comm.gather_objects(digest)
    others = [r for r, d in enumerate(digests) if d != digests[0]]
    if not others:
        return
    everywhere = comm.gather_objects(lines)
    first, second = next((a, b) for a, b in zip_longest(everywhere[0], everywhere[others[0]]) if a != b)
    alike = ", ".join(str(r) for r in others[1:] if everywhere[r] == everywhere[others[0]])
    raise ValueError(
        f"{what} must be the same on every rank: rank 0 has {first or 'no more'}, rank {others[0]} has "
        f"{second or 'no more'} at the same place{f', and so has rank {alike}' if alike else ''}"
    )


class Behind(NamedTuple):
    """What a rank did since the last meeting, in words: the steps of its optimizers, and by which criteria it computed
    losses."""

    steps: list[str]
    criteria: list[str]


def describe_places(places: Sequence[Place], lines: Sequence[str], behind: Sequence[Behind], meeting: int) -> str:
    """What to say when the ranks meet at different places."""
    first, other = _pair(places)
    ours, theirs = _difference(places[first], places[other], behind[first], behind[other])
    return (
        f"the ranks are not at the same place in backward number {meeting}: rank {first} has {ours} at {lines[first]}, "
        f"rank {other} has {theirs} at {lines[other]}; no gradient was added"
    )


def _pair(places: Sequence[Place]) -> tuple[int, int]:
    """Two ranks that differ: if some have come to the same call on their host, but not alike, two of those, because the
    others have only gone on; else the first ones."""
    for rank, place in enumerate(places):
        first = next(r for r, p in enumerate(places) if p.doing == place.doing)
        if place.doing != BACKWARD and place != places[first]:
            return first, rank
    return 0, next(r for r, place in enumerate(places) if place != places[0])


def _instead(a: list[str], b: list[str]) -> str | None:
    """The first difference in what two ranks did; None if they did the same."""
    pairs = zip_longest(a, b, fillvalue="nothing")
    return next((f"{theirs} instead of {ours}" for ours, theirs in pairs if ours != theirs), None)


def _difference(a: Place, b: Place, before_a: Behind, before_b: Behind) -> tuple[str, str]:
    """The first thing that differs between two places, in words."""
    step, criterion = map(_instead, before_a, before_b)
    if a.doing != b.doing:
        ours, theirs = (f"come to {DOINGS[p.doing]}" for p in (a, b))
    elif a.doing != BACKWARD:
        ours = f"come to {DOINGS[a.doing]}"
        theirs = f"{ours} with other numbers ({step or 'a learning rate, say, or another option'})"
    elif (a.epoch, a.batch) != (b.epoch, b.batch):
        ours, theirs = (
            f"batch {p.batch} of epoch {p.epoch}" if p.batch >= 0 else "a batch that no loader made" for p in (a, b)
        )
    elif a.order != b.order:
        ours = "a loader's batch"
        theirs = (
            "that of a loader with another length, batch_size, shuffle, seed or order of its sampler, or over other "
            "data (random without a seed? or each rank's own, which needs shard=False)"
        )
    elif a.updates != b.updates:
        ours, theirs = (f"{p.updates} optimizer updates" for p in (a, b))
    elif a.pieces != b.pieces:
        ours, theirs = (f"{p.pieces} backwards since the last synchronisation" for p in (a, b))
    elif criterion is not None and step is None:
        ours = "come to backward"
        theirs = f"computed its loss by {criterion} before it came to backward"
    else:
        ours = "come to backward"
        theirs = (
            f"stepped optimizers with other options ({step or 'a learning rate, say'}), so that its parameters have "
            "drifted, before it came to backward"
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
