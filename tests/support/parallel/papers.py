"""Losses and layers of papers, typed as their authors publish them: numbers of the batch by `x.shape[0]`, rows by the
numbers that sorting and mining give, random numbers in the shape of a batch."""

from __future__ import annotations

from typing import Any

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.nn import functional as F
from tests.support.parallel.programs import mlp, program, unit


def trained(*names: str, make: Any = mlp, rows: int = 11, **outcome: str) -> Any:
    """Makes a program of a loss: it trains a model on columns of the batch."""

    def register(loss: Any) -> Any:
        def run(kit: Any) -> list[Any]:
            return kit.train(kit.wrap(make()), loss, *names, rows=rows)

        run.__name__ = f"paper_{loss.__name__}"
        return program(**outcome)(run)

    return register


def classifier() -> Any:
    return mlp(3)


def eye(n: int) -> Any:
    return sx.eye(n, dtype=sx.float64)


# -- numbers of the batch


@trained("x", "w", rows=8)
def repeated_for_each_row(model, x, w):
    u, n, one = model(x), x.shape[0], sx.ones(1, 2, dtype=sx.float64)
    mean = u.mean(0, keepdim=True)
    near = (mean.expand(n, -1) - u).square() + (u.max(0)[0].expand_as(u) - u).abs() + mean.repeat(n, 1) * w[:, None]
    pairs = u.unsqueeze(1).repeat(1, n, 1) - u.unsqueeze(0).repeat(n, 1, 1)
    squares = (u @ u.T).diag().unsqueeze(0).expand_as(u @ u.T)
    distances = squares + squares.t() - 2 * u @ u.T + w[None].expand_as(u @ u.T).sum()
    pair_by_pair = u.repeat_interleave(n, 0) - u.repeat(n, 1)
    return (
        near.mean() + pairs.abs().mean() + distances.mean() + pair_by_pair.square().mean()
        + one.expand(n, -1).sum() * u.mean() + one.repeat(n, 3).sum() * u.square().mean()
    )  # fmt: skip


@trained("x", "z")
def halves_of_two_views(model, x, z):
    u, n = sx.cat([model(x), model(z)]), x.shape[0]
    kernel, (first, second) = (u @ u.T).tanh(), u.split([n, n])
    between = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean() + kernel[n:].sum()
    return between + (first * second).mean() + (u[:n] - u.split(n)[1]).square().mean() + sx.diag(kernel, n).sum()


@trained("x", "z", rows=8)
def numbers_of_the_batch_as_arguments(model, x, z):
    u, n = model(x), x.shape[0]
    value = u.add(z[:, :2], alpha=n).square().mean() + u[:, 0].norm(p=n) + u.norm(p=n / 2)
    rows, columns = sx.meshgrid(sx.arange(n), sx.arange(n))
    value = value + (u @ u.T * (rows < columns).double()).mean()
    value = value + u[sx.multinomial(z[:, 0].exp(), n, replacement=True)].square().mean()
    return value + u.max(0)[0].sum() * u[:, 0].sort()[0].view(n, -1).mean() + sx.addmm(u, z, z.T @ u, alpha=n).mean()


@trained("x", "z")
def coral(model, x, z):
    def covariance(a):
        a = a - a.mean(0, keepdim=True)
        return a.T @ a / (a.shape[0] - 1 + 1e-3)

    return (covariance(model(x)) - covariance(model(z))).square().sum() / 16 + model(x).mean() * (1 / x.size(0))


@trained("x", "z")
def swav(model, x, z):
    q = (model(x).detach() / 0.5).exp().T
    q = q / q.sum()
    prototypes, samples = q.shape
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return -((q * samples).T * model(z).log_softmax(1)).sum(1).mean()


@trained("x", rows=8)
def nt_xent(model, x):
    z, n = unit(model(sx.cat([x, x * 0.5]))), x.shape[0]
    similarity = (z @ z.T / 0.5).masked_fill(sx.eye(2 * n, dtype=sx.bool), -1e9)
    return F.cross_entropy(similarity, (sx.arange(2 * n) + n) % (2 * n))


@trained("x", "z")
def spectral_contrastive(model, x, z):
    a, n = unit(model(x)), x.shape[0]
    beside_others = ((a @ a.T) ** 2 * (1 - eye(n))).sum() / (n * (n - 1) + 1)
    return beside_others - 2 * (a * model(z)).sum() / a.numel() + (a.T @ (eye(n) - 1 / n) @ a).trace()


@trained("x", "z")
def siglip(model, x, z):
    pairs = unit(model(x)) @ unit(model(z)).T
    n = pairs.shape[0]
    labels = 2 * eye(n) - sx.ones(n, n, dtype=sx.float64)
    return -F.logsigmoid(labels * pairs).sum() / n


@trained("x", "t", make=classifier)
def trimmed(model, x, t):
    losses = F.cross_entropy(model(x), t, reduction="none")
    small = losses < 1.5 * losses.mean()
    assert small.sum().dtype == sx.int64
    return (losses * small).sum() / (small.sum() + 1e-6) + losses.mean() * small.mean()


@trained("x", "flags", refused="follows from this rank's rows alone")
def number_of_selected_rows(model, x, flags):
    chosen = model(x)[flags[:, 0]]
    return chosen.square().sum() / (chosen.shape[0] + 1)


@trained("x", "y", refused="follows from this rank's rows alone", reproducible="")
def scaled_by_item(model, x, y):
    y = (y - y.mean().item()) / y.std().item()
    return (model(x) - y).square().mean()


# -- rows by numbers that follow from the batch


@trained("x", "t")
def lovasz(model, x, t):
    errors, order = sx.sort(((t == 1).double() - model(x)[:, 0].sigmoid()).abs(), descending=True)
    of_class = (t == 1).double()[order]
    jaccard = 1 - (of_class.sum() - of_class.cumsum(0)) / (of_class.sum() + (1 - of_class).cumsum(0))
    return (errors * sx.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])).sum()


@trained("x", "w", "flags")
def cox(model, x, w, flags):
    order = w.argsort(descending=True)
    risk, event = model(x)[:, 0][order], flags[:, 0][order].double()
    return -((risk - risk.exp().cumsum(0).log()) * event).sum() / (event.sum() + 1e-8)


@trained("x", "t")
def triplets_by_mining(model, x, t):
    e = model(x)
    with sx.no_grad():
        distance, same = (e[:, None] - e[None]).square().sum(2), t[:, None] == t[None]
        positive, negative = (distance * same).argmax(1), (distance + 1e3 * same.double()).argmin(1)
    return F.triplet_margin_loss(e, e[positive], e[negative], margin=0.5)


@trained("x", "t", make=classifier)
def mixup(model, x, t):
    share, order = sx.rand(x.size(0), 1, dtype=sx.float64), sx.randperm(x.size(0))
    y = F.one_hot(t, 3).double()
    return F.cross_entropy(model(share * x + (1 - share) * x[order]), share * y + (1 - share) * y[order])


@trained("x", "t")
def pairs_of_a_triangle(model, x, t):
    scores = model(x)[:, 0]
    i, j = sx.triu_indices(scores.shape[0], scores.shape[0], 1)
    return F.softplus(scores[i] - scores[j])[t[i] > t[j]].sum()


class Sorted(nn.Module):
    """Sorts sequences by length, and back."""

    def __init__(self) -> None:
        self.layer = nn.GRU(3, 2, batch_first=True)

    def forward(self, s, lengths):
        lengths, order = lengths.sort(descending=True)
        h = self.layer(s[order])[0][sx.arange(s.size(0)), lengths - 1]
        return h[order.argsort()]


@trained("seq", "lengths", make=Sorted, reproducible="needs the rows of the whole batch")
def sorted_lengths(model, s, lengths):
    return (model(s, lengths) * lengths[:, None]).square().mean()


class Dispatched(nn.Module):
    """A mixture of experts in which each gets the rows that chose it."""

    def __init__(self) -> None:
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList([mlp(), mlp()])

    def forward(self, x):
        value, chosen = self.gate(x).softmax(-1).max(1)
        out = sx.zeros(x.shape[0], 2, dtype=sx.float64)
        for i, expert in enumerate(self.experts):
            rows = sx.nonzero(chosen == i)[:, 0]
            out = out.index_add(0, rows, expert(x[rows]) * value[rows][:, None])
        return out


@trained("x", make=Dispatched, reproducible="needs the rows of the whole batch")
def dispatched(model, x):
    return model(x).square().mean()


# -- random numbers


@trained("x")
def diffusion(model, x):
    kept = sx.cumprod(1 - sx.linspace(0.01, 0.2, 11, dtype=sx.float64), 0)
    share = kept[sx.randint(0, 11, (x.shape[0],))][:, None]
    noise = sx.randn(x.shape, dtype=sx.float64)
    return F.mse_loss(model(share.sqrt() * x + (1 - share).sqrt() * noise), noise[:, :2])


class Dropped(nn.Module):
    """A layer that is left out for some rows, another for some batches, and noise on weights."""

    def __init__(self) -> None:
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = x + self.first(x) * (0.7 + sx.rand((x.shape[0], 1), dtype=x.dtype)).floor()
        x = x if sx.rand(1).item() < 0.5 else x.tanh()
        return x @ (self.last.W + 0.1 * sx.randn(3, 2, dtype=sx.float64))


@trained("x", make=Dropped)
def stochastic_depth(model, x):
    return model(x).square().mean()


# -- metrics, as programs for DistributedDataParallel add them up


def counted(add: Any, of_all: Any, **outcome: str) -> None:
    """Makes a program that counts the right answers and the rows of each batch, and adds them up over the ranks."""

    def run(kit: Any) -> list[Any]:
        model, counts = kit.wrap(classifier()), [sx.zeros(1), sx.zeros(1)] if "tensor" in add.__name__ else [0, 0]
        for x, t in kit.loader("x", "t"):
            counts = add(*counts, model(x).argmax(1) == t, t)
        return [of_all(*counts)]

    run.__name__ = f"counted_{add.__name__}_{of_all.__name__}"
    program(**outcome)(run)


def numbers(right, rows, hits, t):
    return [right + hits.sum().item(), rows + t.size(0)]


def lengths(right, rows, hits, t):
    return [right + hits.sum().item(), rows + len(t)]


def tensors(right, rows, hits, t):
    return [right + hits.sum(), rows + len(t)]


def in_one_tensor(right, rows):
    right, rows = sx.all_reduce(sx.tensor([right, rows])).tolist()
    return right / rows


def one_by_one(right, rows):
    return sx.all_reduce(right) / sx.all_reduce(rows)


ALREADY = "for the global batch on every rank already"
counted(numbers, in_one_tensor, reproducible=ALREADY)
counted(lengths, in_one_tensor, reproducible=ALREADY)
counted(numbers, one_by_one)
counted(lengths, one_by_one)
counted(tensors, one_by_one, refused=ALREADY)
