"""What may be written in reproducible mode: each case trains for some steps and returns the bits that it ends with.

It also trains a bare copy on whole batches: the steps are those of one process, up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.random_training import TOLERANCE, difference

ROWS, BATCH, FEATURES, CLASSES, SHARDS = 30, 13, 8, 4, 8  # the last batch has 4 rows, less than there are shards
WEIGHTS = np.array([0.25, 1.0, 2.0, 3.5])
IGNORED = -100


def net(features: int = FEATURES, out: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, out)).double()


class WithLoss(nn.Module):
    """Returns its own loss, and the scores."""

    def __init__(self) -> None:
        self.net = net()

    def forward(self, x: Any, y: Any) -> Any:
        scores = self.net(x)
        return {"loss": F.cross_entropy(scores, y.numpy()), "scores": scores}


class Counting(nn.Module):
    """Counts its batches in an attribute that its first forward makes, and scales by one of its inputs and the count.
    It returns a parameter beside its loss; a hook changes the gradient of a root, and a logarithm changes in place."""

    def __init__(self) -> None:
        self.net = net()

    def forward(self, x: Any, scale: Any) -> Any:
        self.batches = getattr(self, "batches", 0) + 1
        scores = self.net(x) * scale / self.batches
        root = scores.square().mean().sqrt()
        root.register_hook(lambda g: 3 * g)
        size = scores.detach().abs().mean().log()
        size.mul_(0.5)
        return root * size, self.net[0].W


class Images(nn.Module):
    def __init__(self) -> None:
        self.conv = nn.Conv2d(1, 3, 2).double()
        self.head = nn.Linear(27, CLASSES).double()

    def forward(self, x: Any) -> Any:
        return self.head(self.conv(x).flatten(1))


class Experts(nn.Module):
    """Rows with a large first feature, which few virtual shards have, go through parameters of their own."""

    def __init__(self) -> None:
        self.first, self.expert, self.never = net(FEATURES, 6), net(6, 6), net(2, 2)
        self.last = nn.Linear(6, CLASSES).double()

    def forward(self, x: Any) -> Any:
        h = self.first(x)
        mask = x.numpy()[:, 0] > 1
        if mask.any():
            h = h + self.expert(h) * mask[:, None].astype(float)
        return self.last(h)


class Tokens(nn.Module):
    """Scores (N, C, T) of rows of 8 tokens."""

    def __init__(self) -> None:
        self.layers = nn.Sequential(nn.Linear(1, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)).double()

    def forward(self, x: Any) -> Any:
        return self.layers(x.unsqueeze(-1)).transpose(1, 2)


def _ignoring(y: Any) -> Any:
    labels = y.numpy()
    return np.where(labels == 0, IGNORED, labels)


def _for_tokens(x: Any) -> Any:
    return np.where(x.numpy() > 0.8, IGNORED, (np.abs(x.numpy()) * 2).astype(int) % CLASSES)


def _penalty(models: list[nn.Module]) -> Any:
    return sum((p * p).sum() for p in models[0].parameters()) * 0.01


def _of_some_rows(scores: Any, x: Any, y: Any) -> Any:
    mask = x.numpy()[:, 1] > 0
    return F.cross_entropy(scores[mask], y.numpy()[mask], WEIGHTS) + scores[mask].mean()


def _root_and_penalty(m: list[nn.Module], x: Any, y: Any) -> Any:
    root, weights = m[0](x, sx.replicated(np.array([1.0, 2.0, 0.5, 1.5])))
    return root + 0.01 * weights.square().sum()


def _input_penalty(model: nn.Module, x: Any) -> Any:
    x = x.detach().requires_grad_()
    (g,) = sx.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return (g - 1).square().mean()


ROTATION = np.linalg.qr(np.random.default_rng(4).standard_normal((FEATURES, FEATURES)))[0]

Loss = Callable[[list[nn.Module], Any, Any], Any]


@dataclass(frozen=True)
class Situation:
    """Models that are wrapped, a loss of them and of a batch, and how many batches make a step."""

    models: tuple[Callable[[], nn.Module], ...]
    loss: Loss
    pieces: int = 1


CASES = {
    "plain": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y)),
    "changed scores": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x) * 2 + 1, y, WEIGHTS)),
    "ignored labels": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), _ignoring(y), ignore_index=IGNORED)),
    "sum": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y, reduction="sum") * 0.05),
    "own mean": Situation((net,), lambda m, x, y: ((m[0](x) - x[:, :CLASSES]) ** 2).mean()),
    "two losses": Situation((net,), lambda m, x, y: (lambda s: F.cross_entropy(s, y) + 0.1 * (s * s).mean())(m[0](x))),
    "weights and rows": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y, WEIGHTS) + (m[0](x) ** 2).mean()),
    "own loss": Situation((WithLoss,), lambda m, x, y: m[0](x, y)["loss"]),
    "own loss and another": Situation(
        (WithLoss,), lambda m, x, y: (lambda r: r["loss"] + 0.1 * (r["scores"] ** 2).mean())(m[0](x, y))
    ),
    "what all ranks have": Situation(
        (lambda: nn.Sequential(nn.BatchNorm1d(FEATURES).double(), nn.Dropout(0.2), net()),),
        lambda m, x, y: (
            (m[0].train()(sx.replicated(np.eye(FEATURES))) ** 2).mean() + F.cross_entropy(m[0].eval()(x), y)
        ),
    ),
    "penalty": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y) + _penalty(m)),
    "two models": Situation((net, net), lambda m, x, y: F.cross_entropy(m[0](x), y) + F.cross_entropy(m[1](x), y)),
    "two models, one loss": Situation((net, net), lambda m, x, y: F.cross_entropy(m[0](x) + m[1](x), y)),
    "chained": Situation((lambda: net(8, 6), lambda: net(6, 4)), lambda m, x, y: F.cross_entropy(m[1](m[0](x)), y)),
    "chained, changed between": Situation(
        (lambda: net(8, 6), lambda: net(6, 4)), lambda m, x, y: F.cross_entropy(m[1](sx.tanh(m[0](x)) + 1), y)
    ),
    "experts": Situation((Experts,), lambda m, x, y: F.cross_entropy(m[0](x), y)),
    "tokens": Situation((Tokens,), lambda m, x, y: F.cross_entropy(m[0](x), _for_tokens(x), ignore_index=IGNORED)),
    "scaled": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x / 16), y)),
    "attribute, input, hook and parameter": Situation((Counting,), _root_and_penalty),
    "projected": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x @ ROTATION), y)),
    "projected, linear": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](F.linear(x, sx.tensor(ROTATION))), y)),
    "projected scores": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x) @ ROTATION[:CLASSES, :CLASSES], y)),
    "projected from the left": Situation((net,), lambda m, x, y: F.cross_entropy((ROTATION[:4, :4] @ m[0](x).T).T, y)),
    "projected, einsum": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](sx.einsum("bi,ji", x, ROTATION)), y)),
    "smoothed": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0]), y)),
    "images": Situation((Images,), lambda m, x, y: F.cross_entropy(m[0](sx.cat([x, x], 1).reshape(-1, 1, 4, 4)), y)),
    "columns": Situation((lambda: net(7),), lambda m, x, y: F.cross_entropy(m[0](x[:, :-1]), y)),
    "sum by hand": Situation((net,), lambda m, x, y: (m[0](x) ** 2).sum() * 0.02),
    "mean by hand": Situation(
        (net,), lambda m, x, y: (m[0](x) ** 2).sum(axis=1).sum() / (sx.global_rows(x) if x.rows else len(x))
    ),
    "mean of columns": Situation((net,), lambda m, x, y: m[0](x).mean(axis=0).square().sum()),
    "rows and a loss": Situation((net,), lambda m, x, y: (lambda s: (s * F.cross_entropy(s, y)).mean())(m[0](x))),
    "some rows": Situation((net,), lambda m, x, y: _of_some_rows(m[0](x), x, y)),
    "root": Situation((net,), lambda m, x, y: F.mse_loss(m[0](x), x[:, :CLASSES]).sqrt()),
    "variance": Situation((net,), lambda m, x, y: m[0](x).var(axis=0).sum()),
    "quotient": Situation((net,), lambda m, x, y: (m[0](x) ** 2).sum() / (x - x.mean(axis=0)).square().sum()),
    "pairs": Situation((net,), lambda m, x, y: (lambda s: (s @ s.T).square().mean())(m[0](x))),
    "two views": Situation((net,), lambda m, x, y: (lambda s: (s @ s.T).square().mean())(m[0](sx.cat([x, -x])))),
    "largest": Situation((net,), lambda m, x, y: m[0](x).abs().max()),
    "gradient of inputs": Situation((net,), lambda m, x, y: _input_penalty(m[0], x)),
    "scaled by a parameter": Situation((net,), lambda m, x, y: (m[0](x) * m[0].parameters()[-1]).square().mean()),
    "accumulated": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y), pieces=3),
    "accumulated weights": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y, WEIGHTS), pieces=2),
    "accumulated own loss": Situation((WithLoss,), lambda m, x, y: m[0](x, y)["loss"] + _penalty(m), pieces=2),
    "accumulated sum": Situation((net,), lambda m, x, y: F.cross_entropy(m[0](x), y, reduction="sum") * 0.05, pieces=2),
}


def trained(name: str, steps: int = 6) -> str:
    """The SHA-256 of the weights; AssertionError unless they are those of one process to TOLERANCE."""
    sx.init(virtual_shards=SHARDS)
    situation = CASES[name]
    draw = np.random.default_rng(3)
    samples = Dataset(draw.standard_normal((ROWS, FEATURES)), draw.integers(0, CLASSES, ROWS))
    states, losses = [], []
    for wrap in (False, True):
        sx.manual_seed(5)
        models: list[Any] = [make() for make in situation.models]
        models = [sx.DistributedDataParallel(model) for model in models] if wrap else models
        optimizer = optim.SGD([p for model in models for p in model.parameters()], lr=0.05, momentum=0.9)
        batches = _endless(DataLoader(samples, batch_size=BATCH, shuffle=True, shard=wrap))
        for _ in range(steps):
            optimizer.zero_grad()
            pieces = [next(batches) for _ in range(situation.pieces)]
            if not wrap:
                x, y = (sx.tensor(np.concatenate([p[i].numpy() for p in pieces])) for i in (0, 1))
                situation.loss(models, x, y).backward()
            elif situation.pieces == 1:
                loss = situation.loss(models, *pieces[0])
                losses.append(loss.item())
                loss.backward()
            else:
                for x, y in models[0].accumulate(pieces):
                    situation.loss(models, x, y).backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.5)
            optimizer.step()
        states.append({f"{i} {k}": v.numpy() for i, m in enumerate(models) for k, v in m.state_dict().items()})
    off = difference(states[1], states[0])
    assert off <= TOLERANCE, f"{name}: {off} away from one process"
    return hashlib.sha256(b"".join(v.tobytes() for v in states[1].values())).hexdigest()


def evaluated() -> str:
    """The SHA-256 of all scores of a model that is evaluated."""
    sx.init(virtual_shards=SHARDS)
    sx.manual_seed(5)
    x = np.random.default_rng(3).standard_normal((ROWS, FEATURES)).astype(np.float32)
    layers = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * FEATURES, CLASSES))
    model = sx.DistributedDataParallel(layers)
    for xb in DataLoader(Dataset(x), batch_size=BATCH, drop_last=True):
        model(sx.cat([xb, xb], 1).reshape(-1, FEATURES, 2))  # moves the running statistics
    model.eval()
    scores = []
    with sx.no_grad():
        for xb in DataLoader(Dataset(x), batch_size=BATCH):
            scores += sx.all_gather([row.tobytes() for row in model(sx.stack([xb, xb], 2)).numpy()])
    rows = [row for part in scores for row in part]
    assert len(rows) == ROWS
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _endless(loader: DataLoader) -> Any:
    while True:
        yield from loader
