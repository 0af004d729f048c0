"""The state of Python objects that a captured step reads, as a key."""

from __future__ import annotations

import functools
import inspect
import operator
import random
import re
import types
from array import array
from collections import UserList, deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Shard
from sorix_dist.nn import Module
from sorix_dist.train.step_code import PACKAGE, is_users

NUMBERS = frozenset((bool, int, float, complex, str, bytes, type(None)))
MOST = 1000  # objects that are looked at; a step that names more is not captured
SMALL = 1000  # elements of NumPy arrays, which count by their values, because Python code may read these unseen
_DEPTH = 20
_CONTAINERS = (list, tuple, dict, deque, set, frozenset, UserList, Mapping)
_VALUES: tuple[Any, ...] = (int, float, complex, str, bytes, BaseException)  # classes whose objects have a value
_BY_TEXT = (range, slice, date, timedelta, Decimal, Fraction, np.generic)
_BY_ID = (
    type, Enum, Module, random.Random, re.Pattern, property, staticmethod, classmethod, FunctionType, ModuleType,
    MemberDescriptorType, types.MethodType, types.BuiltinFunctionType, types.MethodDescriptorType, types.CodeType,
    types.EllipsisType, types.GetSetDescriptorType, functools.partial, functools.cached_property, inspect.Signature,
    operator.attrgetter, operator.itemgetter, operator.methodcaller,
)  # fmt: skip
# Packages whose objects don't change; the states of generators are compared.
_STEADY = ("numpy", "typing", "logging", "_collections", "dataclasses")


class Fingerprint:
    """The state of some Python objects: `leaves`, numbers by their values and other objects by id. It keeps these
    alive, so that no other objects get their ids.

    names: which attributes of objects count, None for all; values: gets tensors and arrays, which count by shape, dtype
    and placement then, as the arguments of a program; arrays: the ids of the arrays of tensors, and of batches.
    """

    def __init__(self, names: set[str] | None = None, values: list[Any] | None = None) -> None:
        self.leaves: list[Any] = []
        self.alive: list[Any] = []
        self.changeable = False  # whether something can change and stay the same object
        self.arrays: list[int] = []
        self.refusal: str | None = None
        self._names, self._values = names, values
        self._on_way: list[Any] = []

    def add(self, x: Any) -> None:
        """Adds an object and what lies in it."""
        kind, leaves = type(x), self.leaves  # a proxy says that its class is that of another object
        if kind in NUMBERS:  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
            leaves += (kind, x if x and x == x else repr(x))
        elif kind is Tensor or isinstance(x, Tensor | np.ndarray):
            self._add_array(x)
        elif kind in _CONTAINERS or isinstance(x, _CONTAINERS):
            self._inside(x, _entries(x) if kind in _CONTAINERS else [*_entries(x), *(v for _, v in self._own(x))])
        elif isinstance(x, _BY_TEXT):
            leaves += (kind, repr(x))
        elif isinstance(x, bytearray | memoryview | array):
            leaves += (kind, bytes(x))
            self.changeable = True
        elif isinstance(x, ContextVar):
            self.changeable = True
            self.add(x.get(None))
        elif is_data(x):
            if self._values is None:
                leaves.append(id(x))
            leaves += [base.__repr__(x) for base in _VALUES if isinstance(x, base)]
            self._inside(x, (entry for pair in self._own(x) for entry in pair))
        else:
            self._by_id(x, kind)

    def modules(self) -> list[Module]:
        """The modules among the objects, and all below them."""
        return [*{id(module): module for x in self.alive if isinstance(x, Module) for module in x.modules()}.values()]

    def _by_id(self, x: Any, kind: Any) -> None:
        self.leaves.append(id(x))
        self.alive.append(x)
        package = kind.__module__
        if is_ours(kind):
            # What a step may read, such as a scheduler's epoch; a captured step is followed as a function.
            if not isinstance(x, Module | type) and getattr(x, "__wrapped__", None) is None:
                own = [*self._own(x)]
                if self._names is None:
                    own = [(n, v) for n, v in own if v.__class__ in NUMBERS and v is not None and n[0] != "_"]
                if own:
                    steady = all(is_ours(v.__class__) for _, v in own)  # a scheduler's optimizer
                    self._inside(x, (entry for pair in own for entry in pair), steady)
        elif isinstance(x, FunctionType | Enum):
            own = [v for n, v in self._own(x) if n != "__wrapped__"]
            if own:
                self._inside(own, own)
        elif hasattr(kind, "__next__") and package != "weakref":
            self.refusal = f"a {kind.__name__}, which it takes things from, is something else in every call"
        elif not (isinstance(x, _BY_ID) or package.partition(".")[0] in _STEADY or is_users(package)):
            self.refusal = f"an object of {package}.{kind.__name__}, which it names, may change unseen"

    def _own(self, x: Any) -> Iterator[tuple[str, Any]]:
        names = self._names
        return (pair for pair in fields(x).items() if names is None or pair[0] in names)

    def _add_array(self, x: Any) -> None:
        if self._values is None:
            self.leaves.append(id(x))
            self.alive.append(x)
            if isinstance(x, Tensor):
                self.leaves.append(x.origin is None)
                self.arrays.append(id(x.array))
                self.alive.append((x.array,))  # whose numbers may change
            else:
                self.changeable = True
                self.leaves.append(repr(x) if x.dtype.hasobject else x.tobytes() if x.size <= SMALL else 0)
                if x.size > SMALL:
                    self.refusal = f"it names a NumPy array of {x.size} numbers, which Python may read: use a tensor"
            return
        self._values.append(x)
        if isinstance(x, np.ndarray):
            self.leaves += (x.shape, x.dtype)
            self.arrays.append(id(x))
            if any(type(container) is not tuple for container in self._on_way):
                self.refusal = "NumPy arrays in lists, dicts or objects can't be watched: pass them as tensors"
            return
        place: Any = x.place
        self.arrays.append(id(x.array))
        if place.__class__ is Shard:
            batch = place.batch
            self.arrays.append(id(batch))
            total = None if batch.known is None else batch.known.total
            place = place.axis, place.outer, place.inner, batch.held, total, id(place.group), batch.shard
        self.leaves += (x.array.shape, x.array.dtype, place, x.origin is not None)

    def _inside(self, x: Any, entries: Any, steady: bool = False) -> None:
        self.changeable = self.changeable or not (steady or x.__class__ is tuple)
        self.leaves += (type(x), "(")
        around = any(x is container for container in self._on_way)
        if around or len(self._on_way) > _DEPTH or len(self.leaves) > 4 * MOST:
            if not around:
                self.refusal = f"it names more than {MOST} objects: give it those of one call as arguments"
            return
        self._on_way.append(x)
        if is_data(x):  # of an argument, its class: a batch must not outlive its call
            self.alive.append(x if self._values is None else type(x))
        for entry in entries:
            self.add(entry)
        self._on_way.pop()
        self.leaves.append(")")


def likeness(args: tuple[Any, ...], read: list[tuple[str, Any, Any]]) -> Callable[[tuple[Any, ...]], bool] | None:
    """A function that says whether other arguments are to a program what these are: tensors with arrays of their own
    and no or one placement; and whether what is `read` (an expression, the object in it, its value) has stayed. It
    takes a twentieth of the time of a `Fingerprint`. None for other arguments."""
    names: dict[str, Any] = {"Tensor": Tensor, "Shard": Shard}
    found, place = [], None
    for i, x in enumerate(args):
        if x.__class__ is not Tensor or not (x.place is None or x.place is place or place is None):
            return None
        names |= {f"shape{i}": x.array.shape, f"dtype{i}": x.array.dtype}
        found += [f"a{i}.__class__ is Tensor", f"(x{i} := a{i}.array).shape == shape{i}", f"x{i}.dtype == dtype{i}"]
        found += [f"(a{i}.origin is None) is {x.origin is None}", *(f"x{i} is not x{j}" for j in range(i))]
        if x.place is None or x.place is place:
            found.append(f"a{i}.place is {None if x.place is None else 'p'}")
        elif x.place.__class__ is not Shard:
            return None
        else:
            place, known, batch = x.place, x.place.batch.known, x.place.batch
            names |= {"axis": place.axis, "outer": place.outer, "inner": place.inner, "held": batch.held}
            names |= {"total": known and known.total, "group": batch.group, "shard": batch.shard}
            found += [f"(p := a{i}.place).__class__ is Shard", "p.axis == axis", "p.outer == outer", "p.inner == inner"]
            found += ["(b := p.batch).held == held", "(b.known and b.known.total) == total"]
            found += ["b.group is group", "b.shard == shard"]
    for i, (expression, thing, value) in enumerate(read):
        names |= {f"thing{i}": thing, f"value{i}": value}
        found.append(f"{expression.format(f'thing{i}')} is value{i}")
    given = "".join(f"a{i}, " for i in range(len(args)))
    text = f"def like(args):\n    try:\n        ({given}) = args\n        return {' and '.join(found) or True}\n"
    exec(f"{text}    except ValueError:  # other arguments, or a closure without a value\n        return False", names)
    like: Callable[[tuple[Any, ...]], bool] = names["like"]
    return like


def within(x: Any) -> Any:
    """What changes in an object that counts by its id, or the state of NumPy's own random numbers."""
    if isinstance(x, np.ndarray):
        return hash(x.tobytes())
    if isinstance(x, np.random.Generator):
        return repr(x.bit_generator.state)
    if x is np.random or isinstance(x, np.random.RandomState):
        state: Any = x.get_state()
        return repr(state) if isinstance(state, dict) else (state[0], state[1].tobytes(), *state[2:])
    return x.getstate() if isinstance(x, random.Random) else None


def inside(x: Any) -> list[Any] | None:
    """What lies in a container or an object of a class of the user's; None if it is neither."""
    if isinstance(x, _CONTAINERS):
        return [*x.values()] if isinstance(x, Mapping) else [*x]
    return [*fields(x).values()] if is_data(x) else None


def state_of(module: Module) -> tuple[Any, ...]:
    """What a program takes for granted of a module: its mode, numbers and texts, which modules and arrays it has,
    hooks, and whether it sums over the ranks."""
    found = Fingerprint(set())
    for value in vars(module).values():
        found.add(value) if value.__class__ in NUMBERS else found.leaves.append(id(value))
    found.leaves.append(getattr(vars(module).get("_coordinator"), "synchronising", None))  # see `no_sync`
    trained = [(p.requires_grad, p.leaf is not None and bool(p.leaf.hooks)) for p in module.parameters()]
    own = [id(value) for _, value in module.children_and_state()]
    return type(module), *found.leaves, *own, *trained, *(len(hooks) for hooks in module.__dict__.get("_hooks", ()))


def arrays_of(module: Module) -> list[int]:
    """The ids of the arrays of a module's tensors, which may be other ones after an assignment to `data`."""
    return [id(x.array) for _, x in module.children_and_state() if isinstance(x, Tensor)]


def fields(x: Any) -> dict[str, Any]:
    """The attributes of an object, in slots too, without a call of its `__getattr__`."""
    try:
        found = dict(object.__getattribute__(x, "__dict__"))
    except AttributeError:
        found = {}
    for slot in _slots(x.__class__):
        try:
            found[slot.__name__] = slot.__get__(x)
        except AttributeError:  # it has no value
            continue
    return found


@cache
def _slots(kind: type) -> list[MemberDescriptorType]:
    bases = [base for base in kind.__mro__ if is_users(base.__module__)]
    return [value for base in bases for value in vars(base).values() if isinstance(value, MemberDescriptorType)]


def is_data(x: Any) -> bool:
    """Whether an object is nothing but data of the user's program."""
    kind: Any = type(x)
    return bool(_is_data(kind))


@cache
def _is_data(kind: type) -> bool:
    if kind.__module__ in ("types", "argparse") and kind.__dictoffset__:  # SimpleNamespace, Namespace
        return not issubclass(kind, FunctionType | ModuleType)
    return is_users(kind.__module__) and not is_ours(kind) and not issubclass(kind, type | Enum)


@cache
def is_ours(kind: type) -> bool:
    """Whether a class is of this package, or a user's subclass of one."""
    return any(base.__module__.partition(".")[0] == PACKAGE for base in kind.__mro__)


def _entries(x: Any) -> Any:
    if isinstance(x, Mapping):
        return [entry for pair in x.items() for entry in pair]
    return sorted(x, key=lambda entry: (hash(entry), repr(entry))) if isinstance(x, set | frozenset) else x
