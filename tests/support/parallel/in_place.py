"""Programs that assign what has a gradient to elements of a tensor, or change computed tensors in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.nn import functional as F
from tests.support.parallel.programs import Kit, mlp, program

STEPS = 3


class Unrolled(nn.Module):
    """A recurrent network by hand, which `run(cell, x)` unrolls over the columns of x."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.cell, self.read, self.run = nn.RNNCell(1, 2), nn.Linear(2, 1), run

    def forward(self, x: Any) -> Any:
        return self.read(self.run(self.cell, x))


def zeros(*size: Any) -> Any:
    return sx.zeros(*size, dtype=sx.float64)


def in_front(cell: Any, x: Any) -> Any:
    outputs, h = zeros(STEPS, x.shape[0], 2), zeros(x.shape[0], 2)
    for t in range(STEPS):
        h = cell(x[:, t : t + 1], h)
        outputs[t] = h
    return outputs.permute(1, 0, 2)


def in_the_middle(cell: Any, x: Any) -> Any:
    outputs, h = zeros(len(x), STEPS, 2), zeros(len(x), 2)
    for t in reversed(range(STEPS)):
        h = cell(x[:, t].unsqueeze(1), h)
        outputs[:, t] = h
    return outputs


def at_the_end(cell: Any, x: Any) -> Any:
    outputs, h = sx.empty(x.size(0), 2, STEPS, dtype=x.dtype), None
    for t in range(STEPS):
        h = cell(x[:, t : t + 1], h)
        outputs[..., t] = h
    return outputs.transpose(1, 2)


def in_place(cell: Any, x: Any) -> Any:
    outputs, h = x.new_zeros(x.size(0), STEPS, 2), x.new_zeros(x.size(0), 2)
    for t in range(STEPS):
        h = cell(x[:, t : t + 1], h)
        outputs[:, t] += h
        outputs[:, t, 0] *= 2
    return outputs


def register(run: Any) -> None:
    def unrolled(kit: Kit) -> Sequence[Any]:
        model = kit.wrap(Unrolled(run))
        return kit.train(model, lambda model, x: (model(x) - x.unsqueeze(-1)).square().mean().sqrt(), "x")

    unrolled.__name__ = f"unrolled_{run.__name__}"
    program()(unrolled)


for _run in (in_front, in_the_middle, at_the_end, in_place):
    register(_run)


@program()
def changed_in_place(kit: Kit) -> Sequence[Any]:
    def loss(model: Any, x: Any) -> Any:
        z = model(x)
        z.mul_(x[:, :2]).add_(z, alpha=0.5).clamp_(min=-1)
        z.masked_fill_(x[:, :2] > 1, 0.1)
        return z.square().mean()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def a_column_assigned(kit: Kit) -> Sequence[Any]:
    def loss(model: Any, x: Any) -> Any:
        z = model(x).clone()
        z[:, 0] = z[:, 1] * x[:, 0]
        z[:, 1:] = 0.5
        return z.exp().mean()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def a_token_for_masked_rows(kit: Kit) -> Sequence[Any]:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.token, self.last = nn.Linear(3, 2), nn.Parameter(sx.ones(2)), nn.Linear(2, 3)

        def forward(self, x: Any) -> Any:
            z = self.first(x)
            z[x[:, 0] > 0] = self.token
            return self.last(z)

    return kit.train(kit.wrap(Masked()), lambda model, x: F.mse_loss(model(x), x), "x")


@program()
def terms_of_a_loss(kit: Kit) -> Sequence[Any]:
    def loss(model: Any, x: Any) -> Any:
        z, terms = model(x), zeros(3)
        terms[0] = z.square().mean()
        terms[1] = (z.sum(1) * x[:, 0]).mean().exp()
        terms[2] = z.std()
        return (terms * sx.tensor([1.0, 0.1, 0.2])).sum()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def a_mean_of_columns_assigned(kit: Kit) -> Sequence[Any]:
    def loss(model: Any, x: Any) -> Any:
        columns = model(x).mean(0)
        columns[0] = 1.0
        return (columns * columns).sum()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def whole_rows_into_a_bank(kit: Kit) -> Sequence[Any]:
    """The bank is the same on every rank, and takes the rows of all."""

    def loss(model: Any, x: Any, i: Any) -> Any:
        bank = sx.ones(11, 2, dtype=sx.float64)
        z = model(x)
        bank[i] = z
        return (z @ bank.T).sigmoid().mean()

    return kit.train(kit.wrap(mlp()), loss, "x", "number")
