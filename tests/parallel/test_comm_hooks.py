"""What takes the place of the all-reduce of gradients."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.parallel import world
from sorix_dist.parallel.comm_hooks import Half, Matrix, PowerSGD, TopK, fp16_compress
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import assert_same, data, gradients, network
from tests.support.parallel.storage import backward

LAYOUTS = [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2)]  # ranks, hosts


def summed(comm, gradients):
    comm.all_reduce(gradients)


def steps(hook, accumulating=False):
    """A float64 network after three steps on 23 rows, and its last gradients."""
    x, y = data(23)
    model = sx.DistributedDataParallel(network())
    if hook is not None:
        model.register_comm_hook(hook)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        batches = list(DataLoader(Dataset(x, y), batch_size=9))
        optimizer.zero_grad()
        if accumulating:
            for xb, yb in model.accumulate(batches):
                F.cross_entropy(model(xb), yb).backward()
        else:
            F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
    return {**gradients(model), **{f"state {k}": v.numpy() for k, v in model.state_dict().items()}}


@pytest.mark.parametrize("accumulating", [False, True])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_hook_that_sums_equals_none(size, hosts, accumulating):
    def work():
        assert_same(steps(summed, accumulating), steps(None, accumulating))

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_what_a_hook_adds_between_parameters_does_not_count(size, hosts):
    def noisy(comm, gradients):
        summed(comm, gradients)
        gradients += 1

    def work():
        model = sx.DistributedDataParallel(network())
        model.register_comm_hook(noisy)
        x, y = data(9)
        ((xb, yb),) = DataLoader(Dataset(x, y), batch_size=9)
        F.cross_entropy(model(xb), yb).backward()
        wanted = np.sqrt(sum(np.sum(g**2) for g in gradients(model).values()))
        assert np.isclose(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item(), wanted)

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_hook_is_called_once_for_each_dtype_and_backward(size, hosts):
    class Mixed(nn.Module):
        def __init__(self):
            self.a, self.b = nn.Linear(5, 3), nn.Linear(3, 4).double()

        def forward(self, x):
            return self.b(self.a(x).double())

    def work():
        calls = []

        def hook(comm, array):
            calls.append((array.dtype.name, array.ndim))
            comm.all_reduce(array)

        model = sx.DistributedDataParallel(Mixed())
        model.register_comm_hook(hook)
        x, y = data(8)
        for xb, yb in DataLoader(Dataset(x.astype(np.float32), y), batch_size=4):
            F.cross_entropy(model(xb), yb).backward()
        return sorted(calls)

    for calls in run_threads(work, size, hosts=hosts):
        assert calls == [("float32", 1)] * 2 + [("float64", 1)] * 2


def test_between_hosts_a_hook_gets_slices():
    """So that each number crosses the wire once, not once for each rank of a host."""

    def work():
        calls = []

        def hook(comm, array):
            calls.append((comm.size, comm.hosts, array.size))
            comm.all_reduce(array)

        model = sx.DistributedDataParallel(nn.Linear(64, 64))
        model.register_comm_hook(hook)
        x, y = data(8)
        for xb, yb in DataLoader(Dataset(np.resize(x.astype(np.float32), (8, 64)), y), batch_size=8):
            F.cross_entropy(model(xb), yb).backward()
        return calls

    assert {tuple(calls) for calls in run_threads(work, 4, hosts=2)} == {((2, 2, 65 * 64 // 2),)}


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_fp16_loses_what_it_says(size, hosts):
    """Each number is rounded before and after the sum, by 5e-4 each time or, if it is tiny, by 1e-12 of the largest."""

    def work():
        comm = world()
        exponents = np.random.default_rng(9).uniform(-9, 6, 1001)
        own = np.random.default_rng(comm.rank).standard_normal(1001) * 10.0**exponents
        for unit in (1.0, 1e-12, 1e12):  # as if the loss had been scaled
            mine = (own * unit).astype(np.float32)
            everywhere = comm.all_gather(mine).astype(np.float64)
            got = mine.copy()
            fp16_compress(comm, got)
            tiny = 1e-12 * np.abs(everywhere).max() * comm.size
            once = (5e-4 * np.abs(everywhere) + tiny).sum(axis=0)
            wanted = everywhere.sum(axis=0)
            assert (np.abs(got - wanted) <= once + 5e-4 * (np.abs(wanted) + once) + tiny).all()
            assert (got != wanted).any()
            assert len({part.tobytes() for part in comm.all_gather(got)}) == 1  # the same on every rank

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fp16_of_extreme_gradients(size, hosts, dtype):
    def work():
        comm = world()
        largest = np.finfo(np.float32).max / 8
        for value in (0.0, largest, -largest, 1e-40, np.finfo(dtype).tiny):
            got = np.full(5, value, dtype)
            fp16_compress(comm, got)
            np.testing.assert_allclose(got, np.full(5, value, dtype) * comm.size, rtol=2e-3, atol=1e-33)
        got = np.empty(0, dtype)
        fp16_compress(comm, got)
        for wrong in (np.nan, np.inf, -np.inf):
            got = np.array([1.0, wrong if comm.rank == comm.size - 1 else 2.0, 3.0], dtype)
            fp16_compress(comm, got)
            np.testing.assert_array_equal(got, [comm.size, wrong, 3 * comm.size])

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_fp16_of_gradients_that_are_float16(size, hosts):
    """Whose scale float16 does not hold."""

    def work():
        for unit in (1e-6, 1e-3, 1.0, 4e3):
            mine = (np.array([3, -2, 1, 0]) * unit).astype(np.float16)
            got = mine.copy()
            fp16_compress(world(), got)
            assert np.allclose(got, size * mine.astype(float), rtol=2e-3, atol=1e-7)

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fp16_converts_as_numpy_does(dtype):
    """Every float16, halfway between each two, and numbers of any size. Subnormal ones are rounded twice."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].astype(dtype)
    between = (every[1:] + every[:-1]) / 2
    generator = np.random.default_rng(5)
    many = generator.standard_normal(10_000) * 2.0 ** generator.integers(-60, 1, 10_000)
    for numbers in (every[np.abs(every) < 60_000], between[np.abs(between) < 60_000], many.astype(dtype)):
        half, body, out = Half(), np.empty(2 * numbers.size, np.uint8), np.empty_like(numbers)
        scale = half.pack(numbers, body)
        with np.errstate(under="ignore"):
            wanted = (numbers * scale).astype(np.float32).astype(np.float16)
        got = body.view(np.float16)
        normal = np.abs(numbers * scale) >= 2.0**-14
        np.testing.assert_array_equal(got[normal], wanted[normal])
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=0, atol=2.0**-24)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))
        half.unpack(body, scale, out)
        np.testing.assert_array_equal(out, got.astype(dtype) / scale)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_with_fp16_stays_close(size, hosts):
    def work():
        compressed, exact = steps(fp16_compress), steps(None)
        off = max(np.abs(compressed[name] - exact[name]).max() for name in exact)
        assert 0 < off < 2e-3

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_powersgd_repays_what_it_misses(size, hosts):
    """What it has returned so far is the sum of all gradients, except for what is missing now."""

    def work():
        comm, hook = world(), PowerSGD(2)
        given, got = np.zeros(1001), np.zeros(1001)
        for number in range(30):
            own = np.random.default_rng([comm.rank, number]).standard_normal(1001)
            given += own
            hook(comm, own)
            got += own
            assert len({part.tobytes() for part in comm.all_gather(own)}) == 1  # the same on every rank
        (state,) = hook._states[comm].values()
        rest = state.missing.reshape(-1)[:1001].copy()
        for total in (given, rest):
            comm.all_reduce(total)
        assert np.abs(rest).max() > 0.1
        assert np.abs(got + rest - given).max() < 1e-9

    run_threads(work, size, hosts=hosts)


def test_powersgd_of_low_rank_gradients_is_exact():
    """From the second step on, when it knows the space that they span."""

    def work():
        comm, hook = world(), PowerSGD(2)
        generator = np.random.default_rng(4)
        left, right = generator.standard_normal((40, 2)), generator.standard_normal((2, 40))
        for _ in range(3):
            hook(comm, got := (left @ right).reshape(-1) * (1 + comm.rank))
        np.testing.assert_allclose(got, 3 * (left @ right).reshape(-1), atol=1e-9)

    run_threads(work, 2)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_powersgd_approximates_weight_matrices_only(size, hosts):
    """Biases and small weights are exact, whatever slice of the gradients a rank has; so are the first steps."""

    def gradients(hook):
        generator = np.random.default_rng(0)
        sx.manual_seed(1)
        model = sx.DistributedDataParallel(
            nn.Sequential(nn.Linear(30, 50), nn.Tanh(), nn.Linear(50, 40), nn.Tanh(), nn.Linear(40, 2)).double()
        )
        if hook is not None:
            model.register_comm_hook(hook)
        found = []
        for _ in range(4):
            xb = sx.tensor(generator.standard_normal((24, 30))[world().rank :: size])
            model.zero_grad()
            (model(xb) ** 2).mean().backward()
            found.append({name: p.grad.numpy().copy() for name, p in model.module.named_parameters()})
        return found

    def work():
        for exact, own in zip(gradients(None), gradients(PowerSGD(2)), strict=True):
            for name in exact:
                off = np.abs(own[name] - exact[name]).max()
                assert off > 1e-5 if name in ("0.W", "2.W") else off < 1e-12
                assert len({part.tobytes() for part in world().all_gather(own[name])}) == 1
        for step, (exact, own) in enumerate(zip(gradients(None), gradients(PowerSGD(2, start=3)), strict=True)):
            off = max(np.abs(own[name] - exact[name]).max() for name in exact)
            assert off < 1e-12 if step < 3 else off > 1e-5

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_topk_sends_the_largest_and_repays_the_rest(size, hosts, dtype):
    def work():
        comm, hook = world(), TopK(0.01)
        given, got = np.zeros(2000), np.zeros(2000)
        for number in range(30):
            own = np.random.default_rng([comm.rank, number]).standard_normal(2000).astype(dtype)
            owed = own + (hook._unsent[comm][own.dtype] if number else 0)
            given += own
            hook(comm, own)
            got += own
            assert len({part.tobytes() for part in comm.all_gather(own)}) == 1  # the same on every rank
            largest = set(np.argsort(np.abs(owed))[-20:])
            assert set(np.flatnonzero(hook._unsent[comm][own.dtype] == 0)) == largest
            assert largest <= set(np.flatnonzero(own))
            assert np.count_nonzero(own) <= 20 * size
        rest = hook._unsent[comm][own.dtype].astype(float)
        for total in (given, rest):
            comm.all_reduce(total)
        assert np.abs(rest).max() > 0.1
        np.testing.assert_allclose(got + rest, given, atol=1e-4 if dtype == "float32" else 1e-12)

    run_threads(work, size, hosts=hosts)


def test_topk_is_exact_where_there_is_nothing_to_gain():
    """Because there are few gradients, or because all ranks together would send more than a ring."""

    def work():
        for hook, count in ((TopK(0.01), 1000), (TopK(0.9), 5000)):
            own = np.random.default_rng(world().rank).standard_normal(count)
            wanted = own.copy()
            world().all_reduce(wanted)
            hook(world(), own)
            np.testing.assert_allclose(own, wanted, atol=1e-12)
            assert not hook._unsent

    run_threads(work, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_topk_of_gradients_that_are_not_finite(value, dtype):
    """They are not finite on any rank, even if there are more of them than are sent, and nothing else remains."""

    def work():
        comm, hook = world(), TopK(0.01)
        hook(comm, np.ones(2000, dtype))
        before = hook._unsent[comm][np.dtype(dtype)].copy()
        for wrong in (slice(7, 8), slice(100, 1000)):
            many = np.ones(2000, dtype)
            many[wrong] = value if comm.rank else 1
            hook(comm, many)
            assert not np.isfinite(many).any()
        np.testing.assert_array_equal(hook._unsent[comm][np.dtype(dtype)], before)
        hook(comm, many := np.zeros(2000, dtype))
        assert many.sum() == 2 * 20  # the largest of those that were not sent

    run_threads(work, 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_powersgd_of_few_gradients_and_of_some_that_are_not_finite(dtype):
    def work():
        comm, hook = world(), PowerSGD()
        for size in (0, 1, 20):
            hook(comm, few := np.ones(size, dtype))
            assert (few == 2).all()
        for value in (np.nan, 1.0):
            many = np.ones(400, dtype)
            many[7] = value if comm.rank else 1
            hook(comm, many)
            assert np.isnan(many).all() if np.isnan(value) else np.allclose(many, 2, rtol=1e-2)

    run_threads(work, 2)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize(("lossy", "width"), [(lambda: PowerSGD(2), 64), (lambda: TopK(0.05), 256)])
def test_training_with_error_feedback(size, hosts, lossy, width):
    """The digits-like task is learnt nearly as well as by exact sums."""

    def trained(hook):
        generator = np.random.default_rng(0)
        x = generator.standard_normal((256, 20))
        y = (x @ generator.standard_normal((20, 4))).argmax(axis=1)
        sx.manual_seed(1)
        model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 4)).double())
        if hook is not None:
            model.register_comm_hook(hook)
        optimizer = optim.SGD(model.parameters(), lr=0.2)
        for _ in range(20):
            for xb, yb in DataLoader(Dataset(x, y), batch_size=64):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(xb), yb)
                loss.backward()
                optimizer.step()
        return sx.global_value(loss).item()

    def work():
        exact, compressed = trained(None), trained(lossy())
        assert exact != compressed
        assert compressed < exact + 0.1 < 0.6

    run_threads(work, size, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("spike", [3e38, np.inf, np.nan])
def test_powersgd_recovers_from_gradients_that_overflow(spike, size, hosts):
    """After large ones, from whose Q the next step begins."""

    def work():
        comm, hook = world(), PowerSGD(2).of_matrices([Matrix(0, 40, 64)])
        for size_of_gradients, is_finite in ((1.0, True), (1e30, True), (spike, False), (1.0, True), (1.0, True)):
            got = np.full(2560, size_of_gradients, np.float32)
            with np.errstate(all="ignore"):
                hook(comm, got)
            assert np.isfinite(got).all() == is_finite
            assert np.isfinite(hook.missing).all()

    run_threads(work, size, hosts=hosts)


def test_what_is_refused():
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"PowerSGD: rank must be (an integer )?>= 1, got"):
            PowerSGD(rank)
    for share in (0, 1, 1.0, -0.1, True, "1%", float("nan")):
        with pytest.raises((TypeError, ValueError), match=r"TopK: share must be (a number|in \(0, 1\)), got"):
            TopK(share)

    def reproducible():
        sx.init(virtual_shards=8)
        sx.DistributedDataParallel(nn.Linear(2, 2)).register_comm_hook(fp16_compress)

    on_all_ranks(reproducible, RuntimeError, "register_comm_hook: reproducible mode sums gradients in its own order")
    on_all_ranks(
        lambda: sx.DistributedDataParallel(nn.Linear(2, 2)).register_comm_hook("fp16"),
        TypeError,
        "hook must be a function of a communicator and an array, got str",
    )
    on_all_ranks(
        lambda: sx.DistributedDataParallel(nn.Linear(2, 2)).register_comm_hook(PowerSGD(rank=1 + sx.rank())),
        ValueError,
        r"the communication hook must be the same on every rank: rank 0 has PowerSGD\(rank=1, start=0\), rank 1",
    )


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_communicator_is_gone_with_its_models(size, hosts):
    def work():
        model = sx.DistributedDataParallel(network(), comm=sx.parallel.world().split(0))
        model.register_comm_hook(fp16_compress)
        backward(model)
        fp16_compress(model.comm, np.ones(5, np.float32))
        return weakref.ref(model.comm)

    communicators = run_threads(work, size, hosts=hosts)
    gc.collect()  # not by the ranks: one at a time can
    assert [communicator() for communicator in communicators] == [None] * size
