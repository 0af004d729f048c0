"""Pickles functions by value: closures, lambdas and what a script or notebook defines itself."""

from __future__ import annotations

import io
import linecache
from collections import ChainMap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any, ClassVar

_NAMELESS = "<dynamic-code>"


def dumps(value: Any) -> bytes:
    """A pickle by cloudpickle. For tracebacks, code keeps the name of its file, or its lines if it has no file (a
    notebook's cell)."""
    import cloudpickle  # takes 10 ms

    table = cloudpickle.Pickler.dispatch_table
    reduce_code = table[CodeType]

    def named(code: CodeType) -> Any:
        make, arguments = reduce_code(code)
        file = code.co_filename
        arguments = tuple(file if isinstance(each, str) and each == _NAMELESS else each for each in arguments)
        source = linecache.cache.get(file)
        in_a_file = source is None or len(source) == 1 or source[1] is not None
        return (make, arguments) if in_a_file else (_with_source, (make, arguments, file, source))

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap({CodeType: named}, table)

    with io.BytesIO() as file:
        Pickler(file).dump(value)
        return file.getvalue()


def _with_source(make: Callable[..., CodeType], arguments: tuple[Any, ...], file: str, source: Any) -> CodeType:
    """Code together with its lines, which tracebacks show."""
    linecache.cache.setdefault(file, source)
    return make(*arguments)


def dumps_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """`dumps` of a function and its arguments; TypeError that names the argument or global that can't be sent."""
    try:
        return dumps((fn, args, kwargs))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(fn))
        given = {f"argument {number} of '{name}'": value for number, value in enumerate(args)}
        given |= {f"argument '{option}' of '{name}'": value for option, value in kwargs.items()}
        found = next((what for what, value in given.items() if not _can_be_sent(value)), None)
        what = found or _culprit(fn, set())
        if what is None:
            raise
        raise TypeError(f"{what} can't be sent to the ranks: load or make it in the function ({error})") from error


def _can_be_sent(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - a value may refuse in any way
        return False
    return True


def _culprit(fn: Any, seen: set[int]) -> str | None:
    """The objects that a function refers to, also through functions that it calls, and that can't be pickled."""
    fn = getattr(fn, "func", getattr(fn, "__func__", fn))  # of a partial, of a method
    code = getattr(fn, "__code__", None)
    if code is None or id(fn) in seen:
        return None
    seen.add(id(fn))
    cells = zip(code.co_freevars, fn.__closure__ or ())
    captured = [("the variable", name, cell.cell_contents) for name, cell in cells]
    named = [("the global", name, fn.__globals__[name]) for name in _names(code) if name in fn.__globals__]
    for kind, name, value in (*captured, *named):
        if isinstance(value, ModuleType) or _can_be_sent(value):
            continue
        return _culprit(value, seen) or f"'{fn.__qualname__}' uses {kind} '{name}' ({type(value).__name__}), which"
    return None


def _names(code: CodeType) -> Iterator[str]:
    """The names that code, and functions that are defined in it, may look up as globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
