"""Devices: there is only the CPU, and other names raise an error that says so."""

from __future__ import annotations


class device:  # noqa: N801 (PyTorch's name)
    """A device by its name, such as "cpu"; equal to that name."""

    __slots__ = ("index", "type")

    def __init__(self, type: str | device) -> None:
        name, _, index = str(type).partition(":")
        if name not in ("cpu", "cuda", "gpu") or (index and not index.isdigit()):
            raise ValueError(f"device must be 'cpu', got {type!r}")
        self.type = name
        self.index = int(index) if index else None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type={self.type!r}{'' if self.index is None else f', index={self.index}'})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, str | device) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


CPU = device("cpu")


def raise_for_device(device: object) -> None:
    """Raises for every device but "cpu"; `device` may name one, be a device object, or None for wherever it is."""
    if device is None:
        return
    kind = str(device).partition(":")[0]
    if kind in ("cuda", "gpu"):
        raise RuntimeError(f"device {device!s} is not available: sorix_dist computes on the CPU")
    if kind != "cpu":
        raise ValueError(f"device must be 'cpu', got {device!r}")
