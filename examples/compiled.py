"""Trains digits with a captured step, beside the same step as it is, and prints the program that was captured.

python examples/compiled.py
sorix-dist run -n 2 examples/compiled.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"


def train(data: Dataset, epochs: int, capture: bool) -> tuple[bytes, float, str]:
    """The weights after training, steps a second without the first epoch, and the captured program."""
    sx.manual_seed(0)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step(xb: sx.Tensor, yb: sx.Tensor) -> sx.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(xb), yb)
        loss.backward()
        optimizer.step()
        return loss

    run = sx.compile(step) if capture else step
    steps, seconds = 0, 0.0
    loader = DataLoader(data, batch_size=64, shuffle=True)
    for epoch in range(epochs):
        for xb, yb in loader:
            began = time.perf_counter()
            run(xb, yb)
            if epoch:
                steps, seconds = steps + 1, seconds + time.perf_counter() - began
    weights = b"".join(np.ascontiguousarray(value).tobytes() for value in model.state_dict().values())
    return weights, steps / max(seconds, 1e-9), getattr(run, "source", "")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=40)
    args = options.parse_args()
    with np.load(DIGITS) as file:
        data = Dataset(file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64))
    eager, speed, _ = train(data, args.epochs, capture=False)
    captured, faster, source = train(data, args.epochs, capture=True)
    sx.print(source)
    sx.print(f"as it is {speed:,.0f} steps/s, captured {faster:,.0f} steps/s, the same weights: {eager == captured}")


if __name__ == "__main__":
    main()
