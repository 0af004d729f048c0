"""Losses and their gradients are PyTorch's."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn, optim
from sorix_dist.core import Tensor

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(1)
WEIGHT = np.array([0.5, 2.0, 1.0, 0.3])
REDUCTIONS = ["mean", "sum", "none"]


def compare(ours: Any, theirs: Any, x: np.ndarray, target: np.ndarray, rtol: float = 1e-11) -> None:
    mine, other = Tensor(x.copy(), requires_grad=True), torch.tensor(x, requires_grad=True)
    got, expected = ours(mine, Tensor(target)), theirs(other, torch.tensor(target))
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    weights = RNG.uniform(0.5, 1.5, got.shape)
    got.backward(weights)
    expected.backward(torch.tensor(weights))
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("weighted", "ignore", "smoothing", "extra"),
    list(itertools.product([False, True], [None, 2], [0.0, 0.15], [(), (3,), (2, 3)])),
)
def test_cross_entropy(reduction: str, weighted: bool, ignore: int | None, smoothing: float, extra: Any) -> None:
    x, target = RNG.standard_normal((7, 4, *extra)) * 3, RNG.integers(0, 4, (7, *extra))
    weight = WEIGHT if weighted else None
    ours = nn.CrossEntropyLoss(weight, ignore_index=ignore, label_smoothing=smoothing, reduction=reduction)
    theirs = torch.nn.CrossEntropyLoss(
        None if weight is None else torch.tensor(weight),
        ignore_index=-100 if ignore is None else ignore,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    compare(ours, theirs, x, target)
    probabilities = RNG.dirichlet(np.ones(4), (7, *extra))
    if ignore is None:
        compare(ours, theirs, x, np.ascontiguousarray(np.moveaxis(probabilities, -1, 1)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore", [None, 2])
def test_nll(reduction: str, ignore: int | None) -> None:
    for extra in ((), (3,)):
        x, target = RNG.standard_normal((7, 4, *extra)), RNG.integers(0, 4, (7, *extra))
        theirs = torch.nn.NLLLoss(
            torch.tensor(WEIGHT), ignore_index=-100 if ignore is None else ignore, reduction=reduction
        )
        compare(nn.NLLLoss(WEIGHT, ignore_index=ignore, reduction=reduction), theirs, x, target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MSELoss", {}),
        ("L1Loss", {}),
        ("SmoothL1Loss", {}),
        ("SmoothL1Loss", {"beta": 0.3}),
        ("SmoothL1Loss", {"beta": 0.0}),
        ("HuberLoss", {"delta": 0.4}),
        ("BCEWithLogitsLoss", {}),
    ],
)
def test_elementwise(name: str, options: dict[str, Any], reduction: str) -> None:
    ours, theirs = (getattr(m, name)(reduction=reduction, **options) for m in (nn, torch.nn))
    compare(ours, theirs, RNG.standard_normal((5, 4)), RNG.uniform(0, 1, (5, 4)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weighted_binary(reduction: str) -> None:
    x, target = RNG.standard_normal((5, 4)) * 20, RNG.uniform(0, 1, (5, 4))
    for weight, positive in itertools.product((None, WEIGHT), (None, WEIGHT[::-1].copy())):
        tensors = [None if w is None else torch.tensor(w) for w in (weight, positive)]
        compare(
            nn.BCEWithLogitsLoss(weight, pos_weight=positive, reduction=reduction),
            torch.nn.BCEWithLogitsLoss(tensors[0], pos_weight=tensors[1], reduction=reduction),
            x,
            target,
        )
        probabilities = RNG.uniform(0, 1, (5, 4))
        probabilities[0, :2] = 0, 1
        compare(
            nn.BCELoss(weight, reduction=reduction),
            torch.nn.BCELoss(tensors[0], reduction=reduction),
            probabilities,
            target,
            rtol=1e-8,  # at 0 and 1 PyTorch divides by 1e-12 rounded to float32
        )


@pytest.mark.filterwarnings("ignore:reduction.*mean")
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_divergence(reduction: str, log_target: bool) -> None:
    x, target = np.log(RNG.dirichlet(np.ones(4), 5)), RNG.dirichlet(np.ones(4), 5)
    if not log_target:
        target[0, 1] = 0
    ours, theirs = (m.KLDivLoss(reduction=reduction, log_target=log_target) for m in (nn, torch.nn))
    compare(ours, theirs, x, np.log(target) if log_target else target)


@pytest.mark.filterwarnings("ignore:reduction.*mean", "ignore:Using a target size")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "options", "kinds"),
    [
        ("TripletMarginLoss", {}, "xxx"),
        ("TripletMarginLoss", {"margin": 0.3, "p": 1.0, "swap": True}, "xxx"),
        ("MarginRankingLoss", {"margin": 0.4}, "xxs"),
        ("CosineEmbeddingLoss", {"margin": 0.2}, "xxt"),
        ("GaussianNLLLoss", {"full": True}, "xxv"),
        ("GaussianNLLLoss", {"eps": 0.5}, "xxv"),
        ("KLDivLoss", {}, "xs"),
    ],
)
def test_losses_of_several(name: str, options: dict[str, Any], kinds: str, reduction: str) -> None:
    """x: numbers; s: signs of their shape; t: a sign for each row; v: numbers from 0 to 1."""
    signs = np.where(RNG.random((7, 4)) < 0.5, -1.0, 1.0)
    of_kind = {"s": lambda: signs, "t": lambda: signs[:, 0], "v": lambda: RNG.uniform(0, 1, (7, 4))}
    arrays = [of_kind.get(kind, lambda: RNG.standard_normal((7, 4)))() for kind in kinds]
    ours, theirs = (getattr(m, name)(reduction=reduction, **options) for m in (nn, torch.nn))
    mine = [Tensor(a.copy(), requires_grad=kind in "xv") for a, kind in zip(arrays, kinds, strict=True)]
    other = [torch.tensor(a, requires_grad=kind in "xv") for a, kind in zip(arrays, kinds, strict=True)]
    got, expected = ours(*mine), theirs(*other)
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    weights = RNG.uniform(0.5, 1.5, got.shape)
    got.backward(weights)
    expected.backward(torch.tensor(weights))
    for a, b, kind in zip(mine, other, kinds, strict=True):
        if kind in "xv":
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_one_sample() -> None:
    compare(
        nn.CrossEntropyLoss(WEIGHT),
        torch.nn.CrossEntropyLoss(torch.tensor(WEIGHT)),
        RNG.standard_normal(4),
        np.array(2),
    )
    compare(nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), RNG.standard_normal(4), RNG.dirichlet(np.ones(4)))
    compare(nn.NLLLoss(), torch.nn.NLLLoss(), RNG.standard_normal(4), np.array(1))


CLASSES = RNG.integers(0, 4, 12)
REALS = RNG.uniform(0.05, 0.95, (12, 4))


@pytest.mark.parametrize(
    ("name", "options", "target", "last"),
    [
        ("CrossEntropyLoss", {"label_smoothing": 0.1}, CLASSES, "Identity"),
        ("CrossEntropyLoss", {"weight": WEIGHT, "ignore_index": 1}, CLASSES, "Identity"),
        ("NLLLoss", {"weight": WEIGHT}, CLASSES, "LogSoftmax"),
        ("KLDivLoss", {"reduction": "batchmean"}, REALS, "LogSoftmax"),
        ("BCELoss", {}, REALS, "Sigmoid"),
        ("BCEWithLogitsLoss", {"pos_weight": WEIGHT}, REALS, "ELU"),
        ("MSELoss", {}, REALS, "Softplus"),
        ("HuberLoss", {"delta": 0.2}, REALS, "LeakyReLU"),
        ("SmoothL1Loss", {"beta": 0.3}, REALS, "SiLU"),
    ],
)
def test_twenty_steps_of_training(name: str, options: dict[str, Any], target: np.ndarray, last: str) -> None:
    x = RNG.standard_normal((12, 5))
    dim = {"dim": 1} if last == "LogSoftmax" else {}
    ours = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4), getattr(nn, last)(**dim)).double()
    theirs = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.GELU("tanh"), torch.nn.Linear(8, 4), getattr(torch.nn, last)(**dim)
    ).double()
    for i in (0, 2):
        with torch.no_grad():
            theirs[i].weight.copy_(torch.tensor(ours[i].W.numpy().T))
            theirs[i].bias.zero_()
    criterion = getattr(nn, name)(**options)
    other = getattr(torch.nn, name)(
        **{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    )
    optimizer = optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    their = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        their.zero_grad()
        loss, expected = criterion(ours(Tensor(x)), target), other(theirs(torch.tensor(x)), torch.tensor(target))
        loss.backward()
        expected.backward()
        optimizer.step()
        their.step()
        losses.append(loss.item())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert losses[-1] < losses[0]
    for i in (0, 2):
        np.testing.assert_allclose(ours[i].W.numpy().T, theirs[i].weight.detach().numpy(), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(ours[i].b.numpy()[0], theirs[i].bias.detach().numpy(), rtol=1e-8, atol=1e-10)
