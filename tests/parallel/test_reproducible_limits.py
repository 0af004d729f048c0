"""What reproducible mode can't do: errors on every rank that say what to write instead."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.parallel.everywhere import on_all_ranks
from tests.parallel.exactness import data, network


def reproducible(act):
    """`act` on a wrapped network and a batch of a loader."""

    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(network())
        x, y = data(20)
        for xb, yb in DataLoader(Dataset(x, y), batch_size=20):
            act(model, xb, yb)

    return work


BAD_LOSSES = {
    "sum by hand": (lambda s, y: (s * s).sum(), "a loss must end in one of sorix_dist.nn or in mean"),
    "mean by hand": (lambda s, y: (s * s).sum(axis=1).sum() / 20, "a loss must end in one of sorix_dist.nn"),
    "mean of columns": (lambda s, y: s.mean(axis=0).sum(), "a loss must end in one of sorix_dist.nn"),
    "rows and a loss": (lambda s, y: (s + F.cross_entropy(s, y)).mean(), "can't join rows of a batch with"),
    "some rows": (lambda s, y: F.cross_entropy(s[np.arange(len(s)) % 7 > 0], y[np.arange(len(y)) % 7 > 0]), "as many"),
}


@pytest.mark.parametrize(("size", "hosts"), [(1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("name", BAD_LOSSES)
def test_reductions_by_hand(name, size, hosts):
    loss, message = BAD_LOSSES[name]

    def act(model, xb, yb):
        loss(model(xb), yb.numpy()).backward()

    on_all_ranks(reproducible(act), RuntimeError, f"reproducible mode.*{message}", size, hosts)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_of_no_loader(size):
    for make in (
        lambda xb: sx.tensor(xb.numpy()),
        lambda xb: xb[: max(1, len(xb) - 1)],
        lambda xb: sx.cat([xb, xb]),
        lambda xb: xb.numpy(),
    ):
        on_all_ranks(
            reproducible(lambda model, xb, yb, make=make: model(make(xb))),
            RuntimeError,
            r"reproducible mode: a batch must come from a DataLoader.*got \(\d+, 5\)",
            size,
        )


def test_losses_inside_the_model_that_see_only_a_shard():
    class WithLoss(nn.Module):
        def __init__(self, options):
            self.net, self.options = network(), options

        def forward(self, x, y):
            return F.cross_entropy(self.net(x), y.numpy(), **self.options)

    for options, what in (({"weight": np.arange(1.0, 5)}, "class weights"), ({"reduction": "sum"}, "reduction='sum'")):

        def work(options=options):
            sx.init(virtual_shards=8)
            model = sx.DistributedDataParallel(WithLoss(options))
            for batch in DataLoader(Dataset(*data(20)), batch_size=20):
                model(*batch)

        on_all_ranks(work, RuntimeError, f"a loss with {what}.* can't be computed inside the model")


def test_results_without_rows():
    class Pooled(nn.Module):
        def __init__(self):
            self.net = network()

        def forward(self, x):
            return self.net(x).mean(axis=0)

    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(Pooled())
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20):
            model(xb)

    on_all_ranks(work, RuntimeError, "each result of a model must have the rows of its batch as first dimension")


def test_a_loader_that_shares_nothing_out():
    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(network())
        for xb, _ in DataLoader(Dataset(*data(20)), batch_size=20, shard=False):
            model(xb)

    on_all_ranks(work, RuntimeError, "a batch must come from a DataLoader")
