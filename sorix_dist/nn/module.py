"""Module: a tree of layers. One walk over it serves parameters, state, train/eval and repr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import (
    CPU,
    StateError,
    as_bool,
    as_function,
    as_state,
    check_names,
    checked,
    described,
    raise_for_device,
)
from sorix_dist.core.capture import changed, host
from sorix_dist.core.dtype import DType, as_dtype, float16, float32, float64, names_dtype
from sorix_dist.core.fingerprint import as_text
from sorix_dist.core.flat import convert, zero_gradients
from sorix_dist.core.memory import refuse_frozen
from sorix_dist.core.placement import Deferred, Partial
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import as_array
from sorix_dist.nn.hooks import Hooked
from sorix_dist.nn.parameter import Parameter, Parameters, is_trained
from sorix_dist.nn.torch_state import TRANSPOSED, IncompatibleKeys, in_own_names, own_name


class Module(Hooked):
    """A layer, or a model of layers. A subclass defines `forward`.

    A module owns the modules and parameters in its attributes, also in lists, tuples and dicts. Parameters are
    `Parameter`s and other tensors that were made to require a gradient; freezing does not change that. Other tensors
    belong to the state only if they were registered as buffers.
    """

    training = True
    device: Any = CPU
    _in_repr: ClassVar[tuple[str, ...]] = ()  # the attributes that `extra_repr` shows
    torch_names: ClassVar[Mapping[str, tuple[str, str]]] = {}  # where PyTorch's names or layouts differ

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("sorix_dist.") and "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None:
            if name in self._own_buffers():
                if not isinstance(value, Tensor):
                    raise TypeError(
                        f"buffer '{name}' must be a Tensor or None, got {type(value).__name__}; "
                        "assign to its `data` to change the numbers"
                    )
                value = whole(value, f"buffer '{name}'") if isinstance(value.place, Partial | Deferred) else value
            elif is_trained(old := self.__dict__.get(name)) and not is_trained(value):
                raise TypeError(
                    f"parameter '{name}' must be a Parameter or None, got {type(value).__name__}; "
                    "assign to its `data` to change the numbers, or delete it first"
                )
            elif isinstance(old, Module) and not isinstance(value, Module):
                raise TypeError(f"module '{name}' must be a Module or None, got {described(value)}; delete it first")
        name = own_name(self, name) if value is None or isinstance(value, Tensor) else name
        if isinstance(value, Parameter) and name in self.torch_names:
            value.torch_transposed = self.torch_names[name][1] == TRANSPOSED
        if isinstance(value, Parameter) and value.leaf is not None:
            value.leaf.name = f"'{name}' of a {type(self).__name__}"
        super().__setattr__(name, value)
        changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._own_buffers().pop(name, None)
        changed()

    def __getattr__(self, name: str) -> Any:
        """A tensor by PyTorch's name, where the layout is the same but for a row's first dimension."""
        if (own := own_name(self, name)) == name:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self, own)

    # -- the tree

    def children_and_state(self) -> Iterator[tuple[str, Module | Tensor]]:
        """This module's own modules and tensors, by name (`layers.0` for entries of a list)."""
        for name, value in vars(self).items():
            if name not in ("_buffers", "_hooks"):
                yield from _entries(name, value)

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names: each once, or under each of its names."""
        seen: set[int] = set()

        def walk(module: Module, name: str) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield name, module
            for child_name, child in module.children_and_state():
                if isinstance(child, Module):
                    yield from walk(child, _dotted(name, child_name))
            if not remove_duplicate:
                seen.remove(id(module))  # it only must not contain itself

        yield from walk(self, prefix)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one, each once."""
        seen: set[int] = set()
        for name, child in self.children_and_state():
            if isinstance(child, Module) and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """The modules directly below this one, each once."""
        return (child for _, child in self.named_children())

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name; AttributeError if there is none."""
        if (found := self._find(target)) is None:
            raise AttributeError(f"{type(self).__name__} has no module '{target}'")
        return found

    def _find(self, target: str) -> Module | None:
        if not target:
            return self
        modules = ((name, child) for name, child in self.children_and_state() if isinstance(child, Module))
        below = (child._find(target[len(n) + 1 :]) for n, child in modules if f"{target}.".startswith(f"{n}."))
        return next((found for found in below if found is not None), None)

    # -- its tensors

    def _own_buffers(self) -> dict[str, bool]:
        """The names of this module's own buffers, and whether they are persistent."""
        return self.__dict__.get("_buffers", {})

    def _named_tensors(self, recurse: bool = True) -> Iterator[tuple[str, Tensor, bool, bool]]:
        """Every parameter and buffer below, under each of its names: (name, tensor, is a parameter, is saved)."""
        found: dict[str, Tensor] = {}
        for prefix, module in self.named_modules(remove_duplicate=False) if recurse else [("", self)]:
            buffers = module._own_buffers()
            for own, value in module.children_and_state():
                if isinstance(value, Tensor) and (own in buffers or is_trained(value)):
                    name = _dotted(prefix, own)
                    if found.setdefault(name, value) is not value:
                        raise ValueError(f"{type(self).__name__} has two tensors of the name '{name}'")
                    yield name, value, own not in buffers, buffers.get(own, True)

    def _named(self, trained: bool, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, tensor, parameter, _ in self._named_tensors(recurse):
            if parameter == trained and id(tensor) not in seen:
                if remove_duplicate:
                    seen.add(id(tensor))
                yield _dotted(prefix, name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The parameters with dotted names that begin with `prefix`; not `recurse`: this module's own.

        One that several layers share appears once, by its first name, unless not `remove_duplicate`.
        """
        return self._named(True, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> list[Tensor]:
        """The parameters, without duplicates; not `recurse`: this module's own."""
        return Parameters(parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers, tensors of the state that are not trained, as `named_parameters` gives the parameters."""
        return self._named(False, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The tensors that are state but are not trained; not `recurse`: this module's own."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_parameter(self, target: str) -> Tensor:
        """The parameter of a dotted name; AttributeError if there is none."""
        return self._tensor(target, "parameter")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of a dotted name; AttributeError if there is none."""
        return self._tensor(target, "buffer")

    def _tensor(self, target: str, kind: str) -> Tensor:
        for name, tensor, trained, _ in self._named_tensors():
            if name == target and trained == (kind == "parameter"):
                return tensor
        raise AttributeError(f"{type(self).__name__} has no {kind} '{target}'")

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        """Makes `tensor` state of this module, not trained; in `state_dict()` only if `persistent`."""
        if not isinstance(name, str) or "." in name or not name:
            raise ValueError(f"register_buffer: name must be an attribute name without a dot, got {name!r}")
        if hasattr(self, name) and name not in self._own_buffers():
            raise KeyError(f"register_buffer: '{name}' is an attribute of this {type(self).__name__} already")
        tensor = tensor if tensor is None or isinstance(tensor, Tensor) else Tensor(as_array(tensor, name="tensor"))
        self.__dict__.setdefault("_buffers", {})[name] = as_bool("register_buffer: persistent", persistent)
        setattr(self, name, tensor)

    def register_parameter(self, name: str, parameter: Tensor | None) -> None:
        """Sets an attribute to a parameter (or to None, for one that this module does without)."""
        if parameter is not None and not is_trained(parameter):
            raise TypeError(f"register_parameter: '{name}' must be a Parameter or None, got {type(parameter).__name__}")
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Sets an attribute to a module."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: '{name}' must be a Module or None, got {type(module).__name__}")
        setattr(self, name, module)

    register_module = add_module

    # -- state

    def _saved(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, tensor, _, saved in self._named_tensors() if saved)

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Copies of all parameters and persistent buffers, by dotted name; tied ones come under each name.

        prefix: what the names begin with. In PyTorch these tensors are the module's own, and writing to them changes
        it: here they are read-only, for `load_state_dict` to take a changed state. keep_vars: the tensors themselves.
        """
        return {prefix + name: tensor if keep_vars else _read_only(tensor.array) for name, tensor in self._saved()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values (tensors or arrays) into the parameters and buffers of the same names.

        Names and layouts may be PyTorch's, see `torch_state`. StateError (a ValueError and a RuntimeError) if names are
        missing or unknown (unless not `strict`: then they are returned), or if a shape or dtype does not fit; nothing
        is changed then.
        """
        different = self.check_state_dict(state_dict, strict)
        state_dict = in_own_names(self, state_dict)
        own = {name: tensor.array for name, tensor in self._saved() if name in state_dict}
        for array in own.values():
            refuse_frozen(array)
        for name, array in own.items():
            np.copyto(array, np.asarray(state_dict[name]), casting="same_kind")
        return different

    def check_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Raises what `load_state_dict` would raise for these values, and changes nothing."""
        as_bool("load_state_dict: strict", strict)
        state_dict = in_own_names(self, as_state("load_state_dict", state_dict))
        own = dict(self._saved())
        missing = [name for name in own if name not in state_dict]
        unknown = [name for name in state_dict if name not in own]
        if strict:
            check_names("load_state_dict: state_dict", missing, unknown)
        for name, tensor in own.items():
            if name not in state_dict:
                continue
            value, wanted = np.asarray(state_dict[name]), tensor.array
            if value.shape != wanted.shape or not np.can_cast(value.dtype, wanted.dtype, "same_kind"):
                raise StateError(
                    f"load_state_dict: '{name}' must have shape {wanted.shape} and dtype {wanted.dtype}, "
                    f"got shape {value.shape} and dtype {value.dtype}"
                )
        return IncompatibleKeys(missing, unknown)

    # -- all below

    def train(self, mode: bool = True) -> Self:
        """Switches this module and all below it to training (dropout drops, batch norm uses the batch)."""
        self.training = as_bool("train: mode", mode)
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
        as_function("apply: fn", function, "a module")(self)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Makes all parameters trained, or frozen."""
        for parameter in self.parameters():
            parameter.requires_grad = as_bool("requires_grad_: requires_grad", requires_grad)
        return self

    @host
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of all parameters; not `set_to_none`: makes them zeros."""
        for parameter in self.parameters() if set_to_none else ():
            parameter.grad = None
        if not set_to_none:
            zero_gradients(self.parameters())

    def cuda(self, device: Any = None) -> Self:
        """RuntimeError: there is no GPU."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Self:
        """This module, whose parameters are on the CPU."""
        return self

    def to(self, *wanted: Any, device: Any = None, dtype: Any = None, **without_effect: Any) -> Self:
        """This module, converted to a floating point dtype if one is given, such as `to(sx.float64)`.

        The device can only be "cpu", else RuntimeError or ValueError; non_blocking and memory_format are ignored.
        """
        if unknown := without_effect.keys() - {"memory_format", "non_blocking"}:
            raise TypeError(f"Module.to() got an unexpected keyword argument {min(unknown)!r}")
        for entry in wanted:
            if isinstance(entry, str | DType | np.dtype | type) and names_dtype(entry):
                dtype = entry
            elif not isinstance(entry, bool):  # non_blocking
                device = entry
        raise_for_device(device)
        return self if dtype is None else self._convert(as_dtype(dtype))

    def half(self) -> Self:
        """Converts parameters and floating point buffers to float16."""
        return self._convert(float16.dtype)

    def float(self) -> Self:
        """Converts parameters and floating point buffers to float32."""
        return self._convert(float32.dtype)

    def double(self) -> Self:
        """Converts parameters and floating point buffers to float64."""
        return self._convert(float64.dtype)

    def _convert(self, dtype: np.dtype[Any]) -> Self:
        if dtype.kind != "f":
            raise TypeError(f"dtype must be a floating point type, got {dtype}")
        for tensor in {id(tensor): tensor for _, tensor, *_ in self._named_tensors()}.values():
            if tensor.array.dtype.kind == "f":
                convert(tensor, dtype)
        return self

    def extra_repr(self) -> str:
        """The options of this module in its `repr`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._in_repr)

    def __repr__(self) -> str:
        modules = [(name, child) for name, child in self.children_and_state() if isinstance(child, Module)]
        lines = [line for line in (self.extra_repr(), *(f"({name}): {child!r}" for name, child in modules)) if line]
        if not modules and "\n" not in "".join(lines):
            return f"{type(self).__name__}({''.join(lines)})"
        return "\n".join([f"{type(self).__name__}(", *lines]).replace("\n", "\n  ") + "\n)"


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _read_only(array: Any) -> Tensor:
    copy = array.copy()
    copy.flags.writeable = False
    return Tensor.of(copy)


def options_of(module: Module) -> dict[str, str]:
    """The module's own public attributes that are numbers, texts, None, functions or sequences of those, as text by
    name, so that ranks can compare them. Tensors, arrays and `training` are left out."""
    found = {
        name: text
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (text := as_text(value)) is not None
    }
    if shown := module.extra_repr():
        found["extra_repr()"] = shown
    return found


def _entries(name: str, value: Any) -> Iterator[tuple[str, Module | Tensor]]:
    """The modules and tensors in an attribute's value, also in lists, tuples and dicts."""
    if isinstance(value, Module | Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _entries(f"{name}.{i}", entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _entries(f"{name}.{key}", entry)
