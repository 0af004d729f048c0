"""Optimizers of users that are written as for PyTorch: a `step` that changes one parameter after the other.

Such a `step` runs on every rank. The parameters of a wrapped model are one copy for all ranks of a host, so its methods
change a private copy of parameters and gradients. What has changed is compared over the ranks and becomes that of all
when the method ends, and in between where one calls a closure, `backward` or the step of another optimizer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from types import FunctionType
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.capture import outside, recorders
from sorix_dist.core.fingerprint import as_text
from sorix_dist.core.flat import Flat, leaf_of
from sorix_dist.core.graph import Leaf, Sync, editing, refuse_pending, syncs_of
from sorix_dist.core.memory import ParameterMemory
from sorix_dist.core.tensor import Array

_INHERITED = {"zero_grad", "state_dict", "load_state_dict", "add_param_group"}


class TensorState:
    """What an optimizer keeps of one group's parameters in `state`, a dict for each, in the form of `GroupState`."""

    def __init__(self, params: list[Tensor], optimizer: Any) -> None:
        self.params, self._optimizer = params, optimizer

    def leaves(self) -> list[Leaf]:
        """The leaves of these parameters."""
        return [*map(leaf_of, self.params)]

    def syncs(self) -> list[Sync]:
        """The `Sync` of these parameters' gradients."""
        return syncs_of(self.leaves())

    def entries(self) -> list[dict[str, Any] | None]:
        """For each parameter a copy of its dict, or None if it has none."""
        return [deepcopy(dict(self._optimizer.state[p])) if p in self._optimizer.state else None for p in self.params]

    def check(self, entries: Sequence[Any], names: tuple[str, ...]) -> None:
        """Raises ValueError for entries that are not of this form."""
        for i, entry in enumerate(entries):
            if entry is not None and not isinstance(entry, dict):
                raise ValueError(f"load_state_dict: the state of parameter {i} must be a dict, got {type(entry)}")

    def load(self, entries: Sequence[dict[str, Any] | None], names: tuple[str, ...]) -> None:
        """Loads entries that were checked."""
        for parameter, entry in zip(self.params, entries, strict=True):
            self._optimizer.state.pop(parameter, None)
            if entry is not None:
                self._optimizer.state[parameter] = deepcopy(dict(entry))

    def snapshot(self, names: tuple[str, ...]) -> Any:
        """TypeError: a worker's state has to lie in arrays parallel to the parameters."""
        raise TypeError(
            f"LocalSGD needs an optimizer that defines update(), and {type(self._optimizer).__name__} has a step() of "
            "its own"
        )

    restore = snapshot


class CopyEdit:
    """Copies of the parameters and gradients of an optimizer that all ranks share; see the module."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def begin(self) -> None:
        """Shows copies."""
        leaves = [leaf_of(p) for group in self.optimizer.param_groups for p in group["params"]]
        self._syncs = syncs_of(leaves)
        refuse_pending(self._syncs)
        flats = {id(leaf.flat): leaf.flat for leaf in leaves if leaf.sync is not None and leaf.flat is not None}
        self._open: list[tuple[Flat, Array, Array]] = []
        for flat in flats.values():
            gradients = flat.grad.copy()
            self._open.append((flat, flat.open(), gradients))
            flat.show_gradients(gradients)

    def end(self, keep: bool = True) -> None:
        """Shows the parameters that all ranks share again; `keep`: with what has changed. A call of all ranks then."""
        changed = []
        memories: list[ParameterMemory] = []
        try:
            for flat, data, gradients in self._open:
                changed += [(old, new, flat) for old, new in ((flat.data, data), (flat.grad, gradients))
                            if keep and not np.array_equal(old.view(np.uint64), new.view(np.uint64))]  # fmt: skip
            if changed:
                self._agree([new for _, new, _ in changed])
                memories = list({id(flat.memory): flat.memory for _, _, flat in changed}.values())
                for memory in memories:
                    memory.fence("optimizer.step")
                for old, new, flat in changed:
                    if flat.memory.writes:
                        np.copyto(old, new)
        finally:
            for flat, _, _ in self._open:
                flat.close(keep=False)
                flat.show_gradients(flat.grad)
        for memory in memories:
            memory.fence("optimizer.step")

    def _agree(self, values: list[Array]) -> None:
        """Lets the ranks compare the options and the new values."""
        sums = [int(np.add.reduce(value.view(np.uint64))) for value in values]
        for sync in self._syncs:
            sync.before_step(zlib.crc32(f"{self.describe()}{sums}".encode()), self)

    def describe(self) -> str:
        """The optimizer and its options, for an error message."""
        options = [{k: as_text(v) for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        return f"{type(self.optimizer).__name__}({options}), or what it computes from them,"

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A context in which the parameters are those of all ranks again, with the changes so far."""
        self.end()
        token = editing.set(None)
        try:
            yield
        finally:
            editing.reset(token)
            self.begin()


def _settled(closure: Any) -> Any:
    """A closure that is called while the parameters are those of all ranks; anything else as it is."""
    if not callable(closure):
        return closure

    def call() -> Any:
        running = editing.get()
        if running is None:
            return closure()
        with running.settled():
            return closure()

    return call


def in_one_edit(cls: type) -> None:
    """Makes the methods of a class of optimizers change copies of what all ranks share, one call at a time."""
    for name, method in [*vars(cls).items()]:
        if isinstance(method, FunctionType) and name[0] != "_" and name not in _INHERITED:
            setattr(cls, name, _edits(method, name == "step"))


def _edits(method: Callable[..., Any], takes_closure: bool) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return _in_edit(method, takes_closure, self, arguments, options)

    return call


def _in_edit(method: Any, takes_closure: bool, self: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Calls a method in an edit of its optimizer. It stands alone, since `call` is sent to other processes by value,
    with all that it names."""
    running = editing.get()
    if running is not None:
        if running.optimizer is self:
            return method(self, *arguments, **options)
        with running.settled():
            return _in_edit(method, takes_closure, self, arguments, options)
    if recorders:
        outside(f"{type(self).__name__}, an optimizer with a step() of its own, can't be captured")
    edit = CopyEdit(self)
    if takes_closure:
        arguments = tuple(map(_settled, arguments))
        options = {name: _settled(value) for name, value in options.items()}
    edit.begin()
    token, done = editing.set(edit), False
    try:
        value = method(self, *arguments, **options)
        done = True
    finally:
        editing.reset(token)
        edit.end(keep=done)
    return value
