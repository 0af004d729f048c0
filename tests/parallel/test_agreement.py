"""Ranks whose optimizers or criteria differ end with an error that says in what, before anything is mixed."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.launching import needs_mpirun, run_ranks
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.exactness import data, gradients, network

LAYOUTS = [(2, 1, "shared"), (3, 1, "shared"), (2, 2, "shared"), (4, 2, "shared"), (2, 1, "replicated")]
LINE = r"at \S+:\d+"


def odd() -> bool:
    return sx.rank() == sx.size() - 1


def train(make_optimizer, storage="shared", criterion=None, wrap_last=False):
    """A training loop. `make_optimizer`: called with the parameters; before they are wrapped if `wrap_last`."""
    criterion = criterion or nn.CrossEntropyLoss()
    x, y = data(24)
    bare = network()
    optimizer = make_optimizer(bare.parameters()) if wrap_last else None
    model = sx.DistributedDataParallel(bare, storage=storage)
    optimizer = optimizer or make_optimizer(model.parameters())
    for xb, yb in DataLoader(Dataset(x, y), batch_size=6):
        for parameter in model.parameters():
            parameter.grad = None
        try:
            criterion(model(xb), yb).backward()
        except RuntimeError:
            assert all(parameter.grad is None for parameter in model.parameters())
            raise
        optimizer.step()


# -- optimizers


def restored(make, updates=5):
    """An optimizer that goes on after some updates, in memory of its own."""

    def made(parameters):
        parameters = [*parameters]
        optimizer = make(parameters)
        if odd():
            other = make([sx.tensor(p.numpy().copy(), requires_grad=True) for p in parameters])
            for _ in range(updates):
                for p in other.param_groups[0]["params"]:
                    p.grad = np.ones_like(p.array)
                other.step()
            optimizer.load_state_dict(other.state_dict())
        return optimizer

    return made


OPTIMIZERS = {
    "Adam and AdamW": (
        lambda p: (optim.AdamW if odd() else optim.Adam)(p, lr=0.01, weight_decay=0.1),
        r"AdamW\(lr=0\.01, .*instead of Adam\(lr=0\.01, ",
    ),
    "SGD and Adam": (
        lambda p: optim.Adam(p, lr=0.1) if odd() else optim.SGD(p, lr=0.1),
        r"Adam\(.* instead of SGD\(lr=0\.1, ",
    ),
    "momentum or none": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9 if odd() else 0),
        r"SGD\(.*momentum=0\.9, .*\) after 0 updates .*instead of SGD\(lr=0\.1, weight_decay=0, momentum=0, ",
    ),
    "Nesterov's momentum": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=odd()),
        r"SGD.*nesterov=True, .* after 0 updates of 4 parameter\(s\) instead of SGD.*nesterov=False, .* after 0 up",
    ),
    "fewer parameters": (
        lambda p: optim.SGD([*p][1:] if odd() else p, lr=0.1),
        r"SGD.* after 0 updates of 3 parameter\(s\) instead of SGD.* of 4 parameter\(s\)",
    ),
    "another order": (lambda p: optim.SGD([*p][::-1] if odd() else p, lr=0.1), "a learning rate, say"),
    "groups": (
        lambda p: optim.SGD([{"params": [q]} for q in p] if odd() else p, lr=0.1),
        r"SGD.* after 0 updates of 1 parameter\(s\) instead of",
    ),
    "a restored Adam": (
        restored(lambda p: optim.Adam(p, lr=0.01)),
        r"Adam\(.* after 5 updates of 4 parameter\(s\) instead of Adam\(.* after 0 updates of 4 parameter\(s\)",
    ),
    "a restored SGD": (
        restored(lambda p: optim.SGD(p, lr=0.01)),
        r"SGD.* after 5 updates .* instead of .* after 0 updates",
    ),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("size", "hosts", "storage"), LAYOUTS)
def test_optimizers_that_differ(kind, size, hosts, storage):
    make, wanted = OPTIMIZERS[kind]
    if storage == "shared" and size > hosts:  # found before parameters move
        message = rf"rank \d has come to optimizer\.step {LINE}, rank {size - 1} has come to optimizer\.step with "
        message += rf"other numbers \({wanted}"
    elif kind == "groups":
        message = rf"rank 0 has 1 optimizer updates {LINE}, rank {size - 1} has 4 optimizer updates"
    else:
        message = rf"rank 0 has come to backward {LINE}, rank {size - 1} has stepped optimizers with other options "
        message += rf"\({wanted}.*drifted"
    wrap_last = kind.startswith("a restored")
    said = on_all_ranks(lambda: train(make, storage, wrap_last=wrap_last), RuntimeError, message, size, hosts)
    assert len(set(said)) == 1


def test_an_optimizer_that_some_have_restored_after_wrapping():
    """With memory that all share it is a call of all, and those who do not come are named."""

    def work():
        model = sx.DistributedDataParallel(network())
        restored(lambda p: optim.Adam(p, lr=0.01))(model.parameters())
        sx.DistributedDataParallel(nn.Linear(2, 2))
        x, y = data(24)
        nn.CrossEntropyLoss()(model(sx.tensor(x)), y).backward()

    with pytest.raises(Exception, match=r"load_state_dict|DistributedDataParallel|gather"):
        run_threads(work, 2, timeout=20)


@pytest.mark.parametrize("storage", ["shared", "replicated"])
def test_optimizers_that_are_alike_go_on(storage):
    """Also with state that was loaded, groups, unused parameters, and where one rank has a model of its own."""

    def work():
        x, y = data(24)
        bare = network()
        optimizer = optim.Adam([{"params": [p]} for p in bare.parameters()], lr=0.01)
        for parameter in bare.parameters():
            parameter.grad = np.ones_like(parameter.array)
        optimizer.step()
        state = optimizer.state_dict()
        model = sx.DistributedDataParallel(bare, storage=storage)
        optimizer.load_state_dict(state)
        for step, (xb, yb) in enumerate(DataLoader(Dataset(x, y), batch_size=6)):
            if step == 1 and odd():
                alone = nn.Linear(3, 3)
                mine = optim.SGD(alone.parameters(), lr=0.1)
                alone(sx.ones(2, 3)).sum().backward()
                mine.step()
            optimizer.zero_grad()
            scores = model(xb)
            (
                nn.CrossEntropyLoss()(scores, yb) if step != 2 else (scores * 0 + model.module[2].W.sum()).mean()
            ).backward()
            optimizer.step()
        sx.assert_replicas_equal(model)

    run_threads(work, 3, timeout=60)


# -- criteria


class Joined(nn.Module):
    """Computes its loss in its forward."""

    def __init__(self, criterion):
        self.body, self._criterion = network(), criterion

    def forward(self, x, y):
        return self._criterion(self.body(x), y)


CRITERIA = {
    "weights": (
        lambda: nn.CrossEntropyLoss([1, 2, 1, 1 + odd()]),
        r"CrossEntropyLoss\(.*weight=\(1, 2, 1, 2\)\) instead of CrossEntropyLoss\(.*weight=\(1, 2, 1, 1\)\)",
    ),
    "weights in an array": (
        lambda: nn.CrossEntropyLoss(np.array([1, 2, 1, 1 + odd()], np.float32)),
        r"weight=\(1, 2, 1, 2\)\) instead of .*weight=\(1, 2, 1, 1\)\)",
    ),
    "weights in a tensor": (lambda: nn.CrossEntropyLoss(sx.tensor([1.0, 2, 1, 1 + odd()])), r"weight=\(1, 2, 1, 2\)\)"),
    "smoothing": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1 * odd()), r"smoothing=0\.1, .*label_smoothing=0,"),
    "reduction": (lambda: nn.CrossEntropyLoss(reduction="sum" if odd() else "mean"), r"reduction='sum', .*'mean'"),
    "ignored": (lambda: nn.CrossEntropyLoss(ignore_index=1 + odd()), r"ignore_index=2, .*ignore_index=1"),
    "class": (lambda: Margin() if odd() else nn.CrossEntropyLoss(), r"Margin\(.* instead of CrossEntropyLoss\("),
}  # fmt: skip


class Margin(nn.CrossEntropyLoss):
    """A criterion of a user's own."""


# Class weights inside of a model are buffers, which become those of rank 0: see the next test.
INSIDE = [kind for kind in CRITERIA if "weights" not in kind]


@pytest.mark.parametrize("mode", [{}, {"virtual_shards": 4}])
@pytest.mark.parametrize(("kind", "joined"), [*((k, False) for k in CRITERIA), *((k, True) for k in INSIDE)])
@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (3, 1), (2, 2)])
def test_criteria_that_differ(kind, size, hosts, mode, joined):
    make, wanted = CRITERIA[kind]

    def work():
        sx.init(**mode)
        x, y = data(24)
        criterion = make()
        model = sx.DistributedDataParallel(Joined(criterion) if joined else network())
        xb, yb = next(iter(DataLoader(Dataset(x, y), batch_size=7)))
        loss = model(xb, yb) if joined else criterion(model(xb), yb)
        (loss + 0.1 * (model.module.body if joined else model.module)[0].W.square().sum()).backward()

    if joined:
        message = r"modules and their options .*_criterion"
        with_module = (ValueError, message)
    message = (
        rf"rank 0 has come to backward {LINE}, rank {size - 1} has computed its loss by .*{wanted}.* before it came"
    )
    error = RuntimeError
    if joined:  # a part of the model
        error, message = with_module
    said = on_all_ranks(work, error, message, size, hosts)
    assert len(set(said)) == 1


@pytest.mark.parametrize("mode", [{}, {"virtual_shards": 4}])
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda x, *rest: F.nll_loss(x.log_softmax(1), *rest)])
def test_class_weights_of_a_function_that_differ(loss, mode):
    def work():
        sx.init(**mode)
        model = sx.DistributedDataParallel(network())
        xb, yb = next(iter(DataLoader(Dataset(*data(24)), batch_size=7)))
        loss(model(xb), yb, sx.tensor([1.0, 2, 1, 1 + odd()])).backward()

    on_all_ranks(work, RuntimeError, "must be the same on every rank, and is 12, 16 on ranks 0 to 1", 2)


@pytest.mark.parametrize("kind", [kind for kind in CRITERIA if "weights" in kind])
def test_class_weights_inside_a_model_become_those_of_rank_0(kind):
    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(Joined(CRITERIA[kind][0]()))
        xb, yb = next(iter(DataLoader(Dataset(x, y), batch_size=7)))
        model(xb, yb).backward()
        return model.module._criterion.weight.numpy().tolist()

    assert run_threads(work, 2, timeout=60) == [[1, 2, 1, 1]] * 2


@pytest.mark.parametrize("mode", [{}, {"virtual_shards": 4}])
def test_criteria_that_are_alike_go_on(mode):
    """Also made anew for every batch, in pieces, several at once, with weights of this rank's rows, and where one rank
    computes losses that no backward comes through."""

    def work():
        sx.init(**mode)
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        other = nn.CrossEntropyLoss(label_smoothing=0.2)
        for xb, yb in DataLoader(Dataset(x, y), batch_size=7):
            scores = model(xb)
            if odd():
                own = sx.tensor(scores.numpy(), requires_grad=True)  # as numbers of this rank alone
                nn.CrossEntropyLoss(reduction="sum")(own, yb.numpy()).backward()
                sx.grad(nn.MSELoss()(own, scores.numpy()), [own])
            likely = sx.sigmoid(scores[:, 0])
            rows = nn.BCELoss(weight=np.linspace(1, 2, len(xb)))(likely, np.ones(len(xb)))
            (nn.CrossEntropyLoss([1, 2, 3, 1])(scores, yb) + other(scores, yb) + rows).backward()
        if not mode:
            for xb, yb in model.accumulate([*DataLoader(Dataset(x, y), batch_size=7)]):
                other(model(xb), yb).backward()

    run_threads(work, 3, timeout=60)


def test_a_criterion_that_changes():
    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        for step, (xb, yb) in enumerate(DataLoader(Dataset(x, y), batch_size=6)):
            if step == 2:
                criterion.label_smoothing = 0.1 + 0.1 * odd()
            criterion(model(xb), yb).backward()

    message = r"backward number 3: .*label_smoothing=0\.2, .* instead of .*label_smoothing=0\.1, "
    on_all_ranks(work, RuntimeError, message, 2)


def test_training_goes_on_when_they_are_put_right():
    def work():
        x, y = data(24)
        model = sx.DistributedDataParallel(network())
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1 * odd())
        batches = [*DataLoader(Dataset(x, y), batch_size=6)]
        with pytest.raises(RuntimeError, match="computed its loss by"):
            criterion(model(batches[0][0]), batches[0][1]).backward()
        criterion.label_smoothing = 0.0
        criterion(model(batches[1][0]), batches[1][1]).backward()
        alone = network()
        nn.CrossEntropyLoss()(alone(sx.tensor(x[6:12])), y[6:12]).backward()
        for name, wanted in gradients(alone).items():
            assert np.abs(gradients(model)[name] - wanted).max() < 1e-12

    run_threads(work, 2, timeout=60)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_the_fingerprint_of_a_criterion_follows_from_its_options(copied):
    weights = np.linspace(0, 1, 40)
    criterion = nn.CrossEntropyLoss(weights, label_smoothing=0.1)
    criterion(sx.zeros(1, 40, requires_grad=True), [0])
    before = criterion.fingerprint()
    assert "_hook" not in vars(criterion)
    same = copied(criterion)
    assert same.fingerprint() == before == nn.CrossEntropyLoss(sx.tensor(weights), label_smoothing=0.1).fingerprint()
    assert re.search(r"weight=40 numbers with the digest [0-9a-f]{8}\)", same.describe())
    same.label_smoothing = 0.2
    assert same.fingerprint() != before
    weights[3] += 1e-12  # another processor's rounding
    assert nn.CrossEntropyLoss(weights, label_smoothing=0.1).fingerprint() == before
    weights[3] += 1e-3
    assert nn.CrossEntropyLoss(weights, label_smoothing=0.1).fingerprint() != before
    assert nn.MSELoss().fingerprint() != nn.L1Loss().fingerprint()
    yes = nn.BCEWithLogitsLoss
    assert yes(pos_weight=[1, 2]).fingerprint() == yes(pos_weight=np.array([1, 2.0]), weight=np.ones(7)).fingerprint()
    assert yes(pos_weight=[1, 2]).fingerprint() != yes(pos_weight=[1, 3]).fingerprint()


@needs_mpirun
def test_a_rank_with_another_criterion_under_mpi(tmp_path):
    pytest.importorskip("mpi4py")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nimport numpy as np\nimport sorix_dist as sx\nfrom sorix_dist import nn\n"
        "from sorix_dist.utils.data import DataLoader, Dataset\n"
        "model = sx.DistributedDataParallel(nn.Linear(3, 2))\n"
        "criterion = nn.CrossEntropyLoss([1, 1 + sx.rank()])\n"
        "for xb, yb in DataLoader(Dataset(np.ones((8, 3), np.float32), np.zeros(8, int)), 4):\n"
        "    try:\n"
        "        criterion(model(xb), yb).backward()\n"
        "    except RuntimeError as error:\n"
        "        sys.stdout.write(f'{sx.rank()} {error}\\n')\n"
        "        break\n"
    )
    ended = run_ranks(2, str(script))
    assert ended.code == 0, ended.err
    for rank in (0, 1):
        wanted = (
            rf"^{rank} .*weight=\(1, 2\)\) instead of .*weight=\(1, 1\)\) before it came to backward at {script}:10"
        )
        assert re.search(wanted, ended.out, re.M), ended.out


@pytest.mark.parametrize(("models", "losses"), [(1, 1), (20, 1), (21, 4), (57, 1), (3, 40), (2, 70)])
def test_between_hosts_a_step_of_many_models_and_losses(models, losses):
    """A row of few of them travels in the message of the comparison, a longer one in a second message; ranks may
    differ in what they reach."""

    def work():
        sx.manual_seed(0)
        all_models = [sx.DistributedDataParallel(nn.Linear(2, 1)) for _ in range(models)]
        (xb,) = DataLoader(Dataset(np.ones((3, 2), np.float32)), batch_size=3)
        xb = xb[0] if isinstance(xb, tuple | list) else xb
        reached = all_models[: 1 if sx.rank() == 1 else None]
        with all_models[0].no_sync():
            found = [reached[0](xb).mean() for _ in range(losses)]
            for loss in found[:-1]:
                loss.backward()
        found[-1] = sum((model(xb).mean() for model in reached[1:]), found[-1])
        found[-1].backward()
        return [loss.item() for loss in found], [model.module.W.grad is not None for model in all_models]

    (values, grads), *others = run_threads(work, 3, hosts=3, timeout=60)
    assert all(other == (values, grads) for other in others)
    assert len(set(values[:-1])) <= 1
    assert all(grads)
