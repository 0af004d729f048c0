"""What a rank says when the steps of the ranks differ, or when gradients are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from sorix_dist.parallel.agreement import ACTIONS, BACKWARD, StepFingerprint


class History(NamedTuple):
    """Descriptions of what a rank did since the last agreement: the steps of its optimizers, and its criteria."""

    steps: list[str]
    criteria: list[str]


def describe_difference(
    fingerprints: Sequence[StepFingerprint], lines: Sequence[str], histories: Sequence[History], step: int
) -> str:
    """The error of ranks whose fingerprints differ; lines: of each rank's program."""
    first, other = _pair(fingerprints)
    ours, theirs = _difference(fingerprints[first], fingerprints[other], histories[first], histories[other])
    return (
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
            "drifted, before it came to backward"
        )
    return ours, theirs


def unequal_number(everywhere: Sequence[float], where: str) -> RuntimeError:
    """The error for a number that is not the same on every rank, in the backward at a line of the program."""
    return RuntimeError(
        "a loss, or a number that it was multiplied with or divided by, must be the same on every rank, and is "
        f"{', '.join(f'{n:.6g}' for n in everywhere)} on ranks 0 to {len(everywhere) - 1} (in the backward at "
        f"{where}): it is a rank's own, such as len(xb), or follows from rows that no loader has tagged. Take the rows "
        "from a DataLoader, call the wrapped model instead of its module, or use sx.global_value(x) or "
        "sx.global_rows(xb); no gradient was added [docs: own-numbers]"
    )


def unequal_reduction(rank: int, number: int, known: bool) -> RuntimeError:
    """The error of a rank that can't reduce bucket `number` as another rank does, or does not even know it."""
    if not known:
        return RuntimeError(
            f"a backward of another rank reached the wrapped model number {number}, which rank {rank} does not have "
            "any more: every rank must train the same models"
        )
    return RuntimeError(
        f"rank {rank} and another one would add this sum to their gradients differently: only one has called zero_grad "
        "before this backward, set a parameter's gradient to None, or registered a hook with a parameter"
    )


def not_finite(found: Sequence[tuple[str, str] | None], step: int, where: str) -> FloatingPointError:
    """The error for gradients that are not finite; found: by each rank, a parameter's name and the value in its
    gradient."""
    named = [f"that of '{f[0]}' on rank {r} is {f[1]}" for r, f in enumerate(found) if f is not None]
    return FloatingPointError(
        f"gradients are not finite in backward number {step}, at {where}: "
        f"{'; '.join(named) or 'the sum over the ranks overflows'}. They were not added; with nonfinite='skip' a "
        "wrapped model leaves such a step out on all ranks, with 'allow' it goes on [docs: not-finite]"
    )
