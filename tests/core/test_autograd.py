"""The walk: depth, memory, spent graphs, requests for gradients, orders, and recording per thread."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest

from sorix_dist.core import Tensor, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled


def needing(*numbers: float, dtype: Any = np.float64) -> Tensor:
    return Tensor(np.array(numbers, dtype), requires_grad=True)


# -- depth and memory


def test_a_hundred_thousand_operations_in_a_row() -> None:
    x = needing(1.0)
    y = x
    for _ in range(100_000):
        y = y + x
    y.backward()
    assert x.grad.item() == 100_001
    del y
    gc.collect()


def test_a_deep_graph_is_deallocated_without_a_walk() -> None:
    x = needing(1.0)
    y = x
    for i in range(100_000):
        y = y * y
        if not i:
            first = weakref.ref(y.array)  # kept for the gradient of the next operation
    assert first() is not None
    del y
    gc.collect()
    assert first() is None


def test_a_wide_graph() -> None:
    x = needing(2.0)
    total = sum((x * float(i) for i in range(2000)), Tensor(np.zeros(1)))
    total.backward()
    assert x.grad.item() == 1999 * 2000 / 2


def test_shared_nodes_are_visited_once() -> None:
    """A ladder has 2 ** 200 paths."""
    y = x = needing(1.0)
    for _ in range(200):
        y = (y + y) * 0.5
    y.backward()
    assert x.grad.item() == 1.0


def test_a_backward_frees_what_operations_saved() -> None:
    """While it goes on: each layer's output is gone before the last one's rule has run."""
    freed = []
    h = needing(0.5)
    kept, nodes = [], []
    for _ in range(4):
        h = h * h  # keeps its input for the gradient
        kept.append(weakref.ref(h.array))
        nodes.append(h.origin)
    nodes[1].hooks = [lambda g: freed.append([array() is None for array in kept])]
    loss = h.sum()
    del h, nodes
    loss.backward()
    assert len(freed) == 1
    assert freed[0][2:] == [True, True]
    assert not freed[0][0]
    assert all(array() is None for array in kept)


def test_memory_after_a_backward_is_that_of_the_gradients() -> None:
    x = needing(*np.ones(100_000))
    x.exp().sum().backward()
    x.grad = None
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y = x
        for _ in range(10):
            y = (y * 1.01).exp().log()
        loss = y.sum()
        del y
        held = tracemalloc.get_traced_memory()[0]
        loss.backward()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held - before > 10 * x.array.nbytes
    assert after - before < 0.5 * x.array.nbytes


def test_what_no_gradient_needs_is_not_kept() -> None:
    x, constant = needing(1.0, 2.0), Tensor(np.array([3.0, 4.0]))
    product = x * constant
    array = weakref.ref(x.array)
    x.data = np.array([5.0, 6.0])  # a tensor outside flat storage takes the new array
    assert array() is None, "the gradient to x needs the constant only"
    product.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [3, 4])


def test_nothing_is_recorded_without_need() -> None:
    x = needing(1.0)
    with no_grad():
        assert (x * 2).origin is None
    assert (Tensor([1.0]) * 2).origin is None
    assert (x > 0).origin is None


# -- backward


def test_a_second_backward_over_a_spent_graph_is_an_error_that_names_the_operation() -> None:
    x = needing(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"freed by an earlier backward \(at 'sum'\).*retain_graph=True"):
        y.backward()
    np.testing.assert_array_equal(x.grad.data, [2, 4])


def test_retain_graph_keeps_it() -> None:
    x = needing(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad.data, [6, 12])
    with pytest.raises(RuntimeError, match="was freed"):
        y.backward()


def test_a_spent_part_is_found_from_another_result() -> None:
    x = needing(1.0)
    shared = x.exp()
    first, second = shared * 2, shared * 3
    first.backward()
    with pytest.raises(RuntimeError, match="'exp'"):
        second.backward()


def test_what_backward_refuses() -> None:
    x = needing(1.0, 2.0)
    with pytest.raises(RuntimeError, match="scalar"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2,\).*got shape \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="does not require grad"):
        Tensor(1.0).backward()
    assert x.grad is None


CHANGES: list[tuple[Any, Any, bool]] = [
    (lambda x, b: x * b, lambda b: b.mul_(2), True),
    (lambda x, b: x / b, lambda b: b.sqrt_(), True),
    (lambda x, b: x * b.detach(), lambda b: b.zero_(), True),
    (lambda x, b: x * b[:2], lambda b: b.add_(1), True),
    (lambda x, b: (x[None] @ b[:, None]).sum(), lambda b: b.__setitem__(0, 5.0), True),
    (lambda x, b: x.softmax(0) * b, lambda b: b.copy_(b * 2), True),
    (lambda x, b: x * b, lambda b: np.put(b, [0], 5.0), True),
    (lambda x, b: x * b, lambda b: b.detach().reshape(2, 1).fill_(5.0), True),
    (lambda x, b: x.exp().tanh() * b.clone(), lambda b: b.mul_(2), False),
    (lambda x, b: x + b, lambda b: b.mul_(2), False),
    (lambda x, b: x * b[:1], lambda b: b[1:].zero_(), False),
    (lambda x, b: x * b, lambda b: b.clone().mul_(2), False),
    (lambda x, b: (b.mul_(2), x * b)[1], lambda b: None, False),
]


@pytest.mark.parametrize(("use", "change", "refused"), CHANGES)
def test_changes_in_place_of_what_a_backward_needs(use: Any, change: Any, refused: bool) -> None:
    x, b = needing(0.5, 2.0), Tensor(np.array([3.0, 7.0]))
    with no_grad():
        x.mul_(1.0)  # before the graph
    (wanted,) = grad(use(x, Tensor(np.array([3.0, 7.0]))).sum(), x)
    y = use(x, b).sum()
    with no_grad():
        change(b)
    if refused:
        with pytest.raises(RuntimeError, match=r"changed in place after it, .* use x\.clone\(\)"):
            y.backward()
        return
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), wanted.numpy())


def test_gradients_add_up_until_they_are_forgotten() -> None:
    x = needing(1.0, 2.0)
    (x * 3).backward(Tensor([1.0, 10.0]))
    (x * 3).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad.data, [6, 60])
    x.grad = None
    assert x.grad is None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 1])


def test_a_leaf_is_its_own_result() -> None:
    x = needing(2.0)
    x.backward()
    assert x.grad.item() == 1


def test_gradients_have_the_dtype_and_shape_of_their_tensors() -> None:
    x, y = needing(1.0, 2.0, dtype=np.float32), needing(1.0, dtype=np.float64)
    (x * y).sum().backward()
    assert x.grad.array.dtype == np.float32
    assert y.grad.array.dtype == np.float64
    assert y.grad.shape == (1,)


def test_no_two_gradients_share_memory() -> None:
    """Also where an operation hands one array on to both of its inputs."""
    a, b, c = needing(1.0, 2.0), needing(3.0, 4.0), needing(5.0, 6.0)
    seed = np.ones(2)
    (a + b + c.reshape(2, 1).reshape(2)).backward(seed)
    gradients = [t.grad.array for t in (a, b, c)]
    for i, g in enumerate(gradients):
        assert not any(np.shares_memory(g, other) for other in [*gradients[:i], seed])
    (a * 10).sum().backward()
    np.testing.assert_array_equal(b.grad.data, [1, 1])
    np.testing.assert_array_equal(a.grad.data, [11, 11])


def test_the_answers_of_grad_share_no_memory() -> None:
    a, b = needing(1.0, 2.0), needing(3.0, 4.0)
    seed = np.ones(2)
    first, second = grad(a + b, [a, b], seed)
    first.array[:] = 7
    np.testing.assert_array_equal(second.array, [1, 1])
    np.testing.assert_array_equal(seed, [1, 1])


# -- grad()


def test_grad_leaves_grad_alone() -> None:
    x = needing(3.0)
    (x * x).backward()
    (g,) = grad(x * x * x, x)
    assert g.item() == 27
    assert x.grad.item() == 6
    assert not g.requires_grad


def test_grad_of_an_intermediate_and_of_several_outputs() -> None:
    x = needing(3.0)
    y = x * x
    z = y * 2 + x
    assert [g.item() for g in grad(z, [y, x], retain_graph=True)] == [2, 13]
    assert [g.item() for g in grad([z, y], x, [None, Tensor([10.0])])] == [73]
    assert grad(x, x)[0].item() == 1


def test_what_grad_refuses() -> None:
    x, unused, constant = needing(1.0), needing(1.0), Tensor([1.0])
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad(constant * 2, x)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad(x * 2, constant)
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        grad(needing(1.0, 2.0) * 2, x)
    with pytest.raises(RuntimeError, match="was not used in the graph"):
        grad(x * 2, [x, unused])
    assert grad(x * 2, [x, unused], allow_unused=True)[1] is None
    with pytest.raises(ValueError, match="one entry per output"):
        grad([x * 2, x * 3], x, [None])
    with pytest.raises(ValueError, match="shape"):
        grad(x * 2, x, np.ones(2))


@pytest.mark.parametrize("order", range(1, 7))
def test_orders_of_derivatives_of_a_power_and_of_exp(order: int) -> None:
    x = needing(1.5)
    power, growth = x**5, (x * 2).exp()
    for _ in range(order):
        (power,) = grad(power, x, create_graph=True) if power.requires_grad else (Tensor([0.0]),)
        (growth,) = grad(growth, x, create_graph=True)
    factor = float(np.prod(np.arange(5 - order + 1, 6))) if order <= 5 else 0.0
    np.testing.assert_allclose(power.data, factor * 1.5 ** max(0, 5 - order), rtol=1e-12)
    np.testing.assert_allclose(growth.data, 2.0**order * np.exp(3.0), rtol=1e-12)


def test_a_hessian_vector_product() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 4))
    x = Tensor(rng.standard_normal(4), requires_grad=True)
    v = rng.standard_normal(4)
    (g,) = grad((x @ Tensor(a) @ x).sum() * 0.5 + (x.sin()).sum(), x, create_graph=True)
    (hv,) = grad(g, x, v)
    np.testing.assert_allclose(hv.data, (a + a.T) @ v / 2 - np.sin(x.data) * v, rtol=1e-12)


def test_backward_with_create_graph_can_be_differentiated() -> None:
    x = needing(2.0)
    (x**3).backward(create_graph=True)
    first = x.grad
    assert first.item() == 12
    assert first.requires_grad
    (second,) = grad(first, x)
    assert second.item() == 12


def test_a_gradient_penalty_reaches_the_weights() -> None:
    """The derivative of |d f / d x|^2 to w for f = tanh(w x)."""
    x, w = needing(0.3), needing(0.7)
    (g,) = grad((x * w).tanh(), x, create_graph=True)
    (g * g).backward()
    t = np.tanh(0.21)
    slope = 0.7 * (1 - t * t)
    expected = 2 * slope * ((1 - t * t) - 0.7 * 2 * t * (1 - t * t) * 0.3)
    np.testing.assert_allclose(w.grad.data, expected, rtol=1e-12)


# -- recording


def test_recording_can_be_switched() -> None:
    assert is_grad_enabled()
    with no_grad():
        assert not is_grad_enabled()
        with enable_grad():
            assert is_grad_enabled()
        assert not is_grad_enabled()
        with set_grad_enabled(True):
            assert is_grad_enabled()
        assert not is_grad_enabled()
    assert is_grad_enabled()
    set_grad_enabled(False)
    try:
        assert not is_grad_enabled()
    finally:
        set_grad_enabled(True)


def test_recording_comes_back_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert is_grad_enabled()


@pytest.mark.parametrize("switch", [no_grad, lambda: set_grad_enabled(False)])
def test_a_decorated_function_may_call_itself(switch: Any) -> None:
    @switch()
    def depth(n: int) -> list[bool]:
        return [is_grad_enabled(), *(depth(n - 1) if n else [])]

    assert is_grad_enabled()
    assert depth(3) == [False] * 4
    assert is_grad_enabled()


def test_each_thread_records_for_itself() -> None:
    entered, leave = threading.Barrier(2, timeout=30), threading.Event()
    seen: dict[str, bool] = {}

    def without() -> None:
        with no_grad():
            entered.wait()
            leave.wait(30)
            seen["without"] = is_grad_enabled()

    thread = threading.Thread(target=without)
    thread.start()
    entered.wait()
    x = needing(1.0)
    y = x * 2
    leave.set()
    thread.join(30)
    assert not thread.is_alive()
    assert seen == {"without": False}
    assert y.requires_grad


def test_a_decorated_function_runs_in_threads_at_once() -> None:
    both = threading.Barrier(2, timeout=30)
    failures: list[BaseException] = []

    @no_grad()
    def meet(first: bool) -> None:
        both.wait()  # both are inside
        if first:
            both.wait()  # leaves last
        else:
            threading.Timer(0.05, both.wait).start()

    def run(first: bool) -> None:
        try:
            for _ in range(3):
                meet(first)
                assert is_grad_enabled()
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def test_graphs_in_threads_do_not_mix() -> None:
    results = {}

    def work(k: int) -> None:
        x = needing(float(k))
        y = x
        for _ in range(2000):
            y = y + x
        y.backward()
        results[k] = x.grad.item()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == dict.fromkeys(range(4), 2001)
