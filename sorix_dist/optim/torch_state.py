"""Conversion of the states of PyTorch's optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor

_SPEED = {"foreach", "fused", "capturable", "differentiable"}  # options that change no value
_MARKS = _SPEED | {"maximize", "decoupled_weight_decay"}


def from_torch(state_dict: Mapping[str, Any], params: Sequence[Tensor], options: set[str], kind: str) -> dict[str, Any]:
    """Converts the `state_dict()` of one of PyTorch's optimizers to this package's; the latter is returned as it is.

    Buffers are laid out as the parameters are, an SGD without a count of its steps gets one, and options that ours do
    not have go if they change no value. ValueError for one that does. params: all parameters, in the order of the
    groups; options: those that the optimizer has; kind: the name of its class.
    """
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(state, Mapping) or not groups or not any(_MARKS & group.keys() - options for group in groups):
        return dict(state_dict)
    entries = {}
    for number, parameter in zip((n for group in groups for n in group.get("params", ())), params, strict=False):
        own = {name: _laid_out(value, parameter) for name, value in state.get(number, {}).items() if value is not None}
        if own:
            entries[number] = {"step": 1, **own}
    return {"state": entries, "param_groups": [_own_options(group, options, kind) for group in groups]}


def _own_options(group: Mapping[str, Any], options: set[str], kind: str) -> dict[str, Any]:
    own = {}
    for name, value in group.items():
        if name in options or name in ("params", "name", "initial_lr"):
            own[name] = value
        elif value and name not in _SPEED and not (name == "decoupled_weight_decay" and kind == "AdamW"):
            raise ValueError(f"load_state_dict: {kind} has no option {name}, which PyTorch's state sets to {value!r}")
    return own


def _laid_out(value: Any, parameter: Tensor) -> Any:
    """A buffer in the layout of its parameter; a number as it is."""
    array = np.asarray(value.detach().float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value)
    if array.ndim == 0:
        return array.item()
    if getattr(parameter, "torch_transposed", False):
        return array.T
    return array.reshape(parameter.shape) if parameter.shape == (1, *array.shape) else array
