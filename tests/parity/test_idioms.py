"""What scripts do with modules, states, hooks and schedulers: the same lines with PyTorch and here give the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx

torch = pytest.importorskip("torch")

IDIOMS: dict[str, Callable[[Any], Any]] = {}


def idiom(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    IDIOMS[function.__name__] = function
    return function


def net(T: Any) -> Any:
    """A model that holds its buffers, a persistent one and another, and layers."""

    class Net(T.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = T.nn.Linear(3, 4, bias=False), T.nn.Linear(4, 2, bias=False)
            self.register_buffer("seen", T.zeros(2))
            self.register_buffer("cache", T.ones(1), persistent=False)
            self.scale = T.nn.Parameter(T.ones(2))

        def forward(self, x: Any, scale: float = 1.0) -> Any:
            return self.last(self.first(x)) * self.scale * scale

    return Net()


def names(tensors: Any) -> list[str]:
    """Without the layers' weights, which are W here."""
    return sorted(name.replace(".W", ".weight") for name, _ in tensors)


def kinds(modules: Any) -> list[str]:
    return [type(module).__name__ for module in modules]


@idiom
def attributes_of_a_sequential(T: Any) -> Any:
    class Transition(T.nn.Sequential):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.act = T.nn.Flatten(), T.nn.ReLU()

    made = Transition()
    made.add_module("late", T.nn.Tanh())
    del made.flat
    return names(made.named_children()), len(made), made(-T.ones(1, 2)).tolist()


@idiom
def attributes_of_a_dict(T: Any) -> Any:
    made = T.nn.ModuleDict({"a": T.nn.ReLU()})
    made.add_module("b", T.nn.Tanh())
    made.c = T.nn.Identity()
    before = list(made), kinds(made.values())
    made.pop("a")
    made.clear()
    return before, len(made)


@idiom
def a_list_as_a_list(T: Any) -> Any:
    made = T.nn.ModuleList([T.nn.ReLU() for _ in range(3)])
    made.append(T.nn.Tanh())
    made.insert(0, T.nn.Identity())
    made += [T.nn.ELU()]
    longer = made + T.nn.ModuleList([T.nn.Sigmoid()])
    del made[1]
    last, _ = made.pop(-1), made.__delitem__(slice(0, 1))
    return kinds(made), kinds(longer), kinds([last]), names(made.named_children())


@idiom
def a_row_without_its_head(T: Any) -> Any:
    made = T.nn.Sequential(T.nn.ReLU(), T.nn.Tanh(), T.nn.ELU())
    del made[1]
    cut = made.pop(-1)
    return kinds(made + T.nn.Sequential(cut, cut)), names(made.named_children())


@idiom
def a_layer_of_two_names(T: Any) -> Any:
    made = T.nn.ModuleDict({"conv": T.nn.Conv1d(1, 1, 1)})
    made.row = T.nn.Sequential(made["conv"], T.nn.ReLU())
    modules = names(made.named_modules()), names(made.named_modules(remove_duplicate=False))
    made.load_state_dict({name: T.zeros(tuple(value.shape)) for name, value in made.state_dict().items()})
    return sorted(made.state_dict()), modules, len(list(made.parameters())), made["conv"].bias.tolist()


@idiom
def own_tensors_and_prefixes(T: Any) -> Any:
    model = net(T)
    return (
        names(model.named_parameters(recurse=False)), names(model.named_parameters("net")),
        names(model.named_buffers(prefix="net")), names(model.state_dict(prefix="net.").items()),
        len(list(model.parameters(recurse=False))), len(list(model.buffers(recurse=False))),
    )  # fmt: skip


@idiom
def refused_attributes(T: Any) -> Any:
    model = net(T)
    for name, value in (("first", 3), ("first", T.zeros(1)), ("scale", T.zeros(2)), ("seen", 3)):
        with pytest.raises(TypeError):
            setattr(model, name, value)
    model.first = None
    return names(model.named_children())


@idiom
def hooks_with_keywords(T: Any) -> Any:
    model, seen = net(T).eval(), []
    for each in model.parameters():
        T.nn.init.ones_(each)
    before = model.register_forward_pre_hook(lambda m, a, k: (a, {"scale": 2 * k["scale"]}), with_kwargs=True)
    model.register_forward_hook(lambda m, a, k, out: seen.append(k), with_kwargs=True)
    model.register_forward_hook(lambda m, a, out: seen.append("first"), prepend=True)
    doubled = model(T.ones(1, 3), scale=3.0).tolist()
    before.remove()
    return doubled, model(T.ones(1, 3), scale=3.0).tolist(), seen


@idiom
def copies_have_no_gradient(T: Any) -> Any:
    model = net(T)
    model(T.ones(1, 3)).sum().backward()
    return [parameter.grad for parameter in copy.deepcopy(model).parameters()]


@idiom
def pretrained_vectors(T: Any) -> Any:
    vectors = T.arange(6.0).view(3, 2)
    frozen, free = T.nn.Embedding.from_pretrained(vectors), T.nn.Embedding.from_pretrained(vectors, freeze=False)
    return frozen(T.tensor([1])).tolist(), [next(iter(e.parameters())).requires_grad for e in (frozen, free)]


@idiom
def gradients_with_all_options(T: Any) -> Any:
    x = T.ones(2, requires_grad=True)
    found = T.autograd.grad(
        outputs=(x * 2).sum(), inputs=[x], retain_graph=True, create_graph=True, only_inputs=True, allow_unused=True
    )
    return [g.tolist() for g in found]


@idiom
def numbers_in_texts(T: Any) -> Any:
    return f"{T.tensor(3)} {T.tensor(2.5)} {T.tensor(2.0):.2f} {T.tensor(True)}"


def rates(T: Any, make: Callable[[Any, Any], Any]) -> list[float]:
    optimizer = T.optim.SGD(T.nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler, found = make(T.optim.lr_scheduler, optimizer), []
    for _ in range(8):
        found.append(round(optimizer.param_groups[0]["lr"], 12))
        optimizer.step()
        scheduler.step()
    return [*found, *(round(lr, 12) for lr in scheduler.get_last_lr())]


@idiom
def chained_schedulers(T: Any) -> Any:
    return rates(
        T, lambda s, o: s.ChainedScheduler([s.ConstantLR(o, factor=0.1, total_iters=2), s.ExponentialLR(o, gamma=0.9)])
    )


@idiom
def schedulers_of_users(T: Any) -> Any:
    base = T.optim.lr_scheduler._LRScheduler

    class WarmUp(base):  # type: ignore[misc, valid-type]
        def __init__(self, optimizer: Any, steps: int, last_epoch: int = -1) -> None:
            self.steps = steps
            super().__init__(optimizer, last_epoch)

        def get_lr(self) -> list[float]:
            return [lr * min(1.0, (self.last_epoch + 1) / self.steps) for lr in self.base_lrs]

    class Recursive(base):  # type: ignore[misc, valid-type]
        def get_lr(self) -> list[float]:
            return [g["lr"] * (0.5 if self.last_epoch else 1.0) for g in self.optimizer.param_groups]

    class Clipped(T.optim.lr_scheduler.ExponentialLR):  # type: ignore[misc]
        def get_lr(self) -> list[float]:
            return [max(0.6, lr) for lr in super().get_lr()]

    return [
        rates(T, lambda s, o: WarmUp(o, 4)), rates(T, lambda s, o: Recursive(o)),
        rates(T, lambda s, o: Clipped(o, gamma=0.9)),
        rates(T, lambda s, o: s.SequentialLR(o, [WarmUp(o, 3), s.ExponentialLR(o, 0.5)], milestones=[3])),
    ]  # fmt: skip


def weights(T: Any, *shape: int) -> Any:
    return T.tensor(np.random.default_rng(3).standard_normal(shape))


def rounded(*tensors: Any) -> Any:
    return [np.round(x.detach().numpy(), 10).tolist() for x in tensors]


@idiom
def bags_of_embeddings(T: Any) -> Any:
    table, found = weights(T, 6, 3).requires_grad_(), []
    rows, flat, starts = T.tensor([[1, 2, 2], [0, 5, 3]]), T.tensor([1, 2, 4, 5, 4, 3, 0]), T.tensor([0, 2, 2, 6])
    bag = T.nn.functional.embedding_bag
    for mode in ("sum", "mean", "max"):
        for out in (
            bag(rows, table, mode=mode), bag(flat, table, starts, mode=mode),
            bag(rows, table, mode=mode, padding_idx=2),
            bag(flat, table, starts, mode=mode, padding_idx=4), bag(flat, table, T.tensor([0, 7]), mode=mode),
            bag(flat, table, T.tensor([0, 3, 7]), mode=mode, include_last_offset=True),
        ):  # fmt: skip
            table.grad = None
            (out * out).sum().backward()
            found += rounded(out, table.grad)
    found += rounded(bag(flat, table, starts, mode="sum", per_sample_weights=weights(T, 7)))
    layer = T.nn.EmbeddingBag(6, 3, mode="sum", _weight=weights(T, 6, 3))
    return found + rounded(layer(rows), layer(flat, starts)), list(
        T.nn.EmbeddingBag(4, 2, padding_idx=1)(rows % 4).shape
    )


@idiom
def parameters_by_name(T: Any) -> Any:
    made = T.nn.ParameterDict({"b": T.nn.Parameter(T.ones(2)), "a": T.zeros(1)})
    made["c"] = T.ones(3)
    made.update({"d": T.nn.Parameter(T.ones(1))})
    del made["a"]
    model = T.nn.Sequential(T.nn.Identity())
    model.own = made
    return list(made), len(made), "b" in made, [list(v.shape) for v in made.values()], sorted(model.state_dict())


@idiom
def mixed_precision_without_a_gpu(T: Any) -> Any:
    scaler = T.amp.GradScaler("cuda", enabled=False)
    w = T.ones(2, requires_grad=True)
    optimizer = T.optim.SGD([w], lr=0.5)
    for _ in range(2):
        with T.autocast("cpu", enabled=False), T.amp.autocast(device_type="cpu", enabled=False):
            loss = (w * w).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    scaler.load_state_dict(scaler.state_dict())
    return rounded(w), scaler.get_scale(), scaler.is_enabled()


@idiom
def hooks_in_the_backward(T: Any) -> Any:
    seen: list[Any] = []

    class Scaled(T.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = T.nn.Parameter(weights(T, 3))

        def forward(self, x: Any, y: Any = None) -> Any:
            return x * self.w if y is None else x * self.w + y * y

    def note(module: Any, inputs: Any, outputs: Any) -> None:
        seen.append([None if g is None else rounded(g) for g in (*inputs, *outputs)])

    first, last = Scaled(), Scaled()
    model = T.nn.Sequential(first, last)
    handles = [first.register_full_backward_hook(note), last.register_full_backward_hook(note)]
    handles.append(last.register_full_backward_hook(lambda module, given, out: (given[0] * 2,)))
    x, y = weights(T, 2, 3), weights(T, 2, 3).requires_grad_()
    model(x).square().sum().backward()
    last(model(y).detach().requires_grad_()).sum().backward()
    for handle in handles:
        handle.remove()
    two = Scaled()
    two.register_full_backward_hook(note)
    two(y, y * 2).sum().backward()
    model(y).sum().backward()
    with T.no_grad():
        two(y)
    return seen, rounded(first.w.grad, last.w.grad, y.grad)


@idiom
def states_that_do_not_fit(T: Any) -> Any:
    model = T.nn.Conv1d(2, 2, 1)
    for state in ({}, {**model.state_dict(), "more": T.ones(1)}, {**model.state_dict(), "bias": T.ones(3)}):
        with pytest.raises(RuntimeError):
            model.load_state_dict(state)
    return True


@idiom
def orders_of_samples(T: Any) -> Any:
    data = T.utils.data

    class Halves(data.Sampler):  # type: ignore[misc]
        def __init__(self, source: Any) -> None:
            super().__init__()
            self.source = source

        def __iter__(self) -> Any:
            half = len(self.source) // 2
            return iter([*range(half, len(self.source)), *T.arange(half)])

        def __len__(self) -> int:
            return len(self.source)

    class Pairs(data.BatchSampler):  # type: ignore[misc]
        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

        def __iter__(self) -> Any:
            one = None
            for index in self.sampler:
                if one is not None:
                    yield [one, index]
                one = index if one is None else None

        def __len__(self) -> int:
            return len(self.sampler) // 2

    numbers = data.TensorDataset(T.arange(7))

    def read(**options: Any) -> Any:
        loader = data.DataLoader(numbers, **options)
        return len(loader), [[batch.tolist() for (batch,) in loader] for _ in range(2)]

    return [
        read(sampler=Halves(numbers), batch_size=3), read(sampler=Halves(numbers), batch_size=3, drop_last=True),
        read(batch_sampler=Pairs(Halves(numbers))), read(batch_sampler=data.BatchSampler(Halves(numbers), 2, False)),
        read(batch_sampler=data.BatchSampler(data.SequentialSampler(numbers), 4, True)),
        read(sampler=[4, 4, 1], batch_size=2), read(batch_sampler=[[0, 1, 2], [3]]),
        len(data.RandomSampler(numbers)), sorted(data.RandomSampler(numbers)), sorted(data.SubsetRandomSampler([1, 5])),
        len(data.RandomSampler(numbers, replacement=True, num_samples=20)),
    ]  # fmt: skip


@pytest.mark.parametrize("idiom", IDIOMS.values(), ids=IDIOMS.keys())
def test_idioms(idiom: Any) -> None:
    assert idiom(sx) == idiom(torch)


def test_states_that_are_changed_in_place() -> None:
    """PyTorch changes the module, as averages of weights want it; a copy here must not swallow that."""
    model = net(sx)
    state = model.state_dict()
    with sx.no_grad(), pytest.raises(RuntimeError, match=r"`state_dict\(\)` is a copy: give the changed state to"):
        state["seen"].mul_(2)
    with pytest.raises(ValueError, match="read-only"):
        state["seen"].data[...] = 1
    state["seen"] = state["seen"] + 1
    model.load_state_dict(state)
    assert np.array_equal(model.seen.data, [1, 1])
