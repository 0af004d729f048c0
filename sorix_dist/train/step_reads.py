"""What a captured step reads from Python: closures, globals, `self`, and what lies in the containers and objects there.

A program repeats operations, not Python. So a step is captured once for each state of what it reads (a `Fingerprint`),
and not at all if it changes that state itself, or names something whose state can't be seen.
"""

from __future__ import annotations

import builtins
import functools
import operator
import random
import sys
from collections.abc import Callable
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.capture import is_tensor, outside, root_package
from sorix_dist.nn import Module
from sorix_dist.train.fingerprint import MOST, NUMBERS, Fingerprint, fields, inside, is_data, is_ours, within
from sorix_dist.train.step_code import ANY, COPIES, PACKAGE, is_called_unnamed, is_pure, is_users, names_of, why_refused

Source = tuple[str, Any, str]  # a name, an object, and the expression for what is taken of it, "{}" for itself


class Reads:
    """What a step, and the functions and methods that it may call, take from closures, globals, defaults and `self`.

    given: arguments that are functions, modules or objects. sources: where it is taken; copies: whether numbers of
    NumPy arrays may be read unseen.
    """

    def __init__(self, step: Callable[..., Any], given: list[Any]) -> None:
        self.sources: list[Source] = []
        self.refusal: str | None = None
        self._names: set[str] = set()
        self._owners: list[tuple[Any, str]] = []  # modules, classes and `Module`s of the user's, with their names
        self._stored: set[str] = set()
        self._made: set[int] = set()  # classes that the step may make objects of
        self._known: dict[Any, Any] = {}  # which keeps them alive
        self._read("step", step)
        for x in given:
            self._read("an argument", x)
        self._follow_owners()
        self.attributes = None if self._names & ANY else self._names
        if self.attributes is None:  # methods that the step may come to count, but do not refuse it
            refusal = self.refusal
            self._follow_owners(everything=True)
            self.refusal = refusal
        self.copies = bool(self._names & COPIES)

    def now(self) -> list[Any]:
        """The objects that are read."""
        return [*map(_taken, self.sources)]

    def steady(self, named: list[Any]) -> list[tuple[str, Any, Any]]:
        """What `now` reads anew each time, as `likeness` takes it."""
        found = zip(self.sources, named, strict=True)
        return [(expression, thing, value) for (_, thing, expression), value in found if expression != "{}"]

    def state(self, named: list[Any]) -> Fingerprint:
        """The state of what `now` gave."""
        found = Fingerprint(self.attributes)
        for value in named:
            found.add(value)
        found.refusal = self.refusal or found.refusal
        return found

    def changing(self, named: list[Any]) -> tuple[list[Any], Fingerprint]:
        """What of `now` can change and stay the same object, such as a dict of options, and its state."""
        found = [x for x in named if self.state([x]).changeable]
        return found, self.state(found)

    def each(self) -> dict[str, Any]:
        """The state of each source by its name, the numbers of arrays and the states of generators with it."""
        drawn = random.getstate(), within(np.random)
        found: dict[str, Any] = {"the state of Python's or NumPy's random numbers": drawn}
        for source in self.sources:
            one = self.state([_taken(source)])
            before = found.get(f"`{source[0]}`")  # of something else with this name
            found[f"`{source[0]}`"] = one.leaves, [within(x) for x in one.alive], before
        return found

    def _read(self, name: str, thing: Any, expression: str = "{}") -> None:
        self.sources.append((name, thing, expression))
        self._visit(_taken(self.sources[-1]), name)

    def _visit(self, x: Any, name: str = "") -> None:
        """Follows what a value may call; name: what the step calls it by, if it does."""
        if isinstance(x, type) and name:  # which the step may make an object of
            self._made.update(map(id, x.__mro__))
        if x.__class__ in NUMBERS or id(x) in self._known or len(self._known) > 4 * MOST:
            return
        self._known[id(x)] = x
        if isinstance(x, BuiltinFunctionType | MethodWrapperType) and not isinstance(x.__self__, ModuleType | None):
            self._read(name, x.__self__)  # such as the list of its `append`
        if isinstance(x, ModuleType | type | BuiltinFunctionType | FunctionType):
            package = x.__name__ if isinstance(x, ModuleType) else x.__module__
            by_exec = isinstance(x, FunctionType) and package in (None, "builtins")  # whose globals have no name
            if not (is_users(package) or by_exec):
                if not is_pure(package) and package is not None:
                    self._refuse(f"no program sees what `{name}` of the module {package.lstrip('_')} gives or does")
                if isinstance(x, ModuleType) and str(package).partition(".")[0] == PACKAGE:
                    self._owners.append((x, name))  # a function of it may be replaced
                if package == "functools" and isinstance(x, FunctionType):  # a decorator, with the user's functions
                    self._follow(x)
                return
        if isinstance(x, ModuleType | type):
            self._owners.append((x, x.__name__))
            for base in (*x.__mro__[1:], type(x)) if isinstance(x, type) else ():
                if is_users(base.__module__):
                    self._visit(base)
        elif isinstance(x, FunctionType):
            self._follow(x)
        elif isinstance(x, MethodType):
            self._read("self", x.__self__)
            self._visit(x.__func__)
        elif isinstance(x, functools.partial):
            for value in (x.func, *x.args, x.keywords):
                self._read(name, value)
        elif isinstance(x, operator.attrgetter | operator.methodcaller):
            self._names.add("getattr")
        elif isinstance(x, Module):
            for module in x.modules():
                self._of_module(module)
        elif isinstance(captured := fields(x).get("__wrapped__"), FunctionType | MethodType):
            self._visit(captured)  # of a step that is captured by itself, or a cache
        elif is_ours(x.__class__):
            self._visit(x.__class__)
        elif (entries := inside(x)) is not None:
            if is_users(type(x).__module__):
                self._visit(type(x))
            for value in entries:
                self._visit(value)

    def _refuse(self, reason: str) -> None:
        self.refusal = self.refusal or reason

    def _of_module(self, module: Module) -> None:
        if is_users(type(module).__module__):
            self._visit(type(module))
        elif id(type(module)) not in self._known:
            self._known[id(type(module))] = type(module)
            self._read("forward", type(module), "{}.forward")
        self._owners.append((module, type(module).__name__))
        for hooks in vars(module).get("_hooks", ()):
            for hook in hooks:
                self._read("hook", hook)

    def _follow_owners(self, everything: bool = False) -> None:
        before = -1
        while before < len(self._known):
            before = len(self._known)
            for owner, name in self._owners:
                self._of_owner(owner, name, everything and not isinstance(owner, ModuleType))

    def _of_owner(self, owner: Any, name: str, everything: bool) -> None:
        """What the step may take of a module or a class: what has a name in its code, or is called without one."""
        names = [*vars(owner), *self._stored]
        for base in owner.__mro__[1:] if isinstance(owner, type) else ():  # a class may get one of its own later
            names += vars(base) if is_users(base.__module__) else ()
        ours = isinstance(owner, Module) and not is_users(type(owner).__module__)
        for name_of_it in names:
            key = id(owner), name_of_it
            reached = everything and not (ours and name_of_it[0] == "_")  # what we keep there is no affair of a step
            if key in self._known or not (reached or self._takes(owner, name_of_it)):
                continue
            self._known[key] = None
            value = vars(owner).get(name_of_it)
            if isinstance(owner, Module) and (
                name_of_it in ("_buffers", "_hooks") or isinstance(value, Module | Tensor)
            ):
                continue
            self._read(f"{name}.{name_of_it}", vars(owner).get, f"{{}}({name_of_it!r})")
            for part in ("__func__", "fget", "func", "__wrapped__"):
                if isinstance(function := getattr(value, part, None), FunctionType | operator.attrgetter):
                    self._visit(function)

    def _takes(self, owner: Any, name: str) -> bool:
        if name in ("__init__", "__new__", "__post_init__"):
            return id(owner) in self._made
        by_syntax = name == "__getattr__" if isinstance(owner, ModuleType) else is_called_unnamed(name)
        return name in self._names or by_syntax

    def _follow(self, function: FunctionType) -> None:
        code = names_of(function.__code__)
        self._names.update(code.names)
        self._stored.update(code.stored)
        if refusal := why_refused(function):
            self._refuse(refusal)
        self._read(function.__name__, function, "{}.__code__")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._read(name, cell, "{}.cell_contents")
        known = function.__globals__
        for name in code.loaded:
            if name in known or not hasattr(builtins, name):
                self._read(name, known.get, f"{{}}({name!r})")
        if functions := {name for name in code.loaded if hasattr(builtins, name) and name not in known}:
            self._read("a builtin function", partial(known.keys().isdisjoint, functions), "{}()")
        for name in code.imported:
            self._read(name, sys.modules.get, f"{{}}({name!r})")
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self._read(f"{function.__name__}.{name}", function, f"{{}}.{name}")


@cache
def _reader(expression: str) -> Callable[[Any], Any]:
    read: Callable[[Any], Any] = eval(f"lambda thing: {expression.format('thing')}")
    return read


def _taken(source: Source) -> Any:
    try:
        return _reader(source[2])(source[1])
    except ValueError:  # a closure's name that has no value yet
        return None


def followed(given: list[Any]) -> dict[int, Any]:
    """Among the arguments of a step the functions and the package's objects, and the classes of others."""
    found = [x.__class__ if is_data(x) else x for x in given if is_data(x) or is_ours(x.__class__)]
    found += [x for x in given if isinstance(x, (FunctionType, MethodType, partial, type))]
    return {id(x): x for x in found}


# -- NumPy arguments


class Watched(np.ndarray):
    """A NumPy array that a step gets while it is recorded. What takes its numbers, but an operation, is refused."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(is_tensor(x) for x in inputs):
            return NotImplemented
        _read_by_python()
        if "out" in options:
            options["out"] = tuple(map(_base, options["out"]))
        return getattr(ufunc, method)(*map(_base, inputs), **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function not in (np.shape, np.ndim, np.size):
            _read_by_python()
        return super().__array_function__(function, types, args, options)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and name not in _ABOUT:
            _read_by_python()
        return super().__getattribute__(name)


_ABOUT = {"shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes", "flags", "base", "view"}


def _read_by_python() -> None:
    frame: Any = sys._getframe(2)
    while frame.f_globals is globals() or root_package(frame) == "numpy":
        frame = frame.f_back
    if root_package(frame) != PACKAGE:  # this package says by itself what it reads
        outside("Python code reads or changes the numbers of a NumPy array: pass it as a tensor")


def _base(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, Watched) else x


def _watched_method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        _read_by_python()
        return getattr(np.asarray(self), name)(*args)

    return method


for _name in ("getitem", "setitem", "iter", "contains", "bool", "int", "float", "index", "complex"):
    setattr(Watched, f"__{_name}__", _watched_method(f"__{_name}__"))
