"""Convolution and pooling layers: shapes, starting values, padding modes, states, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import sorix_dist as sx
from sorix_dist.comm.threads import run_threads
from sorix_dist.core import Tensor
from sorix_dist.core.ops import blocks, pool, windows
from sorix_dist.core.ops import conv as ops
from sorix_dist.core.ops.windows import geometry
from sorix_dist.core.random import manual_seed
from sorix_dist.nn import BatchNorm2d, CrossEntropyLoss, Dropout, Dropout2d, Linear, Module, ReLU, Sequential
from sorix_dist.nn import functional as F
from sorix_dist.nn.conv import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    MaxPool1d,
    MaxPool2d,
    MaxUnpool2d,
)
from sorix_dist.optim import SGD
from sorix_dist.parallel import DistributedDataParallel
from sorix_dist.utils.data import DataLoader, Dataset
from tests.core.rows import conv as plainly

LAYERS: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
    (lambda: Conv2d(4, 6, 3), (4, 7, 8), (6, 5, 6)),
    (lambda: Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (4, 7, 8), (6, 4, 7)),
    (lambda: Conv2d(4, 8, 3, padding="same", dilation=2, groups=4), (4, 7, 8), (8, 7, 8)),
    (lambda: Conv2d(4, 6, 1, bias=False), (4, 7, 8), (6, 7, 8)),
    (lambda: Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 8), (6, 7, 8)),
    (lambda: Conv1d(4, 6, 3, stride=2, padding=1), (4, 9), (6, 5)),
    (lambda: Conv1d(4, 6, 4, padding="same", padding_mode="circular"), (4, 9), (6, 9)),
    (lambda: ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 5, 6), (6, 10, 12)),
    (lambda: MaxPool2d(2), (4, 7, 8), (4, 3, 4)),
    (lambda: MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (4, 7, 8), (4, 4, 5)),
    (lambda: MaxPool1d(2), (4, 9), (4, 4)),
    (lambda: AvgPool2d((2, 3), padding=1), (4, 7, 8), (4, 4, 3)),
    (lambda: AdaptiveAvgPool2d((3, None)), (4, 7, 8), (4, 3, 8)),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "inside", "outside"), LAYERS, ids=lambda v: repr(v()) if callable(v) else None)
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_dtypes_and_gradients_also_of_no_rows(
    make: Any, inside: Any, outside: Any, count: int, dtype: Any
) -> None:
    layer = make()
    for parameter in layer.parameters():
        parameter.data = parameter.array.astype(dtype)
    x = Tensor(np.random.default_rng(0).standard_normal((count, *inside)).astype(dtype), requires_grad=True)
    y = layer(x)
    assert y.shape == (count, *outside)
    assert y.array.dtype == dtype
    y.backward(np.ones(y.shape))
    for tensor in (x, *layer.parameters()):
        assert (tensor.grad.shape, tensor.grad.array.dtype) == (tensor.shape, dtype)
        assert count or not tensor.grad.array.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("make", "inside", "outside"), LAYERS, ids=lambda v: repr(v()) if callable(v) else None)
def test_rows_do_not_depend_on_each_other(make: Any, inside: Any, outside: Any) -> None:
    layer = make()
    x = np.random.default_rng(0).standard_normal((40, *inside))
    whole = layer(Tensor(x)).array
    parts = [layer(Tensor(x[a:b])).array for a, b in ((0, 1), (1, 1), (1, 17), (17, 40))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation", "groups"), [
    ((9, 10), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((9, 10), (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 1), 2),
    ((11, 8), (3, 3), (3, 2), ((2, 2), (2, 2)), (2, 2), 2),
    ((7, 6), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
])  # fmt: skip
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("tile", [1, 3_000, 1 << 14, 1 << 30])
def test_tiles_of_any_size_compute_the_same(
    tile: int, in_blocks: bool, by_rows: bool, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any,
    groups: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(windows, "TILE", tile)
    monkeypatch.setattr(windows, "WIDE", 1)
    monkeypatch.setattr(windows, "SHORT", 1 if by_rows else 1 << 30)
    monkeypatch.setattr(blocks, "without_copies", lambda: in_blocks)
    monkeypatch.setattr(blocks, "one_thread", lambda: in_blocks)
    monkeypatch.setattr(blocks, "NARROW", 1)  # products of some columns each
    monkeypatch.setattr(blocks, "SMALL", tile)
    monkeypatch.setattr(blocks, "FLAT", 12)
    places = geometry("", size, kernel, stride, padding, dilation)
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s) for s in ((5, 4, *size), (6, 4 // groups, *kernel), (6,)))
    y = rng.standard_normal((5, 6, *places.output))
    for operation, plain, inputs in (
        (ops.convolution, plainly.convolved, (x, w, b)),
        (ops.transposed_convolution, plainly.transposed, (y, w, None)),
        (ops.kernel_correlation, plainly.correlated, (x, y)),
    ):
        got = operation(*inputs, places=places, groups=groups).array
        np.testing.assert_allclose(got, plain(*inputs, places=places, groups=groups), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("size", "channels", "outputs", "options", "unfolded"), [
    ((9, 10), 4, 6, {"padding": 1}, ["g"]),
    ((9, 10), 8, 6, {"padding": (0, 2), "groups": 2}, ["g"]),
    ((9, 10), 4, 6, {"padding": "same", "dilation": (1, 2)}, ["g"]),
    ((9, 10), 4, 6, {"padding": 3}, ["g"]),
    ((9, 10), 4, 6, {"stride": 2, "padding": 1}, ["x", *4 * "g"]),
    ((9, 10), 2, 6, {}, ["x", "g"]),  # of few channels fewer windows
])  # fmt: skip
def test_both_gradients_take_one_unfolding(
    size: Any, channels: int, outputs: int, options: Any, unfolded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shape = (outputs, channels // options.get("groups", 1), 3, 3)
    x, w = (rng.standard_normal(each) for each in ((5, channels, *size), shape))
    g = rng.standard_normal(F.conv2d(Tensor(x), Tensor(w), **options).shape)

    def gradients(*wanted: bool) -> list[Any]:
        tensors = [Tensor(each, requires_grad=need) for each, need in zip((x, w), wanted, strict=True)]
        y = F.conv2d(*tensors, **options)
        made: list[Any] = []
        for keep in (True, False):  # and a second time the same
            monkeypatch.setattr(ops, "_unfolded", lambda *a, keep=keep: (keep and made.append(a[0].shape), real(*a))[1])
            y.backward(g.copy(), retain_graph=keep)
        return [made, *(t.grad.array for t, need in zip(tensors, wanted, strict=True) if need)]

    real = ops._unfolded
    made, *both = gradients(True, True)
    groups = options.get("groups", 1)
    of = {(groups, channels // groups, *size, 5): "x", (groups, outputs // groups, *g.shape[2:], 5): "g"}
    assert [of[shape] for shape in made] == unfolded
    for got, apart in zip(both, (gradients(True, False)[1], gradients(False, True)[1]), strict=True):
        np.testing.assert_allclose(got, apart, rtol=1e-12, atol=1e-12)


def test_products_are_cut_where_the_kernels_are_for_avx512() -> None:
    found = [library for library in threadpool_info() if library["internal_api"] == "openblas"]  # others load OpenMP
    before = [(library["architecture"], library["num_threads"]) for library in found]
    wide = [threads for kernel, threads in before if kernel in ("SkylakeX", "Cooperlake", "SapphireRapids")]
    assert blocks.without_copies() == bool(wide)
    with threadpool_limits(1):
        assert blocks.one_thread() == bool(wide)
    assert blocks.one_thread() == (wide[:1] == [1])


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize(("rows", "depth", "columns"), [
    (16, 144, 2048), (64, 576, 512), (48, 288, 192), (37, 331, 97), (64, 1200, 512), (3, 5, 7), (1, 1, 1), (96, 27, 64),
])  # fmt: skip
def test_products_in_blocks_are_the_products(
    rows: int, depth: int, columns: int, in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "without_copies", lambda: in_blocks)
    monkeypatch.setattr(blocks, "one_thread", lambda: in_blocks)
    rng = np.random.default_rng(0)
    matrix, matrices = rng.standard_normal((2, 1, rows, depth)), rng.standard_normal((2, 3, depth, columns))
    out = np.empty((2, rows, 3, columns)).swapaxes(1, 2)
    blocks.multiply(matrix, matrices, out)
    np.testing.assert_allclose(out, matrix @ matrices, rtol=1e-11, atol=1e-11)
    got, expected = blocks.multiply_transposed(matrices, out), (matrices @ out.swapaxes(2, 3)).sum(axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("turned", ["left", "right", "neither"])
@pytest.mark.parametrize(("stack", "others", "rows", "depth", "columns"), [
    ((2, 3), (2, 3), 128, 64, 128), ((2,), (), 64, 32, 64), ((), (3, 1), 150, 130, 60), ((2, 1), (1, 2), 97, 90, 130),
    ((2, 3), (3,), 256, 256, 256), ((0, 2), (0, 2), 5, 3, 2), ((2,), (2,), 0, 3, 2), ((2,), (2,), 4, 0, 2),
    ((), (), 3, 5, 7),
])  # fmt: skip
def test_products_of_stacks_are_the_products(
    stack: Any, others: Any, rows: int, depth: int, columns: int, turned: str, in_blocks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(blocks, "one_thread", lambda: in_blocks)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(s, np.float32) for s in ((*stack, rows, depth), (*others, depth, columns)))
    if turned == "left":
        left = np.ascontiguousarray(left.swapaxes(-1, -2)).swapaxes(-1, -2)
    if turned == "right":
        right = np.ascontiguousarray(right.swapaxes(-1, -2)).swapaxes(-1, -2)
    expected = left.astype(float) @ right.astype(float)
    out = np.empty((*expected.shape[:-1], 2, columns), np.float32)[..., 1, :]  # with gaps in memory
    assert blocks.product(left, right, out) is out
    for got in (out, blocks.product(left, right)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    calls: list[Any] = []
    monkeypatch.setattr(np, "matmul", lambda *given, **_: calls.append(given) or np.zeros((1, 1, 1)))
    blocks.product(left, right, out)
    cut = in_blocks and turned != "right" and (rows, depth) in ((128, 64), (150, 130))
    assert (calls[0][0].ndim > left.ndim) == cut


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 2), (1, 1), ((3, 2), (0, 1)), (2, 1), 2),
    ((4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
])  # fmt: skip
@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_channels_of_many(
    count: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = geometry("", (9, 7), kernel, stride, padding, dilation)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((count, 40, 9, 7)), rng.standard_normal((2, 40 // groups, *kernel))
    y = rng.standard_normal((count, 40, *places.output))
    calls: list[Any] = []
    by_taps = ops._convolve_by_taps
    monkeypatch.setattr(ops, "_convolve_by_taps", lambda *given: (calls.append(given), by_taps(*given)))
    for operation, plain, inputs in (
        (ops.convolution, plainly.convolved, (x, w, None)),
        (ops.transposed_convolution, plainly.transposed, (y, w.reshape(40, 2 // groups, *kernel), None)),
    ):
        got = operation(*inputs, places=places, groups=groups).array
        np.testing.assert_allclose(got, plain(*inputs, places=places, groups=groups), rtol=1e-11, atol=1e-11)
    assert len(calls) == (2 if stride == (1, 1) else 4)  # the phases of a stride are convolutions with steps of 1


@pytest.mark.parametrize("tile", [1, 50_000, 1 << 30])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (40, 3)])
def test_tiles_cover_each_window_once(tile: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TILE", tile)
    for count, taps in ((1, 1), (30, 3), (300, 6)):
        covered = np.zeros(size, int)
        for part in windows.tiles(size, windows.Taps(0, 1, taps, 1), 100, count, 16, 16 * taps):
            covered[slice(*part.rows), slice(*part.columns)] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize(("size", "images", "channels", "outputs", "taps", "spacing", "tile"), [
    ((32, 32), 64, 16, 16, (3, 3), 1, (16, 8)),  # tall, and wide enough
    ((32, 32), 16, 16, 16, (3, 3), 1, (16, 32)),  # whole rows of few images
    ((224, 224), 1, 16, 16, (3, 3), 1, (45, 224)),
    ((8, 8), 64, 64, 64, (3, 3), 1, (4, 8)),  # at most a third of the rows is copied twice, whatever they take
    ((32, 32), 64, 16, 16, (3, 3), 2, (11, 8)),  # matrices that are no views of the copy
    ((32, 32), 64, 3, 16, (3, 3), 1, (16, 32)),  # longer rows, since each number takes few multiplications
    ((1, 512), 64, 16, 16, (1, 3), 1, (1, 128)),
    ((0, 4), 64, 16, 16, (3, 3), 1, None),
    ((4, 4), 64, 16, 0, (3, 3), 1, None),
])  # fmt: skip
def test_a_tile_fits_in_the_cache_and_is_tall_first(
    size: Any, images: int, channels: int, outputs: int, taps: Any, spacing: int, tile: Any
) -> None:
    down, right = (windows.Taps(-1, 1, count, spacing) for count in taps)
    pixel = channels * right.count * images * 4
    parts = windows.tiles(size, down, pixel, images, outputs, outputs * channels * down.count * right.count)
    first = next(parts, None)
    assert (first and first.size) == tile


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("images_innermost", [True, False])
def test_the_gradient_of_a_mean_over_pixels_lies_in_memory_as_the_images_do(
    images_innermost: bool, keepdim: bool
) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 4, 4, 5))
    x = Tensor(numbers.transpose(3, 0, 1, 2) if images_innermost else numbers, requires_grad=True)
    y = x.mean((2, 3), keepdim=keepdim)
    g = np.random.default_rng(1).standard_normal(y.shape)
    gradient = y.origin.rules[0](g, None)
    np.testing.assert_allclose(
        gradient, np.broadcast_to(g.reshape(*x.shape[:2], 1, 1) / (numbers.size // g.size), x.shape)
    )
    assert (gradient.strides[0] < gradient.strides[1]) is images_innermost


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_an_image_may_lie_in_memory_in_any_way(batch: int) -> None:
    whole = np.random.default_rng(0).standard_normal((2 * batch, 2, 12, 10))
    weight = np.random.default_rng(1).standard_normal((3, 2, 3, 3))
    for image in (whole[::2], whole[:batch, :, 2:, 1::2], whole[:batch].swapaxes(2, 3), whole[:batch, ::-1]):
        dense = np.ascontiguousarray(image)
        for function in (lambda x: ops.conv2d(x, weight, padding=1), lambda x: pool.max_pool2d(x, 3, 2, 1)):
            got, expected = Tensor(image, requires_grad=True), Tensor(dense, requires_grad=True)
            values = [function(x) for x in (got, expected)]
            np.testing.assert_allclose(values[0].array, values[1].array, rtol=1e-11, atol=1e-12)
            incoming = np.random.default_rng(2).standard_normal(values[0].shape)
            for value in values:
                value.backward(incoming)
            np.testing.assert_allclose(got.grad.array, expected.grad.array, rtol=1e-11, atol=1e-12)


def test_a_window_of_a_maximum_may_have_many_places() -> None:
    x = Tensor(np.random.default_rng(0).permutation(800.0 + np.arange(800)).reshape(2, 1, 20, 20), requires_grad=True)
    y = pool.max_pool2d(x, 18)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.array, np.isin(x.array, y.array).astype(float))
    assert x.grad.array.sum() == 2


def test_starting_values_are_within_the_bounds_of_kaiming_uniform() -> None:
    manual_seed(0)
    for layer, fan in ((Conv2d(8, 64, 3, groups=2), 36), (Conv1d(8, 64, 5), 40), (ConvTranspose2d(64, 8, 3), 72)):
        for parameter in (layer.weight, layer.bias):
            bound = 1 / np.sqrt(fan)
            assert np.abs(parameter.array).max() <= bound
            assert parameter.array.dtype == np.float32
        assert np.abs(layer.weight.array).max() > 0.99 * bound
        assert layer.weight.array.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_the_same_seed_gives_the_same_layer() -> None:
    first, second, third = (manual_seed(s) and Conv2d(3, 4, 3) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.weight.array, second.weight.array)
    assert (first.weight.array != third.weight.array).any()


@pytest.mark.parametrize(("mode", "numpys"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_padding_modes_are_those_of_numpy(mode: str, numpys: Any) -> None:
    layer = Conv2d(2, 3, 3, padding=(2, 1), padding_mode=mode)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 5))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (1, 1)), mode=numpys)
    np.testing.assert_allclose(layer(Tensor(x)).array, ops.conv2d(padded, layer.weight, layer.bias).array, atol=1e-12)
    shallow = np.random.default_rng(0).standard_normal((2, 2, 1, 5))
    if mode == "replicate":
        assert layer(Tensor(shallow)).shape == (2, 3, 3, 5)
    else:
        with pytest.raises(ValueError, match=r"padding .* at most"):
            layer(Tensor(shallow))


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    x = Tensor(np.zeros((1, 1, 4, 4)), requires_grad=True)
    pool.max_pool2d(x, 2).sum().backward()
    np.testing.assert_array_equal(np.argwhere(x.grad.array[0, 0]), [[0, 0], [0, 2], [2, 0], [2, 2]])
    x = Tensor(np.zeros((1, 1, 3, 3)), requires_grad=True)
    pool.max_pool2d(x, 2, stride=1).sum().backward()
    np.testing.assert_array_equal(x.grad.array[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_max_unpool_puts_the_maxima_back() -> None:
    image = sx.tensor([[[[1.0, 2, 0], [4, 3, 0], [0, 0, 5]]]])
    pooled, indices = MaxPool2d(2, 1, return_indices=True)(image)
    np.testing.assert_array_equal(indices, [[[[3, 4], [3, 8]]]])
    np.testing.assert_array_equal(MaxUnpool2d(2, 1)(pooled * 10, indices), [[[[0, 0, 0], [40, 30, 0], [0, 0, 50]]]])
    pooled, indices = MaxPool1d(2, return_indices=True)(image[0, 0])
    np.testing.assert_array_equal(indices, [[1], [0], [0]])
    restored = F.max_unpool1d(pooled, indices, 2, output_size=(3,))
    np.testing.assert_array_equal(restored, [[0, 2, 0], [4, 0, 0], [0, 0, 0]])
    with pytest.raises(IndexError, match="indices must be in"):
        F.max_unpool1d(pooled, indices + 3, 2)


def test_max_pool_of_integers_and_of_nan() -> None:
    x = np.arange(16, dtype=np.int64).reshape(1, 1, 4, 4) - 20
    y = pool.max_pool2d(x, 3, stride=2, padding=1)
    np.testing.assert_array_equal(y.array[0, 0], [[-15, -13], [-7, -5]])
    assert y.array.dtype == np.int64
    assert np.isnan(pool.max_pool2d(np.array([[[[1.0, np.nan]]]]), (1, 2)).array).all()


def test_integer_images_are_convolved_in_the_weights_dtype() -> None:
    layer = Conv2d(1, 2, 3)
    x = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    y = layer(x)
    y.sum().backward()
    assert y.array.dtype == np.float32
    np.testing.assert_allclose(y.array, layer(x.astype(np.float32)).array, rtol=1e-6)
    assert layer.weight.grad.array.dtype == np.float32


def test_a_network_of_them_learns_and_keeps_its_state() -> None:
    class Net(Module):
        def __init__(self) -> None:
            self.features = Sequential(Conv2d(1, 4, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(4, 8, 3), ReLU())
            self.head = Linear(8, 2)

        def forward(self, x: Any) -> Any:
            y = AdaptiveAvgPool2d(1)(self.features(x))
            return self.head(y.reshape(x.shape[0], 8))

    manual_seed(3)
    net = Net()
    assert list(net.state_dict())[:4] == [f"features.{i}.{n}" for i in (0, 3) for n in ("weight", "bias")]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    images = rng.standard_normal((64, 1, 8, 8)).astype(np.float32)
    images[labels == 1, :, :4] += 1.5
    target = np.eye(2, dtype=np.float32)[labels]
    optimizer = SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        error = net(Tensor(images)) - target
        loss = (error * error).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    other = Net()
    other.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(other(Tensor(images)).array, net(Tensor(images)).array)


class Images(Module):
    """A float64 network with all kinds of layers that images meet."""

    def __init__(self) -> None:
        self.features = Sequential(
            Conv2d(1, 4, 3, padding=1, dtype="float64"), BatchNorm2d(4, dtype="float64"), ReLU(), Dropout2d(0.2),
            MaxPool2d(2), Conv2d(4, 6, 3, stride=2, groups=2, dtype="float64"), ReLU(), Dropout(0.3),
        )  # fmt: skip
        self.head = Conv2d(6, 3, 1, dtype="float64")

    def forward(self, x: Any) -> Any:
        return AdaptiveAvgPool2d(1)(self.head(self.features(x))).reshape(x.shape[0], 3)


def trained(wrapped: bool) -> dict[str, Any]:
    """The state after two epochs of batches of 6 rows and one of 2."""
    manual_seed(5)
    numbers = np.random.default_rng(0)
    data = Dataset(numbers.standard_normal((20, 1, 10, 10)), numbers.integers(0, 3, 20))
    net = Images()
    model = DistributedDataParallel(net) if wrapped else net
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(data, batch_size=6, shuffle=True)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            CrossEntropyLoss()(model(x), y).backward()
            optimizer.step()
    return {name: np.array(value) for name, value in net.state_dict().items()}


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_an_image_network_trains_alike_on_any_number_of_ranks(ranks: int) -> None:
    reference = trained(False)
    for state in run_threads(trained, ranks, (True,), timeout=100):
        assert state.keys() == reference.keys()
        for name, value in state.items():
            np.testing.assert_allclose(value, reference[name], rtol=0, atol=1e-11, err_msg=f"{name} on {ranks} ranks")


X = np.zeros((2, 4, 5, 5), np.float32)
ERRORS: list[tuple[Any, str]] = [
    (lambda: Conv2d(0, 4, 3), "in_channels must be >= 1, got 0"),
    (lambda: Conv2d(4, 2.5, 3), "out_channels must be an integer >= 1, got 2.5"),
    (lambda: Conv2d(4, 6, 3, groups=4), "groups must divide out_channels 6, got 4"),
    (lambda: Conv2d(4, 6, 3, groups=3), "groups must divide in_channels 4, got 3"),
    (lambda: Conv2d(4, 6, 0), "kernel_size must be an integer >= 1 or two of them, got 0"),
    (lambda: Conv2d(4, 6, (3, 3, 3)), r"kernel_size must .*, got \(3, 3, 3\)"),
    (lambda: Conv2d(4, 6, 3, stride=0), "stride must be an integer >= 1"),
    (lambda: Conv2d(4, 6, 3, padding=-1), "padding must be an integer >= 0"),
    (lambda: Conv2d(4, 6, 3, padding="some"), "padding must be integers, 'same' or 'valid', got 'some'"),
    (lambda: Conv2d(4, 6, 3, padding="same", stride=2), "padding='same' needs stride 1, got stride 2"),
    (lambda: Conv2d(4, 6, 3, padding_mode="mirror"), "padding_mode must be .*, got 'mirror'"),
    (lambda: Conv1d(4, 6, (3, 3)), r"Conv1d: kernel_size must be one integer, got \(3, 3\)"),
    (lambda: Conv2d(4, 6, 3)(X[0, 0]), r"input must have shape \(N, C, H, W\), got shape \(5, 5\)"),
    (lambda: Conv2d(4, 6, 3, padding=1, padding_mode="circular")(X[0, 0]), r"input must have shape \(N, C, H, W\)"),
    (lambda: Conv3d(4, 6, 3)(X[0, 0]), "input and weight must have 5 dimensions"),
    (lambda: Conv3d(4, 6, (3, 3)), r"kernel_size must be an integer >= 1 or three of them, got \(3, 3\)"),
    (lambda: Conv3d(4, 6, 6)(X[None]), r"does not fit into the padded input \(1, 2, 4, 5, 5\)"),
    (lambda: Conv2d(3, 6, 3)(X), "input must have 3 channels .*, got 4 in shape"),
    (lambda: Conv2d(4, 6, 6)(X), r"kernel_size \(6, 6\) must fit into the padded input, .* size \(5, 5\)"),
    (lambda: Conv2d(4, 6, 3, dilation=3)(X), r"kernel_size \(3, 3\) with dilation \(3, 3\) must fit"),
    (lambda: Conv1d(4, 6, 3)(X), r"conv1d: input must have shape \(N, C, L\)"),
    (lambda: ConvTranspose2d(4, 6, 3, output_padding=1)(X), "output_padding must be less than stride"),
    (lambda: ConvTranspose2d(4, 6, 3, padding="same"), "padding must be integers, got 'same'"),
    (lambda: ConvTranspose2d(4, 6, 1, padding=4)(X), "leaves nothing of the output"),
    (lambda: ops.conv2d(X, np.zeros((6, 4, 3, 3)), np.zeros(4)), r"bias must have shape \(6,\), got shape \(4,\)"),
    (lambda: ops.conv2d(X, np.zeros((6, 4, 3))), r"weight must have 4 dimensions, got shape \(6, 4, 3\)"),
    (lambda: ops.conv2d(X, np.zeros((6, 1, 3, 3)), groups=4), "groups must be >= 1 and divide weight's 6 channels"),
    (lambda: MaxPool2d(3, padding=2)(X), r"padding must be at most half of kernel_size \(3, 3\), got 2"),
    (lambda: MaxPool2d(6)(X), r"kernel_size \(6, 6\) must fit"),
    (lambda: MaxPool2d("3")(X), "kernel_size must be an integer >= 1 or two of them, got '3'"),
    (lambda: MaxPool1d(3)(X), r"max_pool1d: input must have shape \(N, C, L\)"),
    (lambda: AvgPool2d(2, divisor_override=0)(X), "divisor_override must be an integer but 0"),
    (lambda: AdaptiveAvgPool2d(0)(X), "output_size must be an integer >= 1"),
    (lambda: AdaptiveAvgPool2d((2, 2, 2))(X), r"output_size must .*, got \(2, 2, 2\)"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7)),
        (Conv2d(4, 6, 3), (4, 5, 6)),
        (Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 5, 6)),
        (Conv3d(4, 6, 3), (4, 5, 5, 5)),
        (ConvTranspose1d(4, 6, 3), (4, 7)),
        (ConvTranspose2d(4, 6, 3), (4, 5, 6)),
        (MaxPool1d(2), (4, 7)),
        (MaxPool2d(2), (4, 5, 6)),
        (AvgPool1d(2), (4, 7)),
        (AvgPool2d(2), (4, 5, 6)),
        (AdaptiveAvgPool1d(3), (4, 7)),
        (AdaptiveAvgPool2d(3), (4, 5, 6)),
    ],
    ids=repr,
)
def test_one_sample_without_a_batch(layer: Any, shape: tuple[int, ...]) -> None:
    sample = np.random.default_rng(0).standard_normal(shape)
    one, several = layer(Tensor(sample)), layer(Tensor(sample[None]))
    assert one.shape == several.shape[1:]
    np.testing.assert_array_equal(one.array, several.array[0])


def test_repr_names_what_is_not_usual() -> None:
    assert repr(Conv2d(1, 2, 3)) == "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))"
    assert repr(Conv1d(2, 4, 3, padding="same", groups=2, bias=False)) == (
        "Conv1d(2, 4, kernel_size=(3,), stride=(1,), padding='same', groups=2, bias=False)"
    )
    assert repr(MaxPool2d(2)) == "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)"
