"""What the caller of a function does with its result, which only the bytecode of the caller tells.

The names of instructions are those of Python 3.11 to 3.14. What is unknown counts as the harmless answer, no.
"""

from __future__ import annotations

from dis import Instruction, get_instructions, hasjabs, hasjrel, opname, stack_effect
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any


def is_import(caller: FrameType) -> bool:
    """Whether the caller asks for a name by `from module import name`, rather than by `module.name`."""
    return _instruction(caller) == "IMPORT_FROM"


def is_loop(caller: FrameType) -> bool:
    """Whether the caller runs a `for` loop, also through enumerate or zip, rather than `next`."""
    return _instruction(caller) == "FOR_ITER"


def is_operand(caller: FrameType) -> bool:
    """Whether the result is an operand of arithmetic, of `<` or of a function such as `math.log`, or a variable that
    counts as one further below; and not another argument or an index."""
    return _is_operand(caller.f_code, caller.f_lasti)


def is_kept_in_a_list(caller: FrameType) -> bool:
    """Whether the result of a call is appended to a list, by `append` or in a comprehension."""
    return _is_kept_in_a_list(caller.f_code, caller.f_lasti)


def is_shown(caller: FrameType) -> bool:
    """Whether the result is formatted by `%`, alone or in a tuple."""
    return _is_shown(caller.f_code, caller.f_lasti)


def is_argument(caller: FrameType, names: frozenset[str]) -> bool:
    """Whether the result, or a variable that takes it, stands among the arguments of one of these functions."""
    return not names.isdisjoint(caller.f_code.co_names) and _is_argument(caller.f_code, caller.f_lasti, names)


def called(caller: FrameType, names: frozenset[str]) -> str | None:
    """Which of these functions, which have no frame since they are written in C, the caller is calling."""
    if names.isdisjoint(caller.f_code.co_names):
        return None
    return next((name for name in reversed(_called(caller.f_code, caller.f_lasti)) if name in names), None)


def _called(code: CodeType, at: int) -> list[str]:
    """The names in the expression of a function, such as `math.log`, that the instruction at `at` calls, in order."""
    steps = [step for step in get_instructions(code) if step.positions]
    # The instructions that find a function begin where its call begins.
    begins = {_begin(step) for step in steps if step.offset == at}
    found = (step.argval for step in steps if _begin(step) in begins and step.offset <= at)
    return [name for name in found if isinstance(name, str)]


def _instruction(caller: FrameType) -> str:
    """The name of the instruction that the caller is at."""
    code, at = caller.f_code.co_code, caller.f_lasti
    while opname[code[at]] == "CACHE":  # which follows it: there Python 3.12 is, once a loop over a generator is warm
        at -= 2
    return opname[code[at]]


_OF_NUMBERS = frozenset(("exp", "log", "log10", "log1p", "log2", "pow", "sqrt"))
_THAT_KEEP = frozenset(("abs", "float", "int", "max", "min", "round"))


@lru_cache(maxsize=1024)
def _is_operand(code: CodeType, at: int) -> bool:
    """Follows the height of the stack up to the instruction that takes the result."""
    height, steps = 1, iter(_after(code, at))
    for now in steps:
        if now.opname == "BINARY_OP" and height <= 2:
            return now.argrepr != "[]"  # Python 3.14 indexes by this instruction
        if now.opname == "COMPARE_OP" and height <= 2:
            return "<" in now.argrepr or ">" in now.argrepr
        if now.opname in ("CALL", "PRECALL") and (now.arg or 0) >= height:
            names = _called(code, now.offset)
            if _THAT_KEEP.isdisjoint(names):
                return not _OF_NUMBERS.isdisjoint(names)
            height = 1  # of the result
            if now.opname == "PRECALL":  # of Python 3.11, before CALL
                next(steps)
            continue
        if height == 1 and now.opname.startswith(("STORE_FAST", "STORE_NAME", "STORE_DEREF")):
            return _divides_or_weighs(code, _variables(now.argval)[0])
        collects = now.opname.startswith("BUILD_") and (now.arg or 0) >= height
        height += stack_effect(now.opcode, now.arg)
        if collects or height < 1 or now.opcode in hasjrel or now.opcode in hasjabs:
            return False
    return False


def _variables(argument: Any) -> tuple[Any, ...]:
    """The variables of an instruction; one of Python 3.13 may load or store two."""
    return argument if isinstance(argument, tuple) and argument else (argument,)


def _divides_or_weighs(code: CodeType, name: str) -> bool:
    """Whether a variable divides something, as in `x.sum() / n`, or is a factor of what a call returns, as in
    `loss.item() * n`. Other arithmetic, such as `n * heads` and `n - 1`, is mostly for lengths and indices."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType) and name in c.co_freevars)
    steps = [step for function in (code, *inner) for step in get_instructions(function)]
    uses = zip(steps, steps[1:], steps[2:], strict=False)
    return any(
        now.opname.startswith("LOAD_")
        and _variables(now.argval)[-1] == name
        and after.opname == "BINARY_OP"
        and (after.argrepr in ("/", "/=") or (after.argrepr == "*" and before.opname == "CALL"))
        for before, now, after in uses
    )


@lru_cache(maxsize=1024)
def _is_kept_in_a_list(code: CodeType, at: int) -> bool:
    now = next(i for i in _after(code, at) if i.opname != "PRECALL")
    if (now.opname, now.arg) != ("CALL", 1):
        return now.opname == "LIST_APPEND"
    line = now.positions and now.positions.lineno
    return any(
        i.argval == "append" and i.positions and i.positions.lineno == line and i.offset < at
        for i in get_instructions(code)
    )


@lru_cache(maxsize=1024)
def _is_shown(code: CodeType, at: int) -> bool:
    height = 1
    for now in _after(code, at):
        if now.opname == "BINARY_OP":
            return now.argrepr in ("%", "%=") and height == 1
        if now.opname == "BUILD_TUPLE" and (now.arg or 0) >= height:
            height = 1
            continue
        height += stack_effect(now.opcode, now.arg)
        if height < 1 or now.opcode in hasjrel or now.opcode in hasjabs:
            return False
    return False


@lru_cache(maxsize=1024)
def _is_argument(code: CodeType, at: int, names: frozenset[str]) -> bool:
    steps = [step for step in get_instructions(code) if step.positions and None not in step.positions]
    begins = {_begin(step) for step in steps if step.argval in names}
    ranges = [(_begin(step), _end(step)) for step in steps if "CALL" in step.opname and _begin(step) in begins]
    result = [step for step in steps if step.offset == at]
    stored = next(iter(_after(code, at)), None)
    if stored is not None and stored.opname.startswith(("STORE_FAST", "STORE_NAME", "STORE_DEREF")):
        name = _variables(stored.argval)[0]
        result = [s for s in steps if s.opname.startswith("LOAD_") and name in _variables(s.argval)]
    return any(begin < _begin(step) and _end(step) < end for step in result for begin, end in ranges)


def _begin(step: Instruction) -> Any:
    """The line and the column where the source of an instruction begins."""
    return step.positions and (step.positions.lineno, step.positions.col_offset)


def _end(step: Instruction) -> Any:
    return step.positions and (step.positions.end_lineno, step.positions.end_col_offset)


def _after(code: CodeType, at: int) -> list[Instruction]:
    """The instructions after the call at `at`, whose offset may be that of PRECALL in Python 3.11."""
    instructions = [*get_instructions(code)]
    here = max(i for i, now in enumerate(instructions) if now.offset <= at)
    return instructions[here + 1 + (instructions[here].opname == "PRECALL") :]
