"""Containers: modules and parameters in a row or by name; and functions as layers. sorix has Module here, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_list
from sorix_dist.core.capture import changed
from sorix_dist.nn.module import Module
from sorix_dist.nn.parameter import Parameter

__all__ = ["Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"]


class FunctionLayer(Module):
    """A function as a layer, which is called with the function's first parameters. The others are options: arguments of
    the constructor, with the same defaults, and attributes of the layer.

    A subclass names both: `class Softmax(FunctionLayer, function=F.softmax)`. It may have a constructor of its own, and
    without a docstring it has that of the function. inputs: the number of the first parameters.
    """

    function: ClassVar[Callable[..., Any]]
    inputs: ClassVar[int] = 1
    _options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, inputs: int | None = None) -> None:
        if inputs is not None:
            cls.inputs = inputs
        if function is not None:
            cls.function = staticmethod(function)
            options = [*inspect.signature(function).parameters.values()][cls.inputs :]
            if "_options" not in vars(cls):
                cls._options = tuple(option.name for option in options if option.name != "inplace")
            if cls.__doc__ is None:
                cls.__doc__ = function.__doc__
            if cls.__init__ is object.__init__ or hasattr(cls.__init__, "__signature__"):
                cls.__init__ = _constructor(cls, options)  # type: ignore[method-assign]
        super().__init_subclass__()

    if TYPE_CHECKING:

        def __init__(self, *options: Any, **named: Any) -> None: ...

    def _complete(self) -> None:
        """Completes the options, and raises for those that make no sense."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.function(*inputs, *[getattr(self, name) for name in self._options], **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._in_repr or self._options)


def _constructor(cls: type, options: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """The constructor of a layer class with these options; `inplace` is ignored."""
    own = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *options])

    def __init__(self: FunctionLayer, *values: Any, **named: Any) -> None:
        try:
            given = own.bind(self, *values, **named)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        given.apply_defaults()
        for name in self._options:
            setattr(self, name, given.arguments[name])
        self._complete()

    __init__.__signature__ = own  # type: ignore[attr-defined]
    __init__.__module__, __init__.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    return __init__


class _Named(Module):
    """Modules by name, which are attributes of that name, too."""

    def __init__(self, modules: Iterable[Module] | Mapping[str, Module] = ()) -> None:
        self._layers: dict[str, Module] = {}
        given = modules if isinstance(modules, Mapping) else as_list("modules", modules, "modules")
        for name, module in given.items() if isinstance(given, Mapping) else enumerate(given):
            self._add(str(name), module)

    def _add(self, name: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__} holds modules, got {type(module).__name__} {module!r}")
        self.__dict__.pop(name, None)
        self._layers[name] = module
        changed()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module) or name in self.__dict__.get("_layers", ()):
            self._add(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._layers:
            self.pop(name)
        else:
            super().__delattr__(name)

    def pop(self, key: Any) -> Module:
        """Removes a module, and returns it."""
        changed()
        return self._layers.pop(key)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        for name, value in super().children_and_state():
            yield name.removeprefix("_layers."), value

    def __len__(self) -> int:
        return len(self._layers)

    def __getattr__(self, name: str) -> Module:
        if name in self.__dict__.get("_layers", ()):
            return self._layers[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")


class _Row(_Named):
    """Modules in a row, named "0", "1", …, or as in the dict that they come in."""

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
        _Named.__init__(self, layers)
        return self

    def pop(self, key: int | slice | str = -1) -> Any:
        """Removes the module at an index, or those of a slice, and returns it; those that follow are numbered anew."""
        gone = self[key]
        for name in gone._layers if isinstance(key, slice) else [self._name(key)]:
            super().pop(name)
        if all(name.isdigit() for name in self._layers):
            _Named.__init__(self, list(self))
        return gone

    def __add__(self, other: Iterable[Module]) -> Self:
        return self._of({str(i): module for i, module in enumerate([*self, *other])})

    def __iadd__(self, other: Iterable[Module]) -> Self:
        return self.extend(other)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers.values())

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
    """Layers in a row: each gets what the one before computed. `Sequential({"name": layer, …})` names them."""

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
    """A list of modules; the model that contains it calls them."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__(() if modules is None else modules)

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> Self:
        return cls(modules.values())


def _as_dict(modules: Any) -> dict[str, Module]:
    if isinstance(modules, Mapping | ModuleDict):
        return dict(modules.items())
    pairs = as_list("modules", modules, "pairs of a name and a module, or a dict")
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"modules must be a dict, or pairs of a name and a module, got {pairs[0]!r} first")
    return dict(pairs)


class ModuleDict(_Named):
    """A dict of modules for use in another module; iteration gives the names."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__(_as_dict(modules))

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Adds modules, and replaces those of the same names."""
        for name, module in _as_dict(modules).items():
            self._add(name, module)

    def clear(self) -> None:
        """Removes all modules."""
        self._layers.clear()
        changed()

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._layers.keys()

    def values(self) -> ValuesView[Module]:
        """The modules."""
        return self._layers.values()

    def items(self) -> ItemsView[str, Module]:
        """The names and modules."""
        return self._layers.items()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __contains__(self, name: str) -> bool:
        return name in self._layers

    def __getitem__(self, name: str) -> Module:
        return self._layers[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self._add(name, module)


class ParameterList(Module):
    """A list of parameters, named "0", "1", …; other tensors and arrays become parameters."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values: list[Parameter] = []
        self.extend(values)

    def append(self, value: Any) -> Self:
        """Adds a parameter at the end."""
        self._values.append(value if isinstance(value, Parameter) else Parameter(value))
        changed()
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Adds parameters at the end."""
        for value in as_list("values", values, "parameters"):
            self.append(value)
        return self

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        for name, value in super().children_and_state():
            yield name.removeprefix("_values."), value

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._values)

    def __getitem__(self, index: int) -> Parameter:
        return self._values[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self._values[index] = value if isinstance(value, Parameter) else Parameter(value)
        changed()


class ParameterDict(Module):
    """Parameters by name, in the order in which they were added; other tensors and arrays become parameters."""

    def __init__(self, parameters: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._values: dict[str, Parameter] = {}
        self.update(parameters)

    def update(self, parameters: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Adds parameters by name, or replaces them."""
        for name, value in dict(parameters).items():
            self[name] = value

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        for name, value in super().children_and_state():
            yield name.removeprefix("_values."), value

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Parameter:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value if isinstance(value, Parameter) else Parameter(value)
        changed()

    def __delitem__(self, name: str) -> None:
        del self._values[name]
        changed()

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._values.keys()

    def values(self) -> Iterable[Parameter]:
        """The parameters."""
        return self._values.values()

    def items(self) -> Iterable[tuple[str, Parameter]]:
        """The names and parameters."""
        return self._values.items()
