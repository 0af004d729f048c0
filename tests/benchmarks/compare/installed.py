"""How much the files of installed packages take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import sorix_dist

BASE = ("pip", "setuptools")  # what a new environment has


def installed(mpi: str) -> dict[str, int]:
    """Bytes of a new environment with this package and its MPI, and of one with torch, as far as they are installed
    here; `mpi`: what the MPI library says of itself."""
    extra = "openmpi" if "Open MPI" in mpi else "mpi"
    own = sum(path.stat().st_size for path in Path(sorix_dist.__file__).parent.rglob("*") if path.is_file())
    sizes = {f"sorix_dist[{extra}]": own + _size({"sorix_dist", *_required("sorix_dist", extra), *BASE})}
    if "torch" in _closure({"torch"}):
        sizes["torch"] = _size({"torch", *BASE})
    return sizes


def _size(names: Iterable[str]) -> int:
    """Bytes of the files of these distributions and of all that they require."""
    total = 0
    for name in _closure(names):
        for file in metadata.files(name) or []:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total


def _closure(names: Iterable[str]) -> set[str]:
    """The installed ones of these distributions and of all that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            required = _required(name)
        except metadata.PackageNotFoundError:  # for another system, or not installed
            continue
        if name not in found:
            found.add(name)
            waiting += required
    return found


def _required(name: str, extra: str | None = None) -> list[str]:
    """The names of what a distribution requires, for one extra or none."""
    required = []
    for line in metadata.requires(name) or []:
        needed, _, marker = line.partition(";")
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if wanted is None or wanted[1] == extra:
            required.append(re.split(r"[^A-Za-z0-9._-]", needed.strip())[0].lower())
    return required
