"""What all ranks see of checkpoints, though only one of them touches the disk: on threads and under mpirun."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.comm import current
from tests.support.train.faults import Counting, fails
from tests.support.train.saving import Part, damage


def on_ranks(folder: Path) -> None:
    rank, size = current().rank, current().size
    model = sx.DistributedDataParallel(nn.Linear(3, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    checkpointer = sx.Checkpointer(folder, keep=2)
    assert checkpointer.load_latest(model=model) is None
    paths = {str(checkpointer.save(step, model=model, optimizer=optimizer, best=step / 2)) for step in range(3)}
    assert sx.all_gather(sorted(paths)) == [sorted(paths)] * size
    weights = model.module.W.numpy().copy()
    with model.edit():
        model.module.W.data[...] = 7
    assert checkpointer.load_latest(model=model, optimizer=optimizer) == {"step": 2, "best": 1.0}
    assert np.array_equal(model.module.W.numpy(), weights)
    assert checkpointer.steps() == [1, 2]

    # Errors that only rank 0 meets are everybody's.
    if rank == 0:
        checkpointer.folder.files = Counting(1, fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        checkpointer.save(3, model=model)
    assert caught.value.errno == errno.ENOSPC
    assert rank == 0 or f"raised on rank 0 of {size}" in caught.value.__notes__
    with pytest.raises(TypeError, match="got set"):
        checkpointer.save(3, value={1} if rank == 0 else 3)
    assert checkpointer.steps() == [1, 2]

    # Nor do ranks part when only one of them has the error.
    if size > 1:
        with pytest.raises(ValueError, match=r"rank 0 has step 0, rank 1 has step 1"):
            checkpointer.save(rank)
        with pytest.raises(ValueError, match=r"rank 0 has 'a0', rank 1 has 'a1'"):
            checkpointer.save(3, **{f"a{rank}": 1})
        with pytest.raises(ValueError, match="does not fit rank 1"):
            checkpointer.load_latest(model=Picky(rank))

    sx.barrier()
    if rank == 0:
        for path in sorted(folder.iterdir())[-1:]:
            damage(path)
    sx.barrier()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert checkpointer.load_latest(model=model) == {"step": 1, "best": 0.5}
        sx.barrier()
    if rank == 0:
        for path in folder.iterdir():
            damage(path, -9)
    sx.barrier()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="none of the checkpoints in"):
            checkpointer.load_latest(model=model)
        sx.barrier()


class Picky(Part):
    """A part that rank 1 can't load."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.rank == 1:
            raise ValueError("does not fit rank 1")


def threads_on_ranks(folder: Path) -> None:
    rank = current().rank
    checkpointer = sx.Checkpointer(folder, async_save=True)
    checkpointer.save(1, part=Part(1, 100))
    checkpointer.wait()
    if rank == 0:
        checkpointer.folder.files = Counting(1, fails(errno.ENOSPC))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        checkpointer.save(2, part=Part(2, 100))
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save(3, part=Part(3, 100))
        sx.barrier()
    checkpointer.wait()
    assert checkpointer.load_latest() == {"step": 1}
