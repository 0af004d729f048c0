"""PyTorch's own samples of its operations, called here: values, dtypes, shapes and gradients, or a refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.nn import functional as F

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # which PyTorch's testing imports
methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")

KINDS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
TOLERANCES = {"float32": (1e-4, 1e-5), "float16": (5e-3, 5e-3)}
MOST = 25  # samples of an operation and dtype
# Whose arguments come in another order from the database than from a user.
CALLED: dict[str, Callable[..., Any]] = {
    "where": lambda x, condition, y: sx.where(condition, x, y),
    "nn.functional.embedding": lambda weight, input, **options: F.embedding(input, weight, **options),
    "einsum": lambda operands, equation: sx.einsum(equation, *operands),
}
# What differs on purpose, or can't be compared.
LEFT_OUT = {
    "argmax": "sx.argmax keeps sorix's defaults; the method is PyTorch's", "argmin": "as argmax",
    "all": "of bytes it is a bool here", "any": "of bytes it is a bool here",
    "nn.functional.softmin": "-x of bytes wraps around in PyTorch also where they are cast first",
    **dict.fromkeys(("sort", "argsort", "topk"), "equal elements have any order; test_tensor compares others"),
    **dict.fromkeys(("bernoulli", "multinomial", "nn.functional.dropout", "nn.functional.dropout2d",
                     "nn.functional.dropout3d",
                     "nn.functional.alpha_dropout", "normal", "rand_like", "randint", "randint_like", "randn",
                     "randn_like"), "random"),
    **dict.fromkeys((o.name for o in methods.op_db if "empty" in o.name), "whatever is in memory"),
}  # fmt: skip


def ours(operation: Any) -> Callable[..., Any] | None:
    """The function, or else the method, of this name."""
    found: Any = sx
    if operation.name in CALLED:
        return CALLED[operation.name]
    for part in operation.name.split("."):
        found = getattr(found, part, None)
    function: Any = found or getattr(sx.Tensor, operation.name, None)
    return function if callable(function) else None


OVERFLOWING = {"nn.functional.grid_sample", "nn.functional.soft_margin_loss"}  # in PyTorch's float16, or off by 1 %
OPERATIONS = [o for o in methods.op_db if o.name not in LEFT_OUT and ours(o) is not None]


def translated(value: Any, leaves: list[Any]) -> Any:
    """The arguments with our tensors and dtypes; TypeError for what is neither here."""
    if isinstance(value, torch.Tensor):
        leaf = sx.Tensor(value.detach().numpy().copy(), requires_grad=value.requires_grad)
        leaves += [(leaf, value)] if value.requires_grad else []
        return leaf
    if isinstance(value, torch.dtype):
        return getattr(sx, str(value).removeprefix("torch."), None) or pytest.skip("no such dtype")
    if isinstance(value, torch.device):
        return "cpu"
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(translated(x, leaves) for x in value)
    return value


def flat(value: Any) -> list[Any]:
    return [y for x in value for y in flat(x)] if isinstance(value, list | tuple) else [value]


def array(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def compare(got: Any, wanted: Any, leaves: list[Any]) -> None:
    mine, theirs = flat(got), flat(wanted)
    assert len(mine) == len(theirs)
    for x, y in zip(mine, theirs, strict=True):
        a, b = array(x), array(y)
        assert (a.shape, a.dtype if isinstance(y, torch.Tensor) else b.dtype) == (b.shape, b.dtype)
        relative, absolute = TOLERANCES.get(b.dtype.name, (1e-7, 1e-5))
        if b.dtype == np.float16 and b.size:  # which PyTorch itself rounds after each of several sums
            absolute *= max(1, np.nanmax(np.abs(b.astype(float)), initial=1, where=np.isfinite(b)) / 20)
        assert np.allclose(a.astype(b.dtype), b, relative, absolute, equal_nan=True), (a, b)
    recorded = [(x, y) for x, y in zip(mine, theirs, strict=True) if getattr(y, "requires_grad", False)]
    if not leaves or not recorded:
        return
    assert all(x.requires_grad for x, _ in recorded)
    weights = [np.arange(1.0, y.numel() + 1).reshape(tuple(y.shape)) for _, y in recorded]
    expected = torch.autograd.grad(
        [y for _, y in recorded], [y for _, y in leaves], list(map(torch.tensor, weights)), allow_unused=True
    )
    found = sx.autograd.grad([x for x, _ in recorded], [x for x, _ in leaves], list(map(sx.Tensor, weights)),
                             allow_unused=True)  # fmt: skip
    for g, h, (_, leaf) in zip(found, expected, leaves, strict=True):
        zeros = np.zeros(tuple(leaf.shape))
        a, b = (zeros if x is None else array(x) for x in (g, h))
        assert np.allclose(a, b, 1e-5, 1e-7, equal_nan=True), ("gradient", a, b)


TALLY: Counter[str] = Counter()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: f"{o.name} {o.variant_test_name}".strip())
def test_samples(operation: Any) -> None:
    """No sample gives something else in silence."""
    function = ours(operation)
    assert function is not None
    for kind in KINDS:
        dtype = getattr(torch, kind)
        if not operation.supports_dtype(dtype, "cpu") or (kind == "float16" and operation.name in OVERFLOWING):
            continue
        gradients = kind == "float64" and operation.supports_autograd
        for _, sample in zip(range(MOST), operation.sample_inputs("cpu", dtype, requires_grad=gradients), strict=False):
            if sample.kwargs.get("dropout_p"):
                continue  # random
            leaves: list[Any] = []
            theirs = (sample.input, *sample.args), sample.kwargs
            arguments = [translated(x, leaves) for x in theirs[0]]
            options = {name: translated(x, leaves) for name, x in sample.kwargs.items()}
            wanted = operation.op(*theirs[0], **theirs[1])
            try:
                got = function(*arguments, **options)
            except (TypeError, ValueError, IndexError, RuntimeError, OverflowError, ZeroDivisionError):
                TALLY["refused"] += 1
                continue
            compare(got, wanted, leaves)
            TALLY["passed"] += 1


CHANGES = [o for o in OPERATIONS if o.inplace_variant is not None and hasattr(sx.Tensor, f"{o.name}_")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", CHANGES, ids=lambda o: f"{o.name} {o.variant_test_name}".strip())
def test_changes_in_place(operation: Any) -> None:
    """What PyTorch refuses is refused, and nothing else is written in silence."""
    for kind in KINDS:
        dtype = getattr(torch, kind)
        samples = operation.sample_inputs("cpu", dtype) if operation.supports_dtype(dtype, "cpu") else ()
        for _, sample in zip(range(MOST), samples, strict=False):
            mine, *arguments = (translated(x, []) for x in (sample.input, *sample.args))
            options = {name: translated(x, []) for name, x in sample.kwargs.items()}
            try:
                getattr(mine, f"{operation.name}_")(*arguments, **options)
            except (TypeError, ValueError, OverflowError, ZeroDivisionError, RuntimeError):
                continue
            compare(mine, operation.inplace_variant(sample.input.clone(), *sample.args, **sample.kwargs), [])


def test_most_samples_pass() -> None:
    """Of those that test_samples ran, at least 95 of 100 are not refused."""
    assert TALLY["passed"] >= 0.95 * sum(TALLY.values()), TALLY
