"""Numbers that a captured step comes to by ways of all kinds: each change is seen, or the step is refused."""

from __future__ import annotations

import array
import collections
import copy
import enum
import functools
import operator
import os
import pathlib
import queue
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import numpy as other_name
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

X = sx.tensor(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
Y = sx.tensor(np.random.default_rng(1).integers(0, 3, 8))
CALLS, LATE = 14, 8
"""Calls of a step; from the late one on, after recordings and audits, what it reads is another number."""

VARIABLE: ContextVar[float] = ContextVar("scale", default=1.0)
LOCAL = threading.local()
FORMAT = "{0.v}"


class Box:
    v: Any = 1.0

    def get(self) -> Any:
        return self.v


class Called(Box):
    def __call__(self) -> Any:
        return self.v


class Got(Box):
    got = property(operator.attrgetter("v"))


class Member(enum.Enum):
    ONE = 1

    def __init__(self, number: int) -> None:
        self.v: Any = 1.0


class Described:
    class Descriptor:
        value = 1.0

        def __get__(self, owner: Any, kind: Any = None) -> float:
            return self.value

        def __set__(self, owner: Any, value: float) -> None:
            type(self).value = value

    v = Descriptor()


class Named(Box):
    def __str__(self) -> str:
        return str(self.v)


class Of(type):
    """A class of classes, with a property and a rest."""

    numbers = Box()

    @property
    def v(cls) -> Any:
        return cls.numbers.v

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.numbers, name)


class OfClass(metaclass=Of):
    pass


class Dynamic:
    def __init__(self) -> None:
        self.numbers = {"v": 1.0}

    def __getattr__(self, name: str) -> Any:
        return self.numbers[name]


class Scaling(optim.SGD):
    """An optimizer of the user's."""

    v = 1.0

    def __init__(self) -> None:
        super().__init__([sx.ones(3).requires_grad_()], lr=0.1)


def scheduler() -> Any:
    return optim.lr_scheduler.StepLR(Scaling(), 3)


def module() -> Any:
    made: Any = types.ModuleType("module")
    exec("numbers = {}\ndef __getattr__(name):\n    return numbers[name]", vars(made))
    return made


def layer() -> Any:
    """Its forward is one of its own."""
    made = nn.Sequential(nn.Identity())
    made.box = Box()
    made[0].forward = lambda t: t * made.box.v
    return made


def function() -> Any:
    return function.v  # type: ignore[attr-defined]


@functools.lru_cache
def cached() -> float:
    return VARIABLE.get()


@functools.singledispatch
def dispatched(x: Any) -> float:
    return VARIABLE.get()


def attribute(x: Any, v: Any) -> None:
    x.v = x._v = v


def first(x: Any, v: Any) -> None:
    x[0] = v


def key(x: Any, v: Any) -> None:
    x["v"] = v


Row = tuple[Callable[[], Any], Callable[[Any, Any], Any], Callable[[Any], Any], str | None]
ROWS: dict[str, Row] = {
    # what it lies in, how it is set, how the step takes it, and why that is refused (None: it is captured)
    "descriptor": (Described, attribute, lambda x: x.v, None),
    "__getattr__": (Dynamic, lambda x, v: key(x.numbers, v), lambda x: x.v, None),
    "function": (lambda: function, attribute, lambda x: x(), None),
    "object that is called": (Called, attribute, lambda x: x(), None),
    "attrgetter of several names": (
        lambda: types.SimpleNamespace(box=Box()),
        lambda x, v: attribute(x.box, v),
        lambda x: operator.attrgetter("box.v")(x),
        None,
    ),
    "property by attrgetter": (Got, attribute, lambda x: x.got, None),
    "member of an enumeration": (lambda: Member.ONE, attribute, lambda x: x.v, None),
    "method of a dict": (lambda: {}.get, lambda x, v: key(x.__self__, v), lambda x: x("v"), None),
    "attrgetter": (Box, attribute, operator.attrgetter("v"), None),
    "methodcaller": (Box, attribute, operator.methodcaller("get"), None),
    "getattr": (Box, attribute, lambda x: getattr(x, "v"), None),  # noqa: B009
    "getattr beside functions of the package": (Box, attribute, lambda x: F.relu and getattr(x, "v"), None),  # noqa: B009
    "text": (Named, attribute, lambda x: float(str(x)), None),
    "f-string": (Named, attribute, lambda x: float(f"{x}"), None),
    "format": (Box, attribute, lambda x: float(FORMAT.format(x)), None),
    "hasattr": (
        lambda: Box(),
        lambda x, v: v == 1 or attribute(x, v),
        lambda x: 2.0 if hasattr(x, "_v") else 1.0,
        None,
    ),
    "property of a class": (lambda: OfClass, lambda x, v: attribute(Of.numbers, v), lambda x: x.v, None),
    "__getattr__ of a class": (lambda: OfClass, lambda x, v: attribute(Of.numbers, v), lambda x: x._v, None),
    "__getattr__ of a module": (module, lambda x, v: key(x.numbers, v), lambda x: x.v, None),
    "weak proxy": (
        lambda: weakref.proxy(vars(function).setdefault("box", Box())),
        attribute,
        lambda x: x.v,
        "weakref.ProxyType",
    ),
    "forward of a layer": (layer, lambda x, v: attribute(x.box, v), lambda x: x(sx.ones(4)), None),
    "keywords of a partial": (
        lambda: functools.partial(dict, v=1.0),
        lambda x, v: key(x.keywords, v),
        lambda x: x()["v"],
        None,
    ),
    "UserDict": (lambda: collections.UserDict(v=1.0), key, lambda x: x["v"], None),
    "UserList": (lambda: collections.UserList([1.0]), first, lambda x: x[0], None),
    "ChainMap": (lambda: collections.ChainMap({"v": 1.0}), key, lambda x: x["v"], None),
    "bytearray": (lambda: bytearray([1]), lambda x, v: first(x, int(v)), lambda x: x[0], None),
    "array": (lambda: array.array("d", [1.0]), first, lambda x: x[0], None),
    "memoryview": (lambda: memoryview(bytearray([1])), lambda x, v: first(x, int(v)), lambda x: x[0], None),
    "NumPy array": (lambda: np.ones(1000), first, lambda x: float(x[0]), None),
    "NumPy objects": (lambda: np.array([1.0, None], object), first, lambda x: x[0], None),
    "large NumPy array": (lambda: np.ones(1001), first, lambda x: float(x[0]), "a NumPy array of 1001 numbers"),
    "timedelta": (lambda: [timedelta(1)], lambda x, v: first(x, timedelta(v)), lambda x: x[0].days, None),
    "Fraction": (lambda: [Fraction(1)], lambda x, v: first(x, Fraction(v)), lambda x: float(x[0]), None),
    "partial": (lambda: [functools.partial(float, 1)], lambda x, v: v == 1 or first(x, float), lambda x: x[0](), None),
    "ContextVar": (lambda: VARIABLE, lambda x, v: x.set(v), lambda x: x.get(), None),
    "thread's own": (lambda: LOCAL, attribute, lambda x: x.v, "_thread._local"),
    "queue": (queue.Queue, lambda x, v: (x.queue.clear(), x.put(v)), lambda x: x.queue[0], "queue.Queue"),
    "cache": (lambda: cached, lambda x, v: (VARIABLE.set(v), x.cache_clear()), lambda x: x(), "_lru_cache_wrapper"),
    "dispatch": (lambda: dispatched, lambda x, v: VARIABLE.set(v), lambda x: x(1), "the `except` of the step"),
    "environment": (lambda: os.environ, lambda x, v: x.update(V=str(v)), lambda x: float(x["V"]), None),
    "getenv": (
        lambda: None,
        lambda x, v: os.environ.update(V=str(v)),
        lambda x: float(os.getenv("V", "")),
        "module os",
    ),
    "options of the package": (
        scheduler,
        lambda x, v: key(x.optimizer.defaults, v),
        lambda x: x.optimizer.defaults["v"],
        None,
    ),
    "list of the package": (scheduler, lambda x, v: first(x.base_lrs, v), lambda x: x.base_lrs[0], None),
    "private name": (scheduler, attribute, lambda x: x._v, None),
    "class of an optimizer": (Scaling, lambda x, v: attribute(Scaling, v), lambda x: x.v, None),
    "clock": (lambda: None, lambda x, v: v, lambda x: 1.0 if time.monotonic() > 0 else 2.0, "module time"),
    "file": (lambda: None, lambda x, v: v, lambda x: 2.0 if pathlib.Path("/there").exists() else 1.0, "pathlib"),
    "NumPy by another name": (lambda: None, lambda x, v: v, lambda x: float(other_name.array(1.0)), "the `array` of"),
    "open": (lambda: None, lambda x, v: v, lambda x: float(open("/dev/null").read() or 1), "`open` gives"),  # noqa: SIM115
    "globals": (lambda: None, lambda x, v: v, lambda x: float(globals()["CALLS"]), "`globals` gives"),
}


def compared(make: Callable[[Any], Callable[[int], Any]]) -> Any:
    """Makes a program eagerly and captured, calls both, compares bits; returns the captured step."""
    ends = []
    steps: list[Any] = []

    def capture(step: Any) -> Any:
        steps.append(sx.compile(step))
        return steps[-1]

    for wrap in (lambda step: step, capture):
        sx.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = make(wrap)
            ends.append([call(i) for i in range(CALLS)])
    assert ends[0] == ends[1]
    return steps[0]


def bits(*tensors: Any) -> list[bytes]:
    return [np.asarray(x.detach().numpy()).tobytes() for x in tensors]


def replays(step: Any) -> int:
    return sum(entry.runs for entry in step._programs.values())


@pytest.mark.parametrize("base", [float, int, str, Exception])
def test_arguments_of_classes_with_a_value(base: Any):
    """A subclass of a number's class counts by its number, too."""
    kind = type("Kind", (base,), {"__module__": __name__})

    def program(capture: Any) -> Any:
        step = capture(lambda x, n: x * (2.0 if str(n) in ("2", "2.0") else 1.0))
        return lambda i: bits(step(X, kind(1 if i < LATE else 2)))

    assert replays(compared(program)) > 3


def test_layouts():
    """A program runs for every layout of a batch; a step that asks for it runs as it is."""
    layouts = [X.numpy(), np.asfortranarray(X.numpy()), X.numpy()[::-1], np.broadcast_to(X.numpy()[:1], X.shape)]

    def program(asks: bool) -> Any:
        def of(capture: Any) -> Any:
            step = capture(lambda x: (x @ x.T).sum() * (2.0 if asks and x.is_contiguous() else 1.0))
            return lambda i: bits(step(sx.tensor(layouts[i // 4])))

        return of

    assert replays(compared(program(asks=False))) > 3
    assert "is_contiguous can't be captured" in compared(program(asks=True)).reason


@pytest.mark.parametrize("name", ROWS)
def test_reads(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("V", "1.0")
    make, put, get, refused = ROWS[name]

    def program(capture: Any) -> Any:
        x = make()
        step = capture(lambda t: t * get(x))

        def call(i: int) -> Any:
            put(x, 1.0 if i < LATE else 2.0)
            return bits(step(X))

        return call

    step = compared(program)
    if refused is None:
        assert replays(step) > 3, step.reason
    else:
        assert replays(step) == 0
        assert refused in step.reason


def set_global(x: Any, t: Any) -> None:
    global KEPT
    KEPT = t


def set_attribute(x: Any, t: Any) -> None:
    x.kept = t


KEPT: Any = None
STORES: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Any], Callable[[Any], Any], str]] = {
    # what the step sets a result in, how, where it is found, and why that is refused
    "global": (lambda: None, set_global, lambda x: KEPT, "changes `KEPT`"),
    "class": (lambda: type("Of", (), {"__module__": __name__}), set_attribute, lambda x: x.kept, "changes `Of.kept`"),
    "module": (lambda: types.ModuleType("of"), set_attribute, lambda x: x.kept, "changes `of.kept`"),
    "method of a list": (lambda: [].append, lambda x, t: x(t), lambda x: x.__self__[-1], "changes `x`"),
    "function": (lambda: lambda: None, set_attribute, lambda x: x.kept, "changes `x`"),
    "setattr": (Box, lambda x, t: setattr(x, "kept", t), lambda x: x.kept, "`setattr` gives or does"),
    "__setattr__": (Box, lambda x, t: object.__setattr__(x, "kept", t), lambda x: x.kept, "changes `x`"),
    "vars": (Box, lambda x, t: vars(x).update(kept=t), lambda x: x.kept, "changes `x`"),
}


@pytest.mark.parametrize("name", STORES)
def test_stores(name: str):
    """A step that does nothing but set a name: the results of later calls must come there."""
    make, put, get, refused = STORES[name]

    def program(capture: Any) -> Any:
        x = make()

        @capture
        def step(t: Any) -> Any:
            put(x, t * 2)
            return t * 3

        return lambda i: bits(step(X * float(i)), get(x))

    assert refused in compared(program).reason


def test_functions_that_are_replaced():
    """In a class, by other code, and on the way from an argument."""

    class Scaled(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * self.factor()

        def factor(self) -> float:
            return 1.0

    class Doubled(Scaled):
        pass

    def one() -> float:
        return 1.0

    def two() -> float:
        return 2.0

    def program(capture: Any) -> Any:
        module, number = Doubled(), [1.0]
        one.__code__ = (lambda: 1.0).__code__
        activation: Any = F.relu
        Doubled.factor = Scaled.factor
        del Doubled.factor
        step = capture(lambda m, f, x: activation(m(x)) * one() * f())

        def call(i: int) -> Any:
            nonlocal activation
            if i == LATE:
                Doubled.factor = lambda self: 3.0  # type: ignore[method-assign, assignment]
            if i == LATE + 2:
                one.__code__ = two.__code__
            if i == LATE + 4:
                activation = F.tanh
            number[0] = 1.0 if i < LATE + 3 else 5.0
            return bits(step(module, get, X))

        def get() -> float:
            return number[0]

        return call

    assert replays(compared(program)) > 3


def test_functions_of_the_package_that_are_replaced(monkeypatch: pytest.MonkeyPatch):
    relu, forward = F.relu, nn.Linear.forward

    def program(capture: Any) -> Any:
        model = nn.Sequential(nn.Linear(4, 3))
        step = capture(lambda x: F.relu(model(x)).detach())

        def call(i: int) -> Any:
            monkeypatch.setattr(F, "relu", relu if i < LATE else lambda x: relu(x) * 2)
            monkeypatch.setattr(nn.Linear, "forward", forward if i < LATE + 3 else lambda *args: forward(*args) * 2)
            return bits(step(X))

        return call

    assert replays(compared(program)) > 3


def test_methods_that_the_step_does_not_call():
    """They may read clocks and files."""

    class Trainer:
        def __init__(self) -> None:
            self.began, self.factor = time.monotonic(), 2.0

        def step(self, x: Any) -> Any:
            return x * self.factor

        def save(self) -> None:
            try:
                open(f"/dev/null/{time.time()}")  # noqa: SIM115
            except OSError:
                self.step(X)

    trainer = Trainer()
    step = compared(lambda capture: (lambda step: lambda i: bits(step(X)))(capture(trainer.step)))
    assert replays(step) > 3, step.reason


def test_errors_that_the_step_catches():
    def program(capture: Any) -> Any:
        @capture
        def step(x: Any, y: Any) -> Any:
            try:
                return F.cross_entropy(x, y)
            except IndexError:
                return x.sum()

        return lambda i: bits(step(X[:, :3], Y if i < LATE else Y + 3))

    assert "the `except` of the step" in compared(program).reason


def test_arrays_of_tensors_and_numbers_of_arrays():
    def program(capture: Any) -> Any:
        counts = sx.zeros(3)

        @capture
        def step(x: Any) -> Any:
            counts.array[...] += 1
            return x.sum() * counts

        return lambda i: bits(step(X), counts)

    assert "the `array` of a tensor" in compared(program).reason
    rows = [np.full((2, 3), float(i < LATE)) for i in range(CALLS)]
    for read in (lambda x: float(np.asarray(x)[0, 0]), lambda x: float(memoryview(x)[0, 0])):

        def of_rows(capture: Any, read: Any = read) -> Any:
            step = capture(lambda x: sx.tensor(x) * read(x))
            return lambda i: bits(step(rows[i]))

        step = compared(of_rows)
        assert "the numbers of a NumPy array" in step.reason


def test_numbers_of_the_package():
    """A scheduler's rate, a closure of an optimizer, a kind of result that a program can't make."""

    def trained(scheduled: bool) -> Any:
        def program(capture: Any) -> Any:
            model = nn.Linear(4, 3)
            optimizer = optim.SGD(model.parameters(), lr=0.1)
            scheduler = optim.lr_scheduler.StepLR(optimizer, 3)

            @capture
            def step(x: Any, y: Any) -> Any:
                def closure() -> Any:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y) * (scheduler.get_last_lr()[0] if scheduled else 1.0)
                    loss.backward()
                    return loss.detach()

                loss = closure() if scheduled else optimizer.step(closure)
                optimizer.step()
                scheduler.step()
                return loss

            return lambda i: bits(step(X * (1.0 + max(i - LATE, 0)), Y), *model.parameters())

        return compared(program)

    assert "get_last_lr" in trained(True).reason
    assert "a closure" in trained(False).reason
    pair = collections.namedtuple("pair", "a b")
    step = compared(lambda capture: (lambda step: lambda i: bits(step(X).a))(capture(lambda x: pair(x * 2, x))))
    assert "returns a pair" in step.reason


def test_tensors_that_get_other_arrays():
    """By an assignment to `data`, and those that stop requiring a gradient."""

    def program(capture: Any) -> Any:
        table, weight = sx.ones(4), sx.ones(4).requires_grad_()
        model, optimizer = nn.BatchNorm1d(4), optim.SGD([weight], lr=0.1)

        @capture
        def step(x: Any) -> Any:
            optimizer.zero_grad()
            loss = (model(x * table) * weight).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        def call(i: int) -> Any:
            if i == LATE:
                table.data = np.full(4, 2, np.float32)
            if i == LATE + 2:
                model.running_mean.data = sx.ones(4)
            weight.requires_grad_(i < LATE + 4)
            model.train(i % 2 == 0)
            return bits(step(X), weight)

        return call

    assert replays(compared(program)) > 3


def test_copies_of_an_instance():
    class Trainer:
        def __init__(self) -> None:
            self.factor = 2.0

        @sx.compile
        def step(self, x: Any) -> Any:
            return x * self.factor

    one = Trainer()
    for _ in range(6):
        one.step(X)
    other = copy.deepcopy(one)
    other.factor = 3.0
    for trainer in (one, other) * 5:
        assert bits(trainer.step(X)) == bits(X * trainer.factor)
    assert other.step is not one.step
    assert replays(one.step)
    assert replays(other.step)


def test_code_that_exec_has_made():
    names: dict[str, Any] = {}
    exec("def scaled(x):\n    return x * scale", names)
    scaled = names["scaled"]

    def program(capture: Any) -> Any:
        step = capture(lambda x: scaled(x))

        def call(i: int) -> Any:
            names["scale"] = 1.0 if i < LATE else 2.0
            return bits(step(X))

        return call

    assert replays(compared(program)) > 3


def test_builtin_names():
    module: Any = types.ModuleType("settings")
    exec("def scale():\n    return float(len([1, 2]))", vars(module))

    def program(capture: Any) -> Any:
        vars(module).pop("len", None)
        step = capture(lambda x: x * module.scale())

        def call(i: int) -> Any:
            if i == LATE:
                module.len = lambda x: 5
            return bits(step(X))

        return call

    assert replays(compared(program)) > 3


def wrapped(module: nn.Module) -> tuple[Any, Any, Any]:
    """A wrapped model, its optimizer, and this rank's rows of a batch."""
    model = sx.DistributedDataParallel(module)
    (batch,) = DataLoader(Dataset(X.numpy(), Y.numpy()), batch_size=8)
    return model, optim.SGD(model.parameters(), lr=0.1), batch


def test_any_attribute_beside_wrapped_models():
    """What a wrapper counts for itself is no state of a step that may come to any attribute."""

    def train() -> None:
        def program(capture: Any) -> Any:
            options = types.SimpleNamespace(activation="relu")
            model, optimizer, batch = wrapped(nn.Linear(4, 3))

            @capture
            def step(x: Any, y: Any) -> Any:
                optimizer.zero_grad()
                loss = F.cross_entropy(getattr(F, options.activation)(model(x)), y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            def call(i: int) -> Any:
                options.activation = "relu" if i < LATE else "tanh"
                return bits(step(*batch), *model.parameters())

            return call

        assert replays(compared(program)) > 3

    run_threads(train, 1)
    run_threads(train, 2)


def test_reproducible_mode():
    """The shards of a forward draw the same numbers, by an object that each forward makes."""

    def train() -> None:
        sx.init(virtual_shards=4)

        def program(capture: Any) -> Any:
            layers = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
            model, optimizer, batch = wrapped(layers)

            @capture
            def step(x: Any, y: Any) -> Any:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            return lambda i: bits(step(*batch), *model.parameters())

        assert replays(compared(program)) > 3

    run_threads(train, 1)


def test_global_values():
    """A loss without its graph shows what it is over all ranks; what is computed of it later is not captured."""

    def train(refused: bool) -> None:
        def program(capture: Any) -> Any:
            model, optimizer, batch = wrapped(nn.Linear(4, 3))

            @capture
            def step(x: Any, y: Any) -> Any:
                optimizer.zero_grad()
                out = model(x)
                loss = F.cross_entropy(out, y) + out.square().mean().sqrt() + 0.25
                loss.backward()
                optimizer.step()
                return loss.detach() * 2 if refused else loss.detach()

            return lambda i: bits(step(*batch), *model.parameters())

        step = compared(program)
        if refused:
            assert "the global value of a loss" in step.reason
        else:
            assert replays(step) > 3, step.reason

    run_threads(lambda: train(False), 2)
    run_threads(lambda: train(True), 2)


def test_calls_in_and_out_of_no_sync():
    """The loss of a backward that sums over the ranks is shown over all of them, that of another one is not."""

    def train() -> None:
        def program(capture: Any) -> Any:
            model, optimizer, batch = wrapped(nn.Linear(4, 3))

            @capture
            def step(x: Any, y: Any) -> Any:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss.detach()

            def call(i: int) -> Any:
                if i < LATE:
                    with model.no_sync():
                        return bits(step(*batch))
                loss = step(*batch)
                optimizer.step()
                optimizer.zero_grad()
                return bits(loss, *model.parameters())

            return call

        assert replays(compared(program)) > 6

    run_threads(train, 2)


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: {"x": pair[0], "y": pair[1]}, lambda pair: Batch(*pair)])
def test_batches_are_freed(kind: Any):
    """A program keeps nothing of the calls that it was made of."""
    alive = []

    def program(capture: Any) -> Any:
        step = capture(lambda batch: sum(vars(batch).values() if isinstance(batch, Batch) else of_values(batch)))

        def call(i: int) -> Any:
            pair = X * float(i), X + float(i)
            alive.extend(weakref.ref(x.array) for x in pair)
            return bits(step(kind(pair)))

        return call

    step = compared(program)
    assert replays(step) > 3
    assert not any(array() is not None for array in alive)


class Batch:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


def of_values(batch: Any) -> Any:
    return batch.values() if isinstance(batch, dict) else batch


def test_errors_of_a_program_name_the_line_that_calls_the_step():
    def train() -> None:
        model = sx.DistributedDataParallel(nn.Linear(4, 3))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        (batch,) = DataLoader(Dataset(X.numpy(), Y.numpy()), batch_size=8)

        @sx.compile
        def step(x: Any, y: Any) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        for i in range(CALLS):
            optimizer.param_groups[0]["lr"] = 0.1 + (sx.rank() if i > LATE else 0)
            step(*batch)

    line = train.__code__.co_firstlineno + 13
    with pytest.raises(RuntimeError, match=rf"rank 0 has come to optimizer.step at \S*test_compile_reads.py:{line}"):
        run_threads(train, 2)
