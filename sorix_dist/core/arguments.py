"""Argument checks that layers, optimizers and schedulers share, and the only device: the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import signature
from math import inf
from numbers import Number, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from sorix_dist.core.dtype import or_float32
from sorix_dist.core.own_numbers import warn_of_given


class device:  # noqa: N801 (PyTorch's name)
    """A device by its name, such as "cpu"; equal to that name."""

    __slots__ = ("index", "type")

    def __init__(self, type: str | device, index: int | None = None) -> None:
        name, _, number = str(type).partition(":")
        number = number if index is None else str(index)
        if name not in ("cpu", "cuda", "gpu") or (number and not number.isdigit()):
            raise ValueError(f"device must be 'cpu', got {type!r}")
        self.type = name
        self.index = int(number) if number else None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type={self.type!r}{'' if self.index is None else f', index={self.index}'})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, str | device) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


CPU = device("cpu")


def raise_for_device(device: object) -> None:
    """Raises for every device but "cpu"; `device` may name one, be a device object, or None for wherever it is."""
    if device is None:
        return
    if type(device) is int:
        raise ValueError(f"device must be 'cpu', got {device}; a tensor of a size, as Tensor(2, 3), is sx.empty(2, 3)")
    kind = str(device).partition(":")[0]
    if kind in ("cuda", "gpu"):
        raise RuntimeError(f"device {device!s} is not available: sorix_dist computes on the CPU")
    if kind != "cpu":
        raise ValueError(f"device must be 'cpu', got {device!r}")


def parameter_dtype(device: Any, dtype: Any) -> np.dtype[Any]:
    """The dtype of a layer's parameters, float32 for None; raises for any device but "cpu"."""
    raise_for_device(device)
    return or_float32(dtype)


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_int(name: str, value: Any, least: int) -> int:
    """`value` as an int; ValueError, with `name`, unless it is an integer >= `least`."""
    if not is_integer(value) or value < least:
        kind = "" if is_integer(value) else "an integer "
        raise ValueError(f"{name} must be {kind}>= {least}, got {value!r}")
    return int(value)


def int_or_none(name: str, value: Any, least: float = -inf) -> int | None:
    """`value` as an int, or None; ValueError, with `name`, unless it is None or an integer >= `least`."""
    if value is not None and (not is_integer(value) or value < least):
        raise ValueError(f"{name} must be an integer {f'>= {least} ' if least > -inf else ''}or None, got {value!r}")
    return None if value is None else int(value)


def at_least(least: int, owner: str = "", **numbers: Any) -> None:
    """ValueError that names the first argument (of `owner`, if given) that is not an integer >= `least`."""
    for argument, value in numbers.items():
        as_int(f"{owner}: {argument}" if owner else argument, value, least)


def as_bool(name: str, value: Any) -> bool:
    """`value` as a bool; TypeError, with `name`, for anything else, such as the text "False", which Python takes for
    true."""
    if isinstance(value, bool | np.bool_) or (is_integer(value) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {described(value)}")


def as_number(name: str, value: Any) -> float:
    """A number, or an array or tensor of one, as a float; TypeError, with `name`, for anything else."""
    try:
        warn_of_given(name, value)
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, str | bytes):
            return float(number)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {described(value)}") from error
    raise TypeError(f"{name} must be a number, got {described(value)}")


def as_path(name: str, value: Any) -> Path:
    """A path as text, bytes or a path object, absolute; TypeError or ValueError, with `name`, for anything else."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be a path, got {described(value)}")
    if not (path := os.fsdecode(value)) or "\0" in path:
        raise ValueError(f"{name} must be a path, got {path!r}")
    return Path(os.path.abspath(path))


def as_list(name: str, value: Any, of: str) -> list[Any]:
    """The entries of `value` as a list; TypeError, with `name` and what it is a list `of`, for text or no sequence."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of {of}, got {described(value)}")
    return list(value)


def unsupported(owner: str, **options: Any) -> None:
    """ValueError that names the first option (of `owner`) that is neither False nor None: PyTorch's, but not ours."""
    for name, value in options.items():
        if value is not None and value is not False:
            off = False if isinstance(value, bool) else None
            raise ValueError(f"{owner}: {name} must be {off}: it is not supported, got {value!r}")


def two_numbers(name: str, value: Any) -> tuple[float, float]:
    """A tuple or list of two numbers; TypeError or ValueError, with `name`, for anything else."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    for i, number in enumerate(value):
        in_range(f"{name}[{i}]", number, -inf, closed=True)
    return value[0], value[1]


def one_of(name: str, value: Any, *choices: str | None) -> None:
    """ValueError, with `name`, unless `value` is one of the choices."""
    if not isinstance(value, str | None) or value not in choices:  # an array has no single answer to `in`
        listed = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def as_function(name: str, value: Any, of: str) -> Callable[..., Any]:
    """`value`; TypeError, with `name` and what it is a function `of`, unless it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {described(value)}")
    return value  # type: ignore[no-any-return]


def as_state(call: str, state_dict: Any, *names: str) -> Mapping[str, Any]:
    """`state_dict`; TypeError unless it is a mapping, ValueError unless it has these names."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{call}: state_dict must be a dict that state_dict() returned, got {described(state_dict)}")
    if missing := [name for name in names if name not in state_dict]:
        raise ValueError(f"{call}: state_dict must have {', '.join(missing)}, got {sorted(map(str, state_dict))}")
    return state_dict


def require_methods(name: str, value: Any, *methods: str, kind: str = "") -> None:
    """TypeError, with `name`, unless `value` is an object (and no class) with these methods; kind: what it must be."""
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        wanted = f"be {kind}" if kind else f"have {' and '.join(methods)}"
        raise TypeError(f"{name} must {wanted}, got {described(value)}")


def named(function: Callable[..., Any], name: str, meaning: str) -> Callable[..., Any]:
    """A function that another one has made, with its own name and documentation."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = meaning
    return function


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, or a constructor, that first checks its arguments annotated `bool` or `float` (or that or None)."""
    its = signature(function)
    kinds = {p.name: str(p.annotation).partition(" | None") for p in its.parameters.values()}
    kinds = {name: kind for name, kind in kinds.items() if kind[0] in ("bool", "float")}

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        try:
            given = its.bind(*inputs, **options).arguments
        except TypeError:  # the call itself says it better
            given = {}
        owner = type(inputs[0]).__name__ if "self" in given else function.__name__
        for name in kinds.keys() & given.keys():
            kind, optional, _ = kinds[name]
            if given[name] is not None or not optional:
                _check(f"{owner}: {name}", kind, given[name])
        return function(*inputs, **options)

    return call


EXPLAINED = TypeError, ValueError, AttributeError, IndexError, OverflowError
"""The errors of Python and NumPy that a wrong argument causes."""


def explained(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Wraps a function so that errors of wrong arguments name the function and what it was given; see `explain`."""

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        try:
            return function(*inputs, **options)
        except EXPLAINED as error:
            explain(error, function, name or function.__name__, inputs, options)
            raise

    return call


def explain(
    error: Exception, function: Callable[..., Any], name: str, inputs: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Raises another error in place of one that a call has caused, unless that names the function: one that says what
    an argument must be, if the annotations or the names of the parameters show that; else the same words with the
    function's name and what it was given."""
    said = str(error)
    if re.match(rf"(\w+\.)?{re.escape(name)}\b(?!\(\))", said):
        return
    its = signature(function)
    try:
        given: Mapping[str, Any] = its.bind(*inputs, **options).arguments
    except TypeError:  # PyTorch's keywords, or too few arguments
        given = {f"argument {i}": value for i, value in enumerate(inputs, 1)} | dict(options)
    for argument, value in given.items():
        parameter = its.parameters.get(argument)
        if parameter is not None and not (value is None and parameter.default is None):
            several = parameter.kind is parameter.VAR_POSITIONAL
            value = value[0] if several and len(value) == 1 else value
            kind, optional, _ = str(parameter.annotation).partition(" | None")
            if kind not in ("bool", "float", "int", "str"):
                kind = _KINDS.get(argument, "several" if several else kind)
            if value is not None or not optional:
                try:
                    _check(f"{name}: {argument}", kind, value, lenient=True)
                except (TypeError, ValueError) as better:
                    raise better from error
    # Of the same type, but for one of another library, whose constructor is unknown, and AttributeError.
    same = (AxisError, TypeError, ValueError, IndexError, OverflowError)
    own = type(error) if type(error) in same else ValueError if isinstance(error, ValueError) else TypeError
    said = re.sub(rf"^([\w.<>]+\(\)|{name.rstrip('_')}:) ", "", said)  # of a wrapper, or of x.name()
    if not re.search("[,;] got ", said):
        said += "; got " + (
            ", ".join(f"{argument} {described(value)}" for argument, value in given.items()) or "nothing"
        )
    raise own(f"{name}: {said}") from error


_INTEGERS = "an integer or a tuple of integers"
_KINDS = {
    **dict.fromkeys(("dim", "dims", "dim0", "dim1", "dim2", "axis", "size", "sizes", "shape", "shifts"), _INTEGERS),
    **dict.fromkeys(("stride", "dilation", "kernel_size", "output_size", "output_padding"), _INTEGERS),
    **dict.fromkeys(("dtype", "device", "generator", "p", "ord", "obj", "compute_mode"), "anything"),
}
"""What parameters of these names are if their annotation says less."""


def _check(argument: str, kind: str, value: Any, *, lenient: bool = False) -> None:
    """TypeError or ValueError, with the argument's name, unless the value is what an annotation `kind` or an entry of
    `_KINDS` says; lenient: tensors of one element are numbers, and all annotations are looked at."""
    if kind == "bool":
        as_bool(argument, value)
    elif kind == "float":
        in_range(argument, as_number(argument, value) if lenient else value, -inf, closed=True)
    elif not lenient:
        return
    elif kind == "int":
        if not is_integer(value):
            raise TypeError(f"{argument} must be an integer, got {described(value)}")
    elif kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a text, got {described(value)}")
    elif kind == _INTEGERS:
        if not all(hasattr(each, "__index__") for each in (value if isinstance(value, list | tuple) else (value,))):
            raise TypeError(f"{argument} must be {_INTEGERS}, got {described(value)}")
    elif kind.startswith("Sequence"):
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"{argument} must be a list, got {described(value)}")
    elif kind in ("Any", "Tensor", "Array | Tensor") and not _is_numeric(value):
        raise TypeError(f"{argument} must be a tensor, an array or numbers, got {described(value)}")


def _is_numeric(value: Any) -> bool:
    """Whether a value is an array, a number, or a list of those."""
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    if isinstance(value, type):
        return False
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return isinstance(value, Number) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


class StateError(ValueError, RuntimeError):
    """A state that does not fit. PyTorch raises a RuntimeError for it."""


def check_names(name: str, missing: Sequence[str], unknown: Sequence[str]) -> None:
    """StateError with the names that an argument lacks, and those in it that are unknown, if there are any."""
    wrong = [f"lacks {missing}"] * bool(missing) + [f"has unknown {unknown}"] * bool(unknown)
    if wrong:
        raise StateError(f"{name} {' and '.join(wrong)}")


def described(value: Any) -> str:
    """What an argument is, in an error: its type, and the shape of an array or a short value."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} of shape {shape}"
    short = isinstance(value, str | bytes | int | float | np.generic) and len(repr(value)) < 60
    return type(value).__name__ + (f" {value.item() if isinstance(value, np.generic) else value!r}" if short else "")


def in_range(
    name: str, value: Any, low: float, high: float = inf, *, closed: bool = False, above: bool = False
) -> None:
    """TypeError unless `value` is a number, ValueError unless it lies in [low, high).

    closed: `high` is allowed, above: `low` is not. Without a bound it must be finite, or with `closed` may be infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    number = float(value)
    if low < number < high or (number == low and not above) or (closed and number == high):
        return
    if high < inf:
        bounds = f"in {'(' if above else '['}{low:g}, {high:g}{']' if closed else ')'}"
    elif number == inf or low == -inf:
        bounds = "a number" if closed else "finite"
    else:
        bounds = f"{'>' if above else '>='} {low:g}"
    raise ValueError(f"{name} must be {bounds}, got {value}")
