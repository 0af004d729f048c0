"""Ranks that are out of step, drifted replicas and batches that nobody shared out are found, and named."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core.placement import Batch
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset, Sampler
from tests.support.launching import needs_mpirun, run_ranks
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import data, gradients, network

LAYOUTS = [(2, 1), (3, 1), (4, 2)]  # ranks, hosts
LINE = r"at \S+:\d+"


class Stream:
    """Samples of which only one after the other can be had."""

    def __init__(self, samples):
        self.samples = list(samples)

    def __iter__(self):
        return iter(self.samples)


class OwnOrder(Sampler):
    """Another order on each rank."""

    def order(self, epoch):
        return np.random.default_rng(sx.rank()).permutation(self.length)


class OwnLength(Sampler):
    """A longer order on each rank than on the one before."""

    def order(self, epoch):
        return np.arange(20 + sx.rank())


class OwnSample(Sampler):
    """One sample is another one on each rank."""

    def order(self, epoch):
        return np.where(np.arange(self.length) == 13, sx.rank(), np.arange(self.length))


def training(rank, extra_step=False, skip=False, more_pieces=False, unmarked=False, before=0):
    """A training loop in which one rank does something else."""

    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        odd = sx.rank() == rank
        for step, (xb, yb) in enumerate(DataLoader(Dataset(x, y), batch_size=6)):
            now = odd and step >= before
            if skip and now and step == before:
                continue
            optimizer.zero_grad()
            before_step = gradients(model)
            if more_pieces:
                with model.no_sync():
                    for _ in range(2 if now else 1):
                        F.cross_entropy(model(xb), yb).backward()
            if unmarked and now:
                xb.place = Batch(xb.rows._replace(epoch=-1, batch=-1), xb.place.group).at(0)
            try:
                F.cross_entropy(model(xb), yb).backward()
            except RuntimeError:
                assert gradients(model) == before_step  # nothing was added
                raise
            optimizer.step()
            if extra_step and now:
                optimizer.step()

    return work


@pytest.mark.parametrize(("size", "hosts"), [*LAYOUTS, (2, 2)])
def test_a_rank_that_skips_a_batch(size, hosts):
    said = on_all_ranks(
        training(size - 1, skip=True, before=1),
        RuntimeError,
        rf"backward number 2: rank 0 has batch 1 of epoch 0 {LINE}, rank {size - 1} has batch 2 of epoch 0 {LINE}",
        size,
        hosts,
    )
    assert len(set(said)) == 1


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_rank_that_takes_a_step_more(size, hosts):
    message = rf"backward number 3: rank 0 has come to backward {LINE}, rank 1 has come to optimizer.step {LINE}"
    on_all_ranks(training(1, extra_step=True, before=1), RuntimeError, message, size, hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_rank_with_more_backwards(size, hosts):
    message = rf"backward number 1: rank 0 has 2 backwards.*{LINE}, rank 1 has 3 backwards since.*{LINE}"
    on_all_ranks(training(1, more_pieces=True), RuntimeError, message, size, hosts)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_a_rank_whose_batch_is_of_no_loader(size, hosts):
    message = rf"rank 0 has batch 0 of epoch 0 {LINE}, rank 1 has a batch that no loader made {LINE}"
    on_all_ranks(training(1, unmarked=True), RuntimeError, message, size, hosts)


@pytest.mark.parametrize("mode", [{}, {"virtual_shards": 4}])
@pytest.mark.parametrize(
    "differ",
    [
        "length",
        "batch_size",
        "shuffle",
        "seed",
        OwnOrder,
        OwnLength,
        OwnSample,
        "manual_seed",
        "stream",
        "values",
        "split",
    ],
)
@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (2, 2)])
def test_a_rank_with_another_loader(size, hosts, differ, mode):
    """Its batch number 0 of epoch 0 holds other samples than that of the others."""

    def work():
        sx.init(**mode)
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        odd = sx.rank() == 1
        if differ == "manual_seed":
            sx.manual_seed(5 + odd)
        count = 23 if differ == "length" and odd else 24
        options = {"batch_size": 7 if differ in ("batch_size", "stream") and odd else 6, "shuffle": differ == "length"}
        if differ in ("shuffle", "seed"):
            options["shuffle"] = differ == "seed" or bool(odd)
            options["seed"] = None if differ == "shuffle" else int(odd)
        if differ == "values" and odd:
            x = np.random.default_rng(1).standard_normal(x.shape)
        if differ == "split":
            chosen = np.random.default_rng(sx.rank()).permutation(24)
            x, y = x[chosen], y[chosen]
        if isinstance(differ, type):
            options = {"batch_size": 6, "sampler": differ(24)}
        samples = Stream(zip(x, y, strict=True)) if differ == "stream" else Dataset(x[:count], y[:count])
        xb, yb = next(iter(DataLoader(samples, **options)))
        F.cross_entropy(model(xb), yb).backward()

    message = rf"rank 0 has a loader's batch {LINE}, rank 1 has that of a loader with another length, batch_size"
    on_all_ranks(work, RuntimeError, message, size, hosts)


def test_a_line_of_the_users_where_a_context_manager_of_the_package_meets():
    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        (xb, yb), *_ = DataLoader(Dataset(x, y), batch_size=12)
        F.cross_entropy(model(xb), yb).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1 * (1 + sx.rank()))

    here = r"tests/parallel/test_handshake\.py:\d+"
    message = rf"rank 0 has come to clip_grad_value_ at {here}, rank 1 has come to clip_grad_value_ with .* at {here};"
    on_all_ranks(work, RuntimeError, message, 2)


@pytest.mark.parametrize("what", ["pieces", "batches"])
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_other_pieces_in_an_accumulation(size, hosts, what):
    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        batches = list(DataLoader(Dataset(x, y), batch_size=6))
        odd = sx.rank() == 1
        chosen = batches[: 2 + odd] if what == "pieces" else batches[odd : 2 + odd]
        for xb, yb in model.accumulate(chosen):
            F.cross_entropy(model(xb), yb).backward()

    wanted = "batch 1 of epoch 0.*batch 2 of epoch 0"
    on_all_ranks(work, RuntimeError, wanted, size, hosts)


@pytest.mark.parametrize(("size", "hosts"), [*LAYOUTS, (2, 2)])
def test_training_goes_on_after_the_error(size, hosts):
    """Who catches it and puts the ranks into step again goes on, with right gradients."""

    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        batches = list(DataLoader(Dataset(x, y), batch_size=6))
        own = batches[1 if sx.rank() == 1 else 0]
        with pytest.raises(RuntimeError, match="not at the same place"):
            F.cross_entropy(model(own[0]), own[1]).backward()
        F.cross_entropy(model(batches[2][0]), batches[2][1]).backward()
        alone = network()
        F.cross_entropy(alone(sx.tensor(x[12:18])), y[12:18]).backward()
        for name, wanted in gradients(alone).items():
            assert np.abs(gradients(model)[name] - wanted).max() < 1e-12

    run_threads(work, size, hosts=hosts)


def another_rate(optimizers, odd):
    optimizers[0].param_groups[0]["lr"] = 0.05 if odd else 0.1


def another_decay_of_the_second_group(optimizers, odd):
    optimizers[0].param_groups[1]["weight_decay"] = 1e-3 * odd


def another_option_of_the_second_optimizer(optimizers, odd):
    optimizers[1].param_groups[0]["betas"] = (0.8, 0.99 if odd else 0.98)


def each_the_other_ones_rate(optimizers, odd):
    for optimizer, lr in zip(optimizers, (0.2, 0.1) if odd else (0.1, 0.2), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr


def a_scheduler_that_steps_more_often(optimizers, odd):
    scheduler = optim.lr_scheduler.ExponentialLR(optimizers[1], 0.9)
    for _ in range(1 + odd):
        scheduler.step()


# Ranks, hosts and storage where nothing is shared between some of the ranks: those of the last host, or the last rank
# if there is one host, are the odd ones.
APART = [(2, 2, "shared"), (3, 2, "shared"), (4, 2, "shared"), (4, 2, "replicated"), (3, 1, "replicated")]


@pytest.mark.parametrize(("size", "hosts", "storage"), APART)
@pytest.mark.parametrize(
    "change",
    [
        another_rate,
        another_decay_of_the_second_group,
        another_option_of_the_second_optimizer,
        each_the_other_ones_rate,
        a_scheduler_that_steps_more_often,
    ],
    ids=lambda change: change.__name__,
)
def test_a_rank_whose_optimizers_have_other_options(size, hosts, storage, change):
    """The next backward finds it, and the one after that goes on."""

    def work():
        x, y = data(24)
        models = [sx.DistributedDataParallel(network(), storage=storage) for _ in range(2)]
        first, second = ([*model.parameters()] for model in models)
        optimizers = [optim.SGD([{"params": first[:1]}, {"params": first[1:]}], lr=0.1), optim.Adam(second, lr=0.1)]
        comm = models[0].comm
        odd = comm.host == hosts - 1 if hosts > 1 else comm.rank == size - 1
        errors = []
        for step, (xb, yb) in enumerate(DataLoader(Dataset(x, y), batch_size=6)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            before = [gradients(model) for model in models]
            try:
                sum(F.cross_entropy(model(xb), yb) for model in models).backward()
            except RuntimeError as error:
                errors.append((step, str(error)))
                assert [gradients(model) for model in models] == before
            if step == 1:
                change(optimizers, odd)
            if step <= 1:
                for optimizer in optimizers:
                    optimizer.step()
        ((step, said),) = errors
        assert step == 2
        return said

    said = run_threads(work, size, hosts=hosts, timeout=60)
    other = size - 1 if hosts == 1 else [rank * hosts // size for rank in range(size)].index(hosts - 1)
    wanted = (
        rf"backward number 3: rank 0 has come to backward {LINE}, rank {other} has stepped optimizers with other "
        rf"options .* before it came to backward {LINE}"
    )
    assert all(re.search(wanted, text) for text in said), said


def test_rates_that_differ_by_rounding_are_the_same():
    """Another kind of processor may compute a schedule so."""

    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network(), storage="replicated")
        optimizer = optim.SGD(model.parameters(), lr=np.nextafter(0.1, sx.rank()))
        for xb, yb in DataLoader(Dataset(x, y), batch_size=6):
            F.cross_entropy(model(xb), yb).backward()
            optimizer.step()

    run_threads(work, 2, timeout=60)


@needs_mpirun
def test_the_users_file_and_line_under_mpi(tmp_path):
    pytest.importorskip("mpi4py")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nimport numpy as np\nimport sorix_dist as sx\nfrom sorix_dist import nn, optim\n"
        "from sorix_dist.utils.data import DataLoader, Dataset\n"
        "model = sx.DistributedDataParallel(nn.Linear(3, 2))\n"
        "for i, (xb, yb) in enumerate(DataLoader(Dataset(np.ones((8, 3), np.float32), np.zeros(8, int)), 4)):\n"
        "    if i == 0 and sx.rank() == 1:\n"
        "        continue\n"
        "    try:\n"
        "        nn.CrossEntropyLoss()(model(xb), yb).backward()\n"
        "    except RuntimeError as error:\n"
        "        sys.stdout.write(f'{sx.rank()} {error}\\n')\n"
        "        break\n"
    )
    ended = run_ranks(2, str(script))
    assert ended.code == 0, ended.err
    for rank in (0, 1):
        assert re.search(rf"^{rank} .*batch 0 of epoch 0 at {script}:11, rank 1 has batch 1", ended.out, re.M), (
            ended.out
        )


# -- replicas


def drifted(name, rank, change):
    """A model of which one rank changes a parameter or buffer by itself."""
    sx.manual_seed(1)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), storage="replicated")
    if sx.rank() == rank:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        change(tensors[name].array)
    return model


def last_bit(array):
    array.reshape(-1)[-1:] = np.nextafter(array.reshape(-1)[-1:], np.inf)


@pytest.mark.parametrize("name", ["0.W", "0.b", "1.running_mean", "1.running_var"])
def test_drifted_replicas_are_named(name):
    def work():
        sx.assert_replicas_equal(drifted(name, 2, last_bit))

    on_all_ranks(work, RuntimeError, rf"drifted apart: '{re.escape(name)}' of rank 2 is not that of rank 0")


def test_equal_replicas_pass():
    for size in (1, 3):
        run_threads(lambda: sx.assert_replicas_equal(drifted("0.W", -1, last_bit)), size)


def test_check_every():
    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3), check_every=3, storage="replicated")
        for step in range(1, 5):
            if step == 2 and sx.rank() == 1:
                last_bit(model.module.b.array)
            try:
                model(sx.tensor(np.full((2, 4), sx.rank(), np.float32)))
            except RuntimeError:
                assert step == 3
                raise

    on_all_ranks(work, RuntimeError, "'b' of rank 1 is not that of rank 0")
    for wrong in (0, -1, 1.5, "3"):
        with pytest.raises(ValueError, match="check_every must be an integer >= 1 or None, got"):
            sx.DistributedDataParallel(nn.Linear(2, 2), check_every=wrong)


# -- rows that nobody shared out


def warned(size, batches, loader=False):
    """How often and where each rank is warned when it is given `batches`, a function of its rank."""

    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        for x in batches(sx.rank()):
            for xb in DataLoader(Dataset(x), batch_size=len(x)) if loader else [sx.tensor(x)]:
                model(xb)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_threads(work, size)
    return [w for w in caught if "every rank was given the same" in str(w.message)]


def test_identical_rows_are_warned_of_once():
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    found = warned(3, lambda rank: [rows] * 5)
    assert len(found) == 1  # on rank 0
    assert all(re.search("the same 6 rows.*count 3 times.*DataLoader", str(w.message)) for w in found)


def test_a_single_row_that_all_ranks_have_is_warned_of():
    assert len(warned(2, lambda rank: [np.ones((1, 4), np.float32)])) == 1


def test_what_follows_from_replicated_inputs_is_replicated():
    """Also where it is an input of the next call, as a hidden state is."""

    def work():
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(nn.Linear(3, 3).double())
        hidden = sx.replicated(np.ones((1, 3)))
        for _ in range(3):
            hidden = model(hidden)
        loss = hidden.square().sum()
        loss.backward()
        return loss.item(), model.module.W.grad.sum().item()

    (alone,) = run_threads(work, 1)
    np.testing.assert_allclose(run_threads(work, 3), [alone] * 3, rtol=1e-10)


def test_no_other_rows_are_warned_of():
    numbers = np.random.default_rng(0)
    rows = numbers.standard_normal((6, 4)).astype(np.float32)
    others = numbers.standard_normal((5, 6, 4)).astype(np.float32)
    assert not warned(1, lambda rank: [rows] * 2)
    assert not warned(3, lambda rank: [rows] * 2, loader=True)
    assert not warned(3, lambda rank: [others[rank]] * 2)
    assert not warned(3, lambda rank: [rows[: 2 + rank]] * 2)
    assert not warned(3, lambda rank: [rows[:0]] * 2)
    assert not warned(2, lambda rank: [rows, np.where(np.arange(24).reshape(6, 4) == 23 * rank, 0, rows)][1:] * 2)
    # Only the first batches are compared: later ones cost nothing.
    assert not warned(2, lambda rank: [*([others[rank]] * 3), rows])
