"""Averages of weights over steps."""

from __future__ import annotations

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.optim.swa_utils import AveragedModel, get_ema_avg_fn


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
