"""The state of an optimizer as it is saved and loaded: step counts and buffers by parameter; and copies of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Array
from sorix_dist.optim.state import FlatState, weighted

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
        self._lay(names, "optimizer.load_state_dict")
        self._fence("optimizer.load_state_dict")
        for i, entry in enumerate(entries):
            self.steps[i] = 0 if entry is None else int(entry["step"])
        self._count = weighted(self.steps)
        for name in names:
            for view, (kind, _), entry in zip(self._views(name), self._places, entries, strict=True):
                if self._kinds[kind][0].writes:
                    np.copyto(view, 0 if entry is None else np.asarray(entry[name]), casting="same_kind")
        self._fence("optimizer.load_state_dict")
        self._cut_for, self._runs = None, []

    def snapshot(self, names: tuple[str, ...]) -> Snapshot:
        """Copies of the step counts and of the buffers, among them those of `names`."""
        self._lay(names, "optimizer.step")
        flat = {f"{name}.{k}": array for name, arrays in self.buffers.items() for k, array in enumerate(arrays)}
        return {"steps": self.steps.copy(), **{name: array.copy() for name, array in flat.items()}}

    def restore(self, saved: Snapshot) -> None:
        """Returns to a snapshot. Buffers that it lacks become zeros."""
        steps = saved["steps"]
        further = steps - self.steps
        if np.ptp(further):
            self._cut_for = None  # other parameters have equal counts
        self._runs = [(before + int(further[0]), blocks) for before, blocks in self._runs]
        self.steps[:] = steps
        self._count = weighted(steps)
        for name, arrays in self.buffers.items():
            for k, array in enumerate(arrays):
                array[...] = saved.get(f"{name}.{k}", 0)
