"""Pickles functions by value: closures, lambdas and what a script or notebook defines itself."""

from __future__ import annotations

import io
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar

_NAMELESS = "<dynamic-code>"


def dumps(value: Any) -> bytes:
    """A pickle by cloudpickle in which code keeps the name of its file, for tracebacks."""
    import cloudpickle  # takes 10 ms

    table = cloudpickle.Pickler.dispatch_table
    reduce_code = table[CodeType]

    def named(code: CodeType) -> Any:
        make, arguments = reduce_code(code)
        return make, tuple(
            code.co_filename if isinstance(argument, str) and argument == _NAMELESS else argument
            for argument in arguments
        )

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap({CodeType: named}, table)

    with io.BytesIO() as file:
        Pickler(file).dump(value)
        return file.getvalue()
