"""What all optimizers share: groups of parameters, their state in flat arrays, and the walk over both.

Parameters that are neighbours in memory are updated as one slice, in blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import flat, no_grad
from sorix_dist.core.tensor import Array, Tensor

BLOCK = 1 << 15  # elements: a block of data, gradient, state and scratch space fits into a core's cache


class Optimizer:
    """Base of the optimizers. A subclass names its `defaults` and `buffers` and updates a slice in `update`.

    params: parameters, or dicts with a list `params` and options of their own (parameter groups).
    """

    defaults: ClassVar[dict[str, Any]] = {}
    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0, **options: Any) -> None:
        self.options = {"lr": lr, "weight_decay": weight_decay, **options}
        self.param_groups: list[dict[str, Any]] = []
        self.steps = 0
        self._slices: list[_GroupState] = []
        given = list(params)
        if not given:
            raise ValueError("optimizer got an empty parameter list")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds a dict with a list `params` and the options that differ from the optimizer's own."""
        unknown = group.keys() - self.options.keys() - {"params"}
        if unknown:
            raise ValueError(f"param_groups: options must be among {sorted(self.options)}, got {sorted(unknown)}")
        params = group.get("params", [])
        params = [params] if isinstance(params, Tensor) else list(params)
        if not params:
            raise ValueError("optimizer got an empty parameter list")
        taken = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"params must hold tensors, got {type(p).__name__} at {i}")
            if not p.is_leaf:
                raise ValueError(f"params: tensor {i} is computed by an operation; only leaf tensors can be optimized")
            if id(p) in taken:
                raise ValueError(f"params: tensor {i} appears twice")
            taken.add(id(p))
        made = {**self.options, **{k: v for k, v in group.items() if k != "params"}, "params": params}
        self.check(made)
        self.param_groups.append(made)
        self._slices.append(_GroupState(params, self.buffers))

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError for an option that makes no sense."""
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must be >= 0, got {group[name]}")

    def update(self, data: Array, grad: Array, scratch: Array, group: dict[str, Any], **buffers: Array) -> None:
        """Moves one slice of parameters in place; `scratch` is spare memory of the same length."""
        raise NotImplementedError(f"{type(self).__name__} must implement update")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure`, called first, returned."""
        loss = None if closure is None else closure()
        self.steps += 1
        with no_grad():
            for group, state in zip(self.param_groups, self._slices, strict=True):
                for data, grad, scratch, buffers in state.blocks():
                    self.update(data, grad, scratch, group, **buffers)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters: the next backward writes instead of adding."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.leaf is not None:
                    parameter.leaf.zero()

    def state_dict(self) -> dict[str, Any]:
        """Copies of the state (one flat array per group and buffer), the options, and the number of steps."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        state = [{name: array.copy() for name, array in s.buffers.items()} for s in self._slices]
        return {"steps": self.steps, "param_groups": groups, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict()` of an optimizer with the same groups and parameters; ValueError if not."""
        groups, states = state_dict["param_groups"], state_dict["state"]
        if len(groups) != len(self.param_groups) or len(states) != len(self.param_groups):
            raise ValueError(
                f"load_state_dict: state_dict must have {len(self.param_groups)} parameter groups, got {len(groups)}"
            )
        for i, (own, saved) in enumerate(zip(self._slices, states, strict=True)):
            shapes = {name: array.shape for name, array in own.buffers.items()}
            got = {name: np.shape(array) for name, array in saved.items()}
            if shapes != got:
                raise ValueError(f"load_state_dict: state of group {i} must have the shapes {shapes}, got {got}")
        self.steps = state_dict["steps"]
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update(saved)
        for own, saved in zip(self._slices, states, strict=True):
            for name, array in saved.items():
                np.copyto(own.buffers[name], array)


class _GroupState:
    """The state of one group's parameters: one flat array per buffer, laid out as `flat.layout` does."""

    def __init__(self, params: list[Tensor], names: tuple[str, ...]) -> None:
        self.params = params
        self.starts, size = flat.layout(params)
        dtypes = {p.array.dtype for p in params}
        if len(dtypes) > 1:
            raise TypeError(
                f"params: a group must have one dtype, got {sorted(map(str, dtypes))}; make a parameter group of each"
            )
        if any(flat.leaf_of(p).flat is None for p in params):
            flat.flatten(params)
        self.dtype = dtypes.pop()
        self.buffers = {name: flat.zeros(size, self.dtype) for name in names}
        self._version = -1
        self._all: list[_Block] = []

    def blocks(self) -> list[_Block]:
        """Blocks of all parameters that have a gradient, with the state that belongs to them."""
        used = [i for i, p in enumerate(self.params) if p.leaf.total.written]  # type: ignore[union-attr]
        if len(used) < len(self.params):
            return list(self._cut(used))
        if self._version != flat.version():
            self._all = list(self._cut(used))
            self._version = flat.version()
        return self._all

    def _cut(self, used: list[int]) -> Iterator[_Block]:
        scratch = np.empty(BLOCK, self.dtype)
        for storage, at, start, length in self._runs(used):
            for done in range(0, length, BLOCK):
                n = min(BLOCK, length - done)
                here, state = slice(at + done, at + done + n), slice(start + done, start + done + n)
                buffers = {name: array[state] for name, array in self.buffers.items()}
                yield storage.data[here], storage.grad[here], scratch[:n], buffers

    def _runs(self, used: list[int]) -> list[tuple[flat.Flat, int, int, int]]:
        """Longest runs of parameters that follow each other in memory and in the state: storage, where, where, how long."""
        runs: list[tuple[flat.Flat, int, int, int]] = []
        for i in used:
            parameter = self.params[i]
            storage = flat.leaf_of(parameter).flat
            at, start, length = storage.start_of(parameter), self.starts[i], parameter.array.size
            if runs:
                previous, its_at, its_start, its_length = runs[-1]
                gap = start - its_start - its_length
                neighbour = i - 1 in used and previous is storage and at - its_at == start - its_start
                if neighbour and 0 <= gap < flat.ALIGNMENT:
                    runs[-1] = (storage, its_at, its_start, its_length + gap + length)
                    continue
            runs.append((storage, at, start, length))
        return runs


_Block = tuple[Array, Array, Array, dict[str, Array]]
