"""A model gets free of its wrapper, by `unwrap` or when no one holds the wrapper any more, and can be wrapped again."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core.flat import leaf_of
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import needs_mpirun, run_ranks
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import assert_same, data, gradients, network

LAYOUTS = [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2)]
KINDS = [{}, {"storage": "replicated"}, {"nonfinite": "skip"}]
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
}


def steps(model, optimizer, batches):
    for xb, yb in batches:
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(xb), yb).backward()
        optimizer.step()


def values(model):
    return {name: p.numpy().copy() for name, p in model.named_parameters()}


def assert_ordinary(model):
    """Its parameters are this process's own, and can be changed."""
    for parameter in model.parameters():
        leaf = leaf_of(parameter)
        assert leaf.sync is None
        assert leaf.local is leaf.total
        assert parameter.array.flags.writeable
        parameter.data += 0
        if parameter.grad is not None:
            assert parameter.grad.array.flags.writeable


@pytest.mark.parametrize("mode", [{}, {"virtual_shards": 4}])
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_goes_on_bare_and_wrapped_again(size, hosts, kind, options, mode):
    """With the optimizer from before, as one process does it."""
    x, y = data(24)

    def alone():
        model = network()
        optimizer = OPTIMIZERS[kind](model.parameters())
        batches = [(sx.tensor(x[i : i + 6]), y[i : i + 6]) for i in range(0, 24, 6)]
        steps(model, optimizer, batches * 2)
        return values(model)

    def work():
        sx.init(**mode)
        bare = network()
        model = sx.DistributedDataParallel(bare, **options)
        optimizer = OPTIMIZERS[kind](model.parameters())
        loader = DataLoader(Dataset(x, y), batch_size=6)
        (first, *rest), whole = [*loader], [(sx.tensor(x[i : i + 6]), y[i : i + 6]) for i in range(0, 24, 6)]
        steps(model, optimizer, [first])
        before, kept = values(model), gradients(model)
        assert model.unwrap() is bare
        assert_ordinary(bare)
        assert_same(values(bare), before)
        assert_same(gradients(bare), kept)
        steps(bare, optimizer, whole[1:3])  # every rank by itself, the same
        again = sx.DistributedDataParallel(bare, **options)
        steps(again, optimizer, rest[2:])
        del again
        last = sx.DistributedDataParallel(bare, **options)
        steps(last, optimizer, [first, *rest])
        sx.assert_replicas_equal(last)
        return values(last)

    wanted = alone()
    for got in run_threads(work, size, hosts=hosts, timeout=60):
        assert_same(got, wanted)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_layers_are_replaced_after_unwrapping(size, hosts):
    x, y = data(24)

    def changed(model):
        model[2] = nn.Linear(model[2].W.shape[0], 4)
        for parameter in model[2].parameters():
            parameter.data[...] = np.cos(np.arange(parameter.numel)).reshape(parameter.shape)
        return model.double()

    def work():
        model = sx.DistributedDataParallel(network())
        (xb, yb), *_ = DataLoader(Dataset(x, y), batch_size=24)
        nn.CrossEntropyLoss()(model(xb), yb).backward()
        model = sx.DistributedDataParallel(changed(model.unwrap()))
        assert all(leaf_of(p).sync is not None for p in model.parameters())
        for parameter in model.parameters():
            parameter.grad = None
        nn.CrossEntropyLoss()(model(xb), yb).backward()
        return gradients(model)

    bare = changed(network())
    nn.CrossEntropyLoss()(bare(sx.tensor(x)), y).backward()
    for got in run_threads(work, size, hosts=hosts, timeout=60):
        assert_same(got, gradients(bare))


def test_the_wrapper_is_of_no_more_use():
    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        bare = model.unwrap()
        with pytest.raises(RuntimeError, match=r"unwrap\(\) has ended this wrapper: wrap the model again"):
            model(sx.ones(2, 4))
        assert bare(sx.ones(2, 4)).shape == (2, 3)

    run_threads(work, 2)


def test_gradients_that_are_not_summed_yet():
    def work():
        x, y = data(8)
        model = sx.DistributedDataParallel(network())
        (xb, yb), *_ = DataLoader(Dataset(x, y), batch_size=8)
        with model.no_sync():
            nn.CrossEntropyLoss()(model(xb), yb).backward()
        with pytest.raises(RuntimeError, match="unwrap: the gradients of the last backwards are not synchronised yet"):
            model.unwrap()
        nn.CrossEntropyLoss()(model(xb), yb).backward()
        model.unwrap()

    run_threads(work, 2)


def test_while_the_parameters_are_edited():
    def work():
        model = sx.DistributedDataParallel(network())
        with model.edit(), pytest.raises(RuntimeError, match="unwrap: the parameters are being edited"):
            model.unwrap()

    run_threads(work, 2)


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (2, 2), (4, 2)])
def test_a_rank_that_does_not_unwrap_is_named(size, hosts):
    def work():
        x, y = data(8)
        model = sx.DistributedDataParallel(network())
        (xb, yb), *_ = DataLoader(Dataset(x, y), batch_size=8)
        if sx.rank() != size - 1:
            model.unwrap()
        nn.CrossEntropyLoss()(model(xb), yb).backward()

    on_all_ranks(work, RuntimeError, rf"rank 0 has come to unwrap .*rank {size - 1} has come to backward", size, hosts)


@pytest.mark.parametrize("how", ["del", "cycle", "replaced"])
@pytest.mark.parametrize(("size", "hosts"), [(1, 1), (3, 1), (4, 2)])
def test_a_model_whose_wrapper_is_gone_is_wrapped_again(size, hosts, how):
    """Also one that a cycle of references still holds on one of the ranks."""
    x, y = data(24)

    def work():
        gc.disable()
        bare = network()
        model = sx.DistributedDataParallel(bare)
        (xb, yb), *_ = DataLoader(Dataset(x, y), batch_size=24)
        nn.CrossEntropyLoss()(model(xb), yb).backward()
        if how == "cycle" and sx.rank() == size - 1:
            vars(model)["_itself"] = [model]
        if how == "replaced":
            model = None
        else:
            del model
        again = sx.DistributedDataParallel(bare)
        for parameter in again.parameters():
            parameter.grad = None
        nn.CrossEntropyLoss()(again(xb), yb).backward()
        assert len(again._coordinator.buckets) == 1
        return gradients(again)

    alone = network()
    nn.CrossEntropyLoss()(alone(sx.tensor(x)), y).backward()
    try:
        for got in run_threads(work, size, hosts=hosts, timeout=60):
            assert_same(got, gradients(alone))
    finally:
        gc.enable()


def test_a_wrapper_that_one_rank_still_holds():
    held = []

    def work():
        bare = nn.Linear(4, 3)
        model = sx.DistributedDataParallel(bare)
        if sx.rank() == 1:
            held.append(model)
        del model
        sx.DistributedDataParallel(bare)

    on_all_ranks(work, ValueError, r"wrapped already: its parameter 'W' belongs to another wrapper on rank 1, whose", 3)


def test_parts_of_a_wrapped_model_are_wrapped_after_unwrapping():
    """Two wrappers over what was one storage, and the storage of the whole again."""

    def work():
        whole = network()
        sx.DistributedDataParallel(whole).unwrap()
        parts = [sx.DistributedDataParallel(whole[0]), sx.DistributedDataParallel(whole[2])]
        parts[0].unwrap()
        with pytest.raises(ValueError, match=r"wrapped already: its parameter '2\.W'"):
            sx.DistributedDataParallel(whole)
        parts[1].unwrap()
        x, y = data(8)
        model = sx.DistributedDataParallel(whole)
        nn.CrossEntropyLoss()(model(sx.tensor(x)), y).backward()

    run_threads(work, 2)


@needs_mpirun
@pytest.mark.parametrize("size", [1, 3])
def test_under_mpi(tmp_path, size):
    pytest.importorskip("mpi4py")
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np\nimport sorix_dist as sx\nfrom sorix_dist import nn, optim\n"
        "from sorix_dist.utils.data import DataLoader, Dataset\n"
        "sx.manual_seed(0)\n"
        "x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)\n"
        "bare = nn.Linear(3, 2)\n"
        "model = sx.DistributedDataParallel(bare)\n"
        "optimizer = optim.Adam(bare.parameters(), lr=0.1)\n"
        "for turn in range(6):\n"
        "    for xb, yb in DataLoader(Dataset(x, np.arange(8) % 2), 4):\n"
        "        optimizer.zero_grad()\n"
        "        nn.CrossEntropyLoss()(model(xb), yb).backward()\n"
        "        optimizer.step()\n"
        "    if turn % 2:\n"
        "        model.unwrap()\n"
        "        bare.W.data += 1\n"
        "    del model\n"
        "    model = sx.DistributedDataParallel(bare)\n"
        "sx.assert_replicas_equal(model)\n"
        "if sx.rank() == 0:\n"
        "    print('sum', f'{float(np.abs(bare.W.numpy()).sum()):.4f}', optimizer.state_dict()['state'][0]['step'])\n"
    )
    ended = run_ranks(size, str(script))
    assert ended.code == 0, ended.err
    alone = run_ranks(1, str(script))
    assert ended.out == alone.out
    assert alone.out.startswith("sum ")
    assert alone.out.endswith(" 12\n")


def test_an_attribute_of_the_wrapped_model_is_named():
    model = sx.DistributedDataParallel(nn.Linear(2, 1))
    with pytest.raises(AttributeError, match=r"no attribute 'in_features'; the wrapped model has it: model\.module\."):
        _ = model.in_features
    with pytest.raises(AttributeError, match=r"no attribute 'decode'$"):
        _ = model.decode
