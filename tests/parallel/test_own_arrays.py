"""What NumPy makes of this rank's rows, beside a batch: all ranks refuse it, and name the line, unless it is alike."""

import warnings
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

ROWS = 11


def std(x: Any) -> Any:
    return x.numpy().std()


def shifted(x: Any) -> Any:
    return x - x.numpy().mean(0)


def shifted_by_a_row(x: Any) -> Any:
    return x - x.numpy().mean(0, keepdims=True)


def shifted_by_a_tensor(x: Any) -> Any:
    return x - sx.tensor(x.numpy().mean(0))


LOSSES: dict[str, Any] = {
    # of the model, the inputs, and the targets
    "quotient": lambda m, x, y: ((m(x) / std(x) - y) ** 2).mean(),
    "float": lambda m, x, y: ((m(x) * float(std(x)) - y) ** 2).mean(),
    "item": lambda m, x, y: ((m(x) * std(x).item() - y) ** 2).mean(),
    "list": lambda m, x, y: (m(x) * max(map(max, x.tolist()))).mean(),
    "inputs": lambda m, x, y: ((m(shifted(x)) - y) ** 2).mean(),
    "inputs, a row": lambda m, x, y: ((m(shifted_by_a_row(x)) - y) ** 2).mean(),
    "inputs, a tensor": lambda m, x, y: ((m(shifted_by_a_tensor(x)) - y) ** 2).mean(),
    "matrix": lambda m, x, y: ((m(x @ np.diag(x.numpy().var(0))) - y) ** 2).mean(),
    "einsum": lambda m, x, y: (m(sx.einsum("bi,ij->bj", x, np.diag(x.numpy().std(0)))) * y).mean(),
    "linear": lambda m, x, y: (m(F.linear(x, sx.tensor(np.diag(x.numpy().std(0))))) * y).mean(),
    "layer norm": lambda m, x, y: (m(F.layer_norm(x, (4,), sx.tensor(x.numpy().std(0)))) - y).square().mean(),
    "table": lambda m, x, y: (m(x + F.embedding(sx.argmax(y, 1), x.numpy()[:2])) - y).square().mean(),
    "indexed table": lambda m, x, y: (m(x) * sx.tensor(x.numpy().std(0))[(y > 0).long()]).mean(),
    "gathered table": lambda m, x, y: (m(x)[:, 0] * sx.tensor(x.numpy().std(0)).gather(0, (y > 0).long()[:, 0])).mean(),
    "threshold": lambda m, x, y: ((x > np.median(x.numpy())).to(x.dtype).mean(1, keepdims=True) * m(x)).mean(),
    "where": lambda m, x, y: (m(sx.where(x > 0, x, np.percentile(x.numpy(), 10))) - y).abs().mean(),
    "clip": lambda m, x, y: (m(x.clip(min=np.percentile(x.numpy(), 10))) - y).abs().mean(),
    "power": lambda m, x, y: ((m(x) - y).abs() ** (1 + x.numpy().var())).mean(),
    "option": lambda m, x, y: F.huber_loss(m(x), y, delta=float(np.median(np.abs(y.numpy())))),
    "slope": lambda m, x, y: (F.leaky_relu(m(x), float(std(x))) - y).square().mean(),
    "columns": lambda m, x, y: ((m(x) - y) ** 2)[:, np.argsort(y.numpy().var(0))[:1]].mean(),
    "column": lambda m, x, y: ((m(x) - y) ** 2)[:, np.argmax(y.numpy().mean(0))].mean(),
    "sum": lambda m, x, y: ((m(x) - y) ** 2).mean() * std(x),
    "penalty": lambda m, x, y: ((m(x) - y) ** 2).mean() + float(std(x)) * (m.module.W**2).sum(),
    "factor": lambda m, x, y: ((m(x) - y) ** 2).mean() * (std(x) * (m.module.W**2).sum()),
    "weights": lambda m, x, y: ((x @ (m.module.W * std(x)) - y) ** 2).mean() + m(x).mean(),
    "outputs": lambda m, x, y: (m(x) / np.abs(m(x).detach().numpy()).max() - y).square().mean(),
}


def trained(loss: Any, virtual: int | None = None) -> list[bytes]:
    if virtual:
        sx.init(virtual_shards=virtual)
    sx.manual_seed(0)
    draw = np.random.default_rng(5)
    data = Dataset(draw.standard_normal((2 * ROWS, 4)), draw.standard_normal((2 * ROWS, 2)))
    model = sx.DistributedDataParallel(nn.Linear(4, 2).double())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for x, y in DataLoader(data, batch_size=ROWS):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


def on(ranks: int, loss: Any, virtual: int | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_threads(lambda: trained(loss, virtual), ranks)


@pytest.mark.parametrize("virtual", [None, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_what_follows_from_the_rows_of_one_rank_is_refused(name: str, virtual: int | None):
    with pytest.raises(RuntimeError, match=r"must be the same on every rank|reproducible mode") as error:
        on(3, LOSSES[name], virtual)
    assert virtual or "no gradient was added" in str(error.value)


def test_the_line_and_the_numbers_are_named():
    with pytest.raises(RuntimeError, match=r"test_own_arrays\.py:\d+: a number .*, is [\d.]+, [\d.]+ on ranks 0 to 1:"):
        on(2, LOSSES["quotient"])


def test_a_rank_without_rows_has_another_number():
    with pytest.raises(RuntimeError, match="must be the same on every rank"):
        on(ROWS + 1, LOSSES["float"])


def test_one_process_has_all_rows():
    for name, loss in LOSSES.items():
        assert np.isfinite(on(1, loss)[0][0]).all(), name


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, x, y: ((m(x) * np.sqrt(3.0) - y / np.float64(1.7) + np.array([1.0, 2.0])) ** 2).mean(),
        lambda m, x, y: ((m(x - sx.global_value(x).numpy().mean(0)) - y) ** 2).mean(),
        lambda m, x, y: ((m(x) - y) ** 2)[:, np.array([1, 0])].mean() + 1e-3 * (m.module.W**2).sum(),
    ],
)
def test_what_all_ranks_have_alike_is_right(loss: Any):
    wanted = on(1, loss)[0]
    for found in on(3, loss):
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-12)


def test_what_one_rank_computes_for_itself_is_not_compared():
    """As a program does that prints on rank 0."""

    def loss(m: Any, x: Any, y: Any) -> Any:
        if sx.rank() == 0:
            assert (m(x).detach() * np.float64(1.2345) + np.array([1.0, 2.0])).numpy().size
        return ((m(x) - y) ** 2).mean()

    wanted = on(1, loss)[0]
    np.testing.assert_allclose(on(2, loss)[1][0], wanted[0], rtol=0, atol=1e-12)


def test_ranks_with_data_of_their_own_have_numbers_of_their_own():
    """As in reinforcement learning: the episodes of each rank, and their returns."""

    def work() -> Any:
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(nn.Linear(4, 2).double())
        rows = sx.tensor(np.random.default_rng(sx.rank()).standard_normal((3, 4)))
        (model(rows) * (0.123456789 + sx.rank())).sum().backward()
        return model.module.b.grad.numpy()

    one, two = (np.full((1, 2), 3 * (0.123456789 + rank)) for rank in (0, 1))
    for found in run_threads(work, 2):
        np.testing.assert_allclose(found, one + two, rtol=1e-12)


def padded(samples: Any) -> Any:
    """Sequences, padded to the longest of this rank; how many steps each has; and the targets."""
    x, steps = np.zeros((len(samples), max(len(each) for each, _ in samples), 4)), [len(each) for each, _ in samples]
    for row, (each, _) in zip(x, samples, strict=True):
        row[: len(each)] = each
    return sx.tensor(x), sx.tensor(steps), sx.tensor(np.array([y for _, y in samples]))


def mean_of_steps(x: Any, steps: Any) -> Any:
    inside = (sx.arange(x.shape[1]) < steps[:, None]).to(x.dtype)
    return (x * inside[:, :, None]).sum(1) / steps[:, None]


def causal(x: Any) -> Any:
    length = x.shape[1]
    return (x @ x.transpose(1, 2) + np.triu(np.full((length, length), -1e9), 1)).softmax(-1) @ x


TABLE = np.random.default_rng(3).standard_normal((9, 4))
BY_LENGTH: dict[str, Any] = {
    # of the inputs, whose length is that of the longest sequence of this rank
    "positions": lambda x: x + np.sin(np.arange(x.shape[1])[:, None] / 10.0 ** np.arange(4)),
    "positions, a tensor": lambda x: x + sx.tensor(TABLE)[: x.shape[1]],
    "shorter by one": lambda x: sx.cat([x[:, :1], x[:, 1:] * np.exp(-np.arange(x.shape[1] - 1) / 3.3)[:, None]], 1),
    "causal mask": causal,
    "matrix": lambda x: sx.einsum("btd,st->bsd", x, np.tril(np.full((x.shape[1],) * 2, 0.37))),
}
OF_ROWS: dict[str, Any] = {
    "number": lambda x: x / x.numpy().std(),
    "of features": lambda x: x - x.numpy().mean((0, 1)),
    "products with the other rows": lambda x: x + (x.sum(1) @ x.numpy().sum(1).T).mean(1)[:, None, None],
}


def trained_on_sequences(change: Any) -> Any:
    sx.manual_seed(0)
    draw = np.random.default_rng(5)
    data = [(draw.standard_normal((n, 4)), draw.standard_normal(2)) for n in draw.integers(1, 9, 2 * ROWS)]
    model = sx.DistributedDataParallel(nn.Linear(4, 2).double())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for x, steps, y in DataLoader(data, batch_size=ROWS, collate_fn=padded):
        optimizer.zero_grad()
        F.mse_loss(model(mean_of_steps(change(x), steps)), y).backward()
        optimizer.step()
    return model.module.W.detach().numpy()


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("name", BY_LENGTH)
def test_sequences_padded_on_each_rank_have_arrays_of_their_length(name: str, ranks: int):
    wanted = run_threads(lambda: trained_on_sequences(BY_LENGTH[name]), 1)[0]
    for found in run_threads(lambda: trained_on_sequences(BY_LENGTH[name]), ranks):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_follows_from_padded_rows_is_refused(name: str):
    with pytest.raises(RuntimeError, match="must be the same on every rank"):
        run_threads(lambda: trained_on_sequences(OF_ROWS[name]), 3)
