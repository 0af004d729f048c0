"""The functions of the top level: arguments, answers in kind, errors, and what the rows of operations do not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist.core import Tensor, no_grad
from sorix_dist.core import functions as sx


def counting(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(np.arange(float(np.prod(shape))).reshape(shape), requires_grad=requires_grad)


MATHS = [
    "sin", "cos", "tan", "atan", "tanh", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal",
    "square", "abs", "absolute", "sign", "round", "floor", "ceil", "sigmoid", "relu", "softmax", "log_softmax",
    "logsumexp", "sum", "mean", "var", "std", "prod", "norm", "max", "min", "amax", "amin", "argmax", "argmin", "all",
    "any", "neg", "tril", "triu", "isnan", "isfinite", "isinf", "logical_not",
]  # fmt: skip


@pytest.mark.parametrize("name", MATHS)
def test_mathematics_answers_in_kind(name: str) -> None:
    function = getattr(sx, name)
    x = np.array([[0.5, 1.5], [2.5, 0.75]])
    of_tensor, of_array, of_list = function(Tensor(x)), function(x), function(x.tolist())
    assert isinstance(of_tensor, Tensor)
    assert isinstance(of_array, np.ndarray)
    assert isinstance(of_list, np.ndarray)
    np.testing.assert_array_equal(of_tensor.data, of_array)
    np.testing.assert_allclose(of_array, of_list, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "matmul", "remainder", "eq", "lt", "logical_or"]
)
def test_mathematics_of_two_answers_in_kind(name: str) -> None:
    function = getattr(sx, name)
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    assert isinstance(function(x, y), np.ndarray)
    for left, right in ((Tensor(x), y), (x, Tensor(y)), (Tensor(x), Tensor(y))):
        got = function(left, right)
        assert isinstance(got, Tensor)
        np.testing.assert_array_equal(got.data, function(x, y))


def test_every_name_is_there() -> None:
    for name in sx.__all__:
        assert callable(getattr(sx, name))
        assert getattr(sx, name).__doc__, f"{name} has no docstring"


# -- reductions


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_a_softmax_of_integers_is_one_of_floats(name: str) -> None:
    whole = np.array([[1, 2, 3], [3, 0, 1]])
    answer = getattr(sx, name)(whole)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_array_equal(answer, getattr(sx, name)(whole.astype(np.float32)))


@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "amax", "amin", "all", "any"])
def test_one_or_several_dimensions_under_either_name(name: str) -> None:
    x = counting(2, 3, 4)
    function, method = getattr(sx, name), getattr(x, name)
    plain = {"amax": np.max, "amin": np.min, "var": lambda a, **k: np.var(a, ddof=1, **k),
             "std": lambda a, **k: np.std(a, ddof=1, **k)}.get(name) or getattr(np, name)  # fmt: skip
    for dim in (None, 0, -1, (0, 2), (1,)):
        expected = plain(x.data, axis=dim)
        np.testing.assert_allclose(function(x, dim=dim).data, expected)
        np.testing.assert_allclose(method(dim).data, expected)
        kept = method(dim, keepdim=True)
        np.testing.assert_allclose(kept.data, plain(x.data, axis=dim, keepdims=True))
        if name not in ("amax", "amin"):
            np.testing.assert_allclose(function(x, axis=dim, keepdims=True).data, kept.data)
    with pytest.raises(IndexError, match=rf"{name}: dim must be in \[-3, 3\) for a tensor of shape \(2, 3, 4\), got 3"):
        method(3)
    with pytest.raises(ValueError, match="each dimension once"):
        method((0, -3))


def test_dim_and_axis_together_are_an_error() -> None:
    with pytest.raises(TypeError, match="only one can be given"):
        sx.sum(counting(2, 2), axis=0, dim=1)
    with pytest.raises(TypeError, match="dim must be an integer, got 'rows'"):
        sx.sum(counting(2, 2), dim="rows")


@pytest.mark.filterwarnings("error")
def test_of_no_elements() -> None:
    nothing = counting(0, 3)
    assert nothing.sum().item() == 0
    assert nothing.prod().item() == 1
    assert np.isnan(nothing.mean().item())
    assert np.isnan(nothing.mean(0).data).all()
    assert nothing.mean(1).shape == (0,)
    assert np.isnan(nothing.var(0).data).all()
    assert np.isnan(counting(1).var().item())
    assert bool(nothing.all())
    assert not bool(nothing.any())
    assert nothing.norm().item() == 0
    assert nothing.cumsum(0).shape == (0, 3)
    assert nothing.argmax(1).shape == (0,)
    for name in ("max", "min", "argmax", "argmin", "amax"):
        with pytest.raises(ValueError, match="there must be an element"):
            getattr(nothing, name)()
    with pytest.raises(ValueError, match="there must be an element"):
        nothing.max(dim=0)


def test_max_and_min_answer_with_values_and_indices_along_a_dimension() -> None:
    x = Tensor([[1.0, 5.0, 5.0], [4.0, 2.0, 3.0]], requires_grad=True)
    best = x.max(dim=1)
    assert best.values.tolist() == [5, 4]
    assert best.indices.tolist() == [1, 0]
    values, indices = sx.min(x, 0, True)
    assert values.tolist() == [[1, 2, 3]]
    assert indices.tolist() == [[0, 1, 1]]
    best.values.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 1, 0], [1, 0, 0]])
    assert sx.max(x.data, 1)[0].tolist() == [5, 4]
    assert x.max().item() == 5
    assert sx.max(x, Tensor([[3.0]])).tolist() == [[3, 5, 5], [4, 3, 3]]


def test_equal_elements_share_the_gradient_of_the_maximum() -> None:
    x = Tensor([1.0, 3.0, 3.0], requires_grad=True)
    x.max().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0.5, 0.5])
    a, b = Tensor([2.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    sx.maximum(a, b).backward()
    assert (a.grad.item(), b.grad.item()) == (0.5, 0.5)


def test_argmax_of_the_function_and_of_the_method() -> None:
    x = Tensor([[1.0, 3.0], [2.0, 0.0]])
    assert sx.argmax(x).tolist() == [[1], [0]]
    assert sx.argmax(x, dim=0).tolist() == [[1, 0]]
    assert sx.argmax(x, axis=None, keepdims=False).item() == 1
    assert sx.argmin(x, 1, keepdims=False).tolist() == [0, 1]
    assert x.argmax().item() == 1
    assert x.argmax(dim=1).tolist() == [1, 0]
    assert x.argmin(1, keepdim=True).tolist() == [[0], [1]]


def test_var_and_std_divide_by_one_less_unless_told() -> None:
    x = counting(4)
    assert x.var().item() == pytest.approx(np.var(x.data, ddof=1))
    assert x.var(unbiased=False).item() == pytest.approx(np.var(x.data))
    assert x.std(correction=2).item() == pytest.approx(np.std(x.data, ddof=2))
    assert np.var(x).item() == pytest.approx(np.var(x.data))


@pytest.mark.parametrize("zeros", [[0], [0, 2]])
def test_the_gradient_of_a_product_with_zeros(zeros: list[int]) -> None:
    array = np.array([2.0, 3.0, 5.0])
    array[zeros] = 0
    x = Tensor(array, requires_grad=True)
    x.prod().backward()
    expected = [np.prod(np.delete(array, i)) for i in range(3)]
    np.testing.assert_array_equal(x.grad.data, expected)


@pytest.mark.parametrize("p", [0, 1, 2, 3, 2.5, "fro", float("inf"), -float("inf")])
def test_norms(p: Any) -> None:
    x = Tensor([[3.0, -4.0, 0.0], [1.0, 2.0, 2.0]])
    order = 2 if p == "fro" else p
    np.testing.assert_allclose(x.norm(p, 1).data, np.linalg.norm(x.data, order, axis=1), rtol=1e-6)
    np.testing.assert_allclose(x.norm(p).data, np.linalg.norm(x.data.ravel(), order), rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_the_gradient_of_a_norm_at_zero_is_zero() -> None:
    x = Tensor([0.0, 0.0], requires_grad=True)
    x.norm().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0])


# -- order


def test_sorting_is_stable_both_ways() -> None:
    x = Tensor([2.0, 1.0, 2.0, 1.0])
    up, down = x.sort(), x.sort(descending=True)
    assert (up.values.tolist(), up.indices.tolist()) == ([1, 1, 2, 2], [1, 3, 0, 2])
    assert (down.values.tolist(), down.indices.tolist()) == ([2, 2, 1, 1], [0, 2, 1, 3])
    assert x.argsort().tolist() == [1, 3, 0, 2]
    assert Tensor([True, False]).sort().values.tolist() == [False, True]
    assert Tensor([3, 1], dtype="uint8").sort(descending=True).values.tolist() == [3, 1]


def test_topk() -> None:
    x = Tensor([[1.0, 4.0, 3.0], [6.0, 5.0, 2.0]], requires_grad=True)
    top = x.topk(2)
    assert (top.values.tolist(), top.indices.tolist()) == ([[4, 3], [6, 5]], [[1, 2], [0, 1]])
    assert sx.topk(x, 1, dim=0, largest=False).values.tolist() == [[1, 4, 2]]
    top.values.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 1, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match=r"topk: k must be in \[0, 3\]"):
        x.topk(4)


def test_of_a_single_number() -> None:
    x = Tensor(3.0, requires_grad=True)
    assert (x.sort().values.item(), x.sort().indices.item()) == (3, 0)
    assert (x.max(dim=0).values.item(), x.max(dim=0).indices.item()) == (3, 0)
    assert x.topk(1).values.item() == 3
    assert x.argmax(dim=-1).item() == 0
    assert x.sum(dim=0).item() == x.cumsum(0).item() == x.prod(0).item() == 3
    assert x.flatten().shape == x.unsqueeze(0).shape == (1,)
    assert x.squeeze().shape == x.T.shape == x.permute().shape == x.flip().shape == ()


# -- shapes


def test_reshape_with_an_unknown() -> None:
    x = counting(2, 6)
    assert x.reshape(3, -1).shape == x.reshape((3, -1)).shape == x.view([3, 4]).shape == (3, 4)
    assert counting(0, 3, 4).reshape(0, -1).shape == (0, 12)
    assert counting(0, 3, 4).reshape(-1, 12).shape == (0, 12)
    assert counting(0, 12).reshape(0, 3, -1).shape == (0, 3, 4)
    assert counting(0, 12).reshape(-1, 3, 4).shape == (0, 3, 4)
    assert counting(2, 0).reshape(-1, 5).shape == (0, 5)
    assert Tensor.reshape_as(x, counting(12)).shape == (12,)
    with pytest.raises(ValueError, match="reshape"):
        x.reshape(5, -1)
    with pytest.raises(TypeError, match="reshape: sizes must be integers"):
        x.reshape(2.0, 6)


def test_transpose_is_pytorchs_with_two_and_numpys_with_all_axes() -> None:
    x, m = counting(2, 3, 4), counting(2, 3)
    assert x.transpose().shape == x.T.shape == (4, 3, 2)
    assert x.transpose(0, 2).shape == x.transpose(-1, 0).shape == (4, 3, 2)
    assert x.transpose(1, 2, 0).shape == x.transpose((1, 2, 0)).shape == (3, 4, 2)
    assert m.transpose(0, 1).shape == m.transpose(1, 0).shape == sx.transpose(m, 0, 1).shape == (3, 2)
    assert m.transpose((0, 1)).shape == np.transpose(m, (0, 1)).shape == (2, 3)
    assert x.mT.shape == x.swapaxes(1, 2).shape == (2, 4, 3)
    assert m.t().shape == sx.t(m).shape == (3, 2)
    assert sx.movedim(x, 0, -1).shape == (3, 4, 2)
    with pytest.raises(RuntimeError, match="at most two dimensions"):
        x.t()
    with pytest.raises(IndexError, match=r"transpose: dim must be in \[-2, 2\)"):
        m.transpose(0, 2)
    with pytest.raises(ValueError, match="permute: dims must name each of 3 dimensions once"):
        x.permute(0, 1, 1)


def test_sizes_of_one_come_and_go() -> None:
    x = counting(1, 2, 1)
    assert x.squeeze().shape == (2,)
    assert x.squeeze(0).shape == sx.squeeze(x, dim=0).shape == (2, 1)
    assert x.squeeze(1).shape == x.shape
    assert x.squeeze((0, 2)).shape == (2,)
    assert counting(2).unsqueeze(0).shape == counting(2).expand_dims(0).shape == (1, 2)
    assert counting(2).unsqueeze(-1).shape == sx.unsqueeze(counting(2), 1).shape == (2, 1)
    with pytest.raises(IndexError, match="unsqueeze"):
        counting(2).unsqueeze(3)


def test_flatten_some() -> None:
    x = counting(2, 3, 4)
    assert x.flatten().shape == (24,)
    assert x.flatten(1).shape == sx.flatten(x, start_dim=1).shape == (2, 12)
    assert x.flatten(0, 1).shape == (6, 4)
    assert counting(0, 3, 4).flatten(1).shape == (0, 12)
    with pytest.raises(ValueError, match="flatten: start_dim must not come after end_dim"):
        x.flatten(2, 1)


def test_expand_and_repeat() -> None:
    x = counting(2, 1)
    assert x.expand(2, 3).data.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert x.expand(4, -1, 3).shape == x.expand_as(counting(4, 2, 3)).shape == (4, 2, 3)
    assert sx.broadcast_to(x, (2, 3)).shape == (2, 3)
    assert x.repeat(2, 3).tolist() == np.tile(x.data, (2, 3)).tolist()
    assert sx.repeat(counting(2), 3, 2).tolist() == np.tile(np.arange(2), (3, 2)).tolist()
    with pytest.raises(ValueError, match="expand: sizes must fit"):
        x.expand(3, 3)
    with pytest.raises(ValueError, match="expand: sizes must have at least 2 entries"):
        x.expand(2)
    with pytest.raises(ValueError, match="repeat: sizes must have at least 2 entries"):
        x.repeat(2)


def test_flip_and_roll() -> None:
    x = counting(2, 3)
    assert x.flip(0).tolist() == sx.flip(x, (0,)).tolist() == x.data[::-1].tolist()
    assert sx.flip(x, 0, 1).tolist() == x.data[::-1, ::-1].tolist()
    assert x.roll(1).tolist() == np.roll(x.data, 1).tolist()
    assert sx.roll(x, (1, -1), (0, 1)).tolist() == np.roll(x.data, (1, -1), (0, 1)).tolist()
    with pytest.raises(ValueError, match="roll: shifts"):
        x.roll((1, 2), 0)


# -- joining and splitting


def test_cat_and_stack() -> None:
    x, y = counting(2, 2, requires_grad=True), Tensor([[5.0, 6.0]])
    assert sx.cat([x, y]).shape == (3, 2)
    assert sx.cat((x, x), dim=-1).shape == sx.cat([x, x], axis=1).shape == (2, 4)
    assert sx.stack([x, x], 1).shape == sx.stack([x, x], dim=-2).shape == (2, 2, 2)
    assert sx.stack([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]
    assert sx.cat([counting(2), Tensor([1, 2])]).dtype == "float64"
    sx.cat([x * 2, y, x]).sum().backward()
    np.testing.assert_array_equal(x.grad.data, np.full((2, 2), 3))
    for wrong, error, message in (
        (lambda: sx.cat([]), ValueError, "at least one tensor"),
        (lambda: sx.cat([x, counting(2, 3)]), ValueError, r"cat: .*\[\(2, 2\), \(2, 3\)\]"),
        (lambda: sx.cat([x, counting(2)]), ValueError, "cat: "),
        (lambda: sx.cat([Tensor(1.0)]), ValueError, "at least one dimension"),
        (lambda: sx.cat(x), TypeError, "cat: the type of tensors must be tuple or list, got Tensor"),
        (lambda: sx.stack([x, y]), ValueError, "stack: tensors must all have the same shape"),
        (lambda: sx.cat([x], dim=2), IndexError, "cat: dim"),
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_joining_into_a_given_tensor() -> None:
    x, out = counting(2), sx.zeros(4)
    assert sx.cat([x, x], out=out) is out
    assert out.tolist() == [0, 1, 0, 1]
    assert sx.stack([x, x], out=sx.zeros(2, 2)).tolist() == [[0, 1], [0, 1]]
    with pytest.raises(ValueError, match=r"cat: out must have shape \(4,\), got \(3,\)"):
        sx.cat([x, x], out=sx.zeros(3))
    trained = counting(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="cat: out must not be given where a gradient is recorded"):
        sx.cat([trained, x], out=out)
    with no_grad():
        sx.cat([trained, x], out=out)


def test_parts() -> None:
    x = counting(5, 2, requires_grad=True)
    assert [len(p) for p in sx.split(x, 2)] == [2, 2, 1]
    assert [len(p) for p in x.split([1, 4])] == [1, 4]
    assert [p.shape for p in x.split(1, dim=1)] == [(5, 1), (5, 1)]
    assert [len(p) for p in sx.chunk(x, 3)] == [2, 2, 1]
    assert [len(p) for p in x.chunk(4)] == [2, 2, 1]
    assert len(sx.unbind(x)) == 5
    assert sx.unbind(x, 1)[1].tolist() == [1, 3, 5, 7, 9]
    assert [p.shape for p in counting(0, 2).split(3)] == [(0, 2)]
    (x.split(2)[1] * 3).sum().backward()
    np.testing.assert_array_equal(x.grad.data[:, 0], [0, 0, 3, 3, 0])
    with pytest.raises(ValueError, match="split: sections must add up to the size 5 of dim 0"):
        x.split([1, 2])
    with pytest.raises(ValueError, match="split_size must be at least 1"):
        x.split(0)
    with pytest.raises(ValueError, match="chunks must be at least 1"):
        x.chunk(0)


def test_borders() -> None:
    x = counting(2, 3)
    assert sx.pad(x, (1, 2)).shape == (2, 6)
    assert sx.pad(x, (1, 0, 0, 1), value=9).tolist() == [[9, 0, 1, 2], [9, 3, 4, 5], [9, 9, 9, 9]]
    assert sx.pad(x, (-1, -1)).tolist() == [[1], [4]]
    for wrong, message in (
        (lambda: sx.pad(x, (1,)), "at most 2 pairs"),
        (lambda: sx.pad(x, (1, 1), mode="mirror"), "mode must be"),
        (lambda: sx.pad(x, (3, 0), mode="reflect"), "can add at most 2 to a dimension of 3"),
        (lambda: sx.pad(x, (-2, -2)), "must not cut off more"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# -- choice


def test_where_and_masks() -> None:
    x = Tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = sx.where(x > 0, x, x * 0.1)
    np.testing.assert_allclose(y.data, [1, -0.2, 3], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, [1, 0.1, 1], rtol=1e-6)
    assert sx.where(np.array([True, False]), 1.0, 0.0).tolist() == [1, 0]
    assert x.masked_fill(x > 0, 9).tolist() == [9, -2, 9]
    assert sx.masked_select(x, x > 0).tolist() == [1, 3]
    assert x.where(x > 0, 0.0).tolist() == [1, 0, 3]
    assert Tensor([1, 2]).masked_fill(Tensor([True, False]), 7).dtype == "int64"
    with pytest.raises(TypeError, match="mask must hold bools, got dtype int64"):
        x.masked_fill(Tensor([1, 0, 1]), 0)


def test_clamp() -> None:
    x = Tensor([-2.0, 0.5, 2.0], requires_grad=True)
    assert x.clamp(-1, 1).tolist() == sx.clamp(x, min=-1, max=1).tolist() == [-1, 0.5, 1]
    assert x.clamp(min=0).tolist() == [0, 0.5, 2]
    assert x.clamp(max=0).tolist() == [-2, 0, 0]
    assert x.clamp(Tensor([0.0, 1.0, 0.0])).tolist() == [0, 1, 2]
    assert Tensor([1, 5]).clamp(2, 3).dtype == "int64"
    assert Tensor([1, 5]).clamp(max=2.5).tolist() == [1, 2.5]
    x.clamp(-2, 2).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 1, 1])
    with pytest.raises(ValueError, match="at least one of min and max"):
        x.clamp()


@pytest.mark.filterwarnings("error")
def test_gradients_where_not_chosen_are_zero_even_if_infinite() -> None:
    x = Tensor([0.0, 4.0], requires_grad=True)
    sx.where(x > 0, x, 1.0).sqrt().sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0.25])
    y = Tensor([2.0, -1.0], requires_grad=True)
    (y**0).sum().backward()
    np.testing.assert_array_equal(y.grad.data, [0, 0])


def test_gather_and_scatter_add_are_transposes() -> None:
    x = counting(3, 4, requires_grad=True)
    index = Tensor([[0, 0, 3], [1, 2, 2]])
    got = sx.gather(x, 1, index)
    assert got.tolist() == [[0, 0, 3], [5, 6, 6]]
    got.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[2, 0, 0, 1], [0, 1, 2, 0], [0, 0, 0, 0]])
    added = sx.scatter_add(sx.zeros(3, 4), 1, index, sx.ones(2, 3))
    np.testing.assert_array_equal(added.data, x.grad.data)
    assert sx.take_along_dim(x, index[:1], 1).shape == (3, 3)
    assert sx.index_select(x, 0, Tensor([2, 0])).tolist() == x.data[[2, 0]].tolist()
    for wrong, error, message in (
        (lambda: sx.gather(x, 1, Tensor([[4]])), IndexError, r"gather: indices must be in \[0, 4\), got 4"),
        (lambda: sx.gather(x, 1, Tensor([[0.0]])), TypeError, "indices must be integers, got dtype float32"),
        (lambda: sx.gather(x, 1, Tensor([0])), ValueError, "as many dimensions as input"),
        (lambda: sx.gather(x, 1, sx.zeros(4, 1, dtype="int64")), ValueError, "no larger except along dim 1"),
        (lambda: sx.scatter_add(x, 1, index, sx.ones(1, 3)), ValueError, "src must be at least of index's shape"),
        (lambda: sx.index_select(x, 1, index), ValueError, "index must be a vector"),
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_one_hot() -> None:
    assert sx.one_hot(Tensor([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert sx.one_hot(Tensor([[1]]), 2).shape == (1, 1, 2)
    assert sx.one_hot(Tensor([0]), 4).dtype == "int64"
    with pytest.raises(IndexError, match=r"one_hot: indices must be in \[0, 2\), got 2"):
        sx.one_hot(Tensor([0, 2]), 2)
    with pytest.raises(IndexError, match="one_hot"):
        sx.one_hot(Tensor([-1]), 2)
    with pytest.raises(TypeError, match="one_hot: indices must be integers"):
        sx.one_hot(Tensor([0.0]), 2)


def test_triangles() -> None:
    x = counting(2, 3, 3)
    assert sx.tril(x).tolist() == np.tril(x.data).tolist()
    assert x.triu(1).tolist() == np.triu(x.data, 1).tolist()
    with pytest.raises(ValueError, match=r"tril: input must have at least two dimensions, got shape \(3,\)"):
        counting(3).tril()


# -- products


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3)], "has 2 operands, got 1"),
        ("ij,jk->ik", [(2, 3), (4, 2)], "'j' in 'ij,jk->ik' must have one size, got 3 and 4"),
        ("ij->ik", [(2, 3)], "must name letters of the operands"),
        ("i->i", [(2, 3)], "'i' in 'i->i' must name 2 dimensions"),
        ("ij->ii", [(2, 3)], "each once"),
    ],
)
def test_what_einsum_refuses(equation: str, shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sx.einsum(equation, *(sx.ones(shape) for shape in shapes))


def test_einsum_takes_a_list_and_arrays() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert isinstance(sx.einsum("ij,kj->ik", x, x), np.ndarray)
    assert sx.einsum("ij,kj->ik", [Tensor(x), x]).tolist() == (x @ x.T).tolist()


def test_products_of_different_dtypes() -> None:
    whole, single, double = Tensor([[1, 2]]), Tensor([[1.0], [2.0]]), Tensor(np.ones((2, 1)))
    assert (whole @ single).dtype == "float32"
    assert (single.T @ double).dtype == "float64"
    assert (whole @ whole.T).dtype == "int64"


def test_powers_at_the_edges() -> None:
    x = Tensor([0.0, 2.0], requires_grad=True)
    with np.errstate(all="raise"):
        (x**2).sum().backward()
        (x**1).sum().backward()
        (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 5])
    y = Tensor([0.0, 1.0], requires_grad=True)
    sx.pow(2.0, y).sum().backward()
    np.testing.assert_allclose(y.grad.data, np.log(2) * np.array([1, 2]), rtol=1e-6)
    assert y.grad.dtype == "float32"
