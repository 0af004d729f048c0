"""New tensors: sizes, dtypes, options, random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist.core import Tensor
from sorix_dist.core import functions as sx
from sorix_dist.core.dtype import float16, float32, float64, int64
from sorix_dist.core.random import manual_seed

OF_SIZE = [sx.zeros, sx.ones, sx.empty, sx.rand, sx.randn]
ALL = [
    *[(f, (2, 3), (2, 3), float32) for f in OF_SIZE],
    *[(f, ((2, 3),), (2, 3), float32) for f in OF_SIZE],
    *[(f, (), (), float32) for f in OF_SIZE],
    *[(f, (0, 2), (0, 2), float32) for f in OF_SIZE],
    (sx.full, ((2, 3), 1.5), (2, 3), float32),
    (sx.full, (2, 7), (2,), int64),
    (sx.eye, (3,), (3, 3), float32),
    (sx.eye, (3, 2), (3, 2), float32),
    (sx.arange, (5,), (5,), int64),
    (sx.arange, (1, 5, 2), (2,), int64),
    (sx.arange, (0, 1, 0.25), (4,), float32),
    (sx.arange, (5, 0, -2), (3,), int64),
    (sx.arange, (3, 3), (0,), int64),
    (sx.linspace, (0, 1, 5), (5,), float32),
    (sx.logspace, (0, 2, 3), (3,), float32),
    (sx.randint, (2, 5, (2, 3)), (2, 3), int64),
    (sx.randint, (5, (2, 3)), (2, 3), int64),
    (sx.randperm, (6,), (6,), int64),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "shape", "dtype"), ALL)
def test_sizes_and_dtypes(function: Any, arguments: Any, shape: Any, dtype: Any) -> None:
    made = function(*arguments)
    assert isinstance(made, Tensor)
    assert made.shape == shape
    assert made.dtype == dtype
    assert not made.requires_grad
    double = function(*arguments, dtype=float64, requires_grad=True, device="cpu")
    assert double.dtype == float64
    assert double.requires_grad
    assert double.is_leaf
    assert function(*arguments, device=None).dtype == dtype
    with pytest.raises(RuntimeError, match="not available"):
        function(*arguments, device="cuda")


def test_values() -> None:
    assert sx.zeros(2).data.tolist() == [0, 0]
    assert sx.ones(2, 1).data.tolist() == [[1], [1]]
    assert sx.full((2,), True).data.tolist() == [True, True]
    assert sx.eye(2, 3).data.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert sx.arange(1, 6, 2).data.tolist() == [1, 3, 5]
    assert sx.arange(5, 0, -2).data.tolist() == [5, 3, 1]
    np.testing.assert_allclose(sx.arange(0, 1, 0.1).data, np.arange(10) / 10, rtol=1e-6)
    np.testing.assert_allclose(sx.linspace(-1, 1, 5).data, [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(sx.logspace(0, 2, 3, base=2).data, [1, 2, 4])


def test_like_another() -> None:
    x = Tensor(np.ones((2, 3)))
    for function, value in ((sx.zeros_like, 0), (sx.ones_like, 1)):
        made = function(x)
        assert (made.shape, made.dtype) == ((2, 3), float64)
        assert (made.data == value).all()
        assert function(x, dtype=float16).dtype == float16
        assert function(x, requires_grad=True).requires_grad
    assert sx.full_like(x, 0.1).data[0, 0] == 0.1
    assert sx.full_like(sx.arange(3), 2.5).data.tolist() == [2, 2, 2]
    assert sx.empty_like(x).shape == (2, 3)
    assert sx.rand_like(x).dtype == sx.randn_like(x).dtype == float64


def test_diag_makes_and_takes_diagonals() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    np.testing.assert_array_equal(sx.diag(x, 1).data, np.diag([1, 2], 1))
    np.testing.assert_array_equal(sx.diag(sx.arange(6).reshape(2, 3), -1).data, [3])
    sx.diag(x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 1])
    assert sx.diag(sx.ones(2), requires_grad=True).is_leaf
    with pytest.raises(ValueError, match=r"diag: input must be a vector or a matrix, got shape \(1, 1, 1\)"):
        sx.diag(sx.ones(1, 1, 1))


def test_random_numbers_follow_the_seed() -> None:
    def draw() -> list[Any]:
        manual_seed(3)
        made = [sx.rand(4), sx.randn(4), sx.randint(0, 10, (4,)), sx.randperm(4), sx.randn(2, dtype=float64)]
        return [t.data.tolist() for t in made]

    first = draw()
    assert draw() == first
    manual_seed(4)
    assert sx.rand(4).data.tolist() != first[0]


def test_random_numbers_are_where_they_should_be() -> None:
    manual_seed(0)
    uniform, normal, whole = sx.rand(10_000).data, sx.randn(10_000).data, sx.randint(-2, 3, (10_000,)).data
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05
    assert sorted(set(whole.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(sx.randperm(100).data.tolist()) == list(range(100))


def test_tensors_around_what_exists() -> None:
    array = np.arange(3.0)
    assert sx.from_numpy(array).data is array
    assert sx.as_tensor(array).data is array
    x = Tensor(array, requires_grad=True)
    assert sx.as_tensor(x) is x
    assert sx.as_tensor(x, dtype=float32).dtype == float32
    assert sx.as_tensor([1.0, 2.0]).dtype == float32
    assert sx.tensor(array).data is array
    assert sx.is_tensor(x)
    assert not sx.is_tensor(array)
    with pytest.raises(TypeError, match="from_numpy: x must be an ndarray, got list"):
        sx.from_numpy([1.0])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: sx.zeros(2, -1), ValueError, "zeros: sizes must not be negative"),
        (lambda: sx.ones(2.5), TypeError, "ones: sizes must be integers"),
        (lambda: sx.randint(5, 5, (2,)), ValueError, "randint: low must be below high"),
        (lambda: sx.arange(0, 1, 0), ValueError, "arange: step must not be 0"),
        (lambda: sx.rand(2, dtype=int64), TypeError, "floating point"),
        (lambda: sx.zeros(2, dtype="nonsense"), TypeError, "dtype must name an element type"),
        (lambda: sx.zeros(2, device="tpu"), ValueError, "device must be 'cpu', got 'tpu'"),
        (lambda: sx.zeros(2, dtype=int64, requires_grad=True), RuntimeError, "floating point"),
        (lambda: Tensor("text"), TypeError, "data must be real numbers"),
        (lambda: Tensor([1.0, None]), TypeError, "data must be real numbers"),
        (lambda: Tensor(1j), TypeError, "data must be real numbers"),
        (lambda: Tensor([[1.0], [1.0, 2.0]]), ValueError, "inhomogeneous"),
    ],
)
def test_wrong_arguments_are_named(wrong: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        wrong()


def test_pandas_frames_and_series() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    assert Tensor(frame).data.tolist() == [[1, 3], [2, 4]]
    assert Tensor(frame["b"]).dtype == int64
    with pytest.raises(TypeError, match="DataFrame"):
        Tensor(pandas.DataFrame({"a": ["x", "y"]}))


def test_frames_are_read_through_the_array_protocol() -> None:
    """What pandas frames are to NumPy: objects with __array__."""

    class Frame:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.array([[1.0, 3.0], [2.0, 4.0]], dtype)

    assert Tensor(Frame()).dtype == float64
    assert Tensor(Frame(), dtype=float32).data.tolist() == [[1, 3], [2, 4]]
    assert (Tensor([[1.0, 1.0]]) * Frame()).shape == (2, 2)
