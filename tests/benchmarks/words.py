"""Numbers, tables and the machine as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def time(found: dict[str, float], unit: float) -> str:
    """Median and, in brackets, 10th percentile."""
    return f"{short(found['median'] * unit)} [{short(found['p10'] * unit)}]"


def short(number: float) -> str:
    """Three digits, or all before the point."""
    digits = 3 if number < 1 else 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f}"


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The rows in columns, the first one to the left."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield ("  " + "   ".join(cells)).rstrip()


def measured_on(results: dict[str, Any]) -> Iterator[str]:
    """What the results were measured on, and whether others used it."""
    machine = results["machine"]
    yield f"sorix_dist {results['version']} on {machine['cpu']}, {machine['cores']} usable core(s), {machine['system']}"
    yield f"Python {machine['python']}, NumPy {machine['numpy']}, {machine['blas']}, MPI: {machine['mpi']}"
    if machine["load"] > machine["cores"] / 4:
        yield f"Others were using this machine (load {machine['load']:.1f} at the start): the numbers are noisy."


def workloads(results: dict[str, Any]) -> Iterator[str]:
    """What was trained."""
    yield "Workloads"
    yield from (f"  {name}: {text}" for name, text in results["workloads"].items())


def page(blocks: Iterable[Iterable[str]]) -> str:
    """Blocks of lines, those that are not empty, with a blank line between them."""
    return "\n\n".join(filter(None, map("\n".join, blocks)))
