"""Where in the user's program an operation was called."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sys
from itertools import islice
from types import CodeType, FrameType
from typing import NamedTuple

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

_OURS = (PACKAGE, contextlib.__file__)  # the latter enters and leaves the package's own contexts

_CALL_OF_A_NAME = re.compile(r"[\w.]*\b(\w+)\(\s*([A-Za-z_][\w.]*)\s*[,)]")


class Site(NamedTuple):
    """A call in the user's program."""

    where: str
    """File and line, '' if there is no user's program on the stack."""
    function: str
    argument: str
    """Last name of the called function and its first argument, where the source says the latter by a plain name."""
    code: CodeType | None
    """Keeps the code object, whose identity is the key in the cache, alive."""


_NOWHERE = Site("", "", "", None)
_sites: dict[tuple[int, int], Site] = {}


def call_site(inside: int = 1) -> Site:
    """The innermost call outside this package on this thread's stack, of which so many calls are inside, at least."""
    frame: FrameType | None = sys._getframe(inside)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return _NOWHERE
    code, at = frame.f_code, frame.f_lasti
    site = _sites.get((id(code), at))
    if site is None:
        try:
            site = _describe(code, at, frame.f_lineno)
        except Exception:  # noqa: BLE001 - where it is called is only said
            site = Site(f"{code.co_filename}:{frame.f_lineno}", "", "", code)
        _sites[id(code), at] = site
    return site


def short(filename: str) -> str:
    """A file's name, relative to the working directory if it lies in it."""
    here = os.getcwd() + os.sep
    return filename.removeprefix(here)


def _describe(code: CodeType, at: int, line: int) -> Site:
    where = f"{short(code.co_filename)}:{line}"
    first, last, start, end = next(islice(code.co_positions(), at // 2, None), (None,) * 4)
    if first is None or first != last or start is None or end is None:
        return Site(where, "", "", code)
    source = linecache.getline(code.co_filename, first).encode()[start:end].decode(errors="replace")
    found = _CALL_OF_A_NAME.match(source)
    return Site(where, found[1], found[2], code) if found else Site(where, "", "", code)
