"""What other NumPy libraries of this kind get wrong, one test each: tensors, gradients, layers and losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import nn, optim
from sorix_dist.core import Tensor, grad


def test_a_sum_does_not_hand_one_gradient_array_to_both_inputs() -> None:
    a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    (a + b).backward()
    (a * 5).backward()
    assert (a.grad.item(), b.grad.item()) == (6, 1)


def test_loading_a_state_leaves_the_optimizer_connected() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    model.load_state_dict({"W": np.ones((2, 1), np.float32), "b": np.zeros((1, 1), np.float32)})
    model(Tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(model.W.data, [[0], [-1]])
    np.testing.assert_array_equal(model.b.data, [[-1]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"bias": np.ones((1, 1), np.float32)}, r"\bbias\b"), ({"b": None}, r"lacks.*\bb\b")],
)
def test_a_state_with_missing_or_unknown_keys_is_refused_and_names_them(changed: Any, message: str) -> None:
    model = nn.Linear(2, 1)
    before = model.W.data.copy()
    state = {**model.state_dict(), "W": np.ones((2, 1), np.float32), **changed}
    with pytest.raises((KeyError, ValueError), match=message):
        model.load_state_dict({name: value for name, value in state.items() if value is not None})
    np.testing.assert_array_equal(model.W.data, before)


def test_the_gradient_of_bce_does_not_grow_with_the_columns() -> None:
    z = np.random.default_rng(0).standard_normal((4, 3))
    y = (z > 0.3).astype(float)
    logits = Tensor(z, requires_grad=True)
    nn.BCEWithLogitsLoss()(logits, Tensor(y)).backward()
    np.testing.assert_allclose(logits.grad.data, (1 / (1 + np.exp(-z)) - y) / z.size, rtol=1e-10)


def test_cross_entropy_does_not_saturate_for_a_confident_wrong_answer() -> None:
    loss = nn.CrossEntropyLoss()(Tensor([[100.0, 0.0]], requires_grad=True), Tensor([1]))
    assert loss.item() == 100


def test_class_weights_are_divided_by_their_exact_sum() -> None:
    z, weight, labels = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([1e-9, 2e-9]), np.array([0, 1])
    loss = nn.CrossEntropyLoss(weight=weight)(Tensor(z), Tensor(labels))
    each = np.log(np.exp(z).sum(1)) - z[[0, 1], labels]
    np.testing.assert_allclose(loss.item(), (each * weight[labels]).sum() / weight[labels].sum(), rtol=1e-6)


def test_batched_products_have_gradients() -> None:
    rng = np.random.default_rng(0)
    x, y = (Tensor(rng.standard_normal(s), requires_grad=True) for s in ((5, 2, 3), (5, 3, 4)))
    (x @ y).sum().backward()
    np.testing.assert_allclose(x.grad.data, np.ones((5, 2, 4)) @ y.data.transpose(0, 2, 1))
    np.testing.assert_allclose(y.grad.data, x.data.transpose(0, 2, 1) @ np.ones((5, 2, 4)))


def test_abs_and_astype_keep_the_graph() -> None:
    x = Tensor([-1.0, 2.0], requires_grad=True)
    (x.abs().astype("float64") * abs(x)).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [-2, 4])


def test_repeated_indices_count_in_the_gradient() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    x[[0, 0, 0]].sum().backward()
    np.testing.assert_array_equal(x.grad.data, [3, 0])


def test_deep_graphs_do_not_overflow_the_stack() -> None:
    x = Tensor([1.0], requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1
    assert grad(y, x, retain_graph=True)[0].item() == 1
    y.backward()
    assert x.grad.item() == 1


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_sums_and_means_of_float64_stay_float64(name: str) -> None:
    x = Tensor(np.full(3, 0.1))
    assert getattr(x, name)().dtype == "float64"
    assert getattr(x, name)(0).dtype == "float64"


def test_a_number_does_not_widen_float32() -> None:
    x = Tensor([1.0])
    for number in (2, 2.5, np.float64(2), np.float32(2), np.int64(2)):
        for y in (x + number, x * number, number * x, x / number, number - x, x**number):
            assert y.dtype == "float32"


def test_dropout_keeps_the_dtype() -> None:
    dropout = nn.Dropout(0.5)
    assert dropout(Tensor(np.ones((4, 4), np.float32))).dtype == "float32"
    assert dropout(Tensor(np.ones((4, 4)))).dtype == "float64"


def test_a_subclass_of_a_layer_can_define_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x) * 2

    layer = Doubled(2, 1)
    x = Tensor([[1.0, 2.0]])
    np.testing.assert_allclose(layer(x).data, 2 * (x.data @ layer.W.data + layer.b.data))


def test_a_list_of_layers_is_in_parameters_and_in_the_state() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(2, 3), {"last": nn.Linear(3, 1)}]

    net = Net()
    assert len(net.parameters()) == 4
    assert sorted(net.state_dict()) == ["layers.0.W", "layers.0.b", "layers.1.last.W", "layers.1.last.b"]


def test_a_tied_parameter_is_there_once_and_has_a_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)
            self.second.W = self.first.W

    net = Tied()
    assert [name for name, _ in net.named_parameters()] == ["first.W", "first.b", "second.b"]
    assert len(net.parameters()) == 3
