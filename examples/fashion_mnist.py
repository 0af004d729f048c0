"""Trains a small convolutional network on Fashion-MNIST: 60,000 images of clothes, flipped and moved at random.

python examples/fashion_mnist.py
sorix-dist run -n 2 examples/fashion_mnist.py

The data is Debian's package dataset-fashion-mnist, or the four files of Xiao et al. (2017) in a folder: --data DIR.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset, SampleRandom, normalize

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(path: Path) -> np.ndarray:
    """The array in a file of the IDX format: a magic number, the sizes, then bytes."""
    content = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def scaled(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes as float32 around zero, with an axis for the one channel."""
    return normalize(images[:, None], 73, 90), labels


def augmented(images: np.ndarray, labels: np.ndarray, draw: SampleRandom) -> tuple[np.ndarray, np.ndarray]:
    """Images flipped and moved by up to a pixel, drawn by number and epoch: the same on any split."""
    return scaled(draw.crop(draw.flip(images), 28, padding=1), labels)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(48 * 49, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DEBIAN, help="the folder of the four .gz files")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--record", type=Path, metavar="DIR", help="a folder for the curves: sorix-dist plot DIR")
    options.add_argument("--rows", type=int, help="train on the first rows only")
    args = options.parse_args()
    if not (args.data / "train-images-idx3-ubyte.gz").exists():
        options.error(
            f"--data: there is no train-images-idx3-ubyte.gz in {args.data}; apt install dataset-fashion-mnist"
        )

    sx.init(virtual_shards=4)  # reproducible mode: the same bits on 1, 2 and 4 ranks
    sx.manual_seed(0)
    images, labels, test_images, test_labels = sx.host_shared(
        lambda: tuple(
            idx(args.data / f"{part}-{kind}-ubyte.gz").astype(np.int64 if kind == "labels-idx1" else np.uint8)
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        )
    )
    data = Dataset(images[: args.rows], labels[: args.rows])
    loader = DataLoader(data, batch_size=128, shuffle=True, batch_transform=augmented)
    test = DataLoader(Dataset(test_images, test_labels), batch_size=500, batch_transform=scaled)

    model = sx.DistributedDataParallel(network())
    optimizer = optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=args.epochs * len(loader))
    history = sx.fit(
        model, loader, nn.CrossEntropyLoss(), optimizer, epochs=args.epochs, valid=test,
        metrics={"accuracy": sx.metrics.Accuracy()}, scheduler=schedule, schedule_by="step",
        recorder=sx.Recorder(args.record, vars(args)) if args.record else None,
    )  # fmt: skip
    sx.print(f"test accuracy {history[-1]['val_accuracy']:.2%} after {args.epochs} epochs")


if __name__ == "__main__":
    main()
