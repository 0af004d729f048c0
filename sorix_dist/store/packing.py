"""Nested values as JSON and named arrays, and back; nothing in them is ever executed.

Numbers, strings, None and lists stand for themselves; {"tuple": [...]}, {"dict": [[key, value], ...]},
{"array": name} and {"tensor": name} for the rest. A model of this package's own layers is saved with them:
{"module": [class, attributes]}, {"parameter": [name, trained]}, {"same": name} for a parameter that was named
before, {"function": name} of nn.functional, and {"draws": [number, calls]} of a dropout layer.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core.random import Draws
from sorix_dist.store.tensorfile import DTYPES, Array

DEPTH = 100  # levels of nesting


def pack(value: Any, place: str = "obj") -> tuple[dict[str, Array], str]:
    """The arrays in a value, by names that say where they were, and the JSON of what is around them.

    The arrays are the value's own memory where that is in C order. TypeError names the place, in words that begin
    with `place`, of what can't be saved.
    """
    arrays: dict[str, Array] = {}
    encoded = _encode(value, place, "", arrays, 0, {})
    return arrays, json.dumps(encoded, separators=(",", ":"))


def unpack(arrays: dict[str, Array], text: str) -> Any:
    """The value that `pack` took apart; it holds the arrays themselves. ValueError if it can't be made."""
    try:
        reader = _Reader(arrays)
        value = reader.decode(json.loads(text))
        if reader.left:
            raise ValueError(f"its structure does not name the arrays {sorted(reader.left)[:5]}")
        return value
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # whatever a class raises for what a file wants it to hold
        raise ValueError(f"its structure is none: {type(error).__name__}: {error}") from error


def is_whole(value: Any) -> bool:
    """Whether a value is a model that can be made again: all of its modules are layers of this package."""
    return isinstance(value, nn.Module) and all(_known(module) for module in value.modules())


def _known(module: nn.Module) -> bool:
    return getattr(nn, type(module).__name__, None) is type(module) is not nn.Module


def _encode(value: Any, place: str, name: str, arrays: dict[str, Array], depth: int, known: dict[int, str]) -> Any:
    """The JSON for a value at `place`; its arrays are collected under names that start with `name`.

    known: the names of the parameters that came before, by id; "" of those that are still to come.
    """
    if depth > DEPTH:
        raise ValueError(f"save: {place[:80]}… is nested deeper than {DEPTH} levels, or contains itself")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if known.get(id(value)):
        return {"same": known[id(value)]}
    if isinstance(value, nn.Parameter) and type(value) is not nn.Parameter:
        raise TypeError(
            f"save: {place} is a {type(value).__name__}, which would come back as a Parameter; save its data"
        )
    if isinstance(value, Tensor | np.ndarray):
        array = _plain(value.array if isinstance(value, Tensor) else value, place)
        unique = _free(name or "value", arrays)
        arrays[unique] = array
        if isinstance(value, Tensor) and (isinstance(value, nn.Parameter) or id(value) in known):
            known[id(value)] = unique
            return {"parameter": [unique, value.requires_grad]}
        return {"tensor" if isinstance(value, Tensor) else "array": unique}

    def inside(key: Any, entry: Any) -> Any:
        return _encode(entry, f"{place}[{key!r}]", f"{name}.{key}" if name else f"{key}", arrays, depth + 1, known)

    if isinstance(value, nn.Module) and _known(value):
        for parameter in value.parameters():  # tensors that were made to require a gradient are among them
            known.setdefault(id(parameter), "")
        return {"module": [type(value).__name__, inside("module", vars(value))]}
    if isinstance(value, Draws):
        return {"draws": [value.number, value.calls]}
    function = getattr(value, "__name__", "")
    if callable(value) and function in nn.functional.__all__ and getattr(nn.functional, function) is value:
        return {"function": function}
    if isinstance(value, dict):
        for key in value:
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise TypeError(f"save: a key of {place} must be a string or number, got {key!r}")
        return {"dict": [[key, inside(key, entry)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        entries = [inside(i, entry) for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else {"tuple": entries}
    hint = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    raise TypeError(
        f"save: {place} must be a tensor, array, number, string, None, dict, list or tuple, "
        f"got {type(value).__name__}{hint}"
    )


def _plain(array: Array, place: str) -> Array:
    """The array in C order and the byte order of this machine."""
    if type(array) not in (np.ndarray, np.memmap):
        what = "its data and its mask" if isinstance(array, np.ma.MaskedArray) else "its numbers, np.asarray(x),"
        raise TypeError(f"save: {place} must be a plain array, got a {type(array).__name__}: save {what} by themselves")
    if array.dtype.name not in DTYPES:
        raise TypeError(f"save: {place} must have one of the dtypes {', '.join(DTYPES)}, got {array.dtype}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _free(name: str, taken: dict[str, Array]) -> str:
    name = name.encode("utf-8", "backslashreplace").decode()
    candidate, number = name, 1
    while candidate in taken or candidate == "__metadata__":
        number += 1
        candidate = f"{name}#{number}"
    return candidate


class _Reader:
    """Puts a value together; trusts nothing in its JSON."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.left = dict(arrays)  # those that the structure has not named yet
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
        """A layer of this package with these attributes; its constructor, which may do anything, is not called."""
        made = getattr(nn, kind, None) if kind in nn.__all__ else None
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ValueError(f"its structure names {kind!r}, which is not a layer of this version")
        module = made.__new__(made)
        decoded = self.decode(attributes)
        vars(module).update(decoded)
        for name in made.torch_names.keys() & decoded.keys():
            setattr(module, name, decoded[name])
        return module

    def draws(self, number: int, calls: int) -> Draws:
        draws = Draws(int(number))
        draws.calls = int(calls)
        return draws

    def take(self, name: Any) -> Array:
        """An array; every one is taken once, so that no file grows in memory."""
        if name not in self.left:
            raise ValueError(f"its structure names the array {name!r} twice, or there is none")
        return self.left.pop(name)
