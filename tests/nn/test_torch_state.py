"""PyTorch's names and layouts, without PyTorch; `tests/parity/test_weights.py` compares with it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim

SQUARE = np.arange(9, dtype=np.float32).reshape(3, 3)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Embedding(3, 3))


STATE: dict[str, Any] = {
    "0.weight": SQUARE, "0.bias": SQUARE[0],
    "1.weight": SQUARE[1], "1.bias": SQUARE[2], "1.running_mean": SQUARE[0], "1.running_var": SQUARE[1],
    "1.num_batches_tracked": np.array(5), "2.weight": SQUARE + 1,
}  # fmt: skip


def test_names_decide_on_square_matrices() -> None:
    ours = model()
    ours.load_state_dict(STATE)
    assert np.array_equal(ours[0].W.array, SQUARE.T)
    assert np.array_equal(ours[0].b.array, SQUARE[:1])
    assert np.array_equal(ours[1].running_var.array, SQUARE[1:2])
    assert np.array_equal(ours[2].W.array, SQUARE + 1)
    own = ours.state_dict()
    again = model()
    again.load_state_dict(own)
    assert np.array_equal(again[0].W.array, SQUARE.T)
    given = sx.to_torch_state(again)
    assert given.keys() == STATE.keys() - {"1.num_batches_tracked"}
    for name, value in given.items():
        assert np.array_equal(value, STATE[name]), name
        assert value.flags.c_contiguous
    given["0.weight"][0] = -1
    assert again[0].W.array.min() >= 0
    assert ours.load_state_dict({"0.weight": SQUARE * 2}, strict=False).missing_keys[0] == "0.b"
    assert np.array_equal(ours[0].W.array, SQUARE.T * 2)


def test_prefixes_of_wrappers() -> None:
    for prefix in ("module.", "_orig_mod."):
        ours = model()
        ours.load_state_dict({prefix + name: value for name, value in STATE.items()})
        assert np.array_equal(ours[0].W.array, SQUARE.T)


def test_counts_of_batches_that_are_used_come_over() -> None:
    norm = nn.BatchNorm1d(3, momentum=None)
    norm.load_state_dict({name[2:]: value for name, value in STATE.items() if name[0] == "1"})
    assert norm.num_batches_tracked.item() == 5
    assert sx.to_torch_state(norm)["num_batches_tracked"] == 5


def test_what_a_layer_does_without_is_not_lost_in_silence() -> None:
    with pytest.raises(ValueError, match=r"has unknown \['bias'\]"):
        nn.Linear(3, 3, bias=False).load_state_dict({"weight": SQUARE, "bias": SQUARE[0]})


GROUP = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
TORCHS = {"maximize": False, "foreach": None, "differentiable": False, "fused": None}


def same(layer: nn.Linear) -> nn.Linear:
    return layer


def pickled(layer: nn.Linear) -> Any:
    return pickle.loads(pickle.dumps(layer))


def saved(layer: nn.Linear) -> Any:
    path = Path("layer.safetensors")
    sx.save(layer, path)
    return sx.load(path)


@pytest.mark.parametrize("through", [same, copy.deepcopy, pickled, saved], ids=lambda f: f.__name__)
def test_optimizer_states_of_square_matrices(through: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer = through(nn.Linear(3, 3))
    optimizer = optim.SGD(layer.parameters(), lr=1, momentum=0.5)
    state = {0: {"momentum_buffer": SQUARE}, 1: {"momentum_buffer": SQUARE[1]}}
    optimizer.load_state_dict({"state": state, "param_groups": [{**GROUP, **TORCHS, "params": [0, 1]}]})
    own = optimizer.state_dict()
    assert np.array_equal(own["state"][0]["momentum_buffer"].array, SQUARE.T)
    assert np.array_equal(own["state"][1]["momentum_buffer"].array, SQUARE[1:2])
    assert own["param_groups"][0].keys() == {*optimizer.defaults, "params"}
    assert own["param_groups"][0].items() >= GROUP.items()
    optimizer.load_state_dict(own)  # our own state is not turned again
    assert np.array_equal(optimizer.state_dict()["state"][0]["momentum_buffer"].array, SQUARE.T)


def test_options_of_torch() -> None:
    optimizer = optim.SGD(nn.Linear(3, 3).parameters(), lr=1)
    for option, message in (
        ({"centred": True}, "centred, which PyTorch's state sets to True"),
        ({"fused": True}, None),
    ):
        given = {"state": {}, "param_groups": [{**GROUP, **TORCHS, "momentum": 0, "params": [0, 1], **option}]}
        if message is None:
            optimizer.load_state_dict(given)
        else:
            with pytest.raises(ValueError, match=f"SGD has no option {message}"):
                optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.1


class Holder(nn.Module):
    """A module of the user's with an attribute `module`, as wrappers have it."""

    def __init__(self) -> None:
        self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Any) -> Any:
        return self.head(self.module(x))


def test_only_our_own_wrapper_is_unwrapped(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.warns(RuntimeWarning, match="Holder has a class that is not the package's"):
        sx.save(Holder(), path)
    assert sorted(sx.load(path)) == ["head.W", "head.b", "module.W", "module.b"]
    assert sorted(sx.to_torch_state(Holder())) == ["head.bias", "head.weight", "module.bias", "module.weight"]
