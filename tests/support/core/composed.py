"""Functions that are made of other operations, with rows of a batch among their operands: cases of test_placements."""

from __future__ import annotations

from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist.nn import functional as F

N3, TN3, IMAGES = ("N", 3), (2, "N", 3), ("N", 2, 5, 4)
PLACES = "sx.all_gather"


class Root(sx.autograd.Function):
    """sqrt(x² + 1), with a gradient that is written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = (x * x + 1).sqrt()
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, _ = ctx.saved_tensors
        return g * x / (x * x + 1).sqrt()


class Product(sx.autograd.Function):
    """x * w with a gradient that is written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


COMPOSED: dict[str, list[Any]] = {
    # arranged
    "tile": [lambda x: sx.tile(x, 2), [N3], ["0"]],
    "repeat_interleave": [lambda x: sx.repeat_interleave(x, 2, 1), [N3], ["0"]],
    "repeat_interleave rows": [lambda x: sx.repeat_interleave(x, 2, 0), [N3], ["0"]],
    "repeat_interleave by a vector": [lambda x: sx.repeat_interleave(x, np.array([1, 0, 2]), 1), [N3], ["0"]],
    "hstack": [lambda x, y: sx.hstack([x, y]), [N3, N3], ["0", "0"]],
    "column_stack": [lambda x, y: sx.column_stack([x, y]), [("N",), N3], ["0", "0"]],
    "vstack": [lambda x, y: sx.vstack([x, y]), [N3, N3], ["0", "0"]],
    "narrow": [lambda x: sx.narrow(x, 1, 1, 2), [N3], ["0"]],
    "narrow rows": [lambda x: sx.narrow(x, 0, 1, 2), [N3], ["0"], {"refused": PLACES}],
    "select": [lambda x: x.select(1, 1), [N3], ["0"]],
    "select a row": [lambda x: x.select(0, 1), [N3], ["0"], {"refused": PLACES}],
    "diagonal": [lambda x: sx.diagonal(x, 1, 1, 2), [("N", 3, 4)], ["0"]],
    "unflatten": [lambda x: sx.unflatten(x, 1, (2, -1)), [("N", 4)], ["0"]],
    "ravel": [lambda x: sx.ravel(x), [N3], ["0"]],
    "diff": [lambda x: sx.diff(x), [N3], ["0"]],
    "windows": [lambda x: x.unfold(1, 2, 1), [("N", 4)], ["0"]],
    "scatter a number": [lambda x, i: sx.scatter(x, 1, i, 2.0), [N3, ("N", 2)], ["0", "0"], {"integers": (1,)}],
    "scatter": [lambda x, i, y: sx.scatter(x, 1, i, y), [N3, ("N", 1), ("N", 1)], ["0", "0", "0"],
        {"integers": (1,)}],
    "index_add": [lambda x, y: sx.index_add(x, 0, np.array([0, 2, 0]), y), [(3, 2), (3, 2)], ["", "partial"]],
    "index_add of rows": [lambda x, i, y: sx.index_add(x, 0, i, y), [(3, 2), ("N",), ("N", 2)], ["", "0", "0"],
        {"integers": (1,)}],
    "index_add to rows": [lambda x, y: sx.index_add(x, 0, np.array([0, 2]), y), [N3, (2, 3)], ["0", ""],
        {"refused": PLACES}],
    "index_fill of rows": [lambda x: sx.index_fill(x, 0, np.array([0, 2]), 1.5), [N3], ["0"], {"refused": PLACES}],
    "diff of rows": [lambda x: sx.diff(x, 1, 0), [N3], ["0"], {"refused": PLACES}],
    "windows of rows": [lambda x: x.unfold(0, 2, 1), [N3], ["0"], {"refused": PLACES}],
    "index_fill": [lambda x: sx.index_fill(x, 1, np.array([0, 2]), 1.5), [N3], ["0"]],
    # of many numbers
    "lerp": [lambda x, y: sx.lerp(x, y, 0.25), [N3, N3], ["0", ""]],
    "cumprod of rows": [lambda x: sx.cumprod(x, 0), [N3], ["0"]],
    "cumprod": [lambda x: sx.cumprod(x, 1), [N3], ["0"]],
    "cummax of rows": [lambda x: sx.cummax(x, 0).values, [N3], ["0"]],
    "cummin": [lambda x: sx.cummin(x, 1).values, [N3], ["0"]],
    "block_diag": [lambda x, y: sx.block_diag(x, y), [N3, (2, 2)], ["0", ""]],
    "block_diag of columns": [lambda x, y: sx.block_diag(x.T, y), [N3, ("N", 2)], ["0", "0"]],
    "matrix_power": [lambda x: sx.matrix_power(x, 3), [("N", 2, 2)], ["0"]],
    "matrix_power 0": [lambda x: sx.matrix_power(x.T @ x, 0), [N3], ["0"]],
    "matrix_power -2": [lambda x: sx.matrix_power(x.T @ x, -2), [N3], ["0"]],
    "median": [lambda x: sx.median(x, 1).values, [N3], ["0"]],
    "median of rows": [lambda x: sx.median(x, 0).values, [N3], ["0"]],
    "median of all": [lambda x: sx.median(x), [N3], ["0"]],
    "nan_to_num": [lambda x: sx.nan_to_num(x, 1.0), [N3], ["0"]],
    "nanmean": [lambda x: sx.nanmean(x, 0), [N3], ["0"]],
    "isposinf": [lambda x: sx.isposinf(x / 0.0), [N3], ["0"]],
    "isneginf": [lambda x: sx.isneginf(x / 0.0), [N3], ["0"]],
    "cross": [lambda x, y: sx.cross(x, y), [N3, (3,)], ["0", ""]],
    "cross of rows": [lambda x, y: sx.cross(x, y, 1), [N3, N3], ["0", "0"]],
    "isclose": [lambda x, y: sx.isclose(x, y, 0.5), [N3, N3], ["0", ""]],
    "std_mean": [lambda x: sx.std_mean(x, 0), [N3], ["0"]],
    "unique": [lambda i: sx.unique(i), [("N",)], ["0"], {"integers": (0,)}],
    "bincount": [lambda i: sx.bincount(i, minlength=4), [("N",)], ["0"], {"integers": (0,)}],
    "nonzero": [lambda x: sx.nonzero(x > 0), [N3], ["0"]],
    "dist": [lambda x, y: sx.dist(x, y), [N3, N3], ["0", "0"]],
    # products
    "addmm": [lambda b, x, w: sx.addmm(b, x, w, alpha=2), [(2,), N3, (3, 2)], ["", "0", ""]],
    "gram by tensordot": [lambda x: sx.tensordot(x, x, ([0], [0])), [N3], ["0"]],
    "tensordot": [lambda x, w: sx.tensordot(x, w, 1), [TN3, (3, 2)], ["1", ""]],
    "bmm": [lambda x, y: x.bmm(y), [("N", 2, 3), ("N", 3, 2)], ["0", "0"]],
    "trace": [lambda x: sx.trace(x.T @ x), [N3], ["0"]],
    "addcmul": [lambda x, y: sx.addcmul(x, x, y, value=3), [N3, N3], ["0", ""]],
    "cdist": [lambda x, y: sx.cdist(x, y), [N3, (4, 3)], ["0", ""]],
    "cdist of rows": [lambda x, y: sx.cdist(x, y), [N3, N3], ["0", "0"]],
    "diag_embed": [lambda x: sx.diag_embed(x, 1), [N3], ["0"]],
    "rot90": [lambda x: sx.rot90(x, 1, (2, 1)), [("N", 3, 4)], ["0"]],
    "fmax": [lambda x, y: sx.fmax(x, y), [N3, (3,)], ["0", ""]],
    "logdet": [lambda x: sx.logdet(x @ x.mT + sx.eye(2, dtype="float64")), [("N", 2, 2)], ["0"]],
    "solve": [lambda x, y: sx.linalg.solve(x.T @ x, x.T @ y), [N3, ("N", 1)], ["0", "0"]],
    "inv": [lambda x: sx.linalg.inv(x + 4 * sx.eye(3, dtype="float64")), [("N", 3, 3)], ["0"]],
    "det": [lambda x: sx.linalg.det(x), [("N", 2, 2)], ["0"]],
    "columns' norm": [lambda x: sx.linalg.norm(x, 1), [N3], ["0"]],
    # of the user
    "a function of the user's, of a sum": [lambda x: Root.apply(x.sum(0)), [N3], ["0"]],
    "a function of the user's": [lambda x, w: Product.apply(x, w), [N3, (3,)], ["0", ""]],
    "a function of the user's, and its sum": [lambda x, w: Product.apply(x, w).sum(), [N3, (3,)], ["0", ""]],
    # layers
    **{f.__name__: [lambda x, f=f: f(x), [N3], ["0"]] for f in (
        F.relu6, F.hardtanh, F.selu, F.celu, F.mish, F.hardsigmoid, F.hardswish, F.logsigmoid, F.softsign, F.tanhshrink,
        F.hardshrink, F.softshrink, F.softmin, F.normalize,
    )},
    "glu": [lambda x: F.glu(x), [("N", 4)], ["0"]],
    "prelu": [lambda x, w: F.prelu(x, w), [N3, (3,)], ["0", ""]],
    "cosine_similarity": [lambda x, y: F.cosine_similarity(x, y), [N3, N3], ["0", "0"]],
    "pairwise_distance": [lambda x, y: F.pairwise_distance(x, y), [N3, N3], ["0", "0"]],
    "rms_norm": [lambda x, w: F.rms_norm(x, (3,), w), [TN3, (3,)], ["1", ""]],
    "avg_pool1d": [lambda x: F.avg_pool1d(x, 2), [("N", 2, 7)], ["0"]],
    "adaptive_avg_pool1d": [lambda x: F.adaptive_avg_pool1d(x, 3), [("N", 2, 7)], ["0"]],
    "unfold": [lambda x: F.unfold(x, 2, padding=1), [IMAGES], ["0"]],
    "fold": [lambda x: F.fold(x, (3, 4), 2), [("N", 8, 6)], ["0"]],
    "lp_pool2d": [lambda x: F.lp_pool2d(x, 2, 2), [IMAGES], ["0"]],
    "bilinear": [lambda x, y, w: F.bilinear(x, y, w), [N3, ("N", 2), (4, 3, 2)], ["0", "0", ""]],
    "multi_margin_loss": [lambda x, i: F.multi_margin_loss(x, i, 2, 0.5, np.arange(4.0)), [("N", 4), ("N",)],
        ["0", "0"], {"integers": (1,)}],
    "pixel_shuffle": [lambda x: F.pixel_shuffle(x, 2), [("N", 4, 2, 3)], ["0"]],
    "interpolate": [lambda x: F.interpolate(x, (4, 7), mode="bilinear"), [IMAGES], ["0"]],
    "grid_sample": [lambda x, y: F.grid_sample(x, y), [IMAGES, ("N", 3, 2, 2)], ["0", "0"]],
    "affine_grid": [lambda x: F.affine_grid(x, (x.shape[0], 1, 3, 2)), [("N", 2, 3)], ["0"]],
    "max_pool3d": [lambda x: F.max_pool3d(x, 2), [("N", 2, 4, 3, 2)], ["0"]],
    "avg_pool3d": [lambda x: F.avg_pool3d(x, 2), [("N", 2, 4, 3, 2)], ["0"]],
    "adaptive_avg_pool3d": [lambda x: F.adaptive_avg_pool3d(x, 2), [("N", 2, 4, 3, 2)], ["0"]],
    "adaptive_max_pool2d": [lambda x: F.adaptive_max_pool2d(x, 2), [IMAGES], ["0"]],
    "local_response_norm": [lambda x: F.local_response_norm(x, 2), [IMAGES], ["0"]],
    "pixel_unshuffle": [lambda x: F.pixel_unshuffle(x, 2), [("N", 1, 2, 4)], ["0"]],
    "channel_shuffle": [lambda x: F.channel_shuffle(x, 2), [IMAGES], ["0"]],
    "multilabel_soft_margin_loss": [lambda x, y: F.multilabel_soft_margin_loss(x, y), [N3, N3], ["0", "0"]],
    "hinge_embedding_loss": [lambda x, y: F.hinge_embedding_loss(x, y.sign()), [N3, N3], ["0", "0"]],
    "poisson_nll_loss": [lambda x, y: F.poisson_nll_loss(x, y), [N3, N3], ["0", "0"]],
    "soft_margin_loss": [lambda x, y: F.soft_margin_loss(x, y), [N3, N3], ["0", "0"]],
    "interpolate to the nearest": [lambda x: F.interpolate(x, scale_factor=2), [IMAGES], ["0"]],
}  # fmt: skip
