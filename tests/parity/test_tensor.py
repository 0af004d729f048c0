"""The same expression of tensors, evaluated by PyTorch and here: values, dtypes, first and second derivatives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx

torch = pytest.importorskip("torch")

# Expressions in x (3, 4), y (3, 4), m (4, 3), v (4,), p (3, 4, positive), b (2, 3, 4), c (2, 4, 3), s (), and the
# integers i (3, 4) in [0, 4), j (3, 2) in [0, 4), k (2,) in [0, 3); T is the library.
DIFFERENTIABLE = """
    x + y; x - 2; 3 - x; x * y; x * v; x / p; 2 / p; x / s; p ** 2; p ** -1; p ** y; 2 ** x; p ** 0.5; x ** 0
    s * x; -x; +x; abs(x); x.abs(); x.square(); x.neg(); x % 0.7; T.remainder(x, p); x.exp(); p.log(); p.sqrt()
    x.sin(); x.cos(); x.tan(); x.atan(); x.tanh(); x.sigmoid(); x.expm1(); p.log1p(); p.log2(); p.log10()
    p.rsqrt(); p.reciprocal(); x.sign(); x.round(); x.floor(); x.ceil(); T.relu(x); x @ m; x @ v; v @ m; b @ c
    b @ m; x @ c; v @ v; T.matmul(b, v); T.outer(v, v); x.mm(m); b.bmm(c); T.einsum('ij,jk->ik', x, m)
    T.einsum('bij,bjk->bik', b, c); T.einsum('ij->j', x); T.einsum('bij,ij->b', b, x); T.einsum('ii->i', x @ m)
    T.einsum('ij,kj,lj->ikl', x, y, p); T.einsum('...ij,jk->...ik', b, m); T.einsum('ij,j', x, v); x.sum()
    x.sum(0); x.sum(dim=1, keepdim=True); b.sum((0, 2)); T.sum(b, dim=-1); x.mean(); x.mean(1)
    b.mean(dim=(0, 1)); x.var(); x.var(1); x.var(dim=0, keepdim=True); x.std(); x.std(-1); x.var(unbiased=False)
    T.std(b, dim=(0, 2)); x.var(1, correction=0); x.prod(); x.prod(1); x.prod(0, keepdim=True); x.cumsum(0)
    T.cumsum(b, dim=-1); (x * 0).prod(1); x.norm(); x.norm(dim=1); x.norm(p=1); x.norm(p=3, dim=0)
    x.norm(p=float('inf'), dim=1); x.norm(2, 1, True); x.max(); x.min(); x.max(1).values
    x.max(dim=0, keepdim=True)[0]; b.min(-1)[0]; x.amax(1); x.amin((0, 1)); T.max(x, y); T.min(x, y)
    T.maximum(x, v); T.minimum(x, y); x.max(dim=1, keepdim=True).values; T.amax(b, dim=(0, 2), keepdim=True)
    x.logsumexp(1); T.logsumexp(b, dim=0, keepdim=True); x.softmax(1); T.softmax(b, dim=1); x.log_softmax(-1)
    T.log_softmax(x, dim=0); x.clamp(-0.5, 0.5); x.clamp(min=0); T.clamp(x, max=0.3); x.clamp(y - 1, y + 1)
    x.clip(0, 1); T.where(x > 0, x, y * 2); T.where(x > 0, x, 0.0); x.where(y > 0, y); x.masked_fill(y > 0, 2.0)
    x.tril(); x.triu(1); T.tril(b, -1); T.triu(b); x.sort()[0]; x.sort(0, descending=True).values
    T.sort(b, dim=1)[0]; x.topk(2)[0]; b.topk(1, dim=1, largest=False).values; x.reshape(2, 6); x.reshape(-1)
    x.view(4, -1); b.flatten(); b.flatten(1); b.flatten(0, 1); x.t(); b.transpose(0, 2); b.transpose(1, 2)
    x.transpose(0, 1); x.T; b.permute(2, 0, 1); T.permute(b, (1, 2, 0)); b.swapaxes(0, 1); b.mT; b.movedim(0, 2)
    x.unsqueeze(0); x.unsqueeze(-1); x[:1].squeeze(); x[:1].squeeze(0); x.squeeze(1); x[:, :1].expand(3, 5)
    v.expand(2, 3, -1); v.expand_as(b); x.repeat(2, 1); v.repeat(2, 3); T.broadcast_to(v, (3, 4)); x.flip(0)
    T.flip(b, (0, 2)); x.roll(1); x.roll(-1, 1); T.roll(b, (1, 2), (0, 2)); T.cat([x, y]); T.cat((x, y), dim=1)
    T.cat([x, m.t()], -2); T.stack([x, y]); T.stack([x, y], dim=-1); x.split(2)[1]; x.split([1, 2], dim=0)[1]
    T.split(b, 3, dim=2)[1]; x.chunk(2)[0]; T.chunk(x, 3, dim=1)[1]; x.unbind()[1]; T.unbind(b, dim=2)[3]
    T.stack(list(x)); x[0]; x[-1, 1:]; x[:, 2]; x[..., None, 0]; x[::2]; x[k]; x[k, k]; x[:, j[0]]; x[x > 0]
    x[T.tensor([True, False, True])]; b[:, k, 1]; x[[0, 0, 2]]; x[None]; b[k[1]]; x.gather(1, j)
    T.gather(x, 0, i % 3); T.gather(x, 1, i); x.index_select(0, k); T.index_select(b, 2, k)
    T.masked_select(x, y > 0); x.masked_select(v > 0); T.scatter_add(x, 1, j, y[:, :2])
    T.scatter_add(T.zeros(3, 4).double(), 1, i, x); T.take_along_dim(x, i, 1); T.diag(v); T.diag(x, 1)
    T.diag(v, -2); x.double(); x.clone(); x.contiguous(); x.detach() * x; x.float().double()
    x.to(T.float32).to(T.float64); ((x - x.mean(0)) / x.std(0)).tanh().sum(); (x @ m).softmax(-1) @ x
    (x.exp().sum(1, keepdim=True).log() - x).mean()
    (x * 1).mul_(y).add_(v, alpha=2); (x * 2).clamp_(-1, 1); (x * y).masked_fill_(y > 0, 2.0); (x * 1).div_(p).sub_(1)
    (x * 1).copy_(v); (x * 1).fill_(s); (x * 3).floor_().mul_(y); (x * 1).sigmoid_(); (x * y).lerp_(v, 0.3)
    (p * 1).sqrt_(); (x * 1).addcmul_(y, v, value=0.5); (x * y).zero_(); T.zeros(3, 4).double().add_(x).mul_(x.detach())
    put(x * 1, (slice(None), 1), s); put(T.zeros(3, 4).double(), 1, v); put(x * y, x > 0, v[0]); put(x * y, x > 0, 1.0)
    put(put(T.zeros(3, 4).double(), 0, v), 2, x[1]); put(put(x * 1, 1, v * v), 0, x[2])
    put(x * 1, (..., 0), x[:, 1] * s); put(put(put(T.zeros(3, 4).double(), 2, v), 0, x[1]), 2, y[0])
    put(b * 1, (slice(None), slice(0, 2)), x[:2]); put(x * 1, T.tensor([2, 0]), y[1:] * y[:2])
    put(x * 1, slice(1, None), m.t()[1:]); put(x.float(), 0, v * v)
    put(x * 1, (k, k), v[:2]); put(x * y, (slice(None), [0, 3]), p[:, 1:3]); put(x * 1, 0, v[None]); put(b * y, ..., x)
"""
OTHERS = """
    x == y; x != x; x < y; x <= 0; x > v; x >= x; (x > 0) & (y > 0); (x > 0) | (y > 0); ~(x > 0)
    (x > 0) ^ (y > 0); x // 0.7; T.eq(x, y); x.lt(y); x.isnan(); T.isfinite(x / 0); T.isinf(x / 0)
    x.logical_not(); T.logical_and(x > 0, y); x.all(); (x > 0).any(1); (x > 0).all(dim=0, keepdim=True)
    T.any(x > 5); x.argmax(); x.argmax(1); x.argmax(dim=0, keepdim=True); b.argmin(-1); x.argsort()
    x.argsort(0, descending=True); x.max(1)[1]; b.min(dim=1).indices; x.sort(1)[1]; x.topk(3)[1]; i.sum()
    i.sum(0); i.max(); i.min(1)[0]; i + 1; i * 2.5; i / 2; i // 2; i % 3; i ** 2; -i; i.abs(); i + i.int()
    i.byte() + i; i.short() * 2; i.bool().sum(); (x > 0).float().mean(); i.float() + i; i.half() * i
    x.half() * 2; x.float() * 2.5; x.float() + x; x.float() * s; i * s; i.float() * i.sum(); i.bool() + 1
    i.byte().all(); i.byte().any(1); x.amax(()); b.amin((), True); x.var(1, correction=5)
    i.exp(); i.sqrt(); i.sin(); T.where(x > 0, 1.0, 0.0); T.where(x > 0, 1, 0); T.where(x > 0, i, 1.5)
    i.clamp(1, 2); i.clamp(max=1.5); i.cumsum(0); i.prod(); i.bool().prod(); i.cumsum(1).dtype == T.int64
    T.equal(x, x); T.allclose(x, x + 1e-9); i.sort()[0]; i.flip(0); T.zeros(2, 3); T.ones((2,))
    T.full((2,), 1.5); T.full((2, 1), 3); T.eye(3); T.eye(2, 3); T.arange(5); T.arange(1, 8, 3)
    T.arange(0, 1, 0.3); T.linspace(0, 1, 7); T.logspace(0, 2, 5); T.zeros_like(x); T.ones_like(i)
    T.full_like(x, 2); T.zeros(2, dtype=T.int64); T.arange(6, 0, -2); T.tensor([1.5, 2]); T.tensor([1, 2])
    T.tensor(True); T.tensor([[1.0]], dtype=T.float64); T.as_tensor([1.0, 2.0]); T.arange(3).float(); T.tril(i)
    T.cat([i, i.float()]); T.stack([i, i]); i[i > 1]; x.shape; x.size(); x.size(-1); x.dim(); x.ndim; len(x)
    x.tolist(); s.item(); T.is_tensor(x); x.is_floating_point(); i.is_floating_point(); (x + y).requires_grad
    x.is_leaf; x.isnan().any().item(); T.tensor(3.7).int(); T.tensor([1.9, -1.9]).long(); x.round(decimals=1)
    T.round(x, decimals=2); 1 in i; bool(i.sum() > 0)
"""


def expressions(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split("; ") if part.strip()]


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    normal = {"x": (3, 4), "y": (3, 4), "m": (4, 3), "v": (4,), "b": (2, 3, 4), "c": (2, 4, 3)}
    return {
        **{name: rng.standard_normal(shape) for name, shape in normal.items()},
        "p": rng.uniform(0.5, 2, (3, 4)),
        "s": np.asarray(rng.uniform(1, 2)),
        "i": rng.integers(0, 4, (3, 4)),
        "j": rng.integers(0, 4, (3, 2)),
        "k": np.array([2, 0]),
    }


def evaluated(text: str, library: Any, requires_grad: bool = False) -> tuple[Any, list[Any]]:
    given = {
        name: library.tensor(a, requires_grad=requires_grad and a.dtype == np.float64) for name, a in arrays().items()
    }
    floats = [t for t in given.values() if t.requires_grad]
    return eval(text, {"T": library, "put": put, **given}), floats


def put(x: Any, key: Any, value: Any) -> Any:
    x[key] = value
    return x


def plain(value: Any) -> Any:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [*expressions(DIFFERENTIABLE), *expressions(OTHERS)])
def test_values_and_dtypes(text: str) -> None:
    ours, theirs = evaluated(text, sx)[0], evaluated(text, torch)[0]
    if hasattr(theirs, "detach"):
        assert isinstance(ours, sx.Tensor)
        assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1]
        assert tuple(ours.shape) == tuple(theirs.shape)
    single = plain(theirs).dtype in (np.float32, np.float16)
    np.testing.assert_allclose(
        plain(ours), plain(theirs), rtol=2e-6 if single else 1e-10, atol=1e-6 if single else 1e-12
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", expressions(DIFFERENTIABLE))
def test_first_and_second_derivatives(text: str) -> None:
    """The gradient of a weighted sum, and that of a weighted sum of the gradients."""
    answers = []
    for library in (sx, torch):
        value, floats = evaluated(text, library, requires_grad=True)

        def weighted(t: Any, seed: int, library: Any = library) -> Any:
            weights = np.random.default_rng(seed).uniform(0.5, 1.5, tuple(t.shape))
            return (t * library.tensor(weights)).sum()

        first = library.autograd.grad(weighted(value, 0), floats, create_graph=True, allow_unused=True)
        found = [None if g is None else plain(g) for g in first]
        draws = [weighted(g * g, i) for i, g in enumerate(first) if g is not None]
        recorded = [d for d in draws if d.requires_grad]
        second = [None] * len(floats)
        if recorded:
            total = recorded[0]
            for more in recorded[1:]:
                total = total + more
            second = list(library.autograd.grad(total, floats, allow_unused=True))
        answers.append((found, [None if g is None else plain(g) for g in second]))
    for ours, theirs in zip(*answers, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            mine, other = (np.zeros(1) if g is None else g for g in (mine, other))
            assert mine.size == 1 or other.size == 1 or mine.shape == other.shape
            assert np.allclose(mine, other, rtol=1e-6, atol=1e-7)


DTYPES = ["float16", "float32", "float64", "int16", "int32", "int64", "uint8", "bool"]


@pytest.mark.parametrize("name", ["+", "*", "/", "maximum", "where"])
@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", [*DTYPES, "2", "2.5", "True"])
def test_dtypes_together(name: str, a: str, b: str) -> None:
    """All pairs of dtypes, each operand with and without dimensions, and with numbers."""
    for a_shape in ((2,), ()):
        for b_shape in ((2,), ()) if b in DTYPES else (None,):
            kinds = []
            for library in (torch, sx):
                x = library.ones(a_shape, dtype=getattr(library, a))
                y = eval(b) if b_shape is None else library.ones(b_shape, dtype=getattr(library, b))
                if name == "maximum" and b_shape is None:
                    continue
                result = {
                    "+": lambda x, y: x + y,
                    "*": lambda x, y: x * y,
                    "/": lambda x, y: x / y,
                    "maximum": library.maximum,
                    "where": lambda x, y, T=library: T.where(T.ones(2) > 0, x, y),
                }[name](x, y)
                kinds.append(str(result.dtype).split(".")[1])
            assert len(set(kinds)) <= 1, (a_shape, b_shape, kinds)


ROUNDS = 40
OPERATIONS = ["tanh", "sin", "mul", "add", "maximum", "mm", "flip", "roll", "cat", "softmax", "cumsum", "index"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_programs(seed: int) -> None:
    """Twelve random operations on a few tensors that share parts: values and gradients of the leaves."""
    rng = random.Random(seed)
    steps = [
        (rng.choice(OPERATIONS),
         rng.randrange(10**6), rng.randrange(10**6))
        for _ in range(12)
    ]  # fmt: skip
    answers = [run(library, steps, seed) for library in (sx, torch)]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def run(T: Any, steps: list[tuple[str, int, int]], seed: int) -> list[Any]:
    generator = np.random.default_rng(seed)
    leaves = [T.tensor(generator.standard_normal((3, 3)), requires_grad=True) for _ in range(3)]
    operations = {
        "tanh": lambda x, y: x.tanh(),
        "sin": lambda x, y: T.sin(x),
        "mul": lambda x, y: x * y,
        "add": lambda x, y: x + y * 0.5,
        "maximum": T.maximum,
        "mm": lambda x, y: (x @ y) * 0.3,
        "flip": lambda x, y: x.flip(1),
        "roll": lambda x, y: x.roll(1, 0),
        "cat": lambda x, y: T.cat([x[:1], y[1:]]),
        "softmax": lambda x, y: T.softmax(x, dim=1),
        "cumsum": lambda x, y: x.cumsum(0) * 0.5,
        "index": lambda x, y: x[[0, 2, 2]] - y[:, :1],
    }
    pool = list(leaves)
    for name, a, b in steps:
        pool.append(operations[name](pool[a % len(pool)], pool[b % len(pool)]))
    total = pool[0].sum()
    for t in pool[3:]:
        total = total + t.sum()
    total.backward()
    return [total.item(), *(np.zeros(1) if t.grad is None else np.array(t.grad) for t in leaves)]
