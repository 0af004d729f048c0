"""The memory of training steps of an MLP. Run by the interpreter of any library with these names:

    python memory.py LIBRARY SIZE-SIZE-... ROWS

prints, in bytes, what lives between steps and the peak within one, as tracemalloc knows from NumPy and Python.
"""

from __future__ import annotations

import importlib
import itertools
import json
import signal
import sys
import tracemalloc
from typing import Any

import numpy as np

WARM, STEPS = 3, 5


def measure(library: str, sizes: list[int], rows: int) -> dict[str, Any]:
    """Bytes that live between steps and the largest peak of some steps, without the batch."""
    package, nn, optim = (importlib.import_module(library + part) for part in ("", ".nn", ".optim"))
    generator = np.random.default_rng(0)
    x = package.tensor(generator.standard_normal((rows, sizes[0]), np.float32))
    y = package.tensor(generator.integers(0, sizes[-1], (rows, 1)))
    tracemalloc.start()
    modules = []
    for inputs, outputs in itertools.pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    model, criterion = nn.Sequential(*modules[:-1]), nn.CrossEntropyLoss()
    optimizer = optim.SGDMomentum(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(WARM):
        step()
    between = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(STEPS):
        step()
    version = getattr(package, "__version__", "")
    return {"version": version, "between": between, "peak": tracemalloc.get_traced_memory()[1]}


if __name__ == "__main__":
    signal.alarm(100)
    print(json.dumps(measure(sys.argv[1], [int(size) for size in sys.argv[2].split("-")], int(sys.argv[3]))))
