"""Normalisation beside PyTorch: values, gradients of two orders, running statistics, and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.core import Tensor, grad
from sorix_dist.optim import SGD

torch = pytest.importorskip("torch")
rng = np.random.default_rng(0)


def pair(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Our layer and PyTorch's, in float64, with the same random parameters."""
    ours: Any = getattr(nn, name)(*arguments, **options, dtype="float64")
    theirs = getattr(torch.nn, name)(*arguments, **options, dtype=torch.float64)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data = rng.standard_normal(mine.shape)
        other.data = torch.tensor(mine.array.reshape(other.shape))
    return ours, theirs


LAYERS: list[Any] = [
    (("BatchNorm1d", 4), {}, (6, 4)),
    (("BatchNorm1d", 4, 1e-3, 0.3), {}, (6, 4, 5)),
    (("BatchNorm1d", 4), {"affine": False, "momentum": None}, (6, 4)),
    (("BatchNorm2d", 4), {}, (3, 4, 2, 5)),
    (("BatchNorm2d", 4), {"momentum": None}, (3, 4, 2, 5)),
    (("BatchNorm2d", 4), {"momentum": 0.0, "affine": False}, (3, 4, 2, 5)),
    (("BatchNorm2d", 4), {"track_running_stats": False}, (3, 4, 2, 5)),
    (("LayerNorm", 4), {}, (3, 5, 4)),
    (("LayerNorm", (5, 4)), {"eps": 1e-2}, (3, 5, 4)),
    (("LayerNorm", 4), {"bias": False}, (3, 4)),
    (("LayerNorm", 4), {"elementwise_affine": False}, (3, 4)),
    (("GroupNorm", 2, 4), {}, (3, 4, 2, 5)),
    (("GroupNorm", 4, 4), {"affine": False}, (3, 4, 6)),
    (("GroupNorm", 1, 4), {}, (3, 4)),
    (("BatchNorm1d", 4, 1e-3, 0.3, False, False), {}, (6, 4)),
    (("BatchNorm3d", 4), {}, (3, 4, 2, 3, 2)),
    (("InstanceNorm1d", 4), {}, (3, 4, 6)),
    (("InstanceNorm1d", 4), {}, (4, 6)),
    (("InstanceNorm2d", 4), {"affine": True, "eps": 1e-2}, (3, 4, 2, 5)),
    (("InstanceNorm3d", 4), {"affine": True}, (3, 4, 2, 3, 2)),
    (("RMSNorm", 4), {}, (3, 5, 4)),
    (("RMSNorm", (5, 4)), {"eps": 1e-2}, (3, 5, 4)),
    (("RMSNorm", 4), {"elementwise_affine": False}, (3, 4)),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("arguments", "options", "shape"), LAYERS, ids=str)
def test_values_gradients_and_running_statistics(arguments: Any, options: Any, shape: Any, training: bool) -> None:
    ours, theirs = pair(*arguments, **options)
    for _ in range(2):  # so that the running statistics are not those at the start
        batch = rng.standard_normal(shape) * 2 + 1
        ours(Tensor(batch)), theirs(torch.tensor(batch))
    ours.train(training), theirs.train(training)
    x, weights, direction = (rng.standard_normal(shape) for _ in range(3))
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(mine), theirs(other)
    np.testing.assert_allclose(y.array, z.detach().numpy(), rtol=1e-10, atol=1e-10)

    inputs, their_inputs = [mine, *ours.parameters()], [other, *theirs.parameters()]
    plain = grad((y * y * weights).sum(), inputs, retain_graph=True)
    first = grad((y * y * weights).sum(), inputs, create_graph=True)
    their_first = torch.autograd.grad((z * z * torch.tensor(weights)).sum(), their_inputs, create_graph=True)
    second = grad((first[0] * direction).sum(), inputs, allow_unused=True)
    their_second = torch.autograd.grad((their_first[0] * torch.tensor(direction)).sum(), their_inputs)
    for one, two in ((plain, their_first), (first, their_first), (second, their_second)):
        for a, b in zip(one, two, strict=True):
            expected = b.detach().numpy().reshape(a.shape)
            np.testing.assert_allclose(a.array, expected, rtol=1e-8, atol=1e-9)

    for name, buffer in ours.named_buffers():
        expected = theirs.get_buffer(name).numpy().reshape(buffer.shape)
        np.testing.assert_allclose(buffer.array, expected, rtol=1e-11, err_msg=name)


def test_pytorch_too_refuses_one_value_per_channel() -> None:
    ours, theirs = pair("BatchNorm1d", 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(Tensor(np.zeros((1, 3))))


@pytest.mark.parametrize(("arguments", "options", "shape"), LAYERS, ids=str)
def test_twenty_steps_of_training_end_at_the_same_state(arguments: Any, options: Any, shape: Any) -> None:
    ours, theirs = pair(*arguments, **options)
    if not ours.parameters():
        pytest.skip("a layer without parameters has nothing to train")
    optimizer, other = SGD(ours.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(20):
        x, target = rng.standard_normal(shape), rng.standard_normal(shape)
        optimizer.zero_grad()
        error = ours(Tensor(x)) - target
        (error * error).mean().backward()
        optimizer.step()
        other.zero_grad()
        ((theirs(torch.tensor(x)) - torch.tensor(target)) ** 2).mean().backward()
        other.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(a.array, b.detach().numpy().reshape(a.shape), rtol=1e-9, atol=1e-11)
    for name, buffer in ours.named_buffers():
        expected = theirs.get_buffer(name).numpy().reshape(buffer.shape)
        np.testing.assert_allclose(buffer.array, expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_by_update_bn(momentum: float | None) -> None:
    numbers = np.random.default_rng(4)
    batches = [numbers.standard_normal((n, 3, 2, 2)) for n in (5, 4, 7)]
    ours, theirs = nn.BatchNorm2d(3, momentum=momentum).double(), torch.nn.BatchNorm2d(3, momentum=momentum).double()
    optim.swa_utils.update_bn([(sx.tensor(x), 0) for x in batches], ours.eval())
    torch.optim.swa_utils.update_bn([(torch.tensor(x), 0) for x in batches], theirs.eval())
    assert (ours.training, ours.momentum) == (theirs.training, theirs.momentum) == (False, momentum)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name].numpy(), value.numpy(), rtol=1e-12, atol=1e-13)
