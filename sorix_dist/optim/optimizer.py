"""The base class of optimizers: groups of parameters with options, and the update of each group.

Parameters that are neighbours in memory are updated as one slice, in blocks that stay in the cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from sorix_dist.core import Tensor, enable_grad
from sorix_dist.core.arguments import as_bool, as_function, as_list, in_range
from sorix_dist.core.capture import listening, recorders
from sorix_dist.core.flat import zero_gradients
from sorix_dist.core.graph import editing, refuse_pending, zero
from sorix_dist.core.memory import ParameterMemory
from sorix_dist.core.tensor import Array
from sorix_dist.optim.custom import in_one_edit
from sorix_dist.optim.groups import ParameterGroups
from sorix_dist.optim.hooks import StepHooks
from sorix_dist.optim.saved_state import Group, GroupState, SavedState
from sorix_dist.optim.state import Buffers, Scratch

_IGNORED = {"foreach", "fused", "capturable", "differentiable"}  # how PyTorch computes
_SWITCHES = {"amsgrad", "centered", "decoupled_weight_decay", "maximize", "nesterov"}


class Optimizer(ParameterGroups, SavedState, StepHooks):
    """Base of the optimizers. A subclass names its options and their bounds, and updates a slice in `update`.

    Or it is written as for PyTorch: it calls `super().__init__(params, defaults)`, with a dict of options, keeps what
    it remembers of a parameter in `self.state[p]`, and changes the parameters of `param_groups` in a `step()` of its
    own, inside no_grad(). Every rank computes all of such a step, and the ranks compare the result.

    params: parameters, or dicts with a list `params` and other options (parameter groups). The groups
    are open: `optimizer.param_groups[0]["lr"] = 0.01` takes effect at the next step.
    A parameter without a gradient is left alone: it does not move, and its momentum and step count stay.
    """

    scratch_arrays: ClassVar[int] = 1  # how many spare arrays `update` needs
    bounds: ClassVar[Mapping[str, tuple[float, ...]]] = MappingProxyType({})  # of its options, as `in_range` takes them

    def __init_subclass__(cls) -> None:
        if cls.step is not Optimizer.step and not cls.__module__.startswith("sorix_dist."):
            in_one_edit(cls)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Mapping[str, Any] = 1e-3,
        weight_decay: float = 0.0,
        *,
        ignored: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        defaults = options.pop("defaults", lr)  # a dict if the class is written as for PyTorch
        if unknown := sorted(ignored.keys() - _IGNORED):
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument '{unknown[0]}'")
        if isinstance(defaults, Mapping):
            self.defaults, self.state = dict(defaults), defaultdict(dict)
        else:
            self.defaults = {"lr": lr, "weight_decay": weight_decay, **options}
        self._groups = []
        self._flat: list[GroupState] = []
        if isinstance(params, Tensor | dict):
            raise TypeError(f"params must be a list of tensors or of groups, got a {type(params).__name__}")
        given = as_list("params", params, "tensors or of groups")
        if not given:
            raise ValueError("optimizer got an empty parameter list")
        groups = given if all(isinstance(entry, dict) for entry in given) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    # -- what a subclass defines

    def check(self, group: Group) -> None:
        """Raises for an option that makes no sense."""
        for name, bounds in {"lr": (0,), "weight_decay": (0,), **self.bounds}.items() if self._tensors is None else ():
            in_range(name, group[name], *bounds)
        for name in _SWITCHES & group.keys():
            as_bool(name, group[name])

    def buffers(self, group: Group) -> tuple[str, ...]:
        """The names of the arrays that the options of this group need beside each parameter."""
        return ()

    def update(self, data: Array, grad: Array, buffers: Buffers, scratch: Scratch, group: Group, step: int) -> None:
        """Moves a slice of parameters in place, by their gradient, which stays as it is.

        buffers: those of the slice, which start as zeros; scratch: spare arrays of the same length;
        step: how many updates this one makes it, 1 at first.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement update")

    # -- what a user calls

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure`, called first, returned."""
        if recorders and (recorder := listening()) is not None:
            if closure is not None:
                recorder.refuse("optimizer.step with a closure")
            return recorder.host(_step, (self, closure), {})
        if (edit := editing.get()) is not None:
            with edit.settled():
                return Optimizer.step(self, closure)
        if not self._flat:
            raise NotImplementedError(f"{type(self).__name__} must implement step, as it was given a dict of defaults")
        loss = None
        if closure is not None:
            with enable_grad():
                loss = as_function("step: closure", closure, "no arguments")()
        for state in self._flat:
            refuse_pending(state.syncs())
        # Other ranks with the same memory may read the parameters up to here, and again once all have moved.
        memories: dict[ParameterMemory, None] = {}
        plans = []
        for group, state in zip(self._groups, self._flat, strict=True):
            plans.append((group, state.advance(self.buffers(group), self.scratch_arrays, group)))
            for memory in state.memories:
                memories[memory] = None
        for memory in memories:
            memory.fence("optimizer.step")
        for group, runs in plans:
            for step, blocks in runs:
                for data, grad, scratch, buffers in blocks:
                    self.update(data, grad, buffers, scratch, group, step)
        for memory in memories:
            memory.fence("optimizer.step")
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters, so that the next backward writes instead of adding.

        Not `set_to_none`: gradients become zeros, and the next step moves parameters by momentum and decay.
        """
        if recorders and (recorder := listening()) is not None:
            recorder.host(_zero_grad, (self, set_to_none), {})
            return
        if not set_to_none:
            zero_gradients(parameter for group in self._groups for parameter in group["params"])
            return
        for state in self._flat or self._states:
            zero(state.leaves())

    def __repr__(self) -> str:
        groups = (
            ", ".join([f"{len(g['params'])} parameters", *(f"{k}={g[k]!r}" for k in self.defaults)])
            for g in self._groups
        )
        return f"{type(self).__name__}({'; '.join(groups)})"


def descent(data: Array, grad: Array, spare: Array, group: Group, decoupled: bool = False) -> Array:
    """The gradient of what is minimized, with weight decay: `grad` itself, or in `spare`.

    decoupled: shrinks the parameters by lr * weight_decay instead (Loshchilov and Hutter 2019).
    """
    decay = group["weight_decay"]
    if decay and decoupled:
        data *= 1 - float(group["lr"]) * float(decay)
    elif decay:
        np.multiply(data, float(decay), out=spare)
        if group["maximize"]:
            spare -= grad
        else:
            spare += grad
        return spare
    if group["maximize"]:
        return np.negative(grad, out=spare)
    return grad


# What a captured step calls, also while a profile has put functions that take the time in their place.
_step, _zero_grad = Optimizer.step, Optimizer.zero_grad
