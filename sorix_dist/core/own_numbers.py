"""Numbers that Python gets of this rank's rows alone, though the program means all rows: warnings, and a refusal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dis import Instruction, get_instructions, hasjabs, hasjrel, stack_effect
from functools import lru_cache
from types import CodeType
from typing import Any

from sorix_dist.core.batch_numbers import called_at, of_batch
from sorix_dist.core.placement import SUM, Deferred, Partial, Shard, current_group, refuse_value


def warn_of_own_length(place: Any) -> None:
    """Warns of the length of what a mask has selected of this rank's rows, and of arithmetic with that of its rows."""
    if not isinstance(place, Shard) or place.axis or place.group.single:
        return
    if place.batch.parent is not None:
        place.group.warn(
            "len() of what a mask has selected counts this rank's rows: mask.sum() is the number in the global batch "
            "[docs: own-numbers]"
        )
        return
    place.group.measured = place.held, place.total
    caller = sys._getframe(2)  # len() has no frame
    if place.held != place.total and _is_operand(caller.f_code, caller.f_lasti):
        place.group.warn(
            f"len() counts this rank's rows, {place.held} of the {place.total} of the global batch: x.size(0) counts "
            "all of them beside losses and tensors of the batch, and sx.global_rows(x) everywhere [docs: own-numbers]"
        )


_OF_NUMBERS = frozenset(("exp", "log", "log10", "log1p", "log2", "pow", "sqrt"))
_THAT_KEEP = frozenset(("abs", "float", "int", "max", "min", "round"))


@lru_cache(maxsize=1024)
def _is_operand(code: CodeType, at: int) -> bool:
    """Whether the instruction at `at` computes an operand of arithmetic, of `<` or of a function such as `math.log`, or
    a variable that counts as one below; and not another argument or an index. It follows the height of the stack up to
    the instruction that takes the operand."""
    height, steps = 1, iter(_after(code, at))
    for now in steps:
        if now.opname == "BINARY_OP" and height <= 2:
            return now.argrepr != "[]"  # Python 3.14 indexes by this instruction
        if now.opname == "COMPARE_OP" and height <= 2:
            return "<" in now.argrepr or ">" in now.argrepr
        if now.opname in ("CALL", "PRECALL") and (now.arg or 0) >= height:
            called = called_at(code, now.offset)
            if not called & _THAT_KEEP:
                return bool(called & _OF_NUMBERS)
            height = 1  # of the result
            if now.opname == "PRECALL":  # of Python 3.11, before CALL
                next(steps)
            continue
        if height == 1 and now.opname.startswith(("STORE_FAST", "STORE_NAME", "STORE_DEREF")):
            return _divides_or_weighs(code, _names(now.argval)[0])
        collects = now.opname.startswith("BUILD_") and (now.arg or 0) >= height
        height += stack_effect(now.opcode, now.arg)
        if collects or height < 1 or now.opcode in hasjrel or now.opcode in hasjabs:
            return False
    return False


def _names(argument: Any) -> tuple[Any, ...]:
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
        and _names(now.argval)[-1] == name
        and after.opname == "BINARY_OP"
        and (after.argrepr in ("/", "/=") or (after.argrepr == "*" and before.opname == "CALL"))
        for before, now, after in uses
    )


@lru_cache(maxsize=1024)
def _is_kept(code: CodeType, at: int) -> bool:
    """Whether the result of the call at `at` is appended to a list. The mean of such a list is a plain number."""
    now = next(i for i in _after(code, at) if i.opname != "PRECALL")
    if (now.opname, now.arg) != ("CALL", 1):
        return now.opname == "LIST_APPEND"
    line = now.positions and now.positions.lineno
    return any(
        i.argval == "append" and i.positions and i.positions.lineno == line and i.offset < at
        for i in get_instructions(code)
    )


def _after(code: CodeType, at: int) -> list[Instruction]:
    """The instructions after the call at `at`, whose offset may be that of PRECALL in Python 3.11."""
    instructions = [*get_instructions(code)]
    here = max(i for i, now in enumerate(instructions) if now.offset <= at)
    return instructions[here + 1 + (instructions[here].opname == "PRECALL") :]


def warn_of_own_positions(shape: tuple[int, ...], parts: Iterable[Any]) -> None:
    """Warns of positions in what has the rows of all ranks, if they may follow from this rank's number of rows."""
    group = current_group()
    if group.measured is None or group.single:
        return
    own, total = group.measured
    if own != total and any(n == total and _may_follow(part, own) for n, part in zip(shape, parts, strict=False)):
        group.warn(
            f"positions among the {total} rows of all ranks, after len(x) or range(x.shape[0]) has given this rank's "
            f"number of rows, {own}: if they follow from it, use sx.global_rows(x) [docs: own-numbers]"
        )


def _may_follow(part: Any, own: int) -> bool:
    """Whether a part of an index is that of the first rows, or of the last ones of a loop over this rank's rows."""
    if not isinstance(part, slice):
        return isinstance(part, int) and own > 1 and part == own - 1
    start, stop = part.start or 0, part.stop
    if not isinstance(start, int) or not isinstance(stop, int):
        return stop is None and start == own - 1 > 0
    return start == 0 or start < own <= stop


def warn_of_own_divisor(place: Partial, divisor: Any) -> None:
    """Warns of a sum over rows that is divided by the number of rows of this rank, unless that is x.shape[0]."""
    own = place.denominator == SUM and isinstance(divisor, int | float) and divisor == place.held
    if own and not place.group.single and not of_batch.get():
        place.group.warn(
            f"a sum over the rows of all ranks is divided by {divisor}, the number of rows of this rank. The mean over "
            "the global batch is .mean(); its number of rows is sx.global_rows(xb) [docs: own-numbers]"
        )


def refuse_one_of_many(tensor: Any) -> None:
    """ValueError for the only row of this rank if there are others."""
    place = tensor.place
    if isinstance(place, Deferred):
        refuse_value(place, tensor.array, "the number of a tensor")
    if isinstance(place, Shard):
        one = tensor.array.size == 1 and not place.group.single and place.batch.known is not None
        if one and place.total != 1:
            raise ValueError(
                f"this rank has one of the {place.total} rows of the batch, so its number differs on every number of "
                "ranks: sx.global_value(x) gives all rows [docs: own-numbers]"
            )


def warn_of_part(tensor: Any, what: str) -> None:
    """Warns that what Python gets of a sum over rows, or of a mean without a gradient such as a statistic, is this
    rank's."""
    place = tensor.place
    if isinstance(place, Deferred):
        refuse_value(place, tensor.array, what)
    if not isinstance(place, Partial) or place.group.parts == 1 or place.group.isolated or hasattr(tensor, "complete"):
        return
    if place.denominator == SUM:
        found = "a sum over rows is this rank's part of the sum"
    elif what != "item()":
        found = "a mean over rows is that over this rank's rows"
    elif what == "item()" and _is_kept((caller := sys._getframe(3)).f_code, caller.f_lasti):  # of item(), _number()
        found = "a mean over rows, kept in a list before its backward(), is that over this rank's rows"
    else:
        return
    place.group.warn(f"{what} of {found}: sx.global_value(x) is that over the global batch [docs: own-numbers]")
