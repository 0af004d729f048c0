"""What a tensor holds and shows: data, dtypes, conversions, printing, iteration, indexing, changes in place."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

from sorix_dist.core import Size, Tensor, no_grad
from sorix_dist.core import dtype as types
from sorix_dist.core.arguments import device


def matrix(requires_grad: bool = False) -> Tensor:
    return Tensor(np.arange(6.0).reshape(2, 3), requires_grad=requires_grad)


# -- what it holds


def test_dtypes_of_what_python_gives() -> None:
    assert Tensor(1.5).dtype == Tensor([1.5, 2]).dtype == Tensor([[1.5]]).dtype == types.float32
    assert Tensor(1).dtype == Tensor([1, 2]).dtype == types.int64
    assert Tensor(True).dtype == Tensor([True, False]).dtype == types.bool_
    assert Tensor(np.float64(1)).dtype == Tensor(np.ones(2)).dtype == types.float64
    assert Tensor([1, 2], dtype="float16").dtype == types.float16


def test_an_array_is_not_copied() -> None:
    array = np.ones(3)
    x = Tensor(array)
    assert x.data is array
    assert x.numpy() is array
    assert x.to_numpy() is array
    assert Tensor(x).data is array


def test_sizes() -> None:
    x = matrix()
    assert (x.ndim, x.dim(), x.numel, x.size_prop, len(x)) == (2, 2, 6, 6, 2)
    assert x.shape == x.size() == (2, 3)
    assert isinstance(x.shape, Size)
    assert (x.size(1), x.size(-1), x.shape.numel()) == (3, 3, 6)
    assert repr(x.shape) == repr(x.size) == "sorix_dist.Size([2, 3])"
    with pytest.raises(TypeError, match=r"len\(\) of a 0-d tensor"):
        len(Tensor(1.0))


def test_numbers_come_out() -> None:
    assert Tensor([[2.5]]).item() == 2.5
    assert float(Tensor(2.5)) == 2.5
    assert int(Tensor(2.5)) == 2
    assert bool(Tensor(0.0)) is False
    assert list(range(Tensor(3))) == [0, 1, 2]
    assert [10, 20, 30][Tensor(1)] == 20
    assert f"{Tensor(2.5):.2f}" == "2.50"
    assert matrix().tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match="integer"):
        range(Tensor(3.0))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(matrix())


def test_arrays_come_out() -> None:
    x = matrix()
    assert np.asarray(x) is x.data
    assert np.array(x, dtype=np.float32).dtype == np.float32
    assert np.allclose(x, x.data)
    assert np.asarray([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]


# -- dtype and device


def test_dtypes_have_names_and_equal_what_they_name() -> None:
    assert repr(types.float32) == "sorix_dist.float32"
    assert types.float32 == np.float32 == types.float32
    assert types.float32 == "float32"
    assert types.float32 == types.float
    assert types.float32 != types.float64
    assert types.float32 != np.float64
    assert types.float32 is not None
    assert types.float32 != "nonsense"
    assert len({types.float32, types.float, types.double}) == 2
    assert (types.half, types.short, types.int, types.long) == (np.float16, np.int16, np.int32, np.int64)
    assert (types.byte, types.bool, types.bool_) == (np.uint8, np.bool_, np.bool_)
    assert np.zeros(2, dtype=types.float16).dtype == np.float16


@pytest.mark.parametrize("name", ["half", "float", "double", "short", "int", "long", "byte", "bool"])
def test_methods_named_after_dtypes(name: str) -> None:
    x = getattr(Tensor([0.0, 1.0]), name)()
    assert x.dtype == getattr(types, name)
    assert x.data.tolist() == [0, 1]


def test_conversions_keep_the_graph() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.astype("float64").to(types.float16).double()
    assert y.dtype == types.float64
    (y * 3).sum().backward()
    assert x.grad.dtype == types.float32
    np.testing.assert_array_equal(x.grad.data, [3, 3])
    assert x.float() is x
    assert x.astype(np.float32) is x


def test_to_takes_a_device_a_dtype_both_or_a_tensor() -> None:
    x = Tensor([1.0])
    assert x.to("cpu") is x.to(device("cpu")) is x.cpu() is x
    assert x.to(types.float64).dtype == x.to("float64").dtype == x.to("cpu", np.float64).dtype == types.float64
    assert x.to(dtype=types.int64, device="cpu", non_blocking=True).dtype == types.int64
    assert x.to(Tensor(np.ones(1))).dtype == types.float64
    for wanted in ("cuda", "cuda:1", "gpu", device("cuda")):
        with pytest.raises(RuntimeError, match="not available"):
            x.to(wanted)
    for method in (x.cuda, x.gpu):
        with pytest.raises(RuntimeError, match="not available"):
            method()
    with pytest.raises(ValueError, match="device must be 'cpu', got 'tpu'"):
        x.to("tpu")
    with pytest.raises(TypeError, match="memory"):
        x.to("cpu", memory="fast")


def test_devices() -> None:
    assert Tensor(1.0).device == device("cpu")
    assert Tensor(1.0).device == "cpu"
    assert str(device("cuda:1")) == "cuda:1"
    assert (device("cuda:1").type, device("cuda:1").index) == ("cuda", 1)
    assert repr(device("cpu")) == "device(type='cpu')"
    assert device("cpu") != device("cuda")
    assert Tensor([1.0], device=device("cpu")).device == "cpu"
    with pytest.raises(ValueError, match="device must be 'cpu', got 'abacus'"):
        device("abacus")
    with pytest.raises(ValueError, match=r"a tensor of a size, as Tensor\(2, 3\), is sx.empty\(2, 3\)"):
        Tensor(2, 3)  # type: ignore[arg-type]


# -- printing


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: Tensor([[1.0, 2.0]], requires_grad=True), "tensor([[1., 2.]], requires_grad=True)"),
        (lambda: Tensor([1, 2]), "tensor([1, 2])"),
        (lambda: Tensor([True]), "tensor([ True])"),
        (lambda: Tensor(np.array([1.0])), "tensor([1.], dtype=sorix_dist.float64)"),
        (lambda: Tensor([1], dtype="int32"), "tensor([1], dtype=sorix_dist.int32)"),
        (lambda: Tensor(2.5), "tensor(2.5)"),
        (lambda: Tensor([[1.0], [2.0]]), "tensor([[1.],\n        [2.]])"),
        (lambda: Tensor([1.0], requires_grad=True) * 2, "tensor([2.], requires_grad=True)"),
    ],
)
def test_repr(made: Any, shown: str) -> None:
    assert repr(made()) == str(made()) == shown


def test_a_gradient_prints_as_its_array_does() -> None:
    x = matrix(True)
    (x * 2).sum().backward()
    assert str(x.grad) == str(x.grad.data) == "[[2. 2. 2.]\n [2. 2. 2.]]"
    assert repr(x.grad) == repr(x.grad.numpy())
    assert x.grad is x.grad
    assert x.grad.shape == (2, 3)
    assert np.allclose(x.grad, 2)
    assert f"{x.grad}" == str(x.grad)


# -- operators


def test_scalars_and_arrays_on_both_sides() -> None:
    x = Tensor([1.0, 2.0])
    array = np.array([3.0, 4.0], np.float32)
    for got, expected in (
        (x + 1, [2, 3]), (1 + x, [2, 3]), (x - 1, [0, 1]), (1 - x, [0, -1]), (x * 2, [2, 4]), (2 * x, [2, 4]),
        (x / 2, [0.5, 1]), (2 / x, [2, 1]), (x**2, [1, 4]), (2**x, [2, 4]), (-x, [-1, -2]), (+x, [1, 2]),
        (abs(-x), [1, 2]), (x % 2, [1, 0]), (5 % x, [0, 1]), (x // 2, [0, 1]),
        (x + array, [4, 6]), (array + x, [4, 6]),
        (array - x, [2, 2]), (array * x, [3, 8]), (array / x, [3, 2]), (array**x, [3, 16]),
        (np.add(x, [1.0, 1.0]), [2, 3]),
        (np.float32(1) + x, [2, 3]), (np.float64(1) * x, [1, 2]),
    ):  # fmt: skip
        assert isinstance(got, Tensor)
        assert got.dtype == types.float32
        np.testing.assert_array_equal(got.data, expected)


def test_matrix_products_with_arrays() -> None:
    x = matrix()
    np.testing.assert_array_equal((x @ x.data.T).data, x.data @ x.data.T)
    np.testing.assert_array_equal((x.data @ x.T).data, x.data @ x.data.T)
    with pytest.raises(ValueError, match=r"matmul: .*got shapes \(2, 3\) and \(2, 3\)"):
        x @ x
    with pytest.raises(ValueError, match="0-d"):
        x @ Tensor(1.0)


def test_comparisons_give_tensors_of_bools() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    for got, expected in (
        (x == 2, [0, 1, 0]), (x != 2, [1, 0, 1]), (x < 2, [1, 0, 0]), (x <= 2, [1, 1, 0]), (x > 2, [0, 0, 1]),
        (x >= 2, [0, 1, 1]), (x > 1, [0, 1, 1]), ((x > 1) & (x < 3), [0, 1, 0]), ((x < 2) | (x > 2), [1, 0, 1]),
        (~(x > 1), [1, 0, 0]), ((x > 1) ^ (x > 2), [0, 1, 0]), (x == x.data, [1, 1, 1]),
    ):  # fmt: skip
        assert got.dtype == types.bool_
        assert got.data.tolist() == [bool(e) for e in expected]
    assert (x == None) is False  # noqa: E711
    assert (x != "text") is True
    assert 2 in x
    assert 5 not in x
    assert x in [x]


def test_tensors_are_keys_by_identity() -> None:
    x, y = Tensor([1.0]), Tensor([1.0])
    assert len({x: 1, y: 2}) == 2


# -- promotion


F16, F32, F64, I32, I64, U8, BOOL = (
    types.float16, types.float32, types.float64, types.int32, types.int64, types.uint8, types.bool_,
)  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "together"),
    [
        (F32, 2, F32), (F32, 2.5, F32), (F16, 2.5, F16), (F64, 2, F64), (I64, 2, I64), (I32, 2, I32), (U8, 2, U8),
        (I64, 2.5, F32), (U8, 2.5, F32), (BOOL, 2, I64), (BOOL, 2.5, F32), (BOOL, True, BOOL),
        (F32, np.float64(2.5), F32), (I64, np.float64(2.5), F32), (I32, np.int64(2), I32),
        (F32, F64, F64), (F32, I64, F32), (F16, I64, F16), (I64, BOOL, I64), (U8, I32, I32), (F16, F32, F32),
    ],
)  # fmt: skip
def test_the_dtype_of_a_sum_is_pytorchs(a: Any, b: Any, together: Any) -> None:
    x = Tensor(np.ones(3), dtype=a)
    y = Tensor(np.ones(3), dtype=b) if isinstance(b, types.DType) else b
    assert (x + y).dtype == (y + x).dtype == together


def test_zero_dimensions_do_not_widen_within_a_kind() -> None:
    assert (Tensor([1.0]) * Tensor(np.array(2.0))).dtype == F32
    assert (Tensor([1.0]) * np.array(2.0)).dtype == F32
    assert (Tensor([1]) * Tensor(np.array(2.0))).dtype == F64
    assert (Tensor([1.0]) * Tensor(np.array(2))).dtype == F32


def test_functions_of_integers_are_float32() -> None:
    x = Tensor([1, 2])
    assert (x / 2).dtype == (x / x).dtype == x.exp().dtype == x.log().dtype == x.sqrt().dtype == x.mean().dtype == F32
    assert (x > 1).float().mean().dtype == F32
    assert x.sum().dtype == Tensor([True, True]).sum().dtype == Tensor([1], dtype=U8).sum().dtype == I64
    assert (x**2).dtype == (x // 2).dtype == (-x).dtype == abs(x).dtype == I64
    assert (x**0.5).dtype == F32


def test_choices_of_numbers_are_float32() -> None:
    x = Tensor([1.0, 2.0])
    assert Tensor.where(x, x > 1, 0.0).dtype == F32
    from sorix_dist.core.functions import where

    assert where(x > 1, 1.0, 0.0).dtype == F32
    assert where(x > 1, 1, 0).dtype == I64
    assert where(x > 1, x, Tensor([0, 0])).dtype == F32


@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_float_dtypes_are_kept(dtype: Any) -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    for y in (
        x * 2, x + 1.5, 2 / x, x**2, x.sum(), x.mean(0), x.var(), x.std(1), x.prod(), x.cumsum(0), x.max(), x.norm(),
        x.clamp(0.5, 1.5), x.masked_fill(x > 2, 0.1), x @ x, x.softmax(1), x.sigmoid(), x.tanh(), x[0], x.T, x.tril(),
    ):  # fmt: skip
        assert y.dtype == dtype


# -- iteration and indexing


def test_iteration_gives_rows_with_gradients() -> None:
    x = matrix(True)
    rows = list(x)
    assert [r.data.tolist() for r in rows] == [[0, 1, 2], [3, 4, 5]]
    (rows[1] * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 0, 0], [2, 2, 2]])
    _, b = matrix()
    assert b.data.tolist() == [3, 4, 5]
    with pytest.raises(TypeError, match="0-d"):
        list(Tensor(1.0))


@pytest.mark.parametrize(
    "key",
    [
        1, -1, (1, 2), slice(None, None, -1), (slice(None), 1), (..., 0), None, (slice(None), None), [0, 0, 1],
        (np.array([0, 1]), [2, 0]), np.array([True, False]), Tensor([1, 1, 0]), (slice(None), Tensor([2, 0])),
        np.arange(6).reshape(2, 3) % 2 == 0, [], (slice(0, 0),),
    ],
    ids=str,
)  # fmt: skip
def test_indexing_as_numpy_does_with_gradients_that_count_repetitions(key: Any) -> None:
    x = matrix(True)

    def plain(k: Any) -> Any:
        if isinstance(k, tuple):
            return tuple(plain(i) for i in k)
        return k.array if isinstance(k, Tensor) else np.array(k, int) if isinstance(k, list) else k

    y = x[key]
    np.testing.assert_array_equal(y.data, x.data[plain(key)])
    counts = np.zeros((2, 3))
    np.add.at(counts, plain(key), 1)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, counts)


def test_indexing_by_a_mask_of_tensors() -> None:
    x = matrix(True)
    x[x > 2].sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 0, 0], [1, 1, 1]])
    with pytest.raises(IndexError):
        x[2]


# -- changes in place


def test_methods_in_place_change_the_array_and_return_the_tensor() -> None:
    array = np.array([1.0, 2.0])
    x = Tensor(array)
    for change, expected in (
        (lambda: x.add_(1), [2, 3]), (lambda: x.sub_(Tensor([1.0, 1.0])), [1, 2]), (lambda: x.mul_(3), [3, 6]),
        (lambda: x.div_(np.array([3.0, 2.0])), [1, 3]), (lambda: x.clamp_(2, 2.5), [2, 2.5]),
        (lambda: x.clamp_(max=1), [1, 1]),
        (lambda: x.fill_(7), [7, 7]), (lambda: x.copy_([1, 2]), [1, 2]), (lambda: x.zero_(), [0, 0]),
    ):  # fmt: skip
        assert change() is x
        assert array.tolist() == expected
    assert x.data is array


def test_changes_in_place_keep_the_dtype() -> None:
    x = Tensor([1.0, 2.0])
    x.mul_(np.float64(2)).add_(Tensor(np.array(1.0)))
    assert x.dtype == types.float32
    for change in (lambda x: x.div_(2), lambda x: x.clamp_(0.5), lambda x: x.lerp_(x, 0.5)):
        with pytest.raises(TypeError):
            change(Tensor([1, 2]))
    for change in (lambda x: x.fill_(300), lambda x: x.copy_(300)):
        with pytest.raises(OverflowError, match="out of bounds for uint8"):
            change(Tensor([1, 2], dtype="uint8"))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1), lambda x: x.sub_(1), lambda x: x.mul_(1), lambda x: x.div_(1), lambda x: x.fill_(1),
        lambda x: x.zero_(), lambda x: x.clamp_(0, 1), lambda x: x.copy_(1),
    ],
)  # fmt: skip
def test_no_change_in_place_of_what_requires_grad(change: Any) -> None:
    x = matrix(True)
    before = x.data.copy()
    with pytest.raises(RuntimeError, match="In-place operations are not allowed"):
        change(x)
    np.testing.assert_array_equal(x.data, before)
    computed = x * 2
    with no_grad():
        change(x)
        with pytest.raises(RuntimeError, match="In-place operations are not allowed"):
            change(computed)


def test_assignment_by_index() -> None:
    x = matrix()
    x[0] = 7
    x[1, Tensor([0, 2])] = Tensor([8.0, 9.0])
    x[x == 4] = -1
    assert x.tolist() == [[7, 7, 7], [8, -1, 9]]


def test_no_assignment_where_a_gradient_would_be_lost() -> None:
    x = matrix(True)
    with pytest.raises(
        RuntimeError, match=r"a leaf Variable that requires grad is being used in an in-place operation\."
    ):
        x[0] = 1
    computed = x * 2
    with no_grad(), pytest.raises(RuntimeError, match="where"):
        computed[0] = 1
    with pytest.raises(RuntimeError, match="list of tensors would lose their gradients"):
        matrix()[:, 0] = [x[0, 0], x[1, 0]]
    with pytest.raises(RuntimeError, match="can't be written to a tensor of int64"):
        Tensor([1, 2, 3])[0] = x[0, 0]
    for whole, part in ((Tensor(np.zeros((2, 3))), lambda y: y[0]), (x * 2, lambda y: y.reshape(-1))):
        with pytest.raises(RuntimeError, match=r"shares its numbers with another one, .* y\[t\] = x, or clone"):
            part(whole)[:] = x.sum()
        with pytest.raises(RuntimeError, match="shares its numbers"):
            part(whole).mul_(x.sum())
    kept = x * 2
    kept.retain_grad()
    with pytest.raises(RuntimeError, match=r"retain_grad\(\) knows"):
        kept[0] = 1
    with no_grad():
        x[0] = 1
    assert x.tolist() == [[1, 1, 1], [3, 4, 5]]


W = [1.0, 2.0, 3.0]


def in_a_loop(w: Any) -> Any:
    out = Tensor(np.zeros((3, 3)))
    for t in range(3):
        out[t] = w * (t + 1)
    return out


def backwards(w: Any) -> Any:
    out = Tensor(np.zeros((3, 3)))
    for t in (2, 1, 0):
        out[:, t] = w[t] * w
    return out


def again(w: Any) -> Any:
    out = Tensor(np.zeros((2, 3)))
    out[0] = w * w
    before = out * 1
    out[0] = w
    out[-1] += out[0]
    return out + before


ASSIGNED: dict[str, tuple[Any, Any, list[float]]] = {  # a function of w, its sum with w = 1, 2, 3, and the gradient
    "in a loop": (in_a_loop, 36, [6, 6, 6]),
    "backwards": (backwards, 36, [12, 12, 12]),
    "again": (again, 26, [4, 6, 8]),
    "a mask": (lambda w: changed(w * 2, "__setitem__", w.detach() > 1, 0.5), 3, [2, 0, 0]),
    "mul_": (lambda w: changed(w * 2, "mul_", w), 28, [4, 8, 12]),
    "add_ to zeros": (lambda w: changed(Tensor(np.zeros(3)), "add_", w, alpha=2), 12, [2, 2, 2]),
    "masked_fill_": (lambda w: changed(w * w, "masked_fill_", w > 2, 1.0), 6, [2, 4, 0]),
    "clamp_": (lambda w: changed(w * 1, "clamp_", max=2), 5, [1, 1, 0]),
    "fill_": (lambda w: changed(w * 1, "fill_", w[1]), 6, [0, 3, 0]),
    "copy_": (lambda w: changed(w * 1, "copy_", w[:1]), 3, [3, 0, 0]),
    "sqrt_": (lambda w: changed(w * w, "sqrt_"), 6, [1, 1, 1]),
    "div_": (lambda w: changed(w * w, "div_", w, rounding_mode="floor"), 6, [0, 0, 0]),
}


def changed(x: Tensor, method: str, *arguments: Any, **options: Any) -> Tensor:
    getattr(x, method)(*arguments, **options)
    return x


@pytest.mark.parametrize("name", ASSIGNED)
def test_changes_that_gradients_follow(name: str) -> None:
    """Also where an operation before the change has read other numbers, which PyTorch refuses in its backward."""
    function, total, gradient = ASSIGNED[name]
    w = Tensor(np.array(W), requires_grad=True)
    result = function(w).sum()
    result.backward()
    assert result.item() == total
    assert w.grad.tolist() == gradient


def test_an_assignment_to_the_numbers_of_a_gradient() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    (w * 3).sum().backward()
    w.grad.data = w.grad.data * 2
    assert w.grad.tolist() == [6, 6]
    w.grad.data *= 2
    assert w.grad.tolist() == [12, 12]
    with pytest.raises(ValueError, match="must keep the shape"):
        w.grad.data = np.ones(3)


def test_plus_equals_makes_a_new_tensor_while_recording() -> None:
    x = Tensor([1.0], requires_grad=True)
    computed = y = x * 1
    y += 1
    assert y is not computed
    y *= 3
    y.backward()
    assert x.grad.item() == 3
    total = 0
    for _ in range(3):
        total += x.sum()
    assert total.requires_grad


@pytest.mark.parametrize("change", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_plus_equals_of_what_is_trained_is_refused_as_a_loop_over_parameters_would_lose_it(change: Any) -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a leaf Variable that requires grad .* inside no_grad\(\), .*model.edit"):
        change(w, 2.0)
    with no_grad():
        assert change(w, 2.0) is w


def test_updates_by_hand_inside_no_grad_reach_the_weights() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    weights = [w]
    (w * w).sum().backward()
    with no_grad():
        for p in weights:
            p -= 0.5 * p.grad
            p /= 1.0
    assert weights[0].tolist() == [0, 0]
    assert w.requires_grad
    assert w.is_leaf


def test_plus_equals_may_widen_a_plain_tensor_inside_no_grad() -> None:
    count = Tensor(1)
    total = Tensor(0.0)
    with no_grad():
        count += 0.5
        total += Tensor([1.0, 2.0])
    assert count.item() == 1.5
    assert total.tolist() == [1, 2]


# -- gradients as tensors


def test_a_gradient_can_be_scaled_and_replaced() -> None:
    x = matrix(True)
    x.sum().backward()
    x.grad *= 3
    assert x.grad.data[0, 0] == 3
    x.grad.mul_(2)
    assert x.grad.data[0, 0] == 6
    x.grad = np.ones((2, 3))
    assert x.grad.data.sum() == 6
    x.grad.zero_()
    assert x.grad.data.sum() == 0
    with pytest.raises(ValueError, match=r"grad must have the shape \(2, 3\)"):
        x.grad = np.ones(3)


def test_retain_grad_of_a_computed_tensor() -> None:
    x = matrix(True)
    y = x * 2
    y.retain_grad()
    (y * 3).sum().backward()
    np.testing.assert_array_equal(y.grad.data, np.full((2, 3), 3))
    np.testing.assert_array_equal(x.grad.data, np.full((2, 3), 6))


def test_what_requires_a_gradient() -> None:
    x = matrix(True)
    y = x * 2
    assert x.is_leaf
    assert not y.is_leaf
    assert y.requires_grad
    assert not y.detach().requires_grad
    assert y.detach().data is y.data
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False
    x.requires_grad_(False)
    assert not (x * 2).requires_grad
    with pytest.raises(RuntimeError, match="floating point"):
        Tensor(np.array([1, 2]), requires_grad=True)
    assert Tensor([1, 2], requires_grad=True).dtype == "float32"  # numbers without a dtype of their own
    copy = x.clone()
    assert not np.shares_memory(copy.data, x.data)
    assert matrix(True).clone().requires_grad
