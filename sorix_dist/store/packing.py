"""Nested values as JSON and named arrays, and back. Nothing in them is ever executed.

Numbers, strings, None and lists stand for themselves; {"tuple": [...]}, {"dict": [[key, value], ...]},
{"array": name} and {"tensor": name} for the rest. A model of this package's own layers consists of
{"module": [class, attributes]}, {"parameter": [name, trained]}, {"same": name} for a parameter that occurred
before, {"function": name} of nn.functional, and {"draws": [number, calls]} of a dropout layer.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core.own_numbers import warn_of_given
from sorix_dist.core.random import Draws
from sorix_dist.core.tensor import array_of
from sorix_dist.store.tensorfile import DTYPES, Array

DEPTH = 100  # levels of nesting


def pack(value: Any, path: str = "obj") -> tuple[dict[str, Array], str]:
    """The arrays in a value, named by where they are, and the JSON of everything around them.

    The arrays share the value's memory where that is in C order. TypeError names what can't be saved, by a path into
    the value that begins with `path`.
    """
    packer = _Packer()
    encoded = packer.encode(value, path, "", 0)
    return packer.arrays, json.dumps(encoded, separators=(",", ":"))


def unpack(arrays: dict[str, Array], text: str) -> Any:
    """The inverse of `pack`; the value uses the given arrays. ValueError if text and arrays do not fit together."""
    try:
        unpacker = _Unpacker(arrays)
        value = unpacker.decode(json.loads(text))
        if unpacker.unused:
            raise ValueError(f"its structure does not name the arrays {sorted(unpacker.unused)[:5]}")
        return value
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # a class may raise anything for attributes that it does not expect
        raise ValueError(f"its structure can't be understood: {type(error).__name__}: {error}") from error


def is_whole(value: Any) -> bool:
    """Whether a value is a model of this package's layers alone, which can be saved with its classes."""
    return isinstance(value, nn.Module) and all(_is_own(module) for module in value.modules())


def _is_own(module: nn.Module) -> bool:
    return getattr(nn, type(module).__name__, None) is type(module) is not nn.Module


class _Packer:
    """Splits a value into arrays and text.

    parameters: by id, the array names of those that were packed, and "" for tensors that will be packed as one.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.parameters: dict[int, str] = {}

    def encode(self, value: Any, path: str, name: str, depth: int) -> Any:
        """The JSON of a value at `path`, whose arrays get names that begin with `name`."""
        if depth > DEPTH:
            raise ValueError(f"save: {path[:80]}… is nested deeper than {DEPTH} levels, or contains itself")
        warn_of_given(f"save: {path}", value, rows=True)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if self.parameters.get(id(value)):
            return {"same": self.parameters[id(value)]}
        if isinstance(value, Tensor | np.ndarray):
            return self.encode_array(value, path, name)

        def inside(key: Any, entry: Any) -> Any:
            return self.encode(entry, f"{path}[{key!r}]", f"{name}.{key}" if name else f"{key}", depth + 1)

        if isinstance(value, nn.Module) and _is_own(value):
            for parameter in value.parameters():  # plain tensors that require a gradient are among them
                self.parameters.setdefault(id(parameter), "")
            return {"module": [type(value).__name__, inside("module", vars(value))]}
        if isinstance(value, Draws):
            return {"draws": [value.number, value.calls]}
        function = getattr(value, "__name__", "")
        if callable(value) and function in nn.functional.__all__ and getattr(nn.functional, function) is value:
            return {"function": function}
        if isinstance(value, dict):
            for key in value:
                if not (key is None or isinstance(key, bool | int | float | str)):
                    raise TypeError(f"save: a key of {path} must be a string or number, got {key!r}")
            return {"dict": [[key, inside(key, entry)] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            entries = [inside(i, entry) for i, entry in enumerate(value)]
            return entries if isinstance(value, list) else {"tuple": entries}
        hint = "; save its state_dict()" if hasattr(value, "state_dict") else ""
        raise TypeError(
            f"save: {path} must be a tensor, array, number, string, None, dict, list or tuple, "
            f"got {type(value).__name__}{hint}"
        )

    def encode_array(self, value: Any, path: str, name: str) -> Any:
        if isinstance(value, nn.Parameter) and type(value) is not nn.Parameter:
            raise TypeError(
                f"save: {path} is a {type(value).__name__}, which would come back as a Parameter; save its data"
            )
        array = _plain(array_of(value), path)
        unique = self.unique(name or "value")
        self.arrays[unique] = array
        if isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and id(value) in self.parameters):
            self.parameters[id(value)] = unique
            return {"parameter": [unique, value.requires_grad]}
        return {"tensor" if isinstance(value, Tensor) else "array": unique}

    def unique(self, name: str) -> str:
        name = name.encode("utf-8", "backslashreplace").decode()
        candidate, number = name, 1
        while candidate in self.arrays or candidate == "__metadata__":
            number += 1
            candidate = f"{name}#{number}"
        return candidate


def _plain(array: Array, path: str) -> Array:
    """The array in C order and this machine's byte order."""
    if type(array) not in (np.ndarray, np.memmap):
        what = "its data and its mask" if isinstance(array, np.ma.MaskedArray) else "its numbers, np.asarray(x),"
        raise TypeError(f"save: {path} must be a plain array, got a {type(array).__name__}: save {what} by themselves")
    if array.dtype.name not in DTYPES:
        raise TypeError(f"save: {path} must have one of the dtypes {', '.join(DTYPES)}, got {array.dtype}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


class _Unpacker:
    """Puts a value together. It trusts nothing in its JSON."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.unused = dict(arrays)
        self.parameters: dict[str, nn.Parameter] = {}

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == "dict":
            return {key: self.decode(entry) for key, entry in content}
        if kind == "tuple":
            return tuple(self.decode(entry) for entry in content)
        if kind == "module":
            return self.module(*content)
        if kind == "draws":
            return self.draws(*content)
        if kind == "same":
            return self.parameters[content]
        if kind == "function" and content in nn.functional.__all__:
            return getattr(nn.functional, content)
        if kind == "parameter":
            name, trained = content
            return self.parameters.setdefault(name, nn.Parameter(self.take(name), bool(trained)))
        if kind == "tensor":
            return Tensor(self.take(content))
        if kind == "array":
            return self.take(content)
        raise ValueError(f"its structure has an unknown entry {kind!r}")

    def module(self, kind: str, attributes: Any) -> nn.Module:
        """A layer of this package with these attributes. Its constructor, which could do anything, is not called."""
        made = getattr(nn, kind, None) if kind in nn.__all__ else None
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ValueError(f"its structure names {kind!r}, which is not a layer of this version")
        module = made.__new__(made)
        decoded = self.decode(attributes)
        vars(module).update(decoded)
        for name in made.torch_names.keys() & decoded.keys():
            setattr(module, name, decoded[name])  # notes the layout of the parameter
        return module

    def draws(self, number: int, calls: int) -> Draws:
        draws = Draws(int(number))
        draws.calls = int(calls)
        return draws

    def take(self, name: Any) -> Array:
        """An array, once: used twice, a small file could fill the memory."""
        if name not in self.unused:
            raise ValueError(f"its structure names the array {name!r} twice, or there is none")
        return self.unused.pop(name)
