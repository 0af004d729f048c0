"""Answers to scripts that ask for a GPU: there is none."""

from __future__ import annotations


def is_available(verbose: bool = False) -> bool:
    """False: tensors are on the CPU. `verbose` is sorix's, and prints nothing here."""
    return False


def device_count() -> int:
    """0: tensors are on the CPU."""
    return 0
