"""The functions on tensors, the seed, save and load, under the path that sorix has for them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sorix_dist.core import functions
from sorix_dist.core.functions import *  # noqa: F403
from sorix_dist.core.random import manual_seed

__all__ = [*functions.__all__, "manual_seed"]


def __getattr__(name: str) -> Any:
    if name not in ("load", "save"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("sorix_dist.serialize"), name)  # it imports more than this package
