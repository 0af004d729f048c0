"""Trains three models in reproducible mode and prints the SHA-256 of all that they have become.

The lines are the same on any number of ranks up to 8, under any MPI, and without one:

python examples/reproduce.py
mpirun -n 3 python examples/reproduce.py
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"


class Transformer(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        self.embed = nn.Linear(8, 32)
        self.encoder = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.encoder(self.embed(x.reshape(-1, 8, 8))).mean(axis=1))


def mlp() -> nn.Module:
    """Batch norm, whose statistics depend on the batch, and dropout, which is drawn."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": Transformer}


def train(name: str, steps: int, virtual_shards: int | None = 8) -> str:
    """The SHA-256 of weights, buffers and optimizer state after some steps on all 1,797 digits."""
    sx.init(virtual_shards=virtual_shards)
    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        images, labels = file["images"].reshape(-1, 64).astype(np.float32), file["labels"].astype(np.int64)
    model = sx.DistributedDataParallel(MODELS[name]())
    criterion = nn.CrossEntropyLoss(weight=np.linspace(0.5, 1.5, 10))
    if name == "transformer":
        optimizer: optim.Optimizer = optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(Dataset(images, labels), batch_size=61, shuffle=True)
    done = 0
    while done < steps:
        for xb, yb in loader:
            x = xb / 16
            optimizer.zero_grad()
            criterion(model(x.reshape(-1, 1, 8, 8) if name == "cnn" else x), yb).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
    return digest(model, optimizer)


def digest(model: nn.Module, optimizer: optim.Optimizer) -> str:
    """The SHA-256 of all numbers that the next step depends on."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    for number, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            found.update(f"{number} {name}".encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}; default: all")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--fast", action="store_true", help="not in reproducible mode, where bits depend on the ranks")
    args = options.parse_args()
    for name in args.models:
        if name not in MODELS:
            options.error(f"models must be among {', '.join(MODELS)}, got {name}")
        sx.print(f"{name:<11}  {train(name, args.steps, None if args.fast else 8)}")


if __name__ == "__main__":
    main()
