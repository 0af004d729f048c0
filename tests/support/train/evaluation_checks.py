"""What evaluation must give on any number of ranks, as checks that every rank of a communicator runs."""

from __future__ import annotations

from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn
from sorix_dist.utils.data import DataLoader, Dataset


def model_and_data(rows: int) -> tuple[nn.Module, Any, Any]:
    sx.manual_seed(0)
    numbers = np.random.default_rng(rows)
    model = sx.DistributedDataParallel(
        nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    )
    return model, numbers.standard_normal((rows, 3)).astype(np.float32), numbers.integers(0, 4, rows)


def whole(model: Any, x: Any) -> Any:
    """What the bare model gives for all rows at once."""
    bare = model.module
    modes = [module.training for module in bare.modules()]
    bare.eval()
    with sx.no_grad():
        found = bare(sx.tensor(x)).numpy()
    for module, mode in zip(bare.modules(), modes):
        module.training = mode
    return found


def metrics_and_loss(rows: int) -> None:
    model, x, y = model_and_data(rows)
    loader = DataLoader(Dataset(x, y), batch_size=5, shuffle=True, drop_last=rows >= 5)
    logits = whole(model, x)
    weight = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    found = sx.evaluate(model, loader, [sx.metrics.Accuracy(), sx.metrics.F1(4), nn.CrossEntropyLoss()])
    assert found["accuracy"] == (logits.argmax(1) == y).mean()
    assert 0 <= found["f1"] <= 1
    wanted = nn.functional.cross_entropy(sx.tensor(logits), sx.tensor(y)).item()
    assert np.isclose(found["loss"], wanted, rtol=1e-5)
    if rows <= 5:  # one batch
        criterion = nn.CrossEntropyLoss(weight=sx.tensor(weight))
        wanted = criterion(sx.tensor(logits), sx.tensor(y)).item()
        assert np.isclose(sx.evaluate(model, loader, {"weighted": criterion})["weighted"], wanted, rtol=1e-5)
    assert all(module.training for module in model.modules())
    assert loader.epoch == 0


def predictions(rows: int) -> None:
    model, x, y = model_and_data(rows)
    wanted = whole(model, x)
    shuffled = DataLoader(Dataset(x, y), batch_size=4, shuffle=True)
    next(iter(shuffled))
    state = shuffled.state_dict()
    everywhere = sx.predict(model, shuffled, everywhere=True)
    on_rank_0 = sx.predict(model, DataLoader(Dataset(x), batch_size=7))
    assert np.allclose(everywhere, wanted, atol=1e-6)
    assert (on_rank_0 is None) == bool(sx.rank())
    assert on_rank_0 is None or np.allclose(on_rank_0, wanted, atol=1e-6)
    labels = sx.predict(model, shuffled, everywhere=True, step=lambda m, batch: m(batch[0]).argmax(dim=1))
    assert np.array_equal(labels, everywhere.argmax(1))
    own = sx.predict(model, DataLoader(Dataset(x), batch_size=7, shard=False), everywhere=True)
    assert np.allclose(own, wanted, atol=1e-6)
    assert shuffled.state_dict() == state


CHECKS = [metrics_and_loss, predictions]
