"""The recorder of captured steps: while one listens in this thread, calls of operations, rules and host functions are
written to it as lines of Python.

Each array has an expression: the result of an earlier line, an argument, or a persistent array. An array from elsewhere
can't be captured.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from threading import get_ident
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from sorix_dist.core.dtype import promoted
from sorix_dist.core.placement import Batch, Group, Partial, Shard

Function = TypeVar("Function", bound=Callable[..., Any])

recorders: dict[int, StepRecorder] = {}
"""The recorder of each thread that has one. Callers test it for emptiness first, which costs almost nothing."""

_version = 0
PLAIN = (bool, int, str, bytes, type(None), np.dtype, type)
_RANKS = (Group, Batch, Shard)  # options of operations that are collectives
NOTHING: Mapping[str, Any] = MappingProxyType({})


def version() -> int:
    """A number that changes with the assumptions of captured steps: modes and hooks of modules and tensors."""
    return _version


def changed() -> None:
    """Records that a mode or a hook has changed."""
    global _version
    _version += 1


def listening() -> StepRecorder | None:
    """The recorder of this thread, unless it is paused."""
    found = recorders.get(get_ident()) if recorders else None
    return None if found is None or found.paused else found


def host(function: Function) -> Function:
    """Makes a function that runs beside the tape (a check, a mask, an optimizer's step) a line of captured steps.

    What it returns, arrays and floats or tuples of them, may be used by later lines. Calls inside of it are its own.
    The few such functions that every step calls ask for the recorder by themselves, which saves a call.
    """

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        recorder = listening() if recorders else None
        return function(*args, **options) if recorder is None else recorder.host(function, args, options)

    return call  # type: ignore[return-value]


def outside(what: str) -> None:
    """Refuses to capture the step, because it does something that belongs outside; `what` is the reason."""
    recorder = listening()
    if recorder is not None:
        recorder.refuse(what)


def of_shapes(array: np.ndarray) -> np.ndarray:
    """An array that follows from shapes and options alone, which captured steps may keep."""
    recorder = listening()
    if recorder is not None:
        recorder.keep(array)
    return array


def uncaptured(function: Function) -> Function:
    """Makes a function refuse to be captured, because it reads or changes a state that replays would not see."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        outside(f"{function.__name__} can't be captured")
        return function(*args, **options)

    return call  # type: ignore[return-value]


class RecordedRule:
    """A rule of an operation that writes a line when a walk calls it."""

    def __init__(self, recorder: StepRecorder, rule: Callable[..., Any], expression: str) -> None:
        self.recorder, self.rule, self.expression = recorder, rule, expression

    def __call__(self, gradient: Any, out: Any) -> Any:
        part = self.rule(gradient, out)
        if not self.recorder.paused:
            self.recorder.line(f"{self.expression}({self.recorder.of(gradient)}, None)", part)
        return part


class StepRecorder:
    """The lines of one step, and by name the objects that they mention.

    lines: without their indentation, "try:" and "except" around the walk of a backward; wheres: the user's line of
    each; refusal: the first reason why the step can't be captured, with its line; tagged: arguments that a line places;
    kept: names of arrays that are the same in every run, see `of_shapes`.
    """

    def __init__(self, arguments: Sequence[Any], staying: Mapping[int, str]) -> None:
        self.lines: list[str] = []
        self.wheres: list[str] = []
        self.names: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "asarray": np.asarray}
        self.paused = 0
        self.refusal: str | None = None
        self.tagged: list[Any] = []
        self.kept: set[str] = set()
        self._known: dict[int, str] = {}
        self._given: dict[Any, str] = {}  # NumPy arrays among the arguments, by where their numbers are
        self._of_arguments: set[int] = set()
        self._alive: list[Any] = []  # so that no two objects have one id
        self._staying = staying
        for i, value in enumerate(arguments):
            self._argument(f"a{i}", value)

    def _argument(self, name: str, value: Any) -> None:
        self._know_parts(value, name)
        if is_tensor(value):
            self._of_arguments.add(id(value.leaf))
        else:
            self._given[_where(value)] = name
        place = getattr(value, "place", None)
        if isinstance(place, Shard):
            batch: Batch | None = place.batch
            expression = f"{name}.place.batch"
            while batch is not None:
                self._know(batch, self._known.get(id(batch), expression))
                batch, expression = batch.parent, f"{expression}.parent"

    # -- lines

    def operation(
        self, name: str, function: Any, given: Sequence[Any], arrays: Sequence[Any], to_float: bool,
        options: Mapping[str, Any], value: Any, array: Any, rules: Any,
    ) -> Any:  # fmt: skip
        """Writes the call of an operation's function; returns its rules, which write their own."""
        if self.paused:
            return rules
        if any(before is not after for before, after in zip(given, arrays, strict=True)):
            promote = self.name("promoted", promoted)
            self.line(f"{promote}([{', '.join(map(self.of, given))}], {to_float})", list(arrays))
        number = len(self.lines)
        values = [*map(self.of, arrays), *(f"{key}={self.of(option)}" for key, option in options.items())]
        made = {f"t{number}": value, f"r{number}": rules}
        pure = not any(callable(option) or isinstance(option, _RANKS) for option in options.values())
        self.bare(f"t{number}, r{number} = {self.name(name, function)}({', '.join(values)})", made, pure)
        self._know(value, f"t{number}")
        if value is not array:
            self.bare(f"t{number} = asarray(t{number})", {f"t{number}": array}, True)
            self._know(array, f"t{number}")
        if rules is None:
            return None
        self._alive.append(rules)
        return [None if rule is None else RecordedRule(self, rule, f"r{number}[{i}]") for i, rule in enumerate(rules)]

    def host(self, function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Calls a host function and writes the call."""
        values = [*map(self.of, args), *(f"{key}={self.of(option)}" for key, option in options.items())]
        with self.pause():
            result = _fresh(function(*args, **options))
        name = self.name(function.__qualname__.replace(".", "_"), function)
        self.line(f"{name}({', '.join(values)})", result, pure=False)
        return result

    def leaf(self, leaf: Any, rule: Any, gradient: Any, deposit: Callable[..., None]) -> None:
        """Adds a gradient at a leaf, and writes it."""
        if id(leaf) in self._of_arguments:
            self.refuse("the gradient of an argument can't be captured")
        if not isinstance(rule, RecordedRule):
            self.refuse("a backward of a tensor that no operation made")
        else:
            where, rule = rule.expression, rule.rule
            self.bare(f"{self.name('deposit', deposit)}({self.constant(leaf, 'leaf')}, {where}, {self.of(gradient)})")
        with self.pause():
            deposit(leaf, rule, gradient)

    def visited(self, node: Any, visitor: Any) -> None:
        """Writes that a walk visits a node."""
        for hook in node.hooks or ():
            if getattr(hook, "only_notes", False):
                self.bare(f"{self.constant(hook, 'criterion')}(None)")
            else:
                self.refuse("a hook of a tensor can't be captured")
        if visitor is not None and id(visitor) in self._known:
            self.bare(f"{self.of(visitor)}({self.constant(node, 'node')}, None)")

    def added(self, first: Any, second: Any, result: Any) -> None:
        """Writes that two gradients were added, in place if the result is the first of them."""
        if not self.paused:
            one, two = self.of(first), self.of(second)
            if result is first:
                self.bare(f"{one} += {two}", {one: result}, True)
            else:
                self.line(f"{one} + {two}", result)

    def line(self, expression: str, result: Any, pure: bool = True) -> None:
        """Writes a line whose result later ones may use."""
        number = len(self.lines)
        self.bare(f"t{number} = {expression}", {f"t{number}": result}, pure)
        self._know_parts(result, f"t{number}")

    def bare(self, line: str, made: Mapping[str, Any] = NOTHING, pure: bool = False) -> None:
        """Writes a line; made: what it has given to names; pure: whether it does nothing else, so that an audit may
        compute it again."""
        self.lines.append(line)
        self.wheres.append(users_line())

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A context in which nothing is written."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def finish(self) -> None:
        """Releases the arrays of this run."""
        self._known.clear()
        self._alive.clear()
        self._staying = {}

    def refuse(self, reason: str) -> None:
        """Records why the step can't be captured; it continues eagerly."""
        if self.refusal is None and not self.paused:
            self.refusal = f"{reason} ({users_line()})"

    def checked(self, x: Any) -> Any:
        """Returns x; refuses a tensor whose global value no line computes, since it follows from that of a loss."""
        if hasattr(x, "shown") and id(x) not in self._known:
            self.refuse("a number that follows from the global value of a loss: compute it before backward()")
        return x

    # -- expressions

    def _know(self, thing: Any, expression: str) -> None:
        self._known[id(thing)] = expression
        self._alive.append(thing)

    def _know_parts(self, result: Any, expression: str) -> None:
        if isinstance(result, tuple | list):
            for i, part in enumerate(result):
                self._know_parts(part, f"{expression}[{i}]")
        elif is_tensor(result):
            self._know(result, expression)
            self._know(result.array, f"{expression}.array")
        elif isinstance(result, Batch):
            self._know(result, self._known.get(id(result), expression))
        elif not isinstance(result, PLAIN):
            self._know(result, expression)

    def of(self, x: Any) -> str:
        """The expression for a value."""
        known = self._known.get(id(x))
        if known is not None:
            return known
        if isinstance(x, float | bool | int | str | bytes | type(None)) and type(x).__module__ == "builtins":
            return repr(x)
        if isinstance(x, tuple | list):
            inner = ", ".join(map(self.of, x))
            return f"[{inner}]" if isinstance(x, list) else f"({inner},)" if x else "()"
        if isinstance(x, dict):
            return f"{{{', '.join(f'{k!r}: {self.of(v)}' for k, v in x.items())}}}"
        if isinstance(x, slice):
            return f"slice({self.of(x.start)}, {self.of(x.stop)}, {self.of(x.step)})"
        if isinstance(x, Batch):
            self.refuse("rows were selected by their values, or are no argument of the step")
        if isinstance(x, Shard):
            return f"{self.of(x.batch)}.at({x.axis}, {x.outer}, {x.inner})"
        if isinstance(x, Partial) and not {id(x.denominator), id(x.factor), *map(id, x.constants)}.isdisjoint(
            self._known
        ):
            parts = (x.group, x.denominator, x.factor, x.held, x.constants)
            return f"{self.name('Partial', Partial)}({', '.join(map(self.of, parts))})"
        if is_tensor(x):
            return self._of_tensor(x)
        if isinstance(x, np.ndarray) and id(x) not in self._staying:
            if (given := self._given.get(_where(x))) is not None:
                return given
            self.refuse(
                f"an array of shape {x.shape} and dtype {x.dtype} comes from nowhere: pass it to the step, register it "
                "as a buffer of a module, or make it by a function of sorix_dist"
            )
        return self.constant(x, self._staying.get(id(x)) or type(x).__name__.lower())

    def _of_tensor(self, x: Any) -> str:
        if id(x) in self._staying or (x.leaf is not None and x.origin is x.leaf):
            return self.constant(x, self._staying.get(id(x), "parameter"))
        array = self._known.get(id(x.array))
        if array is None:
            self.refuse(f"a tensor of shape {tuple(x.array.shape)} comes from nowhere")
            return self.constant(x, "tensor")
        number = len(self.lines)
        line = f"t{number} = {self.name('tensor', _maker(x.__class__))}({array}, {self.of(x.place)})"
        self.bare(line, {f"t{number}": x})
        self._know(x, f"t{number}")
        return f"t{number}"

    def constant(self, x: Any, hint: str) -> str:
        """The name of an object that is the same in every run."""
        return self.name(re.sub(r"\W", "_", hint), x, numbered=True)

    def keep(self, array: Any) -> None:
        """Gives an array a name, which is the same in every run."""
        self.kept.add(self.constant(array, "indices"))

    def name(self, hint: str, x: Any, numbered: bool = False) -> str:
        """The name of an object in the captured program."""
        found = self._known.get(id(x))
        if found is not None:
            return found
        name, number = (f"{hint}_0", 0) if numbered else (hint, 0)
        while name in self.names:
            number += 1
            name = f"{hint}_{number}"
        self.names[name] = x
        self._know(x, name)
        return name


def _fresh(result: Any) -> Any:
    """A result with new float objects, which have another id than equal ones."""
    if isinstance(result, tuple) and type(result) is tuple:
        return tuple(map(_fresh, result))
    return result * 1.0 if type(result) is float else result


def _where(array: Any) -> Any:
    """The address and layout of an array, as a key."""
    about = array.__array_interface__
    return about["data"][0], about["typestr"], array.shape, array.strides


def root_package(frame: Any) -> str:
    """The top-level package of a frame's function."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def users_line() -> str:
    """The line of the program that calls the package, as file:line."""
    frame = sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and root_package(frame) == package:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@cache
def _maker(kind: Any) -> Callable[[Any, Any], Any]:
    """The function that makes a tensor of an array and a placement."""

    def tensor(array: Any, place: Any) -> Any:
        result = kind.of(array)
        result.place = place
        return result

    return tensor


def is_tensor(x: Any) -> bool:
    return hasattr(x, "place") and hasattr(x, "array") and hasattr(x, "origin")
