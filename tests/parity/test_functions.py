"""The functions that are made of others, evaluated by PyTorch and here; see test_tensor."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity import test_tensor as tensors

# In the inputs that test_tensor draws: x, y (3, 4), m (4, 3), v (4,), p (3, 4, positive), b (2, 3, 4), c (2, 4, 3),
# s (), and the integers i (3, 4) in [0, 4), j (3, 2) in [0, 4), k (2,) in [0, 3).
DIFFERENTIABLE = """
    T.tile(x, (2,)); x.tile(2, 1, 1); T.repeat_interleave(x, 2); x.repeat_interleave(2, dim=1)
    T.repeat_interleave(v, T.tensor([0, 2, 1, 3])); T.hstack([x, y]); T.hstack([v, v]); T.vstack([v, x])
    T.dstack([x, y]); T.column_stack([v, x.t()]); T.meshgrid(v, v, indexing='ij')[0]
    T.meshgrid(v, s, indexing='xy')[1]; x.ravel(); x.unflatten(1, (2, -1)); x.narrow(1, 1, 2); x.select(0, 2)
    b.select(-1, 1); x.diagonal(); b.diagonal(1, 0, 2); T.fliplr(x); T.flipud(x); x.diff(); T.diff(x, n=2, dim=0)
    x.take(k); b.unfold(2, 2, 1); T.scatter(x, 1, j[:, :1], y[:, :1]); x.scatter(0, j[:1] % 3, 2.0)
    T.index_add(x, 0, k, y[:2]); x.index_add(1, k, y[:, :2], alpha=2); T.index_copy(x, 0, k, y[:2])
    x.index_fill(1, k, 2.0); T.lerp(x, y, 0.3); T.lerp(x, y, p); x.frac(); x.trunc(); T.xlogy(x, p); T.logit(p / 3)
    x.nan_to_num(); p.float_power(2); x.cumprod(1); (x * 0).cumprod(0); x.median(); x.median(1)[0]
    b.median(0, True).values; T.std_mean(x, dim=1)[0]; T.var_mean(x, dim=0, keepdim=True)[1]; T.nansum(x, 1)
    x.nanmean(0); T.dist(x, y); T.dist(x, y, 3); x.asinh(); (p + 1).acosh(); (x / 4).atanh(); (x / 4).asin()
    (x / 4).acos(); x.sinh(); x.cosh(); x.exp2(); x.erf(); x.erfc(); T.atan2(x, p); T.fmod(x, p); T.hypot(x, p)
    T.logaddexp(x, y); T.addmm(s, x, m); T.addmm(v[:3], x, m, beta=0.5, alpha=2); T.addmv(v[:3], x, v)
    T.baddbmm(s, b, c); T.addbmm(s, b, c); T.addr(x, v[:3], v); T.addcmul(x, y, p, value=2)
    T.addcdiv(x, y, p, value=0.5); x.mv(v); v.dot(v); T.inner(x, y); T.inner(v, v); T.tensordot(x, m, 1)
    T.tensordot(b, c, dims=([1, 2], [2, 1])); T.tensordot(x, y, 2); (x @ m).trace(); T.kron(v, x); T.linalg.norm(x)
    T.linalg.norm(x, 1); T.linalg.norm(b, 2, 1); T.linalg.vector_norm(x, 3, 1); T.linalg.matrix_norm(b)
    T.linalg.solve(x @ m + 3 * T.eye(3), v[:3]); T.linalg.solve(b @ c + 5 * T.eye(3), b)
    T.linalg.inv(x @ m + 3 * T.eye(3)); T.linalg.det(b @ c); T.logsumexp(b, (0, 2)); x.sum(dim=())
    x.std(unbiased=False); x.var(False); T.norm(x, 0.5); x.norm(-1); T.broadcast_tensors(x, v)[1]; T.combinations(v)
    T.cartesian_prod(v, v); T.atleast_3d(v); T.tensor_split(x, 3, 1)[2]; T.movedim(b, (0, 1), (2, 0))
    T.cat([T.tensor([]), x]); T.div(x, y, rounding_mode='trunc'); x.add(y, alpha=3); T.clip(x, 0)
    T.where(x > 0, x, v); x.masked_fill(x > 0, s); (x * 0).std(0); (x * 0).norm(3); T.take_along_dim(x[:1], i, 1)
    T.nn.functional.pad(x, (1, 2), value=3.0); T.nn.functional.normalize(x)
    T.nn.functional.normalize(b, p=1.0, dim=2); T.nn.functional.cosine_similarity(x, y)
    T.nn.functional.unfold(b[None], 2, padding=1); T.nn.functional.glu(x); T.nn.functional.hardtanh(x, -0.5, 0.5)
    T.nn.functional.relu6(x * 4); T.nn.functional.selu(x); T.nn.functional.celu(x, 0.7); T.nn.functional.mish(x)
    T.nn.functional.hardswish(x * 3); T.nn.functional.logsigmoid(x); T.nn.functional.softsign(x)
    T.nn.functional.tanhshrink(x); T.nn.functional.hardshrink(x); T.nn.functional.softshrink(x, 0.3)
    T.nn.functional.softmin(x, 1); T.nn.functional.threshold(x, 0.1, 2.0); T.nn.functional.rms_norm(x, (4,), v)
    T.nn.functional.avg_pool1d(b, 2); T.nn.functional.adaptive_avg_pool1d(b, 3)
    T.nn.functional.adaptive_avg_pool2d(b, (2, 3)); T.nn.functional.prelu(x, v)
    T.nn.functional.interpolate(b, 7, mode='linear'); T.nn.functional.interpolate(b[None], scale_factor=2.0)
    T.nn.functional.interpolate(b[None], (5, 3), mode='bilinear', align_corners=True)
    T.nn.functional.pairwise_distance(x, y); T.cross(x[:, :3], y[:, 1:], dim=1)
    T.cummax(x, 1)[0]; b.cummin(1).values; T.cummax(s, 0)[0]
    T.block_diag(x, v, s, m[:, :1]); T.matrix_power(x @ m, 3); T.matrix_power(x @ m, 0); (b @ c).matrix_power(1)
    T.linalg.matrix_power(x @ m + 3 * T.eye(3), -2); (b @ c).matrix_power(6); T.nn.functional.relu_(x * 1)
    T.linalg.cross(m, v[None, :3]); m.cross(m * m, -1); T.cross(x, y, 0)
"""
OTHERS = """
    T.nonzero(x > 0); T.nonzero(x > 0, as_tuple=True)[1]; T.argwhere(i > 1); i.unique()
    T.unique(i, return_counts=True)[1]; T.unique(i, return_inverse=True)[1]; T.bincount(k); T.bincount(k, minlength=5)
    T.isposinf(x / 0); T.isneginf(x / 0); T.isclose(x, x + 1e-9); T.isin(i, k); T.searchsorted(T.arange(4), i)
    T.bucketize(x, T.tensor([-1.0, 0.0, 1.0]).double()); T.count_nonzero(i, dim=1); x.median(1)[1]
    T.tril_indices(3, 4); T.triu_indices(3, 3, 1); i.cumprod(1); i.byte().cumsum(0); i.byte().prod(); T.sign(i > 1)
    i.bool().tril(); i.bool().square(); i.bool() ** 2; i.byte() & k[0]; i.masked_fill(i > 1, 2.9)
    i.bool().masked_fill(i > 1, 7); T.arange(0.5, 4.5, dtype=T.int64); T.arange(2.5, dtype=T.int32)
    T.linspace(0.7, 9.9, 6, dtype=T.int64); T.logspace(0, 2, 4, dtype=T.int32); (x.int() * x).requires_grad
    x.bool().requires_grad; T.div(i, 3, rounding_mode='floor'); T.div(-i, 3, rounding_mode='trunc')
    T.bitwise_left_shift(i, 1); T.bitwise_right_shift(i, 1); i ^ 3; T.sign(T.tensor([float('nan'), -0.0, 3.0]))
    T.nn.functional.one_hot(i); x.sum(0, dtype=T.float32); T.aminmax(x)[0]
    T.softmax(x.float(), dim=1, dtype=T.float64); i.sum(dtype=T.float32); x.to(T.float32, copy=True)
    i.cummax(1)[1]; T.cummin(i, 0).indices; T.cummin(T.cat([x, x / 0 * 0]), 0)[0]
    T.cummax(x // 0.7, 1)[1]; i.byte().cummin(1)[0]; T.block_diag(i, i > 1)
    T.cummin(T.tensor([2.0, float('nan'), 1.0, float('nan'), 0.0]), 0)[1]; i[:, :3].matrix_power(2)
    T.broadcast_shapes((3, 1), (4,), 4); T.promote_types(T.int8, T.uint8) == T.int16; T.can_cast(T.int8, T.uint8)
    T.promote_types(T.int64, T.float16) == T.float16; T.can_cast(T.float64, T.float16); T.can_cast(T.float16, T.int64)
    T.result_type(i, 1.5) == T.float32; T.result_type(x.float(), s) == T.float32; T.result_type(i.int(), 2) == T.int32
    T.zeros(size=(2, 3)); T.atleast_2d(v); T.nan_to_num(x / 0); i.trunc(); T.addmm(i, i, i.t() @ i); T.mv(i, i[0])
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [*tensors.expressions(DIFFERENTIABLE), *tensors.expressions(OTHERS)])
def test_values_and_dtypes(text: str) -> None:
    tensors.test_values_and_dtypes(text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", tensors.expressions(DIFFERENTIABLE))
def test_first_and_second_derivatives(text: str) -> Any:
    tensors.test_first_and_second_derivatives(text)
