"""Tables through pandas: classifies tumours (breast cancer) and predicts the course of diabetes, with early stopping on
a validation part.

python examples/tabular.py
sorix-dist run -n 4 examples/tabular.py

Needs pandas and scikit-learn, which ships both data sets.
"""

from __future__ import annotations

import argparse
from copy import deepcopy

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

PATIENCE = 10


def parts(frame: pd.DataFrame, target: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test rows, standardised by the training rows, shuffled with a fixed seed."""
    frame = frame.sample(frac=1, random_state=0)
    y = frame.pop(target).to_numpy()
    x = frame.to_numpy(np.float32)
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    x = (x - x[:first].mean(0)) / x[:first].std(0)
    return [(x[rows], y[rows]) for rows in (slice(first), slice(first, second), slice(second, None))]


def train(model: nn.Module, criterion: nn.Module, train: Dataset, valid: Dataset, epochs: int) -> tuple[nn.Module, int]:
    """Trains until PATIENCE epochs bring no lower validation loss; the model of the best epoch, and its number."""
    model = sx.DistributedDataParallel(model)
    optimizer = optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    best, best_epoch, state = np.inf, 0, {}
    for epoch in range(epochs):
        for xb, yb in loader:
            optimizer.zero_grad()
            criterion(model(xb), yb).backward()
            optimizer.step()
        model.eval()
        with sx.no_grad():
            xv, yv = valid[:]
            loss = criterion(model(sx.tensor(xv)), yv).item()  # on all rows, so the same on every rank
        model.train()
        if loss < best:
            best, best_epoch, state = loss, epoch, deepcopy(model.state_dict())
        elif epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(state)
    return model.eval(), best_epoch + 1


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=100)
    args = options.parse_args()

    sx.manual_seed(0)
    training, valid, (x, y) = parts(load_breast_cancer(as_frame=True).frame, "target")
    network = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    model, epoch = train(network, nn.CrossEntropyLoss(), Dataset(*training), Dataset(*valid), args.epochs)
    with sx.no_grad():
        right = (model(sx.tensor(x)).numpy().argmax(1) == y).mean()
    sx.print(f"breast cancer: best epoch {epoch}, test accuracy {right:.1%}")

    frame = load_diabetes(as_frame=True).frame
    training, valid, (x, y) = ((x, y[:, None].astype(np.float32) / 100) for x, y in parts(frame, "target"))
    network = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
    model, epoch = train(network, nn.MSELoss(), Dataset(*training), Dataset(*valid), args.epochs)
    with sx.no_grad():
        error = ((model(sx.tensor(x)).numpy() - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    sx.print(f"diabetes: best epoch {epoch}, test R² {1 - error:.3f}")


if __name__ == "__main__":
    main()
