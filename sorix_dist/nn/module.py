"""Module: a tree of layers. One walk over it serves parameters, state, train/eval and repr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Partial
from sorix_dist.core.rules import whole
from sorix_dist.nn.state import Stateful


class Parameter(Tensor):
    """A tensor that a module trains: it requires a gradient and is part of the module's state."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        super().__init__(data, requires_grad=requires_grad, dtype=dtype)


class Module(Stateful):
    """A layer, or a model of layers.

    Whatever an attribute holds (a module, a parameter, or lists, tuples and dicts of them) belongs to it.
    Parameters are `Parameter`s and other tensors that were made to require a gradient; they stay parameters
    while they are frozen. Other tensors belong to the state only if they were registered as buffers.
    """

    training = True
    _in_repr: ClassVar[tuple[str, ...]] = ()  # the attributes that `extra_repr` shows

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError("You must implement forward in the subclass.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None:
            if name in self._own_buffers():
                if not isinstance(value, Tensor):
                    raise TypeError(
                        f"buffer '{name}' must be a Tensor or None, got {type(value).__name__}; "
                        "assign to its `data` to change the numbers"
                    )
                value = whole(value, f"buffer '{name}'") if isinstance(value.place, Partial) else value
            elif _is_trained(self.__dict__.get(name)) and not _is_trained(value):
                raise TypeError(
                    f"parameter '{name}' must be a Parameter or None, got {type(value).__name__}; "
                    "assign to its `data` to change the numbers, or delete it first"
                )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._own_buffers().pop(name, None)

    # -- the walk

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        """The modules and tensors that this module itself holds, by name (`layers.0` for entries of a list)."""
        for name, value in vars(self).items():
            if name != "_buffers":
                yield from _entries(name, value)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with dotted names."""
        seen: set[int] = set()

        def walk(module: Module, name: str) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield name, module
            for child_name, child in module.children_and_state():
                if isinstance(child, Module):
                    yield from walk(child, f"{name}.{child_name}" if name else child_name)

        yield from walk(self, prefix)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one, each once."""
        seen: set[int] = set()
        for name, child in self.children_and_state():
            if isinstance(child, Module) and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """The modules directly below this one, each once."""
        for _, child in self.named_children():
            yield child

    def _own_buffers(self) -> dict[str, bool]:
        """The names of this module's own buffers, and whether they are persistent."""
        return self.__dict__.get("_buffers", {})

    def _named_tensors(self) -> Iterator[tuple[str, Tensor, bool, bool]]:
        found: dict[str, Tensor] = {}
        for prefix, module in self.named_modules():
            buffers = module._own_buffers()
            for own_name, value in module.children_and_state():
                if isinstance(value, Tensor) and (own_name in buffers or _is_trained(value)):
                    name = f"{prefix}.{own_name}" if prefix else own_name
                    if found.setdefault(name, value) is not value:
                        raise ValueError(f"{type(self).__name__} has two tensors of the name '{name}'")
                    yield name, value, own_name not in buffers, buffers.get(own_name, True)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Makes `tensor` state of this module, not trained; in `state_dict()` only if `persistent`."""
        if "." in name or not name:
            raise ValueError(f"register_buffer: name must be an attribute name without a dot, got {name!r}")
        if hasattr(self, name) and name not in self._own_buffers():
            raise KeyError(f"register_buffer: '{name}' is an attribute of this {type(self).__name__} already")
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        setattr(self, name, tensor if tensor is None or isinstance(tensor, Tensor) else Tensor(tensor))

    def register_parameter(self, name: str, parameter: Tensor | None) -> None:
        """Sets an attribute to a parameter (or to None, for one that this module does without)."""
        if parameter is not None and not _is_trained(parameter):
            raise TypeError(f"register_parameter: '{name}' must be a Parameter or None, got {type(parameter).__name__}")
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Sets an attribute to a module."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: '{name}' must be a Module or None, got {type(module).__name__}")
        setattr(self, name, module)

    register_module = add_module

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name; AttributeError if there is none."""
        found = self._find(target)
        if found is None:
            raise AttributeError(f"{type(self).__name__} has no module '{target}'")
        return found

    def _find(self, target: str) -> Module | None:
        if not target:
            return self
        for name, child in self.children_and_state():
            if isinstance(child, Module) and (target == name or target.startswith(f"{name}.")):
                found = child._find(target[len(name) + 1 :])
                if found is not None:
                    return found
        return None

    # -- switches

    def train(self, mode: bool = True) -> Self:
        """Switches this module and all below it to training (dropout drops, batch norm sees the batch)."""
        if not isinstance(mode, bool):
            raise ValueError(f"mode must be True or False, got {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switches this module and all below it to evaluation."""
        return self.train(False)

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Calls `function` on every module below, children first, then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # -- how it is seen

    def extra_repr(self) -> str:
        """What `repr` says of this module beside its children."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._in_repr)

    def __repr__(self) -> str:
        held = [(name, child) for name, child in self.children_and_state() if isinstance(child, Module)]
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in held]
        extra = self.extra_repr()
        lines = ([extra] if extra and children else []) + children
        inner = "".join(f"\n  {line}" for line in lines) + "\n" if lines else extra
        return f"{type(self).__name__}({inner})"


@contextmanager
def evaluation(model: Module) -> Iterator[None]:
    """Switches all modules of a model to evaluation inside the block, and each back to what it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _entries(name: str, value: Any) -> Iterator[tuple[str, Module | Tensor]]:
    """The modules and tensors in an attribute's value, looking into lists, tuples and dicts."""
    if isinstance(value, Module | Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _entries(f"{name}.{i}", entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _entries(f"{name}.{key}", entry)


def _is_trained(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_leaf and (isinstance(value, Parameter) or value.leaf is not None)
