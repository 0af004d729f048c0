"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


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
