"""Virtual workers that train separately and are averaged: what one process computes with as many models."""

from __future__ import annotations

import copy
import hashlib
import warnings
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.parallel import float16
from sorix_dist.parallel.comm_hooks import TopK, fp16_compress
from sorix_dist.parallel.float16 import HalfBlocks
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import needs_mpirun, run_ranks
from tests.support.parallel.everywhere import on_all_ranks

ROWS, BATCH, FEATURES, CLASSES, WORKERS = 47, 13, 5, 3, 4  # batches of 13, 13, 13 and 8 rows
SHAPES = ((1, 1), (2, 1), (3, 1), (4, 1), (4, 2))  # ranks, hosts
INNER = {
    "SGD": lambda p: optim.SGD(p, lr=0.2),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.02),
}


def data(rows=ROWS):
    rng = np.random.default_rng(7)
    return rng.standard_normal((rows, FEATURES)), rng.integers(0, CLASSES, rows)


def network(*between):
    sx.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 6), *between, nn.Tanh(), nn.Linear(6, CLASSES)).double()


def weights(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def trained(make, inner, epochs=2, batch=BATCH, rows=ROWS, model=None, clip=None):
    """The weights after some epochs, on the ranks of this job."""
    sx.init(virtual_shards=WORKERS)
    model = network() if model is None else model()
    optimizer = INNER[inner](model.parameters())
    local = make(model, optimizer)
    for _ in range(epochs):
        for xb, yb in DataLoader(Dataset(*data(rows)), batch_size=batch):
            for x, y in local.workers(xb, yb):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
    local.synchronise()
    return weights(model)


def simulated(inner, every, outer=None, epochs=2, batch=BATCH, rows=ROWS, model=None, clip=None, overlap=False):
    """The same by as many models and optimizers in one process, in plain Python."""
    anchor = network() if model is None else model()
    models = [copy.deepcopy(anchor) for _ in range(WORKERS)]
    optimizers = [INNER[inner](m.parameters()) for m in models]
    x, y = data(rows)
    seen, since, momentum = np.zeros(WORKERS), 0, [np.zeros(p.shape) for p in anchor.parameters()]
    under_way = None  # the drifts of each parameter by worker, and their mean

    def begin():
        drifts = [
            [a.numpy() - p.numpy() for p in ps]
            for a, *ps in zip(anchor.parameters(), *(m.parameters() for m in models), strict=True)
        ]
        return drifts, [sum(c * d for c, d in zip(seen / seen.sum(), ds, strict=True)) for ds in drifts]

    def finish(drifts, means):
        for i, (a, *ps) in enumerate(zip(anchor.parameters(), *(m.parameters() for m in models), strict=True)):
            before = a.numpy().copy()
            if outer is None:
                a.data = before - means[i]
            else:  # Nesterov's momentum, as in PyTorch's SGD
                lr, mu = outer
                momentum[i] = mu * momentum[i] + means[i]
                a.data = before - lr * (means[i] + mu * momentum[i])
            for p, drift in zip(ps, drifts[i], strict=True):
                p.data = p.numpy() + (a.numpy() - before) + drift

    def average():
        nonlocal under_way
        if under_way is not None:
            finish(*under_way)
        under_way = begin()
        if not overlap:
            finish(*under_way)
            under_way = None

    for _ in range(epochs):
        for first in range(0, rows, batch):
            count = min(batch, rows - first)
            for w, (m, o) in enumerate(zip(models, optimizers, strict=True)):
                start, stop = first + count * w // WORKERS, first + count * (w + 1) // WORKERS
                if start == stop:
                    continue
                o.zero_grad()
                F.cross_entropy(m(sx.Tensor(x[start:stop])), y[start:stop]).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(m.parameters(), clip)
                o.step()
                seen[w] += stop - start
            since += 1
            if since == every:
                average()
                seen[:], since = 0, 0
    if since:
        average()
    if under_way is not None:
        finish(*under_way)
    return weights(anchor)


def assert_close(found, wanted, tolerance=1e-12):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def hashed(state):
    return hashlib.sha256(b"".join(np.ascontiguousarray(state[name]).tobytes() for name in sorted(state))).hexdigest()


def on_all_shapes(work, *args, **options):
    found = [run_threads(lambda: work(*args, **options), size, hosts=hosts) for size, hosts in SHAPES]
    assert len({hashed(state) for of_ranks in found for state in of_ranks}) == 1
    return found[0][0]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("inner", INNER)
def test_local_sgd_is_that_of_separate_models(inner, every):
    found = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, every), inner)
    assert_close(found, simulated(inner, every))


@pytest.mark.parametrize(
    ("inner", "every", "outer"), [("momentum", 1, None), ("SGD", 3, None), ("AdamW", 2, (0.7, 0.9))]
)
def test_with_overlap_each_mean_comes_a_round_later(inner, every, outer):
    make = sx.LocalSGD if outer is None else sx.DiLoCo
    found = on_all_shapes(trained, lambda m, o: make(m, o, every, overlap=True), inner)
    assert_close(found, simulated(inner, every, outer, overlap=True))


@pytest.mark.parametrize(("every", "overlap"), [(1, False), (3, False), (2, True)])
def test_rounded_sums_have_the_same_bits_on_any_ranks_and_lose_nothing_for_long(every, overlap, monkeypatch):
    """Blocks of 8 numbers, so that each of the ranks has several in its slice."""
    monkeypatch.setattr(float16, "SIZE", 8)

    def rounded(m, o):
        return sx.LocalSGD(m, o, every, hook=fp16_compress, overlap=overlap)

    shapes = [*SHAPES, (4, 4), (3, 3), (2, 2)]
    found = [run_threads(lambda: trained(rounded, "momentum"), size, hosts=hosts) for size, hosts in shapes]
    assert len({hashed(state) for of_ranks in found for state in of_ranks}) == 1
    exact = simulated("momentum", every, overlap=overlap)
    assert_close(found[0][0], exact, 1e-3)
    assert any(not np.array_equal(found[0][0][name], exact[name]) for name in exact)


@pytest.mark.parametrize("count", [1, 7, 8, 20, 64])
def test_messages_of_rounded_blocks_are_exact(count, monkeypatch):
    """Also of some of the blocks, and with numbers that are rounded up to a power of two."""
    monkeypatch.setattr(float16, "SIZE", 8)
    rng = np.random.default_rng(count)
    for scale in (1e-30, 1e-9, 1.0, 1e9, 1e30):
        numbers = (rng.standard_normal(count) * scale * 10.0 ** rng.integers(-9, 1, count)).astype(np.float32)
        numbers[0] = 2.0 ** np.round(np.log2(scale)) * (1 - 2.0**-13)
        before = numbers.copy()
        blocks = HalfBlocks()
        blocks.round(numbers)
        largest = np.abs(before).max()
        np.testing.assert_allclose(numbers, before, rtol=5e-4, atol=1e-8 * largest)
        for part in (numbers, numbers[8:]):
            out = np.empty_like(part)
            blocks.decode(blocks.encode(part), out)
            np.testing.assert_array_equal(out, part)


@pytest.mark.parametrize("inner", ["SGD", "AdamW"])
def test_diloco_is_the_papers(inner):
    found = on_all_shapes(trained, lambda m, o: sx.DiLoCo(m, o, every=3), inner)
    assert_close(found, simulated(inner, 3, outer=(0.7, 0.9)))


def test_an_outer_sgd_of_rate_one_is_local_sgd():
    found = on_all_shapes(trained, lambda m, o: sx.DiLoCo(m, o, 3, optim.SGD(m.parameters(), lr=1.0)), "AdamW")
    assert_close(found, simulated("AdamW", 3))


def test_clipping_is_of_one_worker():
    found = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 3), "SGD", clip=0.05)
    assert_close(found, simulated("SGD", 3, clip=0.05))


@pytest.mark.parametrize(("rows", "batch"), [(3, 3), (14, 12), (7, 6)])
def test_workers_without_rows(rows, batch):
    """Last batches of 3, 2 and 1 rows for 4 workers."""
    found = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 3), "momentum", rows=rows, batch=batch)
    assert_close(found, simulated("momentum", 3, rows=rows, batch=batch))


def test_a_sum_after_each_batch_is_a_step_on_the_global_batch():
    def together():
        model = network()
        optimizer = INNER["SGD"](model.parameters())
        for _ in range(2):
            for xb, yb in DataLoader(Dataset(*data()), batch_size=BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(xb), yb).backward()
                optimizer.step()
        return weights(model)

    found = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 1), "SGD")
    assert_close(found, run_threads(together, 1)[0])


class Parts(nn.Module):
    """Two dtypes, a frozen layer, one that is used twice, and one that is never used."""

    def __init__(self):
        self.frozen, self.twice = nn.Linear(FEATURES, 6).requires_grad_(False), nn.Linear(6, 6)
        self.last, self.never = nn.Linear(6, CLASSES).double(), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.frozen(x.float()).tanh()).tanh()).double())


def test_a_model_of_several_kinds_of_parameters():
    def model():
        sx.manual_seed(1)
        return Parts()

    found = on_all_shapes(trained, lambda m, o: sx.DiLoCo(m, o, every=3), "AdamW", model=model)
    assert_close(found, simulated("AdamW", 3, outer=(0.7, 0.9), model=model), tolerance=1e-5)
    for name, value in weights(model()).items():
        assert (found[name] == value).all() == name.startswith(("frozen", "never"))


def test_random_numbers_and_buffers_do_not_depend_on_ranks():
    class Noisy(nn.Module):
        def __init__(self):
            self.register_buffer("calls", sx.tensor(0))
            self.steps = 0

        def forward(self, x):
            self.calls += 1
            self.steps += 1
            return F.dropout(x, 0.2, self.training) * 0.9**self.steps + 0.1 * sx.randn(*x.shape) + 0.1 * sx.rand_like(x)

    def model():
        return network(nn.BatchNorm1d(6), nn.Dropout(0.4), Noisy())

    options = {"model": model, "rows": 41}  # the last batch has 2 rows: not all workers have a row to normalize
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_threads(lambda: trained(lambda m, o: sx.LocalSGD(m, o, 3), "AdamW", **options), 1)
    found = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 3), "AdamW", model=model)
    start = weights(model())
    assert all((found[name] != start[name]).any() for name in start)
    assert found["3.calls"] == 8
    again = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 3), "AdamW", model=model)
    assert hashed(found) == hashed(again)
    late = on_all_shapes(trained, lambda m, o: sx.LocalSGD(m, o, 3, overlap=True), "AdamW", model=model)
    assert late["3.calls"] == 8


# -- what the loop shows, and what it refuses


def setup(every=3, inner="momentum", make=None):
    sx.init(virtual_shards=WORKERS)
    model = network()
    optimizer = INNER[inner](model.parameters())
    local = sx.LocalSGD(model, optimizer, every) if make is None else make(model, optimizer)
    return model, optimizer, local, DataLoader(Dataset(*data()), batch_size=BATCH)


def step(model, optimizer, local, batch):
    for x, y in local.workers(*batch):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_outside_of_the_loop_the_model_is_that_of_the_last_sum():
    def work():
        model, optimizer, local, loader = setup()
        start = hashed(weights(model))
        hashes = []
        for batch in loader:
            step(model, optimizer, local, batch)
            sx.assert_replicas_equal(model)
            assert all(p.grad is None for p in model.parameters())
            with sx.no_grad():
                assert np.isfinite(model(batch[0]).numpy()).all()
            hashes.append(hashed(weights(model)))
        assert hashes[0] == hashes[1] == start != hashes[2] == hashes[3]
        with pytest.raises(RuntimeError, match=r"read-only.*LocalSGD"):
            model.load_state_dict(model.state_dict())
        before = repr(sx.core.random.state())
        local.synchronise()
        local.synchronise()  # nothing more to average
        assert hashed(weights(model)) != start
        assert repr(sx.core.random.state()) == before
        model.load_state_dict(model.state_dict())

    for size in (1, 3):
        run_threads(work, size)


@pytest.mark.parametrize(("size", "hosts"), [(1, 1), (3, 2)])
def test_with_a_sum_under_way_all_else_works(size, hosts):
    def work(end):
        model, optimizer, local, loader = setup(make=lambda m, o: sx.DiLoCo(m, o, 2, overlap=True))
        shown = []
        for batch in loader:
            step(model, optimizer, local, batch)
            total = np.ones(9)
            sx.all_reduce(total)
            assert (total == size).all()
            sx.barrier()
            sx.evaluate(model, loader, nn.CrossEntropyLoss())
            sx.assert_replicas_equal(model)
            shown.append(hashed(weights(model)))
        assert shown[0] == shown[1] == shown[2] != shown[3]
        step(model, optimizer, local, next(iter(loader)))
        end(local)
        with pytest.raises(RuntimeError, match="was unwrapped") if end is not sx.DiLoCo.synchronise else nullcontext():
            local.synchronise()
        return weights(model)

    def left(local):
        """By break, and then goes on from a checkpoint."""
        state = local.state_dict()
        next(local.workers(*next(iter(DataLoader(Dataset(*data()), batch_size=BATCH)))))
        with pytest.raises(RuntimeError, match="left early"):
            local.synchronise()
        local.load_state_dict(state)
        local.unwrap()

    all_ends = (sx.DiLoCo.synchronise, sx.DiLoCo.unwrap, left)
    ends = [run_threads(work, size, (end,), hosts=hosts) for end in all_ends]
    assert len({hashed(state) for of_ranks in ends for state in of_ranks}) == 1


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (4, 2)])
def test_no_message_crosses_ranks_between_two_sums(size, hosts):
    def work():
        model, optimizer, local, loader = setup(every=4, inner="AdamW")
        comm, calls = sx.parallel.world(), []
        for name in ("all_reduce", "all_gather", "all_to_all", "broadcast", "gather_objects", "barrier", "window"):
            inner = getattr(comm, name)
            setattr(comm, name, lambda *a, inner=inner, name=name, **k: (calls.append(name), inner(*a, **k))[1])
        inner_agree = local._coordinator.consensus.agree
        local._coordinator.consensus.agree = lambda *a: (calls.append("agree"), inner_agree(*a))[1]
        counts = []
        for batch in loader:
            step(model, optimizer, local, batch)
            counts.append(len(calls))
        assert counts[:3] == [0, 0, 0]
        assert counts[3] > 0

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_captured_step_of_a_worker(overlap):
    def work(compiled):
        model, optimizer, local, loader = setup(make=lambda m, o: sx.LocalSGD(m, o, 2, overlap=overlap))

        def one(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        one = sx.compile(one) if compiled else one
        for _ in range(4):
            for xb, yb in loader:
                for x, y in local.workers(xb, yb):
                    one(x, y)
        local.synchronise()
        assert not compiled or one.reason is None
        return weights(model)

    found = [run_threads(work, size, (compiled,)) for size in (1, 2) for compiled in (False, True)]
    assert len({hashed(state) for of_ranks in found for state in of_ranks}) == 1


def test_after_data_parallel_steps_and_before():
    """Momentum of earlier steps is that of every worker; afterwards the model can be wrapped."""

    def work():
        sx.init(virtual_shards=WORKERS)
        wrapped = sx.DistributedDataParallel(network())
        optimizer = INNER["momentum"](wrapped.parameters())
        loader = DataLoader(Dataset(*data()), batch_size=BATCH)

        def together(model):
            for xb, yb in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(xb), yb).backward()
                optimizer.step()

        together(wrapped)
        model = wrapped.unwrap()
        local = sx.LocalSGD(model, optimizer, every=3)
        with pytest.raises(ValueError, match=r"belongs to another wrapper"):
            sx.LocalSGD(model, optimizer, every=3)
        with pytest.raises(ValueError, match=r"is wrapped already"):
            sx.DistributedDataParallel(model)
        for batch in loader:
            step(model, optimizer, local, batch)
        kept = weakref.ref(local)
        del local
        with pytest.raises(ValueError, match=r"is wrapped already"):
            sx.DistributedDataParallel(model)
        local = kept()
        model = local.unwrap()
        with pytest.raises(RuntimeError, match=r"unwrapped"):
            local.synchronise()
        optimizer = INNER["momentum"](model.parameters())
        together(sx.DistributedDataParallel(model))
        return weights(model)

    found = [run_threads(work, size, hosts=hosts) for size, hosts in SHAPES]
    assert len({hashed(state) for of_ranks in found for state in of_ranks}) == 1


@pytest.mark.parametrize("pieces", [False, True])
def test_a_worker_may_cut_its_rows_and_take_a_dict(pieces):
    def work():
        model, optimizer, local, loader = setup()
        for xb, yb in loader:
            for batch, scale in local.workers({"x": xb, "y": yb}, sx.replicated(np.array([2.0]))):
                x, y = batch["x"], batch["y"]
                optimizer.zero_grad()
                for part in (slice(0, 1), slice(1, None)) if pieces else (slice(None),):
                    loss = F.cross_entropy(model(x[part]), y[part], reduction="sum") / len(y)
                    (loss * scale).backward(sx.Tensor([0.5]))
                optimizer.step()
        local.synchronise()
        return weights(model)

    wanted = run_threads(trained, 1, (lambda m, o: sx.LocalSGD(m, o, 3), "momentum", 1))[0]
    for size in (1, 3):
        assert_close(run_threads(work, size)[0], wanted)


def test_the_mean_loss_of_an_epoch():
    def work():
        model, optimizer, local, loader = setup()
        mean = sx.metrics.Mean()
        for xb, yb in loader:
            for x, y in local.workers(xb, yb):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                mean.update(loss.item(), len(y))
        return mean.compute()

    assert len({value for size in (1, 2, 3, 4) for value in run_threads(work, size)}) == 1


def in_a_turn(body, message, error=RuntimeError):
    def work():
        model, optimizer, local, loader = setup()
        for xb, yb in loader:
            for x, y in local.workers(xb, yb):
                body(model, optimizer, x, y, xb, yb)

    on_all_ranks(work, error, message, size=2)


def test_what_a_step_of_a_worker_must_not_do():
    def backward(model, optimizer, x, y, xb, yb):
        F.cross_entropy(model(x), y).backward()

    def schedule(model, optimizer, x, y, xb, yb):
        backward(model, optimizer, x, y, xb, yb)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9

    in_a_turn(backward, r"gradients that no optimizer.step\(\) has used")
    in_a_turn(schedule, r"step schedulers after the loop over workers")
    in_a_turn(lambda m, o, x, y, xb, yb: F.cross_entropy(m(xb), yb).backward(), r"compute it from|two different groups")
    in_a_turn(lambda m, o, x, y, xb, yb: sx.global_value(F.cross_entropy(m(x), y)), r"only the value of one worker")
    in_a_turn(lambda m, o, x, y, xb, yb: o.state_dict(), r"save and load local=local")


def test_a_step_that_is_left_out():
    def work():
        model, _, local, loader = setup()
        for xb, yb in loader:
            for x, y in local.workers(xb, yb):
                loss = F.cross_entropy(model(x), y)
                if loss.item() > 0:
                    continue
                loss.backward()
        local.synchronise()
        return weights(model)

    assert_close(run_threads(work, 2)[0], weights(network()))


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (r"would train no worker", lambda m, o, local, xb, yb: m(sx.Tensor([[1.0] * 5])).sum().backward()),
        (r"would train no worker", lambda m, o, local, xb, yb: o.step()),
        (r"save and load local=local", lambda m, o, local, xb, yb: o.state_dict()),
        (r"save and load local=local", lambda m, o, local, xb, yb: sx.Checkpointer("never").save(1, optimizer=o)),
        (r"no array", lambda m, o, local, xb, yb: next(local.workers())),
        (r"not rows of a loader's batch", lambda m, o, local, xb, yb: next(local.workers(xb, np.ones(4)))),
        (r"requires a gradient", lambda m, o, local, xb, yb: next(local.workers(xb * grown(), yb))),
        (r"all rows of one batch", lambda m, o, local, xb, yb: next(local.workers(xb, yb[yb.numpy() > 0]))),
        (r"all rows of one batch", lambda m, o, local, xb, yb: next(local.workers(xb, other()))),
        (r"left early", lambda m, o, local, xb, yb: [next(local.workers(xb, yb)), local.synchronise()]),
        (r"left early", lambda m, o, local, xb, yb: [next(local.workers(xb, yb)), local.state_dict()]),
        (r"can't be captured", lambda m, o, local, xb, yb: reason_of(lambda a: [1 for _ in local.workers(a)], xb)),
    ],
)  # fmt: skip
def test_what_is_refused_outside(message, body):
    def work():
        model, optimizer, local, loader = setup()
        body(model, optimizer, local, *next(iter(loader)))

    on_all_ranks(work, RuntimeError, message, size=2)


def other():
    return next(iter(DataLoader(data()[0], batch_size=7)))


def grown():
    return sx.tensor(np.ones(1), requires_grad=True)


def reason_of(function, *batch):
    step = sx.compile(function)
    step(*batch)
    step(*batch)
    raise RuntimeError(step.reason)


def of_rate(model, rate):
    return optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def stepped(model):
    """An optimizer that has stepped by another gradient on each rank."""
    optimizer = of_rate(model, 0.1)
    (model[0].W.sum() * (1.0 + sx.rank())).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (TypeError, r"give model.unwrap\(\)", lambda m, o: sx.LocalSGD(sx.DistributedDataParallel(m), o, 2)),
        (TypeError, r"model must be a Module", lambda m, o: sx.LocalSGD(o, m, 2)),
        (TypeError, r"optimizer must be an Optimizer", lambda m, o: sx.LocalSGD(m, 0.1, 2)),
        (ValueError, r"every must be >= 1, got 0", lambda m, o: sx.LocalSGD(m, o, 0)),
        (ValueError, r"of the model alone", lambda m, o: sx.LocalSGD(m, INNER["SGD"](network().parameters()), 2)),
        (ValueError, r"of the model alone", lambda m, o: sx.DiLoCo(m, o, 2, INNER["SGD"](network().parameters()))),
        (ValueError, r"another optimizer than the inner one", lambda m, o: sx.DiLoCo(m, o, 2, o)),
        (ValueError, r"hook must be None or .*fp16_compress, got <", lambda m, o: sx.LocalSGD(m, o, 2, hook=TopK(0.1))),
        (ValueError, r"hook=None.*fp16_c", lambda m, o: sx.LocalSGD(m, o, 2, hook=(None, fp16_compress)[sx.rank()])),
        (ValueError, r"overlap=False.*overlap=True", lambda m, o: sx.LocalSGD(m, o, 2, overlap=sx.rank() > 0)),
        (TypeError, r"overlap must be True or False, got .*no", lambda m, o: sx.LocalSGD(m, o, 2, overlap="no")),
        (ValueError, r"must have parameters", lambda m, o: sx.LocalSGD(nn.Tanh(), o, 2)),
        (ValueError, r"on every rank.*every=2.*every=3", lambda m, o: sx.LocalSGD(m, o, 2 + sx.rank())),
        (ValueError, r"on every rank.*lr=0.1.*lr=1.1", lambda m, o: sx.LocalSGD(m, of_rate(m, 0.1 + sx.rank()), 2)),
        (ValueError, r"state of LocalSGD must be the same on every rank", lambda m, o: sx.LocalSGD(m, stepped(m), 2)),
    ],
)  # fmt: skip
def test_what_the_constructor_refuses(error, message, make):
    on_all_ranks(lambda: setup(make=make), error, message, size=2)


def test_the_number_of_workers_must_be_known_and_enough():
    def unknown():
        model = network()
        sx.LocalSGD(model, INNER["SGD"](model.parameters()), every=2)

    on_all_ranks(unknown, RuntimeError, r"call sx.init\(virtual_shards=8\)", size=2)
    on_all_ranks(lambda: setup(), ValueError, r"at least the number of ranks, 5, got 4", size=5)


def test_what_differs_between_ranks_is_found_at_the_next_sum():
    def rate():
        model, optimizer, local, loader = setup()
        for i, batch in enumerate(loader):
            if i == 1 and sx.rank() == 1:
                optimizer.param_groups[0]["lr"] = 0.3
            step(model, optimizer, local, batch)

    def weight():
        model, optimizer, local, loader = setup()
        if sx.rank() == 1:
            model[0].W.data = model[0].W.data + 1
        for batch in loader:
            step(model, optimizer, local, batch)

    def batch():
        model, optimizer, local, loader = setup()
        for i, xy in enumerate(loader):
            if i == 0 and sx.rank() == 1:
                continue
            step(model, optimizer, local, xy)

    for said in on_all_ranks(rate, RuntimeError, r"rank 1 .*lr=0.3.* instead of .*lr=0.1"):
        assert "no gradient was added" in said
    on_all_ranks(weight, RuntimeError, "rank 1")
    on_all_ranks(batch, RuntimeError, r"rank 1 has batch 3 of epoch 0")


@pytest.mark.parametrize("overlap", [False, True])
def test_weights_that_are_not_finite_are_named_and_not_mixed(overlap):
    def work():
        model, optimizer, local, loader = setup(inner="SGD", make=lambda m, o: sx.LocalSGD(m, o, 2, overlap=overlap))
        start = hashed(weights(model))
        try:
            for xb, yb in loader:
                for x, y in local.workers(xb, yb):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    (loss * (np.inf if sx.rank() == 1 else 1)).backward()
                    optimizer.step()
        finally:
            assert hashed(weights(model)) == start
            with pytest.raises(RuntimeError, match="a sum has failed"):
                local.synchronise()

    on_all_ranks(work, FloatingPointError, r"'0.W' on rank 1 is nan", size=2)


# -- checkpoints


class Stopped(Exception):
    pass


def resumed(folder, stops, make, ranks_of_run):
    """Trains 3 epochs; at each stop, a batch number, the run ends and goes on with the next number of ranks."""

    def work(stop):
        sx.init(virtual_shards=WORKERS)
        sx.manual_seed(5)
        model = nn.Sequential(network(), nn.Dropout(0.2))
        optimizer = INNER["AdamW"](model.parameters())
        local = make(model, optimizer)
        loader = DataLoader(Dataset(*data()), batch_size=BATCH, shuffle=True)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        parts = {"local": local, "model": model, "loader": loader, "scheduler": schedule}
        checkpointer = sx.Checkpointer(folder)
        checkpointer.load_latest(**parts)
        while local.batches < 12:
            for batch in loader:
                step(model, optimizer, local, batch)
                schedule.step()
                if local.batches == stop:
                    checkpointer.save(stop, **parts)
                    return None
        local.synchronise()
        return weights(model)

    for stop, size in zip([*stops, None], ranks_of_run, strict=True):
        found = run_threads(work, size, (stop,))
    return found[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda m, o: sx.LocalSGD(m, o, 5),
        lambda m, o: sx.DiLoCo(m, o, every=5),
        lambda m, o: sx.LocalSGD(m, o, 5, hook=fp16_compress),  # with what rounding has taken so far
        lambda m, o: sx.DiLoCo(m, o, every=2, hook=fp16_compress, overlap=True),  # and with a sum under way
    ],
)
def test_resume_on_another_number_of_ranks(make, tmp_path):
    straight = resumed(tmp_path / "a", [], make, [2])
    # In the first round, in the second one, and at a sum.
    assert hashed(resumed(tmp_path / "b", [3, 7, 10], make, [1, 4, 3, 2])) == hashed(straight)


def test_a_state_that_does_not_fit(tmp_path):
    def saved(workers):
        sx.init(virtual_shards=workers)
        model = network()
        optimizer = INNER["momentum"](model.parameters())
        local = sx.LocalSGD(model, optimizer, 3)
        for batch in DataLoader(Dataset(*data()), batch_size=BATCH):
            step(model, optimizer, local, batch)
        return local.state_dict()

    def loaded(state, make, workers=WORKERS):
        sx.init(virtual_shards=workers)
        model = network()
        before = hashed(weights(model))
        local = make(model)
        try:
            local.load_state_dict(state)
        finally:
            assert hashed(weights(model)) == before

    state = run_threads(saved, 2, (WORKERS,))[0]

    def refuses(message, make, given=state, **options):
        on_all_ranks(lambda: loaded(given, make, **options), ValueError, message, size=2)

    momentum = INNER["momentum"]
    refuses(r"of 4 workers.*this run has 8", lambda m: sx.LocalSGD(m, momentum(m.parameters()), 3), workers=8)
    refuses(r"that of overlap=False", lambda m: sx.LocalSGD(m, momentum(m.parameters()), 3, overlap=True))
    refuses(r"that of LocalSGD", lambda m: sx.DiLoCo(m, momentum(m.parameters()), 3))
    refuses(r"'optimizer.0..*' must be", lambda m: sx.LocalSGD(m, INNER["AdamW"](m.parameters()), 3))
    refuses(
        r"lacks \['rows'\]",
        lambda m: sx.LocalSGD(m, momentum(m.parameters()), 3),
        {k: v for k, v in state.items() if k != "rows"},
    )


def test_evaluation_is_of_the_averaged_model():
    def work():
        model, optimizer, local, loader = setup(every=1)
        for batch in loader:
            step(model, optimizer, local, batch)
        found = sx.evaluate(model, loader, [nn.CrossEntropyLoss(), sx.metrics.Accuracy()])
        return found["loss"], found["accuracy"], sx.predict(model, loader, everywhere=True).tobytes()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len({each for size in (1, 2, 3, 4) for each in run_threads(work, size)}) == 1


@needs_mpirun
def test_the_same_bits_under_mpi(tmp_path):
    """Also as if every rank were on a host of its own, with sums in many pieces, and one under way at the end."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "import sorix_dist as sx\n"
        "from sorix_dist.comm import mpi\n"
        "from sorix_dist.parallel import tree_reducers\n"
        "if sys.argv[1:]:\n"
        "    tree_reducers.PIECE = 64\n"
        "    mpi.locate = lambda host_of, rank: (rank, len(host_of), 0, 1)\n"
        "from tests.parallel.test_local_sgd import hashed, setup, step, trained\n"
        "for overlap in (False, True):\n"
        "    found = hashed(trained(lambda m, o: sx.DiLoCo(m, o, every=3, overlap=overlap), 'AdamW'))\n"
        "    sx.print(found, sx.size())\n"
        "import atexit\n"
        "model, optimizer, late, loader = setup(make=lambda m, o: sx.LocalSGD(m, o, every=1, overlap=True))\n"
        "step(model, optimizer, late, next(iter(loader)))\n"
        "model = sx.nn.Linear(2, 2)\n"
        "local = sx.LocalSGD(model, sx.optim.SGD(model.parameters()), every=3)\n"
        "local.synchronise()\n"  # with no other frame on the stack
        "atexit.register(local.synchronise)\n"  # with none at all
    )
    makes = [lambda m, o, overlap=overlap: sx.DiLoCo(m, o, every=3, overlap=overlap) for overlap in (False, True)]
    wanted = [hashed(on_all_shapes(trained, make, "AdamW")) for make in makes]
    for ranks, *far in ((2,), (3, "far")):
        ended = run_ranks(ranks, str(script), *far, limit=60)
        assert ended.code == 0, ended.err
        assert ended.out.split() == [wanted[0], str(ranks), wanted[1], str(ranks)]
        assert "Traceback" not in ended.err
