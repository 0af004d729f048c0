"""Images between their pixels: other sizes, and values at any place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from math import floor
from typing import Any

import numpy as np

from sorix_dist.core import Tensor
from sorix_dist.core.arguments import at_least, in_range, one_of
from sorix_dist.core.capture import host, of_shapes
from sorix_dist.core.create import as_tensor
from sorix_dist.core.ops.choose import where
from sorix_dist.core.ops.elementwise import add, half_in_float32, remainder
from sorix_dist.core.ops.elementwise import floor as rounded_down
from sorix_dist.core.ops.elementwise import round as rounded
from sorix_dist.core.ops.indexing import gather, index_select
from sorix_dist.core.ops.matrix import matmul
from sorix_dist.core.ops.shape import expand, flatten, reshape, swapaxes, unsqueeze
from sorix_dist.core.rules import rows_along
from sorix_dist.nn.functional import spatial
from sorix_dist.nn.functional.activation import hardtanh

__all__ = ["affine_grid", "grid_sample", "interpolate"]


@half_in_float32
def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    """Sequences, images or volumes (N, C, ...) in another size: `size`, or `scale_factor` times theirs, rounded down.

    mode: "nearest" takes the pixel below i * scale, "nearest-exact" that below (i + 0.5) * scale, "area" the mean of
    windows. "linear", "bilinear" or "trilinear" (for one, two or three axes) weights the two next to
    (i + 0.5) * scale - 0.5, or to i * (n - 1) / (n' - 1) with `align_corners`; "bicubic" the four next to it. Positions
    are those of PyTorch's `interpolate`.
    """
    x = rows_along("interpolate", as_tensor(input), (0, 1))
    axes = range(2, x.ndim)
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.ndim)
    if mode in (linear, "bicubic") and x.array.dtype.kind != "f":
        raise TypeError(f"interpolate: mode {mode!r} needs floats, got {x.dtype}")
    others = {3: ("area",), 4: ("area", "bicubic")}.get(x.ndim, ())
    if linear is None or mode not in ("nearest", "nearest-exact", linear, *others):
        raise ValueError(
            f"interpolate: mode must be 'nearest', or 'linear', 'bilinear' or 'trilinear' for input with 3, 4 or 5 "
            f"dimensions, 'area' for 3 or 4, or 'bicubic' for 4, got {mode!r} for shape {tuple(x.shape)}"
        )
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    given: Any = size if scale_factor is None else scale_factor
    numbers = list(given) if isinstance(given, tuple | list) else [given] * len(axes)
    if len(numbers) != len(axes):
        raise ValueError(f"interpolate: size or scale_factor must be one number or {len(axes)}, got {given!r}")
    if mode == "area":
        counts = [k if scale_factor is None else floor(n * k) for n, k in zip(x.shape[2:], numbers, strict=True)]
        return spatial.adaptive_avg_pool1d(x, counts) if x.ndim == 3 else spatial.adaptive_avg_pool2d(x, counts)
    for axis, number in zip(axes, numbers, strict=True):
        length = x.shape[axis]
        if scale_factor is not None:
            in_range("interpolate: scale_factor", number, 0, above=True)
        count = number if scale_factor is None else floor(length * number)
        at_least(1, "interpolate", size=count)
        scale = length / count if scale_factor is None or recompute_scale_factor else 1 / number
        if mode.startswith("nearest"):
            shift = 0.5 if mode == "nearest-exact" else 0.0
            places = np.floor((np.arange(count) + shift) * scale).astype(int)
            x = index_select(x, axis, of_shapes(np.minimum(places, length - 1)))
            continue
        if align_corners:
            places = np.arange(count) * ((length - 1) / max(1, count - 1))
        else:
            places = (np.arange(count) + 0.5) * scale - 0.5
            places = places if mode == "bicubic" else np.maximum(places, 0)
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, *(1 for _ in x.shape[axis + 1 :])).astype(x.array.dtype)
        weights = _cubic(share) if mode == "bicubic" else {0: 1 - share, 1: share}
        near = (
            index_select(x, axis, of_shapes(np.clip(low + i, 0, length - 1))) * of_shapes(w) for i, w in weights.items()
        )
        x = reduce(add, near)
    return x


def _cubic(share: Any) -> dict[int, Any]:
    """The weights of the pixels at -1, 0, 1 and 2 for a place between 0 and 1 (Keys 1981, with a = -0.75)."""

    def within(x: Any) -> Any:
        return (1.25 * x - 2.25) * x * x + 1

    def beyond(x: Any) -> Any:
        return ((-0.75 * x + 3.75) * x - 6) * x + 3

    return {-1: beyond(1 + share), 0: within(share), 1: within(1 - share), 2: beyond(2 - share)}


# -- values at any place


@host
def _pixels(size: tuple[int, ...], align_corners: bool, kind: Any) -> Any:
    """The places of all pixels in [-1, 1], x first, and 1 (pixels, dims + 1)."""
    axes = [np.linspace(-1, 1, n) * (1 if align_corners else (n - 1) / n) if n > 1 else np.zeros(1) for n in size]
    grids = np.meshgrid(*axes, indexing="ij")
    return np.stack([*grids[::-1], np.ones(size)], -1).reshape(-1, len(size) + 1).astype(kind)


def affine_grid(theta: Any, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """The places that `grid_sample` looks at for images or volumes of `size` (N, C, ...), moved by the matrices theta
    (N, 2, 3) or (N, 3, 4) (Jaderberg et al. 2015)."""
    theta, dims = as_tensor(theta), len(size) - 2
    if theta.ndim != 3 or tuple(theta.shape[1:]) != (dims, dims + 1):
        raise ValueError(f"affine_grid: theta must have shape (N, 2, 3) or (N, 3, 4), got {tuple(theta.shape)}")
    places = matmul(_pixels(tuple(size[2:]), bool(align_corners), theta.array.dtype), swapaxes(theta, 1, 2))
    return reshape(places, (len(theta), *size[2:], dims))


def _inside(places: Any, length: int, padding_mode: str, corners: bool) -> Any:
    """Places along an axis; those outside of it moved to its border, or reflected at it."""
    if padding_mode == "zeros":
        return places
    low, span = (0.0, length - 1) if corners else (-0.5, length)
    if padding_mode == "reflection" and span:
        beyond = (places - low).abs()
        rest, turns = remainder(beyond, span), rounded_down(beyond.detach() / span)
        places = where(turns % 2 == 0, rest, span - rest) + low
    elif padding_mode == "reflection":
        places = places * 0
    return hardtanh(places, 0.0, length - 1.0)


@half_in_float32
def grid_sample(
    input: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> Tensor:
    """The values of images (N, C, H, W) or volumes (N, C, D, H, W) at the places `grid` (N, H', W', 2) or
    (N, D', H', W', 3), whose last dimension has x, y and z in [-1, 1]: (N, C, H', W') or (N, C, D', H', W').

    mode: "bilinear", "nearest" or, for images, "bicubic"; padding_mode: outside of [-1, 1] are "zeros", the pixels of
    the "border", or those of the "reflection"; align_corners: whether -1 and 1 are the centres of the outermost pixels
    or their edges. Formulas are those of PyTorch's `grid_sample`.
    """
    x, grid = as_tensor(input), as_tensor(grid)
    dims = x.ndim - 2
    if dims not in (2, 3) or grid.ndim != x.ndim or (grid.shape[0], grid.shape[-1]) != (x.shape[0], dims):
        raise ValueError(
            "grid_sample: input must have shape (N, C, H, W) or (N, C, D, H, W), and grid (N, H', W', 2) or "
            f"(N, D', H', W', 3), got {tuple(x.shape)} and {tuple(grid.shape)}"
        )
    one_of("grid_sample: mode", mode, "bilinear", "nearest", *(("bicubic",) if dims == 2 else ()))
    one_of("grid_sample: padding_mode", padding_mode, "zeros", "border", "reflection")
    sizes, corners, cubic = tuple(x.shape[2:]), bool(align_corners), mode == "bicubic"
    near: list[list[tuple[Any, Any]]] = []  # along each axis the pixels and their weights
    for axis, length in enumerate(sizes):
        place = flatten(grid[..., dims - 1 - axis], 1)
        place = (place + 1) * ((length - 1) / 2) if corners else ((place + 1) * length - 1) / 2
        place = place if cubic else _inside(place, length, padding_mode, corners)
        first = rounded(place.detach()) if mode == "nearest" else rounded_down(place.detach())
        share = place - first
        weights = {0: share * 0 + 1} if mode == "nearest" else _cubic(share) if cubic else {0: 1 - share, 1: share}
        near.append([(first + i, weight) for i, weight in weights.items()])
    pixels, values = flatten(x, 2), []
    for corner in product(*near):
        index, weight, seen = 0, 1, True
        for (place, share), length in zip(corner, sizes, strict=True):
            at = _inside(place, length, padding_mode, corners) if cubic else place
            seen = (at >= 0) & (at <= length - 1) & seen
            index, weight = index * length + at.clamp(0, length - 1), weight * share
        shape = (*x.shape[:2], index.shape[1])  # type: ignore[attr-defined]
        found = gather(pixels, 2, expand(unsqueeze(index.long(), 1), shape))  # type: ignore[attr-defined]
        values.append(where(unsqueeze(seen, 1), found, 0.0) * unsqueeze(weight, 1))
    return reshape(reduce(add, values), (*x.shape[:2], *grid.shape[1:-1]))
