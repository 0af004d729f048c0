"""PyTorch's keywords for functions that take their operands by position, or under another name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from sorix_dist.core.ops.elementwise import cast, mul
from sorix_dist.core.ops.special import rounded_quotient

_PLACES = {"input": 0, "self": 0, "tensors": 0, "other": 1, "exponent": 1, "dims": 1, "sizes": 1, "repeats": 1,
           "shape": 1, "size": 1}  # fmt: skip
_OF_A_SIZE = {"zeros", "ones", "empty", "rand", "randn"}
_WITH_A_DTYPE = {"sum", "mean", "prod", "cumsum", "softmax", "log_softmax", "softmin"}
_MEANINGLESS = {"memory_format", "layout", "pin_memory", "non_blocking", "inplace"}  # promises that save nothing here


def with_torch_keywords(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which also takes PyTorch's keywords: `input=`, `other=`, `dims=`, `dtype=`, `alpha=`, …"""
    kinds = list(signature(function, follow_wrapped=False).parameters.values())
    own = {p.name for p in kinds if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    name: str = function.__name__
    several = any(p.kind is Parameter.VAR_POSITIONAL for p in kinds)
    if name == "backward" or ("input" in own and not several and name not in _WITH_A_DTYPE):
        return function  # which takes PyTorch's keywords by itself

    @wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        if not options:
            return function(*inputs)
        if options.keys() <= own:
            return function(*inputs, **options)
        operands = list(inputs)
        for key in [key for key in options if key not in own]:
            if key in _MEANINGLESS:
                del options[key]
            elif key in _PLACES:
                at = 0 if key == "size" and name in _OF_A_SIZE else _PLACES[key]
                if at != len(operands) and not (at == 0 and key in ("input", "self")):
                    raise TypeError(f"{name}: {key} is argument {at + 1}, and {len(operands)} were given by position")
                operands.insert(at, options.pop(key))
        dtype = options.pop("dtype", None) if name in _WITH_A_DTYPE else None
        if dtype is not None:
            operands[0] = cast(operands[0], dtype)
        if name in ("add", "sub"):
            alpha = options.pop("alpha", 1)
            operands[1:2] = (
                operands[1:2]
                if alpha == 1
                else [operands[1] * alpha if isinstance(operands[1], int | float) else mul(operands[1], alpha)]
            )
        mode = options.pop("rounding_mode", None) if name == "div" else None
        if mode is not None:
            return rounded_quotient(*operands, mode=mode)
        value = function(*operands, **options)
        return value if dtype is None else cast(value, dtype)

    return call


def publish(module: dict[str, Any], names: Sequence[str]) -> None:
    """Gives a module's public functions PyTorch's keywords, and their place in it as their origin."""
    for name in names:
        plain = module[name]
        function = with_torch_keywords(plain)
        if function is plain:
            continue
        module[name] = function
        function.__signature__ = signature(function)  # type: ignore[attr-defined]
        del function.__wrapped__  # type: ignore[attr-defined]
        function.__module__, function.__qualname__ = module["__name__"], name
