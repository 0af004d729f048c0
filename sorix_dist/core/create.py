"""New tensors: of one value, of a range, of random numbers, or around what exists.

All take `device` (only "cpu"), `requires_grad` and `dtype`. Without a dtype, floats are float32 and integers
int64. Random numbers come from the stream that `manual_seed` starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sorix_dist.core import random
from sorix_dist.core.arguments import named, raise_for_device
from sorix_dist.core.batch_numbers import is_of_batch, of_all, sized
from sorix_dist.core.capture import host
from sorix_dist.core.dtype import as_dtype, or_float32
from sorix_dist.core.ops.shape import sizes_of
from sorix_dist.core.placement import REPLICATE, Placement, Shard, shard_of, tagged
from sorix_dist.core.rules import whole
from sorix_dist.core.tally import is_tally, of_sum, tally_of
from sorix_dist.core.tensor import Array, Tensor, as_array, shape_of

__all__ = [
    "tensor", "as_tensor", "from_numpy", "from_dlpack", "zeros", "ones", "empty", "full", "eye", "arange", "linspace",
    "logspace", "rand", "randn", "randint", "randperm", "zeros_like", "ones_like", "empty_like", "full_like",
    "rand_like", "randn_like", "bernoulli", "FloatTensor", "DoubleTensor", "LongTensor", "IntTensor", "ByteTensor",
    "BoolTensor",
]  # fmt: skip


@host
def tensor(data: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A tensor of `data`; see `Tensor`. A copy of rows of a batch is rows too."""
    rows = shard_of(data)
    one = not isinstance(data, list | tuple)
    numbers = [_of_all_ranks(of_sum(x, _NUMBER)) if rows is None else x for x in ([data] if one else data)]
    if any(map(is_tally, numbers)) and not requires_grad:
        return tally_of(numbers, lambda found: Tensor(found[0] if one else found, device=device, dtype=dtype))
    place = REPLICATE if any(map(is_of_batch, numbers)) else rows
    numbers = [of_all(x) for x in numbers]
    made = Tensor(numbers[0] if one else numbers, device=device, requires_grad=requires_grad, dtype=dtype)
    return made if place is None else tagged(made, place)


_NUMBER = "a number for a new tensor"


def _of(name: str, dtype: str) -> Callable[..., Tensor]:
    def make(*data: Any) -> Tensor:
        if len(data) != 1 or isinstance(data[0], int):
            raise TypeError(f"{name} takes a list or an array, got {data}; of a size: empty(..., dtype={dtype!r})")
        return tensor(data[0], dtype=dtype)

    return named(make, name, f"`tensor(data, dtype={dtype!r})`.")


FloatTensor, DoubleTensor = _of("FloatTensor", "float32"), _of("DoubleTensor", "float64")
LongTensor, IntTensor = _of("LongTensor", "int64"), _of("IntTensor", "int32")
ByteTensor, BoolTensor = _of("ByteTensor", "uint8"), _of("BoolTensor", "bool")


def as_tensor(x: Any, dtype: Any = None, device: Any = "cpu") -> Tensor:
    """`x` itself if it is a tensor of that dtype, else a tensor of its numbers, without a copy where possible."""
    raise_for_device(device)
    if isinstance(x, Tensor):
        return x if dtype is None or x.array.dtype == as_dtype(dtype) else x.astype(dtype)
    return Tensor(x, dtype=dtype)


def from_numpy(x: Array | Tensor) -> Tensor:
    """A tensor that shares the memory of an ndarray; a tensor as it is."""
    if not isinstance(x, np.ndarray | Tensor):
        raise TypeError(f"from_numpy: x must be an ndarray, got {type(x).__name__}")
    return x if isinstance(x, Tensor) else Tensor(x)


def from_dlpack(x: Any) -> Tensor:
    """A tensor that shares the memory of another library's array, by `__dlpack__`; it must lie on the CPU."""
    return Tensor(np.from_dlpack(x))


# -- of one value


@host
def zeros(*size: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Zeros of a size given as `2, 3` or `(2, 3)`."""
    sizes, rows = _sized("zeros", size)
    return _made(np.zeros(sizes, or_float32(dtype)), device, requires_grad, rows)


@host
def ones(*size: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Ones of a size given as `2, 3` or `(2, 3)`."""
    sizes, rows = _sized("ones", size)
    return _made(np.ones(sizes, or_float32(dtype)), device, requires_grad, rows)


@host
def empty(*size: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A tensor of a size given as `2, 3` or `(2, 3)` whose numbers are whatever was in memory."""
    sizes, rows = _sized("empty", size)
    return _made(np.empty(sizes, or_float32(dtype)), device, requires_grad, rows)


@host
def full(size: Any, fill_value: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """`fill_value` everywhere; the dtype is by default that of `tensor(fill_value)`."""
    value = as_array(_of_all_ranks(fill_value), dtype)
    sizes, rows = _sized("full", (size,))
    return _made(np.full(sizes, value, value.dtype), device, requires_grad, rows)


@host
def zeros_like(input: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Zeros of the shape, and by default the dtype, of `input`."""
    return _like(input, np.zeros, device, requires_grad, dtype)


@host
def ones_like(input: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Ones of the shape, and by default the dtype, of `input`."""
    return _like(input, np.ones, device, requires_grad, dtype)


@host
def empty_like(input: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A tensor of the shape, and by default the dtype, of `input`, with whatever was in memory."""
    return _like(input, np.empty, device, requires_grad, dtype)


@host
def full_like(
    input: Any, fill_value: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """`fill_value` everywhere in the shape, and by default the dtype, of `input`."""
    value = _of_all_ranks(fill_value)
    return _like(input, lambda shape, kind: np.full(shape, as_array(value, kind)), device, requires_grad, dtype)


@host
def eye(n: int, m: int | None = None, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """A matrix of n rows and m (else n) columns, 1 on the diagonal and 0 elsewhere."""
    return _made(np.eye(of_all(n), of_all(m), dtype=or_float32(dtype)), device, requires_grad, _alike(n))


# -- ranges


@host
def arange(
    start: Any = 0, end: Any = None, step: Any = 1, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """start, start + step, … before `end`; from 0 if one number is given. int64 if all are integers."""
    if end is None:
        start, end = 0, start
    rows = sized((end,))[1] if start.__class__ is int is step.__class__ and (start, step) == (0, 1) else None
    place = rows if rows is not None and not rows.group.ordered else _alike(start, end)
    start, end, step = map(number_of, (start, end, step))
    if step == 0:
        raise ValueError("arange: step must not be 0")
    whole = all(isinstance(v, int) for v in (start, end, step))
    kind = as_dtype(dtype) if dtype is not None else np.dtype(np.int64 if whole else np.float32)
    if kind == np.int64:
        start, end, step, whole = int(start), int(end), int(step) or step, int(step) != 0
    count = max(0, -(-(end - start) // step) if whole else math.ceil((end - start) / step))
    if kind.kind in "iu":
        start, step = int(start), int(step)
    # In float64, as adding up a rounded step would drift.
    numbers = (np.arange(count) * step + start).astype(kind)
    if isinstance(place, Shard):
        numbers = place.part(numbers, *place.rows[:3])
    return _made(numbers, device, requires_grad, place)


def number_of(x: Any) -> Any:
    """An argument as a Python number: that of the global batch if it follows from rows; a tensor of one element too."""
    x = of_all(_of_all_ranks(x))
    return x.item() if isinstance(x, Tensor | np.ndarray | np.generic) else x


def _of_all_ranks(x: Any) -> Any:
    """A number that follows from rows of a batch, as that of the global batch."""
    return whole(x.detach(), _NUMBER) if isinstance(x, Tensor) else x


@host
def linspace(
    start: Any, end: Any, steps: int = 100, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None
) -> Tensor:
    """`steps` numbers at equal distances from `start` to `end`, both included; in an integer dtype cut to integers."""
    numbers, kind = _spaced(start, end, of_all(steps), dtype)
    return _made(numbers.astype(kind), device, requires_grad, _alike(steps))


@host
def logspace(
    start: Any,
    end: Any,
    steps: int = 100,
    base: float = 10.0,
    device: Any = "cpu",
    requires_grad: bool = False,
    dtype: Any = None,
) -> Tensor:
    """`steps` numbers from base**start to base**end whose logarithms have equal distances."""
    numbers, kind = _spaced(start, end, of_all(steps), dtype)
    return _made((float(base) ** numbers).astype(kind), device, requires_grad)


def _spaced(start: Any, end: Any, steps: int, dtype: Any) -> tuple[Array, np.dtype[Any]]:
    """Numbers at equal distances in float64, from both ends as PyTorch makes them, and the dtype to come."""
    kind = or_float32(dtype)
    first, last = (number_of(x) if kind.kind == "f" else int(number_of(x)) for x in (start, end))
    if kind.kind == "f":
        return np.linspace(first, last, steps), kind
    step, places = (last - first) / max(1, steps - 1), np.arange(steps)
    return np.where(places < max(1, steps // 2), first + step * places, last - step * (steps - 1 - places)), kind


# -- random


@host
def rand(
    *size: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None, generator: Any = None
) -> Tensor:
    """Numbers drawn uniformly from [0, 1)."""
    sizes, rows = _sized("rand", size)
    return _made(random.uniform(sizes, rows, or_float32(dtype), generator), device, requires_grad, rows)


@host
def randn(
    *size: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None, generator: Any = None
) -> Tensor:
    """Numbers drawn from the normal distribution with mean 0 and variance 1."""
    sizes, rows = _sized("randn", size)
    return _made(random.normal(sizes, rows, or_float32(dtype), generator), device, requires_grad, rows)


@host
def rand_like(input: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """`rand` in the shape, and by default the dtype, of `input`; for rows of a batch each row's numbers follow from
    its index in the global batch."""
    return _like(input, lambda shape, kind: random.uniform(shape, shard_of(input), kind), device, requires_grad, dtype)


@host
def randn_like(input: Any, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """`randn` in the shape, and by default the dtype, of `input`; for rows of a batch each row's numbers follow from
    its index in the global batch."""
    return _like(input, lambda shape, kind: random.normal(shape, shard_of(input), kind), device, requires_grad, dtype)


@host
def bernoulli(input: Any, p: float | None = None) -> Tensor:
    """1 with the probability that each element of `input` says, or with `p`, else 0, in the dtype of `input`."""
    chances = as_array(input) if p is None else np.full(shape_of(input), number_of(p))
    if chances.size and not (chances.min() >= 0 and chances.max() <= 1):
        raise ValueError(f"bernoulli: probabilities must be in [0, 1], got {chances.min()} to {chances.max()}")
    rows = shard_of(input)
    return tagged(Tensor.of((random.uniform(chances.shape, rows) < chances).astype(as_array(input).dtype)), rows)


@host
def randint(
    low: int,
    high: Any,
    size: Any = None,
    device: Any = "cpu",
    requires_grad: bool = False,
    dtype: Any = None,
    generator: Any = None,
) -> Tensor:
    """Integers drawn uniformly from [low, high); `randint(high, size)` starts at 0."""
    if size is None:
        low, high, size = 0, low, high
    low, high = number_of(low), number_of(high)
    if not low < high:
        raise ValueError(f"randint: low must be below high, got low={low} and high={high}")
    sizes, rows = _sized("randint", (size,))
    if rows is None:
        drawn = random.generator(generator).integers(low, high, sizes)
    else:
        drawn = low + np.floor(random.uniform_by_row(sizes, rows) * (high - low))
    return _made(drawn.astype(np.int64 if dtype is None else as_dtype(dtype)), device, requires_grad, rows)


@host
def randperm(
    n: int, device: Any = "cpu", requires_grad: bool = False, dtype: Any = None, generator: Any = None
) -> Tensor:
    """The integers from 0 to n - 1 in random order."""
    order = random.generator(generator).permutation(int(of_all(n)))
    return _made(order.astype(np.int64 if dtype is None else as_dtype(dtype)), device, requires_grad, _alike(n))


def _like(input: Any, make: Callable[..., Array], device: Any, requires_grad: bool, dtype: Any) -> Tensor:
    """Calls `make` with the shape and dtype of `input`; for rows of a batch the result is rows too."""
    array, rows = as_array(input), shard_of(input)
    return _made(make(array.shape, array.dtype if dtype is None else as_dtype(dtype)), device, requires_grad, rows)


def _made(array: Any, device: Any, requires_grad: bool, place: Placement = None) -> Tensor:
    made = Tensor(np.asarray(array), device=device, requires_grad=requires_grad and place is None)
    made = made if place is None else tagged(made, place)
    return made.requires_grad_() if requires_grad and place is not None else made


def _alike(*numbers: Any) -> Placement:
    """The placement of what numbers of the global batch make, which is the same on every rank."""
    return REPLICATE if any(map(is_of_batch, numbers)) else None


def _sized(name: str, size: tuple[Any, ...]) -> tuple[tuple[int, ...], Shard | None]:
    """The size of a new tensor, and the rows of a tensor of a size in which x.shape[0] of rows x stands."""
    given, rows = sized(size[0] if len(size) == 1 and isinstance(size[0], tuple | list) else size)
    sizes = sizes_of(name, (given,))
    if any(n < 0 for n in sizes):
        raise ValueError(f"{name}: sizes must not be negative, got {sizes}")
    return sizes, rows
