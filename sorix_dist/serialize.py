"""Saving and loading without pickle: a file can't run code, is written whole or not at all, and damage is found.

A file is a safetensors file, which other tools read too. Its metadata hold the structure around the arrays
as JSON, with a CRC-32 of every array and one of the structure itself.

Structure: numbers, strings, None and lists stand for themselves; {"tuple": [...]}, {"dict": [[key, value], ...]},
{"array": [name, crc]} and {"tensor": [name, crc]} for the rest. A model of this package's own layers is saved with
them: {"module": [class, attributes]}, {"parameter": [name, crc, trained]}, {"same": name} for a parameter that
was named before, {"function": name} of nn.functional, and {"draws": [number, calls]} of a dropout layer.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import zlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core.ops.dropout import Draws

Array = np.ndarray[Any, Any]
Path = str | os.PathLike[str]

FORMAT = "sorix_dist 1"
DEPTH = 100  # levels of nesting
# The element types that are saved, and their names in a file.
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip


def save(obj: Any, path: Path) -> None:
    """Writes a state to a file, which is complete or, if this process dies meanwhile, what it was before.

    obj: tensors, arrays, numbers, strings and None in nested dicts, lists and tuples; a model made of nothing but
    this package's layers, which is saved whole; or a model with classes of its own, an optimizer or another
    object with a `state_dict()`, of which that is saved.
    TypeError names the place of anything else. Of tensors values are saved, not whether a gradient is required.
    """
    obj = getattr(obj, "module", obj) if isinstance(obj, nn.Module) else obj
    state_dict = None if _is_whole(obj) else getattr(obj, "state_dict", None)
    arrays: dict[str, Array] = {}
    encoded = _encode(state_dict() if callable(state_dict) else obj, "obj", "", arrays, 0, {})
    structure = json.dumps(encoded, separators=(",", ":"))
    metadata = {"format": FORMAT, "structure": structure, "crc": f"{zlib.crc32(structure.encode()):08x}"}
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "save: path is a folder", target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "save: there is no such folder", folder)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as any new file's; the writer below makes a private one
        save_file(arrays, temporary, metadata)
        os.chmod(temporary, mode & 0o777)
        _flush(temporary)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"save: the file can't be written: {error}", target) from error
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    _flush(folder)


def load(path: Path) -> Any:
    """What `save` wrote to a file: the same structure, with arrays and tensors of their own memory, or the model.

    ValueError, naming the path, for a file that is damaged or was not written by `save`; nothing in a file
    is ever executed, and no array is larger than the file.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        head = file.read(2)
    try:
        with safe_open(name, framework="np") as file:
            return _Reader(file).read()
    except (SafetensorError, RecursionError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        pickled = "; it looks like a pickle, which could run code" if head[:1] == b"\x80" else ""
        raise ValueError(f"load: {name!r} is damaged or was not written by save: {error}{pickled}") from error


def _is_whole(obj: Any) -> bool:
    """Whether an object is a model that can be made again: all of its modules are layers of this package."""
    return isinstance(obj, nn.Module) and all(_known(module) for module in obj.modules())


def _known(module: nn.Module) -> bool:
    return getattr(nn, type(module).__name__, None) is type(module) is not nn.Module


def _encode(value: Any, place: str, name: str, arrays: dict[str, Array], depth: int, known: dict[int, str]) -> Any:
    """The JSON for a value at `place`; its arrays are collected under names that start with `name`.

    known: the names of the parameters that came before, by id.
    """
    if depth > DEPTH:
        raise ValueError(f"save: {place[:80]}… is nested deeper than {DEPTH} levels, or contains itself")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in known:
        return {"same": known[id(value)]}
    if isinstance(value, Tensor | np.ndarray):
        array = _plain(value.array if isinstance(value, Tensor) else value, place)
        unique = _free(name or "value", arrays)
        arrays[unique] = array
        if isinstance(value, nn.Parameter):
            known[id(value)] = unique
            return {"parameter": [unique, _checksum(array), value.requires_grad]}
        return {"tensor" if isinstance(value, Tensor) else "array": [unique, _checksum(array)]}

    def inside(key: Any, entry: Any) -> Any:
        return _encode(entry, f"{place}[{key!r}]", f"{name}.{key}" if name else f"{key}", arrays, depth + 1, known)

    if isinstance(value, nn.Module) and _known(value):
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


def _checksum(array: Array) -> int:
    """The CRC-32 of dtype, shape and elements."""
    about = zlib.crc32(f"{array.dtype.name}{array.shape}".encode())
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, about)


def _flush(path: str) -> None:
    """Returns when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Reader:
    """Takes an open file apart; trusts nothing in it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.left = set(file.keys())  # arrays that the structure has not named yet
        self.parameters: dict[str, nn.Parameter] = {}

    def read(self) -> Any:
        metadata = self.file.metadata() or {}
        if not {"format", "structure", "crc"} <= metadata.keys():
            raise ValueError("it has no structure; safetensors files of other programs are read by safetensors")
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, this version reads {FORMAT!r}")
        structure = metadata["structure"]
        if f"{zlib.crc32(structure.encode()):08x}" != metadata["crc"]:
            raise ValueError("the checksum of its structure is wrong")
        value = self.decode(json.loads(structure))
        if self.left:
            raise ValueError(f"its structure does not name the arrays {sorted(self.left)[:5]}")
        return value

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
            name, checksum, trained = content
            return self.parameters.setdefault(name, nn.Parameter(self.take(name, checksum), bool(trained)))
        name, checksum = content
        array = self.take(name, checksum)
        if kind == "tensor":
            return Tensor(array)
        if kind == "array":
            return array
        raise ValueError(f"its structure has an unknown entry {kind!r}")

    def module(self, kind: str, attributes: Any) -> nn.Module:
        """A layer of this package with these attributes; its constructor, which may do anything, is not called."""
        made = getattr(nn, kind, None) if kind in nn.__all__ else None
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ValueError(f"its structure names {kind!r}, which is not a layer of this version")
        module = made.__new__(made)
        vars(module).update(self.decode(attributes))
        return module

    def draws(self, number: int, calls: int) -> Draws:
        draws = Draws(int(number))
        draws.calls = int(calls)
        return draws

    def take(self, name: Any, checksum: Any) -> Array:
        """An array of the file; every array is taken once, so that no file grows in memory."""
        if name not in self.left:
            raise ValueError(f"its structure names the array {name!r} twice, or there is none")
        self.left.remove(name)
        if self.file.get_slice(name).get_dtype() not in DTYPES.values():
            raise ValueError(f"the array {name!r} has an unknown dtype")
        array = self.file.get_tensor(name)
        if _checksum(array) != checksum:
            raise ValueError(f"the checksum of the array {name!r} is wrong")
        return array if array.flags.writeable else array.copy()
