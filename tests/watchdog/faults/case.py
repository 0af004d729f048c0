"""What a case of a fault is."""

from __future__ import annotations

from dataclasses import dataclass

RANKS = 4
TIMEOUT = 3.0


@dataclass(frozen=True)
class Case:
    """A script, and what the last screen must say (regular expressions; LINE is the file and line marked `# here`)."""

    script: str
    says: tuple[str, ...]
    long: bool = False
    """Left out of a quick run of the tests."""
    bare: bool = True
    """Whether it makes sense without the package."""
    seconds: float = 10.0
    """From start to end."""
