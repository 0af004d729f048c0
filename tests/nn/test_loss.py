"""Losses: values against formulas, what counts in a mean, extremes, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor
from sorix_dist.nn import functional as F
from tests.support.core.sharded import OneOfTwo, sharded

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((6, 4))
LABELS = np.array([0, 3, 1, 1, 2, 0])
WEIGHT = np.array([0.5, 2.0, 1.0, 0.0])


def likely(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def gradient(loss: Any, scores: np.ndarray, *targets: Any, **options: Any) -> tuple[float, np.ndarray]:
    x = Tensor(scores, requires_grad=True)
    value = loss(x, *targets, **options)
    value.backward()
    return value.item(), x.grad.numpy()


def test_cross_entropy_of_classes() -> None:
    value, grad = gradient(nn.CrossEntropyLoss(), SCORES, LABELS)
    np.testing.assert_allclose(value, -likely(SCORES)[np.arange(6), LABELS].mean())
    np.testing.assert_allclose(grad, (np.exp(likely(SCORES)) - np.eye(4)[LABELS]) / 6)


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 101, 300])
@pytest.mark.parametrize("label", [np.uint8, np.int32, np.int64])
def test_cross_entropy_of_any_layout_and_kind_of_label(classes: int, label: Any) -> None:
    scores, labels = RNG.standard_normal((300, classes)), RNG.integers(0, min(classes, 256), 300).astype(label)
    expected = np.exp(likely(scores))
    expected[np.arange(300), labels] -= 1
    for laid_out in (scores, np.asfortranarray(scores), np.repeat(scores, 2, axis=1)[:, ::2]):
        value, found = gradient(F.cross_entropy, laid_out, labels)
        assert value == pytest.approx(-likely(scores)[np.arange(300), labels].mean())
        np.testing.assert_allclose(found, expected / 300, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100, 101])
def test_the_loss_of_a_row_has_the_same_bits_among_any_number_of_rows(classes: int) -> None:
    scores, labels = RNG.standard_normal((24, classes), np.float32), RNG.integers(0, classes, 24)

    def of_rows(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        x = Tensor(scores[rows], requires_grad=True)
        losses = F.cross_entropy(x, labels[rows], reduction="none")
        losses.sum().backward()
        return losses.numpy(), x.grad.numpy()

    whole = of_rows(slice(None))
    for count in (1, 2, 3, 8):
        for start in range(0, 24, count):
            rows = slice(start, start + count)
            for part, of_all in zip(of_rows(rows), whole, strict=True):
                np.testing.assert_array_equal(part, of_all[rows])


def test_weights_and_ignored_labels_divide_by_what_counts() -> None:
    labels = np.where(LABELS == 1, -100, LABELS)
    counted = labels != -100
    each = -likely(SCORES)[np.arange(6), LABELS] * WEIGHT[LABELS] * counted
    loss = nn.CrossEntropyLoss(WEIGHT, ignore_index=-100)
    value, grad = gradient(loss, SCORES, labels)
    np.testing.assert_allclose(value, each.sum() / (WEIGHT[LABELS] * counted).sum())
    assert not grad[~counted].any()
    assert not grad[LABELS == 3].any()
    assert grad[LABELS == 0].all()


# -- class weights of zero, labels that do not count, smoothing


def expected_parts(
    labels: np.ndarray, classes: int, weight: np.ndarray | None, ignored: int | None, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's definition, label by label: the factors of -log(probability) of each class, and what each label adds
    to the denominator of the mean."""
    factors, denominators = np.zeros((labels.size, classes)), np.zeros(labels.size)
    weights = np.ones(classes) if weight is None else weight
    for row, label in enumerate(labels.ravel().tolist()):
        if label != ignored:
            factors[row] = smoothing / classes * weights
            factors[row, label] += (1 - smoothing) * weights[label]
            denominators[row] = weights[label]
    return factors, denominators


@pytest.mark.parametrize("extra", [(), (3,)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignored", [None, 1, -100])
@pytest.mark.parametrize(
    "weight", [None, [1.0, 0.5, 2.0, 3.0, 1.5], [0.0, 2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 2.0], [0.0] * 5]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_of_zero_ignored_labels_and_smoothing_in_all_combinations(
    extra: tuple[int, ...], smoothing: float, ignored: int | None, weight: list[float] | None, reduction: str
) -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((4, 5, *extra))
    labels = np.array([0, 1, 1, 2]) if not extra else np.array([[0, 1, 1], [2, 4, 0], [1, 1, 1], [3, 0, 2]])
    if ignored == -100:
        labels.flat[1] = -100
    weights = None if weight is None else np.array(weight)
    rows = np.moveaxis(scores, 1, -1).reshape(-1, 5)
    factors, denominators = expected_parts(labels, 5, weights, ignored, smoothing)
    upstream = np.ones(labels.size) if reduction != "none" else np.cos(np.arange(labels.size))
    whole = denominators.sum() if reduction == "mean" else 1.0
    scale = 1 / whole if whole else 0.0  # where nothing counts, the mean is 0
    losses = -(factors * likely(rows)).sum(axis=1)
    wanted = losses.reshape(labels.shape) if reduction == "none" else losses.sum() * scale
    slopes = (np.exp(likely(rows)) * factors.sum(axis=1, keepdims=True) - factors) * (upstream * scale)[:, None]

    def value_and_gradient(loss: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leaf = Tensor(x, requires_grad=True)
        result = loss(leaf, labels, weights, ignore_index=ignored, reduction=reduction)
        result.backward(None if reduction != "none" else upstream.reshape(labels.shape))
        return result.numpy(), np.moveaxis(leaf.grad.numpy(), 1, -1).reshape(-1, 5)

    value, found = value_and_gradient(partial(F.cross_entropy, label_smoothing=smoothing), scores)
    np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, slopes, rtol=1e-12, atol=1e-12)
    if not smoothing:
        logs = np.moveaxis(likely(rows).reshape(4, *extra, 5), -1, 1)
        value, found = value_and_gradient(F.nll_loss, logs)
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, -factors * (upstream * scale)[:, None], rtol=1e-12, atol=1e-12)


def test_a_row_whose_class_has_no_weight_still_counts_by_its_smoothing() -> None:
    scores = np.random.default_rng(1).standard_normal((4, 5))
    loss = F.cross_entropy(scores, [0, 1, 1, 2], [0, 2, 1, 1, 1], label_smoothing=0.1)
    assert loss.item() == pytest.approx(1.71678, abs=5e-6)
    module = nn.CrossEntropyLoss([0, 2, 1, 1, 1], label_smoothing=0.1, one_hot=True)
    assert module(scores, np.eye(5)[[0, 1, 1, 2]]).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_hot_targets_are_the_classes_that_they_name(smoothing: float) -> None:
    for weight in (None, WEIGHT + 0.1):
        classes = gradient(nn.CrossEntropyLoss(weight, label_smoothing=smoothing), SCORES, LABELS)
        for target in (np.eye(4)[LABELS], np.eye(4, dtype=int)[LABELS], Tensor(np.eye(4)[LABELS] > 0)):
            loss = nn.CrossEntropyLoss(weight, one_hot=True, label_smoothing=smoothing)
            value, grad = gradient(loss, SCORES, target)
            np.testing.assert_allclose(value, classes[0], rtol=1e-12)
            np.testing.assert_allclose(grad, classes[1], rtol=1e-12, atol=1e-15)


def test_probabilities_get_a_gradient_too() -> None:
    target = Tensor(np.full((6, 4), 0.25), requires_grad=True)
    nn.CrossEntropyLoss()(SCORES, target).backward()
    np.testing.assert_allclose(target.grad.numpy(), -likely(SCORES) / 6)


def test_scores_with_more_dimensions() -> None:
    scores, labels = RNG.standard_normal((2, 4, 3, 5)), RNG.integers(0, 4, (2, 3, 5))
    flat = np.moveaxis(scores, 1, -1).reshape(-1, 4)
    value, grad = gradient(nn.CrossEntropyLoss(WEIGHT), scores, labels)
    expected, flat_grad = gradient(nn.CrossEntropyLoss(WEIGHT), flat, labels.reshape(-1))
    np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(np.moveaxis(grad, 1, -1).reshape(-1, 4), flat_grad)
    none = F.cross_entropy(scores, labels, reduction="none")
    assert none.shape == (2, 3, 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"ignore_index": 9}, {"label_smoothing": 0.1}])
def test_large_scores_stay_exact(dtype: Any, options: dict[str, Any]) -> None:
    scores = np.array([[1e4, -1e4, 0, 0], [-1e4, 1e4, 0, 0]], dtype)
    losses = F.cross_entropy(scores, [1, 1], reduction="none", **(options | {"label_smoothing": 0}))
    np.testing.assert_allclose(losses.numpy(), [2e4 * (2 if "weight" in options else 1), 0], rtol=1e-6)
    value, grad = gradient(nn.CrossEntropyLoss(**options), scores, [1, 1])
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert grad.dtype == dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.L1Loss(), None), (nn.MSELoss(), None), (nn.HuberLoss(), None), (nn.SmoothL1Loss(), None),
        (nn.BCEWithLogitsLoss(), None), (nn.CrossEntropyLoss(), np.zeros(2000, int)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), np.zeros(2000, int)), (nn.NLLLoss(), np.zeros(2000, int)),
    ],
)  # fmt: skip
def test_a_mean_in_float16_whose_sum_is_too_large_for_it(loss: Any, target: Any) -> None:
    x = (np.random.default_rng(0).standard_normal((2000, 30)) * 30).astype(np.float16)
    target = np.zeros_like(x) if target is None else target
    got, expected = (loss(Tensor(x.astype(kind), requires_grad=True), Tensor(target)) for kind in ("f2", "f8"))
    assert got.dtype == np.float16
    assert got.item() == pytest.approx(expected.item(), rel=2e-3, abs=0.2)


def test_a_mean_over_nothing_is_zero() -> None:
    no_rows, no_labels = np.zeros((0, 4)), np.zeros(0, int)
    cases = [
        (nn.CrossEntropyLoss(), no_rows, no_labels),
        (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), no_rows, no_labels),
        (nn.CrossEntropyLoss(), no_rows, no_rows),
        (nn.CrossEntropyLoss(), np.zeros((0, 4, 3)), np.zeros((0, 3), int)),
        (nn.CrossEntropyLoss(ignore_index=7), SCORES, np.full(6, 7)),
        (nn.CrossEntropyLoss(WEIGHT), SCORES, np.full(6, 3)),
        (nn.CrossEntropyLoss(WEIGHT, one_hot=True), SCORES, np.eye(4)[np.full(6, 3)]),
        (nn.NLLLoss(ignore_index=7), likely(SCORES), np.full(6, 7)),
        (nn.NLLLoss(), no_rows, no_labels),
        (nn.MSELoss(), no_rows, no_rows),
        (nn.L1Loss(), no_rows, no_rows),
        (nn.SmoothL1Loss(), no_rows, no_rows),
        (nn.HuberLoss(), no_rows, no_rows),
        (nn.BCELoss(), no_rows, no_rows),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), no_rows, no_rows),
        (nn.KLDivLoss(), no_rows, no_rows),
        (nn.KLDivLoss("batchmean"), no_rows, no_rows),
    ]
    for loss, scores, target in cases:
        for dtype in (np.float32, np.float64):
            x = Tensor(scores.astype(dtype), requires_grad=True)
            value = loss(x, target)
            value.backward()
            assert value.item() == 0, loss
            assert value.numpy().dtype == x.grad.numpy().dtype == dtype
            assert not x.grad.numpy().any(), loss


def test_ignored_rows_may_hold_anything() -> None:
    scores = SCORES.copy()
    scores[2] = np.nan
    labels = np.where(np.arange(6) == 2, -1, LABELS)
    kept = np.arange(6) != 2
    for loss, smooth in ((nn.CrossEntropyLoss, {}), (nn.CrossEntropyLoss, {"label_smoothing": 0.1}), (nn.NLLLoss, {})):
        value, grad = gradient(loss(ignore_index=-1, **smooth), scores, labels)
        expected = gradient(loss(**smooth), scores[kept], LABELS[kept])
        np.testing.assert_allclose(value, expected[0])
        np.testing.assert_allclose(grad[kept], expected[1])
        assert not grad[2].any()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss,
        nn.NLLLoss,
        nn.MSELoss,
        nn.L1Loss,
        nn.SmoothL1Loss,
        nn.HuberLoss,
        nn.BCELoss,
        nn.BCEWithLogitsLoss,
        nn.KLDivLoss,
    ],
)
def test_sum_and_mean_are_of_the_elements(loss: Any) -> None:
    classes = loss in (nn.CrossEntropyLoss, nn.NLLLoss)
    probabilities = 1 / (1 + np.exp(-SCORES))
    target = LABELS if classes else probabilities[::-1]
    none, sum_, mean = (loss(reduction=r)(Tensor(probabilities), target) for r in ("none", "sum", "mean"))
    assert none.shape == ((6,) if classes else (6, 4))
    np.testing.assert_allclose(sum_.item(), none.numpy().sum())
    np.testing.assert_allclose(mean.item(), none.numpy().mean())
    with pytest.raises(ValueError, match="'average'"):
        loss(reduction="average")
    grads = [gradient(loss(reduction=r), probabilities, target)[1] for r in ("sum", "mean")]
    np.testing.assert_allclose(grads[0], grads[1] * none.numpy().size)


def test_targets_of_another_dtype_do_not_widen() -> None:
    x = Tensor(SCORES.astype(np.float32), requires_grad=True)
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss(WEIGHT)):
        for target in (SCORES > 0, (SCORES > 0).astype(int), (SCORES > 0).astype(float)):
            assert loss(x, target).numpy().dtype == np.float32


def test_the_gradient_of_a_binary_loss_is_that_of_the_mean() -> None:
    target = (RNG.random((6, 4)) < 0.5).astype(float)
    _, grad = gradient(nn.BCEWithLogitsLoss(), SCORES, target)
    np.testing.assert_allclose(grad, (1 / (1 + np.exp(-SCORES)) - target) / 24)
    value, grad = gradient(nn.BCEWithLogitsLoss(), np.array([1e4, -1e4]), np.array([0.0, 1.0]))
    assert value == 1e4
    np.testing.assert_allclose(grad, [0.5, -0.5])


@pytest.mark.parametrize(
    ("loss", "labels", "asked", "factor"),
    [
        (nn.CrossEntropyLoss(), LABELS, [], 1 / 3),
        (nn.CrossEntropyLoss(label_smoothing=0.1), LABELS, [], 1 / 3),
        (nn.CrossEntropyLoss(), np.eye(4)[LABELS], [], 1 / 3),
        (nn.CrossEntropyLoss(WEIGHT), np.eye(4)[LABELS], [], 1 / 3),
        (nn.CrossEntropyLoss(WEIGHT, one_hot=True), np.eye(4)[LABELS], [6.0], 1 / 4),
        (nn.CrossEntropyLoss(WEIGHT), LABELS, [6.0], 1 / 4),
        (nn.CrossEntropyLoss(ignore_index=0), LABELS, [4.0], 1 / 4),
        (nn.CrossEntropyLoss(ignore_index=-100), LABELS, [6.0], 1 / 4),
        (nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1), LABELS, [2.0], 1 / 4),
        (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), LABELS, [], 1),
        (nn.CrossEntropyLoss(reduction="none"), LABELS, [], 1),
        (nn.NLLLoss(), LABELS, [], 1 / 3),
        (nn.NLLLoss(WEIGHT), LABELS, [6.0], 1 / 4),
        (nn.MSELoss(), SCORES, [], 1 / 3),
        (nn.MSELoss("sum"), SCORES, [], 1),
        (nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT), SCORES > 0, [], 1 / 3),
        (nn.KLDivLoss("batchmean"), np.abs(SCORES), [], 1 / 3),
    ],
)
def test_only_a_mean_with_its_own_denominator_asks_the_other_ranks(
    loss: Any, labels: Any, asked: list[Any], factor: float
) -> None:
    """This rank has 6 of 18 rows, and the others three times the weight of what counts."""

    def backward(x: Tensor) -> np.ndarray:
        value = loss(x, labels)
        value.backward(np.ones(value.shape))
        return x.grad.numpy()

    reference = backward(Tensor(SCORES, requires_grad=True))
    group = OneOfTwo(lambda part: 4 * part)
    x = sharded(SCORES, 3, 18, group, trained=True)
    np.testing.assert_allclose(backward(x), reference * factor)
    assert [float(part.item()) for part in group.asked] == asked
    group.asked.clear()
    value = loss(x.detach(), labels)  # ranks that record and those that do not ask alike
    assert [float(part.item()) for part in group.asked] == asked
    np.testing.assert_allclose(value.numpy(), loss(SCORES, labels).numpy(), err_msg="not the mean over these rows")
    loss(SCORES, labels)
    assert len(group.asked) == len(asked)


def test_weights_of_classes_are_buffers() -> None:
    for loss, name in (
        (nn.CrossEntropyLoss([1, 2, 3, 4.5]), "weight"),
        (nn.NLLLoss(WEIGHT), "weight"),
        (nn.BCEWithLogitsLoss(pos_weight=Tensor(WEIGHT)), "pos_weight"),
    ):
        assert [found for found, _ in loss.named_buffers()] == [name]
        assert loss.float().get_buffer(name).array.dtype == np.float32
        assert loss.double().get_buffer(name).array.dtype == np.float64
        assert [*loss.state_dict()] == [name]
        assert not loss.parameters()
    assert nn.CrossEntropyLoss().weight is None


def test_one_sample_without_a_batch() -> None:
    for options in ({}, {"weight": WEIGHT}, {"label_smoothing": 0.1}, {"ignore_index": 3}):
        loss = nn.CrossEntropyLoss(**options)
        np.testing.assert_allclose(loss(SCORES[0], 2).item(), loss(SCORES[:1], [2]).item())
    assert F.cross_entropy(SCORES[0], 2, reduction="none").shape == ()
    np.testing.assert_allclose(F.nll_loss(likely(SCORES)[0], 2).item(), -likely(SCORES)[0, 2])
    target = Tensor(np.full(4, 0.25), requires_grad=True)
    F.cross_entropy(SCORES[0], target).backward()
    np.testing.assert_allclose(target.grad.numpy(), -likely(SCORES)[0])


A, B, C = (np.array(rows) for rows in ([[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 2.0]]))


@pytest.mark.parametrize(
    ("loss", "inputs", "losses"),
    [
        (nn.TripletMarginLoss(eps=0, reduction="none"), (A, B, C), [2, 1 + np.sqrt(5) - 2]),
        (nn.TripletMarginLoss(eps=0, swap=True, reduction="none"), (A, B, C), [3, np.sqrt(5)]),
        (nn.TripletMarginLoss(p=1, margin=0.5, eps=0, reduction="none"), (A, B, C), [3.5, 1.5]),
        (nn.MarginRankingLoss(0.5, "none"), ([1.0, 2.0, 3.0], [2.0, 2.0, 0.0], [1, -1, 1]), [1.5, 0.5, 0]),
        (nn.CosineEmbeddingLoss(0.1, "none"), (A, C, [1, -1]), [0.4, 1 / np.sqrt(5) - 0.1]),
        (
            nn.GaussianNLLLoss(full=True, reduction="none"),
            ([0.0, 1.0], [0.0, 3.0], [1.0, 4.0]),
            [np.log(2 * np.pi) / 2, (np.log(8 * np.pi) + 1) / 2],
        ),
        (nn.KLDivLoss("none"), (np.log([0.5, 0.5, 0.5]), [0.0, 0.5, -0.5]), [0, 0, np.nan]),
    ],
)
def test_fixed_values(loss: Any, inputs: Any, losses: list[float]) -> None:
    found = loss(*(Tensor(np.array(x, float)) for x in inputs))
    np.testing.assert_allclose(found.numpy(), losses, rtol=1e-9, atol=1e-9)
    mean = type(loss)(**{k: v for k, v in vars(loss).items() if not k.startswith("_")} | {"reduction": "mean"})
    np.testing.assert_allclose(mean(*(Tensor(np.array(x, float)) for x in inputs)).item(), np.mean(losses))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.cross_entropy(SCORES, LABELS[:5]), ValueError, ["target", "(6,)", "(5,)"]),
        (lambda: F.cross_entropy(SCORES, LABELS.astype(float)), TypeError, ["target", "float64", "integers"]),
        (lambda: F.cross_entropy(SCORES, [0, 1, 4, 0, 0, 0]), IndexError, ["target", "[0, 4)", "4", "row 2"]),
        (lambda: F.cross_entropy(SCORES, [0, 1, 0, -1, 0, 0]), IndexError, ["[0, 4)", "-1", "row 3"]),
        (lambda: F.cross_entropy(SCORES, [0, 1, 4, 9, 0, 0], ignore_index=4), IndexError, ["9", "row 3"]),
        (lambda: F.cross_entropy(np.float64(1), 1), ValueError, ["logits", "(N, C)", "()"]),
        (lambda: F.cross_entropy(SCORES[0], LABELS), ValueError, ["target", "(1,)", "(1, 6)"]),
        (
            lambda: F.cross_entropy(sharded(SCORES[0], 0, 8, OneOfTwo(lambda part: part)), LABELS[:4]),
            ValueError,
            ["logits", "(N, C)", "(4,)"],
        ),
        (lambda: F.cross_entropy(SCORES, [0, 1, -100, 0, 0, 0]), IndexError, ["-100", "row 2", "ignore_index=-100"]),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, ["CrossEntropyLoss", "label_smoothing", "[0, 1]"]),
        (lambda: nn.SmoothL1Loss(beta=-1), ValueError, ["SmoothL1Loss", "beta", ">= 0", "-1"]),
        (lambda: nn.HuberLoss(delta=0), ValueError, ["HuberLoss", "delta", "> 0"]),
        (lambda: F.gaussian_nll_loss([1.0], [1.0], [-1.0]), ValueError, ["var", ">= 0", "-1"]),
        (lambda: F.cross_entropy(SCORES[:, :, None], LABELS), ValueError, ["(6, 1)", "(6,)"]),
        (lambda: F.cross_entropy(SCORES[:, :, None], LABELS[:, None] + 1), IndexError, ["4", "(1, 0)"]),
        (lambda: F.cross_entropy(SCORES, LABELS, [1, 2, 3]), ValueError, ["weight", "(4,)", "(3,)"]),
        (lambda: F.cross_entropy(SCORES, LABELS, one_hot=True), ValueError, ["target", "(6, 4)", "(6,)"]),
        (lambda: F.cross_entropy(SCORES, SCORES, ignore_index=0), ValueError, ["ignore_index", "probabilities"]),
        (lambda: F.cross_entropy(SCORES, LABELS, label_smoothing=2), ValueError, ["label_smoothing", "[0, 1]", "2"]),
        (lambda: F.cross_entropy(SCORES, LABELS, reduction="avg"), ValueError, ["reduction", "'avg'", "'mean'"]),
        (lambda: F.mse_loss(SCORES, SCORES[:, :1]), ValueError, ["target", "(6, 4)", "(6, 1)"]),
        (lambda: F.mse_loss(LABELS, LABELS), TypeError, ["input", "int64"]),
        (lambda: F.binary_cross_entropy(SCORES, SCORES), ValueError, ["input", "[0, 1]", "with_logits"]),
        (lambda: F.binary_cross_entropy(SCORES * np.nan, SCORES), ValueError, ["input", "nan"]),
        (
            lambda: F.binary_cross_entropy_with_logits(SCORES, SCORES, pos_weight=[1, 2]),
            ValueError,
            ["pos_weight", "(6, 4)", "(2,)"],
        ),
        (lambda: F.huber_loss(SCORES, SCORES, delta=0), ValueError, ["delta", "0"]),
        (lambda: F.kl_div(SCORES, SCORES, "rowmean"), ValueError, ["reduction", "'rowmean'"]),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
