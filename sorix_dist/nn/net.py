"""Modules that hold other modules in a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Self

from sorix_dist.core import Tensor
from sorix_dist.nn.module import Module

__all__ = ["Module", "ModuleList", "Sequential"]  # sorix has Module here, too


class _Row(Module):
    """Modules in a row, named "0", "1", …, or as in the dict that they come in."""

    def __init__(self, modules: Iterable[Module] | Mapping[str, Module] = ()) -> None:
        self._layers: dict[str, Module] = {}
        named = modules.items() if isinstance(modules, Mapping) else ((str(i), m) for i, m in enumerate(modules))
        for name, module in named:
            self._add(name, module)

    def _add(self, name: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__} holds modules, got {type(module).__name__} {module!r}")
        self._layers[name] = module

    def append(self, module: Module) -> Self:
        """Adds a module at the end, under the next free number."""
        self._add(next(str(i) for i in count(len(self)) if str(i) not in self._layers), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Adds modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Adds a module before the one at `index`; those that follow are numbered anew."""
        layers = list(self)
        layers.insert(index, module)
        _Row.__init__(self, layers)
        return self

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        for name, value in super().children_and_state():
            yield name.removeprefix("_layers."), value

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers.values())

    def __getattr__(self, name: str) -> Module:
        if name in self.__dict__.get("_layers", ()):
            return self._layers[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, slice):
            return self._of(dict(list(self._layers.items())[index]))
        return self._layers[self._name(index)]

    def __setitem__(self, index: int | str, module: Module) -> None:
        self._add(self._name(index), module)

    def _name(self, index: int | str) -> str:
        return index if isinstance(index, str) else list(self._layers)[index]

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> Self:
        raise NotImplementedError


class Sequential(_Row):
    """Layers, each fed with what the one before computed; `Sequential({"name": layer, …})` names them."""

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        super().__init__(layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else layers)  # type: ignore[arg-type]

    def forward(self, x: Any) -> Any:
        for layer in self._layers.values():
            x = layer(x)
        return x

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> Self:
        return cls(modules)


class ModuleList(_Row):
    """A list of modules; what they do with an input is up to who holds it."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__(modules or ())

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> Self:
        return cls(modules.values())
