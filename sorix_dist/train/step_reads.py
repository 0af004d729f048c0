"""What a captured step reads from Python: closures, globals, `self`, and what lies in the containers and objects there.

A program repeats operations, not Python. So a step is captured once for each state of what it reads (a `Fingerprint`),
and not at all if it changes that state itself.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.placement import Shard
from sorix_dist.nn import Module

NUMBERS = frozenset((bool, int, float, complex, str, bytes, type(None)))
MOST = 1000
"""Objects that are looked at; a step that names more is not captured."""
SMALL = 32
"""Elements up to which NumPy arrays, whose numbers Python code may read unseen, count by their values."""
_DEPTH = 20
_DYNAMIC = {"vars", "getattr", "__dict__", "asdict", "astuple", "attrgetter", "__getattribute__"}
_PACKAGE = __name__.partition(".")[0]

Read = Callable[[], Any]


class Fingerprint:
    """The state of some Python objects: `leaves`, numbers by their values and other objects by id. It keeps these
    alive, so that no other objects get their ids.

    names: which attributes of objects count, None for all; values: gets tensors and arrays, which count by shape, dtype
    and placement then, as the arguments of a program; arrays: the ids of their arrays and batches.
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
        kind, leaves = x.__class__, self.leaves
        if kind in NUMBERS:  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
            leaves += (kind, x if x and x == x else repr(x))
        elif kind is Tensor or isinstance(x, Tensor | np.ndarray):
            self._add_array(x)
        elif kind in (list, tuple, deque, dict) or isinstance(x, list | tuple | deque | dict):
            self._inside(x, (entry for pair in x.items() for entry in pair) if isinstance(x, dict) else x)
        elif isinstance(x, set | frozenset):
            self._inside(x, sorted(x, key=lambda entry: (hash(entry), repr(entry))))
        elif isinstance(x, np.generic):
            leaves += (kind, repr(x))
        elif _is_users_object(x):
            if self._values is None:
                leaves.append(id(x))
            own, names = _fields(x), self._names
            self._inside(x, (v for pair in own.items() if names is None or pair[0] in names for v in pair))
        else:
            if hasattr(kind, "__next__"):
                self.refusal = f"a {kind.__name__}, which it takes things from, is something else in every call"
            leaves.append(id(x))
            self.alive.append(x)

    def _add_array(self, x: Any) -> None:
        if self._values is None:
            self.leaves.append(id(x))
            self.alive.append(x)
            if isinstance(x, np.ndarray) and x.size <= SMALL and x.dtype != object:
                self.leaves.append(x.tobytes())
                self.changeable = True
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

    def _inside(self, x: Any, entries: Any) -> None:
        self.changeable = True
        self.leaves += (type(x), "(")
        around = any(x is container for container in self._on_way)
        if around or len(self._on_way) > _DEPTH or len(self.leaves) > 4 * MOST:
            if not around:
                self.refusal = f"it names more than {MOST} objects: give it those of one call as arguments"
            return
        self._on_way.append(x)
        self.alive.append(x)
        for entry in entries:
            self.add(entry)
        self._on_way.pop()
        self.leaves.append(")")


def form_of(args: tuple[Any, ...]) -> Any:
    """What a program depends on of arguments that are tensors, rows of one batch or of none: a key that is made sooner
    than a `Fingerprint`. None for other arguments, and for two tensors with one array."""
    forms: list[tuple[Any, ...]] = []
    arrays, batch = [], None
    for x in args:
        if x.__class__ is not Tensor:
            return None
        array, place = x.array, x.place
        if place is None:
            forms.append((array.shape, array.dtype, x.origin is None))
        elif place.__class__ is Shard and (batch is None or batch is place.batch):
            batch = place.batch
            forms.append((array.shape, array.dtype, x.origin is None, place.axis, place.outer, place.inner))
        else:
            return None
        arrays.append(id(array))
    if len({*arrays}) < len(arrays):
        return None
    if batch is None:
        return forms
    return forms, batch.held, batch.known and batch.known.total, batch.group, batch.shard


class Reads:
    """What a step, and the functions and methods that it may call, take from closures, globals, defaults and `self`.

    sources: functions that read these, by their names.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self.sources: list[tuple[str, Read]] = []
        self._names: set[str] = set()
        self._owners: list[tuple[str, Any, list[str]]] = []
        self._known: dict[int, Any] = {}  # which keeps them alive
        self._read("step", partial(_itself, step))
        before = -1
        while before < len(self._names):
            before = len(self._names)
            for owner, x, names in self._owners:
                for name in sorted(self._names.intersection(names)):
                    self._read(f"{owner}.{name}", partial(getattr, x, name, None))
        self.attributes = None if self._names & _DYNAMIC else self._names
        reads = enumerate(read for _, read in self.sources)
        self._changing = [(i, read) for i, read in reads if getattr(read, "func", None) is not _itself]

    def now(self) -> list[Any]:
        """The objects that are read."""
        return [read() for _, read in self.sources]

    def gives(self, named: list[Any]) -> bool:
        """Whether `now` would give these objects again."""
        for i, read in self._changing:  # noqa: SIM110 (faster)
            if read() is not named[i]:
                return False
        return True

    def state(self, named: list[Any]) -> Fingerprint:
        """The state of what `now` gave."""
        found = Fingerprint(self.attributes)
        for value in named:
            found.add(value)
        return found

    def each(self) -> dict[str, Any]:
        """The state of each source by its name, the numbers of arrays and the states of generators with it."""
        drawn = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
        found: dict[str, Any] = {"the state of Python's or NumPy's random numbers": drawn}
        for name, read in self.sources:
            one = self.state([read()])
            found[f"`{name}`"] = one.leaves, [within(x) for x in one.alive]
        return found

    def _read(self, name: str, read: Read) -> None:
        value = read()
        if self._visit(value, name):
            self.sources.append((name, read))

    def _visit(self, x: Any, name: str = "") -> bool:
        """Follows what a value may call; whether the value itself is to be looked at in each call."""
        if x.__class__ in NUMBERS:
            return True
        ours = is_users(getattr(x, "__module__", None))
        known = id(x) in self._known or len(self._known) > 4 * MOST
        self._known[id(x)] = x
        if isinstance(x, ModuleType | type):
            if not known and is_users(x.__name__ if isinstance(x, ModuleType) else x.__module__):
                self._owners.append((x.__name__, x, [n for n, v in _attributes(x) if not _is_method(v)]))
            return False
        if isinstance(x, BuiltinFunctionType) or (isinstance(x, FunctionType | MethodType) and not ours):
            return False
        if known:
            return True
        if isinstance(x, FunctionType):
            self._follow(x)
        elif isinstance(x, MethodType):
            self._read("self", partial(_itself, x.__self__))
            self._visit(x.__func__)
        elif isinstance(x, functools.partial):
            for value in (x.func, *x.args, *x.keywords.values()):
                self._read(name, partial(_itself, value))
        elif isinstance(x, Module):
            for module in x.modules():
                self._of_module(module)
        elif isinstance(captured := getattr(x, "step", None), FunctionType | MethodType) and callable(x):
            self._visit(captured)  # a step that is captured by itself
        elif (entries := inside(x)) is not None:
            if _is_users_object(x):
                self._of_class(type(x))
            for value in entries:
                self._visit(value, name)
        return True

    def _of_module(self, module: Module) -> None:
        if is_users(type(module).__module__):
            self._of_class(type(module))
            for name, value in vars(module).items():
                if name not in ("_buffers", "_hooks") and not isinstance(value, Module | Tensor):
                    self._read(f"{type(module).__name__}.{name}", partial(vars(module).get, name))
        for hooks in vars(module).get("_hooks", ()):
            for hook in hooks:
                self._read("hook", partial(_itself, hook))

    def _of_class(self, kind: type) -> None:
        """The functions of a class of the user's, and its own values."""
        if id(kind) in self._known:
            return
        self._visit(kind)
        for _, value in _attributes(kind):
            for function in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
                if isinstance(function, FunctionType):
                    self._visit(function)
            if isinstance(captured := getattr(value, "step", None), FunctionType):
                self._visit(captured)

    def _follow(self, function: FunctionType) -> None:
        code = function.__code__
        names = [*dict.fromkeys(_names(code))]
        self._names.update(names)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._read(name, partial(_of_cell, cell))
        for name in names:
            if name in function.__globals__:
                self._read(name, partial(function.__globals__.get, name))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._read("default", partial(_itself, value))


def _itself(x: Any) -> Any:
    return x


def within(x: Any) -> Any:
    """What changes in an object that counts by its id."""
    if isinstance(x, np.ndarray):
        return hash(x.tobytes())
    if isinstance(x, np.random.Generator):
        return repr(x.bit_generator.state)
    if isinstance(x, np.random.RandomState):
        return repr(x.get_state())
    return x.getstate() if isinstance(x, random.Random) else None


def modules(named: Any, depth: int = 0) -> Iterator[Module]:
    """The modules among what a step names, in containers and objects too, and all below them."""
    for thing in named:
        if isinstance(thing, Module):
            yield from thing.modules()
        elif depth < _DEPTH and (entries := inside(thing)) is not None:
            yield from modules(entries, depth + 1)


def inside(x: Any) -> list[Any] | None:
    """What lies in a container or an object of a class of the user's; None if it is neither."""
    if isinstance(x, list | tuple | deque | set | frozenset):
        return [*x]
    if isinstance(x, dict):
        return [*x.values()]
    return [*_fields(x).values()] if _is_users_object(x) else None


def state_of(module: Module) -> tuple[Any, ...]:
    """What a program takes for granted of a module: its mode, numbers and texts, which modules and arrays it has, and
    hooks."""
    found = Fingerprint(set())
    for value in vars(module).values():
        found.add(value) if value.__class__ in NUMBERS else found.leaves.append(id(value))
    trained = [(p.requires_grad, p.leaf is not None and bool(p.leaf.hooks)) for p in module.parameters()]
    own = [id(value) for _, value in module.children_and_state()]
    return type(module), *found.leaves, *own, *trained, *(len(hooks) for hooks in module.__dict__.get("_hooks", ()))


def _fields(x: Any) -> dict[str, Any]:
    """The attributes of an object, in slots too."""
    found = dict(getattr(x, "__dict__", {}))
    for kind in type(x).__mro__:
        names = vars(kind).get("__slots__", ())
        found |= {name: getattr(x, name) for name in ([names] if isinstance(names, str) else names) if hasattr(x, name)}
    return found


@cache
def is_users(package: str | None) -> bool:
    """Whether a module is the user's program: of no library."""
    root = str(package).partition(".")[0]
    if root in sys.stdlib_module_names or root in (_PACKAGE, "numpy", "None"):
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def _is_users_object(x: Any) -> bool:
    """Whether an object is nothing but data of the user's program."""
    kind: Any = type(x)
    if isinstance(x, type | FunctionType | MethodType | ModuleType | BuiltinFunctionType | Module | Tensor | Enum):
        return False
    if kind.__module__ in ("types", "argparse") and hasattr(x, "__dict__"):  # SimpleNamespace, Namespace
        return True
    return bool(_is_data(kind))


@cache
def _is_data(kind: type) -> bool:
    ours = any(base.__module__.partition(".")[0] == _PACKAGE for base in kind.__mro__)
    return is_users(kind.__module__) and not ours


def _attributes(x: Any) -> list[tuple[str, Any]]:
    """What a module, or a class and its bases of the user's, have."""
    if isinstance(x, ModuleType):
        return [*vars(x).items()]
    return [pair for base in x.__mro__ if is_users(base.__module__) for pair in vars(base).items()]


def _is_method(x: Any) -> bool:
    return hasattr(x, "__get__") and not isinstance(x, type)


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes in a function and in those inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None
