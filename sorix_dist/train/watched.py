"""NumPy arguments of a step that is being captured, which note that Python code reads their numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core.capture import is_tensor, outside, root_package


class Watched(np.ndarray):
    """A NumPy array that a step gets while it is recorded. What takes its numbers, but an operation, is refused."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(is_tensor(x) for x in inputs):
            return NotImplemented
        _read_by_python()
        if "out" in options:
            options["out"] = tuple(map(_base, options["out"]))
        return getattr(ufunc, method)(*map(_base, inputs), **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function not in (np.shape, np.ndim, np.size):
            _read_by_python()
        return super().__array_function__(function, types, args, options)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and name not in _ABOUT:
            _read_by_python()
        return super().__getattribute__(name)


_ABOUT = {"shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes", "flags", "base", "view"}


def _read_by_python() -> None:
    frame: Any = sys._getframe(2)
    while frame.f_globals is globals() or root_package(frame) == "numpy":
        frame = frame.f_back
    if root_package(frame) != __name__.partition(".")[0]:  # this package says by itself what it reads
        outside("Python code reads or changes the numbers of a NumPy array: pass it as a tensor")


def _base(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, Watched) else x


def _watched_method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        _read_by_python()
        return getattr(np.asarray(self), name)(*args)

    return method


for _name in ("getitem", "setitem", "iter", "contains", "bool", "int", "float", "index", "complex"):
    setattr(Watched, f"__{_name}__", _watched_method(f"__{_name}__"))
