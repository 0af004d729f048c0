"""Shapes at random: gradients of reshaping, broadcasting, indexing, products and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sorix_dist.core import Tensor, grad
from sorix_dist.core import functions as sx

SIZES = st.integers(0, 4)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
FEW = settings(max_examples=150, deadline=None)


def numbers(shape: Any, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def gradient_is_transpose(function: Any, *shapes: Any) -> None:
    """For a function that is linear in each input: <w, f(v)> = <f'(w), v>, with f linear in the chosen input."""
    arrays = [numbers(shape, i) for i, shape in enumerate(shapes)]
    for i, array in enumerate(arrays):
        inputs = [Tensor(a, requires_grad=j == i) for j, a in enumerate(arrays)]
        value = function(*inputs)
        weights = numbers(value.shape, 9)
        (g,) = grad(value, inputs[i], weights)
        assert g.shape == array.shape
        direction = numbers(array.shape, 7)
        moved = function(*(Tensor(direction) if j == i else t for j, t in enumerate(inputs)))
        np.testing.assert_allclose(np.sum(g.data * direction), np.sum(weights * moved.data), rtol=1e-9, atol=1e-9)


@FEW
@given(SHAPES, st.data())
def test_reshape(shape: Any, data: Any) -> None:
    size = int(np.prod(shape))
    first = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0] or [0, 3]))
    wanted = (first, size // first if first else 2)
    gradient_is_transpose(lambda x: x.reshape(wanted), shape)
    if size:
        assert Tensor(numbers(shape)).reshape(first, -1).shape == wanted


@FEW
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4))
def test_broadcasting(shapes: Any) -> None:
    gradient_is_transpose(lambda x, y: x * y, *shapes.input_shapes)
    x, y = (Tensor(numbers(s, i), requires_grad=True) for i, s in enumerate(shapes.input_shapes))
    total = x + y
    assert total.shape == shapes.result_shape
    total.sum().backward()
    repeats = int(np.prod(shapes.result_shape))
    for t in (x, y):
        assert t.grad.shape == t.shape
        np.testing.assert_allclose(t.grad.data.sum(), repeats)


@FEW
@given(SHAPES, st.data())
def test_indexing(shape: Any, data: Any) -> None:
    basic = hnp.basic_indices(shape, max_dims=6, allow_newaxis=True)
    kinds = [basic]
    if shape and 0 not in shape:
        kinds.append(hnp.integer_array_indices(shape))
    key = data.draw(st.one_of(kinds))
    x = Tensor(numbers(shape), requires_grad=True)
    y = x[key]
    np.testing.assert_array_equal(y.data, x.data[key])
    weights = numbers(y.shape, 1)
    (g,) = grad(y, x, weights)
    expected = np.zeros(shape)
    np.add.at(expected, key, weights)
    np.testing.assert_allclose(g.data, expected, atol=1e-12)


@FEW
@given(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=3, min_side=0, max_side=4))
def test_matrix_products(shapes: Any) -> None:
    x, y = (numbers(s, i) for i, s in enumerate(shapes.input_shapes))
    np.testing.assert_allclose((Tensor(x) @ Tensor(y)).data, x @ y, atol=1e-12)
    gradient_is_transpose(lambda a, b: a @ b, *shapes.input_shapes)


@FEW
@given(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4), st.data())
def test_reductions(shape: Any, data: Any) -> None:
    axes = data.draw(st.one_of(st.none(), hnp.valid_tuple_axes(len(shape)))) or None  # () means all, as in PyTorch
    keep = data.draw(st.booleans())
    np.testing.assert_allclose(
        sx.sum(numbers(shape), axes, keep), numbers(shape).sum(axis=axes, keepdims=keep), atol=1e-12
    )
    gradient_is_transpose(lambda x: x.sum(axes, keep), shape)
    if 0 not in shape:
        gradient_is_transpose(lambda x: x.mean(axes, keep), shape)


@FEW
@given(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4), st.data())
def test_rearrangements(shape: Any, data: Any) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape) + 1))
    np.testing.assert_array_equal(Tensor(numbers(shape)).permute(order).data, numbers(shape).transpose(order))
    np.testing.assert_array_equal(Tensor(numbers(shape)).repeat(times).data, np.tile(numbers(shape), times))
    gradient_is_transpose(lambda x: x.permute(order), shape)
    gradient_is_transpose(lambda x: x.repeat(times), shape)
    gradient_is_transpose(lambda x: x.flip(axis), shape)
    gradient_is_transpose(lambda x: x.roll(2, axis), shape)
    gradient_is_transpose(lambda x: x.cumsum(axis), shape)
    gradient_is_transpose(lambda x: sx.cat([x, x], axis), shape)
    gradient_is_transpose(lambda x: sx.stack([x, x], axis), shape)
    for part in (Tensor(numbers(shape)).split(2, axis), Tensor(numbers(shape)).chunk(2, axis)):
        np.testing.assert_array_equal(sx.cat(list(part), axis).data, numbers(shape))


@FEW
@given(st.data())
def test_einsum(data: Any) -> None:
    sizes = dict(zip("abcd", data.draw(st.tuples(*[st.integers(0, 3)] * 4)), strict=True))
    terms = data.draw(st.lists(st.text("abcd", max_size=3), min_size=1, max_size=3))
    letters = sorted(set("".join(terms)))
    result = "".join(data.draw(st.permutations(letters)))[: data.draw(st.integers(0, len(letters)))]
    equation = ",".join(terms) + "->" + result
    shapes = [tuple(sizes[letter] for letter in term) for term in terms]
    arrays = [numbers(s, i) for i, s in enumerate(shapes)]
    np.testing.assert_allclose(sx.einsum(equation, *arrays), np.einsum(equation, *arrays), atol=1e-10)
    gradient_is_transpose(lambda *xs: sx.einsum(equation, *xs), *shapes)


@FEW
@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4), st.data())
def test_gather_is_numpys_along_an_axis(shape: Any, data: Any) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    length = data.draw(SIZES)
    index = data.draw(
        hnp.arrays(np.int64, (*shape[:axis], length, *shape[axis + 1 :]), elements=st.integers(0, shape[axis] - 1))
    )
    np.testing.assert_array_equal(
        sx.gather(numbers(shape), axis, index).data, np.take_along_axis(numbers(shape), index, axis)
    )
    gradient_is_transpose(lambda x: sx.gather(x, axis, index), shape)
    negative = index - shape[axis]
    np.testing.assert_array_equal(
        sx.take_along_dim(Tensor(numbers(shape)), negative, axis).data, np.take_along_axis(numbers(shape), index, axis)
    )
