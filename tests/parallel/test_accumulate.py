"""accumulate and no_sync: what counts, when it is summed, and what is refused meanwhile."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import shard_bounds
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import assert_same, data, gradients, network

pytestmark = pytest.mark.filterwarnings("ignore:every rank was given the same")
SIZES = [1, 2, 3, 4]
ROWS = [7, 1, 12]
WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0])


def pieces_of_this_rank():
    """Whole batches, and this rank's rows of them."""
    wholes = [data(rows) for rows in ROWS]
    bounds = [shard_bounds(rows, sx.rank(), sx.size()) for rows in ROWS]
    return wholes, [(sx.tensor(x[a:b]), y[a:b]) for (x, y), (a, b) in zip(wholes, bounds, strict=True)]


def whole_gradients(batches, loss=F.cross_entropy):
    alone = network()
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    loss(alone(sx.tensor(x)), y).backward()
    return gradients(alone)


def the_next_backward_is_right(model, piece):
    model.zero_grad()
    F.cross_entropy(model(piece[1][0][0]), piece[1][0][1]).backward()
    assert_same(gradients(model), whole_gradients(piece[0][:1]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["break", "exception", "exception in a backward", "close"])
def test_left_early_nothing_counts(way, size):
    def work():
        model = sx.DistributedDataParallel(network())
        pieces = pieces_of_this_rank()

        def leave():
            for i, (xb, yb) in enumerate(model.accumulate(pieces[1])):
                loss = F.cross_entropy(model(xb), yb)
                if way == "exception in a backward" and i == 1:
                    scores = model(xb)
                    scores.register_hook(lambda g: 1 / 0)
                    F.cross_entropy(scores, yb).backward()
                loss.backward()
                if way == "break" and i == 1:
                    break
                if way == "exception" and i == 1:
                    raise ArithmeticError

        if way == "close":
            generator = model.accumulate(pieces[1])
            xb, yb = next(generator)
            F.cross_entropy(model(xb), yb).backward()
            generator.close()
        elif way == "break":
            leave()
        else:
            with pytest.raises(ArithmeticError):
                leave()
        assert all(p.grad is None for p in model.parameters())
        the_next_backward_is_right(model, pieces)
        # And gradients from before are still there.
        before = gradients(model)
        for xb, yb in model.accumulate(pieces[1]):
            F.cross_entropy(model(xb), yb).backward()
            break
        assert_same(gradients(model), before)

    run_threads(work, size)


@pytest.mark.parametrize("size", SIZES)
def test_several_losses_of_a_piece(size):
    """Two backwards of one piece are those of two losses of the whole batch."""

    def work():
        wholes, mine = pieces_of_this_rank()
        model, alone = sx.DistributedDataParallel(network()), network()
        for xb, yb in model.accumulate(mine):
            scores = model(xb)
            F.cross_entropy(scores, yb).backward(retain_graph=True)
            (scores * scores).mean().backward()
        x, y = (np.concatenate(part) for part in zip(*wholes, strict=True))
        scores = alone(sx.tensor(x))
        (F.cross_entropy(scores, y) + (scores * scores).mean()).backward()
        assert_same(gradients(model), gradients(alone))

    run_threads(work, size)


@pytest.mark.parametrize("size", SIZES)
def test_accumulate_adds_to_what_is_there_and_sums_once(size):
    def work():
        wholes, mine = pieces_of_this_rank()
        model = sx.DistributedDataParallel(network())
        for time in (1, 2):
            for xb, yb in model.accumulate(mine):
                F.cross_entropy(model(xb), yb).backward()
                assert (model.parameters()[0].grad is None) == (time == 1)  # nothing of it yet
            wanted = {name: time * g for name, g in whole_gradients(wholes).items()}
            assert_same(gradients(model), wanted)
        model.zero_grad()
        assert list(model.accumulate([])) == []
        assert model.parameters()[0].grad is None

    run_threads(work, size)


@pytest.mark.parametrize("size", SIZES)
def test_losses_that_have_no_common_denominator(size):
    plain, weighted = F.cross_entropy, lambda s, y: F.cross_entropy(s, y, WEIGHTS)
    ignoring, total = (
        lambda s, y: F.cross_entropy(s, y, ignore_index=1),
        lambda s, y: F.cross_entropy(s, y, reduction="sum"),
    )

    def run(*losses, together=False):
        def work():
            model = sx.DistributedDataParallel(network())
            x, y = data(12)
            pieces = [(sx.tensor(x), y), (sx.tensor(x), y)]
            for i, (xb, yb) in enumerate(model.accumulate(pieces)):
                scores = model(xb)
                if together:
                    (losses[0](scores, yb) + losses[1](scores, yb)).backward()
                else:
                    losses[i](scores, yb).backward()

        return work

    for first, second in ((weighted, total), (total, plain)):
        on_all_ranks(run(first, second), RuntimeError, "a sum in one piece and a mean in another", size)
        on_all_ranks(run(first, second, together=True), RuntimeError, "the sum of several with different ones", size)
    for first, second in ((plain, weighted), (weighted, ignoring)):
        on_all_ranks(run(first, second, together=True), RuntimeError, "the sum of several with different ones", size)
    for rooted in (lambda s, y: plain(s, y).sqrt(), lambda s, y: s.var(axis=0).sum().sqrt()):
        on_all_ranks(run(rooted, rooted), RuntimeError, "one that is the same on every rank.*no_sync", size)
    for beside in (
        lambda s, y: s.square().mean().sqrt(),
        lambda s, y: s.square().mean() * plain(s, y),
        lambda s, y: s.mean(axis=0).square().sum(),
        lambda s, y: s.max(),
        lambda s, y: s.square().mean().detach().sqrt() * s.sum(axis=0).square().mean().sqrt(),
    ):
        on_all_ranks(run(plain, beside, together=True), RuntimeError, "beside a root or a product of others", size)


@pytest.mark.parametrize("size", SIZES)
def test_a_penalty_of_weights_beside_a_loss_counts_once(size):
    def work():
        wholes, mine = pieces_of_this_rank()
        model = sx.DistributedDataParallel(network())

        def loss(model):
            weights = model.parameters()
            penalty = weights[0].norm() + weights[0].square().sum() / weights[-2].square().mean().sqrt()
            return lambda scores, labels: F.cross_entropy(scores, labels) + 0.1 * penalty

        for xb, yb in model.accumulate(mine):
            loss(model)(model(xb), yb).backward()
        alone = network()
        x, y = (np.concatenate(part) for part in zip(*wholes, strict=True))
        loss(alone)(alone(sx.tensor(x)), y).backward()
        assert_same(gradients(model), gradients(alone))

    run_threads(work, size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_refused_meanwhile(size):
    def nested():
        model = sx.DistributedDataParallel(network())
        for _ in model.accumulate([1, 2]):
            for _ in model.accumulate([1, 2]):
                pass

    def after_no_sync():
        model, (_, mine) = sx.DistributedDataParallel(network()), pieces_of_this_rank()
        with model.no_sync():
            F.cross_entropy(model(mine[0][0]), mine[0][1]).backward()
        next(model.accumulate(mine))

    for work in (nested, after_no_sync):
        on_all_ranks(work, RuntimeError, "accumulate: the gradients of earlier backwards are not synchronised", size)

    def early(act, by):
        def work():
            model, (_, mine) = sx.DistributedDataParallel(network()), pieces_of_this_rank()
            optimizer = optim.SGD(model.parameters(), lr=0.1)
            before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
            try:
                if by == "accumulate":
                    for xb, yb in model.accumulate(mine):
                        F.cross_entropy(model(xb), yb).backward()
                        act(model, optimizer)
                else:
                    with model.no_sync():
                        F.cross_entropy(model(mine[0][0]), mine[0][1]).backward()
                    act(model, optimizer)
            finally:
                assert_same({k: v.numpy() for k, v in model.state_dict().items()}, before)

        return work

    for by in ("accumulate", "no_sync"):
        on_all_ranks(early(lambda m, o: o.step(), by), RuntimeError, "step: the gradients.*not synchronised", size)
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            clip = getattr(nn.utils, name)
            on_all_ranks(
                early(lambda m, o, clip=clip: clip(m.parameters(), 1.0), by), RuntimeError, f"{name}: the", size
            )

    def only_a_penalty():
        model = sx.DistributedDataParallel(network())
        for _ in model.accumulate([1]):
            (model.parameters()[0] ** 2).sum().backward()

    on_all_ranks(only_a_penalty, RuntimeError, "got one that is the same on every rank", size)

    def goes_on_after_a_failure():
        model, (_, mine) = sx.DistributedDataParallel(network()), pieces_of_this_rank()
        for i, (xb, yb) in enumerate(model.accumulate(mine)):
            scores = model(xb)
            if i == 1:
                scores.register_hook(lambda g: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    F.cross_entropy(scores, yb).backward()
            else:
                F.cross_entropy(scores, yb).backward()

    on_all_ranks(goes_on_after_a_failure, RuntimeError, "a backward has failed in this loop", size)


@pytest.mark.parametrize("size", SIZES)
def test_no_sync(size):
    """Backwards inside stay here; the first one outside sums them all, as in PyTorch."""

    def work():
        wholes, mine = pieces_of_this_rank()
        model, alone = sx.DistributedDataParallel(network()), network()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            alone.zero_grad()
            with model.no_sync():
                for xb, yb in mine[:2]:
                    F.cross_entropy(model(xb), yb).backward()
            F.cross_entropy(model(mine[2][0]), mine[2][1]).backward()
            for x, y in wholes:
                F.cross_entropy(alone(sx.tensor(x)), y).backward()
            assert_same(gradients(model), gradients(alone))
            optimizer.step()
            optim.SGD(alone.parameters(), lr=0.1).step()
        # zero_grad in between forgets what was left, either way.
        for set_to_none in (True, False):
            with model.no_sync():
                F.cross_entropy(model(mine[0][0]), mine[0][1]).backward()
            model.zero_grad(set_to_none)
            alone.zero_grad()
            F.cross_entropy(model(mine[2][0]), mine[2][1]).backward()
            F.cross_entropy(alone(sx.tensor(wholes[2][0])), wholes[2][1]).backward()
            assert_same(gradients(model), gradients(alone))

    run_threads(work, size)


@pytest.mark.parametrize("ranks", [1, 2])
def test_hooks_of_parameters_under_no_sync_are_said_on_several_ranks(ranks):
    def work():
        model = sx.DistributedDataParallel(nn.Linear(3, 1))
        with model.no_sync():
            pass
        model.module.W.register_hook(lambda gradient: gradient / (1 + gradient.norm()))
        with model.no_sync():
            pass

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(work, ranks)
    assert sum("no_sync: on several ranks a hook" in str(w.message) for w in said) == (ranks > 1)
