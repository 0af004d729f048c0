"""Values that PyTorch gives and NumPy, or a first thought, does not. Each was compared with PyTorch in tests/parity."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.nn import functional as F

NAN, INF = math.nan, math.inf
T = sx.tensor
BYTES, FLAGS, INTEGERS = T([1, 2], dtype="uint8"), T([True, False]), T([1, 2])


def gradient(function: Callable[[Any], Any], values: Any) -> list[float]:
    x = T(values, requires_grad=True, dtype="float64")
    return sx.autograd.grad(function(x).sum(), x)[0].tolist()


def test_casts_to_integers_and_bools_have_no_gradient() -> None:
    assert gradient(lambda x: x.int() * x, [1.5, 2.5]) == [1, 2]
    x = T([0.5], requires_grad=True)
    for name in ("int", "long", "short", "byte", "bool"):
        assert not getattr(x, name)().requires_grad
    assert x.double().requires_grad


GRADIENTS: dict[str, tuple[Callable[[Any], Any], list[float], list[float]]] = {
    "std of equal numbers": (lambda x: x.std(), [2, 2, 2], [0, 0, 0]),
    "3-norm of zeros": (lambda x: x.norm(p=3), [0, 0], [0, 0]),
    "3-norm": (lambda x: x.norm(p=3), [0, 2], [0, 1]),
    "half norm with a zero": (lambda x: x.norm(p=0.5), [0, 4], [0, 1]),
    "prelu at zero": (lambda x: F.prelu(x, T(0.25)), [-1, 0, 1], [0.25, 0.25, 1]),
    "remainder that a quotient would round": (lambda y: T(-0.25).double() % y, [-0.001], [-249]),
    "norm of zeros": (lambda x: x.norm(), [0, 0], [0, 0]),
    "scatter": (lambda x: sx.scatter(sx.zeros(2), 0, T([1, 1]), x) * T([1, 2]), [5, 7], [2, 2]),
    "0 ** exponent": (lambda y: T(0.0) ** y, [-1, 0, 1], [-INF, 0, 0]),
    "a number 0 ** exponent": (lambda y: 0**y, [-1, 0, 2], [-INF, 0, 0]),
    "base at 0 ** 0": (lambda x: x**0, [0, 1], [0, 0]),
    "sign": (lambda x: x.sign(), [NAN, -2, 0], [0, 0, 0]),
    "a difference at the margin": (lambda x: F.margin_ranking_loss(x, T([1.0]), T([1.0]), 1.0), [2.0], [-1]),
    "angle of nothing": (lambda x: sx.atan2(x, x), [0, 0], [0, 0]),
    "0 * log": (lambda x: sx.xlogy(x, math.e), [0, 2], [1, 1]),
    "median of equal": (lambda x: x.median(), [1, 3, 1, 1, 2], [1 / 3, 0, 1 / 3, 1 / 3, 0]),
    "division to integers": (lambda x: sx.div(x, 2, rounding_mode="floor"), [3, -3], [0, 0]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    function, values, expected = GRADIENTS[name]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(gradient(function, values), expected)


# An expression, its values and its dtype.
VALUES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "celu of a negative alpha": (lambda: F.celu(T([-INF, 2.0]), -1.0), [-INF, 2], "float32"),
    "leaky_relu of infinity": (lambda: F.leaky_relu(T([INF, -1.0]), 0.0), [INF, 0], "float32"),
    "nan_to_num(nan=None)": (lambda: T([NAN, 1.0]).nan_to_num(nan=None), [0, 1], "float32"),
    "cosine_similarity of half": (lambda: F.cosine_similarity(T([[3]]), T([[2.0]]).half()), [1], "float16"),
    "axis": (lambda: sx.amax(T([[1.0, 3.0], [2.0, 0.0]]), axis=1, keepdims=True), [[3], [2]], "float32"),
    "axis of a method": (lambda: T([[1.0, 3.0], [2.0, 0.0]]).argsort(axis=1), [[0, 1], [1, 0]], "int64"),
    "where of a condition": (lambda: sx.where(T([[0, 2], [3, 0]]))[1], [1, 0], "int64"),
    "combinations of nothing": (lambda: sx.combinations(T([1.0, 2.0]), 0), [], "float32"),
    "int8": (lambda: sx.zeros(1, dtype=sx.int8), [0], "int8"),
    "dim of a tensor": (lambda: sx.ones(2, 3).sum(T([1])), [3, 3], "float32"),
    "uint8 all": (lambda: BYTES.all(), 1, "uint8"),
    "uint8 any": (lambda: BYTES.any(0), 1, "uint8"),
    "amax over ()": (lambda: T([1.0, 3.0]).amax(()), 3, "float32"),
    "amin over ()": (lambda: T([[1.0], [3.0]]).amin((), True), [[1]], "float32"),
    "logsumexp over ()": (lambda: T([[2.0]]).logsumexp(()), 2, "float32"),
    "variance of too few": (lambda: T([[1.0, 3.0], [2.0, 2.0]]).var(1, correction=2), [INF, NAN], "float32"),
    "sign(nan)": (lambda: T([NAN, -2.0, 0.0]).sign(), [0, -1, 0], "float32"),
    "sign of bools": (lambda: FLAGS.sign(), [True, False], "bool"),
    "masked_fill of bools": (lambda: FLAGS.masked_fill(~FLAGS, 10), [True, True], "bool"),
    "masked_fill of integers": (lambda: INTEGERS.masked_fill(FLAGS, 2.5), [2, 2], "int64"),
    "arange in integers": (lambda: sx.arange(-0.9, 2.1, 2.0, dtype="int32"), [0, 2], "int32"),
    "arange in long integers": (lambda: sx.arange(3.1, dtype="int64"), [0, 1, 2], "int64"),
    "linspace in integers": (lambda: sx.linspace(4.3, -3, 5, dtype="int64"), [4, 2, 0, -1, -3], "int64"),
    "one step": (lambda: sx.linspace(2, 5, 1, dtype="int64"), [2], "int64"),
    "logspace in integers": (lambda: sx.logspace(0, 1.2, 2, dtype="int64"), [1, 10], "int64"),
    "triangles of bools": (lambda: sx.ones(2, 2).bool().tril(), [[True, False], [True, True]], "bool"),
    "square of bools": (lambda: FLAGS.square(), [1, 0], "int64"),
    "power of bools": (lambda: FLAGS**2, [1, 0], "int64"),
    "cumsum of bytes": (lambda: BYTES.cumsum(0), [1, 3], "int64"),
    "cumsum of one byte": (lambda: BYTES[1].cumsum(0), 2, "int64"),
    "prod of bytes": (lambda: BYTES.prod(), 2, "int64"),
    "bits of bytes": (lambda: BYTES & T(3), [1, 2], "uint8"),
    "bits of two dtypes": (lambda: BYTES ^ INTEGERS, [0, 0], "int64"),
    "take_along_dim": (lambda: sx.take_along_dim(T([[1, 2]]), T([[1], [0], [-1]]), 1), [[2], [1], [2]], "int64"),
    "take_along_dim of all": (lambda: sx.take_along_dim(T([[1, 2], [3, 4]]), T([3, 0])), [4, 1], "int64"),
    "sum over no dim": (lambda: T([[1, 2], [3, 4]]).sum(dim=()), 10, "int64"),
    "var(unbiased)": (lambda: T([1.0, 3.0]).var(False), 1, "float32"),
    "trunc division": (lambda: sx.div(T([-7, 7]), 2, rounding_mode="trunc"), [-3, 3], "int64"),
    "fmax": (lambda: sx.fmax(T([NAN, 2.0, NAN]), T([1.0, 1.0, NAN])), [1, 2, NAN], "float32"),
    "cdist": (lambda: sx.cdist(T([[0.0, 3.0]]), T([[4.0, 0.0], [0.0, 3.0]])), [[5, 0]], "float32"),
    "cross": (lambda: sx.cross(T([[1.0, 0.0, 0.0]]), T([0.0, 1.0, 2.0])), [[0, -2, 1]], "float32"),
    "isposinf": (lambda: sx.isposinf(T([1.0, -1.0]) / 0), [True, False], "bool"),
    "isneginf": (lambda: sx.isneginf(T([1.0, -1.0]) / 0), [False, True], "bool"),
    "diag_embed": (lambda: sx.diag_embed(INTEGERS, -1), [[0, 0, 0], [1, 0, 0], [0, 2, 0]], "int64"),
    "rot90": (lambda: sx.rot90(T([[1, 2], [3, 4]])), [[2, 4], [1, 3]], "int64"),
    "logdet": (lambda: sx.logdet(-sx.eye(1)), NAN, "float32"),
    "deg2rad": (lambda: sx.deg2rad(T([0])), [0], "float32"),
    "grid_sample": (
        lambda: F.grid_sample(sx.arange(4.0).reshape(1, 1, 2, 2), T([[[[-1.0, 0.0], [0.0, 3.0]]]])),
        [[[[0.5, 0]]]],
        "float32",
    ),
    "fmod": (lambda: sx.fmod(T([-7.0, 7.0]), 3), [-1, 1], "float32"),
    "searchsorted by rows": (
        lambda: sx.searchsorted(T([[1, 3], [2, 4]]), T([[3, 0], [3, 5]])),
        [[1, 0], [1, 2]],
        "int64",
    ),
    "searchsorted, sorted by": (lambda: sx.searchsorted(T([3, 1]), T([2]), sorter=T([1, 0])), [1], "int64"),
    "means of integers": (lambda: F.avg_pool1d(T([[[1, 2, -7, -4]]]), 2), [[[1, -5]]], "int64"),
    "linear of a square": (lambda: F.linear(T([1.0, 2.0]), T([[1.0, 2.0], [3.0, 4.0]])), [5, 11], "float32"),
    "linear of a vector": (lambda: F.linear(T([1.0, 2.0]), T([3.0, 4.0]), T(1.0)), 12, "float32"),
    "bicubic": (
        lambda: F.interpolate(sx.arange(4.0).reshape(1, 1, 2, 2), (1, 3), mode="bicubic"),
        [[[[0.9131948947906494, 1.5, 2.086806297302246]]]],
        "float32",
    ),
    "attention of halves": (
        lambda: F.scaled_dot_product_attention(*[T([[30.0], [-30.0]], dtype="float16")] * 3, scale=10),
        [[30], [-30]],
        "float16",
    ),
    "index_copy, last of equal": (lambda: sx.zeros(2).index_copy(0, T([0, 0]), T([5.0, 7.0])), [7, 0], "float32"),
    "LongTensor": (lambda: sx.LongTensor([1, 2]), [1, 2], "int64"),
    "FloatTensor": (lambda: sx.FloatTensor([1, 2]), [1, 2], "float32"),
    "BoolTensor": (lambda: sx.BoolTensor([1, 0]), [True, False], "bool"),
    "scatter, last of equal": (lambda: sx.scatter(sx.zeros(3), 0, T([1, 1]), T([5.0, 7.0])), [0, 7, 0], "float32"),
    "median of four": (lambda: T([4.0, 1.0, 3.0, 2.0]).median(), 2, "float32"),
    "median with NaN": (lambda: T([4.0, NAN, 3.0]).median(), NAN, "float32"),
    "addmm without input": (lambda: sx.addmm(T([INF]), sx.eye(1), sx.eye(1), beta=0), [[1]], "float32"),
    "mean of halves": (lambda: T([60000.0, 60000.0], dtype="float16").mean(), 60000, "float16"),
    "std of halves": (lambda: T([60000.0, -60000.0], dtype="float16").std(correction=0), 60000, "float16"),
    "norm of halves": (lambda: T([300.0, 400.0], dtype="float16").norm(p=3), 449.75, "float16"),
    "norm of integers": (lambda: T([3, 4]).norm(), 5, "float32"),
    "sum over no dim of a list": (lambda: T([[1, 2], [3, 4]]).sum([]), 10, "int64"),
    "bools to a bool": (lambda: FLAGS**True, [True, False], "bool"),
    "integers + alpha * a float": (lambda: sx.add(INTEGERS, 1.5, alpha=2), [4, 5], "float32"),
    "threshold of NaN": (lambda: F.threshold(T([NAN, 0.0, 2.0]), 1, 5), [NAN, 5, 2], "float32"),
    "instance_norm's weight": (
        lambda: F.instance_norm(T([[[1.0, 1.0]]]), None, None, T([2.0]), T([3.0])),
        [[[3, 3]]],
        "float32",
    ),
    "shifts": (lambda: (1 << INTEGERS) + (INTEGERS >> 1), [2, 5], "int64"),
    "clamp_min": (lambda: sx.clamp_min(INTEGERS.clamp_min(1), 2), [2, 2], "int64"),
    "arange(end=)": (lambda: sx.arange(end=2), [0, 1], "int64"),
    "diag": (lambda: INTEGERS.diag(1).diag(1), [1, 2], "int64"),
    "positive": (lambda: sx.positive(INTEGERS).positive(), [1, 2], "int64"),
    "finfo": (lambda: T([0.0]).masked_fill(T([True]), sx.finfo(sx.float32).min), [sx.finfo("float32").min], "float32"),
    "nan_to_num": (lambda: sx.nan_to_num(T([NAN, INF]), 1.0, 2.0), [1, 2], "float32"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    expression, values, dtype = VALUES[name]
    got = expression()
    np.testing.assert_array_equal(got.numpy(), values)
    assert got.dtype == dtype


SGD = sx.optim.SGD([sx.nn.Parameter(np.ones(1))])
# An expression, its error, and what the error says.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "std(0, False)": (lambda: T([[1.0, 2.0]]).std(0, False), TypeError, "unbiased and keepdims by keyword"),
    "var(x, 0, True)": (lambda: sx.var(T([[1.0, 2.0]]), 0, True), TypeError, "unbiased and keepdims by keyword"),
    "sum(True)": (lambda: T([1.0]).sum(True), TypeError, "dim must be an integer, got True"),
    "argmax(x, 0, True)": (lambda: sx.argmax(T([[1.0, 2.0]]), 0, True), TypeError, "keepdim"),
    "integers by 0": (lambda: INTEGERS // 0, ZeroDivisionError, "integers can't be divided by 0"),
    "remainder by 0": (lambda: INTEGERS % T([0, 1]), ZeroDivisionError, "integers can't be divided by 0"),
    "gather(-1)": (lambda: INTEGERS.gather(0, T([-1])), IndexError, r"in \[0, 2\), got -1"),
    "index_select(-1)": (lambda: INTEGERS.index_select(0, T([-1])), IndexError, r"in \[0, 2\), got -1"),
    "where of numbers": (lambda: sx.where(T([1.0, 0.0]), 1.0, 2.0), TypeError, "condition must hold bools"),
    "mm of vectors": (lambda: sx.ones(2).mm(sx.ones(2)), ValueError, "mm: operands must have 2 and 2 dimensions"),
    "bmm of matrices": (lambda: sx.ones(2, 2).bmm(sx.ones(2, 2)), ValueError, "matmul takes any"),
    "bmm of other counts": (lambda: sx.ones(1, 2, 2).bmm(sx.ones(3, 2, 2)), ValueError, "must have the same length"),
    "dot of matrices": (lambda: sx.ones(2, 2).dot(sx.ones(2, 2)), ValueError, "dot: operands must have 1 and 1"),
    "softmax of three dims": (lambda: F.softmax(sx.ones(2, 2, 2)), ValueError, "softmax: dim must be given for 3"),
    "Softmax of four dims": (lambda: sx.nn.LogSoftmax()(sx.ones(1, 1, 1, 1)), ValueError, "takes 1 by default"),
    "index of bytes": (lambda: INTEGERS[BYTES], IndexError, "mask in PyTorch"),
    "instance_norm(x, mean)": (lambda: F.instance_norm(sx.ones(1, 1, 2), T([0.0])), ValueError, "running_mean"),
    "dim of an array": (lambda: sx.ones(2, 3).sum(np.array([1])), TypeError, "sum: dim must be an integer, got array"),
    "NLLLoss(None, True)": (
        lambda: sx.nn.NLLLoss(None, True)(T([[0.0]]), T([0])),
        ValueError,
        "ignore_index must be an integer",
    ),
    "plateau(…, 1e-3)": (
        lambda: sx.optim.lr_scheduler.ReduceLROnPlateau(SGD, "min", 0.1, 5, 1e-3),
        TypeError,
        "name what follows",
    ),
    "projected LSTM": (lambda: sx.nn.LSTM(2, 3, proj_size=2), ValueError, "proj_size must be 0"),
    "float of two": (lambda: float(T([1.0, 2.0])), ValueError, "can only convert an array of size 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    expression, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        expression()


def test_long_sums_of_float32_are_exact() -> None:
    """300,000 rows around 1000 whose variance is 1.0048, and a bias that is added to a million rows."""
    x = np.random.default_rng(0).standard_normal((300_000, 3)).astype(np.float32) + np.float32(1000)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(T(x).mean(0).numpy(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(T(x).var(0).numpy(), exact.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(T(x).sum((0,), keepdims=True).numpy(), exact.sum(0, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(T(x.T).sum(1).numpy(), exact.sum(0), rtol=1e-6)
    np.testing.assert_allclose(T(x.reshape(3000, 100, 3)).sum((0, 1)).numpy(), exact.sum(0), rtol=1e-6)
    bias = sx.zeros(3, requires_grad=True)
    ((sx.zeros(1_000_003, 3) + bias) * np.float32(0.25e-6)).sum().backward()
    np.testing.assert_allclose(bias.grad.numpy(), 0.25 * 1.000003, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1025, 2), (3000, 1), (2, 1500, 2), (1500, 2, 3, 1), (1024, 2), (5, 4000)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_by_blocks_are_sums(shape: tuple[int, ...], keepdims: bool) -> None:
    """Along each set of axes, of arrays in two layouts."""
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    for array in (x, np.asfortranarray(x)):
        for mask in range(1, 2 ** len(shape)):
            axes = tuple(i for i in range(len(shape)) if mask >> i & 1)
            expected = array.sum(axes, keepdims=keepdims)
            np.testing.assert_array_equal(T(array).sum(axes, keepdims=keepdims).numpy(), expected)


@pytest.mark.parametrize("bad", [INF, NAN])
def test_adaptive_pooling_keeps_infinities_in_their_windows(bad: float) -> None:
    image = np.ones((1, 1, 5, 5), np.float32)
    image[0, 0, 0, 0] = bad
    pooled = F.adaptive_avg_pool2d(T(image), 3).numpy()[0, 0]
    assert not np.isfinite(pooled[0, 0])
    assert np.isfinite(pooled).sum() == 8


def test_a_size_is_no_list_of_numbers() -> None:
    with pytest.raises(TypeError, match=r"FloatTensor takes a list or an array.*empty"):
        sx.FloatTensor(2, 3)


def test_labels_against_a_column_warn() -> None:
    scores, labels = sx.randn(4, 3), T([0, 1, 2, 0])
    with pytest.warns(UserWarning, match=r"\(4, 1\) is compared with \(4,\).*sx.argmax keeps its dimension"):
        assert (sx.argmax(scores, dim=1) == labels).shape == (4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (scores.argmax(1) == labels).shape == (4,)
        assert (scores[:, :1] == scores[:, :1]).shape == (4, 1)


def test_compositions_compute_in_one_dtype():
    """A float64 result of a composition has float64's digits, whatever the other operands are."""
    x, half, third = sx.tensor(np.array([2.0])), sx.tensor(np.float32([0.1])), sx.tensor(np.float32([0.3]))
    a, b = np.float64(np.float32(0.1)), np.float64(np.float32(0.3))
    assert sx.xlogy(x, 3).numpy()[0] == 2 * np.log(3.0)
    assert sx.xlogy(x, half).numpy()[0] == 2 * np.log(a)
    assert sx.xlogy(x, sx.tensor([3])).numpy()[0] == 2 * np.log(3.0)
    assert sx.addcmul(x, half, third).numpy()[0] == 2 + a * b
    assert sx.addcdiv(x, half, third).numpy()[0] == 2 + a / b
