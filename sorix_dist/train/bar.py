"""The live line of `progress` on a terminal."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from sorix_dist.launch.output import columns


class Bar(tqdm):  # type: ignore[misc]
    """A bar with numbers beside it that its format shows."""

    monitor_interval = 0  # no thread: every batch comes by here anyway
    numbers = ""

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "numbers": self.numbers, "ncols": columns()}
