"""Convolution and pooling beside PyTorch: values, gradients of two orders, and training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import nn
from sorix_dist.core import Tensor, grad
from sorix_dist.core.ops import conv, pool
from sorix_dist.nn import BatchNorm2d, CrossEntropyLoss, Linear, ReLU, Sequential
from sorix_dist.nn import conv as layers
from sorix_dist.nn import functional as ours_F
from sorix_dist.optim import SGD

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")
rng = np.random.default_rng(0)


def compare(ours: Any, theirs: Any, *arrays: Any) -> None:
    """Values, first and second derivatives of functions of float64 arrays."""
    mine = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    other = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*mine), theirs(*other)
    assert y.shape == tuple(z.shape)
    np.testing.assert_allclose(y.array, z.detach().numpy(), rtol=1e-10, atol=1e-10)
    weights = rng.standard_normal(y.shape)
    # Squares, so that second derivatives are not zero in linear functions.
    first = grad((y * y * weights).sum(), mine, create_graph=True)
    expected = torch.autograd.grad((z * z * torch.tensor(weights)).sum(), other, create_graph=True)
    for a, b in zip(first, expected, strict=True):
        np.testing.assert_allclose(a.array, b.detach().numpy(), rtol=1e-9, atol=1e-9)
    directions = [rng.standard_normal(a.shape) for a in arrays]
    slope, their_slope = (first[0] * directions[0]).sum(), (expected[0] * torch.tensor(directions[0])).sum()
    for a, b in zip(grad(slope, mine), torch.autograd.grad(their_slope, other), strict=True):
        np.testing.assert_allclose(a.array, b.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (2, 3)], ids=str)
@pytest.mark.parametrize("padding", [0, (1, 2), "same", "valid"], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d(kernel: Any, stride: Any, padding: Any, dilation: int, groups: int) -> None:
    if padding == "same" and stride != 1:
        pytest.skip("padding='same' needs stride 1")
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    arrays = [rng.standard_normal(s) for s in ((3, 4, 9, 8), (8, 4 // groups, *kernel), (8,))]
    compare(lambda *a: conv.conv2d(*a, **options), lambda *a: F.conv2d(*a, **options), *arrays)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 3), (3, 1), (1, "same")])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv1d(stride: int, padding: Any, groups: int) -> None:
    options = {"stride": stride, "padding": padding, "dilation": 2, "groups": groups}
    arrays = [rng.standard_normal(s) for s in ((3, 4, 17), (6, 4 // groups, 4), (6,))]
    compare(lambda *a: conv.conv1d(*a, **options), lambda *a: F.conv1d(*a, **options), *arrays)


@pytest.mark.parametrize("stride", [1, 2, (2, 3)], ids=str)
@pytest.mark.parametrize("padding", [0, (1, 2)], ids=str)
@pytest.mark.parametrize(("dilation", "extra"), [(1, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_transpose2d(stride: Any, padding: Any, dilation: int, extra: int, groups: int) -> None:
    options = {
        "stride": stride, "padding": padding, "dilation": dilation, "output_padding": extra, "groups": groups
    }  # fmt: skip
    arrays = [rng.standard_normal(s) for s in ((3, 4, 5, 6), (4, 8 // groups, 3, 3), (8,))]
    compare(lambda *a: conv.conv_transpose2d(*a, **options), lambda *a: F.conv_transpose2d(*a, **options), *arrays)


@pytest.mark.parametrize("kernel", [2, 3, (3, 2)], ids=str)
@pytest.mark.parametrize("stride", [None, 1, (2, 3)], ids=str)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling(kernel: Any, stride: Any, padding: int, ceil_mode: bool) -> None:
    x = rng.standard_normal((2, 3, 9, 8))
    equals = rng.integers(0, 3, x.shape).astype(float)
    for dilation in (1, 2):
        options = (kernel, stride, padding, dilation, ceil_mode)
        for values in (x, equals):
            compare(lambda a, o=options: pool.max_pool2d(a, *o), lambda a, o=options: F.max_pool2d(a, *o), values)
    for count_pad, divisor in ((True, None), (False, None), (True, 5)):
        options = (kernel, stride, padding, ceil_mode, count_pad, divisor)
        compare(lambda a, o=options: pool.avg_pool2d(a, *o), lambda a, o=options: F.avg_pool2d(a, *o), x)


@pytest.mark.parametrize("size", [1, (3, 4), (5, 3), (None, 2), (12, 8)], ids=str)
def test_adaptive_avg_pool2d(size: Any) -> None:
    x = rng.standard_normal((2, 3, 9, 8))
    compare(lambda a: pool.adaptive_avg_pool2d(a, size), lambda a: F.adaptive_avg_pool2d(a, size), x)


@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (2, 3, 0, 2, True)], ids=str)
def test_max_pool1d(options: Any) -> None:
    x = rng.standard_normal((2, 3, 11))
    compare(lambda a: pool.max_pool1d(a, *options), lambda a: F.max_pool1d(a, *options), x)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel", [3, (2, 1, 3)], ids=str)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), ((1, 2, 3), (2, 0, 1)), (1, "same")], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv3d(kernel: Any, stride: Any, padding: Any, groups: int) -> None:
    size = (kernel,) * 3 if isinstance(kernel, int) else kernel
    options = {"stride": stride, "padding": padding, "dilation": (2, 1, 1), "groups": groups}
    arrays = [rng.standard_normal(s) for s in ((2, 4, 7, 5, 6), (6, 4 // groups, *size), (6,))]
    compare(lambda *a: ours_F.conv3d(*a, **options), lambda *a: F.conv3d(*a, **options), *arrays)


@pytest.mark.parametrize(("stride", "padding", "extra"), [(1, 0, 0), (2, 1, 1), (3, 2, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose1d(stride: int, padding: int, extra: int, groups: int) -> None:
    options = {"stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": 2}
    arrays = [rng.standard_normal(s) for s in ((3, 4, 6), (4, 6 // groups, 3), (6,))]
    compare(lambda *a: ours_F.conv_transpose1d(*a, **options), lambda *a: F.conv_transpose1d(*a, **options), *arrays)


@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (3, 1, 1, True, False)], ids=str)
def test_avg_pool1d(options: Any) -> None:
    x = rng.standard_normal((2, 3, 11))
    compare(lambda a: ours_F.avg_pool1d(a, *options), lambda a: F.avg_pool1d(a, *options), x)
    compare(lambda a: ours_F.adaptive_avg_pool1d(a, 4), lambda a: F.adaptive_avg_pool1d(a, 4), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("how", [{"size": 9}, {"size": 4}, {"scale_factor": 2}, {"scale_factor": 0.7}], ids=str)
@pytest.mark.parametrize(("mode", "corners"), [("nearest", None), ("linear", False), ("linear", True)])
def test_interpolate(dims: int, how: Any, mode: str, corners: bool | None) -> None:
    mode = mode if mode == "nearest" else ("linear", "bilinear", "trilinear")[dims - 1]
    x = rng.standard_normal((2, 3, 5, 6, 7)[: dims + 2])
    options = {**how, "mode": mode, "align_corners": corners}
    compare(lambda a: ours_F.interpolate(a, **options), lambda a: F.interpolate(a, **options), x)


def test_pixel_shuffle_and_padding() -> None:
    x = rng.standard_normal((2, 8, 3, 4))
    compare(lambda a: ours_F.pixel_shuffle(a, 2), lambda a: F.pixel_shuffle(a, 2), x)
    for padding in (2, (1, 0, 3, 2)):
        compare(nn.ZeroPad2d(padding), torch.nn.ZeroPad2d(padding), x)
    compare(nn.Upsample(scale_factor=2, mode="bilinear"), torch.nn.Upsample(scale_factor=2, mode="bilinear"), x)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    ours = layers.Conv2d(4, 6, 3, padding=(2, 1), groups=2, padding_mode=mode, dtype="float64")
    theirs = torch.nn.Conv2d(4, 6, 3, padding=(2, 1), groups=2, padding_mode=mode, dtype=torch.float64)
    theirs.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in ours.state_dict().items()})
    compare(ours, theirs, rng.standard_normal((2, 4, 5, 6)))


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("Conv1d", (4, 64, 5), {"groups": 2}),
        ("Conv2d", (4, 64, (3, 5)), {"groups": 4}),
        ("ConvTranspose2d", (16, 32, 3), {"groups": 4}),
    ],
)
def test_starting_values_have_pytorchs_spread(name: str, arguments: Any, options: Any) -> None:
    ours, theirs = getattr(layers, name)(*arguments, **options), getattr(torch.nn, name)(*arguments, **options)
    for own, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert own.shape == tuple(other.shape)
        assert np.abs(own.array).max() == pytest.approx(other.abs().max().item(), rel=0.15)


def test_twenty_steps_of_training_end_at_the_same_weights() -> None:
    def ours(p: Any) -> Any:
        return Sequential(
            layers.Conv2d(1, 4, 3, padding=1, dtype=p), BatchNorm2d(4, dtype=p), ReLU(), layers.MaxPool2d(2),
            layers.Conv2d(4, 8, 3, stride=2, groups=2, dtype=p), ReLU(), layers.AdaptiveAvgPool2d(1),
        )  # fmt: skip

    features, head = ours("float64"), Linear(8, 3)
    for parameter in head.parameters():
        parameter.data = parameter.array.astype(np.float64)
    n = torch.nn
    theirs = n.Sequential(
        n.Conv2d(1, 4, 3, padding=1), n.BatchNorm2d(4), n.ReLU(), n.MaxPool2d(2),
        n.Conv2d(4, 8, 3, stride=2, groups=2), n.ReLU(), n.AdaptiveAvgPool2d(1),
    ).double()  # fmt: skip
    theirs.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in features.state_dict().items()})
    their_head = n.Linear(8, 3).double()
    their_head.load_state_dict({"weight": torch.tensor(head.W.array.T), "bias": torch.tensor(head.b.array[0])})
    optimizer = SGD([*features.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    other = torch.optim.SGD([*theirs.parameters(), *their_head.parameters()], lr=0.1, momentum=0.9)
    for _ in range(20):
        x, labels = rng.standard_normal((16, 1, 10, 10)), rng.integers(0, 3, 16)
        optimizer.zero_grad()
        loss = CrossEntropyLoss()(head(features(Tensor(x)).reshape(16, 8)), labels)
        loss.backward()
        optimizer.step()
        other.zero_grad()
        their_loss = F.cross_entropy(their_head(theirs(torch.tensor(x)).flatten(1)), torch.tensor(labels))
        their_loss.backward()
        other.step()
        assert loss.item() == pytest.approx(their_loss.item(), rel=1e-9)
    expected = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert features.state_dict().keys() == expected.keys()
    for name, value in features.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)
