"""What must be the same on any number of ranks, as checks that every rank of a communicator runs.

Each rank computes the whole batch with a bare copy of the model too: what it compares itself with.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset, shard_bounds

TOLERANCE = 1e-12


def network(features: int = 5, classes: int = 4) -> nn.Module:
    """The same float64 network on every rank."""
    sx.manual_seed(7)
    model = nn.Sequential(nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, classes))
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    return model


def data(rows: int, features: int = 5, classes: int = 4) -> tuple[Any, Any]:
    """The same samples and labels on every rank."""
    numbers = np.random.default_rng(rows)
    return numbers.standard_normal((rows, features)), numbers.integers(0, classes, rows)


def gradients(model: nn.Module) -> dict[str, Any]:
    return {name: None if p.grad is None else p.grad.numpy().copy() for name, p in model.named_parameters()}


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if value is None:
            assert got[name] is None, f"{name} has a gradient"
            continue
        assert got[name] is not None, f"{name} has no gradient"
        largest = np.abs(np.asarray(got[name]) - np.asarray(value)).max(initial=0)
        assert largest <= TOLERANCE, f"{name} differs by {largest}"


def global_gradient(*numbers: int) -> None:
    """Shards as the loader cuts them, for any number of rows: the gradient is that of the mean over all rows."""
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    for rows in numbers:
        x, y = data(rows)
        for model in (alone, wrapped):
            model.zero_grad()
        nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
        for xb, yb in DataLoader(Dataset(x, y), batch_size=rows):
            assert xb.rows[2] == rows
            nn.CrossEntropyLoss()(wrapped(xb), yb).backward()
        assert_same(gradients(wrapped), gradients(alone))


def untagged_shards(rows: int) -> None:
    """Shards that the user cut, as unevenly as can be: all rows but one per other rank on the last rank."""
    x, y = data(rows)
    rank, size = sx.rank(), sx.size()
    start, stop = min(rank, rows), (rows if rank == size - 1 else min(rank + 1, rows))
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
    nn.CrossEntropyLoss()(wrapped(sx.tensor(x[start:stop])), y[start:stop]).backward()
    assert_same(gradients(wrapped), gradients(alone))


def penalty_and_second_backward(rows: int) -> None:
    """A penalty on the weights counts once, and a second backward adds."""
    x, y = data(rows)
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    for model, xb, yb in ((alone, x, y), (wrapped, x[start:stop], y[start:stop])):
        for strength in (0.5, 0.25):
            penalty = sum((p * p).sum() for p in model.parameters()) * strength
            (nn.CrossEntropyLoss()(model(sx.tensor(xb)), yb) + penalty).backward()
    assert_same(gradients(wrapped), gradients(alone))


class _Branches(nn.Module):
    """A model in which a rank may use one head, the other, or none of them."""

    def __init__(self) -> None:
        self.body, self.heads = network(5, 6), [network(6, 4), network(6, 4)]
        self.never = network(2, 2)

    def forward(self, x: Any, head: int) -> Any:
        return self.heads[head](self.body(x))


def parameters_that_some_ranks_use(rows: int) -> None:
    """A head that some ranks used gets the sum over those; one that none used has no gradient and does not move."""
    x, y = data(rows)
    alone, bare = _Branches(), _Branches()
    wrapped = sx.DistributedDataParallel(bare)
    models = (alone, wrapped)
    optimizers = [optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1) for m in models]
    # In step 0 even ranks use head 0 and odd ranks head 1; in step 1 all use head 0.
    for step in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        total = None
        for rank in range(sx.size()):
            start, stop = shard_bounds(rows, rank, sx.size())
            head = rank % 2 if step == 0 else 0
            part = nn.CrossEntropyLoss()(alone(sx.tensor(x[start:stop]), head), y[start:stop])
            part = part * ((stop - start) / rows)
            total = part if total is None else total + part
            if rank == sx.rank():
                nn.CrossEntropyLoss()(wrapped(sx.tensor(x[start:stop]), head), y[start:stop]).backward()
        total.backward()
        if step == 1:
            used = gradients(alone)
            assert used["heads.1.0.W"] is None
        assert used_by_any(gradients(alone)) == used_by_any(gradients(wrapped))
        assert_same(gradients(wrapped), gradients(alone))
        for optimizer in optimizers:
            optimizer.step()
        assert_same(wrapped.state_dict(), alone.state_dict())


def used_by_any(found: dict[str, Any]) -> set[str]:
    return {name for name, value in found.items() if value is not None}


def training(rows: int) -> None:
    """Five epochs with momentum and decay end at the weights of one process, and on all ranks alike."""
    x, y = data(rows)
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    loaders = [DataLoader(Dataset(x, y), batch_size=7, shuffle=True, shard=shard) for shard in (False, True)]
    for model, loader in zip((alone, wrapped), loaders, strict=True):
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(5):
            for xb, yb in loader:
                optimizer.zero_grad()
                nn.CrossEntropyLoss()(model(xb), yb).backward()
                optimizer.step()
    assert_same(wrapped.state_dict(), alone.state_dict())
    for value in wrapped.state_dict().values():
        gathered = sx.all_gather(value)
        assert all(np.array_equal(other, value) for other in gathered)


LOSSES: list[tuple[nn.Module, bool]] = [
    (nn.CrossEntropyLoss(weight=np.array([0.5, 2.0, 0.0, 1.0])), False),
    (nn.CrossEntropyLoss(ignore_index=1), False),
    (nn.CrossEntropyLoss(weight=np.array([0.5, 2.0, 0.1, 1.0]), ignore_index=2, label_smoothing=0.1), False),
    (nn.CrossEntropyLoss(reduction="sum"), False),
    (nn.MSELoss(), True),
    (nn.BCEWithLogitsLoss(pos_weight=np.array([1.0, 2.0, 3.0, 0.5])), True),
    (nn.MSELoss(reduction="sum"), True),
]


def losses_with_denominators_of_their_own(rows: int) -> None:
    """Class weights, ignored labels and sums are exact too, alone and added to a plain mean; also where no label
    of a rank, or none at all, counts."""
    x, labels = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    for y in (labels, np.full(rows, 1), np.where(np.arange(rows) < rows // 2, 1, labels)):
        for criterion, dense in LOSSES:
            target = np.eye(4)[y] if dense else y
            for model, part in ((alone, slice(None)), (wrapped, slice(start, stop))):
                model.zero_grad()
                out = model(sx.tensor(x[part]))
                (criterion(out, target[part]) + nn.CrossEntropyLoss()(out, y[part])).backward()
            assert_same(gradients(wrapped), gradients(alone))


class _Normalised(nn.Module):
    """A model whose layers see the batch: batch norm, whose statistics are the batch's, and dropout, drawn by row."""

    def __init__(self) -> None:
        sx.manual_seed(7)
        self.layers = nn.Sequential(
            nn.Linear(5, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 4),
        ).double()

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def layers_that_see_the_batch(rows: int) -> None:
    """Batch norm normalises by the global batch, forward and backward, and dropout drops the same of every row."""
    if rows == 1:
        return  # one value per channel has no variance: an error, as on one process
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    alone = _Normalised()
    wrapped = sx.DistributedDataParallel(_Normalised())
    for model, part in ((alone, slice(None)), (wrapped, slice(start, stop))):
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(sx.tensor(x[part])), y[part]).backward()
            optimizer.step()
    assert_same(wrapped.state_dict(), alone.state_dict())


def gradient_at_the_logits(rows: int) -> None:
    """What reaches the logits is (softmax - one-hot) / N with N the global number of rows."""
    x, y = data(rows)
    wrapped = sx.DistributedDataParallel(network())
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    logits = wrapped(sx.tensor(x[start:stop]))
    logits.retain_grad()
    nn.CrossEntropyLoss()(logits, y[start:stop]).backward()
    exps = np.exp(logits.data - logits.data.max(axis=1, keepdims=True, initial=-np.inf))
    wanted = (exps / exps.sum(axis=1, keepdims=True) - np.eye(4)[y[start:stop]]) / rows
    assert np.abs(logits.grad.numpy() - wanted).max(initial=0) <= TOLERANCE


def optimizer_before_wrapping(rows: int) -> None:
    """The optimizer may be made before the model is wrapped."""
    x, y = data(rows)
    bare = network()
    early = optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    wrapped = sx.DistributedDataParallel(bare)
    reference = sx.DistributedDataParallel(network())
    late = optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for model, optimizer in ((wrapped, early), (reference, late)):
        for _ in range(3):
            start, stop = shard_bounds(rows, sx.rank(), sx.size())
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(sx.tensor(x[start:stop])), y[start:stop]).backward()
            optimizer.step()
    assert_same(wrapped.state_dict(), reference.state_dict())


def two_models_in_one_backward(rows: int) -> None:
    """A loss may run through two wrapped models."""
    x, y = data(rows)
    first, second = network(5, 6), network(6, 4)
    wrapped = [sx.DistributedDataParallel(network(5, 6)), sx.DistributedDataParallel(network(6, 4))]
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    nn.CrossEntropyLoss()(second(first(sx.tensor(x))), y).backward()
    nn.CrossEntropyLoss()(wrapped[1](wrapped[0](sx.tensor(x[start:stop]))), y[start:stop]).backward()
    assert_same(gradients(wrapped[0]), gradients(first))
    assert_same(gradients(wrapped[1]), gradients(second))


def a_forward_of_another_batch_in_between(rows: int) -> None:
    """A backward belongs to the rows of its own forward, whatever was computed since."""
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    alone, wrapped, other = network(), sx.DistributedDataParallel(network()), sx.DistributedDataParallel(network())
    nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
    loss = nn.CrossEntropyLoss()(wrapped(sx.tensor(x[start:stop])), y[start:stop])
    first_only = x[: 1 if sx.rank() == 0 else 0]
    other(sx.tensor(first_only))
    with sx.no_grad():
        wrapped(sx.tensor(first_only))
    loss.backward()
    assert_same(gradients(wrapped), gradients(alone))


def batches_that_are_shared_out_differently(rows: int) -> None:
    """One loss of two such batches: each mean is over its own global batch."""
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    first = slice(0, 1 if sx.rank() == 0 else 0)
    criterion = nn.CrossEntropyLoss()
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    (criterion(alone(sx.tensor(x)), y) + criterion(alone(sx.tensor(x[:1])), y[:1])).backward()
    losses = [criterion(wrapped(sx.tensor(x[part])), y[part]) for part in (slice(start, stop), first)]
    (losses[0] + losses[1]).backward()
    assert_same(gradients(wrapped), gradients(alone))


def a_batch_that_all_ranks_hold(rows: int) -> None:
    """It counts once, however many ranks compute it, alone and beside rows of another batch."""
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    criterion = nn.CrossEntropyLoss()
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    criterion(alone(sx.tensor(x)), y).backward()
    loss = criterion(wrapped(sx.replicated(x)), y)
    loss.backward()
    assert_same(gradients(wrapped), gradients(alone))
    (criterion(alone(sx.tensor(x)), y) * 2).backward()
    own = criterion(wrapped(sx.tensor(x[start:stop])), y[start:stop])
    (own + criterion(wrapped(sx.replicated(x)), y)).backward()
    assert_same(gradients(wrapped), gradients(alone))


def hooks_see_the_sum(rows: int) -> None:
    """A hook on a parameter gets the gradient of the global batch, also where this rank has no rows."""
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    seen: list[Any] = []
    for model, part in ((alone, slice(None)), (wrapped, slice(start, stop))):
        weight = model.parameters()[0]
        weight.register_hook(lambda g: seen.append(np.array(g)))
        weight.register_hook(lambda g: np.clip(np.asarray(g), -0.01, 0.01))
        for _ in range(2):  # the second backward adds
            nn.CrossEntropyLoss()(model(sx.tensor(x[part])), y[part]).backward()
    assert len(seen) == 4
    assert all(np.abs(a - b).max() <= TOLERANCE for a, b in zip(seen[:2], seen[2:], strict=True))
    assert_same(gradients(wrapped), gradients(alone))


def a_backward_that_failed(rows: int) -> None:
    """What a failed backward has left behind is not in the next gradient."""
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    alone, wrapped = _Branches(), sx.DistributedDataParallel(_Branches())
    logits = wrapped(sx.tensor(x[start:stop]), 1)
    hidden = logits * 1.0

    def fail(g: Any) -> None:
        raise ArithmeticError("on purpose")

    first = wrapped.module.body(sx.tensor(x[start:stop]))
    first.register_hook(fail)
    with pytest.raises(ArithmeticError):
        (nn.CrossEntropyLoss()(hidden, y[start:stop]) + wrapped.module.heads[0](first).sum()).backward()
    wrapped.zero_grad()
    nn.CrossEntropyLoss()(alone(sx.tensor(x), 0), y).backward()
    nn.CrossEntropyLoss()(wrapped(sx.tensor(x[start:stop]), 0), y[start:stop]).backward()
    assert_same(gradients(wrapped), gradients(alone))


def a_batch_behind_another_argument(rows: int) -> None:
    """The global batch is found by the loader's mark, whatever comes before it among the arguments."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            self.network = network()

        def forward(self, scale: Any, x: Any) -> Any:
            return self.network(x * scale)

    x, y = data(rows)
    alone, wrapped = Scaled(), sx.DistributedDataParallel(Scaled())
    scale = np.linspace(0.5, 1.5, 5)
    nn.CrossEntropyLoss()(alone(sx.tensor(scale), sx.tensor(x)), y).backward()
    for xb, yb in DataLoader(Dataset(x, y), batch_size=rows):
        nn.CrossEntropyLoss()(wrapped(sx.tensor(scale), xb), yb).backward()
    assert_same(gradients(wrapped), gradients(alone))


class _Samples:
    """A data set of the user's own: one sample at a time, as NumPy arrays."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


def data_sets_of_the_users_own(rows: int) -> None:
    """Samples one by one, batches made by a function that returns arrays, and transforms: also on empty shards."""
    x, y = data(rows)
    alone = network()
    nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()

    def stacked(samples: list[Any]) -> Any:
        return np.stack([s[0] for s in samples]), np.array([s[1] for s in samples])

    for loader in (
        DataLoader(_Samples(x, y), batch_size=rows),
        DataLoader(_Samples(x, y), batch_size=rows, collate_fn=stacked),
        DataLoader(Dataset(x[:, ::-1], y, transform=lambda row: row[::-1]), batch_size=rows),
    ):
        wrapped = sx.DistributedDataParallel(network())
        for xb, yb in loader:
            assert np.asarray(xb).dtype == np.float64
            nn.CrossEntropyLoss()(
                wrapped(sx.tensor(np.asarray(xb)) if isinstance(xb, np.ndarray) else xb), yb
            ).backward()
        assert_same(gradients(wrapped), gradients(alone))


def numbers_of_several_types(rows: int) -> None:
    """Collectives on Python numbers do not mix bytes."""
    number = rows if sx.rank() == 0 else 0.5
    assert sx.all_reduce(number) == rows + 0.5 * (sx.size() - 1)
    assert sx.all_reduce(number, "max") == max(rows, 0.5 * (sx.size() > 1))
    assert sx.all_gather(number) == [rows, *[0.5] * (sx.size() - 1)]
    assert sx.broadcast(number) == rows


def a_model_that_some_ranks_have_dropped(rows: int) -> None:
    """Models that are gone do not take part, whenever each rank's garbage collector notices."""
    x, y = data(rows)
    for _ in range(3):
        left = sx.DistributedDataParallel(network())
        nn.CrossEntropyLoss()(left(sx.tensor(x)), y).backward()
        del left
    if sx.rank() == sx.size() - 1:
        gc.collect()
    global_gradient(rows)


def a_bare_model_is_local(rows: int) -> None:
    """A model that is not wrapped sends nothing: one rank may train one alone."""
    sx.DistributedDataParallel(network())
    if sx.rank() == sx.size() - 1:
        x, y = data(rows)
        alone = network()
        nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
        assert alone.parameters()[0].grad is not None


CHECKS: list[Callable[[int], None]] = [
    global_gradient,
    untagged_shards,
    penalty_and_second_backward,
    parameters_that_some_ranks_use,
    training,
    losses_with_denominators_of_their_own,
    layers_that_see_the_batch,
    gradient_at_the_logits,
    optimizer_before_wrapping,
    two_models_in_one_backward,
    a_forward_of_another_batch_in_between,
    batches_that_are_shared_out_differently,
    a_batch_that_all_ranks_hold,
    hooks_see_the_sum,
    a_backward_that_failed,
    a_batch_behind_another_argument,
    data_sets_of_the_users_own,
    numbers_of_several_types,
    a_model_that_some_ranks_have_dropped,
    a_bare_model_is_local,
]


def every_rank_rule(rows: int) -> None:
    """The negative control: the mean over ranks of local means, which others compute, is another gradient."""
    x, y = data(rows)
    alone, local = network(), network()
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
    nn.CrossEntropyLoss()(local(sx.tensor(x[start:stop])), y[start:stop]).backward()
    mean_of_means = {k: sx.all_reduce(v.copy()) / sx.size() for k, v in gradients(local).items()}
    differs = max(np.abs(mean_of_means[k] - v).max() for k, v in gradients(alone).items())
    assert differs > 1e6 * TOLERANCE
