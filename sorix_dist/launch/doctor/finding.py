"""One line of the doctor's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    subject: str
    level: Level
    text: str
    mend: str = ""
    """What to do about it, if something is to be done."""
    data: Mapping[str, object] = field(default_factory=dict)
    """The same as numbers, for programs."""
