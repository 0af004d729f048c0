"""What the code of a step names, by its bytecode, and what of that a program can't repeat."""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType
from typing import NamedTuple

PACKAGE = __name__.partition(".")[0]
ANY = frozenset((
    "vars", "getattr", "format", "format_map", "attrgetter", "methodcaller", "__dict__", "asdict", "astuple", "dir",
    "__getattribute__", "__setattr__", "__delattr__",
))  # fmt: skip
"""Names by which a function may come to any attribute."""
COPIES = frozenset((
    "array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "frombuffer", "memoryview",
))  # fmt: skip
"""Names by which a function may come to the numbers of a NumPy array unseen."""

_PURE = frozenset(
    "builtins math cmath operator functools itertools collections dataclasses enum typing types contextlib abc copy "
    "warnings logging string re numbers statistics bisect heapq textwrap fractions decimal random numpy __future__ "
    f"typing_extensions {PACKAGE}".split()
)
_ELSEWHERE = frozenset((
    "open", "input", "globals", "locals", "eval", "exec", "compile", "__import__", "breakpoint", "setattr", "delattr",
))  # fmt: skip


class Names(NamedTuple):
    """Of a function and those inside of it. names: globals, attributes and modules; loaded: globals, also if they are
    set; stored: attributes that are set; imported: modules; refused: what can't be captured, with its line.
    """

    names: tuple[str, ...]
    loaded: tuple[str, ...]
    stored: tuple[str, ...]
    imported: tuple[str, ...]
    refused: tuple[str, int] | None


@cache
def names_of(code: CodeType) -> Names:
    """What a function names."""
    names: dict[str, None] = {}
    loaded: dict[str, None] = {}
    stored: dict[str, None] = {}
    imported: dict[str, None] = {}
    refused: list[tuple[str, int]] = []
    for inner in _all_code(code):
        names |= dict.fromkeys(inner.co_names)
        if "hasattr" in inner.co_names:
            names |= dict.fromkeys(x for x in inner.co_consts if isinstance(x, str))
        line = inner.co_firstlineno
        for before, now in pairwise((None, *dis.get_instructions(inner))):
            assert now is not None
            line = now.starts_line if type(now.starts_line) is int else getattr(now, "line_number", None) or line
            if now.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
                loaded[now.argval] = None
            elif now.opname == "IMPORT_NAME":
                imported[now.argval] = None
            elif _catches(before, now):
                refused.append(("an error of a program would not come to the `except` of the step", line))
            elif now.opname.endswith(("_ATTR", "_METHOD")) and now.argval == "array" and not _is_numpy(before):
                refused.append(("Python code reads or changes the `array` of a tensor", line))
            if now.opname in ("STORE_ATTR", "DELETE_ATTR"):
                stored[now.argval] = None
            if now.opname.startswith("FORMAT_") or now.argval in ("str", "repr", "format"):
                names |= dict.fromkeys(("__str__", "__repr__", "__format__"))
    return Names((*names,), (*loaded,), (*stored,), (*imported,), refused[0] if refused else None)


def why_refused(function: FunctionType) -> str | None:
    """Why no program can repeat what a function does, with the line."""
    code = names_of(function.__code__)
    found = [] if code.refused is None else [code.refused]
    first = function.__code__.co_firstlineno
    for name in code.loaded:
        if name in _ELSEWHERE and name not in function.__globals__ and hasattr(builtins, name):
            found.append((f"what `{name}` gives or does is not seen by a program", first))
    return f"{found[0][0]} ({function.__code__.co_filename}:{found[0][1]})" if found else None


def is_pure(package: str | None) -> bool:
    """Whether what a module of a library gives follows from what it is given."""
    return str(package).partition(".")[0].lstrip("_") in _PURE or package in _PURE


@cache
def is_users(package: str | None) -> bool:
    """Whether a module is the user's program: of no library."""
    root = str(package).partition(".")[0]
    if root in sys.stdlib_module_names or root in (PACKAGE, "numpy", "None"):
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def is_called_unnamed(name: str) -> bool:
    """Whether a method is called by syntax or by this package, not by its name."""
    special = name.startswith("__") and name.endswith("__") and name[2:-2] not in _LIFE
    return special or name in ("forward", "backward")


_LIFE = frozenset((
    "init", "new", "post_init", "del", "reduce", "reduce_ex", "getstate", "setstate", "copy", "deepcopy", "set_name",
    "init_subclass", "repr", "str", "format", "doc", "module", "dict", "weakref", "slots", "qualname", "annotations",
    "match_args", "dataclass_fields", "dataclass_params", "abstractmethods", "hash", "static_attributes",
    "firstlineno", "orig_bases", "parameters",
))  # fmt: skip


def _all_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_code(constant)


def _is_numpy(given: dis.Instruction | None) -> bool:
    return given is not None and given.argval in ("np", "numpy")


def _catches(before: dis.Instruction | None, now: dis.Instruction) -> bool:
    bare = before is not None and (before.opname, now.opname) == ("PUSH_EXC_INFO", "POP_TOP")
    return bare or now.opname in ("CHECK_EXC_MATCH", "CHECK_EG_MATCH") or now.argval == "suppress"
