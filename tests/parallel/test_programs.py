"""Whole training programs: the losses, weights and stored values of one process on any number of ranks, or an error."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.parallel.everywhere import on_all_ranks
from tests.support.parallel.programs import PROGRAMS, results

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def of_one_process(name):
    return run_threads(results, 1, args=(name, True, None))[0]


def assert_close(found, wanted, tolerance):
    for ours in found:
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROGRAMS)
def test_several_ranks(name):
    if PROGRAMS[name].refused:
        on_all_ranks(lambda: results(name, False, None), (RuntimeError, ValueError), PROGRAMS[name].refused, 2)
        return
    for size in (1, 3):
        assert_close(run_threads(results, size, args=(name, False, None), timeout=60), of_one_process(name), 1e-10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_reproducible_mode(name):
    """The same bits on every number of ranks, or an error."""
    if PROGRAMS[name].reproducible:
        on_all_ranks(lambda: results(name, False, 4), (RuntimeError, ValueError), PROGRAMS[name].reproducible, 2)
        return
    bits = set()
    for size in (1, 2):
        found = run_threads(results, size, args=(name, False, 4), timeout=60)
        assert_close(found, of_one_process(name), 1e-8)
        bits |= {tuple(x.tobytes() for x in ours) for ours in found}
    assert len(bits) == 1


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if not program.refused])
def test_captured_steps(name):
    """The bits of the steps that run as they are, also after the replays that are audited."""
    for size in (1, 2):
        eager, captured = (
            run_threads(results, size, args=(name, False, None, captured, 4), timeout=60) for captured in (False, True)
        )
        for ours, wanted in zip(captured, eager, strict=True):
            assert [x.tobytes() for x in ours] == [x.tobytes() for x in wanted]


X = np.random.default_rng(0).standard_normal((3, 3))


def outputs():
    ((x, _),) = DataLoader(Dataset(X, X), batch_size=3)
    return sx.DistributedDataParallel(nn.Linear(3, 1).double())(x)[:, 0]


@pytest.mark.parametrize("number", [float, bool, lambda x: x.item(), lambda x: f"{x:.3f}"])
def test_one_row_on_each_rank_is_no_number(number):
    on_all_ranks(lambda: number(outputs()), ValueError, "one of the 3 rows of the batch")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_number_of_a_sum_over_rows_is_said_to_be_this_ranks(ranks):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_threads(lambda: (outputs() > 0).sum().item(), ranks)
    assert any("sx.global_value(x).item() is the whole" in str(w.message) for w in said) == (ranks > 1)
