"""Saving and loading without pickle: a file can't run code, is written whole or not at all, and damage is found."""

from __future__ import annotations

import errno
import io
import os
import warnings
from pathlib import Path
from typing import Any

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.core.device import raise_for_device
from sorix_dist.nn import torch_state
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.store import tensorfile
from sorix_dist.store.packing import is_whole, pack, unpack


def save(obj: Any, f: Any) -> None:
    """Writes a state to a file, which is complete or, if this process dies meanwhile, what it was before.

    obj: tensors, arrays, numbers, strings and None in nested dicts, lists and tuples; a model made of nothing but
    this package's layers, which is saved whole; or a model with classes of its own, an optimizer or another
    object with a `state_dict()`, of which that is saved: a RuntimeWarning says so for a model. Of a wrapped model, the
    model itself.
    f: a path, or a file object that is open for writing bytes.
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
    if callable(getattr(f, "write", None)):
        f.write(tensorfile.dump(arrays, text))
        return
    target = Path(os.path.realpath(os.fspath(f)))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "save: path is a folder", str(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "save: path is a pipe or a device, not a file", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "save: there is no such folder", str(target.parent))
    tensorfile.write(target, arrays, text)


def load(f: Any, map_location: Any = None, weights_only: bool = True) -> Any:
    """What `save` wrote to a file: the same structure, with arrays and tensors of their own memory, or the model. Of a
    safetensors file that another program wrote, its tensors by name.

    f: a path, or a file object that is open for reading bytes. map_location: None or "cpu"; weights_only: without
    effect, as nothing in a file is ever executed. (Both are PyTorch's.)
    ValueError, naming the path, for a file that is damaged or of another kind. No array is larger than the file,
    except bfloat16, which becomes float32.
    """
    if isinstance(map_location, str) or hasattr(map_location, "type"):
        raise_for_device(map_location)
    if callable(getattr(f, "read", None)):
        content = f.read()
        return _load(io.BytesIO(content), len(content), repr(getattr(f, "name", f)))
    name = os.fspath(f)
    try:
        file = tensorfile.open_regular(Path(name))
    except tensorfile.DamagedFile as error:
        raise ValueError(f"load: {name!r} is damaged or was not written by save: {error}") from error
    with file:
        return _load(file, os.fstat(file.fileno()).st_size, repr(name))


def _load(file: Any, size: int, name: str) -> Any:
    try:
        foreign = tensorfile.read_foreign(file, size)
        if foreign is not None:
            return {key: Tensor(array) for key, array in foreign.items()}
        file.seek(0)
        return unpack(*tensorfile.read_from(file, size))
    except ValueError as error:
        raise ValueError(f"load: {name} is damaged or was not written by save: {error}") from error


def to_torch_state(model: nn.Module) -> dict[str, Any]:
    """Copies of a model's parameters and buffers in PyTorch's names and layouts; see `nn.torch_state`.

    The arrays are NumPy's: `torch.from_numpy` makes tensors of them, and `save` writes them to a safetensors file.
    `model.load_state_dict` takes such states back.
    """
    return torch_state.to_torch_state(model.module if isinstance(model, DistributedDataParallel) else model)
