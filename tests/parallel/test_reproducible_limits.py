"""What reproducible mode can't do: errors on every rank that say what to write instead."""

from __future__ import annotations

import random

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import data, network


def reproducible(act):
    """`act` on a wrapped network and a batch of a loader."""

    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(network())
        x, y = data(20)
        for xb, yb in DataLoader(Dataset(x, y), batch_size=20):
            act(model, xb, yb)

    return work


class Inside(nn.Module):
    """A model that computes something of its batch inside of its forward."""

    def __init__(self, of_rows):
        self.net, self.of_rows = network(), of_rows

    def forward(self, x):
        return self.of_rows(self.net(x))


NEED_ALL_ROWS = {
    "rows beside a root of a mean": lambda s: s / s.square().mean().sqrt(),
    "a number of a root": lambda s: s.square().mean().sqrt().item(),
    "a branch on a root": lambda s: s if s.square().mean().sqrt() > 0.5 else -s,
    "rows of a table of sums": lambda s: s.square().mean(0).sqrt()[s.argmax(1)],
    "a write of a root": lambda s: sx.zeros(4).copy_(s.square().mean(0).sqrt().detach()),
    "a change of a mean": lambda s: s.detach().mean(0).clamp_(min=0),
    "a change of a root": lambda s: s.detach().square().mean().sqrt().clamp_(min=0.1),
    "an item of a root": lambda s: s.detach().square().mean(0).sqrt().__setitem__(0, 1.0),
    "a gradient of a root": lambda s: sx.autograd.grad(s.square().mean().sqrt(), s),
    "rows less their mean": lambda s: s - s.mean(axis=0),
    "a variance": lambda s: s.var(axis=0),
    "pairs": lambda s: s @ s.T,
    "a maximum": lambda s: s.amax(0),
    "sorted rows": lambda s: s.sort(dim=0).values,
    "a mean of selected rows": lambda s: s[s.sum(1) > 0].mean(),
    "selected rows beside a table": lambda s: (s[s.sum(1) > 0] * sx.ones(3, 1)).sum(),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", NEED_ALL_ROWS)
def test_what_needs_all_rows_inside_of_a_forward(name, size):
    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(Inside(NEED_ALL_ROWS[name]))
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20):
            model(xb)

    on_all_ranks(work, RuntimeError, "reproducible mode: .* needs the rows of the whole batch, but the forward", size)


def beside_another_batch(model, xb, yb):
    for other, _ in DataLoader(Dataset(*data(16)), batch_size=16):
        model.module.forward = lambda x, y: x
        model(xb, other)


def with_a_backward_in_a_hook(model, xb, yb):
    loss, other = model(xb).square().mean(), model(xb).mean()
    loss.register_hook(lambda g: other.backward())
    loss.backward()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m, x, y: m(x[x.sum(1) > 0]), "rows that a mask has selected can't be the inputs of a model"),
        (beside_another_batch, "all inputs must be rows of one batch, got rows of 20 and 16"),
        (with_a_backward_in_a_hook, "a hook of a backward must not call backward itself"),
    ],
)
def test_what_a_program_does_with_its_model(act, message):
    on_all_ranks(reproducible(act), RuntimeError, f"reproducible mode: {message}")


def another_for_each_shard():
    seen = []

    def of_rows(s):
        seen.append(s)
        mean = s.square().mean()
        return mean.sqrt() if len(seen) % 2 else mean.log()

    return of_rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lambda s: s[s.sum(1) > 0], "a model must not return rows that a mask has selected"),
        (another_for_each_shard, "the forward has computed something else of one virtual shard than of another"),
    ],
)
def test_what_a_model_returns(make, message):
    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(Inside(make()))
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20):
            model(xb)

    on_all_ranks(work, RuntimeError, f"reproducible mode: {message}")


def test_the_gradient_of_weights_as_part_of_a_loss():
    def act(model, xb, yb):
        loss = F.cross_entropy(model(xb), yb)
        (g,) = sx.autograd.grad(loss, [model.parameters()[0]], create_graph=True)
        g.square().sum().backward()

    on_all_ranks(reproducible(act), RuntimeError, "reproducible mode: autograd.grad gives gradients to rows", 2)


def test_what_was_computed_outside_of_the_forward():
    class Scaled(nn.Module):
        def __init__(self):
            self.net = network()

        def forward(self, x, scale):
            return self.net(x) * scale

    def work(kept):
        sx.init(virtual_shards=8)
        bare = Scaled()
        model = sx.DistributedDataParallel(bare)
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20):
            scale = bare.net[0].b.sum()
            if kept:
                bare.forward = lambda x, _, scale=scale: bare.net(x) * scale
            model(xb, None if kept else scale).mean().backward()

    on_all_ranks(lambda: work(False), RuntimeError, "requires a gradient and is not rows of the batch")
    on_all_ranks(lambda: work(True), RuntimeError, "computed outside of its forward and requires a gradient")


@pytest.mark.parametrize("size", [1, 3])
def test_batches_of_no_loader(size):
    for make in (lambda xb: sx.tensor(xb.numpy()), lambda xb: xb.numpy()):
        on_all_ranks(
            reproducible(lambda model, xb, yb, make=make: model(make(xb))),
            RuntimeError,
            r"reproducible mode: a batch must come from a DataLoader.*got \(\d+, 5\)",
            size,
        )


def test_a_loader_that_shares_nothing_out():
    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(network())
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20, shard=False):
            model(xb)

    on_all_ranks(work, RuntimeError, "a batch must come from a DataLoader")


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda model, x: model.found.append(x.sum()), "adds to Stateful.found for each virtual shard"),
        (lambda model, x: setattr(model, "rows", len(x)), "sets Stateful.rows to . for one virtual shard"),
        (lambda model, x: random.random(), "draws from the global stream of `random`"),
        (lambda model, x: np.random.rand(), "draws from the global stream of `numpy.random`"),  # noqa: NPY002
    ],
)
def test_state_that_depends_on_virtual_shards_is_said(change, warning):
    class Stateful(nn.Module):
        def __init__(self):
            self.net, self.found, self.rows = network(), [], 0

        def forward(self, x):
            change(self, x)
            return self.net(x)

    def work():
        sx.init(virtual_shards=8)
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20):
            sx.DistributedDataParallel(Stateful())(xb)

    with pytest.warns(RuntimeWarning, match=warning):
        run_threads(work, 2)
