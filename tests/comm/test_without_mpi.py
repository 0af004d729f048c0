"""The whole package on one process needs no mpi4py."""

from __future__ import annotations

import sys

from tests.support.launching import run_command

BLOCKED = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mpi4py":
            raise ModuleNotFoundError("No module named 'mpi4py'", name="mpi4py")

sys.meta_path.insert(0, Missing())
try:
    import mpi4py
except ModuleNotFoundError:
    print("blocked")
"""

TRAINING = """
import numpy as np
import sorix_dist as sx
from sorix_dist.utils.data import DataLoader, Dataset

sx.manual_seed(0)
model = sx.DistributedDataParallel(sx.nn.Sequential(sx.nn.Linear(4, 8), sx.nn.ReLU(), sx.nn.Linear(8, 3)))
criterion = sx.nn.CrossEntropyLoss()
optimizer = sx.optim.SGD(model.parameters(), lr=0.5)
x = np.random.default_rng(0).standard_normal((90, 4)).astype("f4")
y = (x[:, 0] > 0).astype("i8") + (x[:, 1] > 0)
losses = []
for epoch in range(10):
    for xb, yb in DataLoader(Dataset(x, y), batch_size=45, shuffle=True):
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
assert losses[-1] < 0.6 * losses[0], losses
print("trained on", sx.size())
"""


def test_the_import_leaves_mpi4py_alone() -> None:
    script = "import sys, sorix_dist; print([name for name in sys.modules if name.startswith('mpi4py')])"
    ended = run_command([sys.executable, "-c", script])
    assert (ended.code, ended.out) == (0, "[]\n"), ended.err


def test_training_without_mpi4py() -> None:
    ended = run_command([sys.executable, "-c", BLOCKED + TRAINING])
    assert (ended.code, ended.out.split("\n")) == (0, ["blocked", "trained on 1", ""]), ended.err
