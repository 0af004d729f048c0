"""The state of an optimizer as it is saved and loaded, by parameter, and copies of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_state
from sorix_dist.core.capture import uncaptured
from sorix_dist.core.tensor import Array
from sorix_dist.nn.torch_state import from_torch
from sorix_dist.optim.custom import TensorState
from sorix_dist.optim.state import FlatState, weighted

_NEW = {"amsgrad", "maximize", "weight_decay"}  # what states of earlier versions lack, and of PyTorch's Rprop
Group = dict[str, Any]  # the list `params`, and by name their options
Snapshot = dict[str, Array]  # the step counts, and the buffers, by name


class GroupState(FlatState):
    """The state of one group, which can be saved and loaded."""

    def entries(self) -> list[dict[str, Any] | None]:
        """For each parameter copies of what is remembered of it, or None if it was never updated."""
        views = {name: self._views(name) for name in self.buffers}
        return [
            {"step": int(step), **{name: Tensor(parts[i].copy()) for name, parts in views.items()}} if step else None
            for i, step in enumerate(self.steps)
        ]

    def check(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Raises ValueError for entries that do not fit these parameters, or lack a buffer of `names`."""
        for i, (parameter, entry) in enumerate(zip(self.params, entries, strict=True)):
            if entry is None:
                continue
            missing = {"step", *names} - entry.keys()
            if missing:
                raise ValueError(f"load_state_dict: the state of parameter {i} lacks {sorted(missing)}")
            if int(entry["step"]) < 0:
                raise ValueError(f"load_state_dict: 'step' of parameter {i} must be >= 0, got {entry['step']}")
            for name in names:
                value, wanted = np.asarray(entry[name]), parameter.array
                if value.shape != wanted.shape or not np.can_cast(value.dtype, wanted.dtype, "same_kind"):
                    raise ValueError(
                        f"load_state_dict: '{name}' of parameter {i} must be {wanted.dtype} {wanted.shape}, "
                        f"got {value.dtype} {value.shape}"
                    )

    def load(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Loads entries that were checked. A call of all ranks that share the parameters."""
        self.buffers = {name: arrays for name, arrays in self.buffers.items() if name in names}
        self._allocate(names, "optimizer.load_state_dict")
        self._fence("optimizer.load_state_dict")
        for i, entry in enumerate(entries):
            self.steps[i] = 0 if entry is None else int(entry["step"])
        self._count = weighted(self.steps)
        for name in names:
            for view, (kind, _), entry in zip(self._views(name), self._offsets, entries, strict=True):
                if self._kinds[kind][0].writes:
                    np.copyto(view, 0 if entry is None else np.asarray(entry[name]), casting="same_kind")
        self._fence("optimizer.load_state_dict")
        self._blocks_for, self._runs = None, []

    def snapshot(self, names: tuple[str, ...]) -> Snapshot:
        """Copies of the step counts and of the buffers, among them those of `names`."""
        self._allocate(names, "optimizer.step")
        flat = {f"{name}.{k}": array for name, arrays in self.buffers.items() for k, array in enumerate(arrays)}
        return {"steps": self.steps.copy(), **{name: array.copy() for name, array in flat.items()}}

    def restore(self, saved: Snapshot) -> None:
        """Returns to a snapshot. Buffers that it lacks become zeros."""
        steps = saved["steps"]
        further = steps - self.steps
        if np.ptp(further):
            self._blocks_for = None  # other parameters have equal counts
        self._runs = [(before + int(further[0]), blocks) for before, blocks in self._runs]
        self.steps[:] = steps
        self._count = weighted(steps)
        for name, arrays in self.buffers.items():
            for k, array in enumerate(arrays):
                array[...] = saved.get(f"{name}.{k}", 0)


class SavedState:
    """The methods of an optimizer that save its state, load it, and copy all of it."""

    defaults: dict[str, Any]
    _groups: list[Group]
    _flat: list[GroupState] | tuple[()]
    _tensors: Any
    check: Callable[[Group], None]
    buffers: Callable[[Group], tuple[str, ...]]

    @property
    def _states(self) -> Sequence[Any]:
        return self._flat if self._tensors is None else [TensorState(g["params"], self) for g in self._groups]

    def __setstate__(self, state: dict[str, Any]) -> None:  # which a user's, with defaults of its own, calls
        vars(self).update(state)

    @uncaptured
    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, laid out as PyTorch's: it knows parameters by their number in all groups.

        `state` has, for each parameter that was ever updated, its number of updates `step` and its
        buffers in the parameter's shape; `param_groups` the options, with the numbers under `params`.
        """
        self._before_state()
        groups, state = [], {}
        first = 0
        for group, own in zip(self._groups, self._states, strict=True):
            numbers = range(first, first + len(own.params))
            groups.append({**group, "params": list(numbers)})
            for number, entry in zip(numbers, own.entries(), strict=True):
                if entry is not None:
                    state[number] = entry
            first = numbers.stop
        return {"state": state, "param_groups": groups}

    @uncaptured
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the `state_dict()` of an optimizer with groups of the same number and shapes, also of PyTorch's.

        ValueError says what does not fit; nothing is changed then.
        """
        self.check_state_dict(state_dict)
        state_dict = self._as_own(state_dict)
        for group, own, saved in zip(self._groups, self._states, state_dict["param_groups"], strict=True):
            group.update(_options(saved))
            own.load([state_dict["state"].get(number) for number in saved["params"]], self.buffers(group))

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises what `load_state_dict` would raise for this state, and changes nothing."""
        self._before_state()
        if not {"state", "param_groups"} <= as_state("load_state_dict", state_dict).keys():
            raise ValueError(
                f"load_state_dict: state_dict must have 'state' and 'param_groups', got {sorted(state_dict)}"
            )
        state_dict = self._as_own(state_dict)
        groups, state = state_dict["param_groups"], state_dict["state"]
        sizes = [len(own.params) for own in self._states]
        given = [len(group.get("params", ())) for group in groups]
        if sizes != given:
            raise ValueError(f"load_state_dict: state_dict must have groups of {sizes} parameters, got {given}")
        for i, (group, saved, own) in enumerate(zip(self._groups, groups, self._states, strict=True)):
            missing = self.defaults.keys() - saved.keys() - _NEW
            if missing:
                raise ValueError(f"load_state_dict: group {i} of state_dict lacks {sorted(missing)}")
            together = {**group, **_options(saved)}
            self.check(together)
            own.check([state.get(number) for number in saved["params"]], self.buffers(together))

    def _before_state(self) -> None:
        for state in self._states:
            for sync in state.syncs():
                sync.before_state()

    def snapshot(self) -> Snapshot:
        """Copies of all step counts and buffers by name, for `restore`. Options are not among them."""
        found: Snapshot = {}
        for number, (group, state) in enumerate(zip(self._groups, self._states, strict=True)):
            found.update({f"{number}.{name}": array for name, array in state.snapshot(self.buffers(group)).items()})
        return found

    def restore(self, saved: Snapshot) -> None:
        """Returns to a `snapshot()` of this optimizer."""
        for number, state in enumerate(self._states):
            prefix = f"{number}."
            state.restore({name.removeprefix(prefix): a for name, a in saved.items() if name.startswith(prefix)})

    def _as_own(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if self._tensors is not None:
            return state_dict
        params = [parameter for group in self._groups for parameter in group["params"]]
        return from_torch(state_dict, params, {*self.defaults}, type(self).__name__)


def _options(saved: dict[str, Any]) -> dict[str, Any]:
    """The entries of a saved group other than the numbers of its parameters."""
    return {name: value for name, value in saved.items() if name != "params"}
