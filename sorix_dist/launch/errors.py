"""What can be wrong before any process was started."""

from __future__ import annotations


class LaunchError(RuntimeError):
    """Ranks could not be started; the message says what to do about it."""
