"""sx.evaluate and sx.predict: the same on any number of ranks, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.comm import run_threads
from sorix_dist.utils.data import DataLoader, Dataset
from tests.support.train import evaluation_checks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("check", evaluation_checks.CHECKS, ids=lambda check: check.__name__)
def test_equal_to_one_process(check: Callable[[int], None], size: int) -> None:
    def work() -> None:
        for rows in (1, 2, 5, 13):
            check(rows)

    run_threads(work, size, timeout=100)


def test_same_bits_in_reproducible_mode() -> None:
    def work() -> tuple[float, bytes]:
        sx.init(virtual_shards=4)
        model, x, y = evaluation_checks.model_and_data(13)
        loader = DataLoader(Dataset(x, y), batch_size=5)
        found = sx.predict(model, loader, everywhere=True)
        assert found is not None
        return sx.evaluate(model, loader, nn.CrossEntropyLoss())["loss"], found.tobytes()

    assert len({each for size in (1, 2, 3, 4) for each in run_threads(work, size, timeout=60)}) == 1


def test_frozen_layers_stay_in_evaluation() -> None:
    model, x, y = evaluation_checks.model_and_data(6)
    frozen = model.module[1].eval()
    sx.evaluate(model, DataLoader(Dataset(x, y)), sx.metrics.Accuracy())
    assert not frozen.training
    assert model.module[2].training


def test_other_batches() -> None:
    model, x, y = evaluation_checks.model_and_data(6)
    batches = [{"x": sx.tensor(x), "y": sx.tensor(y)}]
    accuracy = sx.metrics.Accuracy()
    accuracy.update(np.zeros(3, np.int64), np.ones(3, np.int64))  # is forgotten
    found = sx.evaluate(model, batches, {"a": accuracy}, step=lambda model, batch: (model(batch["x"]), batch["y"]))
    assert found == sx.evaluate(model, DataLoader(Dataset(x, y)), {"a": sx.metrics.Accuracy()})
    with pytest.raises(TypeError, match=r"a batch must be \(inputs ..., target\), got dict; step="):
        sx.evaluate(model, batches, accuracy)


def test_wrong_arguments() -> None:
    model, x, y = evaluation_checks.model_and_data(6)
    loader = DataLoader(Dataset(x, y))
    with pytest.raises(TypeError, match="metrics must be objects, got the class Accuracy; make one"):
        sx.evaluate(model, loader, {"a": sx.metrics.Accuracy})
    with pytest.raises(TypeError, match="metrics must be metrics or criteria, got int for 'loss'"):
        sx.evaluate(model, loader, 3)
    with pytest.raises(ValueError, match="metrics of one class need names"):
        sx.evaluate(model, loader, [sx.metrics.Accuracy(), sx.metrics.Accuracy(top_k=2)])
    with pytest.raises(TypeError, match="loader must be a DataLoader, got list"):
        sx.predict(model, [x])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must give a tensor with one row a sample, got tuple; step="):
        sx.predict(model, loader, step=lambda model, batch: (1, 2))
    with pytest.raises(ValueError, match="must give one row a sample, got 1 rows for 6 samples"):
        sx.predict(model, loader, step=lambda model, batch: model(batch[0]).sum(dim=0, keepdim=True))
