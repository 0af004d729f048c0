"""Python numbers that follow from a batch, such as x.shape[0]: what they are on this rank, and in the global batch.

As an index or a length they are plain numbers, those of this rank. Beside a tensor with a gradient or a placement, and
as a float, they count as on one process, so x.sum() / x.shape[0] is the mean over the global batch. What is only known
of this rank's rows, as mean.item() is, is refused there.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from numbers import Integral
from types import FrameType
from typing import Any

import numpy as np

from sorix_dist.core.calling_code import called
from sorix_dist.core.placement import SUM, Partial, Shard, Tally, current_group


class BatchNumber:
    """The base of BatchInt and BatchFloat. own: this rank's number; everywhere: the number in the global batch, or
    None if it is unknown; summed: whether own is a sum over all ranks, which must not be added up again; share: whether
    it is a part of such a sum that was divided by a global number, beside which x.shape[0] is global too."""

    own: float
    everywhere: float | None
    summed: bool
    share: bool

    def of_all(self) -> Any:
        """The number in the global batch; RuntimeError if it is unknown."""
        if self.everywhere is None:
            raise RuntimeError(
                "a number beside a tensor of the batch must be the same on every rank, and "
                f"{self.own} follows from this rank's rows alone, as item() of a mean over them and the length of "
                "what a mask has selected do: use the tensor itself, sx.global_value(x).item(), mask.sum() or "
                "sx.global_rows(xb) [docs: own-numbers]"
            )
        return self.everywhere

    def __float__(self) -> float:
        if self.everywhere is None:
            _warn_of_plain("float()", self.own)
            return float(self.own)
        _note_copy()
        return float(self.everywhere)

    def __int__(self) -> int:
        if self.everywhere is not None and self.everywhere != self.own:
            raise RuntimeError(
                f"{self.own} follows from x.shape[0] and is {self.everywhere} in the global batch: int() and NumPy's "
                "arrays of it would differ on every number of ranks. Use it as it is, sx.global_rows(x), or len(x) "
                "for this rank's rows [docs: own-numbers]"
            )
        if self.everywhere is None:
            _warn_of_plain("int()", self.own)
        else:
            _note_copy()
        return int(self.own)

    __trunc__ = __int__

    def __neg__(self) -> Any:
        return _of_several(operator.neg, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return _of_several(abs, self)

    def __round__(self, digits: Any = None) -> Any:
        return _of_several(lambda x: round(x, digits), self)

    def __floor__(self) -> Any:
        return _of_several(math.floor, self)

    def __ceil__(self) -> Any:
        return _of_several(math.ceil, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Arrays hold this rank's data, so an integer beside an array is this rank's as well."""
        numbers = method == "__call__" and not options
        if not numbers or any(isinstance(x, np.ndarray) and x.ndim for x in inputs):
            plain = [float(x) if isinstance(x, BatchFloat) else here(x) for x in inputs]
            return getattr(function, method)(*plain, **options)
        plain = [x.item() if isinstance(x, np.generic | np.ndarray) else x for x in inputs]
        return _of_several(lambda *values: function(*values).item(), *plain)

    def __reduce__(self) -> Any:
        if self.summed:
            current_group().note_copy()
        return type(self.own), (self.own,)


class BatchInt(BatchNumber):
    """An integer. As an index, a length and text it is this rank's number. It is in order with others as that of the
    global batch, so that a branch is the same on every rank, and equal to both.

    It does not subclass int: `2.0 * n` would then read this rank's digits without calling `__rmul__`.
    shard: the rows that it counts, if it counts rows.
    """

    own: int
    shard: Shard | None

    def __index__(self) -> int:
        if self.shard is not None:
            self.shard.group.measured = self.own, self.everywhere
        if self.own != self.everywhere:
            _refuse_call(self.own, self.everywhere, sys._getframe(1))  # functions written in C have no frames
        return self.own

    def __bool__(self) -> bool:
        if self.everywhere is None:
            _warn_of_own_branch(self.own)
        return (self.own if self.everywhere is None else self.everywhere) != 0

    def __hash__(self) -> int:
        return hash(self.own)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(int(self), dtype)

    def __repr__(self) -> str:
        return repr(self.own)

    def __format__(self, form: str) -> str:
        whole = self.own if self.everywhere is None else self.everywhere
        return format(whole if form[-1:] in (*"eEfFgG%",) else self.own, form)

    def __getattr__(self, name: str) -> Any:
        """What else an int has, as bit_length(), where the number is the same on every rank."""
        if name.startswith("__") or not hasattr(int, name):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(int(self), name)

    def __call__(self) -> BatchInt:
        """The number itself, for `x.numel()`."""
        return self


Integral.register(BatchInt)


class WholeInt(BatchInt, int):
    """That of a single process, which has all rows: an int, as np.random.permutation(x.shape[0]) demands."""

    def __init__(self, value: Any = 0) -> None:
        self.own = self.everywhere = int.__int__(self)
        self.shard, self.summed, self.share = None, False, False


class BatchFloat(BatchNumber, float):
    """A float. As text, in comparisons, beside arrays and for `math` it is the number in the global batch."""

    def __repr__(self) -> str:
        return repr(self._shown())

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        return format(self._shown(), form)

    def _shown(self) -> float:
        if self.everywhere is None:
            current_group().warn(
                "text shows a number of this rank's rows alone, as item() of a loss is before its backward(): item() "
                "after it, and sx.global_value(x).item(), are numbers of the global batch [docs: own-numbers]"
            )
        return float.__float__(self)


def _is_users() -> bool:
    """Whether a program calls float() or int(), and not this package, such as a Recorder."""
    return not sys._getframe(3).f_globals.get("__name__", "").startswith("sorix_dist.")


def _note_copy() -> None:
    """Notes that a program has a plain number of the global batch from here on. Text is none."""
    if _is_users():
        current_group().note_copy()


def _warn_of_plain(call: str, own: float) -> None:
    if _is_users():
        current_group().warn(
            f"{call} of {own}, which follows from this rank's rows alone, as the length of what a mask has selected "
            "does: sx.global_value(x) and mask.sum() are those of the global batch [docs: own-numbers]"
        )


def number(
    here: Any, everywhere: float | None, shard: Shard | None = None, summed: bool = False, share: bool = False
) -> Any:
    """A number that is `here` on this rank, and `everywhere` in the global batch."""
    if here.__class__ is bool and everywhere is not None:
        return bool(everywhere)
    integer = (lambda: WholeInt(here)) if here == everywhere and current_group().single else BatchInt
    made: Any = integer() if isinstance(here, int) else BatchFloat(here if everywhere is None else everywhere)
    made.own, made.everywhere, made.shard, made.summed, made.share = here, everywhere, shard, summed, share
    return made


# -- arithmetic


def _of_several(function: Callable[..., Any], *numbers: Any) -> Any:
    if not all(isinstance(n, int | float | BatchNumber) for n in numbers):
        return NotImplemented
    totals = [n.everywhere if isinstance(n, BatchNumber) else n for n in numbers]
    everywhere = None if None in totals else function(*totals)
    summed, share = (any(getattr(n, flag, False) for n in numbers) for flag in ("summed", "share"))
    own = [total if share and total is not None else here(n) for n, total in zip(numbers, totals, strict=True)]
    try:
        return number(function(*own), everywhere, None, summed, share)
    except ZeroDivisionError:  # on a rank without rows
        return number(everywhere if isinstance(everywhere, int) else math.nan, everywhere, None, summed, share)


def _bind(name: str) -> None:
    function = getattr(operator, name)

    def method(self: BatchNumber, other: Any, *modulo: int) -> Any:
        return _of_several(partial(pow, mod=modulo[0]) if modulo else function, self, other)

    def reflected(self: BatchNumber, other: Any) -> Any:
        return _of_several(function, other, self)

    for kind in (BatchInt, BatchFloat):
        setattr(kind, f"__{name.strip('_')}__", method)
        setattr(kind, f"__r{name.strip('_')}__", reflected)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"):
    _bind(_name)


def _bind_comparison(name: str) -> None:
    function = getattr(operator, name)

    def method(self: BatchNumber, other: Any) -> Any:
        if not isinstance(other, int | float | BatchNumber | np.generic):
            return NotImplemented
        own = function(self.own, here(other))
        if self.everywhere is None or (isinstance(other, BatchNumber) and other.everywhere is None):
            if name not in ("eq", "ne"):
                _warn_of_own_branch(self.own)
            return own
        whole = function(self.everywhere, other.everywhere if isinstance(other, BatchNumber) else other)
        # It is as long as an array of this rank, whose length is a plain integer, and as the batch.
        if isinstance(self, BatchInt) and own != whole and not isinstance(other, BatchNumber):
            return name == "eq" if name in ("eq", "ne") else whole
        return whole

    for kind in (BatchInt, BatchFloat):
        setattr(kind, f"__{name}__", method)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _bind_comparison(_name)
BatchFloat.__hash__ = float.__hash__  # type: ignore[method-assign]


# -- of tensors


def shape_of_rows(shape: tuple[int, ...], place: Shard) -> list[int]:
    """The shape of a tensor that is rows of a batch, with a BatchInt for their axis."""
    sizes = [*shape]
    sizes[place.axis] = number(sizes[place.axis], _total(place), place)
    return sizes


def count_of(shape: tuple[int, ...], place: Any) -> BatchInt:
    """The number of elements of a tensor."""
    everywhere: int | None = math.prod(shape)
    if isinstance(place, Shard):
        total, each = _total(place), math.prod(n for i, n in enumerate(shape) if i != place.axis)
        everywhere = None if total is None else each * total
    return number(math.prod(shape), everywhere)  # type: ignore[no-any-return]


def number_of_part(value: Any, place: Any) -> Any:
    """The number that a Partial shows, which is this rank's. In a forward of reproducible mode it is that of a virtual
    shard, the same on any number of ranks."""
    if isinstance(place, Partial) and place.group.ordered and not place.group.single and place.denominator == SUM:
        return number(value, value, None, True)
    if isinstance(place, Tally):
        own = place.own.item() if place.known and place.own is not None else value
        return number(own, value if place.known else None, None, place.own is None)
    own = isinstance(place, Partial) and place.group.parts > 1 and not place.group.isolated
    share = own and place.denominator == SUM and bool(place.constants)
    return number(value, None, share=share) if own and value.__class__ in (int, float) else value


def _total(place: Shard) -> int | None:
    return place.total if place.batch.known is not None or place.group.single else None


def _warn_of_own_branch(own: float) -> None:
    current_group().warn(
        f"a branch on {own}, which follows from this rank's rows alone, may differ on every rank: compare the tensor "
        "itself, or sx.global_value(x).item() [docs: own-numbers]"
    )


_COUNTING = frozenset(("comb", "factorial", "gcd", "isqrt", "lcm", "perm"))  # functions of `math` that take integers
DRAWING = frozenset((
    "beta", "binomial", "choice", "exponential", "gamma", "integers", "laplace", "multivariate_normal", "normal",
    "permutation", "poisson", "rand", "randint", "randn", "random", "random_sample", "standard_normal", "uniform",
))  # fmt: skip
"""Functions of NumPy that draw random numbers."""


def _refuse_call(own: int, everywhere: float | None, caller: FrameType) -> None:
    """RuntimeError for this rank's number as the argument of a function that counts with it, or draws as many random
    numbers."""
    if name := called(caller, _COUNTING):
        raise RuntimeError(
            f"math.{name} would count with {own}, which follows from this rank's rows and is {everywhere} "
            "in the global batch: give it sx.global_rows(x) [docs: own-numbers]"
        )
    if name := called(caller, DRAWING):
        raise RuntimeError(f"{name}: {others_draw(own, everywhere)}")


def others_draw(own: int, everywhere: float | None) -> str:
    """The text on random numbers that NumPy draws for the rows of this rank."""
    return (
        f"random numbers for the {own} rows of this rank, of {everywhere} in the global batch, would be others on "
        "every number of ranks: sx.randn_like(x), sx.randn(x.shape[0], 3), sx.rand and sx.randint draw by the row's "
        "number in the global batch [docs: own-numbers]"
    )


# -- as arguments of functions


def is_just(x: Any, number: float) -> bool:
    """Whether an argument is this number, and not one that follows from a batch and may equal it on one rank only."""
    return not isinstance(x, BatchNumber) and x == number


of_batch: ContextVar[bool] = ContextVar("of_batch", default=False)
"""Whether a number that an operation gets follows from a batch, and so is that of the global one."""


def here(x: Any) -> Any:
    """A number as that of this rank."""
    return x.own if isinstance(x, BatchNumber) else x


def of_all(x: Any) -> Any:
    """A number as that of the global batch, also within a slice or a list."""
    if isinstance(x, slice):
        return slice(of_all(x.start), of_all(x.stop), of_all(x.step))
    if isinstance(x, tuple | list):
        return type(x)(map(of_all, x))
    return x.of_all() if isinstance(x, BatchNumber) else x


def is_of_batch(x: Any) -> bool:
    """Whether a number, or one of a slice, follows from a batch."""
    return isinstance(x, BatchNumber) or (
        x.__class__ is slice and (isinstance(x.start, BatchNumber) or isinstance(x.stop, BatchNumber))
    )


def sized(size: Iterable[Any]) -> tuple[list[Any], Shard | None]:
    """The size of a new tensor, with the first x.shape[0] of rows x as this rank's number, and a second one as that of
    the global batch; and the tensor's rows, if there is such a number, of pairs if there are two."""
    size = list(size)
    found = [i for i, n in enumerate(size) if isinstance(n, BatchInt) and n.shard is not None]
    if not found:
        return size, None
    axis = found[0]
    rows: Shard = size[axis].shard
    own = [*size[: axis + 1], *map(of_all, size[axis + 1 :])]
    return own, rows.moved(axis) if len(found) == 1 else rows.batch.at(axis, pairs=True)
