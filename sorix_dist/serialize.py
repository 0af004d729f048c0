"""Saving and loading without pickle: a file can't run code, is written whole or not at all, and damage is found."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

from sorix_dist import nn
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.store import tensorfile
from sorix_dist.store.packing import is_whole, pack, unpack


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Writes a state to a file, which is complete or, if this process dies meanwhile, what it was before.

    obj: tensors, arrays, numbers, strings and None in nested dicts, lists and tuples; a model made of nothing but
    this package's layers, which is saved whole; or a model with classes of its own, an optimizer or another
    object with a `state_dict()`, of which that is saved: a RuntimeWarning says so for a model. Of a wrapped model, the
    model itself.
    TypeError names the place of anything else. Of tensors values are saved, not whether a gradient is required;
    other kinds of dict, list and tuple come back as these.
    A file that is there keeps its permissions; FileExistsError if it is a pipe or a device.
    """
    obj = obj.module if isinstance(obj, DistributedDataParallel) else obj
    state_dict = None if is_whole(obj) else getattr(obj, "state_dict", None)
    if callable(state_dict) and isinstance(obj, nn.Module):
        warnings.warn(
            f"save: {type(obj).__name__} has a class that is not the package's, so only its state_dict() is saved, "
            "without its other attributes; load gives that dict back, for load_state_dict",
            RuntimeWarning,
            stacklevel=2,
        )
    arrays, text = pack(state_dict() if callable(state_dict) else obj)
    target = Path(os.path.realpath(os.fspath(path)))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "save: path is a folder", str(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "save: path is a pipe or a device, not a file", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "save: there is no such folder", str(target.parent))
    tensorfile.write(target, arrays, text)


def load(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote to a file: the same structure, with arrays and tensors of their own memory, or the model.

    ValueError, naming the path, for a file that is damaged or was not written by `save`; nothing in a file
    is ever executed, and no array is larger than the file.
    """
    name = os.fspath(path)
    try:
        return unpack(*tensorfile.read(Path(name)))
    except ValueError as error:
        raise ValueError(f"load: {name!r} is damaged or was not written by save: {error}") from error
