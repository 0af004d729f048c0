"""Tensors of numbers that follow from a batch, as counts that a program keeps by hand: `total += y.size(0)`.

They are to tensors what `core.batch_numbers` is to Python numbers: this rank's numbers and those of the global batch.
A sum over ranks takes this rank's; beside everything else the numbers count as on one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core.batch_numbers import BatchNumber, here, number, of_all, of_batch
from sorix_dist.core.capture import outside
from sorix_dist.core.deferred import deferred
from sorix_dist.core.placement import REPLICATE, SUM, Array, Deferred, Partial, Tally, current_group, tagged
from sorix_dist.core.rules import whole
from sorix_dist.core.tensor import Tensor, array_of


def is_tally(x: Any) -> bool:
    """Whether x is a Tally, or a number that makes one of a tensor that it is written to."""
    if isinstance(x, Tensor):
        return x.place.__class__ is Tally
    return isinstance(x, BatchNumber) and not current_group().single


def is_counted(inputs: Sequence[Any]) -> bool:
    """Whether a number beside these operands is that of the global batch."""
    return any(
        isinstance(x, Tensor) and (x.origin is not None or (x.place is not None and x.place.__class__ is not Tally))
        for x in inputs
    )


def of_everyone(x: Any) -> Any:
    """An operand as its numbers in the global batch; RuntimeError if they are unknown."""
    if not isinstance(x, Tensor) or x.place.__class__ is not Tally:
        return of_all(x)
    return tagged(Tensor.of(x.array), REPLICATE) if _is_known(x) else number(x.array.flat[0].item(), None).of_all()


def _is_known(x: Any) -> bool:
    if isinstance(x, BatchNumber):
        return x.everywhere is not None
    place = x.place if isinstance(x, Tensor) else None
    return not isinstance(place, Tally) or place.known


def _own(x: Any) -> Any:
    """An operand as this rank's numbers; None if they are unknown."""
    if isinstance(x, BatchNumber):
        return None if x.summed else x.own
    if not isinstance(x, Tensor) or x.place is None:
        return x
    return Tensor.of(x.place.own) if isinstance(x.place, Tally) and x.place.own is not None else None


def of_sum(x: Any, name: str) -> Any:
    """A sum over rows as a Tally of this rank's part and of the whole. A call of all ranks; other operands stay."""
    place = x.place if isinstance(x, Tensor) else None
    if not isinstance(place, Partial) or place.denominator != SUM or place.group.parts == 1 or hasattr(x, "complete"):
        return x
    if place.group.isolated or place.factor != 1:
        return x
    return tagged(Tensor.of(whole(x.detach(), name).array), Tally(x.array, True))


def tallied(apply: Callable[..., Tensor], inputs: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Applies an operation where an operand is a Tally or a number of the batch. Without rows, sums or gradients among
    the operands, the result is a Tally. Where one waits for the end of a forward, the operation does."""
    if any(isinstance(x, Tensor) and x.place.__class__ is Deferred for x in inputs):
        return deferred(apply, inputs, options)
    counted = is_counted(inputs)
    if current_group().single or counted:
        convert = of_everyone if counted or all(map(_is_known, inputs)) else here
        token = of_batch.set(True)
        try:
            return apply(*map(convert, inputs), **options)
        finally:
            of_batch.reset(token)
    outside("numbers that follow from a batch, as counts that are kept by hand, can't be captured on several ranks")
    return tally_of(inputs, lambda operands: apply(*operands, **options))


def tally_of(inputs: Sequence[Any], make: Callable[[list[Any]], Tensor]) -> Tensor:
    """What `make` makes of operands, once of this rank's numbers and once of those of the global batch."""
    own = [*map(_own, inputs)]
    unknown = any(mine is None is not x for mine, x in zip(own, inputs, strict=True))
    known = all(map(_is_known, inputs))
    if unknown and not known:
        return make([*map(of_everyone, inputs)])  # raises
    mine = None if unknown else make(own).array
    if not known:
        assert mine is not None
        return tagged(Tensor.of(mine), Tally(mine, False))
    global_ones = [Tensor.of(x.array) if isinstance(x, Tensor) else of_all(x) for x in inputs]
    return tagged(make(global_ones), Tally(mine, True))


def write(target: Tensor, key: Any, value: Any) -> None:
    """target[key] = value, where one of both is a Tally or value is a number. A target that is written as a whole
    forgets what it was."""
    if key is ... or (key.__class__ is slice and key == slice(None)):
        target.place = REPLICATE if getattr(value, "place", None) is REPLICATE else None
        if not is_tally(value):
            target.array[key] = array_of(value)
            return
    own: Array | None = None
    base, mine = _own(target), _own(value)
    if base is not None and mine is not None:
        own = np.array(base.array)
        own[key] = array_of(mine)
    known = _is_known(target) and _is_known(value)
    if known:
        value = of_everyone(value)
        target.array[key] = array_of(value)
    elif own is None:
        of_everyone(value)
        of_everyone(target)
    else:
        np.copyto(target.array, own)  # views of the target see it
    if target.place is not REPLICATE:
        target.place = Tally(own, known)
