"""The files of the top-level folder `launch/`, in a checkout and in an installed package alike."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).parent / "scripts"
_CHECKOUT = Path(__file__).parents[2] / "launch"


def template(name: str) -> str:
    """The text of one file of launch/."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return (folder / name).read_text(encoding="utf-8")


def fill(text: str, lines: dict[str, str]) -> str:
    """The text with other values in some of its lines.

    lines: what comes after the beginning of a line, for each beginning. A line that is commented out has the
    same beginning as the one it stands for, and is put in force. KeyError unless exactly one line begins so.
    """
    result = text.splitlines()
    for beginning, value in lines.items():
        found = [i for i, line in enumerate(result) if _bare(line).startswith(_bare(beginning))]
        if len(found) != 1:
            raise KeyError(f"{len(found)} lines begin with {beginning!r}, expected 1")
        line = result[found[0]]
        result[found[0]] = line[: len(line) - len(line.lstrip())] + beginning + value
    return "\n".join(result) + "\n"


def _bare(line: str) -> str:
    return "".join(line.replace("#", "").split())
