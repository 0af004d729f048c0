"""What Python does around the operations of a captured step: the step has eager's results, or is refused."""

from __future__ import annotations

import enum
import functools
import itertools
import random
import re
import types
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.checkpoint import checkpoint

X = np.random.default_rng(0).standard_normal((6, 8, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, (6, 8))
BATCHES = [*zip(map(sx.tensor, X), map(sx.tensor, Y), strict=True)]
CALLS = 36

Case = Callable[[Any], tuple[Any, Callable[[int], Any]]]
CASES: dict[str, tuple[Case, str | None]] = {}
GLOBAL = 1.0


def case(refused: str | None = None) -> Callable[[Case], Case]:
    """A case makes a captured step and a function of the number of a call, which changes things and calls the step.

    refused: a part of the reason why it is never captured; None: it is captured.
    """

    def register(function: Case) -> Case:
        CASES[function.__name__] = function, refused
        return function

    return register


def values(x: Any) -> Any:
    """Something that compares bit for bit."""
    if isinstance(x, sx.Tensor):
        return x.dtype, x.shape, x.requires_grad, np.asarray(x.numpy()).tobytes()
    if isinstance(x, nn.Module):
        return [values(v) for v in x.state_dict().values()]
    if isinstance(x, tuple | list):
        return [values(v) for v in x]
    return repr(x)


def trained(capture: Any, scale: Callable[[], Any], model: nn.Module | None = None) -> Any:
    """A captured training step whose loss is scaled by what `scale` reads; returns it and its model."""
    model = nn.Linear(4, 3) if model is None else model
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @capture
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * scale()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, model


# -- numbers that lie somewhere else


@case()
def in_a_dict(capture):
    options = {"scale": 1.0}
    step, model = trained(capture, lambda: options["scale"])

    def call(i):
        options["scale"] = 1.0 + i // 12
        return step(*BATCHES[i % 6]), model

    return step, call


@case()
def in_a_list_of_an_object(capture):
    options = types.SimpleNamespace(scales=[1.0])
    step, model = trained(capture, lambda: options.scales[0])

    def call(i):
        options.scales[0] = 1.0 + i // 12
        return step(*BATCHES[i % 6]), model

    return step, call


@case()
def in_a_tensor_of_numbers(capture):
    options = {"scales": [1.0, 2.0]}
    step, model = trained(capture, lambda: sx.tensor(options["scales"]).sum() * sx.tensor(options["scales"][1]))

    def call(i):
        options["scales"][0] = 1.0 + i // 12
        options["scales"][1] = 0.5 + i // 18
        return step(*BATCHES[i % 6]), model

    return step, call


@case("comes from nowhere")
def in_a_tensor_of_an_array(capture):
    draw = np.random.default_rng(0)
    step = capture(lambda x: x * sx.tensor(draw.random(4)))
    return step, lambda i: step(BATCHES[i % 6][0])


@case()
def in_places_that_follow_from_shapes(capture):
    """Functions that make arrays of integers or flags by NumPy."""

    def scores(x: Any) -> Any:
        image = x.reshape(-1, 1, 4, 4)
        large = F.interpolate(image, scale_factor=2) + F.interpolate(image, size=(8, 8), mode="bilinear")
        windows = (
            F.unfold(F.pad(large, (1, 1, 1, 1), mode="reflect"), 3).sum((0, 2)) + large[0, 0].unfold(1, 3, 2).sum()
        )
        pooled = (
            F.adaptive_max_pool2d(large, 3).sum() + F.conv3d(image.transpose(0, 1)[None], sx.ones(1, 1, 2, 2, 2)).sum()
        )
        squares = image[:, 0]
        causal = squares.masked_fill(sx.triu(sx.ones(4, 4), 1).bool(), float("-inf")).softmax(-1).tril(-1)
        traces = sx.einsum("bii->b", squares).sum() + sx.diagonal(squares, 0, 1, 2).sum()
        inverse = sx.linalg.inv(causal @ causal.transpose(1, 2) + sx.eye(4)).sum()
        diagonals = sx.diag(sx.diag(squares[0])) * 2
        return windows.sum() + pooled + causal.sum() + traces + inverse + diagonals.sum()

    step = capture(scores)
    return step, lambda i: step(sx.cat([BATCHES[i % 6][0]] * 2, 1)[: 4 + 4 * (i > 20)] * 1.0)


@case()
def in_a_place_for_each_row(capture):
    weights = [2.0, 1.0]

    def picked(x: Any, y: Any) -> Any:
        weights_of_rows = sx.where(y > 0, *weights)
        return (x[range(len(x)), y] * weights_of_rows).sum() + x[sx.arange(x.shape[0]), y].sum()

    step = capture(picked)

    def call(i):
        weights[0] = 2.0 + i // 12
        return step(BATCHES[i % 6][0], BATCHES[i % 6][1] % 2)

    return step, call


class Settings:
    scale = 1.0

    def scaled(self, x: Any) -> Any:
        return x * self.scale


@case()
def in_an_object_that_a_method_reads(capture):
    settings = Settings()
    step = capture(lambda x: settings.scaled(x))

    def call(i):
        settings.scale = 1.0 + i // 12
        return step(BATCHES[i % 6][0])

    return step, call


@case()
def in_a_class(capture):
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x: Any) -> Any:
            return super().forward(x) * self.scale

    step, model = trained(capture, lambda: 1.0, Scaled(4, 3))

    def call(i):
        Scaled.scale = 1.0 + i // 12
        return step(*BATCHES[i % 6]), model

    return step, call


@case()
def in_a_list_and_a_global_that_a_forward_reads(capture):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            self.body, self.scales = nn.Linear(4, 3), [1.0]

        def forward(self, x: Any) -> Any:
            return self.scaled(self.body(x)) * GLOBAL

        def scaled(self, x: Any) -> Any:
            return x * self.scales[0]

    step, model = trained(capture, lambda: 1.0, Scaled())

    def call(i):
        global GLOBAL
        GLOBAL, model.scales[0] = 1.0 + i // 24, 1.0 + i // 12
        return step(*BATCHES[i % 6]), model

    return step, call


class Choice(enum.Enum):
    ONE = 1
    TWO = 2


@case()
def in_an_enumeration(capture):
    choice = Choice.ONE
    step = capture(lambda x: x * 2 if choice is Choice.ONE else x)

    def call(i):
        nonlocal choice
        choice = Choice.ONE if i % 2 else Choice.TWO
        return step(BATCHES[0][0])

    return step, call


@case()
def in_a_small_array(capture):
    weights = np.ones(3)
    step = capture(lambda x: x * float(weights[0]))

    def call(i):
        weights[0] = 1.0 + i // 12
        return step(BATCHES[0][0])

    return step, call


@case()
def more_arguments_or_the_same_one_twice(capture):
    x, other = BATCHES[0][0], BATCHES[1][0]
    step = capture(lambda x, y=None: x * 2 if y is None else x - y * 2)
    calls = [(x,), (x, other), (x, x), (x, other), (other,)]
    return step, lambda i: step(*calls[i // 8])


@case()
def of_a_name_that_loses_its_value(capture):
    scale = 2.0
    step = capture(lambda x: x * scale)

    def call(i):
        nonlocal scale
        if i == 12:
            del scale
        elif i == 13:
            scale = 3.0
        try:
            return step(BATCHES[0][0])
        except NameError as error:
            return str(error)

    return step, call


@case()
def equal_numbers_of_other_kinds(capture):
    step = capture(lambda x, number: (x * number, 0 * x * number))
    given = [True, 1, 1.0, 0.0, -0.0, 0, False]

    def call(i):
        return step(sx.tensor(np.arange(3)), given[i // 5 % len(given)])

    return step, call


@dataclass
class Batch:
    x: Any
    y: Any
    weight: float


@case()
def batches_that_are_objects(capture):
    step = capture(lambda batch: batch.x * batch.weight + batch.y[:, None])

    def call(i):
        return step(Batch(*BATCHES[i % 6], weight=1.0 + i // 12))

    return step, call


@case()
def fields_of_dataclasses(capture):
    options = Batch(2.0, 3.0, 1.0)

    def scale() -> float:
        found = [getattr(options, field.name) for field in fields(options)]
        return sum(found) * asdict(options)["weight"] + replace(options, x=4.0).x * vars(options)["y"]

    step, _ = trained(capture, scale)

    def call(i):
        options.weight = 1.0 + i // 12
        return step(*BATCHES[i % 6])

    return step, call


@case()
def arguments_that_are_one_tensor_at_first(capture):
    step = capture(lambda x, y: x * y + x)

    def call(i):
        return step(BATCHES[i % 6][0], BATCHES[i % 6 if i < 12 else 0][0])

    return step, call


@case()
def an_argument_that_the_step_names_too(capture):
    table = BATCHES[0][0]
    step = capture(lambda x: x * table)

    def call(i):
        return step(table if i < 6 else BATCHES[i % 6][0])

    return step, call


@case()
def lookups_by_labels(capture):
    model = nn.Linear(4, 3)

    def step(x: Any, y: Any) -> Any:
        scores = model(x)
        loss = F.mse_loss(scores, F.one_hot(y, 3).float()) + scores.gather(1, y[:, None]).square().mean()
        loss.backward()
        return scores.index_select(1, y).detach()

    captured = capture(step)
    return captured, lambda i: (model.zero_grad(), captured(*BATCHES[i % 6]), model.W.grad.numpy().copy())[1:]


@case()
def a_branch_on_which_tensor_it_is(capture):
    table, other = BATCHES[0][0], BATCHES[1][0]
    step = capture(lambda x: x if x is table else x * 2)
    return step, lambda i: step(table if i > 12 and i % 2 else other)


# -- what is called


@case()
def a_layer_that_is_replaced(capture):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    step, _ = trained(capture, lambda: 1.0, model)

    def call(i):
        if i == 12:
            model[1] = nn.Tanh()
        if i == 24:
            model.append(nn.ReLU())
        return step(*BATCHES[i % 6]), model

    return step, call


@case()
def a_model_in_an_object(capture):
    run = types.SimpleNamespace(model=nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    run.optimizer = optim.SGD(run.model.parameters(), lr=0.1)

    @capture
    def step(x: Any, y: Any) -> None:
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()

    def call(i):
        run.model.train(i < 12)
        if i == 24:
            run.model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1))
            run.optimizer = optim.Adam(run.model.parameters())
        step(*BATCHES[i % 6])
        return run.model

    return step, call


@case()
def a_partial_a_module_and_an_object_that_is_called(capture):
    class Doubled:
        factor = 2.0

        def __call__(self, x: Any) -> Any:
            return x * self.factor

    dropout, doubled = nn.Dropout(0.5), Doubled()
    steps = [capture(functools.partial(sx.mul, 2.0)), capture(dropout), capture(doubled)]

    def call(i):
        dropout.train(i < 12)
        doubled.factor = 2.0 + i // 12
        return [step(BATCHES[i % 6][0]) for step in steps]

    return steps[2], call


@case()
def a_function_that_a_model_has(capture):
    class Model(nn.Linear):
        act = staticmethod(F.relu)

        def forward(self, x: Any) -> Any:
            return self.act(super().forward(x))

    step, model = trained(capture, lambda: 1.0, Model(4, 3))

    def call(i):
        if i == 12:
            model.act = F.tanh
        return step(*BATCHES[i % 6]), model

    return step, call


# -- what a program would not repeat


@case("changes the mode or a number of a module")
def a_module_that_counts(capture):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls = (self.calls + 1) % 4
            return super().forward(x) * (1 if self.calls else 2)

    step, model = trained(capture, lambda: 1.0, Counting(4, 3))
    return step, lambda i: (step(*BATCHES[i % 6]), model, model.calls)


@case("changes `calls`")
def every_second_call(capture):
    model, calls = nn.Linear(4, 3), [0]
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @capture
    def step(x: Any, y: Any) -> None:
        F.cross_entropy(model(x), y).backward()
        calls[0] += 1
        if calls[0] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step, lambda i: (step(*BATCHES[i % 6]), model)


@case("changes `history`")
def a_list_that_grows(capture):
    history: list[Any] = []
    step = capture(lambda x: history.append(x))
    return step, lambda i: (step(BATCHES[0][0]), len(history))


@case("changes `state`")
def a_state_that_goes_on(capture):
    cell, state = nn.GRUCell(4, 3), sx.zeros(8, 3)

    @capture
    def step(x: Any) -> Any:
        nonlocal state
        with sx.no_grad():
            state = cell(x, state)
        return state

    return step, lambda i: step(BATCHES[i % 6][0])


@case("changes `weights`")
def an_array_that_is_changed(capture):
    weights = np.zeros(100)

    @capture
    def step(x: Any) -> Any:
        weights[0] += 1
        return x * 2

    return step, lambda i: (step(BATCHES[0][0]), weights[0])


@case("changes an argument")
def an_argument_that_is_changed(capture):
    history: list[Any] = []
    step = capture(lambda x, found: found.append(x))
    return step, lambda i: (step(BATCHES[0][0], history), len(history))


@case("random numbers")
def a_rare_random_number(capture):
    random.seed(1)
    step = capture(lambda x: x * 2 if random.random() < 0.1 else x)
    return step, lambda i: step(BATCHES[0][0])


@case("changes `rng`")
def a_generator_of_numpy(capture):
    rng = np.random.default_rng(1)
    step = capture(lambda x: x * 2 if rng.random() < 0.1 else x)
    return step, lambda i: step(BATCHES[0][0])


@case("a cycle, which it takes things from")
def an_iterator(capture):
    scales = itertools.cycle([1.0] * 7 + [2.0])
    step = capture(lambda x: x * next(scales))
    return step, lambda i: step(BATCHES[0][0])


@case("manual_seed can't be captured")
def a_seed(capture):
    def step(x: Any) -> Any:
        sx.manual_seed(3)
        return x + sx.randn(4)

    captured = capture(step)
    return captured, lambda i: captured(BATCHES[0][0])


@case("reads or changes the numbers of a NumPy array")
def a_branch_on_an_array(capture):
    step = capture(lambda x, numbers: x * 2 if numbers[0] > 9 else x)
    return step, lambda i: step(BATCHES[0][0], np.array([float(i)]))


@case("options of an optimizer")
def a_learning_rate_that_is_set_inside(capture):
    model = nn.Linear(4, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    @capture
    def step(x: Any, y: Any, lr: float) -> None:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, lambda i: (step(*BATCHES[i % 6], 0.1 if i % 2 else 0.01), model)


@case("backward\\(\\) could be called on")
def a_graph_that_is_returned(capture):
    model = nn.Linear(4, 3)
    step = capture(lambda x, y: F.cross_entropy(model(x), y))

    def call(i):
        model.zero_grad()
        (step(*BATCHES[i % 6]) + model.W.square().sum()).backward()
        return model.W.grad

    return step, call


@case("the gradient of an argument")
def a_gradient_of_an_argument(capture):
    given = [sx.tensor(x, requires_grad=True) for x in X[:2]]

    def step(x: Any) -> None:
        (x**2).sum().backward()

    captured = capture(step)

    def call(i):
        captured(given[i > 12])
        return given[i > 12].grad

    return captured, call


CHANGING = [sx.tensor(np.arange(8) % (2 if i < 12 else 3)) for i in range(CALLS)]


@case("`in` reads the numbers of a tensor")
def a_label_that_comes_later(capture):
    model = nn.Linear(4, 3)
    step = capture(lambda x, y: model(x).square().mean() * (2.0 if 2 in y else 1.0))
    return step, lambda i: step(BATCHES[i % 6][0], CHANGING[i])


@case("numpy.unique reads the numbers of a tensor")
def a_number_by_numpy(capture):
    model = nn.Linear(4, 3)
    step = capture(lambda x, y: model(x).square().mean() * len(np.unique(y)))
    return step, lambda i: step(BATCHES[i % 6][0], CHANGING[i])


@case("autograd.grad")
def a_derivative_in_the_loss(capture):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def step(x: Any) -> Any:
        x = x.detach().requires_grad_()
        (slope,) = sx.grad(model(x).sum(), x, create_graph=True)
        slope.square().mean().backward()
        return model[0].W.grad

    captured = capture(step)
    return captured, lambda i: (model.zero_grad(), captured(BATCHES[i % 6][0]).numpy().copy())[1]


@case("random numbers inside of checkpoint")
def dropout_that_a_backward_draws_again(capture):
    model = nn.Linear(4, 3)

    def step(x: Any) -> Any:
        checkpoint(lambda v: F.dropout(model(v), 0.5), x).square().mean().backward()

    captured = capture(step)
    return captured, lambda i: (model.zero_grad(), captured(BATCHES[i % 6][0]), model.W.grad.numpy().copy())[2]


@case()
def a_call_without_a_result_beside_a_name_like_a_variable(capture):
    """The seventh line draws no mask, and `float64` has the name of its variable, t6, in it."""
    model = nn.Linear(4, 3).double()

    def step(x: Any) -> Any:
        u = model(x.double())
        attended = F.scaled_dot_product_attention(u.transpose(0, 1), u.transpose(0, 1), u.transpose(0, 1))
        attended.square().mean().backward()

    captured = capture(step)
    return captured, lambda i: (model.zero_grad(), captured(BATCHES[i % 6][0]), model.W.grad.numpy().copy())[2]


@pytest.mark.parametrize("name", CASES)
def test_python(name: str):
    make, refused = CASES[name]
    ends = []
    for capture in (lambda step: step, sx.compile):
        sx.manual_seed(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step, call = make(capture)
            ends.append([values(call(i)) for i in range(CALLS)])
    assert ends[0] == ends[1]
    replays = sum(entry.runs for entry in step._programs.values())
    if refused is None:
        assert replays > 3, step.reason
    else:
        (warning,) = [str(w.message) for w in said]
        assert "runs as it is" in warning
        assert re.search(refused, warning), warning
        assert replays == 0


def test_steps_that_are_given_up_stay_quick():
    """After too many kinds of calls nothing is looked for any more."""
    count = 0
    step = sx.compile(lambda x: x * count)

    def call() -> None:
        nonlocal count
        for count in range(300):  # noqa: B007
            step(BATCHES[0][0])

    with pytest.warns(RuntimeWarning, match="more than 256 kinds of calls"):
        call()
    reads = step._reads
    step(BATCHES[0][0])
    assert step._reads is reads
    assert len(step._states) <= 256
