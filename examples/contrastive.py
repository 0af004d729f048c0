"""Learns features of digits without their labels: two noisy views of an image should be alike, and unlike those of all
other images of the global batch. Every rank sees the negatives of all ranks, so the loss is that of one process.

python examples/contrastive.py
sorix-dist run -n 4 examples/contrastive.py

The loss is InfoNCE (van den Oord et al. 2018), as in CLIP. The features are judged by the neighbours of moved images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, SampleRandom, TensorDataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"
TEMPERATURE = 0.2


def view(images: np.ndarray, draw: SampleRandom) -> np.ndarray:
    """Images (n, 8, 8) moved by up to a pixel, with noise, as rows of 64 numbers."""
    moved = draw.crop(images, 8, padding=1)
    return (moved + 0.1 * draw.normal(8, 8)).reshape(-1, 64)


def two_views(images: np.ndarray, draw: SampleRandom) -> tuple[np.ndarray, np.ndarray]:
    """What a batch becomes: drawn by the image's number and the epoch, so the same on any split."""
    return view(images, draw), view(images, draw)


def neighbours_agree(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images, moved to the right by a pixel, whose nearest other image has the same label.

    The nearest one has the largest cosine of its features with those of the moved image.
    """
    moved = np.roll(images, 1, 2)
    model.eval()
    with sx.no_grad():
        one, other = (unit(model(sx.tensor(x.reshape(-1, 64)))).numpy() for x in (moved, images))
    model.train()
    similarity = one @ other.T
    np.fill_diagonal(similarity, -1)
    return float((labels[similarity.argmax(1)] == labels).mean())


def unit(x: sx.Tensor) -> sx.Tensor:
    """The rows at length 1."""
    return x / (x**2).sum(1, keepdim=True) ** 0.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=40)
    args = options.parse_args()

    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        images, labels = file["images"].reshape(-1, 8, 8) / 16, file["labels"].astype(np.int64)
    # In float64, so that rounding, which is another one on each number of ranks, does not grow into other digits.
    model = sx.DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).double())
    optimizer = optim.Adam(model.parameters(), lr=4e-3)
    loader = DataLoader(TensorDataset(images), batch_size=256, shuffle=True, batch_transform=two_views)
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
