"""Saving and loading without pickle: a file can't run code, is written whole or not at all, and damage is found."""

from __future__ import annotations

import errno
import io
import os
import warnings
from pathlib import Path
from typing import Any

from sorix_dist import nn
from sorix_dist.comm import current, is_initialized
from sorix_dist.core import Tensor
from sorix_dist.core.arguments import as_path, raise_for_device
from sorix_dist.nn import torch_state
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.store import tensorfile
from sorix_dist.store.files import check_is_file
from sorix_dist.store.packing import is_whole, pack, unpack


def save(obj: Any, f: Any) -> None:
    """Writes a state to a file, atomically: if this process dies meanwhile, an existing file is unchanged.

    obj: tensors, arrays, numbers, strings and None in nested dicts, lists and tuples; a model of only this package's
    layers, which is saved whole; or an object with a `state_dict()`, such as an optimizer, whose state dict is saved. A
    model with other classes is saved that way too, with a RuntimeWarning on rank 0. A wrapped model counts as its
    model.
    f: a path, or a file object that is open for writing bytes.
    Only values of tensors are saved, not whether they require a gradient. Subclasses of dict, list and tuple are loaded
    as these. TypeError names the place of any other value. An existing file keeps its permissions; FileExistsError if
    it is a pipe or a device, FileNotFoundError if there is no such folder.
    """
    obj = obj.module if isinstance(obj, DistributedDataParallel) else obj
    state_dict = None if is_whole(obj) else getattr(obj, "state_dict", None)
    first = not is_initialized() or current().rank == 0
    if callable(state_dict) and isinstance(obj, nn.Module) and first:
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
    target = Path(os.path.realpath(as_path("save: f", f)))
    check_is_file("save", target)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "save: there is no such folder", str(target.parent))
    tensorfile.write(target, arrays, text)


def load(f: Any, map_location: Any = None, weights_only: bool = True) -> Any:
    """Reads a file of `save`: the same structure, with new arrays and tensors, or the model. A safetensors file of
    another program gives a dict of its tensors.

    f: a path, or a file object that is open for reading bytes. map_location: None or "cpu"; weights_only: without
    effect, as nothing in a file is ever executed. (Both are PyTorch's.)
    ValueError, with the path, if the file is damaged or of another kind. Memory is bounded by the size of the file
    (twice that for bfloat16, which becomes float32).
    """
    if isinstance(map_location, str) or hasattr(map_location, "type"):
        raise_for_device(map_location)
    if callable(getattr(f, "read", None)):
        content = f.read()
        return _load(io.BytesIO(content), len(content), repr(getattr(f, "name", f)))
    as_path("load: f", f)
    name = os.fsdecode(f)
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
