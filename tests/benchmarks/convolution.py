"""Convolutions, forward and both gradients, beside their bare matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sorix_dist import Tensor, autograd
from sorix_dist.nn import functional as F
from tests.benchmarks.measure import interleaved, summary
from tests.benchmarks.products import convolved, multiply

Array = np.ndarray[Any, Any]

# Images, channels, pixels each way, kernels of 3x3: the two of W4.
SHAPES = {"1 to 16 channels, 28x28": (128, 1, 28, 16), "16 to 32 channels, 14x14": (128, 16, 14, 32)}


def measure(seconds: float) -> dict[str, Any]:
    """Seconds of each convolution and of its products, and the ratio of their 10th percentiles."""
    results = {}
    for name, (images, channels, size, outputs) in SHAPES.items():
        products = convolved(images * size * size, channels * 9, outputs)
        times = interleaved(
            {
                "convolution": _convolution(images, channels, size, outputs),
                "products": partial(multiply, products),
            },
            seconds / len(SHAPES),
        )
        made: dict[str, Any] = {kind: summary(values) for kind, values in times.items()}
        results[name] = {**made, "ratio": made["convolution"]["p10"] / made["products"]["p10"]}
    return results


def _convolution(images: int, channels: int, size: int, outputs: int) -> Callable[[], Any]:
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> Array:
        return generator.standard_normal(shape, np.float32)

    # In memory the images of a batch are innermost, as the results of convolutions and poolings are.
    x = Tensor(numbers(channels, size, size, images).transpose(3, 0, 1, 2), requires_grad=True)
    gradient = numbers(outputs, size, size, images).transpose(3, 0, 1, 2)
    weight = Tensor(numbers(outputs, channels, 3, 3), requires_grad=True)
    bias = Tensor(numbers(outputs), requires_grad=True)
    return lambda: autograd.grad(F.conv2d(x, weight, bias, padding=1), [x, weight, bias], gradient)
