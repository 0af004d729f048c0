"""Attention, transformer layers and embeddings compute, differentiate and train as PyTorch's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sorix_dist import nn, optim
from sorix_dist.core import Tensor
from sorix_dist.nn import functional as F

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


def pair(*shape: int) -> tuple[Tensor, Any]:
    x = RNG.standard_normal(shape)
    return Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


def state_of(theirs: Any) -> dict[str, np.ndarray]:
    """PyTorch's state with the names and the layout of our Linear and Embedding."""
    state = {}
    for prefix, module in theirs.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            value = parameter.detach().numpy().copy()
            if isinstance(module, torch.nn.Linear):
                name = name.replace("weight", "W").replace("bias", "b")
                value = value.T if name.endswith("W") else value[None]
            elif isinstance(module, torch.nn.Embedding):
                name = name.replace("weight", "W")
            state[name] = value
    return state


def gradients_of(theirs: Any) -> dict[str, np.ndarray]:
    twin = {id(p): p.grad for p in theirs.parameters()}
    with torch.no_grad():
        kept = {id(p): p.detach().clone() for p in theirs.parameters()}
        for p in theirs.parameters():
            p.copy_(twin[id(p)])
        state = state_of(theirs)
        for p in theirs.parameters():
            p.copy_(kept[id(p)])
    return state


def compare(ours: Any, theirs: Any, ours_of: Any, theirs_of: Any, inputs: list[tuple[Tensor, Any]]) -> None:
    """Values and gradients, then 20 steps of training that end with the same weights."""
    ours.load_state_dict(state_of(theirs))
    y, other = ours_of(), theirs_of()
    close(y, other)
    weights = RNG.standard_normal(y.shape)
    y.backward(weights)
    other.backward(torch.tensor(weights))
    for a, b in inputs:
        close(a.grad, b.grad)
    expected = gradients_of(theirs)
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-9, atol=1e-11, err_msg=name)
    mine = optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    their = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    for _ in range(20):
        mine.zero_grad()
        their.zero_grad()
        loss, wanted = (ours_of() ** 2).mean(), (theirs_of() ** 2).mean()
        loss.backward()
        wanted.backward()
        mine.step()
        their.step()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)
    for name, value in state_of(theirs).items():
        np.testing.assert_allclose(ours.state_dict()[name], value, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("mask", [None, "bool", "float", "causal"])
@pytest.mark.parametrize("shapes", [((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7)), ((4, 5), (6, 5), (6, 3))])
def test_scaled_dot_product_attention(mask: str | None, shapes: Any) -> None:
    inputs = [pair(*shape) for shape in shapes]
    options: list[dict[str, Any]] = [{}, {}]
    if mask == "causal":
        options = [{"is_causal": True}] * 2
    elif mask is not None:
        given = RNG.random((4, 6)) < 0.6 if mask == "bool" else RNG.standard_normal((4, 6))
        if mask == "bool":
            given[1] = False
        options = [{"attn_mask": given}, {"attn_mask": torch.tensor(given)}]
    y = F.scaled_dot_product_attention(*(a for a, _ in inputs), **options[0], scale=0.3)
    other = torch.nn.functional.scaled_dot_product_attention(*(b for _, b in inputs), **options[1], scale=0.3)
    close(y, other)
    weights = RNG.standard_normal(y.shape)
    y.backward(weights)
    other.backward(torch.tensor(weights))
    for a, b in inputs:
        close(a.grad, b.grad)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "dims"])
def test_multihead_attention(batch_first: bool, need_weights: bool, masked: bool, kind: str) -> None:
    options: dict[str, Any] = {"batch_first": batch_first} | ({"kdim": 5, "vdim": 7} if kind == "dims" else {})
    theirs = torch.nn.MultiheadAttention(8, 2, **options).double()
    ours = nn.MultiheadAttention(8, 2, **options, dtype="float64")
    n, length, keys = 3, 4, 4 if kind == "self" else 6
    q = pair(*((n, length, 8) if batch_first else (length, n, 8)))
    k, v = (
        q if kind == "self" else pair(*((n, keys, width) if batch_first else (keys, n, width)))
        for width in ((5, 7) if kind == "dims" else (8, 8))
    )
    padding = mask = None
    if masked:
        padding = np.zeros((n, keys), bool)
        padding[1, 2:] = True
        mask = RNG.standard_normal((n * 2, length, keys))
    arguments: dict[str, Any] = {"need_weights": need_weights}
    both = [
        arguments | {"key_padding_mask": padding, "attn_mask": mask},
        arguments
        | {
            "key_padding_mask": None
            if padding is None
            else torch.where(torch.tensor(padding), -torch.inf, 0.0).double(),
            "attn_mask": None if mask is None else torch.tensor(mask),
        },
    ]
    if need_weights:
        ours.load_state_dict(state_of(theirs))
        for average in (True, False):
            mine = ours(q[0], k[0], v[0], **both[0], average_attn_weights=average)[1]
            their = theirs(q[1], k[1], v[1], **both[1], average_attn_weights=average)[1]
            close(mine, their)
    compare(
        ours,
        theirs,
        lambda: ours(q[0], k[0], v[0], **both[0])[0],
        lambda: theirs(q[1], k[1], v[1], **both[1])[0],
        list({id(x[0]): x for x in (q, k, v)}.values()),
    )


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_transformer_encoder(norm_first: bool, batch_first: bool, bias: bool) -> None:
    options: dict[str, Any] = {"norm_first": norm_first, "batch_first": batch_first, "dropout": 0.0, "bias": bias}
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 16, **options), 2, torch.nn.LayerNorm(8), enable_nested_tensor=False
    ).double()
    ours = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, **options, dtype="float64"), 2, nn.LayerNorm(8, dtype="float64")
    )
    x = pair(5, 3, 8)
    length = 3 if batch_first else 5
    mask = np.triu(np.ones((length, length), bool), 1)
    compare(
        ours,
        theirs,
        lambda: ours(x[0], mask),
        lambda: theirs(x[1], torch.tensor(mask)),
        [x],
    )


@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding(padding: int | None) -> None:
    theirs = torch.nn.Embedding(6, 3, padding_idx=padding).double()
    ours = nn.Embedding(6, 3, padding_idx=padding, dtype="float64")
    index = RNG.integers(0, 6, (4, 5))
    compare(ours, theirs, lambda: ours(index), lambda: theirs(torch.tensor(index)), [])


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_decoder(norm_first: bool, batch_first: bool, masked: bool) -> None:
    options = {"norm_first": norm_first, "batch_first": batch_first, "dropout": 0.0, "dim_feedforward": 16}
    theirs = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(8, 2, **options), 2).double()
    ours = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, **options), 2).double()
    ours.load_state_dict(state_of(theirs))
    shapes = ((3, 5, 8), (3, 6, 8)) if batch_first else ((5, 3, 8), (6, 3, 8))
    (x, a), (memory, b) = (pair(*shape) for shape in shapes)
    masks, their_masks = {}, {}
    if masked:
        causal, padding = np.triu(np.ones((5, 5), bool), 1), np.arange(6) >= np.array([[6], [3], [4]])
        masks = {"tgt_mask": causal, "memory_key_padding_mask": padding}
        their_masks = {name: torch.tensor(mask) for name, mask in masks.items()}
    got, expected = ours(x, memory, **masks), theirs(a, b, **their_masks)
    close(got.detach(), expected)
    weights = RNG.standard_normal(got.shape)
    (got * weights).sum().backward()
    (expected * torch.tensor(weights)).sum().backward()
    for mine, other in ((x, a), (memory, b)):
        np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-8, atol=1e-10)
    # Optimizers' states go by position.
    assert [name for name, _ in ours.named_parameters()] == list(state_of(theirs))
