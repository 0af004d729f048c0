"""Functions by PyTorch's names, applied to what a model returns: the step of one process on any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.autograd import Function
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.checkpoint import checkpoint
from sorix_dist.utils.data import DataLoader
from tests.support.parallel.any_loss import Columns
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.expressions import IMAGES, IN_PLACE, REFUSED, ROWS, SEQUENCES

pytestmark = pytest.mark.filterwarnings("ignore")
LAYOUTS = [(8, 2), (5, 3), (2, 3)]
"""Rows and ranks: even shards, uneven ones, and one that is empty."""
COLUMNS = ["x", "z", "t", "w", "flags", "seq", "words", "lengths", "images"]

Made = Callable[[], nn.Module]
Found = dict[str, Any]


class Squares(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class RowSums(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.shape = x.shape
        return x.sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return sx.ones(*ctx.shape, dtype=sx.float64) * gradient


def added_in_place(u: Any, z: Any) -> Any:
    u = u * 1
    u += z[:, :1]
    u *= 2
    return u


def centred(x: Any) -> Any:
    y = x.clone()
    y.sub_(y.mean(0))
    return y


def scaled(z: Any) -> Any:
    y = sx.zeros_like(z[:, :1])
    y.add_(1.0)
    y.mul_(z[:, :1])
    return y


def changed(y: Any, method: str, *arguments: Any) -> Any:
    y = y.detach().clone()
    getattr(y, method)(*arguments)
    return y


def loss_of(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return sum(map(loss_of, value))
    return value.square().mean()


NAMES = {
    "sx": sx, "np": np, "nn": nn, "F": F, "checkpoint": checkpoint, "Sq": Squares, "SumRows": RowSums,
    "iadd": added_in_place, "subm": centred, "mulT": scaled, "changed": changed,
}  # fmt: skip


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))


def conv() -> nn.Module:
    return nn.Conv2d(1, 4, 3, padding=1)


def dense() -> nn.Module:
    return nn.Linear(3, 4)


def results(make: Made, column: str, expressions: list[str], rows: int) -> Found:
    """For each expression the loss and the gradients of a step, or the error."""
    found: Found = {}
    for expression in expressions:
        sx.manual_seed(7)
        model = sx.DistributedDataParallel(make().double())
        (batch,) = DataLoader(Columns(COLUMNS, rows), batch_size=rows)
        columns = dict(zip(COLUMNS, batch, strict=True))
        try:
            u = model(columns[column])
            v = model(columns["z"]) if column == "x" else None
            loss = loss_of(eval(expression, {**NAMES, **columns, "d": model, "u": u, "v": v}))
            loss.backward()
        except (RuntimeError, ValueError) as error:
            found[expression] = error
            continue
        gradients = [p.grad for p in model.parameters()]
        found[expression] = [loss.numpy(), *(None if g is None else g.numpy().copy() for g in gradients)]
    return found


def is_close(ours: Any, wanted: Any) -> bool:
    if isinstance(ours, Exception):
        return False
    return all(
        (a is None) == (b is None) and (b is None or np.allclose(a, b, rtol=1e-11, atol=1e-11))
        for a, b in zip(ours, wanted, strict=True)
    )


def assert_as_on_one_process(make: Made, column: str, expressions: list[str], rows: int, ranks: int) -> None:
    (wanted,) = run_threads(results, 1, args=(make, column, expressions, rows))
    errors = {e: x for e, x in wanted.items() if isinstance(x, Exception)}
    assert not errors
    different = {
        expression: (rank, ours[expression], wanted[expression])
        for rank, ours in enumerate(run_threads(results, ranks, args=(make, column, expressions, rows), timeout=120))
        for expression in expressions
        if not is_close(ours[expression], wanted[expression])
    }
    assert not different


@pytest.mark.parametrize(("rows", "ranks"), LAYOUTS)
@pytest.mark.parametrize(
    ("make", "column", "expressions"),
    [
        (net, "x", ROWS[::2]), (net, "x", ROWS[1::2]), (net, "x", IN_PLACE),
        (conv, "images", IMAGES), (dense, "seq", SEQUENCES),
    ],
    ids=["rows", "more rows", "in place", "images", "sequences"],
)  # fmt: skip
def test_functions(make: Made, column: str, expressions: list[str], rows: int, ranks: int):
    assert_as_on_one_process(make, column, expressions, rows, ranks)


def in_reproducible_mode(make: Made, column: str, expressions: list[str], rows: int) -> Found:
    sx.init(virtual_shards=4)
    return results(make, column, expressions, rows)


def bits(values: Any) -> Any:
    return None if isinstance(values, Exception) else [None if a is None else a.tobytes() for a in values]


@pytest.mark.parametrize(
    ("make", "column", "expressions"),
    [(net, "x", [*ROWS, *IN_PLACE]), (conv, "images", IMAGES), (dense, "seq", SEQUENCES)],
    ids=["rows", "images", "sequences"],
)
def test_reproducible_mode(make: Made, column: str, expressions: list[str]):
    """The same bits on every number of ranks, or refused on each; one process may do what several can't."""
    (one,) = run_threads(in_reproducible_mode, 1, args=(make, column, expressions, 8))
    for ranks in (2, 4):
        found = run_threads(in_reproducible_mode, ranks, args=(make, column, expressions, 8), timeout=120)
        for expression in expressions:
            ours = [bits(of_rank[expression]) for of_rank in found]
            assert ours in ([bits(one[expression])] * ranks, [None] * ranks), expression


def test_what_means_something_else_on_every_split():
    for found in run_threads(results, 2, args=(net, "x", REFUSED, 8), timeout=60):
        for expression, error in found.items():
            assert isinstance(error, RuntimeError | ValueError), expression
            assert "rows" in str(error), expression


def beside_a_constant(measures: bool, constant: Any, join: Callable[..., Any]) -> Any:
    """Two rows on each of two ranks, joined with a constant of two rows."""
    ((x,),) = DataLoader(Columns(["x"], 4), batch_size=4)
    if measures:
        len(x)
    return sx.global_value(join([constant, x])).numpy()


@pytest.mark.parametrize("join", [sx.cat, np.concatenate])
def test_a_constant_that_happens_to_be_as_long_as_this_ranks_rows(join: Callable[..., Any]):
    constant = np.arange(6.0).reshape(2, 3)
    (wanted,) = run_threads(beside_a_constant, 1, args=(False, sx.tensor(constant), join))
    for measures, known in (False, sx.tensor), (True, sx.replicated):
        for found in run_threads(beside_a_constant, 2, args=(measures, known(constant), join)):
            np.testing.assert_array_equal(found, wanted)
    on_all_ranks(lambda: beside_a_constant(True, sx.tensor(constant), join), RuntimeError, "sx.replicated", 2)


def products() -> Any:
    ((x,),) = DataLoader(Columns(["x"], 4), batch_size=4)
    return x.T @ x + sx.eye(3, dtype=sx.float64)


@pytest.mark.parametrize(
    "function",
    [sx.linalg.inv, sx.nan_to_num, lambda x: sx.diff(x, dim=0), lambda x: sx.cumprod(x, 0), sx.median, sx.var],
)
def test_functions_of_sums_over_rows_say_nothing(function: Callable[[Any], Any]):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*own-numbers")
        run_threads(lambda: [function(products())], 2)


def test_flags_of_rows_are_counted_and_not_gathered():
    """`if mask.any():` is what a program must write, and says nothing."""

    def work() -> list[Any]:
        ((x,),) = DataLoader(Columns(["x"], 4), batch_size=4)
        return [bool(f(x > bound)) for f in (sx.any, sx.all, np.any, np.all) for bound in (-9, 0, 9)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [True, True, False, True, False, False] * 2 == work() == run_threads(work, 3)[0]


@pytest.mark.parametrize("change", [lambda m: m.__setitem__(0, 1.0), lambda m: m.mul_(2), lambda m: m.clamp_(0.0)])
def test_a_sum_over_rows_that_a_backward_needs(change: Callable[[Any], Any]):
    def work() -> None:
        ((x,),) = DataLoader(Columns(["x"], 4), batch_size=4)
        mean, weight = x.mean(0), sx.ones(3, dtype=sx.float64, requires_grad=True)
        loss = (mean * weight).sum()
        change(mean)
        loss.backward()

    on_all_ranks(work, RuntimeError, "changed in place after it", 1)


def written_in_reproducible_mode(write: Callable[[Any], Any]) -> None:
    sx.init(virtual_shards=4)
    ((x,),) = DataLoader(Columns(["x"], 4), batch_size=4)
    write(x)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "write",
    [lambda x: np.put(x, [0], 1.0), lambda x: np.add.at(x, [0], 1.0), lambda x: np.fill_diagonal(x, 1.0),
     lambda x: np.copyto(x.mean(0), 1.0)],
)  # fmt: skip
def test_numpys_writes_at_positions_in_reproducible_mode(write: Callable[[Any], Any], ranks: int):
    on_all_ranks(lambda: written_in_reproducible_mode(write), RuntimeError, "can't write at positions", ranks)


# -- modules


class Tokens(nn.Module):
    """A token in front of each sequence, expanded to the rows of this rank in one of the usual ways."""

    def __init__(self, expanded: Callable[[Any, Any], Any]) -> None:
        self.token, self.body = nn.Parameter(np.full((1, 1, 4), 0.3)), nn.Linear(3, 4)
        self.position, self.expanded = nn.Parameter(np.linspace(0, 1, 24).reshape(1, 6, 4)), expanded

    def forward(self, x: Any) -> Any:
        h = self.body(x)
        return sx.cat([self.expanded(self.token, h), h], 1) + self.position


class Cells(nn.Module):
    """States that begin with zeros for each row of this rank."""

    def __init__(self) -> None:
        self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 4)

    def forward(self, x: Any) -> Any:
        h = c = g = sx.zeros(x.shape[0], 4, dtype=sx.float64)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
            g = self.gru(h, g)
        return g


class Positions(nn.Module):
    """Numbers of positions, expanded to the rows of this rank."""

    def __init__(self) -> None:
        self.table, self.body = nn.Embedding(5, 4), nn.Linear(3, 4)

    def forward(self, x: Any) -> Any:
        return self.body(x) + self.table(sx.arange(x.shape[1])[None].expand(x.shape[0], -1))


class SequenceFirst(nn.Module):
    def __init__(self, layer: Callable[..., Any], *arguments: Any) -> None:
        self.body, self.layer = nn.Linear(3, 4), layer(*arguments)

    def forward(self, x: Any) -> Any:
        h = self.body(x).transpose(0, 1)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(h, h, h)[0]
        return self.layer(h, h * 0.5) if isinstance(self.layer, nn.TransformerDecoderLayer) else self.layer(h)[0]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        self.body, self.norm, self.dropout = nn.Linear(3, 4), nn.BatchNorm1d(5), nn.Dropout(0.3)

    def forward(self, x: Any) -> Any:
        return checkpoint(lambda h: self.dropout(self.norm(self.body(h))), x)


MODELS: dict[str, Made] = {
    "a token by expand": lambda: Tokens(lambda token, h: token.expand(h.shape[0], -1, -1)),
    "a token by repeat": lambda: Tokens(lambda token, h: token.repeat(len(h), 1, 1)),
    "a token by zeros": lambda: Tokens(lambda token, h: token + sx.zeros_like(h[:, :1])),
    "cells": Cells,
    "positions": Positions,
    "recurrent, sequence first": lambda: SequenceFirst(nn.GRU, 4, 3),
    "attention, sequence first": lambda: SequenceFirst(nn.MultiheadAttention, 4, 2),
    "decoder, sequence first": lambda: SequenceFirst(nn.TransformerDecoderLayer, 4, 2, 8, 0.0),
    "checkpointed": Checkpointed,
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str):
    for rows, ranks in LAYOUTS:
        assert_as_on_one_process(MODELS[name], "seq", ["u", "u.mean(0)"], rows, ranks)
