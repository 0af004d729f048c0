"""Weights in PyTorch's names and layouts, both ways.

A layer that names or lays out its tensors as sorix does says in `torch_names` what PyTorch calls them. Names decide:
`fc.W` is taken as it is and `fc.weight` is transposed, so that square matrices are never mistaken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sorix_dist.nn.module import Module

Array = np.ndarray[Any, Any]

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
                "nn.init takes it; F.linear(x, t.T) multiplies by a tensor t in PyTorch's layout"
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
    """Of each tensor that PyTorch names or lays out otherwise: our dotted name, PyTorch's, and the layout."""
    for prefix, module in model.named_modules():
        dotted = f"{prefix}." if prefix else ""
        for own, (theirs, layout) in module.torch_names.items():
            yield dotted + own, dotted + theirs, layout
