"""What a caller does with a result: one row for each way of writing it, on whatever Python runs the tests."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from sorix_dist.core import calling_code


class Caller:
    """Notes what a question about its caller is answered."""

    def __init__(self, question: Callable[[FrameType], Any]) -> None:
        self.question = question
        self.answers: list[Any] = []

    def _answered(self, result: Any) -> Any:
        self.answers.append(self.question(sys._getframe(2)))
        return result

    def __len__(self) -> int:
        return self._answered(3)

    def __index__(self) -> int:
        return self._answered(3)

    def item(self) -> float:
        return self._answered(1.0)

    def __iter__(self) -> "Caller":
        return self

    def __next__(self) -> int:
        if len(self.answers) > 20:  # by then Python has specialised the loop
            raise StopIteration
        return self._answered(1)

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._answered(1)


def answer(question: Callable[[FrameType], Any], code: str) -> Any:
    """The only answer to the question in a function that consists of these lines."""
    caller, names = Caller(question), {}
    body = "".join(f"    {line}\n" for line in code.split("\n"))
    exec(f"import math\ndef function(x, y, kept):\n{body}", names)
    names["function"](caller, 2.0, [])
    assert len(set(caller.answers)) == 1, f"other answers at other calls: {caller.answers}"
    return caller.answers[0]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("len(x) * y", True), ("y / len(x)", True), ("len(x) / 2", True), ("y *= len(x)", True), ("len(x) < y", True),
        ("abs(y) / len(x)", True), ("n = len(x)\ny / n", True), ("n = len(x)\nabs(y) * n", True),
        ("n = len(x)\ny /= n", True), ("n = len(x)\n[v / n for v in (1, 2)]", True),
        ("n = len(x)\n(lambda: y / n)()", True),
        ("len(x) == y", False), ("kept[:len(x)]", False), ("range(len(x))", False), ("[0] * range(len(x))[0]", False),
        ("n = len(x)\nn - 1", False), ("n = len(x)\nn * 4", False), ("n = len(x)\nrange(n)", False),
        ("(len(x), y)", False), ("[len(x)]", False), ("1 if len(x) else 2", False),
        ("kept.append(len(x))", False), ("len(x)", False),
    ],
)  # fmt: skip
def test_an_operand(code: str, expected: bool) -> None:
    assert answer(calling_code.is_operand, code) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("kept.append(x.item())", True), ("[x.item() for _ in range(3)]", True),
        ("kept += [v for v in [x.item()]]", False),
        ("x.item()", False), ("kept.append(2 * x.item())", False), ("abs(x.item())", False), ("v = x.item()", False),
        ("kept.append(1)\nabs(x.item())", False),
    ],
)  # fmt: skip
def test_kept_in_a_list(code: str, expected: bool) -> None:
    assert answer(calling_code.is_kept_in_a_list, code) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("'%.4f' % x.item()", True), ("'%d %.4f' % (1, x.item())", True), ("'%.4f %d' % (x.item(), 1)", True),
        ("form = '%.4f'\nform % (2 * x.item())", False), ("x.item() % 2", False), ("abs(x.item())", False),
        ("(1, x.item())", False), ("v = x.item()", False),
    ],
)  # fmt: skip
def test_shown(code: str, expected: bool) -> None:
    assert answer(calling_code.is_shown, code) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("math.hypot(len(x), 3)", True), ("math.hypot(*(len(x), 3))", True), ("abs(math.hypot(len(x), 3))", True),
        ("n = len(x)\nmath.hypot(n, 3)", True), ("n = len(x)\nmath.hypot(*(\n  n,\n  3,\n))", True),
        ("math.hypot(*[n for n in (len(x), 3)])", True), ("math.hypot(1, 2) + len(x)", False),
        ("n = len(x)\nmath.hypot(1, 2)\nabs(n)", False), ("abs(len(x)), math.hypot(1, 2)", False),
    ],
)  # fmt: skip
def test_an_argument(code: str, expected: bool) -> None:
    names = frozenset(("hypot", "normal"))
    assert answer(lambda caller: calling_code.is_argument(caller, names), code) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("for _ in x: pass", True), ("for _, _ in enumerate(x): pass", True),
        ("for _ in zip(x, range(40)): pass", True),
        ("[v for v in x]", True), ("next(x)", False), ("next(iter(x))", False), ("list(x)", False),
    ],
)  # fmt: skip
def test_a_loop(code: str, expected: bool) -> None:
    assert answer(calling_code.is_loop, code) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [("from module_of_caller import thing", True), ("x.thing", False), ("getattr(x, 'thing')", False)],
)
def test_an_import(code: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(calling_code.is_import)
    monkeypatch.setitem(sys.modules, "module_of_caller", caller)  # type: ignore[arg-type]
    exec(f"def function(x):\n    {code}", names := {})
    names["function"](caller)
    assert caller.answers == [expected]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("math.comb(x, 2)", "comb"), ("math.comb(5, x)", "comb"), ("math.gcd(x)", "gcd"), ("range(x)", None),
        ("math.gcd(4, 2) + range(9)[x]", None), ("math.gcd(len(range(x)), 2)", None),
        ("math.gcd(4, 2).to_bytes(x, 'big')", "to_bytes"), ("math.gcd(4, x).to_bytes(2, 'big')", "gcd"),
    ],
)  # fmt: skip
def test_the_function_that_is_called(code: str, expected: str | None) -> None:
    names = frozenset(("comb", "gcd", "to_bytes"))
    assert answer(lambda caller: calling_code.called(caller, names), code) == expected
