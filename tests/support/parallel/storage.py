"""What every rank does with a wrapped model whose storage is shared, or not: called on all ranks."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import shared_memory
from sorix_dist.utils.data.sampler import shard_bounds
from tests.support.parallel.exactness import assert_same, data, gradients, network


def backward(model, rows=17):
    x, y = data(rows)
    start, stop = shard_bounds(rows, sx.rank(), sx.size())
    nn.CrossEntropyLoss()(model(sx.tensor(x[start:stop])), y[start:stop]).backward()


def edits(storage="shared"):
    """Inside every rank changes a copy of its own; at the end all have rank 0's parameters and buffers."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = sx.DistributedDataParallel(module, storage=storage)
    with model.edit():
        for parameter in model.parameters():
            nn.init.constant_(parameter, sx.rank() + 2.0)
            parameter.data[0] = sx.rank()
        module[1].running_mean.fill_(sx.rank() + 7.0)
        model(sx.tensor(np.ones((2, 4), np.float32)))
        assert module[0].W.data[1, 0] == sx.rank() + 2
    assert module[0].W.data[1, 0] == 2
    assert module[0].b.data.reshape(-1)[0] == 0
    assert (module[1].running_mean.data > 1).all()
    sx.assert_replicas_equal(model)

    def broken():
        with model.edit():
            module[0].W.data[...] = 9
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert module[0].W.data[1, 0] == 2
    with model.edit():
        module[0].W.data[...] = 5
    assert (module[0].W.data == 5).all()
    with model.edit():
        for parameter in model.parameters():
            parameter -= sx.ones_like(parameter)
    assert (module[0].W.data == 4).all()


def loads():
    """Also inside edit: what rank 0 has loaded counts."""
    model = sx.DistributedDataParallel(network())
    state = {name: np.full(value.shape, sx.rank() + 3.0) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert all((p.data == 3).all() for p in model.parameters())
    with model.edit():
        model.load_state_dict({name: value + 1 for name, value in state.items()})
    assert all((p.data == 4).all() for p in model.parameters())
    with pytest.raises(ValueError, match="lacks"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"read-only.*model\.edit"):
        model.module.load_state_dict(state)
    assert all((p.data == 4).all() for p in model.parameters())


def remembers(made="after", kind=optim.Adam):
    """Every rank sees the whole state, which is that of one process; it can be loaded, and goes on."""
    options = {"momentum": 0.9} if kind is optim.SGD else {}
    finals, states = [], []
    for wrap in (lambda module: module, sx.DistributedDataParallel):
        sx.manual_seed(3)
        module = network()
        optimizer = None if made == "after" else kind(module.parameters(), lr=0.01, **options)
        if made == "stepped before":
            x, y = data(17)
            nn.CrossEntropyLoss()(module(sx.tensor(x)), y).backward()
            optimizer.step()
        model = wrap(module)
        optimizer = optimizer or kind(model.parameters(), lr=0.01, **options)
        whole = wrap is not sx.DistributedDataParallel

        def steps(count, model=model, optimizer=optimizer, whole=whole):
            for _ in range(count):
                optimizer.zero_grad()
                if whole:
                    x, y = data(17)
                    nn.CrossEntropyLoss()(model(sx.tensor(x)), y).backward()
                else:
                    backward(model)
                optimizer.step()

        steps(2)
        state, weights = optimizer.state_dict(), copy.deepcopy(model.state_dict())
        steps(2)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        steps(2)
        finals.append({name: p.data.copy() for name, p in model.named_parameters()})
        states.append(optimizer.state_dict()["state"])
    assert_same(finals[1], finals[0])
    for number, entry in states[0].items():
        for name, value in entry.items():
            assert np.allclose(np.asarray(states[1][number][name]), np.asarray(value), rtol=1e-9, atol=1e-12), name


def changes_gradients():
    """Clipping, zeros instead of None, second backwards and hooks: each rank changes its part, once."""
    alone, wrapped = network(), sx.DistributedDataParallel(network())
    x, y = data(17)

    def whole():
        nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()

    for model, run in ((alone, whole), (wrapped, lambda: backward(wrapped))):
        run()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        model.first = norm.item(), gradients(model)
        run()
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        model.second = gradients(model)
        model.zero_grad(set_to_none=False)
        assert all((p.grad.data == 0).all() for p in model.parameters())
        handle = next(iter(model.parameters())).register_hook(lambda g: g * 3)
        run()
        model.third = gradients(model)
        handle.remove()
        model.zero_grad()
        handles = [p.register_hook(lambda g: g * 3) for p in model.parameters()]
        run()
        run()
        model.all_hooked = gradients(model)
        for handle in handles:
            handle.remove()
        model.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        run()
        model.fourth = gradients(model)
    assert abs(wrapped.first[0] - alone.first[0]) < 1e-12
    for mine, theirs in (
        (wrapped.first[1], alone.first[1]),
        (wrapped.second, alone.second),
        (wrapped.third, alone.third),
        (wrapped.fourth, alone.fourth),
        (wrapped.all_hooked, alone.all_hooked),
    ):
        assert_same(mine, theirs)


def gives_memory_back():
    """Windows of models that are gone are closed, unless there still is an array in them."""
    first = None
    for _ in range(12):
        model = sx.DistributedDataParallel(nn.Linear(300, 1000))  # 1.2 MB of parameters
        optimizer = optim.SGD(model.parameters(), momentum=0.9)
        nn.CrossEntropyLoss()(model(sx.tensor(np.ones((2, 300), np.float32))), np.zeros(2, int)).backward()
        optimizer.step()
        first = model.module.W.data if first is None else first
        assert sum(shared_memory.live.values()) < 80 << 20
    assert len(shared_memory.live) < 12 * 4
    assert np.isfinite(first).all()


CHECKS = [edits, loads, remembers, changes_gradients, gives_memory_back]
