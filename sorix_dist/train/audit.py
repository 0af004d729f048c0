"""Audits of captured steps: the step runs as it is, and beside it its program computes the same from its own values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import numpy as np

from sorix_dist.core.batch_numbers import BatchNumber
from sorix_dist.core.capture import NOTHING, PLAIN, StepRecorder
from sorix_dist.core.graph import Node
from sorix_dist.core.placement import Partial

_PARTS = {BatchNumber: ("own", "everywhere"), Partial: Partial.__slots__, Node: ("shard",)}  # visitors read that only
_VARIABLE = re.compile(r"\b[tr]\d+\b")


class Audit(StepRecorder):
    """Records a run of the step, and runs each line of its program as soon as the step has come to it.

    Lines that do more than compute (collectives, deposits, optimizers) run in the step only; the program goes on with
    what they gave. difference: the first line that gives other bits, or None.
    """

    def __init__(self, program: StepRecorder, arguments: Sequence[Any], staying: Mapping[int, str]) -> None:
        super().__init__(arguments, staying)
        self.difference: str | None = None
        self._expected = zip(program.lines, forgotten(program.lines), strict=True)
        self._values = {**program.names, **{f"a{i}": value for i, value in enumerate(arguments)}}
        self._impure: set[str] = set()  # rules that may be collectives

    def bare(self, line: str, made: Mapping[str, Any] = NOTHING, pure: bool = False) -> None:
        super().bare(line)
        expected, done = next(self._expected, ("", []))
        if self.difference is not None or line != expected:
            self.difference = self.difference or ""  # which `difference_of` says
            return
        values = self._values
        if pure and self._impure.isdisjoint(_VARIABLE.findall(line)):
            with self.pause():  # the program calls recorded functions, such as detach
                exec(line, values)
            if not all(_same_bits(values[name], theirs) for name, theirs in made.items()):
                self.difference = f"`{line}` gives other numbers than the step at {self.wheres[-1]}"
        else:
            values.update(made)
            self._impure.update(name for name in made if name[0] == "r")
        for name in done:
            values.pop(name, None)


def forgotten(lines: Sequence[str]) -> list[list[str]]:
    """For each line of a program the variables that no later line needs."""
    last = {name: i for i, line in enumerate(lines) for name in _VARIABLE.findall(line)}
    names = [dict.fromkeys(_VARIABLE.findall(line)) for line in lines]
    return [[name for name in of_line if last[name] == i] for i, of_line in enumerate(names)]


def difference_of(one: StepRecorder, other: StepRecorder) -> str | None:
    """How the second of two recordings differs from the first, None if it does not."""
    for line, now, where in zip(one.lines, other.lines, other.wheres):
        if line != now:
            return f"`{line}` was `{now}` at {where}"
    if len(one.lines) != len(other.lines):
        return f"{len(one.lines)} calls became {len(other.lines)}"
    for name, thing in one.names.items():
        same = _same_bits if name in one.kept else _same
        if not same(thing, other.names.get(name)):
            at = next((i for i, text in enumerate(other.lines) if re.search(rf"\b{name}\b", text)), 0)
            return f"`{name}` is another one in `{other.lines[at]}` at {other.wheres[at]}"
    return None


def _same_bits(ours: Any, theirs: Any) -> bool:
    """Whether two results are the same; what is no array, such as the rules of an operation, counts as the same."""
    if isinstance(theirs, tuple | list) and isinstance(ours, tuple | list):
        return all(map(_same_bits, ours, theirs))
    if not isinstance(theirs, np.ndarray | np.generic):
        return True
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    alike = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return alike and (ours is theirs or ours.tobytes() == theirs.tobytes())


def _same(one: Any, other: Any) -> bool:
    """Whether two objects in recordings of a step are equivalent."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (*PLAIN, float)):
        return bool(one == other) or (one != one and other != other)
    names: Any = next((names for kind, names in _PARTS.items() if isinstance(one, kind)), ())
    if names or is_dataclass(one):
        names = names or [field.name for field in fields(one)]
        return all(_same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, FunctionType):
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (one, other)]
        return one.__code__ is other.__code__ and _same(tuple(cells[0]), tuple(cells[1]))
    return False
