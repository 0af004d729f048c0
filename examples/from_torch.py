"""Takes a half-trained model from PyTorch, trains it on all ranks, and gives the weights back. Needs PyTorch.

python examples/from_torch.py
mpirun -n 4 python examples/from_torch.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

try:
    import torch
except ImportError:
    sx.print("from_torch.py needs PyTorch: pip install torch")
    sys.exit()

DIGITS = Path(__file__).parent / "data" / "digits.npz"


def network(nn: ModuleType) -> Any:
    """The same layers of either library, for images (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def main() -> None:
    with np.load(DIGITS) as file:
        x = file["images"].astype(np.float32).reshape(-1, 1, 8, 8) / 16
        y, train, test = file["labels"].astype(np.int64), file["train"], file["test"]

    # In PyTorch: an epoch. Every rank does the same here; a script of yours would read a file.
    torch.manual_seed(0)
    torch.set_num_threads(1)
    theirs = network(torch.nn)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=2e-3)
    for rows in np.array_split(np.random.default_rng(0).permutation(train), 15):
        their_optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(torch.tensor(x[rows])), torch.tensor(y[rows])).backward()
        their_optimizer.step()

    # Weights and the state of the optimizer in: names and layouts are PyTorch's.
    sx.manual_seed(0)
    model = network(nn)
    model.load_state_dict(theirs.state_dict())
    optimizer = optim.AdamW(model.parameters(), lr=2e-3)
    optimizer.load_state_dict(their_optimizer.state_dict())
    compare("before training", model, theirs, x[test], y[test])

    # Trained on, on all ranks.
    model = sx.DistributedDataParallel(model)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(Dataset(x[train], y[train]), batch_size=96, shuffle=True)
    for _ in range(5):
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = criterion(model(xb), yb)
            loss.backward()
            optimizer.step()

    # Weights out.
    state = {name: torch.from_numpy(array) for name, array in sx.to_torch_state(model).items()}
    theirs.load_state_dict(state)
    compare("after training", model, theirs, x[test], y[test])


def compare(when: str, ours: Any, theirs: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Prints how accurate the model is, and how far apart the two libraries' outputs are."""
    ours.eval(), theirs.eval()
    with sx.no_grad(), torch.no_grad():
        mine, other = ours(sx.tensor(x)).numpy(), theirs(torch.tensor(x)).numpy()
    ours.train(), theirs.train()
    difference = np.abs(mine - other).max()
    assert difference < 1e-4, difference
    sx.print(f"{when}: accuracy {(mine.argmax(1) == y).mean():.3f}, outputs of both libraries equal to 1e-4")


if __name__ == "__main__":
    main()
