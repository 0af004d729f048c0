"""NumPy's functions on tensors: the operation of the same meaning, or a refusal where a gradient would be lost."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.core import Tensor, grad
from sorix_dist.core.op import OF_NUMPY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of odd arguments

LOST = r"would lose the gradient of a tensor that requires one: .*call \.detach\(\) or \.numpy\(\) first"

X = np.sin(np.arange(1, 10)).reshape(3, 3) + 0.05
Y = np.cos(np.arange(1, 10)).reshape(3, 3) + 1.6
SQUARE = X @ X.T + 2 * np.eye(3)
INTEGERS = np.array([2, 0, 1])
MASK = X > 0
for _array in (X, Y, SQUARE, INTEGERS, MASK):
    _array.flags.writeable = False  # the second array is where some functions write

# Arguments that are tried in turn. Of every function those that it takes as arrays are tried as tensors.
PATTERNS: list[tuple[Any, ...]] = [
    (X,), (Y,), (SQUARE,), (X[0],), (X, Y), (X[0], Y[0]), (X, Y, SQUARE), (X, 1), (X, 0, 1), (X, (9,)), (X, (2, 3, 3)),
    ([X, Y],), ([X[0], Y[0]],), (X, INTEGERS), (X, INTEGERS, 0), (INTEGERS, X), (MASK, X), (MASK, X, Y), (MASK,),
    (X, 2),    (X, 0.5), (X, 0.5, 1.5), (X, [MASK], [0.0]), ([MASK], [X]), (INTEGERS, [X, Y, SQUARE]), (INTEGERS,),
    (X, np.float32), (X[0], Y[0], 2), (X, 3), (1.5, X), (X, Y[0]),
]  # fmt: skip
MORE: dict[str, list[tuple[Any, ...]]] = {
    "numpy.einsum": [("ij,kj->ik", X, Y), ("ii->i", X)],
    "numpy.einsum_path": [("ij,kj->ik", X, Y)],
    "numpy.apply_along_axis": [(np.sum, 0, X)],
    "numpy.apply_over_axes": [(np.sum, X, [0])],
    "numpy.piecewise": [(X, [MASK], [0.0, 1.0])],
    "numpy.array2string": [(X,)],
    "numpy.put": [(X.copy(), [0], Y)],
    "numpy.put_along_axis": [(X.copy(), INTEGERS[None], Y[:1], 0)],
    "numpy.place": [(X.copy(), MASK, Y)],
    "numpy.putmask": [(X.copy(), MASK, Y)],
    "numpy.insert": [(X, 0, Y[0], 0)],
    "numpy.interp": [(X[0], [0.0, 1.0, 2.0], Y[0])],
    "numpy.pad": [(X, 1), (X, ((1, 0), (0, 2)))],
    "numpy.roll": [(X, 1), (X, 1, 0), (X, (1, 2), (0, 1))],
    "numpy.split": [(X, 3), (X, [1], 1), (X, [2, 1], -1)],
    "numpy.array_split": [(X, 2), (X, [1], 1)],
    "numpy.take_along_axis": [(X, INTEGERS[None], 0)],
    "numpy.take": [(X, INTEGERS, 1), (X, INTEGERS), (X, 1, 0), (X, INTEGERS[:2].reshape(1, 2), -1)],
    "numpy.tile": [(X, 2), (X, (2, 1)), (X[0], (2, 2))],
    "numpy.sum": [(X, 0, np.float32), (X, -1, None, None, True), (X, (0, 1))],
    "numpy.mean": [(X, 0, np.float32), (X, -1, None, None, True)],
    "numpy.std": [(X, 0, None, None, 1, True)],
    "numpy.max": [(X, 0, None, True)],
    "numpy.cumsum": [(X,), (X, 1)],
    "numpy.expand_dims": [(X, 1), (X, -1)],
    "numpy.reshape": [(X, (1, 9)), (X, -1)],
    "numpy.clip": [(X, -0.5, 0.5), (X, None, 0.5)],
    "numpy.hstack": [([X[0], Y[0]],), ([X, Y],)],
    "numpy.dot": [(X, Y), (X[0], Y), (X, 2.0)],
    "numpy.linalg.matmul": [(X, Y)],
    "numpy.linalg.tensorsolve": [(SQUARE, X[0])],
    "numpy.bincount": [(INTEGERS, X[0])],
    "numpy.acosh": [(Y + 1,)],
    "numpy.arccosh": [(Y + 1,)],
    "numpy.dsplit": [(np.stack([X, Y]), 3)],
}
# What has nothing to do with real numbers, or reads and writes files.
OTHERS = {
    "numpy.bitwise_and", "numpy.bitwise_count", "numpy.bitwise_invert", "numpy.bitwise_left_shift", "numpy.bitwise_not",
    "numpy.bitwise_or", "numpy.bitwise_right_shift", "numpy.bitwise_xor", "numpy.left_shift", "numpy.right_shift",
    "numpy.block", "numpy.busday_count", "numpy.busday_offset", "numpy.datetime_as_string",
    "numpy.fill_diagonal", "numpy.gcd", "numpy.invert", "numpy.is_busday", "numpy.isnat", "numpy.lcm", "numpy.packbits",
    "numpy.ravel_multi_index", "numpy.save", "numpy.savetxt", "numpy.savez", "numpy.savez_compressed",
    "numpy.unpackbits", "numpy.unravel_index", "numpy.shares_memory", "numpy.may_share_memory", "numpy.copyto",
}  # fmt: skip
# Whose answers are floats that do not follow from the input's.
NO_GRADIENT = {"numpy.zeros_like", "numpy.ones_like", "numpy.empty_like", "numpy.full_like"}


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All functions of NumPy that ask their arguments whether they know better."""
    for module in (np, np.linalg, np.fft):
        for name in dir(module):
            function = getattr(module, name)
            if not name.startswith("_") and type(function).__name__ in ("_ArrayFunctionDispatcher", "ufunc"):
                yield f"{module.__name__}.{name}", function


FUNCTIONS = dict(public())


def as_tensors(value: Any, found: list[Tensor]) -> Any:
    """The value with tensors that require a gradient in the place of arrays of floats, which are added to `found`."""
    if isinstance(value, list):
        return [as_tensors(entry, found) for entry in value]
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        found.append(Tensor(value.copy(), requires_grad=True))
        return found[-1]
    return value


def flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [part for entry in value for part in flat(entry)]
    return [value]


def floats(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in ("f", "c", "O") or isinstance(value, float | complex)


class Probe:
    """Answers when NumPy asks it, as it asks a tensor."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array

    def __array_function__(self, *_: Any) -> Any:
        return ASKED

    __array_ufunc__ = __array_function__

    def __iter__(self) -> Iterator[Probe]:  # as two functions of polynomials do instead of asking
        return map(Probe, self.array)


ASKED = object()


def asks(function: Callable[..., Any], arguments: Any) -> bool:
    """Whether NumPy asks any of the arrays of floats, tensors here, before it takes their numbers; it looks into few
    lists, and can't be told of tensors in the others."""

    def probed(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(probed, value))
        return Probe(value) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value

    return function(*probed(arguments)) is ASKED


def accepted(name: str, function: Callable[..., Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """The arguments that the function takes as arrays, some of them floats, and its answers."""
    found = []
    for arguments in MORE.get(name, PATTERNS):
        try:
            answer = function(*arguments)
            if asks(function, arguments):
                found.append((arguments, answer))
        except Exception:  # noqa: BLE001 - these arguments are not for this function
            continue
    return found


def test_the_lists_of_this_file_name_functions() -> None:
    assert not ({*MORE, *OTHERS} - FUNCTIONS.keys())
    assert len(FUNCTIONS) > 300


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - OTHERS))
def test_no_public_function_loses_a_gradient_in_silence(name: str) -> None:
    function = FUNCTIONS[name]
    calls = accepted(name, function)
    assert calls, "no arguments are known that this function takes"
    answered = 0
    for arguments, expected in calls:
        leaves: list[Tensor] = []
        given = as_tensors(list(arguments), leaves)
        refusal = ""
        try:
            got = function(*given)
        except RuntimeError as error:
            refusal = str(error)
        except (TypeError, ValueError, IndexError):
            # Refused, by an operation that knows less than NumPy, or by NumPy, which is told nothing of lists.
            continue
        if refusal:
            assert re.search(LOST, refusal)
            assert function not in OF_NUMPY
            with sx.no_grad():
                plain = flat(function(*as_tensors(list(arguments), [])))
            for one, other in zip(plain, flat(expected), strict=True):
                np.testing.assert_array_equal(one, other)
            continue
        answered += 1
        for one, other in zip(flat(got), flat(expected), strict=True):
            if name == "numpy.empty_like":
                assert one.shape == other.shape
            elif isinstance(one, Tensor | np.ndarray | np.generic):
                np.testing.assert_allclose(np.asarray(one), other, rtol=1e-5 if one.dtype == np.float32 else 1e-12)
            if floats(one) and name not in NO_GRADIENT:
                assert isinstance(one, Tensor), f"{name}{arguments} answers with a gradient-less {type(one).__name__}"
                assert one.requires_grad or name == "numpy.floor_divide"
    if function in OF_NUMPY:
        assert answered, f"{name} is an operation, and takes none of the arguments"


@pytest.mark.parametrize("name", sorted(name for name, function in FUNCTIONS.items() if function in OF_NUMPY))
def test_the_gradient_is_that_of_the_function(name: str) -> None:
    function = FUNCTIONS[name]
    compared = 0
    for arguments, expected in accepted(name, function):
        whole = [np.asarray(part) for part in flat(expected)]
        if not all(part.dtype == np.float64 and np.isfinite(part).all() for part in whole):
            continue
        leaves: list[Tensor] = []
        given = as_tensors(list(arguments), leaves)
        try:
            answers = flat(function(*given))
        except (TypeError, ValueError, IndexError):
            continue
        chosen = [i for i, part in enumerate(answers) if isinstance(part, Tensor) and part.requires_grad]
        if not chosen:
            continue
        parts = [answers[i] for i in chosen]
        weights = [np.cos(np.arange(part.array.size)).reshape(part.shape) for part in parts]
        total = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        gradients = grad(total, leaves, allow_unused=True)

        def value() -> float:
            with sx.no_grad():
                again = flat(function(*given))  # noqa: B023
            return sum((again[i].array * w).sum() for i, w in zip(chosen, weights, strict=True))  # noqa: B023

        for leaf, gradient in zip(leaves, gradients, strict=True):
            for place in list(np.ndindex(leaf.shape))[:4]:
                kept, step = leaf.array[place], 1e-6
                leaf.array[place] = kept + step
                after = value()
                leaf.array[place] = kept - step
                before = value()
                leaf.array[place] = kept
                there = 0.0 if gradient is None else gradient.array[place]
                assert there == pytest.approx((after - before) / (2 * step), rel=1e-4, abs=1e-6), (arguments, place)
        compared += 1
    exact = name.removeprefix("numpy.") in {
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isnan", "isinf", "isfinite", "all",
        "any", "logical_not", "logical_and", "logical_or", "logical_xor", "argmax", "argmin", "bitwise_and",
        "bitwise_or", "bitwise_xor", "invert", "bitwise_not", "bitwise_invert", "floor_divide", "astype", "left_shift",
        "right_shift", "bitwise_left_shift", "bitwise_right_shift",
    }  # fmt: skip
    assert compared or exact or name in NO_GRADIENT


# -- what is refused, and how it is said


def needing() -> Tensor:
    return Tensor(X.copy(), requires_grad=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: np.linalg.norm(x), r"^numpy\.linalg\.norm would .*: use sorix_dist\.norm, or call \.detach\(\)"),
        (lambda x: np.median(x), r"^numpy\.median would .*: call \.detach\(\) or \.numpy\(\) first where"),
        (lambda x: np.fft.rfft(x * 2), r"^numpy\.fft\.rfft would"),
        (lambda x: np.select([X > 0], [x]), r"^numpy\.select would"),
        (lambda x: np.nan_to_num(x=x), r"^numpy\.nan_to_num would"),
        (lambda x: np.cbrt(x), r"^numpy\.cbrt would"),
        (lambda x: np.add.reduce(x), r"^numpy\.add\.reduce would .*: use sorix_dist\.sum, or"),
        (lambda x: np.maximum.accumulate(x), r"^numpy\.maximum\.accumulate would"),
        (lambda x: np.multiply.outer(x, X), r"^numpy\.multiply\.outer would .*sorix_dist\.outer"),
        (lambda x: np.add.at(X.copy(), [0], x[0]), r"^numpy\.add\.at, which writes into an array, would"),
        (lambda x: np.add(x, 1, out=X.copy()), r"^numpy\.add, which writes into an array, would"),
        (lambda x: np.sum(x, axis=0, out=np.zeros(3)), r"^numpy\.sum, which writes into an array, would"),
        (lambda x: np.copyto(X.copy(), x), r"^numpy\.copyto, which writes into an array, would"),
        (lambda x: np.block([[x, x]]), r"^numpy\.block would"),
    ],
)
def test_the_refusal_names_the_function_and_the_way_out(call: Callable[[Tensor], Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        call(needing())
    with sx.no_grad():
        call(needing())
    call(needing().detach())


def test_nothing_is_written_before_a_refusal() -> None:
    target = X.copy()
    with pytest.raises(RuntimeError, match=LOST):
        target += needing()
    np.testing.assert_array_equal(target, X)
    target += needing().detach()
    np.testing.assert_array_equal(target, 2 * X)
    with pytest.raises(TypeError, match="can't write into a tensor"):
        np.add(X, X, out=needing())


def test_questions_tests_and_printing_pass() -> None:
    x = needing()
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((3, 3), 2, 9)
    assert np.concatenate([x.shape, [1]]).tolist() == [3, 3, 1]
    assert np.sum(a=x.shape) == np.hstack((x.shape, x.shape))[:2].sum() == 6
    assert np.allclose(x, X)
    assert np.array_equal(x, X)
    assert np.isclose(x, X).all()
    assert not np.isnan(x).any()
    assert np.argsort(x).shape == (3, 3)
    assert np.count_nonzero(x) == 9
    assert np.result_type(x) == np.float64
    assert not np.iscomplexobj(x)
    assert np.array2string(x) == np.array2string(X)
    assert np.array_repr(x[:1]) == np.array_repr(X[:1])
    file = io.StringIO()
    np.savetxt(file, x)
    np.savez(io.BytesIO(), x=x)
    np.save(io.BytesIO(), x)
    assert file.getvalue()
    np.testing.assert_allclose(x, X)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_less(x, X + 1)
    np.testing.assert_almost_equal(x, X)
    np.testing.assert_array_almost_equal(x, X)
    np.testing.assert_equal(x, X)
    np.testing.assert_approx_equal(x[0, 0], X[0, 0])
    np.testing.assert_array_max_ulp(np.asarray(x), X)
    assert np.where(x > 0)[0].dtype.kind == "i"
    np.testing.assert_array_equal(np.asarray(x), X)


def test_matplotlib_draws_tensors() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    x = needing()
    axes.plot(x[0], x[1])
    axes.scatter(x[0].detach(), X[1])
    axes.imshow(x.detach())


# -- lists of tensors


def test_a_list_of_tensors_counts_as_tensors() -> None:
    x, y = needing(), Tensor(Y.copy(), requires_grad=True)
    for together in (
        sx.einsum("ij,jk->ik", [x, y]), sx.einsum("ij,jk->ik", (x, Y)), np.concatenate([x, Y], axis=1),
        np.concatenate(arrays_of := (X, y), axis=-1), np.stack([X, y], axis=1), np.vstack([x, y]), np.hstack((X, y)),
        np.column_stack([x[0], Y[0]]), np.concat([x, y], axis=None),
    ):  # fmt: skip
        assert isinstance(together, Tensor)
        assert together.requires_grad
    np.testing.assert_array_equal(sx.einsum("ij,jk->ik", [x, y]).array, X @ Y)
    assert isinstance(sx.einsum("ij,jk->ik", [X, Y]), np.ndarray)
    assert len(arrays_of) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda x: sx.sum([x, x]),
        lambda x: sx.exp((x, x)),
        lambda x: sx.add(1, [x]),
        lambda x: x - [x, x],
        lambda x: x @ [x],
        lambda x: [x, x] * Tensor(X),
        lambda x: nn.functional.mse_loss([x], X[None]),
    ],
)
def test_a_list_of_tensors_that_require_gradients_is_no_operand(call: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"a list of tensors would lose their gradients.*sorix_dist\.stack"):
        call(needing())
    with sx.no_grad():
        call(needing())
