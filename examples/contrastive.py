"""Learns features of digits without their labels: two noisy views of an image should be alike, and unlike those of all
other images of the global batch. Every rank sees the negatives of all ranks, so the loss is that of one process.

python examples/contrastive.py
sorix-dist run -n 4 examples/contrastive.py

The loss is InfoNCE (van den Oord et al. 2018), as in CLIP. The features are judged by their nearest neighbours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader

DIGITS = Path(__file__).parent / "data" / "digits.npz"
TEMPERATURE = 0.2


class Views:
    """Two views of each image: moved by up to a pixel, with noise, drawn by the image's number and the epoch."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.epoch = images.reshape(-1, 8, 8), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([0, self.epoch, i])
        return self.view(i, rng), self.view(i, rng)

    def view(self, i: int, rng: np.random.Generator) -> np.ndarray:
        moved = np.roll(self.images[i], rng.integers(-1, 2, 2), (0, 1))
        return (moved + 0.2 * rng.standard_normal((8, 8))).astype(np.float32).reshape(64)


def neighbours_agree(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose nearest other image, by the cosine of their features, has the same label."""
    model.eval()
    with sx.no_grad():
        features = model(sx.tensor(images)).numpy()
    model.train()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -1)
    return float((labels[similarity.argmax(1)] == labels).mean())


def unit(x: sx.Tensor) -> sx.Tensor:
    """The rows at length 1."""
    return x / (x**2).sum(1, keepdim=True) ** 0.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=10)
    args = options.parse_args()

    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        images, labels = file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64)
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)))
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(Views(images), batch_size=256, shuffle=True)
    sx.print(f"before: {neighbours_agree(model.module, images, labels):.1%} of nearest neighbours have the same label")
    for epoch in range(args.epochs):
        mean_loss = sx.metrics.Mean()
        for first, second in loader:
            optimizer.zero_grad()
            a, b = unit(model(first)), unit(model(second))
            logits = a @ sx.global_value(b).T / TEMPERATURE  # my rows beside the views of all ranks
            loss = (logits.logsumexp(1) - (a * b).sum(1) / TEMPERATURE).mean()
            loss.backward()
            optimizer.step()
            mean_loss.update(loss.item(), len(first))
        sx.print(f"epoch {epoch + 1:2d}  loss {mean_loss.compute():.4f}")
    sx.print(f"after: {neighbours_agree(model.module, images, labels):.1%}")


if __name__ == "__main__":
    main()
