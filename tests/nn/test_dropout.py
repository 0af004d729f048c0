"""Dropout: the mask of a row of the global batch does not depend on who holds it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import cloudpickle
import numpy as np
import pytest

from sorix_dist.core import Tensor, grad
from sorix_dist.core.ops.activation import dropout, dropout2d
from sorix_dist.core.random import adopt, functional_draws, manual_seed
from sorix_dist.nn import Dropout, Dropout2d, Sequential
from tests.support.core.sharded import sharded

SPLITS = [(12,), (5, 7), (0, 12), (4, 0, 1, 7), (1,) * 12]


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


def by_shards(layer: Any, shape: tuple[int, ...], split: tuple[int, ...], virtual: bool = False) -> Any:
    """What holders of the rows of a batch get, each with a layer as it was at first; `virtual`: all with one."""
    at_first, parts, start = cloudpickle.dumps(layer), [], 0
    for shard, count in enumerate(split):
        own = layer if virtual else cloudpickle.loads(at_first)
        each = shape[0] // sum(split)
        input = sharded(ones(count * each, *shape[1:]), start, sum(split), each=each, shard=shard if virtual else None)
        parts.append([own(input).array for _ in range(2)])
        start += count
    return [np.concatenate(calls) for calls in zip(*parts, strict=True)]


@pytest.mark.parametrize("virtual", [False, True], ids=["holders", "one by one in a process"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(Dropout, (12, 5)), (Dropout, (12,)), (Dropout, (36, 16)), (Dropout, (12, 3, 17)), (Dropout2d, (12, 9, 2, 2))],
    ids=lambda v: str(getattr(v, "__name__", v)),
)
def test_masks_of_shared_rows_are_those_of_all_rows(kind: Any, shape: Any, split: Any, virtual: bool) -> None:
    manual_seed(1)
    reference = kind(0.4)
    manual_seed(1)
    layer = kind(0.4)
    expected = [reference(ones(*shape)).array for _ in range(2)]
    assert (expected[0] != expected[1]).any(), "two calls drew the same mask"
    for got, whole in zip(by_shards(layer, shape, split, virtual), expected, strict=True):
        np.testing.assert_array_equal(got, whole)


def test_shards_one_by_one_count_alike_whoever_computes_them() -> None:
    """A process with shards 0 to 2 and one with shard 3 go on with the same number after three steps."""
    manual_seed(1)
    first = Dropout()
    second = cloudpickle.loads(cloudpickle.dumps(first))
    for layer, shards in ((first, (0, 1, 2)), (second, (3,))):
        for _ in range(3):
            for shard in shards:
                layer(sharded(ones(1, 8), shard, 4, shard=shard))
    assert first.calls == second.calls == 3


def test_kept_elements_are_scaled_and_the_gradient_has_the_same_mask() -> None:
    manual_seed(0)
    x = Tensor(np.random.default_rng(0).standard_normal((64, 100)), requires_grad=True)
    y = Dropout(0.25)(x)
    mask = y.array != 0
    np.testing.assert_allclose(y.array[mask], x.array[mask] / 0.75, rtol=1e-15)
    assert y.array.dtype == np.float64
    (first,) = grad((y * y).sum(), x, create_graph=True)
    np.testing.assert_allclose(first.array, 2 * x.array * mask / 0.75**2, rtol=1e-14)
    (second,) = grad(first.sum(), x)
    np.testing.assert_allclose(second.array, 2 * mask / 0.75**2, rtol=1e-14)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_masks_look_random(p: float) -> None:
    manual_seed(0)
    layer, other = Dropout(p), Dropout(p)
    masks = np.array([one(ones(200, 130)).array != 0 for one in (layer, layer, other)]).astype(float)
    bound = 5 * np.sqrt(p * (1 - p))
    assert abs(masks.mean() - (1 - p)) < bound / np.sqrt(masks.size)
    assert np.abs(masks.mean(axis=1) - (1 - p)).max() < bound / np.sqrt(200)
    assert np.abs(masks.mean(axis=2) - (1 - p)).max() < bound / np.sqrt(130)
    centred = (masks - (1 - p)) / np.sqrt(p * (1 - p))
    a, b, c = centred
    for one, two in ((a, b), (a, c), (b, c), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1])):
        assert abs((one * two).mean()) < 5 / np.sqrt(one.size), "masks that should be independent are not"


def test_whole_channels_are_dropped() -> None:
    manual_seed(0)
    y = Dropout2d(0.5)(ones(16, 32, 3, 3)).array
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y == y[:, :, :1, :1]).all()


def test_the_extremes_and_evaluation() -> None:
    x = ones(4, 5)
    assert Dropout(0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).calls == 0
    assert not Dropout(1)(x).array.any()
    assert not Dropout2d(1.0)(ones(4, 5, 2, 2)).array.any()
    assert Dropout(1 - 1e-9)(x).shape == (4, 5)
    np.testing.assert_array_equal(dropout(x, 0.5, training=False).array, x.array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layer", [Dropout(0.5), Dropout2d(0.5)])
def test_no_rows(layer: Any) -> None:
    x = sharded(np.zeros((0, 4, 3, 3), np.float32), 3, 8, trained=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 4, 3, 3)


def test_the_seed_decides_however_it_is_set_anew() -> None:
    def masks(seed: int) -> Any:
        manual_seed(seed)
        layers = Sequential(Dropout(), Dropout2d())
        return [layer(ones(4, 8)).array for layer in layers for _ in range(2)]

    first, again, other = masks(3), masks(3), masks(4)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_taking_over_the_seed_of_others_does_not_count_layers_anew() -> None:
    adopt(11)
    before = Dropout()
    adopt(12)
    assert Dropout().draws.number == before.draws.number + 1


def test_a_copy_is_another_layer_but_what_is_sent_is_the_same() -> None:
    manual_seed(0)
    layer = Dropout()
    layer(ones(2, 3))
    sent = cloudpickle.loads(cloudpickle.dumps(layer))
    copy = deepcopy(Sequential(layer, layer))[0]
    assert (sent.draws.number, sent.calls) == (layer.draws.number, 1)
    assert copy.draws.number != layer.draws.number
    assert copy.p == layer.p
    x = ones(8, 50)
    expected = layer(x).array
    np.testing.assert_array_equal(sent(x).array, expected)
    assert (copy(x).array != expected).any()


def test_a_copy_of_a_model_keeps_which_layers_are_one() -> None:
    layer = Dropout()
    first, second = deepcopy(Sequential(layer, layer))
    assert first is second


def test_a_layer_that_goes_on_from_its_number_of_calls_is_undisturbed() -> None:
    manual_seed(0)
    layer = Dropout()
    masks = [layer(ones(4, 8)).array for _ in range(5)]
    manual_seed(0)
    resumed = Dropout()
    resumed.calls = 3
    np.testing.assert_array_equal(resumed(ones(4, 8)).array, masks[3])
    resumed.calls = 4
    np.testing.assert_array_equal(resumed(sharded(ones(4, 8), 0, 8, shard=5)).array, masks[4])
    assert resumed.calls == 5


def test_the_function_counts_its_calls_from_the_seed() -> None:
    manual_seed(0)
    masks = [dropout(ones(4, 8)).array for _ in range(2)]
    assert functional_draws().calls == 2
    manual_seed(0)
    np.testing.assert_array_equal(dropout(ones(4, 8)).array, masks[0])
    assert (masks[0] != masks[1]).any()
    assert (Dropout()(ones(4, 8)).array != masks[0]).any()


@pytest.mark.parametrize(
    "kind", [Dropout, Dropout2d, lambda p: dropout(ones(2, 2), p), lambda p: dropout2d(ones(2, 2), p)]
)
@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_p_that_is_no_probability_is_an_error(kind: Any, p: float) -> None:
    with pytest.raises(ValueError, match=r"p must be (in \[0, 1\]|a number), got"):
        kind(p)


def test_inplace_is_ignored() -> None:
    x = ones(4, 4)
    for layer in (Dropout(0.5, inplace=True), Dropout2d(0.5, inplace=True)):
        layer(x)
    dropout(x, inplace=True)
    assert (x == 1).all()


def test_other_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"input must have shape \(N, C, ...\), got shape \(3,\)"):
        Dropout2d()(ones(3))
    with pytest.raises(TypeError, match="input must be of floating point dtype, got int64"):
        Dropout()(np.arange(3))
