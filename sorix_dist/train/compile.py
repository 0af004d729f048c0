"""Captured steps: the calls of a training step as one straight line of Python, with the bits of the step itself."""

from __future__ import annotations

import builtins
import linecache
import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from threading import get_ident
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, flat
from sorix_dist.core.capture import Recorder, recorders, same, version
from sorix_dist.core.graph import recording
from sorix_dist.core.placement import Shard
from sorix_dist.nn import Module

RECORDINGS = 4  # calls that may differ before a step is given up: the first ones make buffers
AUDITED = 3  # replays that are audited at first
EVERY = 1000  # and then every so many
MOST = 256  # programs of one step
_PACKAGE = __name__.partition(".")[0] + "."
_NUMBERS = (bool, int, float, str, bytes, type(None))


def compile(step: Callable[..., Any]) -> CompiledStep:
    """Captures a training step: the first calls run as they are, the later ones as one line of NumPy calls.

    step: a function of a batch (tensors, arrays, numbers, or tuples, lists and dicts of them). It may compute losses,
    call backward, clip, accumulate, and step optimizers and schedulers. It returns tensors, nested, or None. The result
    has the same bits. `print(step.source)` shows the latest program.

    There is a program for each shape, dtype, placement and number among the arguments, each number and object that the
    step names (closure, globals, `self`), and each mode, number and array of the modules among these. Python code of
    the step runs in the first calls only: what it prints or counts is not repeated, and attributes of other objects are
    those of the first calls. What reads numbers of a tensor (`item()`, `if loss > 1:`), makes arrays by NumPy, changes
    tensors in place or calls autograd.grad can't be captured: the step runs as it is, and a warning says the line once.

    The first three replays and every thousandth are audited: the step runs as it is, and its calls are compared with
    the program, with the same arrays; RuntimeError names the first that differs. The environment variable
    SORIX_DIST_COMPILE=audit audits every call, =off captures nothing.
    """
    return CompiledStep(step)


class CompiledStep:
    """A step and the programs that were captured of it; see `compile`.

    source: of the latest program, a function of the step's arguments; reason: why the step is not captured, or None.
    """

    def __init__(self, step: Callable[..., Any], bound: Any = None) -> None:
        if not callable(step):
            raise TypeError(f"compile: step must be a function, got {type(step).__name__}")
        update_wrapper(self, step)
        self.step = step
        self.bound = bound
        self.source = ""
        self.reason: str | None = None
        self._programs: dict[Any, _Entry] = {}
        self._captured: list[Read] | None = None
        self._seen = -1
        self._modes: tuple[Any, ...] = ()
        self._mode = os.environ.get("SORIX_DIST_COMPILE", "")
        if self._mode not in ("", "audit", "off"):
            raise ValueError(f"SORIX_DIST_COMPILE must be 'audit', 'off' or unset, got {self._mode!r}")

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A method: each instance has programs of its own."""
        if instance is None:
            return self
        made = CompiledStep(self.step.__get__(instance, owner), instance)
        if (name := getattr(self.step, "__name__", None)) and hasattr(instance, "__dict__"):
            instance.__dict__[name] = made
        return made

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._mode == "off" or get_ident() in recorders:  # inside of another one it is a part of that
            return self.step(*args, **options)
        if self._captured is None:
            self._captured = [*_captured(self.step)]
        values: list[Any] = []
        named = [read() for read in self._captured]
        key = (
            *(_key(x, values) for x in args),
            *((name, _key(x, values)) for name, x in options.items()),
            *(x if isinstance(x, _NUMBERS) else id(x) for x in named),
            self._modes if self._seen == version() else self._look(named),
            flat.version(),
            recording.get(),
        )
        entry = self._programs.get(key)
        if entry is None:
            if len(self._programs) >= MOST:
                self._refuse(f"there are more than {MOST} kinds of calls, by shapes, modes and numbers")
                return self.step(*args, **options)
            entry = self._programs[key] = _Entry(named)
        if entry.program is None:
            return self._record(entry, values, args, options)
        entry.runs += 1
        if entry.runs <= AUDITED or entry.runs % EVERY == 0 or self._mode == "audit":
            return self._audit(entry, values, args, options)
        try:
            return entry.program(*values)
        except BaseException:
            entry.abandon()
            raise

    def _look(self, named: list[Any]) -> tuple[Any, ...]:
        """The modes and hooks of the modules that the step names."""
        self._seen = version()
        self._modes = tuple(_state_of(module) for module in _modules(named))
        return self._modes

    def _record(self, entry: _Entry, values: list[Any], args: Any, options: Any) -> Any:
        """Runs the step as it is; its calls become a program when two recordings are alike."""
        if entry.given_up:
            return self.step(*args, **options)
        recorder, result = self._recorded(entry, values, args, options)
        before, entry.recorder = entry.recorder, recorder
        entry.recordings += 1
        if recorder.refusal is not None:
            self._give_up(entry, recorder.refusal)
        elif before is not None:
            difference = _difference(before, recorder)
            if difference is None:
                entry.program = _assembled(recorder, len(values), self.step)
                self.source = entry.program.__doc__ or ""
            elif entry.recordings >= RECORDINGS:
                self._give_up(entry, f"its calls are not the same every time: {difference}")
        return result

    def _give_up(self, entry: _Entry, reason: str) -> None:
        entry.given_up, entry.recorder = True, None
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        said, self.reason = self.reason is not None, reason
        if said:
            return
        warnings.warn(f"compile: {self.step.__name__} runs as it is: {reason}", RuntimeWarning, stacklevel=4)

    def _recorded(self, entry: _Entry, values: list[Any], args: Any, options: Any) -> tuple[Recorder, Any]:
        names = [(f"a{i}", value) for i, value in enumerate(values)]
        recorder = Recorder(names, _staying(entry.named))
        recorders[get_ident()] = recorder
        try:
            result = self.step(*args, **options)
            recorder.bare(f"return {recorder.of(_checked(recorder, result))}")
        finally:
            del recorders[get_ident()]
        recorder.finish()
        return recorder, result

    def _audit(self, entry: _Entry, values: list[Any], args: Any, options: Any) -> Any:
        """Runs the step as it is, and compares its calls, and the arrays that they get, with those of the program."""
        assert entry.recorder is not None
        recorder, result = self._recorded(entry, values, args, options)
        difference = recorder.refusal or _difference(entry.recorder, recorder)
        if difference is not None:
            raise RuntimeError(
                f"compile: the captured program of {self.step.__name__} is not what the step does in call "
                f"{entry.runs}: {difference}. SORIX_DIST_COMPILE=off runs the step as it is"
            )
        return result


class _Entry:
    """What is known of the step for one key."""

    def __init__(self, named: list[Any]) -> None:
        self.named = named  # which stay alive, so that no other objects get their ids
        self.recorder: Recorder | None = None
        self.recordings = self.runs = 0
        self.program: Callable[..., Any] | None = None
        self.given_up = False

    def abandon(self) -> None:
        """Ends an accumulation that an exception has cut off."""
        assert self.recorder is not None
        for thing in self.recorder.names.values():
            if getattr(thing, "accumulation", None) is not None:
                thing.abandon()


def _key(x: Any, values: list[Any]) -> Any:
    """What a program depends on in an argument; its tensors and arrays go into `values`."""
    if isinstance(x, Tensor):
        values.append(x)
        array = x.array
        place: Any = x.place
        if place.__class__ is Shard:
            batch = place.batch
            total = None if batch.known is None else batch.known.total
            place = place.axis, place.outer, place.inner, batch.held, total, id(place.group), batch.shard
        return array.shape, array.dtype, place, x.origin is not None
    if isinstance(x, np.ndarray):
        values.append(x)
        return x.shape, x.dtype
    if isinstance(x, tuple | list):
        return type(x), *(_key(part, values) for part in x)
    if isinstance(x, dict):
        return tuple((name, _key(part, values)) for name, part in x.items())
    return x if isinstance(x, _NUMBERS) else id(x)


Read = Callable[[], Any]


def _captured(step: Callable[..., Any], known: set[int] | None = None) -> Iterator[Read]:
    """Functions that read what a step, and the functions that it calls, take from closures, globals and `self`."""
    known = set() if known is None else known
    step = step.step if isinstance(step, CompiledStep) else step
    function = getattr(step, "__func__", step)
    if id(function) in known or not isinstance(function, FunctionType):
        return
    known.add(id(function))
    names = [*_names(function.__code__)]
    reads: list[Read] = [partial(_of_cell, cell) for cell in function.__closure__ or ()]
    reads += [partial(function.__globals__.get, name) for name in names if name in function.__globals__]
    owner = getattr(step, "__self__", None)
    reads += [partial(getattr, owner, name, None) for name in names if name in getattr(owner, "__dict__", ())]
    for read in reads:
        value = read()
        if not isinstance(value, ModuleType | type) and not _is_ours(value):
            yield read
            yield from _captured(value, known)


def _is_ours(function: Any) -> bool:
    """Whether something is a function of this package."""
    package = getattr(function, "__module__", None)
    return callable(function) and not isinstance(function, Module) and str(package).startswith(_PACKAGE)


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function and in those inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _state_of(module: Module) -> tuple[Any, ...]:
    """What a program takes for granted of a module: its mode, numbers and texts, which arrays it has, and hooks."""
    values = [x if isinstance(x, _NUMBERS) else id(x) for x in vars(module).values()]
    trained = [(p.requires_grad, p.leaf is not None and bool(p.leaf.hooks)) for p in module.parameters()]
    return type(module), *values, *trained, *(len(hooks) for hooks in module.__dict__.get("_hooks", ()))


def _modules(named: list[Any]) -> Iterator[Module]:
    """The modules among what a step names, alone or in lists, and all below them."""
    for thing in named:
        for each in thing if isinstance(thing, tuple | list) else [thing]:
            if isinstance(each, Module):
                yield from each.modules()


def _staying(named: list[Any]) -> dict[int, str]:
    """By id the names of arrays and tensors that a program may mention: of modules, and those that the step names."""
    found: dict[int, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            found.setdefault(id(value), name)
        if isinstance(value, Tensor) and id(value) not in found:
            plain = name.removeprefix("module.").replace(".", "_")
            plain = f"layer_{plain}" if plain[0].isdigit() else plain
            found[id(value)], found[id(value.array)] = f"{plain}_tensor", plain

    for thing in named:
        for each in thing if isinstance(thing, tuple | list) else [thing]:
            add("tensor", each)
            for name, tensor in (*each.named_parameters(), *each.named_buffers()) if isinstance(each, Module) else ():
                add(name, tensor)
    for module in _modules(named):
        for name, value in vars(module).items():
            add(name, value)
    return found


def _checked(recorder: Recorder, result: Any) -> Any:
    """The result of a step, which holds tensors; a number that it read from one was refused already."""
    if isinstance(result, float | int) and not isinstance(result, bool):
        recorder.refuse("the step returns a Python number: return the tensor, and call item() outside")
    return result


def _difference(one: Recorder, other: Recorder) -> str | None:
    """How the second of two recordings differs from the first, None if it does not."""
    for line, now, where in zip(one.lines, other.lines, other.wheres):
        if line != now:
            return f"`{line}` was `{now}` at {where}"
    if len(one.lines) != len(other.lines):
        return f"{len(one.lines)} calls became {len(other.lines)}"
    for name, thing in one.names.items():
        if not same(thing, other.names.get(name)):
            at = next((i for i, text in enumerate(other.lines) if re.search(rf"\b{name}\b", text)), 0)
            return f"`{name}` is another one in `{other.lines[at]}` at {other.wheres[at]}"
    return None


_VARIABLE = re.compile(r"\b[tr]\d+\b")


def _text(recorder: Recorder, count: int) -> str:
    """The program: the lines of a recording, which forget what no later one needs."""
    last = {name: i for i, line in enumerate(recorder.lines) for name in _VARIABLE.findall(line)}
    text = [f"def step({', '.join(f'a{i}' for i in range(count))}):"]
    indent = "    "
    for i, line in enumerate(recorder.lines):
        if line == "try:":
            text.append(f"{indent}try:")
            indent = "        "
            text.append(f"{indent}pass")
            continue
        if line.startswith("except "):
            indent = "    "
            sync = line.removeprefix("except ")
            text += [f"{indent}except BaseException:", f"{indent}    {sync}.backward_failed()", f"{indent}    raise"]
            continue
        made = [name for name in dict.fromkeys(_VARIABLE.findall(line)) if last[name] == i]
        if line.partition(" = ")[0] in made and " = " in line and "," not in line.partition(" = ")[0]:
            line = line.partition(" = ")[2]
            made = [name for name in made if name in line]
        text.append(indent + line)
        if made and not line.startswith("return"):
            text.append(f"{indent}del {', '.join(made)}")
    return "\n".join(text) + "\n"


def _assembled(recorder: Recorder, count: int, step: Callable[..., Any]) -> Callable[..., Any]:
    """The program as a function, whose source tracebacks and profilers can show."""
    source = _text(recorder, count)
    file = f"<captured {step.__name__} {id(recorder):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = dict(recorder.names)
    exec(builtins.compile(source, file, "exec"), names)
    names["step"].__doc__ = source
    program: Callable[..., Any] = names["step"]
    return program
