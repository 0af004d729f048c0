"""Parameters in flat arrays: values and gradients stay with them wherever they are put, and nothing is cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import Tensor, float64, tensor
from sorix_dist.core import flat
from sorix_dist.core.flat import Flat, flatten, gradients, leaf_of


def parameter(*shape: int, dtype: Any = np.float32, start: float = 0.0) -> Tensor:
    values = np.arange(start, start + np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    return Tensor(values, requires_grad=True)


def lies_in(array: Any, memory: Any) -> bool:
    return bool(np.shares_memory(array, memory))


def test_values_and_gradients_are_kept() -> None:
    first, second = parameter(3, 2), parameter(5, start=10)
    (first * first).sum().backward()
    values = [first.data.copy(), second.data.copy()]
    gradient = first.grad.data.copy()
    (made,) = flatten([first, second])
    for p, value in zip((first, second), values, strict=True):
        assert np.array_equal(p.data, value)
        assert lies_in(p.data, made.data)
    assert np.array_equal(first.grad.data, gradient)
    assert lies_in(first.grad.data, made.grad)
    assert second.grad is None
    (first * second.data.sum()).sum().backward()
    assert np.array_equal(first.grad.data, gradient + second.data.sum())


def test_parameters_start_on_cache_lines_and_the_gaps_are_zero() -> None:
    shapes = [(3, 5), (1,), (), (0, 4), (17,)]
    ps = [parameter(*shape, start=1) for shape in shapes]
    (made,) = flatten(ps)
    assert all(p.data.ctypes.data % flat.ALIGNMENT == 0 for p in ps)
    assert made.data.sum() == sum(p.data.sum() for p in ps)
    assert made.starts == [0, 16, 32, 48, 48]
    assert made.size == 80


def test_an_exact_fit_is_used_again_and_anything_else_is_made_anew() -> None:
    ps = [parameter(3), parameter(4)]
    (made,) = flatten(ps)
    before = flat.version()
    assert flatten(iter(ps)) == [made]
    assert flat.version() == before
    for others in (ps[::-1], [*ps, parameter(2)], ps[:1]):
        values = [p.data.copy() for p in others]
        (other,) = flatten(others)
        assert other is not made
        assert flat.version() > before
        assert all(np.array_equal(p.data, v) and lies_in(p.data, other.data) for p, v in zip(others, values))


def test_one_storage_per_dtype() -> None:
    ps = [parameter(3), parameter(4, dtype=np.float64), parameter(5), parameter(2, dtype=np.float16)]
    made = flatten(ps)
    assert [f.dtype for f in made] == [np.float32, np.float64, np.float16]
    assert made[0].parameters[0] is ps[0]
    assert made[0].parameters[1] is ps[2]


def test_a_parameter_given_twice_is_stored_once() -> None:
    tied, other = parameter(3), parameter(4)
    (made,) = flatten([tied, other, tied])
    assert len(made.parameters) == 2
    tied.data[...] = 7
    assert made.data[:3].tolist() == [7, 7, 7]


def test_a_transposed_parameter_is_stored_in_its_own_order() -> None:
    p = Tensor(np.arange(6.0).reshape(2, 3).T, requires_grad=True)
    flatten([p])
    assert p.data.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert p.data.flags.c_contiguous


def test_assigning_data_writes_into_the_storage() -> None:
    p = parameter(2, 2)
    (made,) = flatten([p])
    memory = p.data
    p.data = np.ones((2, 2))
    assert p.data is memory
    assert p.data.dtype == np.float32
    assert made.data[:4].tolist() == [1, 1, 1, 1]
    p.data = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert made.data[:4].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"shape \(2, 2\) of the parameter, got \(4,\)"):
        p.data = np.zeros(4)
    with pytest.raises(TypeError):
        p.data = np.zeros((2, 2), complex)
    assert made.data[:4].tolist() == [1, 2, 3, 4]


def test_assigning_data_before_it_is_flat_may_change_the_dtype_and_keeps_it_frozen() -> None:
    p = parameter(2).requires_grad_(False)
    p.data = np.zeros(3)
    assert p.dtype == float64
    assert not p.requires_grad
    p.requires_grad = True
    p.sum().backward()
    assert p.grad.data.tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="floating point dtype, got int64"):
        p.data = np.zeros(3, np.int64)
    assert p.dtype == float64


def test_assigning_a_gradient_writes_into_the_storage() -> None:
    p = parameter(2)
    (made,) = flatten([p])
    p.grad = np.array([1.0, 2.0])
    assert made.grad[:2].tolist() == [1, 2]
    p.grad = p.grad * 2
    assert made.grad[:2].tolist() == [2, 4]
    p.grad = None
    assert p.grad is None
    p.sum().backward()
    assert p.grad.data.tolist() == [1, 1]
    with pytest.raises(ValueError, match="grad must have the shape"):
        p.grad = np.zeros(3)


def test_a_gradient_is_one_object_that_follows_the_memory() -> None:
    p = parameter(2)
    p.sum().backward()
    assert p.grad is p.grad
    (made,) = flatten([p])
    assert lies_in(p.grad.data, made.grad)
    p.grad.data[...] = 5
    assert made.grad[:2].tolist() == [5, 5]


def test_frozen_parameters_keep_their_place_and_get_no_gradient() -> None:
    p, q = parameter(2), parameter(2)
    (made,) = flatten([p, q])
    p.requires_grad = False
    (p * q).sum().backward()
    assert p.grad is None
    p.requires_grad = True
    (p * q).sum().backward()
    assert lies_in(p.grad.data, made.grad)
    assert leaf_of(p).flat is made


def test_a_frozen_tensor_without_a_leaf_can_be_stored_and_trained_later() -> None:
    p = Tensor(np.ones(2, np.float32))
    (made,) = flatten([p])
    assert not p.requires_grad
    p.requires_grad = True
    p.sum().backward()
    assert made.grad[:2].tolist() == [1, 1]


def test_conversion_takes_a_parameter_out_with_its_gradient() -> None:
    p, q = parameter(3), parameter(3)
    (made,) = flatten([p, q])
    (p * 2).sum().backward()
    flat.convert(p, np.dtype(np.float64))
    assert p.data.dtype == p.grad.data.dtype == np.float64
    assert p.data.tolist() == [0, 1, 2]
    assert p.grad.data.tolist() == [2, 2, 2]
    assert not lies_in(p.data, made.data)
    assert leaf_of(p).flat is None
    (p * 3).sum().backward()
    assert p.grad.data.tolist() == [5, 5, 5]
    assert p.grad.data.dtype == np.float64


def test_a_parameter_shared_between_ranks_does_not_move() -> None:
    p = parameter(3)
    (made,) = flatten([p])
    leaf_of(p).sync = object()  # type: ignore[assignment]
    assert flatten([p]) == [made]
    for move in (lambda: flatten([p, parameter(2)]), lambda: flat.convert(p, np.dtype(np.float64))):
        with pytest.raises(RuntimeError, match="shared between ranks"):
            move()
    assert leaf_of(p).flat is made
    assert lies_in(p.data, made.data)


def test_gradients_are_few_long_arrays() -> None:
    ps = [parameter(3), parameter(4), parameter(5), parameter(6)]
    flatten(ps)
    loose = parameter(2, 2)
    for p in (*ps, loose):
        p.grad = np.ones(p.shape)
    ps[2].grad = None
    found = gradients([*ps, loose, ps[0], parameter(9)])
    assert [part.size for part in found] == [4, 32, 16]
    assert [part.sum() for part in found] == [4, 7, 6]
    for part in found:
        part *= 2
    assert all(p.grad.data.max() == 2 for p in (ps[0], ps[1], ps[3], loose))


def test_flat_storage_goes_when_its_parameters_go() -> None:
    import gc
    import weakref

    p = parameter(3)
    made = weakref.ref(Flat([p]).data.base)
    assert made() is not None
    del p
    gc.collect()
    assert made() is None
