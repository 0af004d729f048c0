"""Captured steps: the calls of a training step as one straight line of Python, with the bits of the step itself."""

from __future__ import annotations

import builtins
import linecache
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import reduce, update_wrapper
from operator import is_
from threading import Lock, Thread, current_thread, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from sorix_dist.core import Tensor, flat
from sorix_dist.core.capture import StepRecorder, recorders, users_line, version
from sorix_dist.core.graph import Node, recording
from sorix_dist.nn import Module
from sorix_dist.parallel.accumulation import abandon
from sorix_dist.train.audit import Audit, difference_of, forgotten
from sorix_dist.train.fingerprint import Fingerprint, arrays_of, inside, likeness, state_of, within
from sorix_dist.train.step_reads import Reads, Watched, followed

RECORDINGS = 4  # calls that may differ before a step is given up: the first ones make buffers
AUDITED = 3  # replays that are audited at first
EVERY = 1000  # after that, one replay in this many is audited
MOST = 256  # programs of one step
_starting = Lock()


def compile(step: Callable[..., Any]) -> CompiledStep:
    """Captures a training step: the first calls run as they are, the later ones as one line of NumPy calls.

    step: a function of a batch (tensors, arrays, numbers, or tuples, lists and dicts of them). It may compute losses,
    call backward, clip, accumulate, and step optimizers and schedulers. It returns tensors, nested, or None. The result
    has the same bits. `print(step.source)` shows the latest program.

    A program belongs to one combination of these: shapes, dtypes, placements and numbers of the arguments; numbers and
    objects that the step and the functions that it calls refer to (closures, globals, `self`, and what these contain);
    and modes, numbers and arrays of the modules among them. Python code of the step runs in the first calls only: what
    it prints is not repeated. A step can't be captured if it reads numbers of a tensor (`item()`, `if loss > 1:`),
    makes arrays by NumPy, changes tensors in place, calls autograd.grad, counts calls or appends to a list, draws
    random numbers of Python's or NumPy's, uses clocks or files, has an `except`, refers to objects whose changes can't
    be seen, or returns a tensor that backward() could be called on. It runs as it is then, and a warning names the line
    once.

    The first three replays and every thousandth are audited: the step runs as it is, and its program computes the same
    beside it. RuntimeError names the first call that differs, or gives other bits. The environment variable
    SORIX_DIST_COMPILE=audit audits every call, =off captures nothing.
    """
    return CompiledStep(step)


class CompiledStep:
    """A step and the programs that were captured of it; see `compile`.

    source: of the latest program, a function of the step's arguments; reason: why the step is not captured, or None.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        if not callable(step):
            raise TypeError(f"compile: step must be a function, got {type(step).__name__}")
        update_wrapper(self, step)
        self.__name__ = getattr(step, "__name__", type(step).__name__)
        self.step = step
        self.source = ""
        self.reason: str | None = None
        self._programs: dict[Any, _Entry] = {}
        self._reads: Reads | None = None
        self._named: list[Any] = []
        self._given: dict[int, Any] = {}  # arguments whose functions the step may call
        self._state = Fingerprint()
        self._states: dict[Any, int] = {}  # a number for each state of what the step reads
        self._number = self._seen = -1
        self._last: tuple[_Entry, Any, Any, Any] | None = None  # the latest call that needs no key if it is repeated
        self._thread: int | None = None
        self._others: WeakKeyDictionary[Thread, CompiledStep] = WeakKeyDictionary()
        self._mode = os.environ.get("SORIX_DIST_COMPILE", "")
        if self._mode not in ("", "audit", "off"):
            raise ValueError(f"SORIX_DIST_COMPILE must be 'audit', 'off' or unset, got {self._mode!r}")

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A method: each instance has programs of its own."""
        if instance is None:
            return self
        made = CompiledStep(self.step.__get__(instance, owner))
        if (name := getattr(self.step, "__name__", None)) and hasattr(instance, "__dict__"):
            instance.__dict__[name] = made
        return made

    def __reduce__(self) -> Any:
        """A copy has no programs yet. A function of an imported module is found there by its name."""
        name, module = getattr(self.step, "__qualname__", ""), getattr(self.step, "__module__", "__main__")
        found: Any = reduce(lambda x, part: getattr(x, part, None), name.split("."), sys.modules.get(module))
        return name if found is self and module != "__main__" else (CompiledStep, (self.step,))

    def __call__(self, *args: Any, **options: Any) -> Any:
        if get_ident() != self._thread and (other := self._of_thread()) is not self:
            result = other(*args, **options)
            self.source, self.reason = other.source or self.source, other.reason or self.reason
            return result
        if self._last is not None and not (options or recorders):
            last, like, seen, (changing, state) = self._last
            # A call like the last one, which is found sooner than by a key.
            if like(args) and version() == seen and (not changing or last.reads.state(changing).leaves == state.leaves):
                return self._run(last, args, args, options)
        if self._mode == "off" or (recorders and get_ident() in recorders):  # in another step it is a part of that
            return self.step(*args, **options)
        self._last = None
        key, given, values = self._key(args, options)
        entry = self._programs.get(key)
        if entry is None and len(self._programs) < MOST:
            self._reads = None  # functions or modules may be other ones
            self._given |= followed(given.alive)
            key, given, values = self._key(args, options)
            entry = self._programs.get(key)
        if entry is None:
            if len(self._programs) >= MOST:
                self._refuse(f"there are more than {MOST} kinds of calls, by shapes, modes, numbers and objects")
                return self.step(*args, **options)
            alive = [given.alive, *map(_own, self._state.modules())]
            entry = self._programs[key] = _Entry(self._state, alive)
            assert self._reads is not None
            if self._reads.copies and any(isinstance(x, np.ndarray) for x in values):
                given.refusal = "Python code may read the numbers of a NumPy array: pass it as a tensor"
            if refusal := given.refusal or self._state.refusal:
                self._give_up(entry, refusal if _LINE.search(refusal) else f"{refusal} ({_line_of(self.step)})")
        if entry.program is None:
            return self._record(entry, values, args, options)
        if self._reads and not (options or self._state.arrays) and (like := self._likeness(entry, args)):
            self._last = entry, like, version(), self._reads.changing(self._named)
        return self._run(entry, values, args, options)

    def _of_thread(self) -> CompiledStep:
        """This step for the first thread that calls it; for another one a step with programs of its own."""
        with _starting:
            self._thread = self._thread or get_ident()
            if self._thread != get_ident() and current_thread() not in self._others:
                self._others[current_thread()] = CompiledStep(self.step)
            return self if self._thread == get_ident() else self._others[current_thread()]

    def _run(self, entry: _Entry, values: Sequence[Any], args: Any, options: Any) -> Any:
        """Runs the program of an entry, or audits it."""
        entry.runs = runs = entry.runs + 1
        if runs <= AUDITED or runs % EVERY == 0 or self._mode == "audit":
            return self._audit(entry, values, args, options)
        try:
            return entry.program(*values)  # type: ignore[misc]
        except BaseException:
            entry.abandon()
            raise

    def _likeness(self, entry: _Entry, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], bool] | None:
        """The function that tells whether a call is like this one; it is made once, which takes long."""
        if entry.reads is not self._reads:
            assert self._reads is not None
            around = [("{}()", read, read()) for read in (flat.version, recording.get)]
            entry.like, entry.reads = likeness(args, [*around, *self._reads.steady(self._named)]), self._reads
        return entry.like if entry.like is not None and entry.like(args) else None

    def _key(self, args: Any, options: Any) -> tuple[Any, Fingerprint, list[Any]]:
        """What a program of this call depends on, the fingerprint of its arguments, and their tensors and arrays."""
        values: list[Any] = []
        given = Fingerprint(None, values)
        for x in args:
            given.add(x)
        for name, x in options.items():
            given.leaves.append(name)
            given.add(x)
        arrays = given.arrays
        aliases = None if len({*arrays}) == len(arrays) else tuple(map(arrays.index, arrays))
        if self._reads is None:
            self._reads, self._named = Reads(self.step, [*self._given.values()]), []
        named = self._reads.now()
        same_objects = len(named) == len(self._named) and all(map(is_, named, self._named))
        if self._state.changeable or self._seen != version() or not same_objects:
            self._named, self._seen = named, version()
            self._state = self._reads.state(named)
            below = self._state.modules()
            state = *self._state.leaves, *self._state.arrays, *map(state_of, below)
            state += tuple(id_ for module in below for id_ in arrays_of(module))
            full = len(self._programs) >= MOST
            self._number = self._states.get(state, -1) if full else self._states.setdefault(state, len(self._states))
        same = [i for i, id_ in enumerate(arrays) if id_ in self._state.arrays] if self._state.arrays else ()
        return (*given.leaves, aliases, *same, self._number, flat.version(), recording.get()), given, values

    def _record(self, entry: _Entry, values: list[Any], args: Any, options: Any) -> Any:
        """Runs the step as it is; its calls become a program when two recordings are alike."""
        staying = _staying(entry.state)
        if not entry.given_up and _are_among(values, staying):
            self._give_up(entry, f"an argument is a tensor that the step names, too ({_line_of(self.step)})")
        if entry.given_up:
            return self.step(*args, **options)
        recorder = StepRecorder(values, staying)
        result = self._recorded(recorder, args, options)
        before, entry.recorder = entry.recorder, recorder
        entry.recordings += 1
        if recorder.refusal is not None:
            self._give_up(entry, recorder.refusal)
        elif before is not None:
            difference = difference_of(before, recorder)
            if difference is None:
                entry.program = _assembled(recorder, len(values), self.__name__)
                self.source = entry.program.__doc__ or ""
            elif entry.recordings >= RECORDINGS:
                self._give_up(entry, f"its calls are not the same every time: {difference}")
        return result

    def _give_up(self, entry: _Entry, reason: str) -> None:
        entry.given_up, entry.recorder = True, None
        self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        before, self.reason = self.reason, reason
        if before is None:
            text = f"compile: {self.__name__} runs as it is: {reason} [docs: captured-steps]"
            file, _, line = users_line().rpartition(":")
            warnings.warn_explicit(text, RuntimeWarning, file, int(line))

    def _recorded(self, recorder: StepRecorder, args: Any, options: Any) -> Any:
        """The result of the step, whose calls a recorder writes."""
        before = self._left_alone(args, options)
        recorders[get_ident()] = recorder
        try:
            result = self.step(*_watched(args), **{name: _watched(x) for name, x in options.items()})
            _check(recorder, result)
            recorder.bare(f"return {recorder.of(result)}")
        finally:
            del recorders[get_ident()]
        recorder.finish()
        places = [x.place for x in recorder.tagged]
        for x in recorder.tagged:
            x.place = None
        after = self._left_alone(args, options)
        for x, place in zip(recorder.tagged, places, strict=True):
            x.place = place
        changed = [name for name, state in after.items() if state != before.get(name)]
        if changed and recorder.refusal is None:
            where = _line_of(self.step)
            recorder.refusal = f"the step changes {changed[0]}, which a program would not repeat ({where})"
        return result

    def _left_alone(self, args: Any, options: Any) -> dict[str, Any]:
        """What the step must leave as it is, by name."""
        assert self._reads is not None
        given = Fingerprint(None, [])
        given.add([*args, *options.values()])
        return {
            "an argument": (given.leaves, [*map(within, given.alive)]),
            "the mode or a number of a module": [*map(state_of, self._state.modules())],
            "set_grad_enabled": recording.get(),
            **self._reads.each(),
        }

    def _audit(self, entry: _Entry, values: Sequence[Any], args: Any, options: Any) -> Any:
        """Runs the step as it is and its program beside it; both must compute the same bits."""
        assert entry.recorder is not None
        staying = _staying(entry.state)
        if _are_among(values, staying):
            return self.step(*args, **options)
        audit = Audit(entry.recorder, values, staying)
        result = self._recorded(audit, args, options)
        difference = audit.refusal or audit.difference or difference_of(entry.recorder, audit)
        if difference is not None:
            raise RuntimeError(
                f"compile: the captured program of {self.__name__} is not what the step does in call "
                f"{entry.runs}: {difference}. SORIX_DIST_COMPILE=off runs the step as it is"
            )
        return result


class _Entry:
    """What is known of the step for one key."""

    def __init__(self, state: Fingerprint, alive: list[Any]) -> None:
        self.state = state
        self.alive = alive  # so that no other objects get their ids
        self.recorder: StepRecorder | None = None
        self.recordings = self.runs = 0
        self.like: Callable[[tuple[Any, ...]], bool] | None = None  # see `likeness`
        self.reads: Any = None  # for which it was made
        self.program: Callable[..., Any] | None = None
        self.given_up = False

    def abandon(self) -> None:
        """Ends an accumulation that an exception has cut off."""
        assert self.recorder is not None
        for thing in self.recorder.names.values():
            if getattr(thing, "accumulation", None) is not None:
                abandon(thing)


def _staying(state: Fingerprint) -> dict[int, str]:
    """By id the names of arrays and tensors that a program may mention: of modules, and those that the step names."""
    found: dict[int, str] = {}

    def add(name: str, value: Any, depth: int = 0) -> None:
        if isinstance(value, np.ndarray):
            found.setdefault(id(value), name)
        elif isinstance(value, Tensor):
            plain = name.removeprefix("module.").replace(".", "_")
            plain = f"layer_{plain}" if plain[0].isdigit() else plain
            if id(value) not in found:
                found[id(value)], found[id(value.array)] = f"{plain}_tensor", plain
        elif depth < 5:
            for entry in inside(value) or ():
                add(name, entry, depth + 1)

    for module in state.modules():  # the whole model before its layers
        for name, own in (*module.named_parameters(), *module.named_buffers(), *vars(module).items()):
            add(name, own)
    for thing in state.alive:
        if isinstance(thing, Tensor | np.ndarray):
            add("tensor", thing)
    return found


def _own(module: Module) -> list[Any]:
    return [module, *vars(module).values(), *(value for _, value in module.children_and_state())]


def _are_among(values: Sequence[Any], staying: dict[int, str]) -> bool:
    """Whether an argument is a tensor that the step names, too: in a recording one would be taken for the other."""
    return any(id(value) in staying or id(getattr(value, "array", value)) in staying for value in values)


def _watched(x: Any) -> Any:
    """Arguments whose NumPy arrays note that Python code reads their numbers."""
    if type(x) is tuple:
        return tuple(map(_watched, x))
    return x.view(Watched) if type(x) is np.ndarray else x


def _line_of(step: Any) -> str:
    code = getattr(getattr(step, "__func__", step), "__code__", None)
    return type(step).__name__ if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _check(recorder: StepRecorder, result: Any) -> None:
    """Refuses results that a program can't give: numbers that were read from somewhere, and graphs."""
    recorder.checked(result)
    if isinstance(result, float | int) and not isinstance(result, bool):
        recorder.refuse("the step returns a Python number: return the tensor, and call item() outside")
    elif isinstance(result, Tensor) and isinstance(result.origin, Node) and result.origin.rules is not None:
        recorder.refuse("the step returns a tensor that backward() could be called on: detach() it, or use no_grad()")
    elif isinstance(result, tuple | list | dict):
        if type(result) not in (tuple, list, dict):
            recorder.refuse(f"the step returns a {type(result).__name__}: return a tuple, list or dict")
        for value in result.values() if isinstance(result, dict) else result:
            _check(recorder, value)


_LINE = re.compile(r":\d+\)$")


def _text(recorder: StepRecorder, count: int) -> str:
    """The program: the lines of a recording, which forget what no later one needs."""
    text = [f"def step({', '.join(f'a{i}' for i in range(count))}):"]
    indent = "    "
    for line, made in zip(recorder.lines, forgotten(recorder.lines), strict=True):
        if line.startswith("except "):
            indent = "    "
        variable, equals, expression = line.partition(" = ")
        if equals and variable in made:  # a result that no line needs
            line = expression
            made = [name for name in made if name != variable or re.search(rf"\b{name}\b", line)]
        text.append(indent + line)
        if line == "try:":
            indent = "        "
            text.append(f"{indent}pass")
        if made and not line.startswith("return"):
            text.append(f"{indent}del {', '.join(made)}")
    return "\n".join(text) + "\n"


def _assembled(recorder: StepRecorder, count: int, name: str) -> Callable[..., Any]:
    """The program as a function, whose source tracebacks and profilers can show."""
    source = _text(recorder, count)
    file = f"<captured {name} {id(recorder):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {**recorder.names, "__name__": __name__}  # errors name the line that calls the step
    exec(builtins.compile(source, file, "exec"), names)
    names["step"].__doc__ = source
    program: Callable[..., Any] = names["step"]
    return program
