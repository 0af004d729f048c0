"""Module: a tree of layers. One walk over it serves parameters, state, train/eval and repr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.tensor import Array, raise_for_device


class Parameter(Tensor):
    """A tensor that a module trains: it requires a gradient and is part of the module's state."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None) -> None:
        super().__init__(data, requires_grad=requires_grad, dtype=dtype)


class Module:
    """A layer, or a model of layers.

    Whatever an attribute holds (a module, a parameter, or lists, tuples and dicts of them) belongs to it.
    """

    training = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError("You must implement forward in the subclass.")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

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
        """The modules directly below this one."""
        for name, child in self.children_and_state():
            if isinstance(child, Module):
                yield name, child

    def children(self) -> Iterator[Module]:
        """The modules directly below this one."""
        for _, child in self.named_children():
            yield child

    def _named_tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Every parameter and buffer below, under each of its names, and whether it is a parameter."""
        for prefix, module in self.named_modules():
            buffers = module.__dict__.get("_buffers", {})
            for name, value in module.children_and_state():
                if isinstance(value, Tensor):
                    trained = name not in buffers and (isinstance(value, Parameter) or value.requires_grad)
                    if trained or name in buffers:
                        yield f"{prefix}.{name}" if prefix else name, value, trained

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The trained tensors with dotted names; one that several layers share comes once, by its first name."""
        seen: set[int] = set()
        for name, tensor, trained in self._named_tensors():
            if trained and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        """The trained tensors, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are state but are not trained, with dotted names."""
        seen: set[int] = set()
        for name, tensor, trained in self._named_tensors():
            if not trained and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def buffers(self) -> Iterator[Tensor]:
        """The tensors that are state but are not trained."""
        for _, buffer in self.named_buffers():
            yield buffer

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Makes `tensor` state of this module, not trained; in `state_dict()` only if `persistent`."""
        if "." in name or not name:
            raise ValueError(f"register_buffer: name must be an attribute name without a dot, got {name!r}")
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        setattr(self, name, tensor if tensor is None or isinstance(tensor, Tensor) else Tensor(tensor))

    def register_parameter(self, name: str, parameter: Tensor | None) -> None:
        """Sets an attribute to a parameter (or to None, for one that this module does without)."""
        setattr(self, name, parameter)

    # -- state

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and persistent buffers, by dotted name."""
        return {name: tensor.array.copy() for name, tensor in self._state()}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Copies values into the parameters and buffers of the same names.

        ValueError if names are missing or unknown (unless not `strict`), or a shape differs; nothing is
        changed then.
        """
        own = dict(self._state())
        missing, unknown = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        if strict and (missing or unknown):
            raise ValueError(f"load_state_dict: state_dict lacks {missing} and has unknown {unknown}")
        values = {name: np.asarray(getattr(v, "array", v)) for name, v in state_dict.items() if name in own}
        for name, value in values.items():
            if value.shape != own[name].array.shape:
                raise ValueError(
                    f"load_state_dict: '{name}' must have shape {own[name].array.shape}, got {value.shape}"
                )
        for name, value in values.items():
            np.copyto(own[name].array, value, casting="same_kind")

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        transient = {
            id(getattr(module, name))
            for module in self.modules()
            for name, persistent in module.__dict__.get("_buffers", {}).items()
            if not persistent
        }
        for name, tensor, _ in self._named_tensors():
            if id(tensor) not in transient:
                yield name, tensor

    # -- switches

    def train(self, mode: bool = True) -> Self:
        """Switches this module and all below it to training (dropout drops, batch norm sees the batch)."""
        for module in self.modules():
            module.training = mode
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

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Makes all parameters trained, or frozen."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forgets the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: Any) -> Self:
        """This module, for `device` "cpu"; RuntimeError for a device that is not there."""
        raise_for_device(device)
        return self

    # -- how it is seen

    def extra_repr(self) -> str:
        """What `repr` says of this module beside its children."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        extra = self.extra_repr()
        lines = ([extra] if extra and children else []) + children
        inner = "".join(f"\n  {line}" for line in lines) + "\n" if lines else extra
        return f"{type(self).__name__}({inner})"


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


class _Numbered(Module):
    """Modules in a row, named "0", "1", …"""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._layers: list[Module] = []
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        """Adds a module at the end."""
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__} holds modules, got {type(module).__name__} {module!r}")
        self._layers.append(module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Adds modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        for name, value in super().children_and_state():
            yield name.removeprefix("_layers."), value

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers)

    def __getitem__(self, index: int | slice) -> Any:
        return type(self)._of(self._layers[index]) if isinstance(index, slice) else self._layers[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._layers[index] = module

    @classmethod
    def _of(cls, modules: list[Module]) -> Self:
        made = cls()
        return made.extend(modules)


class Sequential(_Numbered):
    """Layers, each fed with what the one before computed."""

    def __init__(self, *layers: Module) -> None:
        super().__init__(layers)

    def forward(self, x: Any) -> Any:
        for layer in self._layers:
            x = layer(x)
        return x


class ModuleList(_Numbered):
    """A list of modules; what they do with an input is up to who holds it."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__(modules or ())
