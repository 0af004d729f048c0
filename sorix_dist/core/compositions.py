"""The functions that are made of other operations, by PyTorch's names; some are methods of a Tensor too.

PyTorch's methods that change a tensor in place are made of these and `copy_`, which refuses where a gradient would be
lost, as for a parameter outside of no_grad().
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from sorix_dist.core import algebra, arrange, create, in_place, methods, random, statistics
from sorix_dist.core.algebra import *  # noqa: F403
from sorix_dist.core.arguments import explained, named
from sorix_dist.core.arrange import *  # noqa: F403
from sorix_dist.core.batch_numbers import is_just
from sorix_dist.core.capture import uncaptured
from sorix_dist.core.keywords import with_torch_keywords
from sorix_dist.core.ops.elementwise import mul, rounded_quotient
from sorix_dist.core.placement import shard_of
from sorix_dist.core.statistics import *  # noqa: F403
from sorix_dist.core.tensor import Tensor

__all__ = [*algebra.__all__, *arrange.__all__, *statistics.__all__]
for _name in __all__:
    globals()[_name] = explained(globals()[_name], _name)

for _methods in (algebra.METHODS, arrange.METHODS, statistics.METHODS):
    for _name, _function in _methods.items():
        setattr(Tensor, _name, with_torch_keywords(_function, _name))


_CHANGING = (
    "abs", "acos", "acosh", "addbmm", "addcdiv", "addcmul", "addmm", "addmv", "addr", "asin", "asinh", "atan",
    "atan2", "atanh", "baddbmm", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "clamp",
    "clamp_max", "clamp_min", "clip", "cos", "cosh", "cumprod", "cumsum", "eq", "erf", "erfc", "exp", "exp2",
    "expm1", "floor", "floor_divide", "fmod", "frac", "ge", "gt", "hypot", "index_add", "index_copy", "index_fill",
    "le", "lerp", "log", "log10", "log1p", "log2", "logical_and", "logical_not", "logical_or", "logical_xor",
    "logit", "lt", "masked_fill", "nan_to_num", "ne", "neg", "pow", "reciprocal", "relu", "remainder", "round",
    "rsqrt", "scatter", "scatter_add", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "tril",
    "triu", "trunc", "xlogy",
)  # fmt: skip


def _changing(name: str) -> Callable[..., Tensor]:
    plain = getattr(Tensor, name)

    @wraps(plain)
    def method(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return in_place.apply_to(self, plain, *arguments, **options)

    return named(method, f"{name}_", f"`{name}` in place; returns this tensor.")


def _scaled(name: str) -> Callable[..., Tensor]:
    plain = in_place.add_ if name == "add" else in_place.sub_

    def method(self: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
        return plain(self, other if is_just(alpha, 1) else mul(other, alpha))

    sign = "+" if name == "add" else "-"
    return named(method, f"{name}_", f"self {sign} alpha * other, in place; returns this tensor.")


def div_(self: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """`div` in place; returns this tensor."""
    if rounding_mode is None:
        return in_place.div_(self, other)
    return in_place.apply_to(self, rounded_quotient, other, mode=rounding_mode)


def _drawn(self: Tensor, numbers: Any) -> Tensor:
    return in_place.copy_(self, Tensor(np.asarray(numbers)))


def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Numbers drawn uniformly from [low, high), in place; of rows of a batch by their index in the global batch."""
    low, high = create.number_of(low), create.number_of(high)
    return _drawn(self, low + (high - low) * random.uniform(self.array.shape, shard_of(self)))


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Numbers drawn from a normal distribution, in place, as `uniform_` draws."""
    mean, std = create.number_of(mean), create.number_of(std)
    return _drawn(self, mean + std * random.normal(self.array.shape, shard_of(self)))


def bernoulli_(self: Tensor, p: float = 0.5) -> Tensor:
    """1 with probability p, else 0, in place, as `uniform_` draws."""
    return _drawn(self, random.uniform(self.array.shape, shard_of(self)) < p)


def random_(self: Tensor, *bounds: int) -> Tensor:
    """Integers drawn uniformly from [0, to) or, with two bounds, [from, to), in place, as `uniform_` draws."""
    low, high = map(create.number_of, bounds if len(bounds) == 2 else (0, *bounds))
    return _drawn(self, low + np.floor(random.uniform(self.array.shape, shard_of(self)) * (high - low)))


def _reshaping(name: str) -> Callable[..., Tensor]:
    plain = getattr(Tensor, name)

    def method(self: Tensor, *dims: Any) -> Tensor:
        in_place.check_target(self)
        if self.leaf is not None:
            raise RuntimeError(f"{name}_ can't change the shape of a trained tensor; use {name}")
        turned = plain(self.detach(), *dims)
        self.array, self.place = turned.array, turned.place
        return self

    return named(method, f"{name}_", f"`{name}` of this tensor itself, which shares the memory; returns it.")


def _new(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that makes a tensor of this one's dtype, unless another is given."""

    def method(self: Tensor, *arguments: Any, dtype: Any = None, **options: Any) -> Tensor:
        return make(*arguments, dtype=self.dtype if dtype is None else dtype, **options)

    return named(method, f"new_{make.__name__}", f"`{make.__name__}` in the dtype of this tensor.")


@uncaptured
def is_contiguous(self: Tensor) -> bool:
    """Whether the elements lie in memory in the order of the shape."""
    return bool(self.array.flags.c_contiguous)


METHODS: dict[str, Callable[..., Any]] = {
    **{f"{name}_": _changing(name) for name in _CHANGING},
    **{f"{name}_": _scaled(name) for name in ("add", "sub")},
    **{f"{name}_": _reshaping(name) for name in ("squeeze", "swapaxes", "t", "transpose", "unsqueeze")},
    **{f.__name__: f for f in (div_, uniform_, normal_, bernoulli_, random_)},
    **{
        f"new_{make.__name__}": _new(make)
        for make in (create.zeros, create.ones, create.empty, create.full, create.tensor)
    },
    "type_as": lambda self, other: self.astype(other.dtype),
    "nelement": lambda self: self.numel,
    "ndimension": lambda self: self.array.ndim,
    "element_size": lambda self: self.array.itemsize,
    "is_contiguous": is_contiguous,
    "stride": lambda self, dim=None: tuple(n // self.array.itemsize for n in self.array.strides)[
        slice(None) if dim is None else dim
    ],
    "data_ptr": lambda self: self.array.ctypes.data,
    **dict.fromkeys(("pin_memory", "share_memory_"), methods.cpu),
}
for _name, _method in METHODS.items():
    setattr(Tensor, _name, with_torch_keywords(_method, _name))
