"""What ranks do when their steps differ, or when gradients are not finite: the errors that name the cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from math import isclose, isfinite
from typing import NamedTuple

from sorix_dist.comm import Comm
from sorix_dist.core.graph import Described
from sorix_dist.parallel.agreement import ACTIONS, BACKWARD, StepFingerprint
from sorix_dist.parallel.groups import Compared
from sorix_dist.parallel.reducers import Bucket
from sorix_dist.watchdog.call_site import call_site

_TOLERANCE = 1e-8  # of the squares of numbers that must be the same: four digits
_RELATIVE = 1e-6  # of numbers that are compared one by one; processors of several kinds may round differently


class History(NamedTuple):
    """Descriptions of what a rank did since the last agreement: the steps of its optimizers, and its criteria."""

    steps: list[str]
    criteria: list[str]


def different_steps(
    comm: Comm,
    fingerprints: Sequence[StepFingerprint],
    optimizers: Iterable[Described],
    criteria: Iterable[Described],
    step: int,
) -> RuntimeError:
    """The error of ranks whose fingerprints differ. A call of all ranks.

    optimizers, criteria: of this rank, since the last agreement.
    """
    history = History([each.describe() for each in optimizers], [each.describe() for each in criteria])
    lines, histories = zip(*comm.gather_objects((call_site().where, history)), strict=True)
    first, other = _pair(fingerprints)
    ours, theirs = _difference(fingerprints[first], fingerprints[other], histories[first], histories[other])
    return RuntimeError(
        f"the ranks are not at the same place in backward number {step}: rank {first} has {ours} at {lines[first]}, "
        f"rank {other} has {theirs} at {lines[other]}; no gradient was added"
    )


def _pair(fingerprints: Sequence[StepFingerprint]) -> tuple[int, int]:
    """Two ranks that differ. Two that made the same call with other numbers are preferred, because they are the cause;
    the other ranks have only gone on."""
    for rank, each in enumerate(fingerprints):
        first = next(r for r, f in enumerate(fingerprints) if f.action == each.action)
        if each.action != BACKWARD and each != fingerprints[first]:
            return first, rank
    return 0, next(r for r, each in enumerate(fingerprints) if each != fingerprints[0])


def _instead(a: list[str], b: list[str]) -> str | None:
    """The first difference in what two ranks did; None if they did the same."""
    pairs = zip_longest(a, b, fillvalue="nothing")
    return next((f"{theirs} instead of {ours}" for ours, theirs in pairs if ours != theirs), None)


def _difference(a: StepFingerprint, b: StepFingerprint, before_a: History, before_b: History) -> tuple[str, str]:
    """The first thing that differs between two fingerprints, in words."""
    step, criterion = map(_instead, before_a, before_b)
    if a.action != b.action:
        ours, theirs = (f"come to {ACTIONS[f.action]}" for f in (a, b))
    elif a.action != BACKWARD:
        ours = f"come to {ACTIONS[a.action]}"
        theirs = f"{ours} with other numbers ({step or 'a learning rate, say, or another option'})"
    elif (a.epoch, a.batch) != (b.epoch, b.batch):
        ours, theirs = (
            f"batch {f.batch} of epoch {f.epoch}" if f.batch >= 0 else "a batch that no loader made" for f in (a, b)
        )
    elif a.order != b.order:
        ours = "a loader's batch"
        theirs = (
            "that of a loader with another length, batch_size, shuffle, seed or order of its sampler, or over other "
            "data (random without a seed? or each rank's own, which needs shard=False)"
        )
    elif a.updates != b.updates:
        ours, theirs = (f"{f.updates} optimizer updates" for f in (a, b))
    elif a.backwards != b.backwards:
        ours, theirs = (f"{f.backwards} backwards since the last synchronisation" for f in (a, b))
    elif criterion is not None and step is None:
        ours = "come to backward"
        theirs = f"computed its loss by {criterion} before it came to backward"
    else:
        ours = "come to backward"
        theirs = (
            f"stepped optimizers with other options ({step or 'a learning rate, say'}), so that its parameters have "
            f"drifted,{'' if step else ' or computed a loss with more or fewer factors,'} before it came to backward"
        )
    return ours, theirs


def require_equal_numbers(comm: Comm, numbers: list[float], sums: list[float]) -> None:
    """RuntimeError on every rank if one of the numbers differs between ranks; sums: the sums over the ranks of the
    numbers, then of their squares. A call of all ranks."""
    for number, total, squares in zip(numbers, sums, sums[len(numbers) :], strict=False):
        if squares * comm.size - total * total <= _TOLERANCE * squares * comm.size:
            continue
        everywhere = comm.gather_objects(number)
        if any(map(isfinite, everywhere)):
            raise RuntimeError(
                "a loss, or a number that it was multiplied with or divided by, must be the same on every rank, and is "
                f"{', '.join(f'{n:.6g}' for n in everywhere)} on ranks 0 to {comm.size - 1} (in the backward at "
                f"{call_site().where}): it is a rank's own, such as len(xb) or what np.random draws if the ranks have "
                "not seeded it alike, or follows from rows that no loader has tagged. Take the rows from a DataLoader, "
                "call the wrapped model instead of its module, or use "
                "sx.global_value(x) or sx.global_rows(xb); no gradient was added [docs: own-numbers]"
            )


def require_equal_lines(comm: Comm, numbers: list[Compared]) -> None:
    """RuntimeError on every rank if a number differs between ranks that all came to its line equally often; numbers:
    those of this rank, with their lines and what else `Group.compare` gets. A call of all ranks."""
    everywhere: list[list[Compared]] = comm.gather_objects(numbers)
    for where in dict.fromkeys(where for where, *_ in everywhere[0]):
        found = [[entry for line, *entry in each if line == where] for each in everywhere]
        if len({*map(len, found)}) > 1:
            continue
        for entries in zip(*found, strict=True):
            each, shapes, lengths, held = zip(*entries, strict=True)
            by_rows = len({*held}) > 1 and held in zip(*shapes, strict=False)
            alike = shapes if len({*lengths}) > 1 and not by_rows else [()] * len(each)
            first = dict(zip(reversed(alike), reversed(each), strict=True))
            same = all(isclose(n, first[shape], rel_tol=_RELATIVE) for n, shape in zip(each, alike, strict=True))
            if not same and any(map(isfinite, each)):
                raise RuntimeError(
                    f"{where}: a number or an array beside rows of the batch must be the same on every rank. The "
                    f"number, or the checksum of the array, is {', '.join(f'{n:.6g}' for n in each)} on ranks 0 to "
                    f"{comm.size - 1}: it follows from this rank's rows, as x.numpy().mean() does, or from random "
                    "numbers that the ranks have not seeded alike. Compute it from tensors, as x.mean(), or from "
                    "sx.global_value(x).numpy(); no gradient was added [docs: own-numbers]"
                )


def unequal_reduction(rank: int, number: int, known: Iterable[int]) -> RuntimeError:
    """The error of a rank that can't reduce bucket `number` as another rank does, or does not even know it."""
    if number not in known:
        return RuntimeError(
            f"a backward of another rank reached the wrapped model number {number}, which rank {rank} does not have "
            "any more: every rank must train the same models"
        )
    return RuntimeError(
        f"rank {rank} and another one would add this sum to their gradients differently: only one has called zero_grad "
        "before this backward, set a parameter's gradient to None, or registered a hook with a parameter"
    )


def leave_out(comm: Comm, reached: list[Bucket], step: int) -> None:
    """Discards the gradients of a backward because some are not finite. FloatingPointError, which names the parameters
    and values, unless all watched buckets say "skip". A call of all ranks."""
    watched = [bucket for bucket in reached if bucket.nonfinite != "allow"]
    own = [(bucket.names[found[0]], found[1]) for bucket in watched if (found := bucket.reducer.first_not_finite())]
    for bucket in reached:
        bucket.reducer.reset()
    everywhere = comm.gather_objects(own[0] if own else None)
    if all(bucket.nonfinite == "skip" for bucket in watched):
        return
    named = [f"that of '{f[0]}' on rank {r} is {f[1]}" for r, f in enumerate(everywhere) if f is not None]
    raise FloatingPointError(
        f"gradients are not finite in backward number {step}, at {call_site().where}: "
        f"{'; '.join(named) or 'the sum over the ranks overflows'}. They were not added; with nonfinite='skip' a "
        "wrapped model leaves such a step out on all ranks, with 'allow' it goes on [docs: not-finite]"
    )
