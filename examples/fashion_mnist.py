"""Trains a small convolutional network on Fashion-MNIST: 60,000 images of clothes, flipped and moved at random.

python examples/fashion_mnist.py
sorix-dist run -n 2 examples/fashion_mnist.py

The data is Debian's package dataset-fashion-mnist, or the four files of Xiao et al. (2017) in a folder: --data DIR.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(path: Path) -> np.ndarray:
    """The array in a file of the IDX format: a magic number, the sizes, then bytes."""
    content = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


class Augmented:
    """Images flipped and moved by up to two pixels, drawn by number and epoch: the same on any split."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels, self.epoch = np.pad(images, ((0, 0), (2, 2), (2, 2))), labels, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.int64]:
        top, left, flip = np.random.default_rng([self.epoch, i]).integers((5, 5, 2))
        image = self.images[i, top : top + 28, left : left + 28]
        return scaled(image[:, ::-1] if flip else image), self.labels[i]


def scaled(images: np.ndarray) -> np.ndarray:
    """Bytes as float32 around zero, with an axis for the one channel."""
    return ((images.astype(np.float32) - 73) / 90)[..., None, :, :]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DEBIAN, help="the folder of the four .gz files")
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--rows", type=int, help="train on the first rows only")
    args = options.parse_args()
    if not (args.data / "train-images-idx3-ubyte.gz").exists():
        options.error(
            f"--data: there is no train-images-idx3-ubyte.gz in {args.data}; apt install dataset-fashion-mnist"
        )

    sx.manual_seed(0)
    images, labels, test_images, test_labels = sx.host_shared(
        lambda: tuple(
            idx(args.data / f"{part}-{kind}-ubyte.gz").astype(np.int64 if kind == "labels-idx1" else np.uint8)
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        )
    )
    images, labels = images[: args.rows], labels[: args.rows]
    model = sx.DistributedDataParallel(network())
    optimizer = optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    loader = DataLoader(Augmented(images, labels), batch_size=128, shuffle=True)
    steps = args.epochs * len(loader)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    test = DataLoader(Dataset(scaled(test_images), test_labels), batch_size=500)
    for epoch in range(args.epochs):
        started, mean_loss, accuracy = time.perf_counter(), sx.metrics.Mean(), sx.metrics.Accuracy()
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(xb), yb)
            loss.backward()
            optimizer.step()
            schedule.step()
            mean_loss.update(loss.item(), len(yb))
        seconds = time.perf_counter() - started
        model.eval()
        with sx.no_grad():
            for xb, yb in test:
                accuracy.update(model(xb), yb)
        model.train()
        sx.print(
            f"epoch {epoch + 1}  loss {mean_loss.compute():.4f}  test accuracy {accuracy.compute():.2%}  "
            f"{len(labels) / seconds:,.0f} images/s"
        )


if __name__ == "__main__":
    main()
