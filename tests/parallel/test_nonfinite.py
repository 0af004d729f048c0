"""NaN and infinity in gradients, on ranks that are threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import run_threads
from sorix_dist.parallel.reducers import is_finite
from tests.support.parallel import nonfinite

SIZES = [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (4, 2)]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("shards", [None, nonfinite.SHARDS], ids=["fast", "reproducible"])
@pytest.mark.parametrize(("size", "hosts"), SIZES)
@pytest.mark.parametrize(
    "check", [nonfinite.raises, nonfinite.skips, nonfinite.allows], ids=lambda check: check.__name__
)
def test_a_bad_row(check: Callable[[int], None], size: int, hosts: int, shards: int | None, accumulated: int) -> None:
    def work() -> None:
        if shards is not None:
            sx.init(virtual_shards=shards)
        with np.errstate(invalid="ignore"):
            check(accumulated)

    run_threads(work, size, timeout=60, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), SIZES)
@pytest.mark.parametrize(
    "check",
    [
        nonfinite.keeps_what_was_there,
        nonfinite.a_backward_that_raises_keeps_what_was_there,
        nonfinite.names_the_parameter,
        nonfinite.leaves_out_all_models_of_a_backward,
        nonfinite.asks_only_the_models_that_a_backward_reaches,
    ],
    ids=lambda check: check.__name__,
)
def test_other_ways(check: Callable[[], None], size: int, hosts: int) -> None:
    run_threads(check, size, timeout=60, hosts=hosts)


@pytest.mark.parametrize(("size", "hosts"), SIZES[1:])
def test_overflow_of_the_sum(size: int, hosts: int) -> None:
    run_threads(nonfinite.overflow_of_the_sum, size, timeout=60, hosts=hosts)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_what_is_finite(dtype: str) -> None:
    """Without a warning, also where the sum of squares overflows."""
    values = np.full(1000, np.finfo(dtype).max, dtype)
    with np.errstate(all="raise"):
        assert is_finite(values)
        assert is_finite(values[:0])
        for bad in (np.nan, np.inf, -np.inf):
            values[7] = bad
            assert not is_finite(values)


def test_bad_choice() -> None:
    with pytest.raises(ValueError, match="nonfinite must be 'raise', 'skip' or 'allow', got 'ignore'"):
        sx.DistributedDataParallel(sx.nn.Linear(2, 2), nonfinite="ignore")  # type: ignore[arg-type]
