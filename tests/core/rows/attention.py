"""Attention."""

from __future__ import annotations

import numpy as np

from sorix_dist.core.ops import attention as a
from tests.support.core.opcheck import Row

LISTS = {"0-d": "queries and keys are lists of vectors"}
HIDDEN = np.where(np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]]), -np.inf, 0)  # the second query sees nothing


def reference(q, k, v, bias=None, dropped=1.0, scale=1.0):
    scores = scale * q @ np.swapaxes(k, -1, -2) + (0 if bias is None else bias)
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        weights = np.nan_to_num(e / e.sum(axis=-1, keepdims=True))
    return weights * dropped @ v


def packed(qkv, bias=None, dropped=1.0, heads=1, scale=1.0):
    q, k, v = (
        np.stack(np.split(part, heads, axis=-1), axis=1) for part in np.split(qkv, 3, axis=-1)
    )  # each (N, heads, L, E / heads)
    return np.concatenate(np.moveaxis(reference(q, k, v, bias, dropped, scale), 1, 0), axis=-1)


def kept(shape):
    return np.where(np.random.default_rng(0).random(shape) < 0.4, 0, 1 / 0.6)


def with_constants(operation, bias, dropped):
    """The operation with a mask and dropout that are no inputs."""

    def apply(*inputs, **options):
        kind = inputs[0].array.dtype
        constants = [None if c is None else c.astype(kind) for c in (bias, dropped)]
        return operation(*inputs, *constants, **options)

    return apply


def fixed(function, bias, dropped):
    def apply(*inputs, **options):
        return function(*inputs, bias, 1.0 if dropped is None else dropped, **options)

    return apply


def rows(operation, function, name, cases, bias, dropped, **options):
    return Row(
        with_constants(operation, bias, dropped),
        fixed(function, bias, dropped),
        cases,
        options,
        covers=name,
        lacks=LISTS,
    )


QKV = [((2, 4, 2), (2, 3, 2), (2, 3, 5)), ((4, 2), (3, 2), (3, 1)), ((2, 2, 4, 3), (2, 1, 3, 3), (2, 3, 2))]
EMPTY = [((0, 4, 2), (0, 3, 2), (0, 3, 5))]
ROWS = [
    rows(a.attention, reference, "attention", QKV + EMPTY, None, None, scale=0.7),
    rows(a.attention, reference, "attention", QKV + EMPTY, HIDDEN, None, scale=0.7),
    rows(a.attention, reference, "attention", QKV[:1], HIDDEN, kept((2, 4, 3)), scale=1.0),
    Row(
        lambda q, k, v, bias, scale: a.attention(q, k, v, bias, None, scale=scale),
        reference,
        [((2, 4, 2), (2, 3, 2), (2, 3, 5), (4, 3)), ((2, 4, 2), (2, 3, 2), (2, 3, 5), (2, 1, 3))],
        {"scale": 0.5},
        covers="attention",
    ),
    rows(a.self_attention, packed, "self_attention", [((2, 3, 12),), ((0, 3, 12),)], None, None, heads=2, scale=0.7),
    rows(a.self_attention, packed, "self_attention", [((2, 4, 9),)], HIDDEN[:, [0, 1, 2, 2]], None, heads=3, scale=1.0),
    rows(
        a.self_attention, packed, "self_attention", [((2, 3, 6),)], HIDDEN[:3], kept((2, 2, 3, 3)), heads=2, scale=1.0
    ),
    Row(
        lambda qkv, bias, heads, scale: a.self_attention(qkv, bias, None, heads=heads, scale=scale),
        packed,
        [((2, 3, 6), (2, 1, 1, 3)), ((2, 3, 6), (2, 3, 3))],
        {"heads": 2, "scale": 0.5},
        covers="self_attention",
    ),
]
