"""Weights in PyTorch's names and layouts, both ways, and the states of its optimizers.

A layer that names or lays out its tensors as sorix does says in `torch_names` what PyTorch calls them. Names decide:
`fc.W` is taken as it is and `fc.weight` is transposed, so that square matrices are never mistaken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Array

if TYPE_CHECKING:
    from sorix_dist.nn.module import Module

TRANSPOSED, ROW, SAME, OPTIONAL = "transposed", "row", "same", "optional"
"""Layouts: PyTorch's array is the transpose of ours; ours is a row (1, n) of its (n,); both are the same; both are the
same, but a layer of ours may do without."""

_WRAPPERS = ("module.", "_orig_mod.")  # the prefixes of DistributedDataParallel and torch.compile


class IncompatibleKeys(NamedTuple):
    """The names of a module that a state dict lacks, and those that only the state dict has."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def in_own_names(model: Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with PyTorch's names replaced by the model's own, and its values in the model's layout.

    What the model has by its own name, or what it does not know at all, stays. The prefix "module." of
    DistributedDataParallel and the count of batches of a layer that counts none go.
    """
    entries = dict(state)
    known = {name for name, _ in model._saved()}
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in entries) and not any(name.startswith(prefix) for name in known):
            entries = {name.removeprefix(prefix): value for name, value in entries.items()}
    for own, theirs, layout in _names(model):
        if own not in known:
            if layout == OPTIONAL:
                entries.pop(theirs, None)
        elif own not in entries and theirs in entries:
            entries[own] = to_own_layout(entries.pop(theirs), layout)
        elif own == theirs and own in entries:
            entries[own] = to_own_layout(entries[own], layout)
    return entries


def to_torch_state(model: Module) -> dict[str, Array]:
    """Copies of all parameters and persistent buffers, in PyTorch's names and layouts, as NumPy arrays.

    `torch_model.load_state_dict({name: torch.from_numpy(a) for name, a in sx.to_torch_state(model).items()})` gives a
    PyTorch model of the same layers the same outputs.
    """
    theirs = {own: (name, layout) for own, name, layout in _names(model)}
    state = {}
    for own, tensor in model.state_dict().items():
        name, layout = theirs.get(own, (own, SAME))
        array = tensor.array
        if layout == TRANSPOSED:
            array = np.ascontiguousarray(array.T)
        state[name] = array.reshape(-1) if layout == ROW else array
    return state


def own_name(module: Module, name: str) -> str:
    """The name of the attribute that PyTorch calls `name`; AttributeError if it is laid out transposed there."""
    for own, (theirs, layout) in module.torch_names.items():
        if theirs == name and layout == TRANSPOSED:
            raise AttributeError(
                f"{type(module).__name__} has no '{name}', which is (out, in) in PyTorch: its '{own}' is (in, out), as "
                "nn.init takes it; F.linear, which takes PyTorch's layout, wants its transpose"
            )
        if theirs == name:
            return own
    return name


def to_own_layout(value: Any, layout: str) -> Array:
    """Converts PyTorch's array to this package's layout."""
    array = as_numpy(value)
    if layout == TRANSPOSED:
        return array.T
    return array.reshape(1, -1) if layout == ROW and array.ndim == 1 else array


def as_numpy(value: Any) -> Array:
    """The array of a tensor of this package or of PyTorch; bfloat16, which NumPy does not have, becomes float32."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()
    return np.asarray(value.detach() if type(value).__module__.partition(".")[0] == "torch" else value)


def _names(model: Module) -> Iterator[tuple[str, str, str]]:
    """The tensors that PyTorch names or lays out otherwise: our dotted name, PyTorch's, and the layout."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dotted = f"{prefix}." if prefix else ""
        for own, (theirs, layout) in module.torch_names.items():
            yield dotted + own, dotted + theirs, layout


_SPEED = {"foreach", "fused", "capturable", "differentiable"}  # options that change no value
_MARKS = _SPEED | {"maximize", "decoupled_weight_decay"}


def from_torch(state_dict: Mapping[str, Any], params: Sequence[Tensor], options: set[str], kind: str) -> dict[str, Any]:
    """Converts the `state_dict()` of one of PyTorch's optimizers to this package's; the latter is returned as it is.

    Buffers get the layout of their parameters, and an SGD without a count of its steps gets one. Options that ours do
    not have are dropped if they change no value; ValueError for one that does. params: all parameters, in the order of
    the groups; options: those that the optimizer has; kind: the name of its class.
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
    array = as_numpy(value)
    if array.ndim == 0:
        return array.item()
    if getattr(parameter, "torch_transposed", False):
        return array.T
    return array.reshape(parameter.shape) if parameter.shape == (1, *array.shape) else array
