"""Losses and models as people write them: each must give the step of one process on any number of ranks.

A case is a function of a model and of columns of a batch, which its parameters name; it returns the loss. On several
ranks the model is wrapped and the columns are this rank's rows, from a loader or cut by hand.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.autograd import grad
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader

CASES: dict[str, Case] = {}


class Case(NamedTuple):
    """A loss, and what makes the model, or several models, that it is of.

    untagged: whether it is right for rows that no loader has tagged, which takes that nothing but what comes out of the
    wrapped model is summed over rows. reproducible: whether reproducible mode can do it; "one process": only there; "no
    forward": not at all, because the forward needs all rows, or none.
    """

    loss: Callable[..., Any]
    make: Callable[[], Any]
    untagged: bool
    reproducible: str


def columns(rows: int) -> dict[str, Any]:
    """The same batch on every rank: what a case's parameters may name."""
    r = np.random.default_rng(rows)
    x = r.standard_normal((rows, 3))
    gaps = r.standard_normal((rows, 2))
    gaps[rows // 2 :, 0] = np.nan
    tokens = r.integers(0, 4, (rows, 5))
    tokens[: rows // 2, 2:] = -100
    return {
        "x": x,
        "y": x[:, :1] ** 2 + 0.1,
        "t": r.integers(0, 3, rows),
        "w": r.uniform(0.1, 2, rows),
        "z": r.standard_normal((rows, 3)),
        "gaps": gaps,
        "seq": r.standard_normal((rows, 5, 3)),
        "tokens": tokens,
        "words": r.integers(0, 7, (rows, 5)),
        "lengths": r.integers(1, 6, rows),
        "flags": r.random((rows, 2)) < 0.4,
        "images": r.standard_normal((rows, 1, 4, 4)),
        "none": np.zeros((rows, 2), bool),
        "first": np.arange(rows) < rows // 3,  # true on the first rank only
    }


def net(out: int = 2, inputs: int = 3) -> Callable[[], Any]:
    return lambda: nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, out))


two_outputs = net()


def case(make: Callable[[], Any] = two_outputs, untagged: bool = True, reproducible: str = "yes") -> Any:
    def register(loss: Callable[..., Any]) -> Any:
        CASES[loss.__name__] = Case(loss, make, untagged, reproducible)
        return loss

    return register


def unit(x: Any) -> Any:
    return x / x.square().sum(1, keepdims=True).sqrt()


class Columns:
    """A data set of some columns of a batch."""

    def __init__(self, names: Sequence[str], rows: int) -> None:
        self.columns, self.rows = [columns(rows)[name] for name in names], rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return tuple(column[index] for column in self.columns)


def bare(model: Any) -> Any:
    return model.module if isinstance(model, sx.DistributedDataParallel) else model


def step(
    name: str, rows: int, how: str, counts: Sequence[int] | None = None, shards: int | None = None
) -> dict[str, Any]:
    """What a step of a case ends with: the loss as it is shown after the backward, and every gradient.

    how: "bare" is one process with the whole batch; "loader" and "cut" are this rank's rows of it on a wrapped model,
    tagged by a loader or cut by `counts`.
    """
    if shards is not None:
        sx.init(virtual_shards=shards)
    chosen = CASES[name]
    sx.manual_seed(7)
    models = chosen.make()
    several = isinstance(models, tuple)
    models = [model.double() for model in (models if several else (models,))]
    if how != "bare":
        models = [sx.DistributedDataParallel(model) for model in models]
    names = list(inspect.signature(chosen.loss).parameters)[1:]
    if how == "loader":
        (batch,) = DataLoader(Columns(names, rows), batch_size=rows)
    else:
        counts = counts or [rows]
        start = sum(counts[: sx.rank()]) if how == "cut" else 0
        stop = start + counts[sx.rank()] if how == "cut" else rows
        batch = [sx.tensor(columns(rows)[name][start:stop]) for name in names]
    loss = chosen.loss(tuple(models) if several else models[0], *batch)
    if loss is not None:
        loss.backward()
    found = {f"{i}.{k}": p.grad for i, model in enumerate(models) for k, p in model.named_parameters()}
    return {k: None if g is None else g.numpy().copy() for k, g in found.items()} | {
        "loss": None if loss is None else np.array(loss.item())
    }


# -- roots, quotients, statistics of the batch


@case()
def rmse(d, x, y):
    return F.mse_loss(d(x), y.expand(-1, 2)).sqrt()


@case()
def log_of_mean(d, x, y):
    return (d(x) - y).square().mean().log()


@case(untagged=False)
def r_squared(d, x, y):
    return (d(x) - y).square().sum() / (y - y.mean()).square().sum()


@case(untagged=False)
def weighted_by_hand(d, x, y, w):
    return ((d(x) - y).square().mean(1) * w).sum() / w.sum()


@case()
def variance(d, x):
    return d(x).var(axis=0).sum() + d(x).std(axis=0).mean()


@case()
def largest(d, x, y):
    return (d(x) - y).abs().max()


@case()
def mean_over_rows_then_root(d, x):
    return d(x).mean(0).square().sum().sqrt()


@case()
def sum_over_global_rows(d, x):
    return d(x).square().sum() / sx.global_rows(x)


@case()
def coefficient_of_variation(d, x):
    importance = d(x).softmax(-1).sum(0)
    return (importance.std() / importance.mean()) ** 2


@case()
def entropy_of_the_mean(d, x):
    p = d(x).softmax(-1)
    mean = p.mean(0)
    return (mean * mean.log()).sum() - (p * p.log()).sum(1).mean()


@case(untagged=False)
def correlation(d, x, y):
    o = d(x)[:, 0]
    a, b = o - o.mean(), y[:, 0] - y.mean()
    return 1 - (a * b).sum() / (a.square().sum() * b.square().sum() + 1e-3).sqrt()


@case()
def covariance_matrix(d, x):
    z = d(x)
    centred = z - z.mean(0)
    return (centred.T @ centred / (sx.global_rows(x) - 1 + 1e-3)).square().sum()


@case()
def vicreg(d, x, z):
    a, b = d(x), d(z)
    n = sx.global_rows(x)

    def terms(v):
        c = v - v.mean(axis=0)
        std = (v.var(axis=0, unbiased=False) + 1e-4).sqrt()
        cov = (c.T @ c) / n
        off = cov * sx.tensor(1 - np.eye(2))
        return F.relu(1 - std).mean() + off.square().sum() / 2

    return F.mse_loss(a, b) + terms(a) + terms(b)


@case()
def barlow_twins(d, x, z):
    def norm(v):
        return (v - v.mean(0)) / (v.var(0, unbiased=False) + 1e-3).sqrt()

    c = norm(d(x)).T @ norm(d(z)) / sx.global_rows(x)
    eye = sx.tensor(np.eye(2))
    return ((c - eye).square() * (eye + 0.1 * (1 - eye))).sum()


@case(lambda: Two())
def cca(d, x, z):
    a, b = d(x, z)
    a, b = a - a.mean(0), b - b.mean(0)
    saa, sbb = (a * a).mean(0) + 1e-2, (b * b).mean(0) + 1e-2
    return -((a * b).mean(0) / (saa * sbb).sqrt()).sum()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x, z):
        return self.a(x), self.b(z)


@case()
def mmd(d, x, z):
    a, b = d(x), d(z)

    def kernel(u, v):
        return (-(u.unsqueeze(1) - sx.global_value(v).unsqueeze(0)).square().sum(-1)).exp().mean()

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


@case()
def mmd_by_product(d, x, z):
    a, b = d(x), d(z)

    def kernel(u, v):
        return (-(u.square().sum(1, keepdims=True) + v.square().sum(1) - 2 * u @ v.T)).exp().mean()

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


@case()
def pairs(d, x):
    o = d(x)[:, :1]
    return (o - o.T).square().mean()


# -- contrastive


@case()
def two_views(d, x):
    z = sx.cat([d(x), d(-x)], 0)
    return (z @ z.T).square().mean()


@case()
def nt_xent(d, x, z):
    a, b = unit(d(x)), unit(d(z))
    both = sx.cat([a, b], 0)
    sim = both @ both.T / 0.5
    n = sx.global_rows(x)
    mask = sx.tensor(np.eye(2 * n, dtype=bool))
    sim = sim.masked_fill(mask, -1e9)
    positives = sx.cat([(a * b).sum(1), (a * b).sum(1)], 0) / 0.5
    return (sim.logsumexp(1) - positives).mean()


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)
        self.scale = nn.Parameter(np.array(0.5))

    def forward(self, x, z):
        a, b = unit(self.a(x)), unit(self.b(z))
        return self.scale.exp() * a @ b.T


@case(Clip, reproducible="no forward")
def clip(d, x, z):
    logits = d(x, z)
    labels = sx.arange(sx.global_rows(x))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@case(Clip, reproducible="no forward")
def clip_by_diagonal(d, x, z):
    logits = d(x, z)
    return (logits.logsumexp(1) + logits.logsumexp(0)).mean() - 2 * sx.diag(logits).mean()


@case(untagged=False)
def triplet_hardest(d, x, t):
    e = d(x)
    whole, labels = sx.global_value(e), sx.global_value(t)
    dist = (e.unsqueeze(1) - whole.unsqueeze(0)).square().sum(-1)
    same = t.unsqueeze(1) == labels.unsqueeze(0)
    positive = sx.where(same, dist, sx.zeros_like(dist)).amax(1)
    negative = sx.where(same, 1e3 + 0 * dist, dist).amin(1)
    return F.relu(positive - negative + 1).mean()


@case(untagged=False)
def triplet_by_product(d, x, t):
    e = d(x)
    dist = e.square().sum(1, keepdims=True) + e.square().sum(1) - 2 * e @ e.T
    same = t.unsqueeze(1) == t
    positive = dist.masked_fill(~same, -1e3).max(1).values
    negative = dist.masked_fill(same, 1e3).min(1).values
    return F.relu(positive - negative + 1).mean()


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.centers = nn.Parameter(np.arange(6.0).reshape(3, 2))

    def forward(self, x, t):
        return (self.net(x) - self.centers[t]).square().sum(1).mean()


@case(Centers)
def center_loss(d, x, t):
    return d(x, t)


@case(Centers, untagged=False)
def prototypes(d, x, t):
    e = bare(d).net(x)
    onehot = sx.one_hot(t, 3).double()
    means = onehot.T @ e / (onehot.sum(0).unsqueeze(1) + 1e-3)
    dist = (e.unsqueeze(1) - means.unsqueeze(0)).square().sum(-1)
    return F.cross_entropy(-dist, t)


# -- losses of classes


@case(net(3))
def focal(d, x, t):
    logp = d(x).log_softmax(1)
    pt = logp.gather(1, t.unsqueeze(1)).squeeze(1)
    return (-((1 - pt.exp()) ** 2) * pt).mean()


@case(net(3))
def focal_by_index(d, x, t):
    p = d(x).softmax(1)
    chosen = p[range(len(x)), t]
    return (-((1 - chosen) ** 2) * chosen.log()).mean()


@case(untagged=False)
def dice(d, x, flags):
    p = d(x).sigmoid()
    f = flags.double()
    return 1 - (2 * (p * f).sum() + 1) / (p.sum() + f.sum() + 1)


@case(untagged=False)
def dice_by_class(d, x, flags):
    p = d(x).sigmoid()
    f = flags.double()
    return (1 - (2 * (p * f).sum(0) + 1) / (p.sum(0) + f.sum(0) + 1)).mean()


@case(net(3))
def label_smoothing(d, x, t):
    return F.cross_entropy(d(x), t, np.array([0.0, 2.0, 1.0]), label_smoothing=0.1)


@case(net(3), untagged=False)
def class_weights_by_hand(d, x, t):
    weights = sx.tensor(np.array([0.2, 2.0, 1.0]))[t]
    losses = F.cross_entropy(d(x), t, reduction="none")
    return (losses * weights).sum() / weights.sum()


@case(net(3), untagged=False)
def class_weights_of_the_batch(d, x, t):
    frequency = sx.one_hot(t, 3).double().mean(0)
    return (F.cross_entropy(d(x), t, reduction="none") * (1 / (frequency + 0.1))[t]).mean()


@case(net(3))
def soft_targets(d, x, z):
    return F.cross_entropy(d(x), z.softmax(1))


@case(net(3))
def ohem(d, x, t):
    losses = F.cross_entropy(d(x), t, reduction="none")
    k = max(1, sx.global_rows(x) // 2)
    return losses.topk(k).values.mean()


@case(net(3))
def ohem_by_sort(d, x, t):
    losses = sx.global_value(F.cross_entropy(d(x), t, reduction="none"))
    return losses.sort(descending=True).values[: max(1, len(losses) // 2)].mean()


@case()
def quantile(d, x, y):
    e = y - d(x)
    return sx.maximum(0.9 * e, -0.1 * e).mean()


@case()
def quantile_of_the_batch(d, x):
    o = d(x)[:, 0].sort().values
    return sx.global_value(o)[len(o) // 2]


@case(net(4))
def token_cross_entropy(d, seq, tokens):
    return F.cross_entropy(d(seq).transpose(1, 2), tokens, np.array([1.0, 0.5, 2.0, 0.0]), ignore_index=-100)


@case(net(4))
def token_cross_entropy_flat(d, seq, tokens):
    return F.cross_entropy(d(seq).reshape(-1, 4), tokens.reshape(-1), ignore_index=-100)


@case(net(4))
def token_cross_entropy_by_mask(d, seq, tokens):
    mask = tokens != -100
    logits = d(seq)
    return F.cross_entropy(logits[mask], tokens[mask])


@case(net(4), untagged=False)
def token_cross_entropy_by_sum(d, seq, tokens):
    mask = (tokens != -100).double()
    loss = F.cross_entropy(d(seq).transpose(1, 2), tokens, ignore_index=-100, reduction="none")
    return (loss * mask).sum() / mask.sum()


@case(net(1), untagged=False)
def lengths_mask(d, seq, lengths):
    mask = (sx.arange(5).unsqueeze(0) < lengths.unsqueeze(1)).double()
    o = d(seq).squeeze(-1)
    per = (o.square() * mask).sum(1) / mask.sum(1)
    return per.mean() + (o * mask).sum() / lengths.sum()


@case(net(1))
def squeezed(d, x, y):
    return F.mse_loss(d(x).squeeze(), y.squeeze())


@case(net(4))
def alpha_recursion(d, seq, tokens):
    """As CTC: a sum over paths, time after time, with masks."""
    log_p = d(seq).log_softmax(-1)
    alpha = log_p[:, 0]
    for time in range(1, 5):
        moved = sx.cat([sx.full_like(alpha[:, :1], -30.0), alpha[:, :-1]], 1)
        new = sx.stack([alpha, moved]).logsumexp(0) + log_p[:, time]
        alpha = sx.where((tokens[:, time] != -100).unsqueeze(1), new, alpha)
    return -alpha[:, -1].mean()


# -- masks


@case()
def nan_rows(d, x, gaps):
    m = ~np.isnan(gaps.numpy())
    return F.mse_loss(d(x)[m], gaps[m])


@case()
def nan_rows_by_tensor(d, x, gaps):
    m = ~sx.isnan(gaps)
    return F.mse_loss(d(x)[m], gaps[m])


@case()
def nan_one_column(d, x, gaps):
    g = gaps[:, 0]
    m = ~sx.isnan(g)
    return F.mse_loss(d(x)[:, 0][m], g[m])


@case()
def all_false(d, x, none):
    o = d(x)
    return o[none].sum() + o.square().mean()


@case()
def all_false_mean_of_loss(d, x, first):
    o = d(x)
    return F.mse_loss(o[first], 0 * o[first]) + o.mean()


@case(untagged=False)
def all_false_masked_select(d, x, flags):
    return sx.masked_select(d(x), flags).square().sum() / (flags.sum() + 1)


@case()
def positives_and_negatives(d, x, flags):
    o = d(x)
    return F.softplus(-o[flags]).sum() / 3 + F.softplus(o[~flags]).mean()


@case(untagged=False)
def where_rows(d, x, flags):
    o = d(x)
    return sx.where(flags, o, 0.0).sum() / flags.sum() + sx.where(flags, o, -o).mean()


@case()
def rows_then_mean_of_rows(d, x, first):
    h = d(x)[first]
    return (h - h.mean(0)).square().sum() + h.sum().exp() * 0.01


# -- models


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x):
        self.hidden = self.net(x)
        self.aux = self.hidden.square().mean()
        return self.hidden.tanh()


@case(Attributes, reproducible="no forward")
def attribute_of_forward(d, x):
    return d(x).mean() + bare(d).aux + bare(d).hidden.abs().mean()


@dataclass
class Out:
    y: Any
    n: int = 0


class Output(OrderedDict):
    """A dict whose entries are attributes as well."""

    def __getattr__(self, name):
        return self[name]


class Slotted:
    __slots__ = ("y",)

    def __init__(self, y):
        self.y = y


def container(name):
    class Container(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x):
            y = self.net(x)
            if name == "dataclass":
                return Out(y)
            if name == "namespace":
                return SimpleNamespace(y=y, aux=[y.mean()])
            if name == "generator":
                return (part for part in (y, y.tanh()))
            if name == "output":
                return Output(y=Slotted(y), parts=deque([y.mean(), y.tanh()]))
            return {"a": [y, (y,)]}

    return Container


@case(container("dataclass"))
def out_dataclass(d, x):
    return d(x).y.square().mean().sqrt()


@case(container("namespace"))
def out_namespace(d, x):
    o = d(x)
    return o.y.square().mean().sqrt() + o.aux[0]


@case(container("output"))
def out_of_own_types(d, x):
    o = d(x)
    return o.y.y.square().mean().sqrt() + o.parts[0] + o.parts[1].square().mean()


@case(container("generator"), reproducible="no forward")
def out_generator(d, x):
    a, b = d(x)
    return (a * b).mean().exp()


@case(container("dict"))
def out_dict(d, x):
    return d(x)["a"][1][0].square().mean().sqrt()


@dataclass
class In:
    x: Any
    z: Any = None


class Inputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, i, *, scale=1.0, more=None):
        get = (lambda k: getattr(i, k)) if isinstance(i, In | SimpleNamespace) else (lambda k: i[k])
        out = self.net(get("x")) * scale
        return out if get("z") is None else out + self.net(get("z"))


@case(Inputs)
def in_dataclass(d, x, z):
    return d(In(x, z)).square().mean().sqrt()


@case(Inputs)
def in_namespace(d, x, z):
    return d(SimpleNamespace(x=x, z=z)).square().mean().sqrt()


@case(Inputs)
def in_dict(d, x, z):
    return d({"x": x, "z": z}, scale=2.0).square().mean().sqrt()


@case(Inputs)
def in_keywords(d, x):
    return d(i=In(x), scale=0.5).square().mean().sqrt()


@case(lambda: nn.LSTM(3, 2), untagged=False)
def lstm_sequence_first(d, seq):
    return d(seq.permute(1, 0, 2))[0][-1].square().mean().sqrt()


@case(lambda: nn.GRU(3, 2), untagged=False)
def gru_sequence_first_merged(d, seq):
    out, h = d(seq.permute(1, 0, 2))
    return out.reshape(-1, 2).square().mean().sqrt() + h.mean()


@case(lambda: nn.LSTM(3, 2, batch_first=True))
def lstm_last(d, seq):
    return d(seq)[0][:, -1].square().mean().sqrt()


@case(lambda: nn.MultiheadAttention(3, 1), untagged=False)
def attention_sequence_first(d, seq):
    s = seq.permute(1, 0, 2)
    return d(s, s, s)[0].square().mean().sqrt()


@case(lambda: nn.MultiheadAttention(3, 1, batch_first=True))
def attention_with_padding(d, seq, lengths):
    pad = sx.arange(5).unsqueeze(0) >= lengths.unsqueeze(1)
    return d(seq, seq, seq, key_padding_mask=pad)[0].square().mean().sqrt()


class RowAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return (self.q(x) @ self.k(x).T).softmax(-1) @ x


@case(RowAttention, reproducible="no forward")
def attention_over_the_batch(d, x):
    return d(x).square().mean().sqrt()


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.gamma = nn.Linear(3, 4), nn.Parameter(np.ones(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.l(x)
        mu, var = h.mean(0), h.var(0, unbiased=False)
        return self.head(((h - mu) / (var + 1e-3).sqrt() * self.gamma).tanh())


@case(ByHand, reproducible="no forward")
def batch_norm_by_hand(d, x):
    return d(x).square().mean()


class Ema(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 4)
        self.register_buffer("mean", sx.zeros(4, dtype=sx.float64))

    def forward(self, x):
        h = self.l(x)
        with sx.no_grad():
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        return h - self.mean


@case(Ema, reproducible="no forward")
def ema_of_statistics(d, x):
    d(x)
    return d(x).square().mean()


class WeightNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(np.arange(6.0).reshape(3, 2) / 5 + 0.1), nn.Parameter(np.array([1.0, 2.0]))

    def forward(self, x):
        return x @ (self.v / self.v.square().sum(0).sqrt() * self.g)


@case(WeightNorm)
def weight_norm(d, x):
    return d(x).square().mean().sqrt()


class SpectralNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(np.arange(6.0).reshape(3, 2) / 5 + 0.1)

    def forward(self, x):
        u = sx.ones(3, dtype=sx.float64)
        with sx.no_grad():
            for _ in range(3):
                v = self.w.T @ u
                v = v / v.norm()
                u = self.w @ v
                u = u / u.norm()
        return x @ (self.w / (u @ self.w @ v))


@case(SpectralNorm)
def spectral_norm(d, x):
    return d(x).square().mean().sqrt()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(np.random.default_rng(3).standard_normal((7, 3))), nn.Linear(3, 2)

    def forward(self, words, pad=None):
        e = self.table[words]
        if pad is None:
            return self.head(e.mean(1))
        m = (words != pad).double().unsqueeze(-1)
        return self.head((e * m).sum(1) / (m.sum(1) + 1e-3))


@case(Words)
def bag_by_index(d, words):
    return d(words).square().mean().sqrt()


@case(Words)
def bag_by_index_padded(d, words):
    return d(words, 2).square().mean().sqrt()


@case(lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(15, 2)))
def embedding(d, words):
    return d(words).square().mean().sqrt()


@case(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)))
def images_view(d, images):
    return d(images).square().mean().sqrt() + d(images.reshape(-1, 1, 4, 4)).mean()


class Uncertain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.s = nn.Linear(3, 2), nn.Parameter(np.array([0.1, -0.2]))

    def forward(self, x, y, t):
        o = self.net(x)
        losses = sx.stack([F.mse_loss(o[:, :1], y), o[:, 1].abs().mean()])
        return (losses * (-self.s).exp() + self.s).sum()


@case(Uncertain)
def multi_task(d, x, y, t):
    return d(x, y, t)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, x):
        gate = self.gate(x).softmax(-1)
        out = sum(gate[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))
        hard = sx.one_hot(gate.argmax(-1), 2).double().mean(0)
        return out, (hard * gate.mean(0)).sum() * 2


@case(MoE)
def mixture_of_experts(d, x):
    out, balance = d(x)
    return out.square().mean() + 0.1 * balance


class LossInside(nn.Module):
    """Returns its loss, as language models do: a mean over tokens that count, and the root of another mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, words, tokens, w):
        logits = self.head(F.dropout(self.embed(words), 0.2) @ F.dropout(self.head.W, 0.5))
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), tokens.view(-1), ignore_index=-100)
        weighted = (logits.square().mean((1, 2)) * w).sum() / w.sum()
        return logits, loss + 0.1 * weighted.sqrt() + weighted.detach() * self.head.b.square().sum().exp()


@case(LossInside)
def loss_of_forward(d, words, tokens, w):
    return d(words, tokens, w)[1]


class MeanInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()()

    def forward(self, x):
        return self.net(x).square().mean()


@case(MeanInside, untagged=False)
def penalty_of_forward(d, x):
    x = x.requires_grad_()
    loss = d(F.dropout(x, 0.3)).sqrt()
    (g,) = grad(loss, x, create_graph=True)
    return F.dropout(g.square(), 0.5).mean() + loss


class Deq(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.u = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x):
        h = sx.zeros((len(x), 4), dtype=sx.float64)
        with sx.no_grad():
            for _ in range(5):
                h = (0.1 * self.w(h) + self.u(x)).tanh()
        return (0.1 * self.w(h) + self.u(x)).tanh()


@case(Deq)
def deq(d, x):
    return d(x).square().mean().sqrt()


class Stop(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.u = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x):
        h = self.u(x)
        for _ in range(20):
            new = (0.1 * self.w(h) + self.u(x)).tanh()
            if sx.global_value((new - h).abs().max()).item() < 1e-3:
                break
            h = new
        return new


@case(Stop, reproducible="no forward")
def deq_until_converged(d, x):
    return d(x).square().mean().sqrt()


# -- derivatives of derivatives


@case()
def input_penalty(d, x):
    x.requires_grad_()
    (g,) = grad(d(x).sum(), x, create_graph=True)
    return ((g.square().sum(1) + 1e-3).sqrt() - 1).square().mean()


@case(net(1))
def wgan_gp(d, x, z, w):
    eps = (w / 2).unsqueeze(1)
    mid = (eps * x + (1 - eps) * z).detach().requires_grad_()
    o = d(mid)
    (g,) = grad(o, mid, grad_outputs=sx.ones_like(o), create_graph=True)
    return d(z).mean() - d(x).mean() + 10 * ((g.square().sum(1)).sqrt() - 1).square().mean()


@case(net(1))
def pinn(d, x):
    x.requires_grad_()
    u = d(x)
    (g,) = grad(u.sum(), x, create_graph=True)
    (h,) = grad(g[:, 0].sum(), x, create_graph=True)
    (k,) = grad(h[:, 0].sum(), x, create_graph=True)
    return (g[:, 1] + u[:, 0] * h[:, 0] - 0.1 * k[:, 0]).square().mean() + u.square().mean().sqrt()


@case(net(1))
def energy_forces(d, x, z):
    x.requires_grad_()
    e = d(x)
    forces = -grad(e.sum(), x, create_graph=True)[0]
    return F.mse_loss(forces, z) + F.mse_loss(e, z[:, :1])


@case(net(1))
def energy_mean_forces(d, x, z):
    x.requires_grad_()
    forces = grad(d(x).mean(), x, create_graph=True)[0]
    return (forces * z).sum().exp()


@case(reproducible="one process")
def weight_penalty(d, x, y):
    loss = F.mse_loss(d(x), y.expand(-1, 2))
    gs = grad(loss, list(d.parameters()), create_graph=True)
    return loss + 0.1 * sum(g.square().sum() for g in gs)


@case(reproducible="one process")
def weight_penalty_only(d, x):
    gs = grad(d(x).square().mean().sqrt(), list(d.parameters()), create_graph=True)
    return sum(g.square().sum() for g in gs).sqrt()


@case(untagged=False, reproducible="one process")
def maml(d, x, y, z):
    ps = list(d.parameters())
    inner = F.mse_loss(d(x), y.expand(-1, 2))
    gs = grad(inner, ps, create_graph=True)
    w1, b1, w2, b2 = [p - 0.1 * g for p, g in zip(ps, gs, strict=True)]
    return ((z @ w1 + b1).tanh() @ w2 + b2).square().mean()


@case()
def adversarial(d, x, y):
    adv = x.detach().requires_grad_()
    (g,) = grad(F.mse_loss(d(adv), y.expand(-1, 2)), adv)
    return F.mse_loss(d(x + 0.1 * g.sign()), y.expand(-1, 2))


@case()
def adversarial_by_backward(d, x, y):
    adv = x.detach().requires_grad_()
    F.mse_loss(d(adv), y.expand(-1, 2)).backward()
    g = adv.grad
    d.zero_grad()
    return F.mse_loss(d(x + g.numpy() * 5), y.expand(-1, 2))


@case()
def jacobian_by_vector(d, x, z):
    x.requires_grad_()
    o = d(x)
    (g,) = grad(o, x, grad_outputs=z[:, :2], create_graph=True)
    return g.square().mean()


@case(reproducible="one process")
def hessian_vector(d, x):
    weights = list(d.parameters())
    first = grad(d(x).square().mean(), weights, create_graph=True)
    second = grad(sum((g * g.detach()).sum() for g in first), weights)
    return d(x).mean() + sum((p * h.detach()).sum() for p, h in zip(weights, second, strict=True))


@case()
def given_gradient(d, x, z):
    d(x).backward(gradient=z[:, :2])


@case()
def given_gradient_array(d, x, z):
    o = d(x)
    o.backward(z.numpy()[:, :2] / sx.global_rows(x))


# -- the backward


@case()
def second_backward(d, x, y):
    loss = F.mse_loss(d(x), y.expand(-1, 2)).sqrt()
    loss.backward(retain_graph=True)
    return loss


@case()
def used_twice(d, x, y):
    loss = F.mse_loss(d(x), y.expand(-1, 2))
    (loss * 0.5).backward(retain_graph=True)
    return loss + loss * loss.detach()


@case()
def detached(d, x, y):
    loss = F.mse_loss(d(x), y.expand(-1, 2))
    return loss / (loss.detach() + 1e-3)


@case()
def hooks(d, x):
    o = d(x)
    o.register_hook(lambda g: g * 2)
    h = o.square().mean()
    h.register_hook(lambda g: g * 3)
    return h.sqrt()


@case()
def hook_clips(d, x):
    o = d(x).square().mean()
    o.register_hook(lambda g: g.clamp(-0.1, 0.1))
    return o.sqrt() * 3


@case()
def checkpointing(d, x):
    with sx.no_grad():
        value = d(x)
    cut = value.detach().requires_grad_()
    loss = cut.square().mean().sqrt()
    loss.backward()
    again = d(x)
    again.backward(cut.grad)


@case(untagged=False)
def checkpointing_by_layers(d, x):
    first, activation, last = bare(d)
    cut = first(x).detach().requires_grad_()
    last(activation(cut)).square().mean().sqrt().backward()
    first(x).backward(cut.grad)


@case(lambda: (net(2)(), net(2)()))
def two_models(ds, x, z):
    a, b = ds
    return (a(x) * b(z)).mean().exp() + a(x).var()


@case(lambda: (net(3)(), net(1)()))
def gan_discriminator(ds, x, z):
    g, d = ds
    with sx.no_grad():
        fake = g(z)
    out = d(sx.cat([x, fake], 0))
    real, made = out.chunk(2)
    return F.softplus(-real).mean() + F.softplus(made).mean()


@case(lambda: (net(3)(), net(1)()))
def gan_sliced(ds, x, z):
    g, d = ds
    out = d(sx.cat([x, g(z).detach()], 0))
    n = len(x)
    return F.softplus(-out[:n]).mean() + F.softplus(out[n:]).mean().sqrt()


@case(lambda: (net(3)(), net(1)()))
def gan_split(ds, x, z):
    g, d = ds
    real, made = d(sx.cat([x, g(z)], 0)).split(len(x))
    return (real - made).mean().exp()


@case(lambda: (net(3)(), net(1)()))
def gan_generator(ds, x, z):
    g, d = ds
    return F.binary_cross_entropy_with_logits(d(g(z)), sx.ones_like(d(g(z))))


@case(lambda: (net(3)(), net(1)()))
def gan_labels(ds, x, z):
    g, d = ds
    both = sx.cat([x, g(z)])
    labels = sx.cat([sx.ones((len(x), 1), dtype=sx.float64), sx.zeros((len(x), 1), dtype=sx.float64)])
    return F.binary_cross_entropy_with_logits(d(both), labels)


@case(untagged=False, reproducible="one process")
def allow_unused(d, x):
    weights = list(d.parameters())
    found = grad(bare(d)[0](x).square().mean(), weights, allow_unused=True)
    assert found[2] is found[3] is None
    return d(x).mean() + sum((p * g).sum() for p, g in zip(weights[:2], found[:2], strict=True))


# -- sx's own


@case()
def global_value_of_terms(d, x):
    o = d(x)
    return sx.global_value(o.mean()) * o.square().mean() + sx.global_value(o.square().mean()).sqrt()


@case()
def global_value_of_rows(d, x):
    o = sx.global_value(d(x))
    return (o[: len(o) // 2].sum() - o.flip(0).square().mean()).exp()


@case()
def gathered(d, x):
    parts = sx.all_gather(d(x))
    return sx.cat(parts, 0).var(0).sum()


@case()
def gathered_second_derivative(d, x):
    x.requires_grad_()
    o = sx.cat(sx.all_gather(d(x)), 0)
    (g,) = grad((o.T @ o).square().sum(), x, create_graph=True)
    return g.square().mean()


@case()
def replicated_input(d, x, y):
    probe = sx.replicated(np.linspace(0, 1, 6).reshape(2, 3))
    return F.mse_loss(d(x), y.expand(-1, 2)) + d(probe).square().mean().sqrt()


@case()
def replicated_beside(d, x):
    probe = d(sx.replicated(np.linspace(0, 1, 6).reshape(2, 3)))
    return (d(x) @ probe.T).softmax(-1).square().mean()


# -- mixtures of inputs


@case(net(3))
def mixup(d, x, t, z):
    lam = 0.3
    mixed = lam * x + (1 - lam) * z
    return lam * F.cross_entropy(d(mixed), t) + (1 - lam) * F.cross_entropy(d(mixed), (t + 1) % 3)


@case()
def float32_inputs(d, x):
    return d(x.float().double()).square().mean().sqrt()


@case()
def zero_dim(d, x):
    scale = sx.tensor(np.array(2.0))
    return (d(x) * scale).mean() ** 2 / scale


@case()
def einsum_gram(d, x):
    o = d(x)
    return sx.einsum("ni,nj->ij", o, o).square().sum().sqrt() + sx.einsum("ni,mi->nm", o, o).mean()


@case()
def penalties(d, x):
    return d(x).square().mean().sqrt() + 0.1 * sum(p.abs().sum() for p in d.parameters())


@case(untagged=False)
def listwise(d, x, y):
    s = d(x)[:, 0]
    return -(y[:, 0].softmax(0) * s.log_softmax(0)).sum()


@case(untagged=False)
def pairwise_ranking(d, x, y):
    s, v = d(x)[:, 0], y[:, 0]
    diff = s.unsqueeze(1) - s.unsqueeze(0)
    order = (v.unsqueeze(1) - v.unsqueeze(0)).sign()
    return F.softplus(-diff * order).mean()


@case(untagged=False)
def cox(d, x, w):
    s = d(x)[:, 0]
    risk = (w.unsqueeze(0) >= w.unsqueeze(1)).double()
    return ((risk * s.exp().unsqueeze(0)).sum(1).log() - s).mean()


@case(untagged=False)
def earth_movers(d, x, z):
    a, b = d(x)[:, 0].sort().values, z[:, 0].sort().values
    return (a - b).abs().mean()


@case(untagged=False)
def sinkhorn(d, x, z):
    a, b = d(x), z[:, :2]
    cost = (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(-1)
    k = (-cost).exp()
    n = sx.global_rows(x)
    u = sx.ones(n, dtype=sx.float64) / n
    for _ in range(3):
        v = (1 / n) / (k.T @ u)
        u = (1 / n) / (k @ v)
    return (u.unsqueeze(1) * k * v * cost).sum()


@case(untagged=False)
def standardised_targets(d, x, y):
    y = (y - y.mean()) / (y.std() + 1e-3)
    return F.smooth_l1_loss(d(x), y.expand(-1, 2))


@case()
def enumerate_terms(d, x):
    total = 0.0
    for i in range(2):
        total = total + d(x)[:, i].square().mean().sqrt()
    return total / 2


@case()
def inplace_sum(d, x):
    total = sx.zeros(1, dtype=sx.float64)
    total = total + d(x).mean()
    total += d(x).square().mean()
    return total


@case()
def max_of_means(d, x):
    o = d(x)
    return sx.maximum(o[:, 0].mean(), o[:, 1].mean()) + o.mean(0).max()


@case()
def clamp_of_mean(d, x):
    return d(x).square().mean().clamp(min=0.01) + F.relu(d(x).mean())


@case()
def stack_of_losses(d, x):
    o = d(x)
    return sx.stack([o.mean(), o.square().mean(), o.abs().sum()]).softmax(0).square().sum()


@case()
def norm_of_output(d, x):
    return d(x).norm() + d(x).norm(dim=1).mean()


@case()
def free_bits(d, x):
    return d(x).square().mean(0).clamp(min=0.3).sum()
