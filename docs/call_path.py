"""Prints the path of a gradient: the files of the package that a backward and an optimizer's step go through, in order.

mpirun -n 2 python docs/call_path.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

PACKAGE = Path(sx.__file__).parent


def calls(steps: Any) -> dict[str, list[str]]:
    """The functions of the package that a function calls, by file, both in the order of their first call."""
    found: dict[str, list[str]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents and not frame.f_code.co_name.startswith("<"):
            names = found.setdefault(str(path.relative_to(PACKAGE)), [])
            if frame.f_code.co_qualname not in names:
                names.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        steps()
    finally:
        sys.setprofile(None)
    return found


def path_of_a_gradient() -> dict[str, list[str]]:
    """The calls of one backward and one step of the optimizer, when all buffers are made."""
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    data = Dataset(rng.standard_normal((32, 4)).astype(np.float32), rng.integers(0, 3, 32))
    found: dict[str, list[str]] = {}
    for xb, yb in DataLoader(data, batch_size=8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(xb), yb)
        found = calls(lambda loss=loss: (loss.backward(), optimizer.step()))
    return found


if __name__ == "__main__":
    for file, names in path_of_a_gradient().items():
        sx.print(f"{file}: {', '.join(names)}")
