"""Every rank gets to the same error, which names the argument, what came and what was expected."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import CollectiveMismatch, run_threads
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.everywhere import on_all_ranks


def test_another_architecture_on_one_rank():
    def work():
        sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 3 if sx.rank() == 1 else 2)))

    on_all_ranks(work, ValueError, r"rank 0 has '0.W' of shape \(4, 2\).*rank 1 has '0.W' of shape \(4, 3\)")


def test_a_parameter_more_on_one_rank():
    def work():
        layers = [nn.Linear(4, 2)] + [nn.Linear(2, 2)] * (sx.rank() == 2)
        sx.DistributedDataParallel(nn.Sequential(*layers))

    on_all_ranks(work, ValueError, "rank 0 has no more, rank 2 has '1.W'")


def test_another_dtype_on_one_rank():
    def work():
        model = nn.Linear(4, 2)
        if sx.rank() == 0:
            model.W.data = model.W.data.astype(np.float64)
        sx.DistributedDataParallel(model)

    on_all_ranks(work, ValueError, "float64.*rank 1.*float32")


class Own(nn.Module):
    """Has an option of a user's own."""

    def __init__(self, **options):
        self.body = nn.Linear(4, 2)
        vars(self).update(options)

    def forward(self, x):
        return self.body(x)


def frozen(names):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


def nested(layer):
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), layer))


def drawn(count):
    """A dropout layer of which so many masks were drawn."""
    model = nested(nn.Dropout(0.5))
    for _ in range(count):
        model(sx.ones(2, 4))
    return model


def made_after(count):
    """A dropout layer that was made after so many others."""
    for _ in range(count):
        nn.Dropout(0.5)
    return nested(nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("usual", "odd", "message"),
    [
        (
            lambda: nested(nn.Dropout(0.5)),
            lambda: nested(nn.Dropout(0.25)),
            r"rank 0 has module '1\.1' \(Dropout\) with p = 0\.5, rank 1 has .* p = 0\.25 .*, and so has rank 2$",
        ),
        (
            lambda: nested(nn.LayerNorm(4)),
            lambda: nested(nn.LayerNorm(4, eps=1e-3)),
            r"'1\.1' \(LayerNorm\) with eps = 1e-05, .* with eps = 0\.001",
        ),
        (
            lambda: nested(nn.BatchNorm1d(4)),
            lambda: nested(nn.BatchNorm1d(4, momentum=0.2)),
            r"'1\.1' \(BatchNorm1d\) with momentum = 0\.1, .* with momentum = 0\.2",
        ),
        (
            lambda: nested(nn.ReLU()),
            lambda: nested(nn.GELU()),
            r"module '1\.1' \(ReLU\), .*'1\.1' \(GELU\) at the same",
        ),
        (lambda: nested(nn.LeakyReLU(0.1)), lambda: nested(nn.LeakyReLU(0.2)), r"negative_slope = 0\.1.*= 0\.2"),
        (
            lambda: nn.TransformerEncoderLayer(4, 2, activation="relu"),
            lambda: nn.TransformerEncoderLayer(4, 2, activation="gelu"),
            r"the model \(TransformerEncoderLayer\) with activation = \S*relu\S*, .* = \S*gelu",
        ),
        (
            lambda: nn.Conv2d(1, 1, 3, padding=1),
            lambda: nn.Conv2d(1, 1, 3, padding=0),
            r"the model \(Conv2d\) with padding = \(1, 1\), .* = \(0, 0\)",
        ),
        (
            lambda: frozen([]),
            lambda: frozen(["1.W"]),
            r"'1\.W' of shape \(3, 2\) and dtype float32, .*'1\.W' .* that requires no gradient",
        ),
        (
            lambda: Own(scale=2.0),
            lambda: Own(scale=3),
            r"the model \(Own\) with scale = 2, .* with scale = 3 at",
        ),
        (lambda: Own(act=nn.functional.relu), lambda: Own(act=nn.functional.gelu), r"act = relu, .*act = gelu"),
        (lambda: Own(sizes=[(1, 2), 3]), lambda: Own(sizes=[(1, 2), 4]), r"sizes = \(\(1, 2\), 3\), .*, 4\)"),
        (
            lambda: Own(drawn=np.random.default_rng(0)),
            lambda: Own(drawn=np.random.default_rng(1)),
            r"drawn = a random stream whose state has the checksum \d+, .*drawn = a random stream",
        ),
        (lambda: Own(mode="a", skip=True), lambda: Own(mode="a", skip=False), r"skip = True, .*skip = False"),
        (
            lambda: Own(),
            lambda: Own(bias=None),
            r"'body' \(Linear\), rank 1 has the model \(Own\) with bias = None",
        ),
        (lambda: drawn(0), lambda: drawn(3), r"draws = masks of stream 0 from 0 on, .* stream 0 from 3 on"),
        (lambda: made_after(0), lambda: made_after(2), r"masks of stream 0 from 0 on, .* stream 2 from 0 on"),
    ],
)
def test_other_options_on_some_ranks(usual, odd, message):
    def work():
        sx.manual_seed(0)
        sx.DistributedDataParallel(odd() if sx.rank() else usual())

    said = on_all_ranks(work, ValueError, r"the model's (modules and their options|parameters).*" + message)
    assert len(set(said)) == 1


def test_what_each_rank_may_have_for_itself():
    def work():
        own = {"_rank": sx.rank(), "cache": np.full(3, sx.rank()), "last": sx.tensor([sx.rank()]), "training": True}
        model = Own(**own, rate=np.nextafter(0.1, sx.rank()))
        if sx.rank() == 1:
            model.eval()
        sx.DistributedDataParallel(model)

    run_threads(work, 3)


def test_a_model_without_parameters():
    on_all_ranks(lambda: sx.DistributedDataParallel(nn.ReLU()), ValueError, "module must have parameters.*ReLU")
    with pytest.raises(TypeError, match="module must be a Module, got function"):
        sx.DistributedDataParallel(lambda x: x)


def test_wrapped_twice():
    def work():
        model = nn.Linear(2, 2)
        first = sx.DistributedDataParallel(model)
        with pytest.raises(
            ValueError, match=r"wrapped already.*'W' .* on rank 0, whose unwrap\(\) gives the model back"
        ):
            sx.DistributedDataParallel(model)
        sx.DistributedDataParallel(nn.Sequential(first))

    on_all_ranks(work, ValueError, r"wrapped already.*'0\.module\.W'")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_wrapped_model_is_not_copied(how):
    on_all_ranks(lambda: how(sx.DistributedDataParallel(nn.Linear(2, 2))), TypeError, r"take model\.module")


def test_its_module_is_copied():
    """To memory of its own, which may be changed."""

    def work():
        module = sx.DistributedDataParallel(nn.Linear(2, 2)).module
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert np.array_equal(copied.W.data, module.W.data)
            copied.W.data[...] = 7
            assert not (module.W.data == 7).any()

    run_threads(work, 2)
    on_all_ranks(lambda: copy.deepcopy(sx.DistributedDataParallel(nn.Linear(2, 2))), TypeError, "copied", size=1)


def test_different_seeds():
    def differ():
        sx.manual_seed(10 + sx.rank() // 2)
        sx.DistributedDataParallel(nn.Linear(2, 2))

    on_all_ranks(differ, ValueError, "manual_seed must be called with the same value.*rank 0: 10.*rank 2: 11")

    def only_one():
        if sx.rank() == 1:
            sx.manual_seed(3)
        sx.DistributedDataParallel(nn.Linear(2, 2))

    on_all_ranks(only_one, ValueError, "rank 0: none, rank 1: 3")


def test_seed_of_rank_0_for_all_where_none_is_set():
    def order():
        loader = DataLoader(Dataset(np.arange(50)), batch_size=50, shuffle=True, shard=False)
        sx.DistributedDataParallel(nn.Linear(2, 2))
        (batch,) = list(loader)
        return batch.tolist()

    orders = run_threads(order, 3)
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == list(range(50)) != orders[0]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 3], IndexError, r"target must be in \[0, 3\), got 3 in row 1"),
        ([-1, 0], IndexError, r"target must be in \[0, 3\), got -1 in row 0"),
        ([0.0, 1.0], TypeError, "target must hold integers.*float"),
        ([0, 1, 2], ValueError, r"one class per row of logits, shape \(2,\), got shape \(3,\)"),
    ],
)
def test_targets(target, error, message, size):
    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        nn.CrossEntropyLoss()(model(sx.tensor(np.ones((2, 4), np.float32))), np.array(target)).backward()

    on_all_ranks(work, error, message, size)


def test_backward_of_many_elements():
    def work():
        sx.DistributedDataParallel(nn.Linear(4, 3))(sx.tensor(np.ones((2, 4), np.float32))).backward()

    on_all_ranks(work, RuntimeError, "scalar")


def test_batches_and_data_sets():
    data = Dataset(np.zeros((4, 2)), np.zeros(4, int))
    for size in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=r"batch_size must be (an integer )?>= 1, got"):
            DataLoader(data, batch_size=size)
    with pytest.raises(ValueError, match="seed must be an integer >= 0 or None, got -1"):
        DataLoader(data, seed=-1)
    for epoch in (-1, "a", 1.5):
        with pytest.raises(ValueError, match=r"epoch must be (an integer )?>= 0, got"):
            DataLoader(data).set_epoch(epoch)
    with pytest.raises(ValueError, match="dataset must have at least one sample"):
        DataLoader(Dataset(np.zeros((0, 2))))
    with pytest.raises(ValueError, match="X and y must have the same length, got 4 and 3"):
        Dataset(np.zeros((4, 2)), np.zeros(3))
    with pytest.raises(TypeError, match="dataset must have __len__, or __iter__ alone, got int"):
        DataLoader(3)


def test_optimizer_options():
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        optim.SGD([])
    with pytest.raises(ValueError, match="lr must be >= 0, got -1"):
        optim.SGD(nn.Linear(2, 2).parameters(), lr=-1)


def test_a_thread_of_the_program_has_the_seed_of_its_rank(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import threading\nimport numpy as np\nimport sorix_dist as sx\n"
        "from sorix_dist.utils.data import DataLoader, Dataset\n"
        "sx.manual_seed(3)\nseen = []\nsx.rank()\n"
        "loader = DataLoader(Dataset(np.arange(40)), batch_size=40, shuffle=True)\n"
        "thread = threading.Thread(target=lambda: seen.extend(next(iter(loader)).tolist()))\n"
        "thread.start(); thread.join()\nloader.set_epoch(0)\n"
        "assert seen == next(iter(loader)).tolist() != sorted(seen), seen\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_one_rank_evaluates_alone():
    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3)).eval()
        if sx.rank() == 1:
            with sx.no_grad():
                return model(sx.tensor(np.ones((2, 4), np.float32))).shape
        return None

    assert run_threads(work, 3, timeout=20)[1] == (2, 3)


class Unfed(nn.Module):
    """Computes something of no rows."""

    def __init__(self):
        self.body = nn.Linear(4, 3)

    def forward(self, *options):
        return self.body(sx.ones(2, 4))


def counted(x):
    count = sx.zeros(1)
    count += x.shape[0]
    count += 5
    return count


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda m, x: sx.DistributedDataParallel(Unfed())(3, "a"), RuntimeError, "hold no tensor with rows of a batch"),
        (lambda m, x: m(x) * sx.ones(7, 1), ValueError, r"axis 0 of shape \(7, 1\) does not fit a batch of 10 rows"),
        (lambda m, x: sx.cat([x, -x])[:10], RuntimeError, "along axis 0 lie the rows of this rank only"),
        (lambda m, x: sx.cat([x, -x])[-10:], RuntimeError, "along axis 0 lie the rows of this rank only"),
        (lambda m, x: sx.all_gather(x.reshape(-1)), ValueError, "all_gather: the batch must be an axis of its own"),
        (lambda m, x: sx.replicated(x), RuntimeError, "replicated: x follows from the rows of a batch"),
        (lambda m, x: sx.all_reduce(counted(x)), RuntimeError, "all_reduce: x has a number for the global batch"),
    ],
)
def test_what_does_not_fit_a_batch(act, error, message):
    def work():
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        for x in DataLoader(Dataset(np.ones((10, 4), np.float32)), batch_size=10):
            act(model, x)

    on_all_ranks(work, error, message)


def test_arrays_of_another_length_on_each_rank_are_gathered_as_tensors_or_lists():
    with pytest.raises(CollectiveMismatch) as caught:
        run_threads(lambda: sx.all_gather(np.ones(sx.rank() + 1)), 2)
    assert any("a tensor, as sx.tensor(x), or a list" in note for note in caught.value.__notes__)
    for convert in (sx.tensor, list):
        found = run_threads(lambda convert=convert: sx.all_gather(convert(np.ones(sx.rank() + 1))), 2)
        assert [[len(part) for part in parts] for parts in found] == [[1, 2]] * 2


@pytest.mark.parametrize("value", [[1, 2], "a", None])
def test_what_can_not_be_summed(value):
    on_all_ranks(
        lambda: sx.all_reduce(value), TypeError, "all_reduce: x must be a tensor, an array or a number", size=2
    )
