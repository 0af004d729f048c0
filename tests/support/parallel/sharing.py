"""What `host_shared` promises, as checks that every rank of a communicator runs."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist.comm import shared_memory
from sorix_dist.utils.data import DataLoader, Dataset


def one_array_for_a_host() -> None:
    calls: list[int] = []

    def make() -> Any:
        calls.append(sx.rank())
        return np.arange(12.0).reshape(3, 4)

    array = sx.host_shared(make)
    ranks = sx.parallel.world()
    assert calls == ([ranks.rank] if ranks.local_rank == 0 else [])
    assert type(array) is np.ndarray
    assert np.array_equal(array, np.arange(12.0).reshape(3, 4))
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        array.setflags(write=True)


def the_memory_is_the_same() -> None:
    """What one rank of the host writes behind the arrays, all of them read."""
    array = sx.host_shared(lambda: np.zeros(5, np.int64))
    ranks = sx.parallel.world()
    if ranks.local_rank == ranks.local_size - 1:
        array.base.base.memory[:40].view(np.int64)[:] = 7 + ranks.host
    ranks.barrier()
    assert array.tolist() == [7 + ranks.host] * 5
    ranks.barrier()


def structures_keep_their_form() -> None:
    def make() -> Any:
        return {
            "images": np.arange(24, dtype=np.float32).reshape(2, 3, 4).T,
            "pair": (np.arange(3, dtype=np.uint8), [np.zeros((0, 2)), np.array(5)]),
            "names": ["a", "b"],
            "records": np.array([(1, 2.0)], dtype=[("n", "i4"), ("v", "f8")]),
        }

    wanted, got = make(), sx.host_shared(make)
    assert got.keys() == wanted.keys()
    assert np.array_equal(got["images"], wanted["images"])
    assert got["images"].shape == (4, 3, 2)
    first, (empty, number) = got["pair"]
    assert first.tolist() == [0, 1, 2]
    assert first.dtype == np.uint8
    assert empty.shape == (0, 2)
    assert number.shape == ()
    assert number == 5
    assert got["names"] == ["a", "b"]
    assert got["records"]["v"].tolist() == [2.0]
    assert sx.host_shared(lambda: np.zeros((0, 3))).shape == (0, 3)


def a_view_keeps_the_memory() -> None:
    """Under MPI, whose windows all ranks free together."""
    ranks, live = sx.parallel.world(), shared_memory.live
    gc.collect()
    sx.host_shared(lambda: np.zeros(1))
    before = len(live)
    view = sx.host_shared(lambda: np.arange(1000))[500:503]
    for _ in range(3):
        sx.host_shared(lambda: np.zeros(1))
        assert len(live) == before + (before > 0)  # the view's, and that of this call
    assert view.tolist() == [500, 501, 502]
    if ranks.rank == ranks.size - 1:
        del view  # one rank alone gives nothing back
    ranks.barrier()
    sx.host_shared(lambda: np.zeros(1))
    assert len(live) == before + (before > 0 and ranks.size > 1)
    if ranks.rank != ranks.size - 1:
        assert view.tolist() == [500, 501, 502]
        del view
    ranks.barrier()
    sx.host_shared(lambda: np.zeros(1))
    assert len(live) == before


def a_data_set_of_it() -> None:
    x, y = sx.host_shared(lambda: (np.random.default_rng(1).random((50, 3)), np.arange(50)))
    data = Dataset(x, y)
    assert np.shares_memory(data.X, x)
    seen = [i for _, yb in DataLoader(data, 7, shuffle=True, seed=1) for i in yb.tolist()]
    assert sorted(i for part in sx.all_gather(seen) for i in part) == list(range(50))


def errors_reach_all_ranks() -> None:
    def fail() -> Any:
        raise KeyError("no such file")

    def tensor() -> Any:
        return {"x": sx.tensor([1.0])}

    for make, own, said in [
        (fail, KeyError, "no such file"),
        (tensor, TypeError, "make must return arrays of numbers, got a Tensor"),
        (lambda: np.array([None]), TypeError, "make must return arrays of numbers, got an array of object"),
        (lambda: 3, TypeError, "make must return an array, or a tuple, list or dict of arrays, got int"),
        (lambda: (np.zeros(2), lambda: 3), Exception, "pickle|local"),
    ]:
        with pytest.raises(own, match=said) as caught:
            sx.host_shared(make)
        if sx.local_rank():
            assert "raised on rank 0 of" in caught.value.__notes__[1]
            assert "Traceback" in caught.value.__notes__[0]
            assert make is not fail or "in fail" in caught.value.__notes__[0]
    assert sx.host_shared(lambda: np.ones(2)).tolist() == [1, 1]


CHECKS = [
    one_array_for_a_host,
    the_memory_is_the_same,
    structures_keep_their_form,
    a_view_keeps_the_memory,
    a_data_set_of_it,
    errors_reach_all_ranks,
]
