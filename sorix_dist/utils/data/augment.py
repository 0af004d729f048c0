"""Augmentation of whole batches. What is random about a sample follows from the seed, the epoch and the sample's index,
so that any split of a batch over ranks and threads gives the same."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np

from sorix_dist.core.arguments import as_function, as_int, described, is_integer
from sorix_dist.core.tensor import Array, array_of
from sorix_dist.utils.data.nested import map_arrays

_GOLDEN, _MIX1, _MIX2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class SampleRandom:
    """Random numbers for the n samples of a batch, `draw` of a `batch_transform`. Each call draws new ones.

    Every sample has a separate stream (SplitMix64: Steele, Lea and Flood 2014).
    """

    def __init__(self, seed: int, epoch: int, indices: Array) -> None:
        key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
        self._states = _mixed(_mixed(np.asarray(indices).astype(np.uint64) * _GOLDEN) + key)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._states)

    def uniform(self, *shape: int) -> Array:
        """Float64 numbers from [0, 1), of shape (n, *shape)."""
        if not all(is_integer(extent) and extent >= 0 for extent in shape):
            raise TypeError(
                f"draw: the shape must be integers, as in draw.normal(8, 8), got {', '.join(map(described, shape))}"
            )
        count = int(np.prod(shape))
        steps = np.arange(self._drawn + 1, self._drawn + 1 + count, dtype=np.uint64) * _GOLDEN
        self._drawn += count
        words = _mixed(self._states[:, None] + steps)
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(len(self), *shape)

    def normal(self, *shape: int) -> Array:
        """Float64 numbers of mean 0 and variance 1, of shape (n, *shape) (Box and Muller 1958)."""
        radius, angle = self.uniform(*shape), self.uniform(*shape)
        return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))

    def integers(self, low: int, high: int, *shape: int) -> Array:
        """Integers from [low, high), of shape (n, *shape)."""
        return low + (self.uniform(*shape) * (high - low)).astype(np.int64)

    def flip(self, x: Array, p: float = 0.5, axis: int = -1) -> Array:
        """x with each sample reversed along `axis` with probability p. Of images (n, ..., height, width), axis -1
        swaps left and right."""
        x = np.asarray(x)
        flipped = (self.uniform() < p).reshape(-1, *(1 for _ in x.shape[1:]))
        return np.where(flipped, np.flip(x, axis), x)

    def crop(self, x: Array, size: int | tuple[int, int], padding: int = 0) -> Array:
        """A random window of each image (n, ..., height, width), first padded by `padding` zeros on every side.

        size: (height, width) of the window, or one number for a square. ValueError if the window does not fit.
        """
        sizes = [size, size] if is_integer(size) else list(size) if isinstance(size, tuple | list) else []
        if len(sizes) != 2:
            raise TypeError(f"crop: size must be an integer or (height, width), got {described(size)}")
        height, width = (as_int("crop: size", each, 1) for each in sizes)
        padding = as_int("crop: padding", padding, 0)
        x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(padding, padding)] * 2) if padding else x
        if x.ndim < 3 or height > x.shape[-2] or width > x.shape[-1]:
            raise ValueError(f"crop: size {(height, width)} must fit into padded images, got shape {x.shape}")
        windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(-2, -1))
        top, left = (self.integers(0, windows.shape[axis]) for axis in (-4, -3))
        return np.asarray(windows[np.arange(len(x)), ..., top, left, :, :])


def normalize(x: Array, mean: Any, std: Any) -> Array:
    """(x - mean) / std in float32. Several means and deviations are those of the channels, axis 1 of x.

    ValueError unless all deviations are above 0 and there is one for each channel.
    """
    x, mean, std = (np.asarray(each, np.float32) for each in (x, mean, std))
    if not (std > 0).all():
        raise ValueError(f"normalize: std must be above 0, got {std.min()}")
    for name, each in (("mean", mean), ("std", std)):
        if each.size > 1 and (x.ndim < 2 or each.shape != x.shape[1:2]):
            raise ValueError(f"normalize: {name} must have shape () or {x.shape[1:2]}, got {each.shape}")
    if mean.ndim or std.ndim:
        mean, std = (each.reshape(-1, *(1 for _ in x.shape[2:])) for each in (mean, std))
    return np.asarray((x - mean) / std)


def one_hot(labels: Array, num_classes: int) -> Array:
    """The rows of the identity that labels (n, ...) name: float32 of shape (n, ..., num_classes)."""
    labels, num_classes = np.asarray(labels), as_int("one_hot: num_classes", num_classes, 1)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"one_hot: labels must be integers, got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"one_hot: labels must be in [0, {num_classes}), got numbers from {labels.min()} to {labels.max()}"
        )
    return np.eye(num_classes, dtype=np.float32)[labels]  # type: ignore[no-any-return]


class BatchTransform:
    """A user's function of a batch's arrays, `function(x, y)`, or `function(x, y, draw)` with a SampleRandom.

    A dict is one argument, the entries of a tuple are separate ones.
    """

    def __init__(self, function: Any) -> None:
        self.function = as_function("batch_transform", function, "a batch")
        try:
            self.random = "draw" in signature(function).parameters
        except ValueError:  # some functions of C have no signature
            self.random = False

    def __call__(self, batch: Any, seed: int, epoch: int, indices: Array) -> Any:
        arrays = map_arrays(batch, array_of)
        options = {"draw": SampleRandom(seed, epoch, indices)} if self.random else {}
        try:
            made = self.function(*(arrays if isinstance(arrays, tuple) else (arrays,)), **options)
            if made is None:
                raise TypeError("batch_transform must return the new batch, got None")
        except Exception as error:
            error.add_note("raised by batch_transform")
            raise
        return made


def _mixed(words: Array) -> Array:
    words = (words ^ (words >> np.uint64(30))) * _MIX1
    words = (words ^ (words >> np.uint64(27))) * _MIX2
    return np.asarray(words ^ (words >> np.uint64(31)))
