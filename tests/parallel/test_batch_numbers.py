"""Losses that are divided by what follows from the number of rows, on even and on uneven ranks: right or refused."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.core import batch_numbers
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

RIGHT: dict[str, Callable[[Any], Any]] = {
    "x.shape[0]": lambda x: x.shape[0],
    "x.size(0) * 2": lambda x: x.size(0) * 2,
    "x.numel()": lambda x: x.numel(),
    "math.prod": lambda x: math.prod(x.shape),
    "np.prod": lambda x: np.prod(x.shape),
    "math.sqrt": lambda x: math.sqrt(x.shape[0]),
    "math.log of a float": lambda x: math.log(float(x.shape[0])),
    "np.sqrt": lambda x: np.sqrt(x.shape[0]),
    "np.maximum": lambda x: np.maximum(x.shape[0], 1),
    "np.clip": lambda x: np.clip(100, 1, x.shape[0]),
    "np.less": lambda x: 2.0 if np.less(x.shape[0], 4) else 1.0,
    "a power's rest": lambda x: pow(x.shape[0], 2, 30),
    "a NumPy number": lambda x: np.float64(0.5) * x.shape[0],
    "float times": lambda x: 2.0 * x.shape[0],
    "a share of one": lambda x: 1 / (1.0 / x.shape[0]),
    "power": lambda x: x.shape[0] ** 0.5,
    "float": lambda x: float(x.shape[0]),
    "float of a share": lambda x: float(x.shape[0] / 2),
    "round": lambda x: round(x.shape[0] * 1.1),
    "minus": lambda x: 0 - (-x.shape[0]),
    "plus": lambda x: +x.shape[0],
    "abs": lambda x: abs(-x.shape[0]),
    "divmod": lambda x: divmod(x.shape[0], 2)[0],
    "divmod of a number": lambda x: divmod(100, x.shape[0])[0],
    "bits": lambda x: (x.shape[0] & 0xFF) | 0,
    "shifted": lambda x: x.shape[0] << 1,
    "max": lambda x: max(1, x.shape[0]),
    "sum": lambda x: sum([x.shape[0], 1]),
    "text of a share": lambda x: float(f"{x.shape[0] / 2:.3f}"),
    "a tensor": lambda x: sx.tensor(x.shape[0]),
    "a tensor of a float": lambda x: sx.tensor(float(x.shape[0])),
    "math.sqrt of a share": lambda x: math.sqrt(x.shape[0] / 2),
    "the smaller one": lambda x: min(x.shape[0] / 2, 2.5),
    "a branch": lambda x: 2.0 if x.shape[0] > 4 else 1.0,
    "a branch on a share": lambda x: 2.0 if x.shape[0] / 2 > 2 else 1.0,
    "a full batch": lambda x: 2.0 if x.shape[0] in (6, 7) else 1.0,
    "a share beside an array": lambda x: (np.ones(2) * (x.shape[0] / 2))[0],
    "nelement": lambda x: x.nelement(),
    "beside what all ranks compute": lambda x: x.std() * x.shape[0],
    "beside a maximum": lambda x: (x.max() + 9) / x.shape[0],
    "beside sorted rows": lambda x: (x[:, 0].sort()[0].abs() / x.shape[0]).sum(),
    "beside counts": lambda x: (sx.unique((x > 0).long(), return_counts=True)[1] / x.shape[0]).square().sum(),
    "beside a number of rows": lambda x: (1 + (x > 0).sum()) / x.shape[0],
    "beside an accumulator": lambda x: accumulated(x) / x.shape[0],
    "in place": lambda x: accumulated(x).div_(x.shape[0]),
    "an option": lambda x: F.smooth_l1_loss(x * 0, x, beta=x.shape[0] / 16),
    "a label smoothing": lambda x: F.cross_entropy(x, (x[:, 0] > 0).long(), label_smoothing=x.shape[0] / 16),
    "a probability": lambda x: F.dropout(x * 0 + 1, x.shape[0] / 16).mean() + 1,
    "a tensor of a list": lambda x: sx.tensor([x.shape[0], 1]).sum(),
    "beside a constant": lambda x: (sx.ones(2) * x.shape[0])[0],
    "a count kept by hand": lambda x: counted(x),
    "a count in one place": lambda x: counted(x, 1)[1],
    "counts replaced by rows": lambda x: counts_of_rows(x).copy_(x[:, 0]).square().mean() + 1,
    "counts less rows": lambda x: counts_of_rows(x).sub_(x[:, 0]).square().mean(),
    "the p of a norm": lambda x: x.norm(p=x.shape[0] / 3),
}
REFUSED: dict[str, Callable[[Any], Any]] = {
    "int": lambda x: int(x.shape[0]),
    "np.arange": lambda x: np.arange(x.shape[0]).size,
    "an array": lambda x: np.array(x.shape)[0],
    "np.cumprod": lambda x: np.cumprod(x.shape)[-1],
    "bit_length": lambda x: x.shape[0].bit_length(),
}
OWN: dict[str, Callable[[Any], Any]] = {
    "chunks of rows": lambda x: len(x.chunk(x.shape[0])),
    "an option": lambda x: F.huber_loss(x, x * 0, delta=x.abs().mean().item()),
    "an option of an operation": lambda x: F.leaky_relu(x, x.abs().mean().item() * 0.1).mean(),
    "a label smoothing": lambda x: F.cross_entropy(x, (x[:, 0] > 0).long(), label_smoothing=0.1 * x.mean().item() ** 2),
    "a probability": lambda x: F.dropout(x, x.abs().mean().item() * 0.1).mean(),
}


@sx.no_grad()
def accumulated(x: Any) -> Any:
    """Adds a sum over rows to a tensor that is made outside of the batch."""
    total = sx.zeros(1, dtype=sx.float64)
    total += x.square().sum()
    return total


@sx.no_grad()
def counted(x: Any, at: Any = ...) -> Any:
    """A count that is kept in a tensor by hand."""
    total = sx.zeros(2)
    for _ in range(2):
        total[at] += x.shape[0]
        total /= sx.tensor(2.0)
    return total if at == 1 else total.mean()


def counts_of_rows(x: Any) -> Any:
    """A number for each row, to which the number of rows was added."""
    counts = sx.zeros(x.shape[0], dtype=sx.float64)
    counts.add_(x.shape[0])
    return counts


def gradients(rows: int, divisor: Callable[[Any], Any]) -> Any:
    sx.manual_seed(0)
    draws = np.random.default_rng(0)
    data = Dataset(draws.standard_normal((rows, 4)), draws.integers(0, 3, rows))
    model = sx.DistributedDataParallel(nn.Linear(4, 3).double())
    running = 0.0
    for x, _ in DataLoader(data, batch_size=rows):
        loss = (model(x) ** 2).sum() / divisor(x)
        loss.backward()
        running += loss.item() * x.size(0)
    return [p.grad.numpy().copy() for p in model.parameters()], f"{running / rows:.9f}"


@pytest.mark.parametrize("rows", [6, 7])
@pytest.mark.parametrize("name", RIGHT)
def test_right_on_any_ranks(name: str, rows: int):
    (wanted, text), *_ = run_threads(gradients, 1, (rows, RIGHT[name]))
    for ranks in (2, 3):
        for found, said in run_threads(gradients, ranks, (rows, RIGHT[name])):
            assert said == text
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_several_ranks(name: str):
    run_threads(gradients, 1, (6, REFUSED[name]))
    with pytest.raises(RuntimeError, match=r"follows from x.shape\[0\] and is 6 in the global batch"):
        run_threads(gradients, 2, (6, REFUSED[name]))


@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("name", OWN)
def test_options_that_follow_from_rows_of_one_rank_are_refused(name: str, rows: int):
    run_threads(gradients, 1, (rows, OWN[name]))
    with pytest.raises(RuntimeError, match=r"must be the same on every rank|along axis 0 lie the rows of this rank"):
        run_threads(gradients, 2, (rows, OWN[name]))


def added_in_place(total: Any, loss: Any) -> Any:
    total += loss
    return total


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("start", [lambda: sx.zeros(1), lambda: sx.tensor(0.5), lambda: sx.ones(2), lambda: 1.0])
@pytest.mark.parametrize("add", [added_in_place, lambda total, loss: total + loss, lambda total, loss: loss + total])
def test_a_running_sum_of_losses_is_global_after_their_backward(start: Any, add: Any, after: bool):
    def train() -> Any:
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(nn.Linear(4, 3).double())
        total = start()
        for x, _ in DataLoader(Dataset(np.arange(28.0).reshape(7, 4) / 28, np.arange(7)), batch_size=5):
            loss = (model(x) ** 2).mean()
            if after:
                loss.backward()
            total = add(total, loss.detach())
            shown = total.numpy(), f"{total.mean().item():.5f}"
        return shown

    wanted, text = run_threads(train, 1)[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for found, its_text in run_threads(train, 3):
            assert not after or (its_text == text and np.allclose(found, wanted, rtol=1e-6))
    assert bool(said) != after, [str(w.message) for w in said]


@pytest.mark.parametrize(("divisor", "warns"), [(len, True), (lambda x: x.shape[0] // 2, False)])
def test_a_loss_divided_by_len_warns(divisor: Callable[[Any], Any], warns: bool):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(gradients, 2, (6, divisor))
    assert any("is divided by 3, the number of rows of this rank" in str(w.message) for w in said) == warns


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_branch_on_what_only_this_rank_knows_warns(ranks: int):
    def work() -> None:
        ((x, _),) = DataLoader(Dataset(np.ones((4, 4)), np.arange(4)), batch_size=4)
        assert x.mean().item() < 2

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(work, ranks)
    assert any("a branch on 1.0, which follows from this rank's rows" in str(w.message) for w in said) == (ranks > 1)


def test_of_one_process_a_number_is_an_int():
    ((x, _),) = DataLoader(Dataset(np.ones((6, 4)), np.arange(6)), batch_size=6)
    n = x.shape[0]
    assert isinstance(n, int)
    assert (statistics.mean([n, n]), np.isclose(n, 6), json.dumps(n), n.bit_length()) == (6, True, "6", 3)


def test_as_an_index_or_a_length_and_beside_arrays_a_number_is_this_ranks():
    def work() -> Any:
        for x, _ in DataLoader(Dataset(np.ones((6, 4)), np.arange(6)), batch_size=6):
            n = x.shape[0]
            array = np.ones((n, 2)) * n
            return np.zeros(n).size, [*range(n)], array.sum(), f"{n} {n:d}", {n: 1}[2], n == 2 < 3 * n, [0] * n

    assert run_threads(work, 3)[1] == (2, [0, 1], 8.0, "2 2", 1, True, [0, 0])


def test_lengths_of_two_batches_are_compared_as_those_of_all_rows():
    """Of 3 and 4 rows, each of two ranks or one of them has 2."""

    def work() -> Any:
        x, z = (next(iter(DataLoader(Dataset(np.ones((n, 2))), batch_size=n))) for n in (3, 4))
        return x.shape[0] == z.shape[0], x.shape[0] != z.shape[0], x.shape == z.shape, x.shape == x.shape

    assert run_threads(work, 2) == [(False, True, False, True)] * 2


@pytest.mark.parametrize("length", [len, lambda x: x.shape[0]])
def test_counts_of_this_rank_in_a_list_are_summed_by_all_reduce(length: Callable[[Any], Any]):
    def work() -> list[float]:
        counts = sx.zeros(2)
        for x, y in DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7):
            counts += sx.tensor([(x < 5).sum().item(), length(y)])
        sx.distributed.all_reduce(counts)
        return counts.tolist()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that item() is this rank's
        assert [run_threads(work, ranks)[-1] for ranks in (1, 2, 3)] == [[5, 7]] * 3


def in_one_tensor(counts: Any, hits: Any, y: Any) -> None:
    counts[0] += hits.sum().item()
    counts[1] += y.size(0)


def in_one_tensor_backwards(counts: Any, hits: Any, y: Any) -> None:
    counts[1] += y.size(0)
    counts[0] += hits.sum().item()


def as_a_list(counts: Any, hits: Any, y: Any) -> None:
    counts += sx.tensor([hits.sum().item(), y.size(0)])


def as_numbers_times_rows(counts: Any, hits: Any, y: Any) -> None:
    counts.add_(sx.tensor([hits.double().mean().item() * y.size(0), y.size(0)]))


def rows_alone(counts: Any, hits: Any, y: Any) -> None:
    counts[:] += y.shape[0] * sx.tensor([5 / 7, 1.0])


def as_it_is_set(counts: Any, hits: Any, y: Any) -> None:
    counts[0] = hits.sum().item()
    counts[1] = y.size(0)


def as_sums(counts: Any, hits: Any, y: Any) -> None:
    counts[0] += hits.sum()
    counts[1] += y.size(0)


def as_a_list_of_a_sum(counts: Any, hits: Any, y: Any) -> None:
    counts += sx.tensor([hits.sum(), y.size(0)])


def as_a_share(counts: Any, hits: Any, y: Any) -> None:
    """As PyTorch's ImageNet example counts."""
    share = hits.double().sum(0, keepdim=True).mul_(1.0 / y.size(0))
    counts += sx.tensor([share[0].item() * y.size(0), y.size(0)])


KNOWN = [rows_alone, as_sums, as_a_list_of_a_sum]
COUNTED = [*KNOWN, in_one_tensor, in_one_tensor_backwards, as_a_list, as_numbers_times_rows, as_it_is_set, as_a_share]


def count(add: Callable[[Any, Any, Any], None], summed: bool) -> Any:
    with sx.no_grad():
        counts = sx.zeros(2, dtype=sx.float64)
        for x, y in DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7):
            add(counts, x < 5, y)
        if summed:
            sx.all_reduce(counts)
        share = counts[0] / counts[1]
        return [*counts.tolist(), share.item(), (share * sx.ones(2)).sum().item()]


@pytest.mark.parametrize("add", COUNTED)
def test_counts_start_anew_when_they_are_overwritten(add: Callable[[Any, Any, Any], None]):
    @sx.no_grad()
    def work(anew: bool) -> list[Any]:
        counts, found = sx.zeros(2, dtype=sx.float64), []
        for x, y in DataLoader(Dataset(np.arange(14.0) % 7, np.arange(14)), batch_size=7):
            add(counts, x < 5, y)
            sx.all_reduce(counts)
            found += counts.tolist()
            if anew:
                counts.zero_()
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ranks in (1, 2):
            assert run_threads(work, ranks, (True,)) == [pytest.approx([5, 7, 5, 7])] * ranks
        if add is not as_it_is_set:
            with pytest.raises(RuntimeError, match=r"would count it 2 times|follows from this rank's rows alone"):
                run_threads(work, 2, (False,))


@pytest.mark.parametrize("add", COUNTED)
def test_counts_that_are_kept_by_hand(add: Callable[[Any, Any, Any], None]):
    """In a sum over ranks they are this rank's, beside other tensors those of the global batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that item() is this rank's
        for ranks in (1, 2, 3, 8):
            for found in run_threads(count, ranks, (add, True)):
                assert found == pytest.approx([5, 7, 5 / 7, 10 / 7])


def test_gathered_counts_are_those_of_each_rank():
    def work() -> Any:
        ((x, _),) = DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7)
        found = [sx.all_gather(sx.tensor(size)) for size in (x.shape[0], [x.shape[0]], [x.shape[0], 1])]
        own = sx.tensor([(x < 5).sum().item()])
        with pytest.raises(RuntimeError, match="follows from this rank's rows alone"):
            sx.global_value(own)
        return [[each.tolist() for each in sizes] for sizes in found], sx.global_value(sx.tensor(x.shape[0])).item()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in run_threads(work, 2):
            assert found == ([[3, 4], [[3], [4]], [[3, 1], [4, 1]]], 7)


@pytest.mark.parametrize("add", COUNTED)
@pytest.mark.parametrize("shards", [None, 4])
def test_counts_without_a_sum_are_right_or_refused(add: Callable[[Any, Any, Any], None], shards: int | None):
    def work() -> Any:
        sx.init(virtual_shards=shards)
        with sx.no_grad():
            counts = sx.zeros(2, dtype=sx.float64)
            ((x, y),) = DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7)
            add(counts, x < 5, y)
            try:
                scaled = (x * (counts[0] / counts[1])).sum()
            except RuntimeError as error:
                assert "follows from this rank's rows alone" in str(error)  # noqa: PT017
                return None
            return sx.global_value(scaled).item()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ranks in (1, 2, 3):
            found = run_threads(work, ranks)
            known = ranks == 1 or shards is not None or add in KNOWN
            assert found == ([pytest.approx(15)] * ranks if known else [None] * ranks)


@pytest.mark.parametrize("add", COUNTED)
def test_a_sum_of_counts_in_reproducible_mode_is_right_or_refused(add: Callable[[Any, Any, Any], None]):
    def work() -> Any:
        sx.init(virtual_shards=4)
        try:
            return count(add, True)
        except RuntimeError as error:
            assert "would count it" in str(error)  # noqa: PT017
            return None

    assert run_threads(work, 1) == [pytest.approx([5, 7, 5 / 7, 10 / 7])]
    found = run_threads(work, 3)
    assert found == [pytest.approx([5, 7, 5 / 7, 10 / 7]) if add in (rows_alone, as_numbers_times_rows) else None] * 3


def written_in_forward(x: Any) -> Any:
    scale = sx.zeros(3, dtype=sx.float64)
    with sx.no_grad():
        scale[1] = x.shape[0]
        scale += x.shape[0]
    return scale


@pytest.mark.parametrize(
    "scale",
    [
        written_in_forward,
        lambda x: sx.ones(3, dtype=sx.float64) / x.shape[0],
        lambda x: sx.tensor([1.0, 2.0, x.shape[0]]),
        lambda x: sx.maximum(sx.arange(3).double() * 10, sx.tensor(x.shape[0])),
    ],
)
def test_a_number_of_the_batch_in_a_forward_counts_all_rows(scale: Callable[[Any], Any]):
    class Scaled(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * scale(x)

    def work(shards: int | None) -> list[Any]:
        sx.init(virtual_shards=shards)
        sx.manual_seed(0)
        model = sx.DistributedDataParallel(Scaled(4, 3).double())
        data = Dataset(np.random.default_rng(0).standard_normal((7, 4)), np.arange(7) % 3)
        for x, y in DataLoader(data, batch_size=7):
            F.cross_entropy(model(x), y).backward()
        return [p.grad.numpy().copy() for p in model.parameters()]

    wanted = run_threads(work, 1, (None,))[0]
    for ranks, shards in ((2, None), (3, None), (1, 4), (3, 4)):
        for found in run_threads(work, ranks, (shards,)):
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: float(x.shape[0]),
        lambda x: np.array([float(x.shape[0])]),
        lambda x: sx.tensor(math.sqrt(x.shape[0]) ** 2),
    ],
)
def test_a_sum_over_ranks_of_a_plain_number_of_the_batch_warns(make: Callable[[Any], Any]):
    def work() -> None:
        ((x, _),) = DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7)
        sx.all_reduce(make(x))

    for ranks in (1, 2):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run_threads(work, ranks)
        found = ["has become a plain number in tests" in str(w.message) for w in said]
        assert found == [True] * (ranks - 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda n, _: f"{n} {n:.2f} {n / 3} {n / 3:.2f}",
        lambda n, folder: sx.Recorder(folder).log(step=1, rows=n, loss=n / 3),
        lambda n, _: optim.lr_scheduler.ReduceLROnPlateau(optim.SGD([sx.zeros(1, requires_grad=True)])).step(n / 3),
        lambda n, _: n / 3 < 2,
    ],
    ids=["text", "Recorder", "ReduceLROnPlateau", "comparison"],
)
def test_a_sum_over_ranks_after_a_number_of_the_batch_was_shown_does_not_warn(use: Callable[..., Any], tmp_path: Path):
    def work() -> list[int]:
        ((x, _),) = DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7)
        use(x.size(0), tmp_path)
        plain = sx.all_reduce(np.ones(1))
        counts, rows = sx.zeros(1), float(x.size(0))
        with sx.no_grad():
            counts += (x < 5).sum()
        return [int(plain[0]), int(sx.all_reduce(counts).item()), int(rows)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_threads(work, 2) == [[2, 5, 7]] * 2


@pytest.mark.parametrize("make", [lambda x: x.max(), lambda x: sx.replicated(sx.ones(2))])
def test_a_sum_of_what_all_ranks_have_alike_is_refused(make: Callable[[Any], Any]):
    def work() -> list[Any]:
        ((x, _),) = DataLoader(Dataset(np.arange(7.0), np.arange(7)), batch_size=7)
        same = make(x)
        sx.distributed.all_reduce(same, sx.distributed.ReduceOp.AVG)
        sx.distributed.all_reduce(same, sx.distributed.ReduceOp.MAX)
        found = same.tolist()
        sx.distributed.all_reduce(same)
        return [found, same.tolist()]

    ((one, other),) = run_threads(work, 1)
    assert one == other
    with pytest.raises(RuntimeError, match=r"on every rank already.* would count it 2 times"):
        run_threads(work, 2)


def test_a_step_of_a_transformer_makes_none(monkeypatch):
    """The package reads the arrays of tensors: a BatchInt takes a microsecond, and none of its layers needs one."""
    made = []
    monkeypatch.setattr(batch_numbers, "number", lambda *values: made.append(values))
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
    model = sx.DistributedDataParallel(nn.Sequential(nn.TransformerEncoder(layer, 2, nn.LayerNorm(8)), nn.Linear(8, 5)))
    x, y = np.ones((4, 3, 8), np.float32), np.zeros((4, 3), np.int64)
    ((xb, yb),) = DataLoader(Dataset(x, y), batch_size=4)
    F.cross_entropy(model(xb).reshape(-1, 5), yb.reshape(-1)).backward()
    assert made == []
    _ = xb.shape
    assert len(made) == 1
