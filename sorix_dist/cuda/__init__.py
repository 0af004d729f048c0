"""Answers to scripts that ask for a GPU: there is none."""

from __future__ import annotations

from sorix_dist.core.keywords import missing_from


def is_available(verbose: bool = False) -> bool:
    """False: tensors are on the CPU. `verbose` is sorix's, and prints nothing here."""
    return False


def device_count() -> int:
    """0: tensors are on the CPU."""
    return 0


def current_accelerator(check_available: bool = False) -> None:
    """None: tensors are on the CPU."""


def manual_seed(seed: int) -> None:
    """Nothing: `sx.manual_seed` starts all random numbers."""


manual_seed_all = manual_seed

__getattr__ = missing_from(__name__, globals())
