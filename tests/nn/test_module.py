"""Module: what belongs to it, under which names, and how its state is taken and given back."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import Tensor, nn, optim


class Block(nn.Module):
    """Children in lists, tuples and dicts; a buffer that is saved, one that is not, one that is not there."""

    def __init__(self) -> None:
        self.layers = [nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)]
        self.heads = {"a": nn.Linear(2, 1), 7: (nn.Linear(2, 1),)}
        self.scale = nn.Parameter(np.ones(2, np.float32))
        self.register_buffer("seen", np.zeros((), np.int64))
        self.register_buffer("cache", np.zeros(3, np.float32), persistent=False)
        self.register_buffer("absent", None)
        self.constant = Tensor(np.ones(2, np.float32))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.heads["a"](x * self.scale)


X = Tensor(np.ones((3, 2), np.float32))
PARAMETERS = ["layers.0.W", "layers.0.b", "layers.2.W", "heads.a.W", "heads.a.b", "heads.7.0.W", "heads.7.0.b"]


def test_one_walk_for_parameters_and_state() -> None:
    block = Block()
    assert [name for name, _ in block.named_parameters()] == ["scale", *PARAMETERS]
    assert [name for name, _ in block.named_buffers()] == ["seen", "cache"]
    assert list(block.state_dict()) == ["scale", "seen", *PARAMETERS]
    assert len(block.parameters()) == 8
    assert [type(m).__name__ for m in block.modules()] == ["Block", "Linear", "ReLU", "Linear", "Linear", "Linear"]
    assert [name for name, _ in block.named_children()] == ["layers.0", "layers.1", "layers.2", "heads.a", "heads.7.0"]


def test_names_below_a_row() -> None:
    model = nn.Sequential(Block(), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "0.scale"
    assert names[-4:] == ["1.0.W", "1.0.b", "1.1.W", "1.1.b"]


def test_tied_parameters_come_once_but_are_saved_under_each_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].W = model[0].W
    assert [name for name, _ in model.named_parameters()] == ["0.W", "0.b", "1.b"]
    assert list(model.state_dict()) == ["0.W", "0.b", "1.W", "1.b"]
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
    assert len(model.parameters()) == 2
    counts: list[str] = []
    model.apply(lambda m: counts.append(type(m).__name__))
    assert counts == ["Linear", "ReLU", "Sequential"]


def test_a_tensor_that_was_computed_or_is_constant_does_not_belong() -> None:
    block = Block()
    before = list(block.state_dict())
    block.last = block(X)
    block.target = X
    block.plain = [np.ones(3), 1, "text", None]
    assert list(block.state_dict()) == before
    block.last = block(X)
    block.last = None


def test_a_frozen_tensor_that_is_no_parameter_by_type_stays_one() -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            self.w = Tensor(np.ones(2), requires_grad=True)

    old = Old()
    assert list(old.requires_grad_(False).state_dict()) == ["w"]
    assert not old.w.requires_grad
    assert old.requires_grad_(True).w.requires_grad


def test_two_tensors_of_one_name_are_refused() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            self.heads = {"0": nn.Linear(1, 1), 0: nn.Linear(1, 1)}

    with pytest.raises(ValueError, match=r"two tensors of the name 'heads.0.W'"):
        Clash().state_dict()
    with pytest.raises(ValueError, match=r"two tensors of the name 'heads.0.W'"):
        Clash().parameters()


# -- state


def test_a_state_is_a_snapshot_of_tensors() -> None:
    model = nn.Linear(2, 1)
    state = model.state_dict()
    before = state["W"].numpy().copy()
    model.W.data[...] = 9
    assert np.array_equal(state["W"], before)
    assert type(state["W"]) is Tensor
    assert not state["W"].requires_grad
    with pytest.raises(ValueError, match="read-only"):  # in PyTorch it would change the module
        state["W"].data[...] = -1


def test_loading_copies_so_that_the_optimizer_goes_on() -> None:
    """The optimizer's view of the parameters must survive a load: its step moves the model."""
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    memory = model.W.data
    assert model.load_state_dict(other.state_dict()) == ([], [])
    assert model.W.data is memory
    assert np.array_equal(model.W.data, other.W.data)
    model(X).sum().backward()
    optimizer.step()
    assert np.allclose(model.W.data, other.W.data - 0.5 * 3)


def test_arrays_tensors_and_other_precisions_can_be_loaded() -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict({"W": np.array([[1.0], [2.0]]), "b": [[3]]})
    assert model.W.data.tolist() == [[1], [2]]
    assert model.b.data.tolist() == [[3]]
    assert model.W.dtype == sx.float32


def test_missing_and_unknown_names() -> None:
    model = nn.Linear(2, 1)
    state = model.state_dict()
    before = model.W.data.copy()
    wrong = {"W": np.zeros((2, 1)), "B": state["b"], "c": 1}
    with pytest.raises(ValueError, match=r"lacks \['b'\] and has unknown \['B', 'c'\]"):
        model.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"state_dict lacks \['b'\]$"):
        model.load_state_dict({"W": state["W"]})
    assert np.array_equal(model.W.data, before)
    keys = model.load_state_dict(wrong, strict=False)
    assert keys.missing_keys == ["b"]
    assert keys.unexpected_keys == ["B", "c"]
    assert not model.W.data.any()


@pytest.mark.parametrize(
    "bad",
    [np.zeros((1, 2)), np.zeros(2), np.zeros((2, 1), complex), np.array([["a"], ["b"]]), np.array([[None], [1]])],
    ids=["transposed", "flat", "complex", "text", "objects"],
)
def test_a_value_that_does_not_fit_changes_nothing(bad: Any) -> None:
    model = nn.Linear(2, 1)
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"'W' must have shape \(2, 1\) and dtype float32, got"):
        model.load_state_dict({"b": np.full((1, 1), 5.0), "W": bad})
    assert np.array_equal(model.b.data, before["b"])
    assert np.array_equal(model.W.data, before["W"])


def test_a_count_is_not_loaded_from_fractions() -> None:
    block = Block()
    with pytest.raises(ValueError, match=r"'seen' must have shape .* and dtype int64, got shape .* and dtype float64"):
        block.load_state_dict({**block.state_dict(), "seen": np.array(0.5)})


def test_every_parameter_goes_from_one_model_to_another() -> None:
    one, other = Block(), Block()
    one.seen.data[...] = 5
    other.load_state_dict(one.state_dict())
    assert other.seen.item() == 5
    assert np.array_equal(one(X).data, other(X).data)


# -- assignment


def test_an_array_does_not_silently_replace_a_parameter() -> None:
    layer = nn.Linear(2, 1)
    for bad in (np.zeros((2, 1)), Tensor(np.zeros((2, 1))), layer.W * 2, 3.0, [1]):
        with pytest.raises(TypeError, match="parameter 'W' must be a Parameter or None"):
            layer.W = bad
    assert "W" in layer.state_dict()
    layer.W.data = np.ones((2, 1))
    assert layer.W.data.tolist() == [[1], [1]]
    replaced = nn.Parameter(np.zeros((2, 1), np.float32))
    layer.W = replaced
    assert layer.W is replaced
    layer.b = None
    assert list(layer.state_dict()) == ["W"]


def test_a_buffer_stays_a_buffer() -> None:
    block = Block()
    block.seen = Tensor(np.array(3))
    assert block.state_dict()["seen"].item() == 3
    block.absent = Tensor(np.zeros(1))
    assert "absent" in block.state_dict()
    for bad in (np.zeros(1), 0):
        with pytest.raises(TypeError, match="buffer 'seen' must be a Tensor or None"):
            block.seen = bad
    block.seen = None
    assert "seen" not in block.state_dict()


def test_deleting() -> None:
    block = Block()
    del block.seen, block.scale, block.layers
    assert [name for name, _ in block.named_parameters()] == PARAMETERS[3:]
    assert [name for name, _ in block.named_buffers()] == ["cache"]
    with pytest.raises(AttributeError):
        del block.seen
    block.seen = 5
    assert "seen" not in block.state_dict()


def test_registering() -> None:
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(np.ones(2)))
    module.register_parameter("none", None)
    module.add_module("inner", nn.Linear(1, 1))
    module.register_module("no_module", None)
    assert list(module.state_dict()) == ["w", "inner.W", "inner.b"]
    with pytest.raises(TypeError, match="'v' must be a Parameter or None, got ndarray"):
        module.register_parameter("v", np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'v' must be a Module or None, got int"):
        module.add_module("v", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"without a dot, got 'a.b'"):
        module.register_buffer("a.b", np.ones(2))
    with pytest.raises(KeyError, match="'w' is an attribute of this Module already"):
        module.register_buffer("w", np.ones(2))


def test_looking_up() -> None:
    block = Block()
    assert block.get_submodule("") is block
    assert block.get_submodule("layers.2") is block.layers[2]
    assert nn.Sequential(block).get_submodule("0.heads.7.0") is block.heads[7][0]
    assert block.get_parameter("layers.0.W") is block.layers[0].W
    assert block.get_buffer("seen") is block.seen
    for look, name in ((block.get_submodule, "layers.9"), (block.get_parameter, "seen"), (block.get_buffer, "scale")):
        with pytest.raises(AttributeError, match=f"Block has no .* '{name}'"):
            look(name)


# -- switches


def test_train_and_eval_reach_every_child() -> None:
    model = nn.Sequential(Block(), Block())
    assert all(m.training for m in model.modules())
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    model[0].train()
    assert [m.training for m in model] == [True, False]
    with pytest.raises(TypeError, match="mode must be True or False, got str 'yes'"):
        model.train("yes")  # type: ignore[arg-type]


def test_a_child_may_refuse_to_train() -> None:
    class Frozen(Block):
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    model = nn.Sequential(Frozen(), Block()).train()
    assert [m.training for m in model] == [False, True]
    assert not model[0].layers[0].training


def test_gradients_of_all_parameters() -> None:
    block = Block().requires_grad_(False)
    block.layers[0].requires_grad_()
    block(X).sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is not None] == ["layers.0.W", "layers.0.b"]
    block.zero_grad(set_to_none=False)
    assert not block.layers[0].W.grad.data.any()
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


@pytest.mark.parametrize("used", [False, True])
def test_conversion(used: bool) -> None:
    block = Block()
    optimizer = optim.SGD(block.parameters(), lr=0.1, momentum=0.9)
    if used:
        block(X).sum().backward()
        optimizer.step()
    w = block.heads["a"].b  # its gradient is never zero
    before = w.data.copy()
    assert block.double() is block
    assert block.heads["a"].b is w
    assert {p.dtype for p in block.parameters()} == {sx.float64}
    assert block.cache.dtype == sx.float64
    assert block.seen.dtype == sx.int64
    assert np.array_equal(w.data, before)
    block.zero_grad()
    block(Tensor(np.ones((3, 2)))).sum().backward()
    assert w.grad.dtype == sx.float64
    optimizer.step()
    assert not np.array_equal(w.data, before)
    assert w.dtype == sx.float64
    assert block.half().scale.dtype == sx.float16
    assert block.float().scale.dtype == sx.float32


@pytest.mark.parametrize("dtype", [sx.float64, "float64", np.float64, np.dtype(np.float64)])
def test_to(dtype: Any) -> None:
    assert nn.Linear(1, 1).to(dtype).W.dtype == sx.float64
    assert nn.Linear(1, 1).to("cpu", dtype).W.dtype == sx.float64
    assert nn.Linear(1, 1).to(device="cpu", dtype=dtype).W.dtype == sx.float64
    layer = nn.Linear(1, 1)
    assert layer.to("cpu") is layer
    with pytest.raises(RuntimeError, match="cuda:0 is not available"):
        layer.to("cuda:0")
    with pytest.raises(ValueError, match="device must be 'cpu', got 'abacus'"):
        layer.to("abacus")
    with pytest.raises(TypeError, match="must be a floating point type, got int64"):
        layer.to(sx.int64)


def test_a_wrapped_model_is_not_converted() -> None:
    model = nn.Linear(2, 1)
    sx.DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match="before they are wrapped"):
        model.double()
    assert model.W.dtype == model.b.dtype == sx.float32


def test_a_layer_can_be_subclassed() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 2

    layer = Doubled(2, 1)
    plain = nn.Linear(2, 1)
    plain.load_state_dict(layer.state_dict())
    assert np.array_equal(layer(X).data, 2 * plain(X).data)
    with pytest.raises(NotImplementedError, match="You must implement forward in the subclass"):
        nn.Module()(X)


# -- rows of modules


def test_sequential_with_names() -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.ReLU(), last=nn.Linear(3, 1)))
    assert list(model.state_dict()) == ["first.W", "first.b", "last.W", "last.b"]
    assert model.first is model[0] is model["first"]
    assert model[-1] is model.last
    assert list(model[1:].state_dict()) == ["last.W", "last.b"]
    assert model(X).shape == (3, 1)
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'second'"):
        _ = model.second


def test_lists() -> None:
    layers = nn.ModuleList([nn.Linear(1, 1)])
    layers.append(nn.Linear(2, 1)).extend([nn.Linear(3, 1), nn.Linear(4, 1)]).insert(0, nn.Linear(5, 1))
    assert [layer.W.shape[0] for layer in layers] == [5, 1, 2, 3, 4]
    assert list(layers[3:].state_dict()) == ["0.W", "0.b", "1.W", "1.b"]
    assert len(layers) == 5
    layers[1] = nn.Linear(7, 1)
    assert layers[1].W.shape == (7, 1)
    assert len(layers) == 5
    with pytest.raises(TypeError, match="ModuleList holds modules, got int 3"):
        layers.append(3)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        layers[9]


def test_appending_to_a_slice_replaces_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))[1:]
    model.append(nn.Linear(1, 1))
    assert len(model) == 3
    assert list(model.state_dict()) == ["2.W", "2.b", "3.W", "3.b"]


def test_repr() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    assert repr(model) == ("Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): ReLU()\n)")


def test_a_dict_of_modules() -> None:
    heads = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.ReLU()})
    heads["c"] = nn.Linear(2, 3, bias=False)
    heads.update([("b", nn.Tanh())])
    assert list(heads) == ["a", "b", "c"] == list(heads.keys())
    assert "a" in heads
    assert len(heads) == 3
    assert heads.a is heads["a"]
    assert [name for name, _ in heads.named_parameters()] == ["a.W", "a.b", "c.W"]
    assert repr(heads["b"]) == "Tanh()"
    assert heads.pop("a") is not None
    del heads["b"]
    assert [*map(repr, heads.values())] == ["Linear(in_features=2, out_features=3, bias=False)"]
    assert [name for name, _ in heads.items()] == ["c"]
    with pytest.raises(TypeError, match="ModuleDict holds modules, got int 3"):
        heads["d"] = 3


def test_a_list_of_parameters() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.scales = nn.ParameterList([nn.Parameter(np.ones(2)), np.zeros(3)])

    model = Model()
    model.scales.append(Tensor(np.ones(1)))
    model.scales[1] = np.ones(4)
    assert [name for name, _ in model.named_parameters()] == ["scales.0", "scales.1", "scales.2"]
    assert len(model.scales) == 3
    assert [p.shape for p in model.scales] == [(2,), (4,), (1,)]
    assert all(p.requires_grad for p in model.scales)


class Transition(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.fc = nn.Linear(2, 3)


def test_attributes_of_a_row_are_its_layers() -> None:
    row = Transition()
    row.add_module("act", nn.ReLU())
    assert [name for name, _ in row.named_children()] == ["flat", "fc", "act"]
    assert row(X).shape == (3, 3)
    del row.flat
    row.fc = nn.Linear(2, 1)
    assert row(X).shape == (3, 1)
    assert list(row.state_dict()) == ["fc.W", "fc.b"]
    with pytest.raises(TypeError, match="Transition holds modules, got int 3"):
        row.fc = 3


def test_a_layer_of_two_names_is_saved_under_each() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    model.row = nn.Sequential(model["fc"], nn.ReLU())
    assert list(model.state_dict()) == ["fc.W", "fc.b", "row.0.W", "row.0.b"]
    assert [name for name, _ in model.named_parameters()] == ["fc.W", "fc.b"]
    assert list(sx.to_torch_state(model)) == ["fc.weight", "fc.bias", "row.0.weight", "row.0.bias"]
    model.fc.model = model  # a circle ends
    assert list(model.state_dict()) == ["fc.W", "fc.b", "row.0.W", "row.0.b"]


def test_a_module_is_only_replaced_by_a_module() -> None:
    block = nn.TransformerEncoderLayer(2, 1, 2)
    with pytest.raises(TypeError, match="module 'linear1' must be a Module or None, got Parameter of shape"):
        block.linear1 = nn.Parameter(np.ones(2, np.float32))
    del block.linear1
    block.linear1 = 3
    assert "linear1.W" not in block.state_dict()


def test_hooks_in_the_backward() -> None:
    layer, seen = nn.Linear(1, 1, bias=False), []
    layer.W.data[...] = 3.0
    handle = layer.register_full_backward_hook(lambda module, given, out: seen.append((given, out)))
    second = layer.register_full_backward_hook(lambda module, given, out: (given[0] * 10,))
    x = sx.tensor([[2.0]], requires_grad=True)
    (layer(x) * 5).sum().backward()
    (given, out), *_ = seen
    assert (given[0].item(), out[0].item(), x.grad.item(), layer.W.grad.item()) == (15, 5, 150, 10)
    handle.remove()
    second.remove()
    layer(x).sum().backward()
    assert x.grad.item() == 153
    layer.register_full_backward_hook(lambda module, given, out: seen.append(given))
    layer(sx.ones(1, 1)).sum().backward()
    assert seen[1:] == [(None,)]

    class First(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x * 3

    first, y = First(), sx.tensor([[2.0]], requires_grad=True)
    first.register_full_backward_hook(lambda module, given, out: seen.append(given))
    first(x, y).sum().backward()
    assert (seen[-1][0].item(), seen[-1][1]) == (3, None)
    first.register_full_backward_hook(lambda module, given, out: given[:1])
    with pytest.raises(RuntimeError, match="may return the gradient of a single input, got 1 for 2 inputs"):
        first(x, y).sum().backward()
    rnn = nn.RNN(1, 1)
    rnn.register_full_backward_hook(lambda module, given, out: None)
    with pytest.raises(TypeError, match="forward of RNN must return one tensor, got a tuple: use register_hook"):
        rnn(sx.ones(1, 1, 1))


def test_parameters_by_name() -> None:
    made = nn.ParameterDict({"b": sx.ones(2)})
    made["a"] = sx.zeros(1)
    assert ([*made], len(made), "a" in made, [*made.state_dict()]) == (["b", "a"], 2, True, ["b", "a"])
    del made["b"]
    assert [*map(id, made.parameters())] == [id(made["a"])]


def test_a_state_that_does_not_fit_is_an_error_of_both_kinds() -> None:
    for kind in (RuntimeError, ValueError):
        with pytest.raises(kind, match=r"lacks \['b'\]"):
            nn.Linear(1, 1).load_state_dict({"W": np.ones((1, 1))})
        with pytest.raises(kind, match="'W' must have shape"):
            nn.Linear(1, 1).load_state_dict({"W": np.ones((1, 2)), "b": np.ones((1, 1))})


def test_mixed_precision_changes_nothing_and_says_so() -> None:
    scaler, w = sx.cuda.amp.GradScaler(), nn.Parameter(sx.ones(1))
    optimizer = sx.optim.SGD([w], lr=0.5)
    with pytest.warns(RuntimeWarning, match="autocast: arithmetic stays in the dtype of the model"), sx.autocast("cpu"):
        loss = (w * w).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert (w.item(), scaler.get_scale(), scaler.is_enabled()) == (0, 1, False)


def test_forward_hooks() -> None:
    layer, seen = nn.Linear(2, 2), []
    first = layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    second = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    third = layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    plain = layer.forward(X + 1).numpy()
    np.testing.assert_allclose(layer(X).numpy(), plain * 2)
    assert seen[0][0] is layer
    assert (seen[0][1][0].numpy() == 2).all()
    for handle in (first, second, third):
        handle.remove()
    np.testing.assert_allclose(layer(X).numpy(), layer.forward(X).numpy())
    assert len(seen) == 1
    assert [name for name, _ in layer.named_parameters()] == ["W", "b"]


def test_there_is_no_gpu() -> None:
    layer = nn.Linear(in_features=2, out_features=3)
    assert layer.cpu() is layer.to("cpu", non_blocking=True) is layer
    assert str(layer.device) == "cpu"
    for call in (layer.cuda, lambda: layer.cuda(1), lambda: layer.to("cuda", True)):
        with pytest.raises(RuntimeError, match="is not available: sorix_dist computes on the CPU"):
            call()
    with pytest.raises(ValueError, match="Linear: neurons must be an integer >= 1, got None"):
        nn.Linear(3)


def test_the_options_of_a_layer_are_those_of_its_function() -> None:
    assert str(inspect.signature(nn.HuberLoss)) == "(reduction: 'str' = 'mean', delta: 'float' = 1.0)"
    assert nn.TripletMarginLoss(0.5, reduction="sum").margin == 0.5
    assert repr(nn.AvgPool1d(3, padding=1)) == "AvgPool1d(kernel_size=3, stride=3, padding=1)"
    with pytest.raises(TypeError, match="AvgPool2d: missing a required argument: 'kernel_size'"):
        nn.AvgPool2d()
    with pytest.raises(TypeError, match="Softmax: got an unexpected keyword argument 'axis'"):
        nn.Softmax(axis=1)

    class Leaky(nn.LeakyReLU):
        def __init__(self) -> None:
            super().__init__(0.5)

    assert Leaky()(np.float32([-1, 1])).tolist() == [-0.5, 1]


def test_a_state_of_the_tensors_themselves() -> None:
    layer = nn.BatchNorm2d(2)
    state = layer.state_dict(keep_vars=True, prefix="a.")
    assert state["a.weight"] is layer.weight
    assert state["a.running_mean"] is layer.running_mean
    assert list(state) == list(layer.state_dict(prefix="a."))
