"""The communicator of a single process: no messages, no MPI."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.comm.arguments import check_array, check_nbytes, check_one_each, check_op, check_root, check_split
from sorix_dist.comm.protocol import Array, Comm, Op, Window, Wire
from sorix_dist.comm.shared_memory import SharedWindow, block_size, cut
from sorix_dist.watchdog import report


class Solo:
    """Rank 0 of 1: every collective leaves or returns what it was given."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    host = 0
    hosts = 1

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}

    def all_reduce(self, array: Array, op: Op = "sum") -> None:
        check_array("all_reduce", array, written=True)
        check_op("all_reduce", op)

    def all_gather(self, array: Array, meanwhile: Callable[[], None] | None = None) -> Array:
        check_array("all_gather", array, written=False)
        return array[np.newaxis].copy()

    def all_to_all(self, array: Array) -> Array:
        check_one_each("all_to_all", array, self.size)
        return array.copy()

    def broadcast(self, array: Array, root: int = 0) -> None:
        check_array("broadcast", array, written=True)
        check_root("broadcast", root, self.size)

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        check_root("broadcast_object", root, self.size)
        return value

    def gather_objects(self, value: Any, what: str = "gather_objects") -> list[Any]:
        return [value]

    def split(self, color: int, key: int = 0) -> Comm:
        check_split(color, key)
        return Solo()

    def window(self, nbytes: int) -> Window:
        check_nbytes(nbytes)
        block = np.zeros(block_size([nbytes]), np.uint8)
        return SharedWindow(cut(block, [nbytes]), 0, barrier=lambda: None, free=lambda: None)

    def exchange(self, wire: Wire | None = None) -> None:
        return None

    def barrier(self) -> None:
        return None

    def abort(self, code: int = 1) -> None:
        report.flush()
        os._exit(code)

    def __repr__(self) -> str:
        return "Solo()"
