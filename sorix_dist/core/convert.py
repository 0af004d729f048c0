"""A tensor in another dtype, or on another device (there is one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sorix_dist.core import dtype as types
from sorix_dist.core.device import device as Device
from sorix_dist.core.device import raise_for_device
from sorix_dist.core.ops.elementwise import cast
from sorix_dist.core.tensor import Tensor


def astype(self: Tensor, dtype: Any) -> Tensor:
    """The elements in another dtype; this tensor itself if it has it. Gradients come back in this one."""
    kind = types.as_dtype(dtype)
    return self if self.array.dtype == kind else cast(self, kind)


def to(self: Tensor, *targets: Any, device: Any = None, dtype: Any = None, **hints: Any) -> Tensor:
    """This tensor on a device, in a dtype, or as another tensor is; each may be given by place or by name.

    RuntimeError for a GPU, ValueError for a device that does not exist. Hints such as `non_blocking` mean nothing here.
    """
    unknown = hints.keys() - {"non_blocking", "copy"}
    if unknown or len(targets) > 2:
        raise TypeError(f"to() takes a device and a dtype, got {targets} and {sorted(unknown)}")
    for target in targets:
        if isinstance(target, Tensor):
            dtype = target.array.dtype
        elif isinstance(target, Device) or (isinstance(target, str) and not types.names_dtype(target)):
            device = target
        else:
            dtype = target
    raise_for_device(device)
    return self if dtype is None else astype(self, dtype)


def cpu(self: Tensor) -> Tensor:
    """This tensor: it is on the CPU."""
    return self


def cuda(self: Tensor, device: Any = "cuda") -> Tensor:
    """RuntimeError: there is no GPU here."""
    return to(self, "cuda")


def _named(name: str, kind: types.DType) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return astype(self, kind)

    method.__name__ = name
    method.__doc__ = f"The elements as {kind.name}."
    return method


METHODS: dict[str, Callable[..., Any]] = {
    "astype": astype, "to": to, "cpu": cpu, "cuda": cuda, "gpu": cuda,
    **{name: _named(name, getattr(types, name))
       for name in ("half", "float", "double", "short", "int", "long", "byte", "bool")},
}  # fmt: skip
