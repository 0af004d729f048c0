"""Normalisation layers; batch norm over the rows of several holders is that of one who holds them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor, grad, no_grad
from sorix_dist.core.ops import norm
from sorix_dist.core.placement import Batch, Group, Rows, tagged
from sorix_dist.nn import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)
SPLITS = [(8,), (3, 5), (3, 0, 4, 1), (0, 8), (1,) * 8]


class Meeting:
    """Sums the arrays of several threads, each of which asks for as many sums as the others."""

    def __init__(self, size: int) -> None:
        self.arrays: list[Any] = [None] * size
        self.calls: list[list[str]] = [[] for _ in range(size)]
        self.barrier = threading.Barrier(size, timeout=30)

    def sum(self, holder: int, array: Array, what: str) -> Array:
        self.calls[holder].append(what)
        self.arrays[holder] = array
        self.barrier.wait()
        assert len({(a.shape, a.dtype) for a in self.arrays}) == 1
        total = np.array(np.sum(self.arrays, axis=0))
        self.barrier.wait()
        return total


class Holder(Group):
    """One of several threads that hold the rows of a batch."""

    single = False

    def __init__(self, meeting: Meeting, number: int) -> None:
        self.meeting, self.number = meeting, number
        self.parts = len(meeting.calls)

    def reduce(self, array: Array, what: str) -> Array:
        return self.meeting.sum(self.number, array, what)


Work = Callable[[Callable[..., Tensor]], Any]


def shared(split: Sequence[int], work: Work) -> tuple[list[Any], Meeting]:
    """What `work(rows)` returns for every holder, each in a thread; `rows` makes a tensor of its rows of an array."""
    meeting, results, failures = Meeting(len(split)), [None] * len(split), []
    ends = np.cumsum(split)

    def run(holder: int) -> None:
        start, stop = int(ends[holder]) - split[holder], int(ends[holder])
        batch = Batch(Rows(start, stop, int(ends[-1])), Holder(meeting, holder))

        def rows(array: Array, **options: Any) -> Tensor:
            return tagged(Tensor(array[start:stop], **options), batch.at(0))

        try:
            results[holder] = work(rows)
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(split))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for failure in sorted(failures, key=lambda f: isinstance(f, threading.BrokenBarrierError)):
        raise failure
    return results, meeting


def fresh(shape: tuple[int, ...]) -> tuple[Any, str, str]:
    """A float64 batch norm for inputs of `shape`, and what its scale and shift are called."""
    channels = shape[1]
    layer: Any = BatchNorm2d(channels, dtype="float64") if len(shape) == 4 else BatchNorm1d(channels, dtype="float64")
    names = ("weight", "bias") if len(shape) == 4 else ("gamma", "beta")
    for name, start in zip(names, (0.5, -1.0), strict=True):
        parameter = getattr(layer, name)
        parameter.data = (start + np.arange(channels) / 4).reshape(parameter.shape)
    return layer, *names


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 4), (8, 3, 2, 5)], ids=str)
def test_batch_norm_of_shared_rows_is_that_of_all_rows(shape: tuple[int, ...], split: tuple[int, ...]) -> None:
    x = rng.standard_normal(shape) * 3 + 100
    weights = rng.standard_normal(shape)

    def work(rows: Callable[..., Tensor]) -> Any:
        layer, scale, shift = fresh(shape)
        inputs = rows(x, requires_grad=True)
        y = layer(inputs)
        gradients = grad(y, [inputs, getattr(layer, scale), getattr(layer, shift)], rows(weights))
        return [t.array for t in (y, *gradients, layer.running_mean, layer.running_var)]

    results, meeting = shared(split, work)
    reference = work(Tensor)
    y, gradient, *everywhere = zip(*results, strict=True)
    for parts, expected in ((y, reference[0]), (gradient, reference[1])):
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-9, atol=1e-12)
    for parts, expected in zip(everywhere, reference[2:], strict=True):
        assert all((part == parts[0]).all() for part in parts), "the holders differ"
        np.testing.assert_allclose(parts[0], expected, rtol=1e-11, atol=1e-11)
    asked = [*["batch_norm"] * 3, "autograd.grad"]
    assert meeting.calls == [asked] * len(split), "two sums in the forward, one in the backward"


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_second_derivatives_of_shared_rows_are_those_of_all_rows(split: tuple[int, ...]) -> None:
    x, weights, direction = (rng.standard_normal((8, 3)) for _ in range(3))

    def work(rows: Callable[..., Tensor]) -> Any:
        layer, *_ = fresh(x.shape)
        inputs = rows(x, requires_grad=True)
        y = layer(inputs)
        (first,) = grad((y * y * rows(weights)).sum(), inputs, create_graph=True)
        of_weights = grad((first * rows(direction)).sum(), [inputs, layer.gamma])
        return [t.array for t in (first, *of_weights)]

    results, _ = shared(split, work)
    first, second, scale = zip(*results, strict=True)
    reference = work(Tensor)
    for parts, expected in ((first, reference[0]), (second, reference[1])):
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-9, atol=1e-11)
    for part in scale:
        np.testing.assert_allclose(part, reference[2], rtol=1e-9, atol=1e-11)


def test_one_value_per_channel_is_an_error_for_every_holder() -> None:
    def work(rows: Callable[..., Tensor]) -> bool:
        layer, *_ = fresh((1, 3))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(rows(np.zeros((1, 3))))
        np.testing.assert_array_equal(layer.running_mean.array, 0)
        return True

    assert shared((0, 1, 0), work)[0] == [True] * 3
    BatchNorm1d(3)(Tensor(np.zeros((1, 3, 2), np.float32)))  # two values in each channel


def test_batch_norm_in_plain_numpy() -> None:
    layer, *_ = fresh((6, 3))
    x, z = rng.standard_normal((6, 3)), rng.standard_normal((5, 3)) + 4
    gamma, beta = layer.gamma.array, layer.beta.array
    assert [t.shape for t in (layer.gamma, layer.beta, layer.running_mean, layer.running_var)] == [(1, 3)] * 4
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * gamma + beta
    np.testing.assert_allclose(layer(Tensor(x)).array, expected, rtol=1e-12)
    np.testing.assert_allclose(layer.running_mean.array, 0.1 * x.mean(0, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.array, 0.9 + 0.1 * x.var(0, keepdims=True, ddof=1), rtol=1e-12)
    with no_grad():
        layer(Tensor(z))
    mean = 0.9 * 0.1 * x.mean(0) + 0.1 * z.mean(0)
    variance = 0.9 * (0.9 + 0.1 * x.var(0, ddof=1)) + 0.1 * z.var(0, ddof=1)
    layer.eval()
    before = layer.state_dict()
    np.testing.assert_allclose(layer(Tensor(z)).array, (z - mean) / np.sqrt(variance + 1e-5) * gamma + beta, rtol=1e-12)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name], "evaluation changed the state")


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = (rng.standard_normal((512, 4)) + 10_000).astype(np.float32)
    y = BatchNorm1d(4)(Tensor(x)).array
    exact = x.astype(np.float64)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / exact.std(0), atol=2e-3)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)


@pytest.mark.parametrize("momentum", [None, 0.25])
def test_momentum_none_is_the_mean_over_batches(momentum: float | None) -> None:
    layer = BatchNorm2d(2, momentum=momentum, dtype="float64")
    batches = [rng.standard_normal((4, 2, 3, 3)) + i for i in range(3)]
    means = np.array([b.mean((0, 2, 3)) for b in batches])
    for batch in batches:
        layer(Tensor(batch))
    weights = [1 / 3] * 3 if momentum is None else [0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    np.testing.assert_allclose(layer.running_mean.array, np.array(weights) @ means, rtol=1e-12)
    assert layer.num_batches_tracked.item() == 3


def test_without_running_statistics_evaluation_uses_the_batch() -> None:
    layer = BatchNorm2d(2, affine=False, track_running_stats=False).eval()
    assert (layer.state_dict(), layer.parameters()) == ({}, [])
    y = layer(Tensor(rng.standard_normal((4, 2, 3, 3)).astype(np.float32) + 7)).array
    assert abs(y.mean()) < 1e-6
    assert y.dtype == np.float32


def test_states() -> None:
    assert sorted(BatchNorm1d(3).state_dict()) == ["beta", "gamma", "running_mean", "running_var"]
    names = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    assert sorted(BatchNorm2d(3).state_dict()) == names
    layer, other = BatchNorm2d(3), BatchNorm2d(3)
    layer(Tensor(rng.standard_normal((4, 3, 2, 2)).astype(np.float32)))
    other.load_state_dict(layer.state_dict())
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, layer.state_dict()[name])
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BatchNorm1d(4), (0, 4)),
        (lambda: BatchNorm1d(4).eval(), (0, 4, 3)),
        (lambda: BatchNorm2d(4), (0, 4, 3, 3)),
        (lambda: BatchNorm2d(4).eval(), (2, 4, 3, 3)),
        (lambda: LayerNorm(4), (0, 4)),
        (lambda: LayerNorm((3, 4)), (0, 5, 3, 4)),
        (lambda: LayerNorm(4, bias=False), (2, 4)),
        (lambda: GroupNorm(2, 4), (0, 4, 3)),
        (lambda: GroupNorm(2, 4, affine=False), (2, 4, 3, 3)),
    ],
    ids=lambda v: repr(v()) if callable(v) else repr(v),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_and_no_rows(make: Any, shape: tuple[int, ...], dtype: Any) -> None:
    layer = make()
    for parameter in layer.parameters():
        parameter.data = parameter.array.astype(dtype)
    before = {name: buffer.array.copy() for name, buffer in layer.named_buffers() if name.startswith("running")}
    x = Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
    y = layer(x)
    assert (y.shape, y.array.dtype) == (shape, dtype)
    y.backward(np.ones(shape))
    for tensor in (x, *layer.parameters()):
        assert (tensor.grad.shape, tensor.grad.array.dtype) == (tensor.shape, dtype)
        assert shape[0] or not tensor.grad.array.any()
    for name, buffer in layer.named_buffers():
        if name in before:
            np.testing.assert_array_equal(buffer.array, before[name])


X = np.zeros((4, 3), np.float32)
IMAGES = np.zeros((4, 3, 2, 2), np.float32)
ERRORS: list[tuple[Any, type[Exception], str]] = [
    (lambda: BatchNorm1d(0), ValueError, "num_features must be >= 1, got 0"),
    (lambda: BatchNorm1d(3, eps=0), ValueError, "eps must be > 0"),
    (lambda: BatchNorm1d(3, momentum=2), ValueError, r"momentum must be in \[0, 1\], got 2"),
    (lambda: BatchNorm1d(4)(X), ValueError, r"shape \(N, C\) or \(N, C, L\) with C = 4, got shape \(4, 3\)"),
    (lambda: BatchNorm2d(3)(X), ValueError, r"shape \(N, C, H, W\) with C = 3, got shape \(4, 3\)"),
    (lambda: BatchNorm1d(3)(X.astype(int)), TypeError, "input must be of floating point dtype, got int64"),
    (lambda: norm.batch_norm(X), ValueError, "running_mean and running_var must be given unless training"),
    (lambda: norm.batch_norm(X, weight=np.ones(2), training=True), ValueError, r"weight must have shape \(3,\)"),
    (lambda: LayerNorm(()), ValueError, "normalized_shape must hold integers >= 1"),
    (lambda: LayerNorm(4)(X), ValueError, r"must end in the dimensions normalized_shape \(4,\), got shape \(4, 3\)"),
    (lambda: norm.layer_norm(X, 3, np.ones(2)), ValueError, r"weight must have shape \(3,\), got shape \(2,\)"),
    (lambda: GroupNorm(2, 3), ValueError, "num_groups must divide num_channels 3, got 2"),
    (lambda: GroupNorm(3, 6)(IMAGES), ValueError, r"input must have shape \(N, 6, \.\.\.\)"),
    (lambda: norm.group_norm(IMAGES, 2), ValueError, "num_groups must be >= 1 and divide 3 channels, got 2"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:40] for *_, message in ERRORS])
def test_errors_name_the_argument(call: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_positions_of_pytorch_and_of_sorix() -> None:
    assert nn.BatchNorm1d(3, 1e-5, 0.1, False).gamma is None
    assert nn.BatchNorm1d(3, 1e-5, 0.1, "cpu").affine is True
    with pytest.raises(RuntimeError, match="computes on the CPU"):
        nn.BatchNorm1d(3, 1e-5, 0.1, "cuda")


def test_the_other_norms() -> None:
    x = np.array([[[1.0, 3.0], [2.0, 2.0]]])
    np.testing.assert_allclose(nn.InstanceNorm1d(2, eps=0.0001)(x).numpy(), [[[-1, 1], [0, 0]]], atol=1e-4)
    np.testing.assert_allclose(nn.InstanceNorm1d(2)(x[0]).numpy(), nn.InstanceNorm1d(2)(x).numpy()[0])
    np.testing.assert_allclose(nn.RMSNorm(2)(np.array([[3.0, 4.0]])).numpy(), [[3 / 12.5**0.5, 4 / 12.5**0.5]])
    with pytest.raises(ValueError, match="track_running_stats must be False"):
        nn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(ValueError, match=r"InstanceNorm2d: input must have shape \(N, C, H, W\) with C = 3"):
        nn.InstanceNorm2d(3)(np.zeros((2, 4, 3, 3)))
    with pytest.raises(ValueError, match=r"RMSNorm: normalized_shape must hold integers >= 1, got \(\)"):
        nn.RMSNorm(())
    with pytest.raises(ValueError, match=r"input must end in the dimensions \(3,\)"):
        nn.RMSNorm(3)(np.zeros((2, 4)))
