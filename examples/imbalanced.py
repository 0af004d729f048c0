"""Trains on digits with few nines and some missing labels. With class weights and ignored labels, no rank knows the
denominator of the mean. The step is that of one process; averaging the ranks' own means gives another one.

python examples/imbalanced.py
sorix-dist run -n 4 examples/imbalanced.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"
MISSING = -1


def rare(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One nine in ten, and a label in ten missing, always the same ones."""
    rng = np.random.default_rng(0)
    keep = (labels != 9) | (rng.random(len(labels)) < 0.1)
    images, labels = images[keep], labels[keep].copy()
    labels[rng.random(len(labels)) < 0.1] = MISSING
    return images, labels


def gradient_norms(model: nn.Module, loss: nn.Module, xb: sx.Tensor, yb: sx.Tensor) -> tuple[float, float]:
    """The norm of the global batch's gradient, and of the mean over ranks of each rank's own gradient."""
    model.zero_grad()
    loss(model(xb), yb).backward()
    right = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
    bare = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    bare.load_state_dict(model.module.state_dict())
    loss(bare(sx.tensor(xb.numpy())), sx.tensor(yb.numpy())).backward()
    own = np.concatenate([p.grad.numpy().ravel() for p in bare.parameters()])
    return float(np.linalg.norm(right)), float(np.linalg.norm(sx.all_reduce(own / sx.size())))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=15)
    args = options.parse_args()

    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        x, y = file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64)
        train, test = file["train"], file["test"]
    images, labels = rare(x[train], y[train])
    counts = np.bincount(labels[labels != MISSING], minlength=10)
    weight = (counts.sum() / (10 * counts)).astype(np.float32)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=MISSING)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(Dataset(images, labels), batch_size=64, shuffle=True)

    xb, yb = next(iter(loader))
    right, mean_of_means = gradient_norms(model, criterion, xb, yb)
    sx.print(f"gradient of the first batch {right:.6f}; the mean over ranks of their own {mean_of_means:.6f}")
    for _ in range(args.epochs):
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = criterion(model(xb), yb)
            loss.backward()
            optimizer.step()
    confusion = sx.metrics.ConfusionMatrix(10)
    model.eval()
    with sx.no_grad():
        for xb, yb in DataLoader(Dataset(x[test], y[test]), batch_size=64):
            confusion.update(model(xb), yb)
    matrix = confusion.compute()
    recall = matrix.diagonal() / matrix.sum(1)
    sx.print(f"last loss {loss.item():.5f}  recall of nines {recall[9]:.1%}, of all classes {recall.mean():.1%}")


if __name__ == "__main__":
    main()
