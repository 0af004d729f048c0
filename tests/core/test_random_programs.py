"""Random programs of registered operations, on pretended ranks against one process: right, or refused by all ranks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from sorix_dist.core import Tensor, grad
from sorix_dist.core import functions as sx
from sorix_dist.core.ops import collective
from sorix_dist.core.ops.matrix import linear
from sorix_dist.core.placement import Partial, Shard
from sorix_dist.nn import functional as F
from tests.support.core.pretended import Diverged, Rank, agreed, run

Array = np.ndarray[Any, Any]
PARTS = 40 if os.environ.get("SORIX_DIST_LONG") == "1" else 1
PROGRAMS = 500  # in each part
TOLERANCE = 1e-10  # relative to the largest number
LARGEST = 50.0  # numbers of which further operations make too large ones are not used
MOST = 600  # elements of a tensor

# Inputs: their shapes in the global batch, "N" for its rows, and their placements. All require a gradient.
INPUTS: list[tuple[tuple[Any, ...], str]] = [
    (("N", 3), "0"),
    (("N", 3), "0"),
    ((2, "N", 3), "1"),
    (("N",), "0"),
    (("N", 2, 3), "0"),
    ((3, 3), ""),
    ((3,), ""),
    ((), ""),
    (("N", 3), ""),
    ((3,), "partial"),
    ((2, 3), "partial"),
]

Step = tuple[str, tuple[int, ...], tuple[Any, ...]]  # an operation, the numbers of its operands, its options


def rows_where(x: Any, y: Any) -> Any:
    """The rows of x, along the first axis, in which the elements of y add up to more than 0."""
    sums = y.detach()
    while sums.ndim > 1:
        sums = sums.sum(-1)
    return x[sums > 0]


def labels(x: Any) -> Any:
    return sx.argmax(x.detach(), -1, keepdims=False)


UNARY: dict[str, Callable[..., Any]] = {
    "tanh": sx.tanh,
    "sin": sx.sin,
    "neg": lambda x: -x,
    "scaled": lambda x: x * 0.7,
    "shifted": lambda x: x + 0.3,
    "halved": lambda x: x / 2,
    "square": sx.square,
    "exp": lambda x: sx.exp(sx.tanh(x)),
    "log": lambda x: sx.log(x * x + 1.1),
    "sqrt": lambda x: sx.sqrt(x * x + 0.5),
    "reciprocal": lambda x: 1 / (x * x + 0.7),
    "pow": lambda x: (x * x + 0.5) ** 1.3,
    "relu": sx.relu,
    "sigmoid": sx.sigmoid,
    "abs": sx.abs,
    "clamp": lambda x: x.clamp(-0.8, 0.9),
    "clone": lambda x: x.clone(),
    "transpose": lambda x: x.T,
    "whole": collective.to_replicate,
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "var": lambda x: x.var(unbiased=False),
    "norm": lambda x: sx.norm(x + 0.1),
    "largest": lambda x: sx.amax(x),
    "flat": lambda x: x.flatten(),
    "rows": lambda x: x.flatten(0, -2),
    "apart": lambda x: x.unsqueeze(-1).flatten(-2),
    "first feature": lambda x: x[..., 0],
    "some features": lambda x: x[..., 1:],
    "new axis": lambda x: x[None],
    "new last axis": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.squeeze(),
    "reversed features": lambda x: sx.flip(x, -1),
    "rolled features": lambda x: sx.roll(x, 1, -1),
    "picked features": lambda x: sx.index_select(x, -1, np.array([1, 0, 1])),
    "padded": lambda x: sx.pad(x, (1, 0)),
    "lower triangle": lambda x: x.tril(),
    "largest feature": lambda x: sx.gather(x, -1, labels(x).unsqueeze(-1)),
    "layer_norm": lambda x: F.layer_norm(x, 3, eps=0.1),
    "batch_norm": lambda x: F.batch_norm(x, training=True, eps=0.1),
    "positive": lambda x: sx.where(x > 0, x, x * 0.1),
    "masked": lambda x: x.masked_fill(x > 0.5, 0.25),
    "pairs": lambda x: x @ x.T,
    "gram": lambda x: x.T @ x,
    "scatter_add": lambda x: sx.scatter_add(x, -1, sx.argmax(x.detach(), -1, keepdims=True), x * 0.5),
    "one_hot": lambda x: x * sx.one_hot(labels(x), 3),
    "cross_entropy": lambda x: F.cross_entropy(x, labels(x)),
    "weighted cross_entropy": lambda x: F.cross_entropy(x, labels(x), np.array([0.5, 1.0, 2.0]), ignore_index=1),
    "mean of the selected": lambda x: x[x > 0].mean(),
}
ALONG: dict[str, Callable[..., Any]] = {  # with an axis
    "sum along": lambda x, axis: x.sum(axis),
    "sum along, kept": lambda x, axis: x.sum(axis, keepdims=True),
    "mean along": lambda x, axis: x.mean(axis),
    "mean along, kept": lambda x, axis: x.mean(axis, keepdims=True),
    "var along": lambda x, axis: sx.var(x, axis, unbiased=False),
    "amax": lambda x, axis: sx.amax(x, axis),
    "max": lambda x, axis: sx.max(x, axis)[0],
    "prod": lambda x, axis: sx.prod(x, axis),
    "cumsum": lambda x, axis: sx.cumsum(x, axis),
    "norm along": lambda x, axis: sx.norm(x + 0.1, dim=axis),
    "softmax": lambda x, axis: sx.softmax(x, axis),
    "log_softmax": lambda x, axis: sx.log_softmax(x, axis),
    "logsumexp": lambda x, axis: sx.logsumexp(x, axis),
    "sort": lambda x, axis: sx.sort(x, axis)[0],
    "topk": lambda x, axis: sx.topk(x, 1, axis)[0],
    "to the front": lambda x, axis: sx.movedim(x, axis, 0),
    "to the back": lambda x, axis: sx.movedim(x, axis, -1),
    "merged": lambda x, axis: x.flatten(axis, axis + 1),
    "twice": lambda x, axis: x.repeat(*(2 if i == axis else 1 for i in range(x.ndim))),
    "new axis at": lambda x, axis: x.unsqueeze(axis),
    "doubled": lambda x, axis: sx.cat([x, x * 0.5], axis),
    "first half": lambda x, axis: sx.chunk(x, 2, axis)[0],
    "second of two": lambda x, axis: sx.chunk(sx.cat([x * 2, x.tanh()], axis), 2, axis)[1],
    "less its mean": lambda x, axis: x - x.mean(axis, keepdims=True),
}
BINARY: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y * y + 1),
    "quotient of sums": lambda x, y: (x * y).sum() / ((y * y).sum() + 1),
    "maximum": lambda x, y: sx.max(x, y),
    "where": lambda x, y: sx.where(x > y, x, y * 0.5),
    "matmul": lambda x, y: x @ y,
    "matmul of the transposed": lambda x, y: x @ y.swapaxes(-1, -2),
    "linear": lambda x, y: linear(x, y, None),
    "outer": sx.outer,
    "einsum ik,jk->ij": lambda x, y: sx.einsum("ik,jk->ij", x, y),
    "einsum ni,nj->ij": lambda x, y: sx.einsum("ni,nj->ij", x, y),
    "einsum ni,nj->nij": lambda x, y: sx.einsum("ni,nj->nij", x, y),
    "einsum tni,ij->ntj": lambda x, y: sx.einsum("tni,ij->ntj", x, y),
    "einsum n...,n->...": lambda x, y: sx.einsum("n...,n->...", x, y),
    "mse_loss": F.mse_loss,
    "rows where": rows_where,
    "cat": lambda x, y: sx.cat([x, y], 0),
    "cat of features": lambda x, y: sx.cat([x, y], -1),
    "stack": lambda x, y: sx.stack([x, y], 0),
    "stack of features": lambda x, y: sx.stack([x, y], -1),
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, y, scale=0.6),
    "embedding": lambda x, y: F.embedding(labels(x), y),
    "soft labels": lambda x, y: F.cross_entropy(x, sx.softmax(y, 1)),
}
OPERATIONS = {**UNARY, **ALONG, **BINARY}


def evaluated(step: Step, values: list[Any]) -> Any:
    name, operands, options = step
    return OPERATIONS[name](*(values[i] for i in operands), *options)


def inputs_of(rows: int, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.uniform(-1.5, 1.5, [rows if n == "N" else n for n in shape])) for shape, _ in INPUTS]


def program(rng: Random, arrays: list[Array], length: int) -> list[Step]:
    """A program that one process can run, step by step; its numbers are neither large nor undefined."""
    values: list[Any] = [Tensor(a, requires_grad=True) for a in arrays]
    steps: list[Step] = []
    for _ in range(8 * length):
        if len(steps) == length:
            break
        kind = rng.choice((UNARY, ALONG, BINARY, BINARY))
        name = rng.choice(tuple(kind))
        # What was computed last is used most, so that programs are deep.
        operands = [min(rng.randrange(len(values)), rng.randrange(len(values)))]
        operands[0] = rng.choice((operands[0], len(values) - 1, rng.randrange(len(values))))
        if kind is BINARY:
            operands.append(rng.randrange(len(values)))
        x = values[operands[0]]
        options = (rng.randrange(x.ndim),) if kind is ALONG and x.ndim else ()
        step = name, tuple(operands), options
        try:
            value = evaluated(step, values)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        array = value.array
        if array.size and array.size <= MOST and value.requires_grad and np.abs(array).max() < LARGEST:
            values.append(value)
            steps.append(step)
    return steps


def loss_of(steps: list[Step], inputs: list[Any], last: str) -> Any:
    """One number that follows from all that is computed and not used any more."""
    values = list(inputs)
    for step in steps:
        values.append(evaluated(step, values))
    used = {i for _, operands, _ in steps for i in operands}
    loose = [v for i, v in enumerate(values[len(inputs) :], len(inputs)) if i not in used]
    terms = [sx.sin(v).mean() if last == "mean" else sx.tanh(v).sum() for v in loose]
    total = terms[0]
    for term in terms[1:]:
        total = total + term if last != "product" else total * (term + 1)
    return sx.sqrt(total * total + 1) if last == "root" else total


def derivatives(steps: list[Step], arrays: list[Array], last: str, rank: Rank, placed: bool) -> list[Tensor]:
    """The loss, its gradients, and those of the sum of their squares."""
    inputs = [rank.tensor(a, p if placed else "") for a, (_, p) in zip(arrays, INPUTS, strict=True)]
    loss = loss_of(steps, inputs, last)
    first = grad(loss, inputs, create_graph=True, allow_unused=True)
    found: list[Any] = [loss, *first]
    squares = [(g * g).sum() for g in first if g is not None and g.requires_grad]
    if squares:
        found += grad(sum(squares[1:], squares[0]), inputs, allow_unused=True)
    return [Tensor(rank.whole(t)) if t is not None and isinstance(t.place, Partial) else t for t in found]


def compare(got: list[Any], expected: list[Any], rank: Rank, where: str) -> None:
    assert len(got) == len(expected), where
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        if x is None or y is None:
            other = y if x is None else x
            assert other is None or not np.any(other.array), f"{where}: result {i} is missing"
            continue
        wanted = rank.beside(y.array, x).array if isinstance(x.place, Shard) else y.array
        scale = max(1.0, float(np.abs(y.array).max(initial=0)))
        np.testing.assert_allclose(x.array, wanted, rtol=0, atol=TOLERANCE * scale, err_msg=f"{where}: result {i}")


def described(steps: list[Step]) -> str:
    first = len(INPUTS)
    return "; ".join(f"v{first + i} = {n}{operands}{options or ''}" for i, (n, operands, options) in enumerate(steps))


def check(rng: Random, numbers: int) -> str:
    """Runs a program on one process and on ranks. Answers what came of it."""
    rows, size = rng.randint(1, 7), rng.randint(1, 4)
    cuts = sorted(rng.randint(0, rows) for _ in range(size - 1))
    counts = [b - a for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    arrays = inputs_of(rows, numbers)
    steps = program(rng, arrays, rng.randint(1, 6))
    last = rng.choice(("mean", "sum", "product", "root"))
    if not steps:
        return "nothing to run"
    where = f"{described(steps)}; {last} on {counts}, seed {numbers}"
    (reference,) = run(lambda rank: derivatives(steps, arrays, last, rank, False), [rows])
    if isinstance(reference, Exception):
        raise reference
    if not all(np.all(np.isfinite(t.array)) for t in reference if t is not None):
        return "not finite"
    ranks = run(lambda rank: (rank, derivatives(steps, arrays, last, rank, True)), counts)
    try:
        results = agreed(ranks)
    except Diverged as error:
        # A position in joined rows may be the border of the rows that one rank has, and none of another rank's.
        if "[docs: refused-rows]" in str(error.__cause__):
            return "refused"
        error.add_note(where)
        raise
    except Exception as error:
        error.add_note(where)
        raise
    if results is None:
        assert size > 1, f"{where}: one process refuses: {ranks[0]}"
        return "refused"
    for rank, got in results:
        compare(got, reference, rank, f"{where}, rank {rank.number}")
    if numbers % 10 == 0:
        central(steps, arrays, last, reference, where)
    return "right"


def central(steps: list[Step], arrays: list[Array], last: str, reference: list[Any], where: str) -> None:
    """The first derivative in a random direction against central differences."""
    rng = np.random.default_rng(1)
    directions = [np.asarray(rng.standard_normal(a.shape)) for a in arrays]
    slope = sum(float((g.array * d).sum()) for g, d in zip(reference[1:], directions, strict=False) if g is not None)
    h = 1e-6

    def along(step: float) -> float:
        moved = [Tensor(a + step * d) for a, d in zip(arrays, directions, strict=True)]
        return float(loss_of(steps, moved, last).array)

    first, second = ((along(s) - along(-s)) / (2 * s) for s in (h, 3 * h))
    if abs(first - second) < 1e-6 * max(1, abs(first)):  # no kink and no jump in between
        assert abs(slope - first) < 1e-5 * max(1, abs(first)), f"{where}: {slope} is not {first}"


@pytest.mark.parametrize("part", range(PARTS))
def test_programs(part: int) -> None:
    """Right, or refused by all ranks: and nine of ten are right."""
    found: Counter[str] = Counter()

    @seed(part)
    @settings(max_examples=PROGRAMS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.randoms(use_true_random=False), st.integers(0, 2**20))
    def run_some(rng: Random, numbers: int) -> None:
        found[check(rng, numbers)] += 1

    run_some()
    assert found["right"] > 0.9 * found.total(), found
