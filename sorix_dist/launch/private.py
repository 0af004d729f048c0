"""A folder by which a process and those that it starts exchange function, results and output.

Nobody but the user can look into it, and no port is open. It holds `call` (from the caller), `output-R` (a pipe),
`result-R` or `failure-R` (from rank R), and `caller`, which is locked while the caller lives.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any


def make() -> Path:
    """A new folder, for this user only."""
    return Path(tempfile.mkdtemp(prefix="sorix_dist-"))


def write(path: Path, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all, for this user only."""
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.replace(part, path)


def read(path: Path) -> Any:
    """What `write` wrote as a pickle; only for files of a folder that `make` made."""
    with open(path, "rb") as file:
        return pickle.load(file)


def lock(folder: Path) -> int:
    """Says that the caller lives, until it ends or closes what is returned."""
    file = os.open(folder / "caller", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def wait_for_end_of_caller(folder: Path) -> None:
    """Returns when the caller has let go of its lock, or died."""
    try:
        file = os.open(folder / "caller", os.O_RDONLY)
    except FileNotFoundError:  # gone already, and its folder with it
        return
    fcntl.flock(file, fcntl.LOCK_SH)


def remove(folder: Path) -> None:
    """Removes the folder; several processes may do so at once."""
    shutil.rmtree(folder, ignore_errors=True)
