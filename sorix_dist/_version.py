"""The version, in one place: the build reads it from here, `sorix-dist --version` prints it."""

from __future__ import annotations

__version__ = "0.1.0"
