"""Checks a function on pretended ranks against one process: its value, first and second derivatives."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorix_dist.core import Tensor, grad
from sorix_dist.core.placement import Partial, Shard
from tests.support.core.pretended import Rank, agreed, run

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-11
SPLITS = {
    0: [[0, 0]],
    1: [[1, 0], [0, 1], [0, 1, 0]],
    2: [[1, 1], [2, 0], [0, 1, 1]],
    3: [[2, 1], [0, 3], [1, 0, 2], [1, 1, 1]],
    4: [[2, 2], [3, 1], [4, 0], [0, 1, 3], [1, 1, 1, 1]],
    11: [[6, 5], [11, 0], [1, 10], [4, 4, 3], [0, 9, 2]],
}


def splits(rows: int) -> list[list[int]]:
    """Ways to share rows out between two to four ranks, evenly and not, with ranks that have none or one."""
    found = SPLITS.get(rows)
    return [[rows // 2, rows - rows // 2], [rows, 0], [1, 0, rows - 1]] if found is None else found


def outcome(function: Callable[..., Any], arrays: Sequence[Any], placements: Sequence[str], rank: Rank) -> list[Any]:
    """On one rank the value, or values, of a function of the placed arrays, their first derivatives in a random
    direction, and the second ones. Arrays of integers and bools have none; None stays None."""
    inputs = [
        None if a is None else rank.tensor(a, p, a.dtype.kind == "f") for a, p in zip(arrays, placements, strict=True)
    ]
    answer = function(*inputs)
    values = [
        v if isinstance(v, Tensor) else Tensor(v) for v in (answer if isinstance(answer, tuple | list) else [answer])
    ]
    results = list(values)
    smooth = [v for v in values if v.requires_grad]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    if smooth:
        loss = _sum([_head(v, rank) for v in smooth])
        first = list(grad(loss, wanted, create_graph=True, allow_unused=True))
        results += [_filled(g, x) for g, x in zip(first, wanted, strict=True)]
        slopes = [(g * rank.beside(_numbers(_extents(g), i), g)).sum() for i, g in enumerate(first) if g is not None]
        curved = _sum(slopes)
        if curved.requires_grad:
            second = grad(curved, wanted, allow_unused=True)
            results += [_filled(g, x) for g, x in zip(second, wanted, strict=True)]
    return [Tensor(rank.whole(t)) if isinstance(t.place, Partial) else t for t in results]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _head(value: Tensor, rank: Rank) -> Tensor:
    weights = rank.beside(_numbers(_extents(value), 77), value)
    return (value * weights).sum() + (value * value).sum() * 0.3


def _extents(x: Tensor) -> tuple[int, ...]:
    place = x.place
    shape = x.array.shape
    return (*shape[: place.axis], place.total, *shape[place.axis + 1 :]) if isinstance(place, Shard) else shape


def _numbers(shape: tuple[int, ...], seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).uniform(0.5, 1.5, shape))


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, zeros if there is none."""
    if gradient is not None:
        return gradient
    zeros = Tensor(np.zeros(like.array.shape))
    zeros.place = like.place if isinstance(like.place, Shard) else None
    return zeros


def on_one_process(function: Callable[..., Any], arrays: Sequence[Any]) -> list[Any]:
    """What comes of a function of arrays without placements."""
    (expected,) = run(lambda rank: outcome(function, arrays, [""] * len(arrays), rank), [1])
    if isinstance(expected, Exception):
        raise expected
    return expected  # type: ignore[no-any-return]


def check(
    function: Callable[..., Any],
    arrays: Sequence[Any],
    placements: Sequence[str],
    counts: Sequence[int],
    shards: Sequence[int] | None = None,
    expected: list[Any] | None = None,
) -> bool:
    """Whether the function gives on ranks with `counts` rows what it gives in one process; False if all ranks refuse.

    shards: rows of the virtual shards of reproducible mode; expected: what `on_one_process` has given.
    AssertionError if anything differs, if only some ranks refuse, or if one waits in vain.
    """
    expected = on_one_process(function, arrays) if expected is None else expected
    outcomes = run(lambda rank: (rank, outcome(function, arrays, placements, rank)), counts, shards)
    results = agreed(outcomes)
    if results is None:
        return False
    for rank, got in results:
        assert len(got) == len(expected), "there are second derivatives on one side only"
        for i, (x, whole) in enumerate(zip(got, expected, strict=True)):
            where = f"result {i} on rank {rank.number}, {x.place}"
            if isinstance(x.place, Shard) and not x.place.batch.in_order:
                continue
            assert _extents(x) == whole.array.shape, where
            wanted = rank.beside(whole.array, x).array
            assert x.array.dtype == wanted.dtype, where
            if wanted.size:
                finite = whole.array[np.isfinite(whole.array)] if whole.array.dtype.kind == "f" else whole.array
                scale = max(1.0, float(np.abs(finite.astype(float)).max(initial=0)))
                np.testing.assert_allclose(x.array, wanted, rtol=0, atol=TOLERANCE * scale, err_msg=where)
    return True


def placements_of(arrays: Sequence[Any], most: int, seed: str) -> list[tuple[list[str], int]]:
    """Placements of some arrays with the number of rows that they share: each axis of each array in turn as rows, also
    merged with others; each as a part of a sum; and pairs of them; at most so many, chosen by `seed`."""
    choices: list[list[tuple[str, int | None]]] = []
    for array in arrays:
        mine: list[tuple[str, int | None]] = [("", None)]
        if array is not None:
            mine += [("partial", None)] if array.dtype.kind == "f" else []
            for axis, length in enumerate(array.shape):
                mine.append((str(axis), length))
                if length and length % 2 == 0:
                    mine += [(f"{axis} 2 1", length // 2), (f"{axis} 1 2", length // 2)]
        choices.append(mine)
    found = []
    for combination in itertools.product(*choices) if len(arrays) <= 3 else _singles(choices):
        rows = {n for _, n in combination if n is not None}
        if len(rows) > 1 or all(p == "" for p, _ in combination):
            continue
        if rows == {1} and any(a is not None and not a.size for a in arrays):
            continue  # no elements beside a single row may be those of a rank without it
        found.append(([p for p, _ in combination], rows.pop() if rows else 3))
    if len(found) > most:
        rng = np.random.default_rng(zlib.crc32(seed.encode()))
        found = [found[i] for i in sorted(rng.permutation(len(found))[:most])]
    return found


def _singles(choices: list[list[tuple[str, int | None]]]) -> Any:
    """One array placed, or two."""
    nothing = [("", None)] * len(choices)
    for i, mine in enumerate(choices):
        for choice in mine[1:]:
            yield [*nothing[:i], choice, *nothing[i + 1 :]]
            for j in range(i + 1, len(choices)):
                for other in choices[j][1:]:
                    yield [*nothing[:i], choice, *nothing[i + 1 : j], other, *nothing[j + 1 :]]
