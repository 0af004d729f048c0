"""Random situations, each trained on all ranks and, pieces of a step as one batch, by a bare copy on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from tests.support.parallel.random_cases import STEPS, TERMS, Case, Piece, case, steps

TOLERANCE = 1e-12  # relative to the magnitude of numbers that are larger than 1


def _gradients(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: None if p.grad is None else p.grad.numpy().copy() for name, p in parameters.items()}


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def difference(got: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference, relative to numbers larger than 1; infinite where one has no gradient."""
    largest = 0.0
    for name, value in wanted.items():
        if value is None or got[name] is None:
            largest = max(largest, 0.0 if value is got[name] else np.inf)
        elif value.size:
            off = float((np.abs(got[name] - value) / np.maximum(1, np.abs(value))).max())
            assert np.isfinite(off), f"{name} is not finite"
            largest = max(largest, off)
    return largest


def train(made: Case, counts: Counter[str]) -> None:
    """Trains one case on all ranks; AssertionError unless it equals one process, and the rule of others does not."""
    alone, wrapped = made.model(), sx.DistributedDataParallel(made.model())
    optimizers = [made.optimize(model) for model in (alone, wrapped)]
    parameters = [dict(model.named_parameters()) for model in (alone, wrapped)]
    for step, ((x, y), pieces) in enumerate(steps(made, sx.rank())):
        for optimizer in optimizers:
            optimizer.zero_grad()
        if step == 0:
            local = _mean_of_means(made, pieces)
        made.loss(alone, alone(sx.tensor(x)), y).backward()
        if len(pieces) > 1:
            for xb, yb in wrapped.accumulate(pieces):
                made.loss(wrapped, wrapped(xb), yb).backward()
        else:
            made.loss(wrapped, wrapped(pieces[0][0]), pieces[0][1]).backward()
        wanted, got = map(_gradients, parameters)
        off = difference(got, wanted)
        assert off <= TOLERANCE, f"the gradient of step {step} differs by {off}"
        if step == 0 and local is not None:
            counts["controlled"] += 1
            missed = difference(local, {k: np.zeros(()) if v is None else v for k, v in wanted.items()}) > TOLERANCE
            counts["missed"] += missed
            if _uneven(made, pieces):
                counts["uneven"] += 1
                assert missed, "the mean over ranks of local means is not another gradient"
        for own, optimizer in zip(parameters, optimizers, strict=True):
            if made.clip is not None:
                nn.utils.clip_grad_norm_([*own.values()], made.clip)
            optimizer.step()
    off = difference(_state(wrapped), _state(alone))
    assert off <= TOLERANCE, f"the state after {STEPS} steps differs by {off}"
    counts["cases"] += 1


def _mean_of_means(made: Case, pieces: list[Piece]) -> dict[str, Any] | None:
    """The gradient by the rule that others have: the mean over ranks and pieces of the local means' gradients.

    None for models with batch norm and dropout, which would be a second reason to differ.
    """
    if made.norm == "batch" or made.dropout:
        return None
    local = made.model()
    for x, y in pieces:
        x, y = sx.tensor(np.asarray(x)), np.asarray(y)  # of which nobody knows that they are rows of a larger batch
        (made.loss(local, local(x), y) / len(pieces)).backward()
    found = {}
    for name, p in local.named_parameters():
        gradient = np.zeros_like(p.array) if p.grad is None else p.grad.numpy().copy()
        found[name] = sx.all_reduce(gradient) / made.size
    return found


def _uneven(made: Case, pieces: list[Piece]) -> bool:
    """Whether some element of some loss has another weight in the mean of means than in the mean over all."""
    for _, name in made.terms:
        term = TERMS[name]
        labels = [np.asarray(getattr(y, "array", y)) for _, y in pieces]
        own = np.array([term.denominator(y) for y in labels])
        every = np.array(sx.all_gather(own)).ravel()
        if term.kind == "sum":
            if made.size * len(pieces) > 1:
                return True
            continue
        others = every[every > 0] * made.size * len(pieces)
        if (np.abs(others - every.sum()) > 1e-6 * every.sum()).any():
            return True
    return False


def run(seeds: Iterable[int]) -> Counter[str]:
    """Trains the cases of some seeds, on every rank; a failure names the case."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        made = case(seed, sx.size())
        try:
            train(made, counts)
        except Exception as error:
            error.add_note(f"in case(seed={seed}, size={sx.size()}) on rank {sx.rank()}: {made}")
            raise
    return counts


def run_on_threads(size: int, seeds: Iterable[int]) -> Counter[str]:
    """The same on ranks that are threads."""
    counts: Counter[str] = run_threads(run, size, args=(seeds,), timeout=550)[0]
    return counts
