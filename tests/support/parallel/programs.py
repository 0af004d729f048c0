"""Training programs as people write them: what they end with on one process must come out on any number of ranks.

A program is a function of a Kit, which wraps models and makes loaders; it returns numbers and arrays.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.autograd import Function, grad
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader
from tests.support.parallel.any_loss import columns

ROWS, BATCH = 11, 4
PROGRAMS: dict[str, Program] = {}


class Program(NamedTuple):
    """refused: what the error says that several ranks end with, None where they end as one process does; reproducible:
    the same for reproducible mode on any number of ranks."""

    run: Callable[[Kit], Sequence[Any]]
    refused: str | None
    reproducible: str | None


class Kit:
    """Wraps models and makes loaders; bare: for one process without a wrapper; captured: whether `train` compiles its
    step; epochs: of `train`."""

    def __init__(self, bare: bool, captured: bool = False, epochs: int = 1) -> None:
        self.bare, self.captured, self.epochs = bare, captured, epochs

    def wrap(self, model: Any) -> Any:
        model = model.double()
        return model if self.bare else sx.DistributedDataParallel(model)

    def loader(self, *names: str, rows: int = ROWS) -> Any:
        return DataLoader(Rows(names, rows), batch_size=BATCH)

    def train(self, model: Any, loss: Callable[..., Any], *names: str, rows: int = ROWS) -> list[Any]:
        """The losses and the weights."""
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(*batch: Any) -> Any:
            optimizer.zero_grad()
            value = loss(model, *batch)
            value.backward()
            optimizer.step()
            return value

        step = sx.compile(step) if self.captured else step
        batches = [batch for _ in range(self.epochs) for batch in self.loader(*names, rows=rows)]
        return [step(*batch).item() for batch in batches] + weights(model)


class Rows:
    """A data set of some columns, with the number of each row in `number`."""

    def __init__(self, names: Sequence[str], rows: int) -> None:
        known = columns(rows) | {"number": np.arange(rows)}
        self.columns, self.rows = [known[name] for name in names], rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return tuple(column[index] for column in self.columns)


def weights(*models: Any) -> list[Any]:
    return [x.numpy().copy() for model in models for x in (*model.parameters(), *model.buffers())]


def program(refused: str | None = None, reproducible: str | None = None) -> Any:
    def register(run: Callable[[Kit], Sequence[Any]]) -> Any:
        PROGRAMS[run.__name__] = Program(run, refused, refused if reproducible is None else reproducible)
        return run

    return register


def results(name: str, bare: bool, shards: int | None, captured: bool = False, epochs: int = 1) -> list[Any]:
    if shards:
        sx.init(virtual_shards=shards)
    sx.manual_seed(5)
    return [np.asarray(x, np.float64) for x in PROGRAMS[name].run(Kit(bare, captured, epochs))]


def mlp(outputs: int = 2) -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def unit(v: Any) -> Any:
    return v / (v.square().sum(1, keepdim=True) + 1e-6).sqrt()


# -- writes in place


def with_bank(kit: Kit, write: Callable[[Any, Any, Any], None], bank: Any) -> list[Any]:
    """Trains against a memory bank, into which `write` puts each batch."""
    model, number = kit.wrap(mlp()), 0

    def loss(model: Any, x: Any, i: Any) -> Any:
        nonlocal number
        z = model(x)
        value = (z @ bank.T.clone()).exp().mean() + z.square().mean()
        write(bank, i, z.detach())
        number += 1
        return value

    return [*kit.train(model, loss, "x", "number"), bank.numpy()]


def zeros(*size: int) -> Any:
    return sx.zeros(*size, dtype=sx.float64)


@program()
def bank_by_numbers_of_rows(kit):
    return with_bank(kit, lambda bank, i, z: bank.__setitem__(i, z), zeros(ROWS, 2))


@program("rows of all ranks are written")
def bank_by_numpy_numbers(kit):
    return with_bank(kit, lambda bank, i, z: bank.__setitem__(i.numpy(), z), zeros(ROWS, 2))


@program("rows of all ranks are written")
def queue_by_own_length(kit):
    return with_bank(kit, lambda bank, i, z: bank.__setitem__(slice(0, len(z)), z), zeros(8, 2))


@program()
def queue_by_cat(kit):
    def write(bank, i, z):
        bank.copy_(sx.cat([z, bank])[:8])

    return with_bank(kit, write, zeros(8, 2))


@program()
def centres_by_labels(kit):
    centres = zeros(3, 2)

    def loss(model, x, t):
        z = model(x)
        value = (z - centres[t]).square().sum(1).mean()
        centres[t] += 0.1 * z.detach()
        return value

    return [*kit.train(kit.wrap(mlp()), loss, "x", "t"), centres.numpy()]


@program(reproducible="holds alike")
def rows_copied_into_a_buffer(kit):
    buffer = zeros(4, 2)

    def loss(model, x):
        z = model(x)
        value = (z - buffer).square().mean()
        buffer.copy_(z.detach())
        return value

    return kit.train(kit.wrap(mlp()), loss, "x", rows=8)


@program()
def data_assigned(kit):
    mean = zeros(2)

    def loss(model, x):
        z = model(x)
        mean.data = 0.9 * mean.data + 0.1 * z.detach().mean(0)
        return (z - mean).square().mean()

    return [*kit.train(kit.wrap(mlp()), loss, "x"), mean.numpy()]


@program("positions in it mean other rows")
def positions_of_rows_written(kit):
    def loss(model, x):
        changed = x.clone()
        changed[0] = 0.0
        return model(changed).square().mean()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def rows_written(kit):
    def loss(model, x, z, w, t):
        y = x.clone()
        y[w > 1] = 0.5
        y[:, 0] = sx.arange(sx.global_rows(x)).double()
        y[:, 1] += w
        y[:, 2:].copy_(sx.global_value(z)[:, :1])
        one_hot = zeros(len(t), 3)
        one_hot[range(len(t)), t] = 1.0
        own = zeros(len(t), 2)
        own[:, 0] = w
        own[w > 1] = z[w > 1][:, :2]
        own.add_(w[:, None])
        return (model(y) - one_hot).square().mean() + (model(x)[:, :2] * own).mean().exp()

    return kit.train(kit.wrap(mlp(3)), loss, "x", "z", "w", "t")


class OutputBuffer(nn.Module):
    def __init__(self):
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x):
        h, outputs = zeros(len(x), 4), zeros(len(x), x.shape[1], 4)
        with sx.no_grad():
            for time in range(x.shape[1]):
                h = self.cell(x[:, time], h)
                outputs[:, time] = h
        return self.cell(outputs.mean(1)[:, :3], h)


@program()
def outputs_of_each_time(kit):
    return kit.train(kit.wrap(OutputBuffer()), lambda model, s: model(s).square().mean(), "seq")


# -- NumPy's functions, tests of Python, numbers


def written(write: Callable[..., Any], size: tuple[int, ...], *operands: Any) -> Any:
    """What NumPy writes of operands into zeros."""
    array = np.zeros(size)
    write(array, *operands)
    return array


WITH_NUMPY: dict[str, Callable[..., Any]] = {
    "median": lambda o, x, w, t: ((o - 1) * (w > np.median(w))).square().mean(),
    "percentile": lambda o, x, w, t: (o / np.percentile(w, 80)).square().mean(),
    "linalg_norm": lambda o, x, w, t: (o / np.linalg.norm(x)).square().mean(),
    "ranking": lambda o, x, w, t: (o * np.argsort(np.argsort(w))).mean(),
    "unique": lambda o, x, w, t: (o * len(np.unique(t))).mean(),
    "bincount": lambda o, x, w, t: (o * sx.tensor(1.0 / (np.bincount(t, minlength=3) + 1))[t]).mean(),
    "ufunc": lambda o, x, w, t: (o * np.cbrt(w.mean()) * np.add.reduce(w.detach())).mean(),
    "by_row": lambda o, x, w, t: (o * np.nan_to_num(w)).mean(),
    "by_row_and_sum": lambda o, x, w, t: (o * np.cbrt(w).mean() * np.isclose(w, t).sum()).square().mean(),
    "where": lambda o, x, w, t: (o * np.where(w > 0.6)[0].sum()).mean(),
    "add_at": lambda o, x, w, t: (o * sx.tensor(written(np.add.at, (3,), t, w))[t]).mean(),
    "put": lambda o, x, w, t: (o * written(np.put, (3,), t, w).sum()).mean(),
    "out": lambda o, x, w, t: (o * written(lambda a: np.matmul(x.T, x, out=a), (3, 3)).sum()).mean(),
    "copyto": lambda o, x, w, t: (o * written(np.copyto, (3,), x.mean(0)).sum()).mean(),
    "copyto_rows": lambda o, x, w, t: (o * written(np.copyto, w.shape, w)).mean(),
    "contains": lambda o, x, w, t: o.square().mean() if 2 in t else o.abs().mean(),
    "allclose": lambda o, x, w, t: o.square().mean() if sx.allclose(t, 0 * t) else o.abs().mean(),
    "equal": lambda o, x, w, t: o.square().mean() if sx.equal(t, 0 * t) else o.abs().mean(),
}


def _register(name: str, loss: Callable[..., Any]) -> None:
    def run(kit: Kit) -> list[Any]:
        return kit.train(kit.wrap(mlp(1)), lambda model, x, w, t: loss(model(x)[:, 0], x, w, t), "x", "w", "t")

    run.__name__ = f"numpy_{name}"
    program()(run)


for _name, _loss in WITH_NUMPY.items():
    _register(_name, _loss)


@program("cross_entropy: there is a column for each|target must hold one class|has ended already")
def contrastive_labels_of_this_rank(kit):
    def loss(model, x, z):
        return F.cross_entropy(unit(model(x)) @ unit(model(z)).T, sx.arange(len(x)))

    return kit.train(kit.wrap(mlp()), loss, "x", "z", rows=8)


def _of_pairs(name: str, change: Callable[[Any], Any], **outcome: str) -> None:
    def run(kit: Kit) -> list[Any]:
        def loss(model: Any, x: Any, z: Any) -> Any:
            return change(unit(model(x)) @ unit(model(z)).T).logsumexp(-1).mean()

        return kit.train(kit.wrap(mlp()), loss, "x", "z", rows=8)

    run.__name__ = f"pairs_{name}"
    program(**outcome)(run)


def _numbered(pairs: Any, numbers: Any, value: Any) -> Any:
    pairs = pairs.clone()
    pairs[numbers, numbers] = value
    return pairs


_OWN = {"refused": "there is a column for each of the 4 rows of all ranks", "reproducible": ""}
_of_pairs("numbered", lambda s: s[sx.arange(s.shape[0]), sx.arange(s.shape[0])][:, None] - s)
_of_pairs("numbered_in_a_write", lambda s: _numbered(s, sx.arange(s.shape[0]), -9.0))
_of_pairs("numbered_by_range", lambda s: s[range(len(s)), range(len(s))][:, None] - s, **_OWN)
_of_pairs("numbered_by_numpy", lambda s: s[np.arange(len(s)), np.arange(len(s))][:, None] - s, **_OWN)
_of_pairs("gathered", lambda s: s.gather(1, sx.arange(len(s))[:, None]) - s, **_OWN)
_of_pairs("numbered_in_a_write_by_range", lambda s: _numbered(s, range(len(s)), -9.0), **_OWN)
_of_pairs("masked", lambda s: s * (1 - sx.eye(len(s))), refused="make it of x.shape", reproducible="")


# -- gradients that a program sees


class Normalised(Function):
    """Batch norm with its backward by hand."""

    @staticmethod
    def forward(ctx, x, gamma):
        std = (x.var(0, unbiased=False) + 1e-3).sqrt()
        normal = (x - x.mean(0)) / std
        ctx.save_for_backward(normal, gamma, std)
        return normal * gamma

    @staticmethod
    def backward(ctx, g):
        normal, gamma, std = ctx.saved_tensors
        to_normal = g * gamma
        centred = to_normal - to_normal.mean(0) - normal * (to_normal * normal).mean(0)
        return centred / std, (g * normal).sum(0)


class NormalisedNet(nn.Module):
    def __init__(self):
        self.first, self.last, self.gamma = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(np.arange(1.0, 5.0))

    def forward(self, x):
        return self.last(Normalised.apply(self.first(x), self.gamma))


@program(reproducible="needs the rows of the whole batch")
def batch_norm_with_its_backward(kit):
    return kit.train(kit.wrap(NormalisedNet()), lambda model, x: model(x).square().mean().sqrt(), "x")


class OfUnitNorm(Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g / (g.norm() + 1e-9)


class ByNumPy(Function):
    """A function of each element and a product with weights, by NumPy."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.arrays = x.numpy(), w.numpy()
        return sx.tensor(np.sin(x.numpy()) @ w.numpy())

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.arrays
        return sx.tensor(np.cos(x) * (g.numpy() @ w.T)), sx.tensor(np.sin(x).T @ g.numpy())


class ByNumPyNet(nn.Module):
    def __init__(self):
        self.first, self.weight = nn.Linear(3, 4), nn.Parameter(np.arange(8.0).reshape(4, 2) / 8)

    def forward(self, x):
        return ByNumPy.apply(self.first(x), self.weight)


@program()
def gradient_of_unit_norm(kit):
    return kit.train(kit.wrap(mlp()), lambda model, x: OfUnitNorm.apply(model(x)).square().mean(), "x")


@program()
def function_by_numpy(kit):
    return kit.train(kit.wrap(ByNumPyNet()), lambda model, x: model(x).square().mean().sqrt(), "x")


HOOKS: dict[str, Callable[[Any], Any]] = {
    "of_unit_norm": lambda g: g / (g.norm() + 1e-6),
    "centred": lambda g: g - g.mean(0),
    "largest": lambda g: g / (g.abs().max() + 1e-6),
    "of_all_rows": lambda g: sx.global_value(g) * 2,
}


def _register_hook(name: str, hook: Callable[[Any], Any]) -> None:
    def run(kit: Kit) -> list[Any]:
        def loss(model, x):
            z = model(x)
            z.register_hook(hook)
            return z.square().mean().sqrt()

        return kit.train(kit.wrap(mlp()), loss, "x")

    run.__name__ = f"hook_{name}"
    program()(run)


for _name, _hook in HOOKS.items():
    _register_hook(_name, _hook)


@program()
def hook_on_what_all_ranks_compute(kit):
    def loss(model, x):
        root = model(x).mean(0).square().sum().sqrt()
        root.register_hook(lambda g: g.clamp(-0.5, 0.5))
        mean = model(x).mean(0)
        mean.register_hook(lambda g: g / (g.norm() + 1))
        return 3 * root.exp() + mean.square().sum()

    return kit.train(kit.wrap(mlp()), loss, "x")


@program()
def order_of_hooks(kit):
    """That in which one process calls them, so that they may draw numbers."""
    model, norms = kit.wrap(mlp()), []

    def noisy(g: Any) -> Any:
        norms.append(g.norm().item())
        return g + 0.1 * sx.randn_like(g)

    for parameter in model.parameters():
        parameter.register_hook(noisy)
    return [*kit.train(model, lambda model, x: model(x).square().mean(), "x"), *norms]


@program()
def gradients_kept(kit):
    model = kit.wrap(mlp())
    optimizer, found = optim.SGD(model.parameters(), lr=0.1), []
    for (x,) in kit.loader("x"):
        optimizer.zero_grad()
        x.requires_grad_()
        z = model(x)
        root = z.square().mean().sqrt()
        z.retain_grad()
        root.retain_grad()
        (2 * root.exp()).backward()
        found += [sx.global_value(root.grad).item(), sx.global_value(z.grad).square().sum().item()]
        against = x.detach() + 0.5 * x.grad / (x.grad.norm() + 1e-9)
        weight = z.grad.mean(0)
        optimizer.zero_grad()
        loss = (model(against) * weight).sum(1).mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found + weights(model)


# -- models beside the wrapped one, and what they store


@program()
def bare_teacher(kit):
    teacher = mlp(3).double()

    def loss(model, x, t):
        with sx.no_grad():
            wanted = (teacher(x) / 2).softmax(1)
        return F.kl_div((model(x) / 2).log_softmax(1), wanted, reduction="batchmean") + F.cross_entropy(model(x), t)

    return kit.train(kit.wrap(mlp(3)), loss, "x", "t")


@program()
def average_of_the_student(kit):
    model, head = kit.wrap(mlp()), kit.wrap(nn.Linear(2, 2))
    teacher = copy.deepcopy(model if kit.bare else model.module)
    optimizer, found = optim.SGD([*model.parameters(), *head.parameters()], lr=0.1), []
    for x, z in kit.loader("x", "z"):
        optimizer.zero_grad()
        with sx.no_grad():
            target = unit(teacher(z))
        loss = (unit(head(model(x))) - target).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        with sx.no_grad():
            for mean, p in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.mul_(0.9).add_(0.1 * p)
        found.append(loss.item())
    return found + weights(model, head, teacher)


class Stateful(nn.Module):
    def __init__(self):
        self.layer, self._last = nn.Linear(3, 2), None

    def forward(self, x):
        z = self.layer(x)
        z = z if self._last is None else z + self._last
        self._last = z.detach()
        return z


@program(reproducible="rows of one virtual shard are combined with rows of another")
def rows_of_the_last_batch(kit):
    return kit.train(kit.wrap(Stateful()), lambda model, x: model(x).square().mean(), "x", rows=8)


# -- losses with numbers of the batch, and derivatives in the loss


@program()
def tversky(kit):
    def loss(model, x, flags):
        p, f = model(x).sigmoid(), flags.double()
        right = (p * f).sum()
        return 1 - (right + 1) / (right + 0.3 * (p * (1 - f)).sum() + 0.7 * ((1 - p) * f).sum() + 1)

    return kit.train(kit.wrap(mlp()), loss, "x", "flags", rows=8)


@program()
def mean_over_valid_triplets(kit):
    def loss(model, x, t):
        z = model(x)
        distance = (z[:, None] - z[None]).square().sum(2)
        same = t[:, None] == t[None]
        losses = F.relu(distance[:, :, None] - distance[:, None] + 0.5) * (same[:, :, None] & ~same[:, None])
        return losses.sum() / ((losses > 1e-9).sum().double() + 1e-6)

    return kit.train(kit.wrap(mlp()), loss, "x", "t", rows=8)


@program()
def physics_with_a_boundary(kit):
    def loss(model, x):
        x = x.detach().clone().requires_grad_()
        u = model(x)
        (first,) = grad(u.sum(), x, create_graph=True)
        (second,) = grad(first[:, 0].sum(), x, create_graph=True)
        boundary = model(sx.replicated(np.eye(3)[:2]))
        return (first[:, 1:2] - second[:, :1] + u).square().mean() + boundary.square().mean()

    return kit.train(kit.wrap(mlp(1)), loss, "x", rows=8)


@program()
def totals_of_an_evaluation(kit):
    model = kit.wrap(mlp())
    total, squares, right, n = zeros(1), zeros(2), 0, 0
    with sx.no_grad():
        for x, t in kit.loader("x", "t"):
            u = model(x)
            total += u.square().mean() * x.shape[0]
            squares.add_(u.square().sum(0))
            right += (u.argmax(1) == t).sum()
            n += x.size(0)
        means = [(total / n).numpy(), (squares / n).sqrt().numpy(), sx.global_value(right / n).numpy()]
        total /= n
        squares.div_(n)
    return [*means, total.numpy(), squares.numpy()]


@program()
def rows_of_all_ranks_as_inputs(kit):
    def loss(model, x):
        everywhere = copy.deepcopy(sx.replicated(np.eye(3)))
        return model(sx.global_value(x)).square().sum() + model(x[x[:, 0].argsort()]).sum() + model(everywhere).sum()

    return kit.train(kit.wrap(mlp()), loss, "x", rows=8)


@program()
def new_tensors_of_numbers_of_the_batch(kit):
    def loss(model, x, w):
        error = model(x) - sx.full_like(x[:, :2], w.mean()) - sx.full((2,), w.mean())
        places = sx.linspace(0, w.mean(), 2, dtype=sx.float64) + sx.arange(w.sum() / w.sum() * 2)
        numbers = sx.tensor([w.mean(), w.max()], dtype=sx.float64) * sx.tensor(w).sum() * sx.tensor(w.mean())
        return (error * places).square().mean() + (model(x) * numbers).mean()

    return kit.train(kit.wrap(mlp()), loss, "x", "w", rows=8)


class PowerIteration(nn.Module):
    """Assigns the vector of a power iteration to a buffer that it has multiplied its weights with."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(sx.randn(4, 3))
        self.register_buffer("u", sx.ones(4))

    def forward(self, x: Any) -> Any:
        v = F.normalize(self.W.T @ self.u, dim=0)
        u = F.normalize(self.W @ v, dim=0)
        self.u = u.detach()
        return x @ (self.W / (u @ self.W @ v)).T


@program()
def assigned_buffer(kit):
    return kit.train(kit.wrap(PowerIteration()), lambda model, x: (model(x) - x[:, :1]).square().mean(), "x")


class CountsSteps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(3, 2), 0

    def forward(self, x: Any) -> Any:
        self.steps += 1
        return self.layer(x) * 0.5**self.steps


@program()
def steps_counted_in_python(kit):
    model = kit.wrap(CountsSteps())
    for (x,) in kit.loader("x"):
        model(x).square().mean().backward()
    return [p.grad.numpy() for p in model.parameters()]


class OwnStreams(nn.Module):
    """A layer that draws from streams of its own, once for each batch."""

    def __init__(self) -> None:
        self.body = mlp()
        self.of_numpy, self.of_python = np.random.default_rng(0), random.Random(0)
        self.old, self.ours = np.random.RandomState(0), sx.Generator().manual_seed(0)

    def forward(self, x: Any) -> Any:
        drawn = self.of_numpy.random() + self.of_python.random() + self.old.rand() + sx.rand(1, generator=self.ours)
        return self.body(x) * drawn if self.of_numpy.random() < 0.7 else self.body(2 * x)


@program()
def own_streams(kit):
    return kit.train(kit.wrap(OwnStreams()), lambda model, x: model(x).square().mean(), "x")


@program()
def gradients_by_hand(kit):
    w = zeros(2).requires_grad_()
    optimizer = optim.SGD([w], lr=0.1, momentum=0.9)
    for x, t in kit.loader("x", "t"):
        w.grad = (x[:, :2] * t[:, None]).mean(0)
        w.grad = w.grad + x[:, :2].sum(0)
        optimizer.step()
    return [w.detach().numpy()]


@program("follows from this rank's rows alone", reproducible="")
def number_of_a_mean_and_a_constant(kit):
    def loss(model, x, w):
        return (model(x) / (w.mean() + 1e-8).item()).square().mean()

    return kit.train(kit.wrap(mlp()), loss, "x", "w")


@program()
def numbers_after_a_backward(kit):
    model, total, found = kit.wrap(mlp()), 0.0, []
    for (x,) in kit.loader("x"):
        loss = model(x).square().mean() + 0.1 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        total = total + loss.detach()
        found += [loss.item(), (loss.detach() * 2 + 1).item(), (total / 2).item()]
    return found
