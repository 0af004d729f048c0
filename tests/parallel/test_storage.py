"""Parameters, gradients and optimizer state of which a host has one copy, and what must not be done to them."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core.flat import leaf_of
from tests.support.parallel import exactness
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import assert_same, gradients, network
from tests.support.parallel.storage import CHECKS, backward, edits, remembers

LAYOUTS = [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2), (3, 2)]  # ranks, hosts


def address(array):
    return array.__array_interface__["data"][0]


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


# -- where it lies


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("storage", ["shared", "replicated"])
def test_one_copy_per_host(size, hosts, storage):
    def work():
        model = sx.DistributedDataParallel(network(), storage=storage)
        optimizer = optim.Adam(model.parameters())
        train(model, optimizer)
        found = []
        for parameter in model.parameters():
            flat = leaf_of(parameter).flat
            assert np.shares_memory(parameter.data, flat.data)
            assert np.shares_memory(parameter.grad.data, flat.grad)
            assert parameter.data.flags.writeable == parameter.grad.data.flags.writeable == (storage == "replicated")
            found += [address(parameter.data), address(parameter.grad.data)]
        found += [address(array) for arrays in optimizer._states[0].buffers.values() for array in arrays]
        return model.comm.host, found

    by_host = {}
    for host, found in run_threads(work, size, hosts=hosts):
        by_host.setdefault(host, set()).add(tuple(found))
    copies = [len(found) for found in by_host.values()]
    assert copies == [1] * hosts if storage == "shared" else sum(copies) == size


@pytest.mark.parametrize("check", exactness.CHECKS, ids=lambda check: check.__name__)
def test_replicated_is_the_same(check, monkeypatch):
    monkeypatch.setitem(sx.DistributedDataParallel.__init__.__wrapped__.__kwdefaults__, "storage", "replicated")
    for rows in (2, 17):
        run_threads(check, 3, args=(rows,))


# -- what must not be done


CHANGES = {
    "data": lambda p: setattr(p, "data", np.zeros(p.shape)),
    "in place": lambda p: p.zero_(),
    "minus": lambda p: p.sub_(1.0),
    "detached": lambda p: p.detach().fill_(0),
    "entry": lambda p: p.__setitem__(0, 0.0),
    "init": lambda p: nn.init.zeros_(p),
    "vector": lambda p: nn.utils.vector_to_parameters(np.zeros(p.numel), [p]),
    "grad": lambda p: setattr(p, "grad", np.zeros(p.shape)),
    "grad in place": lambda p: p.grad.mul_(2),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_by_hand_is_refused(how):
    def work():
        model = sx.DistributedDataParallel(network())
        backward(model)
        before = {name: p.data.copy() for name, p in model.named_parameters()}, gradients(model)
        try:
            with sx.no_grad():
                CHANGES[how](next(iter(model.parameters())))
        finally:
            assert_same({name: p.data for name, p in model.named_parameters()}, before[0])
            assert_same(gradients(model), before[1])

    on_all_ranks(work, RuntimeError, "read-only.*model.edit.*hooks.*replicated", 2)
    on_all_ranks(work, RuntimeError, "read-only", 1)


def test_a_change_by_hand_where_each_rank_has_a_copy():
    def work():
        model = sx.DistributedDataParallel(network(), storage="replicated")
        backward(model)
        with sx.no_grad():
            for change in CHANGES.values():
                change(next(iter(model.parameters())))

    run_threads(work, 2)


def test_wrong_storage():
    with pytest.raises(ValueError, match="storage must be 'shared' or 'replicated', got 'private'"):
        sx.DistributedDataParallel(nn.Linear(2, 2), storage="private")
    on_all_ranks(
        lambda: sx.DistributedDataParallel(nn.Linear(2, 2), storage=["shared", "replicated"][sx.rank()]),
        ValueError,
        "storage must be the same on every rank: rank 0 has 'shared', rank 1 has 'replicated'",
        2,
    )


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (2, 2), (4, 2)])
def test_zero_grad_on_one_rank_only(size, hosts):
    def work():
        model = sx.DistributedDataParallel(network())
        backward(model)
        if sx.rank() == 0:
            model.zero_grad()
        backward(model)

    on_all_ranks(work, RuntimeError, "only one has called zero_grad", size, hosts)


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("what", ["no gradient", "hook"])
def test_a_parameter_whose_gradient_is_another_matter_on_one_rank(size, hosts, what):
    """Each rank adds its part of the sum: it would be added to something in some parts only."""

    def work():
        model = sx.DistributedDataParallel(network())
        backward(model)
        last = list(model.parameters())[-1]
        if sx.rank() == 1 and what == "hook":
            last.register_hook(lambda g: 2 * g)
        elif sx.rank() == 1:
            last.grad = None
        backward(model)

    on_all_ranks(work, RuntimeError, "set a parameter's gradient to None, or registered a hook", size, hosts)


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (4, 2)])
def test_a_rank_that_does_something_else(size, hosts):
    def work():
        model = sx.DistributedDataParallel(network())
        optimizer = optim.SGD(model.parameters())
        backward(model)
        if sx.rank() == 1:
            nn.utils.clip_grad_value_(model.parameters(), 1e-9)
        optimizer.step()
        backward(model)

    wanted = r"rank 0 has come to optimizer.step at \S+:\d+, rank 1 has come to clip_grad_value_ at \S+:\d+"
    if hosts > 1:  # the other host has gone on to the next batch
        wanted = "every rank must make the same calls"
    with pytest.raises(RuntimeError, match=wanted):
        run_threads(work, size, hosts=hosts)


OPTIONS = {
    "optimizer.step": lambda model, mine: optim.SGD(model.parameters(), lr=[0.1, 0.2][mine]).step(),
    "clip_grad_norm_": lambda model, mine: nn.utils.clip_grad_norm_(model.parameters(), [1e-3, 2e-3][mine]),
    "clip_grad_value_": lambda model, mine: nn.utils.clip_grad_value_(model.parameters(), [1e-3, 2e-3][mine]),
}


@pytest.mark.parametrize("call", OPTIONS)
def test_a_rank_with_other_options(call):
    """Which nobody could see afterwards, because each rank changes another part of the one copy."""

    def work():
        model = sx.DistributedDataParallel(network())
        backward(model)
        before = [array.copy() for p in model.parameters() for array in (p.data, p.grad.data)]
        try:
            OPTIONS[call](model, sx.rank() == 2)
        finally:
            after = [array for p in model.parameters() for array in (p.data, p.grad.data)]
            assert all(map(np.array_equal, before, after))

    wanted = rf"rank 0 has come to {call} at \S+:\d+, rank 2 has come to {call} with other numbers.* at \S+:\d+"
    on_all_ranks(work, RuntimeError, wanted, 3)


def test_an_option_that_changes_inside_a_list():
    def work():
        model = sx.DistributedDataParallel(network())
        optimizer = optim.Adam(model.parameters(), betas=[0.9, 0.99])
        train(model, optimizer, 2)
        optimizer.param_groups[0]["betas"][0] -= 0.1 * sx.rank()
        train(model, optimizer)

    on_all_ranks(work, RuntimeError, "come to optimizer.step with other numbers", 2)


def test_options_may_change():
    def work():
        model = sx.DistributedDataParallel(network())
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        for lr in (0.1, np.float32(0.5), 1):
            optimizer.param_groups[0]["lr"] = float(lr) if sx.rank() else lr
            train(model, optimizer)
        optimizer.param_groups[0]["betas"] = (0.8, 0.9) if sx.rank() else (0.7, 0.9)
        train(model, optimizer)

    on_all_ranks(work, RuntimeError, "come to optimizer.step with other numbers", 2)


# -- edit


def test_what_can_not_be_done_inside_edit():
    model = sx.DistributedDataParallel(nn.Linear(3, 2))
    optimizer = optim.SGD(model.parameters())
    before = model.module.W.data.copy()
    with pytest.raises(RuntimeError, match="being edited already"), model.edit(), model.edit():
        pass
    nn.CrossEntropyLoss()(model(sx.tensor(np.ones((2, 3), np.float32))), np.zeros(2, int)).backward()
    with pytest.raises(RuntimeError, match=r"step after the end of `with model.edit\(\):`"), model.edit():
        optimizer.step()
    assert np.array_equal(model.module.W.data, before)
    optimizer.step()
    assert not np.array_equal(model.module.W.data, before)


# -- gradients and optimizers


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_storage(size, hosts, check):
    run_threads(check, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_edit_of_copies(size, hosts):
    run_threads(edits, size, args=("replicated",), hosts=hosts)


@pytest.mark.parametrize("made", ["before", "stepped before", "after"])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.RMSprop])
def test_optimizer_state(made, kind):
    for size, hosts in ((2, 1), (3, 1), (4, 2)):
        run_threads(remembers, size, args=(made, kind), hosts=hosts)


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_backward_that_was_interrupted_leaves_nothing(hosts):
    """Also of a gradient that was written already, but not noted: which this rank's next backward does not reach."""

    class Interrupt(BaseException):
        pass

    class Either(nn.Module):
        def __init__(self):
            self.layers, self.used = [nn.Linear(5, 4), nn.Linear(5, 4)], 0

        def forward(self, x):
            return self.layers[self.used](x)

    def interrupted(rule):
        def run(g, out):
            rule(g, out)
            raise Interrupt

        return run

    def work():
        found = []
        for interrupt in (False, True):
            sx.manual_seed(3)
            model = sx.DistributedDataParallel(Either())
            if interrupt:
                model.module.used = 1
                x = sx.tensor(np.ones((2, 5), np.float32) + sx.rank())
                loss = nn.CrossEntropyLoss()(model(x), np.zeros(2, int))
                node = loss.origin.edges[0]
                assert node.op.name == "linear"
                node.rules = [rule and interrupted(rule) for rule in node.rules]
                with pytest.raises(Interrupt):
                    loss.backward()
            model.module.used = sx.rank() % 2
            x = sx.tensor(np.ones((2, 5), np.float32) * (2 + sx.rank()))
            nn.CrossEntropyLoss()(model(x), np.zeros(2, int)).backward()
            found.append(gradients(model))
        assert_same(found[1], found[0])

    run_threads(work, 2, hosts=hosts)
