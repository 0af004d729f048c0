"""The groups of parameters that an optimizer has, with their options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_list, described
from sorix_dist.core.capture import outside, recorders, uncaptured
from sorix_dist.optim.saved_state import Group, GroupState

_NOTES = ("name", "initial_lr")  # other keys that a group may have: its name, and the note of schedulers


class _Made(Group):
    """A group of an optimizer. Another optimizer that is made for it takes options that it does not know."""


class ParameterGroups:
    """The methods of an optimizer that give its groups, add one, and give what is remembered of their parameters.

    A class of a user's may set `param_groups` and `state` by itself, without a call of `__init__`.
    """

    defaults: dict[str, Any]
    check: Callable[[Group], None]
    _groups: list[Group]
    _flat: list[GroupState] | tuple[()] = ()
    _tensors: Any = None  # what an optimizer of a user's remembers, by parameter, instead of `_flat`

    @property
    def param_groups(self) -> list[Group]:
        """The groups of parameters with their options, which may be changed between steps."""
        if recorders:
            outside("options of an optimizer are read or set inside of the step: set them outside, or by a scheduler")
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        members = [[*map(id, group["params"])] for group in groups]
        if self._flat and members != [[*map(id, group["params"])] for group in self._groups]:
            raise ValueError(f"{type(self).__name__}: param_groups must keep their parameters; make a new optimizer")
        self._groups = groups

    @property
    def state(self) -> Any:
        """What is remembered, by parameter a dict: a copy, but for an optimizer that is written as for PyTorch."""
        own = self._tensors
        return MappingProxyType(dict(self._remembered())) if own is None else own

    @state.setter
    def state(self, value: Any) -> None:
        if self._flat:
            raise AttributeError(
                f"{type(self).__name__}: state can't be set: make a new optimizer, or load_state_dict()"
            )
        self._tensors = value

    def _remembered(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for own in self._flat:
            for parameter, entry in zip(own.params, own.entries(), strict=True):
                for value in (entry or {}).values():
                    if isinstance(value, Tensor):
                        value.array.flags.writeable = False
                if entry is not None:
                    yield parameter, entry

    @uncaptured
    def add_param_group(self, group: Group) -> None:
        """Adds a dict with a list `params` and the options that differ from the optimizer's own."""
        if not isinstance(group, dict):
            raise TypeError(f"add_param_group: group must be a dict with a list 'params', got {described(group)}")
        unknown = group.keys() - self.defaults.keys() - {"params", *_NOTES}
        if unknown and self._tensors is None and not isinstance(group, _Made):
            raise ValueError(f"param_groups: options must be among {sorted(self.defaults)}, got {sorted(unknown)}")
        given = group.get("params", [])
        if isinstance(given, set | frozenset):
            raise TypeError("params must have an order, got a set: state is saved and loaded by position")
        params = [given] if isinstance(given, Tensor) else as_list("params", given, "tensors")
        if not params:
            raise ValueError("optimizer got an empty parameter list")
        self._check_parameters(params)
        made = _Made({**self.defaults, **group, "params": params})
        self.check(made)
        if self._tensors is None:
            self._flat = [*self._flat, GroupState(params, type(self).__name__, tuple(self.defaults))]
        self._groups.append(made)

    def _check_parameters(self, params: list[Any]) -> None:
        taken = {id(p) for g in self._groups for p in g["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                hint = "; model.parameters() gives those of a model" if hasattr(p, "parameters") else ""
                raise TypeError(f"params must hold tensors, got {type(p).__name__} at {i}{hint}")
            if not p.is_leaf:
                raise ValueError(f"params: tensor {i} is computed by an operation; only leaves can be optimized")
            if p.array.dtype.kind != "f":
                raise ValueError(f"params: tensor {i} must be of floating point dtype, got {p.array.dtype}")
            if id(p) in taken:
                raise ValueError(f"params: tensor {i} appears twice")
            taken.add(id(p))
