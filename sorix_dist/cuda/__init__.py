"""Answers to scripts that ask for a GPU: there is none."""

from __future__ import annotations

from typing import Any

from sorix_dist.core.arguments import raise_for_device
from sorix_dist.core.keywords import missing_from
from sorix_dist.cuda import amp as amp


def is_available(verbose: bool = False) -> bool:
    """False: tensors are on the CPU. `verbose` is sorix's, and prints nothing here."""
    return False


is_initialized = is_bf16_supported = is_available


def device_count(device: Any = None) -> int:
    """0: tensors are on the CPU."""
    return 0


memory_allocated = max_memory_allocated = memory_reserved = max_memory_reserved = device_count


def current_accelerator(check_available: bool = False) -> None:
    """None: tensors are on the CPU."""


def manual_seed(seed: int) -> None:
    """Nothing: `sx.manual_seed` starts all random numbers."""


def empty_cache(device: Any = None) -> None:
    """Nothing: there is no GPU, whose work or memory this could be about."""


manual_seed_all = manual_seed
ipc_collect = reset_peak_memory_stats = synchronize = empty_cache


def set_device(device: Any) -> None:
    """RuntimeError: there is no GPU to choose."""
    raise_for_device("cuda")


__getattr__ = missing_from(__name__, globals())
