"""Checks an operation against plain NumPy and central differences: what every operation has a row for.

How to write rows: in `tests/core/rows/<kind>.py`, a list `ROWS`; it is found by its place.

    from sorix_dist.core.ops import matrix
    from tests.support.core.opcheck import Row

    ROWS = [
        Row(matrix.linear, lambda x, w, b: x @ w + b, [((4, 3), (3, 2), (1, 2)), ((0, 3), (3, 2), (2,))],
            lacks={"0-d": "weights are matrices"}),
    ]

- `function`: an operation (made by `@op`), or a public function over one; the row counts for the registered
  operations in `covers`, by default for the function's own name.
- `reference`: the same in plain NumPy, on float64 arrays and with the same keyword options.
- `cases`: tuples of shapes, one shape per input (None: this input is left out, given as None). Somewhere in the
  rows of an operation there must be a case with an empty input and one with a 0-d input, or `lacks` says why
  there is none: {"empty": reason, "0-d": reason}. ELEMENTWISE and PAIRS are the cases of functions of single
  elements, broadcasting included.
- `options`: keyword options, the same for all cases; make one row for each set of options.
- `between`, `apart`: inputs are drawn uniformly between two bounds (a pair, or one pair per input), and at least
  0.05 away from the points `apart`, where there is a kink or a pole.
- `second=False`: the operation cannot be differentiated twice. `differentiable=False`: it has no gradient, and
  `result` is then the dtype of its result if that is not the one of its inputs.
- `tolerance`: how far from the reference (relative, in float64) a value may be.

What `check_*` look at, for every case: the value in float64 and float32; first derivatives along random
directions by central differences in float64; second derivatives likewise, also those that involve the incoming
gradient; that each input alone gets the gradient that it gets beside the others; inputs with other strides; that
the dtype is kept; that nothing is modified, that no two gradients share memory, and that a second backward adds.
Warnings are errors.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, grad

Array = np.ndarray[Any, Any]
Shapes = tuple[Any, ...]

ELEMENTWISE: list[Shapes] = [((3, 4),), ((2, 0, 3),), ((),)]
PAIRS: list[Shapes] = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((), (2, 3)),
    ((2, 1, 3), ()),
    ((0, 4), (1, 4)),
    ((), ()),
]
STEP = 1e-5  # of the central differences: the error is about STEP**2 + 1e-16 / STEP


@dataclass(frozen=True)
class Row:
    """An operation, what it should compute, and on what; see the docstring of this module."""

    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: Sequence[Shapes]
    options: dict[str, Any] = field(default_factory=dict)
    between: Any = (-2.0, 2.0)
    apart: tuple[float, ...] = ()
    differentiable: bool = True
    second: bool = True
    result: Any = None
    tolerance: float = 1e-12
    lacks: dict[str, str] = field(default_factory=dict)
    covers: str | tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The registered operations that this row is for."""
        if not self.covers:
            return (getattr(self.function, "__wrapped__", self.function).__name__,)
        return (self.covers,) if isinstance(self.covers, str) else self.covers

    @property
    def title(self) -> str:
        """What a failing test is called."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.function.__name__}({options})"[:60]


def all_rows() -> list[Row]:
    """The rows of all files in `tests/core/rows`."""
    files = sorted((Path(__file__).parents[2] / "core" / "rows").glob("[!_]*.py"))
    return [row for file in files for row in importlib.import_module(f"tests.core.rows.{file.stem}").ROWS]


def inputs_of(row: Row, shapes: Shapes) -> list[Array | None]:
    """The same random float64 inputs for a row and a case, whenever it is asked for."""
    rng = np.random.default_rng(zlib.crc32(f"{row.title}{shapes}".encode()))
    bounds = [row.between] * len(shapes) if np.ndim(row.between) == 1 else row.between
    drawn = []
    for shape, (low, high) in zip(shapes, bounds, strict=True):
        if shape is None:
            drawn.append(None)
            continue
        x = np.asarray(rng.uniform(low, high, shape))
        for _ in range(100):
            close = np.any([np.abs(x - point) < 0.05 for point in row.apart], axis=0)
            if not np.any(close):
                break
            x = np.asarray(np.where(close, rng.uniform(low, high, shape), x))
        drawn.append(x)
    return drawn


def tensors(arrays: Sequence[Array | None], needs: bool | Sequence[int] = False) -> list[Any]:
    """The arrays as tensors; `needs` says which require a gradient."""
    wanted = range(len(arrays)) if needs is True else needs or ()
    return [None if a is None else Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]


def present(values: Sequence[Any]) -> list[Any]:
    """Without the inputs that are left out."""
    return [value for value in values if value is not None]


def strided(array: Array | None) -> Array | None:
    """The same numbers in memory that is not contiguous."""
    if array is None:
        return None
    roomy = np.zeros(tuple(2 * n for n in array.shape[::-1]), array.dtype)
    view = roomy[(..., *(slice(None, None, -2) for _ in array.shape))].T
    view[...] = array
    return view


def check_value(row: Row, shapes: Shapes) -> None:
    """The value, in float64 and float32, from contiguous and from other memory; inputs stay as they were."""
    arrays = inputs_of(row, shapes)
    expected = np.asarray(row.reference(*arrays, **row.options))
    for dtype, tolerance in ((np.float64, row.tolerance), (np.float32, 2e-5)):
        typed = [None if a is None else a.astype(dtype) for a in arrays]
        kept = [None if a is None else a.copy() for a in typed]
        for given in (typed, [strided(a) for a in typed]):
            got = row.function(*tensors(given), **row.options)
            assert isinstance(got, Tensor)
            assert not got.requires_grad
            assert got.array.dtype == np.dtype(dtype if row.result is None else row.result)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got.array, expected, rtol=tolerance, atol=tolerance)
        for before, after in zip(present(kept), present(typed), strict=True):
            np.testing.assert_array_equal(before, after, "an input was modified")


def check_first(row: Row, shapes: Shapes) -> None:
    """First derivatives along random directions; the same whichever inputs ask, and from whatever memory."""
    arrays = inputs_of(row, shapes)
    inputs = tensors(arrays, True)
    value = row.function(*inputs, **row.options)
    if not row.differentiable:
        assert not value.requires_grad
        return
    rng = np.random.default_rng(1)
    weights = np.asarray(rng.uniform(0.5, 1.5, value.shape))
    kept = weights.copy()
    gradients = grad(value, present(inputs), weights, retain_graph=True)
    np.testing.assert_array_equal(weights, kept, "the incoming gradient was modified")
    for own, tensor in zip(gradients, present(inputs), strict=True):
        assert (own.shape, own.array.dtype) == (tensor.shape, tensor.array.dtype)

    directions = [None if a is None else np.asarray(rng.standard_normal(a.shape)) for a in arrays]
    slopes = [float(np.sum(g.array * d)) for g, d in zip(gradients, present(directions), strict=True)]
    at = [i for i, a in enumerate(arrays) if a is not None]
    for i, slope in zip(at, slopes, strict=True):

        def along(step: float, i: int = i) -> float:
            moved = [a + step * d if j == i else a for j, (a, d) in enumerate(zip(arrays, directions, strict=True))]
            return float(np.sum(row.function(*tensors(moved), **row.options).array * weights))

        close(slope, (along(STEP) - along(-STEP)) / (2 * STEP), f"the gradient of input {i}")

    for i, own in zip(at, gradients, strict=True):
        for given in (arrays, [strided(a) for a in arrays]):
            alone = tensors(given, [i])
            (other,) = grad(row.function(*alone, **row.options), alone[i], weights)
            np.testing.assert_allclose(other.array, own.array, rtol=1e-12, atol=1e-12)


def check_second(row: Row, shapes: Shapes) -> None:
    """Second derivatives, those that involve the incoming gradient included; the first are as without recording."""
    if not (row.second and row.differentiable):
        return
    arrays = present(inputs_of(row, shapes))
    places = [i for i, shape in enumerate(shapes) if shape is not None]
    rng = np.random.default_rng(2)
    weights = rng.uniform(0.5, 1.5, row.function(*_filled(arrays, places, shapes), **row.options).shape)
    point = [*arrays, np.asarray(weights)]
    first, second = ([np.asarray(rng.standard_normal(a.shape)) for a in point] for _ in range(2))

    def slope(values: list[Array], create: bool) -> tuple[Any, list[Tensor]]:
        *inputs, w = (Tensor(v, requires_grad=True) for v in values)
        value = row.function(*_filled(inputs, places, shapes), **row.options)
        gradients = grad((value * w).sum(), [*inputs, w], create_graph=create)
        terms = [(g * d).sum() for g, d in zip(gradients, first, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, [*inputs, w]

    recorded, variables = slope(point, create=True)
    close(recorded.item(), slope(point, create=False)[0].item(), "the gradient under create_graph")
    if not recorded.requires_grad:
        curvature = 0.0
    else:
        parts = grad(recorded, variables, allow_unused=True)
        curvature = sum(float(np.sum(p.array * d)) for p, d in zip(parts, second, strict=True) if p is not None)

    def along(step: float) -> float:
        moved = [np.asarray(a + step * d) for a, d in zip(point, second, strict=True)]
        return float(slope(moved, create=False)[0].item())

    close(curvature, (along(STEP) - along(-STEP)) / (2 * STEP), "the second derivative")


def check_memory(row: Row, shapes: Shapes) -> None:
    """After backward() the gradients share no memory; inputs and the incoming gradient are as before; a second adds."""
    if not row.differentiable:
        return
    arrays = inputs_of(row, shapes)
    kept = [None if a is None else a.copy() for a in arrays]
    inputs = tensors(arrays, True)
    value = row.function(*inputs, **row.options)
    result = value.array.copy()
    weights = np.random.default_rng(3).uniform(0.5, 1.5, value.shape)
    incoming = np.array(weights)
    value.backward(incoming, retain_graph=True)
    np.testing.assert_array_equal(incoming, weights, "the incoming gradient was modified")
    np.testing.assert_array_equal(value.array, result, "the value was modified by a backward")
    for before, after in zip(present(kept), present(arrays), strict=True):
        np.testing.assert_array_equal(before, after, "an input was modified by a backward")
    gradients = [tensor.grad.array for tensor in present(inputs)]
    others = [*present(arrays), value.array, incoming]
    for i, own in enumerate(gradients):
        for other in [*gradients[:i], *others]:
            assert not np.shares_memory(own, other), "a gradient shares memory"
    once = [g.copy() for g in gradients]
    value.backward(incoming)
    for tensor, before in zip(present(inputs), once, strict=True):
        np.testing.assert_allclose(tensor.grad.array, 2 * before, rtol=1e-12)


def close(got: float, expected: float, what: str) -> None:
    """Central differences agree to about eight digits."""
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=2e-7, err_msg=what)


def _filled(values: Sequence[Any], places: list[int], shapes: Shapes) -> list[Any]:
    """The inputs with None where one is left out."""
    filled: list[Any] = [None] * len(shapes)
    for place, value in zip(places, values, strict=True):
        filled[place] = value if isinstance(value, Tensor) else Tensor(value)
    return filled
