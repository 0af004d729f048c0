"""torch.distributed's names, on one process and on thread ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import sorix_dist as sx
import sorix_dist.distributed as dist
from sorix_dist.comm import run_threads


def work() -> dict[str, Any]:
    dist.init_process_group("gloo", init_method="env://", timeout=timedelta(seconds=60), world_size=sx.size())
    rank, size = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {"rank": rank, "size": size}
    for op in dist.ReduceOp:
        x = sx.tensor([1.0 + rank, 4.0 - rank])
        assert dist.all_reduce(x, op) is None
        found[op.name] = x.tolist()
    x = sx.tensor([rank + 5])
    dist.broadcast(x, src=size - 1)
    parts = [sx.zeros(2) for _ in range(size)]
    dist.all_gather(parts, sx.tensor([rank, -rank]))
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    sent = [rank, "x"] if rank == 0 else [None, None]
    dist.broadcast_object_list(sent)
    dist.barrier()
    dist.destroy_process_group()
    found |= {"broadcast": x.tolist(), "parts": [part.tolist() for part in parts], "objects": objects, "sent": sent}
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_collectives(size: int) -> None:
    ranks = np.arange(size)
    for rank, found in enumerate(run_threads(work, size, timeout=60)):
        assert found == {
            "rank": rank,
            "size": size,
            "SUM": [sum(1.0 + ranks), sum(4.0 - ranks)],
            "AVG": [np.mean(1.0 + ranks), np.mean(4.0 - ranks)],
            "MAX": [max(1.0 + ranks), 4.0],
            "MIN": [1.0, min(4.0 - ranks)],
            "broadcast": [size + 4],
            "parts": [[float(r), -float(r)] for r in ranks],
            "objects": [{"rank": r} for r in ranks],
            "sent": [0, "x"],
        }


def test_the_mean_of_a_global_loss_is_the_loss() -> None:
    """Scripts that average the loss over the ranks by hand stay right."""
    x, y = np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(7, dtype=np.float32)[:, None]

    def train() -> float:
        sx.manual_seed(1)
        model = sx.DistributedDataParallel(sx.nn.Linear(2, 1))
        (batch,) = sx.utils.data.DataLoader(sx.utils.data.Dataset(x, y), batch_size=7)
        loss = ((model(batch[0]) - batch[1]) ** 2).mean()
        loss.backward()
        average = loss.detach()
        dist.all_reduce(average)
        return float(average) / dist.get_world_size()

    (whole,) = run_threads(train, 1, timeout=60)
    assert run_threads(train, 3, timeout=60) == pytest.approx([whole] * 3, rel=1e-6)


def test_the_group_may_follow_init() -> None:
    assert run_threads(lambda: (sx.init(virtual_shards=4), dist.init_process_group("gloo"), sx.size())[2], 2) == [2, 2]


def test_wrong_calls_name_what_helps() -> None:
    for call, words in [
        (lambda: dist.init_process_group("gloo", world_size=4), "world_size is 1 here, got 4; .*sorix-dist run -n 4"),
        (lambda: dist.init_process_group("gloo", rank=2), "rank is 0 here, got 2"),
        (lambda: dist.all_reduce(sx.ones(1), "product"), "op must be one of ReduceOp.SUM, .*'product'"),
        (lambda: dist.all_reduce(sx.ones(1), async_op=True), "async_op must be False"),
        (lambda: dist.all_reduce(np.ones(1)), "tensor must be a tensor, got ndarray"),
        (lambda: dist.all_gather([], sx.ones(1)), "tensor_list must have an entry for each of 1 ranks, got 0"),
        (lambda: dist.get_rank("group"), "group must be None"),
        (lambda: dist.new_group([0]), "has no 'new_group'; there is "),
    ]:
        with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError), match=words):
            call()
