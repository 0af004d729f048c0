"""Averages of weights over steps."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.optim.swa_utils import SWALR, AveragedModel, get_ema_avg_fn, update_bn
from sorix_dist.utils.data import DataLoader, Dataset


def weights(model: nn.Module, value: float) -> nn.Module:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_the_mean_of_all() -> None:
    model = nn.Linear(2, 1)
    average = AveragedModel(model)
    for value in (1, 2, 6):
        average.update_parameters(weights(model, value))
    assert average.module.W.numpy().ravel().tolist() == [3, 3]
    assert average.n_averaged.item() == 3
    assert sorted(average.state_dict()) == ["module.W", "module.b", "n_averaged"]
    assert not any(p.requires_grad for p in average.parameters())
    np.testing.assert_allclose(average(np.ones((1, 2), np.float32)).numpy(), [[9]])


def test_the_exponential_mean() -> None:
    model = nn.Linear(2, 1)
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.75))
    for value in (1, 2, 6):
        average.update_parameters(weights(model, value))
    np.testing.assert_allclose(average.module.W.numpy(), 0.75 * 1.25 + 0.25 * 6)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 2"):
        get_ema_avg_fn(2)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_buffers(use_buffers: bool) -> None:
    model = nn.BatchNorm2d(1)
    average = AveragedModel(model, use_buffers=use_buffers)
    for value in (1.0, 3.0):
        nn.init.constant_(model.running_mean, value)
        model.num_batches_tracked.array[...] = 7
        average.update_parameters(model)
    assert average.module.running_mean.item() == (2 if use_buffers else 3)
    assert average.module.num_batches_tracked.item() == 7


def test_a_wrapped_model() -> None:
    """The average is of the bare model; an attribute `module` of the user's own is not taken for a wrapper."""
    model = sx.DistributedDataParallel(nn.Linear(2, 1))
    average = AveragedModel(model)
    with model.edit():
        weights(model, 2)
    average.update_parameters(model)
    assert average.module.W.numpy().ravel().tolist() == [2, 2]

    class Own(nn.Module):
        def __init__(self) -> None:
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    assert isinstance(AveragedModel(Own()).module, Own)


@pytest.mark.filterwarnings("ignore:batch_norm works on the rows of the whole batch")  # in reproducible mode
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize(("wrapped", "shards"), [(False, None), (True, None), (False, 8)])
def test_statistics_are_those_of_all_rows(layer: type[nn.Module], wrapped: bool, shards: int | None) -> None:
    """On any number of ranks, with uneven shards and a last batch of one row for which some ranks have none."""
    x = np.random.default_rng(0).standard_normal((22, 3, *([2, 2] if layer is nn.BatchNorm2d else [])))
    x = np.concatenate([x, x[:2] * 3]) if layer is nn.BatchNorm1d else x

    def statistics() -> list[np.ndarray]:
        sx.init(virtual_shards=shards)
        sx.manual_seed(0)
        bare = nn.Sequential(layer(3), nn.Flatten(), nn.Linear(x[0].size, 2)).double()
        average = AveragedModel(bare)
        model = sx.DistributedDataParallel(bare) if wrapped else average
        update_bn(DataLoader(Dataset(x), batch_size=7), model)
        found = (bare if wrapped else average.module)[0]
        return [np.array(found.running_mean), np.array(found.running_var)]

    (alone,) = sx.run(statistics, num_proc=1, backend="threads")
    start, weights = (0, 7, 14, 21), 0.25
    batches = [x[i : i + 7] for i in start]
    axes = (0, *range(2, x.ndim))
    wanted = [sum(b.mean(axes) for b in batches) * weights, sum(b.var(axes, ddof=1) for b in batches) * weights]
    for one, expected in zip(alone, wanted, strict=True):
        np.testing.assert_allclose(one.ravel(), expected, rtol=1e-11)
    for size in (2, 3, 5):
        for found in sx.run(statistics, num_proc=size, backend="threads"):
            for one, expected in zip(found, alone, strict=True):
                np.testing.assert_allclose(one, expected, rtol=0, atol=0 if shards else 1e-13)


def test_rates_towards_the_average() -> None:
    optimizer = optim.SGD([nn.Parameter(np.zeros(2))], lr=0.5)
    scheduler = SWALR(optimizer, 0.1, 4, "linear")
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    np.testing.assert_allclose(rates, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    again = SWALR(optimizer, 0.3)
    again.load_state_dict(scheduler.state_dict())
    assert again.swa_lrs == [0.1]
    with pytest.raises(ValueError, match=r"anneal_strategy must be 'cos' or 'linear', got 'log'"):
        SWALR(optimizer, 0.1, anneal_strategy="log")
