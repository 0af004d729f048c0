"""Training situations drawn at random: what is trained, on what, and how its rows are shared out.

A case is a function of its seed and the number of ranks: the model, the losses, how rows are shared out, the pieces
of each step, the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

FEATURES, CLASSES, WORDS, TOKENS, STEPS = 5, 4, 11, 3, 5
IGNORED = -100
WEIGHTS = np.array([0.25, 1.0, 2.0, 3.5])
DENSE = np.random.default_rng(1).standard_normal((CLASSES, CLASSES))

Piece = tuple[Any, Any]


@dataclass(frozen=True)
class Term:
    """A loss of scores (N, C) or (N, C, T) and labels, and what its mean is divided by.

    kind: "rows", "own" or "sum"; denominator: of some labels; ignores: whether labels may be IGNORED.
    """

    loss: Callable[[Any, Any], Any]
    kind: str = "rows"
    denominator: Callable[[Any], float] = np.size
    ignores: bool = False


def _dense(scores: Any, y: Any) -> Any:
    """Real numbers as targets, of the shape of the scores."""
    values = DENSE[y]
    return values if scores.ndim == 2 else np.moveaxis(values, -1, 1)


def _count(y: Any) -> float:
    return float((y != IGNORED).sum())


def _weights(y: Any) -> float:
    return float(WEIGHTS[y[y != IGNORED]].sum())


TERMS = {
    "cross-entropy": Term(F.cross_entropy),
    "smoothed": Term(lambda s, y: F.cross_entropy(s, y, label_smoothing=0.2)),
    "mean of losses": Term(lambda s, y: F.cross_entropy(s, y, reduction="none").mean()),
    "squared error": Term(lambda s, y: nn.MSELoss()(s, _dense(s, y))),
    "binary": Term(
        lambda s, y: nn.BCEWithLogitsLoss(pos_weight=np.array(2.5))(s, (_dense(s, y) > 0).astype(np.float64))
    ),
    "mean of own": Term(lambda s, y: ((s - _dense(s, y)) ** 2 * 0.5 + sx.tanh(s)).mean()),
    "weighted": Term(lambda s, y: F.cross_entropy(s, y, WEIGHTS), "own", _weights),
    "weighted, smoothed": Term(lambda s, y: F.cross_entropy(s, y, WEIGHTS, label_smoothing=0.1), "own", _weights),
    "ignoring": Term(lambda s, y: F.cross_entropy(s, y, ignore_index=IGNORED), "own", _count, True),
    "ignoring, weighted, smoothed": Term(
        lambda s, y: F.cross_entropy(s, y, WEIGHTS, ignore_index=IGNORED, label_smoothing=0.1), "own", _weights, True
    ),
    "likelihood, ignoring": Term(
        lambda s, y: F.nll_loss(F.log_softmax(s, 1), y, WEIGHTS, ignore_index=IGNORED), "own", _weights, True
    ),
    "sum": Term(lambda s, y: F.cross_entropy(s, y, WEIGHTS, reduction="sum"), "sum"),
    "sum of squares": Term(lambda s, y: nn.MSELoss(reduction="sum")(s, _dense(s, y)), "sum"),
}


@dataclass
class Case:
    """One situation; `str` describes it."""

    seed: int
    size: int
    tokens: bool
    loader: bool  # cut by a loader, else by hand
    pieces: list[list[int]]  # rows of each piece of each step
    terms: list[tuple[float, str]]
    penalty: float
    optimizer: str
    groups: bool
    clip: float | None
    activation: str
    norm: str
    dropout: float
    tied: bool
    experts: list[float]  # thresholds: the rows above one go through an expert of their own
    cuts: list[list[list[int]]] = field(default_factory=list)

    def model(self) -> nn.Module:
        return Model(self)

    def optimize(self, model: nn.Module) -> optim.Optimizer:
        made: list[Any] = model.parameters()
        if self.groups:
            made = [{"params": made[::2]}, {"params": made[1::2], "lr": 0.02, "weight_decay": 0.1}]
        # Rounding must not be what moves a parameter: a gradient of 1e-17 does, divided by its own size.
        options: dict[str, Any] = {"SGD": {"momentum": 0.9}, "Adam": {"eps": 1e-2}, "RMSprop": {"eps": 1e-2}}
        return getattr(optim, self.optimizer)(made, lr=0.05, weight_decay=0.01, **options[self.optimizer])

    def loss(self, model: nn.Module, scores: Any, y: Any) -> Any:
        labels = np.asarray(getattr(y, "array", y))
        parts = [
            # A sum over many rows would take long steps, on which rounding grows.
            TERMS[name].loss(scores, labels) * (factor * 0.01 if TERMS[name].kind == "sum" else factor)
            for factor, name in self.terms
        ]
        if self.penalty:
            parts.append(sum((p * p).sum() for p in model.parameters()) * self.penalty)
        return sum(parts[1:], parts[0])


class Model(nn.Module):
    """float64; some parameters belong to rows that not every rank has, and one to none."""

    def __init__(self, case: Case) -> None:
        sx.manual_seed(case.seed)
        self.case = case
        width = 6
        self.first = nn.Embedding(WORDS, width) if case.tokens else nn.Linear(FEATURES, width)
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
        self.norm = norms[case.norm](width)
        self.activation = getattr(nn, case.activation)()
        self.dropout = nn.Dropout(case.dropout)
        self.again = [nn.Linear(width, width), nn.Linear(width, width)]
        self.experts = [nn.Linear(width, width) for _ in case.experts]
        self.never = nn.Linear(2, 2)
        self.last = nn.Linear(width, CLASSES)
        self.double()
        if case.tied:
            self.again[1].W = self.again[0].W

    def forward(self, x: Any) -> Any:
        keys = np.asarray(x.array, np.float64)[:, 0]
        h = self.dropout(self.activation(self.norm(self.first(x))))
        for layer in self.again:
            h = self.activation(layer(h))
        for threshold, expert in zip(self.case.experts, self.experts, strict=True):
            mask = keys > threshold
            if mask.any():
                h = h + expert(h) * mask.reshape(-1, *[1] * (h.ndim - 1)).astype(np.float64)
        scores = self.last(h)
        return scores.transpose(1, 2) if self.case.tokens else scores


def case(seed: int, size: int) -> Case:
    """The case of a seed on a number of ranks."""
    draw = np.random.default_rng([seed, size])

    def chance(p: float) -> bool:
        return bool(draw.random() < p)

    tokens, loader = chance(0.3), chance(0.4)
    most = int(draw.integers(2, 5)) if chance(0.4) else 1
    norm = str(draw.choice(["none", "none", "batch" if most == 1 and not tokens else "layer"]))
    least = 2 if norm == "batch" else 1
    if loader:
        rows = int(draw.integers(least, 10))
        pieces = [[rows] * most for _ in range(STEPS)]
    else:
        pieces = [draw.integers(least, 10, draw.integers(1, most + 1)).tolist() for _ in range(STEPS)]
    names = list(TERMS)
    terms = [(1.0, str(draw.choice(names)))]
    kind = TERMS[terms[0][1]].kind
    if chance(0.4):
        # Pieces of a step need one denominator; where nothing is accumulated, any two losses can be added.
        fits = [n for n in names if TERMS[n].kind == kind != "own"] if most > 1 else names
        fits = [n for n in fits if TERMS[n].ignores == TERMS[terms[0][1]].ignores]
        terms = [(0.7, terms[0][1]), (0.4, str(draw.choice(fits)))] if fits else terms
    # One batch of all pieces has a penalty once; with sums, which nothing divides, it would count for each piece.
    penalised = chance(0.3) and (most == 1 or kind != "sum")
    made = Case(
        seed=seed,
        size=size,
        tokens=tokens,
        loader=loader,
        pieces=pieces,
        terms=terms,
        penalty=0.02 if penalised else 0.0,
        optimizer=str(draw.choice(["SGD", "SGD", "Adam", "RMSprop"])),
        groups=chance(0.4),
        clip=float(draw.choice([0.05, 1.0])) if chance(0.4) else None,
        activation=str(draw.choice(["Tanh", "GELU", "ReLU"])),
        norm=norm,
        dropout=0.3 if most == 1 and chance(0.2) else 0.0,
        tied=chance(0.3),
        experts=[float(t) for t in draw.choice([-9, 0, 1, 6, 99], draw.integers(0, 3))],
    )
    made.cuts = [[_cuts(draw, rows, size) for rows in step] for step in pieces]
    return made


def _cuts(draw: Any, rows: int, size: int) -> list[int]:
    """Where the rows of each rank begin and end."""
    if draw.random() < 0.2:  # one rank has them all
        owner = int(draw.integers(size))
        return [0] * (owner + 1) + [rows] * (size - owner)
    return [0, *sorted(draw.integers(0, rows + 1, size - 1).tolist()), rows]


def _batch(made: Case, draw: Any, rows: int, cuts: list[int]) -> Piece:
    """A whole batch. Labels are ignored here and there, all those of one rank, or all of them."""
    if made.tokens:
        x, y = draw.integers(0, WORDS, (rows, TOKENS)), draw.integers(0, CLASSES, (rows, TOKENS))
    else:
        x, y = draw.standard_normal((rows, FEATURES)), draw.integers(0, CLASSES, rows)
    if TERMS[made.terms[0][1]].ignores:
        y[draw.random(y.shape) < 0.3] = IGNORED
        what = draw.random()
        if what < 0.3:
            rank = int(draw.integers(made.size))
            y[cuts[rank] : cuts[rank + 1]] = IGNORED
        elif what < 0.4:
            y[:] = IGNORED
    return x, y


def steps(made: Case, rank: int) -> Iterator[tuple[Piece, list[Piece]]]:
    """Of each step the whole batch, and the pieces of this rank."""
    draw = np.random.default_rng([made.seed, made.size, 1])
    wholes = [
        [_batch(made, draw, rows, cuts) for rows, cuts in zip(*step, strict=True)]
        for step in zip(made.pieces, made.cuts, strict=True)
    ]
    if not made.loader:
        for batches, all_cuts in zip(wholes, made.cuts, strict=True):
            mine = [
                (sx.tensor(x[cuts[rank] : cuts[rank + 1]]), y[cuts[rank] : cuts[rank + 1]])
                for (x, y), cuts in zip(batches, all_cuts, strict=True)
            ]
            yield _together(batches), mine
        return
    whole = _together([batch for step in wholes for batch in step])
    # Two more rows make a smaller last batch, after which the next epoch begins.
    data = Dataset(*(np.concatenate([part, part[:2]]) for part in whole))
    loaders = [
        DataLoader(data, batch_size=made.pieces[0][0], shuffle=made.seed % 2 == 0, shard=shard, seed=made.seed)
        for shard in (False, True)
    ]
    streams = [_endless(loader) for loader in loaders]
    for step in wholes:
        batches, mine = ([next(stream) for _ in step] for stream in streams)
        yield _together([(x.numpy(), y.numpy()) for x, y in batches]), mine


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def _together(batches: list[Piece]) -> Piece:
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    return x, y
