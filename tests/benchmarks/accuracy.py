"""What cheaper sums cost in accuracy: test accuracy after as many samples, exact and with fewer or smaller messages.

python -m tests.benchmarks.accuracy digits
python -m tests.benchmarks.accuracy fashion

Each method trains with the same seeds, splits, batches and learning rates, on ranks that are threads of this process.
The last column is the mean over the seeds of the difference from the exact run with the same optimizer and seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sorix_dist as sx
from examples import fashion_mnist
from sorix_dist import nn, optim
from sorix_dist.comm import run_threads
from sorix_dist.parallel.comm_hooks import PowerSGD, fp16_compress
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parents[2] / "examples" / "data" / "digits.npz"
Split = tuple[Dataset, Dataset]


class Task(NamedTuple):
    """A data set, cut by the seed, and how to train on it: rates are those of SGD and of AdamW."""

    split: Callable[[int, int | None], Split]
    network: Callable[[], nn.Module]
    batch: int
    epochs: int
    rates: dict[str, float]
    rows: int | None


def digits(seed: int, rows: int | None) -> Split:
    """The 1,797 digits, of which five seeds test five disjoint fifths."""
    with np.load(DIGITS) as file:
        images, labels = file["images"].astype(np.float32) / 16, file["labels"].astype(np.int64)
    order = np.random.default_rng(seed // 5).permutation(len(labels))
    test = order[seed % 5 :: 5]
    train = np.setdiff1d(order, test)[:rows]
    return Dataset(images[train], labels[train]), Dataset(images[test], labels[test])


def fashion(seed: int, rows: int | None) -> Split:
    """Random images of Fashion-MNIST, and its test set."""

    def part(name: str) -> tuple[Any, Any]:
        files = (fashion_mnist.DEBIAN / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        images, labels = map(fashion_mnist.idx, files)
        return fashion_mnist.scaled(images, labels.astype(np.int64))

    (images, labels), test = part("train"), part("t10k")
    chosen = np.random.default_rng(seed).permutation(len(labels))[:rows]
    return Dataset(images[chosen], labels[chosen]), Dataset(*test)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip


TASKS = {
    "digits": Task(digits, perceptron, 64, 40, {"SGD": 0.05, "AdamW": 3e-3}, None),
    "fashion": Task(fashion, convolutional, 128, 3, {"SGD": 0.05, "AdamW": 3e-3}, 20_000),
}
METHODS = {  # the optimizer, and the method
    "exact": ("SGD", "exact"),
    "fp16_compress": ("SGD", "fp16"),
    "PowerSGD(rank=4)": ("SGD", "PowerSGD"),
    "PowerSGD(rank=16)": ("SGD", "PowerSGD"),
    "LocalSGD": ("SGD", "LocalSGD"),
    "LocalSGD, fp16": ("SGD", "LocalSGD"),
    "LocalSGD, overlap": ("SGD", "LocalSGD"),
    "exact, AdamW": ("AdamW", "exact"),
    "DiLoCo, AdamW": ("AdamW", "DiLoCo"),
    "DiLoCo, AdamW, overlap": ("AdamW", "DiLoCo"),
}


def trained(task: Task, name: str, seed: int, options: argparse.Namespace) -> float:
    """The test accuracy in percent after a training run on the ranks of this job."""
    kind, method = METHODS[name]
    local = method in ("LocalSGD", "DiLoCo")
    sx.init(threads=1, virtual_shards=options.workers if local else None)
    sx.manual_seed(seed)
    train, test = task.split(seed, options.rows or task.rows)
    loader = DataLoader(train, batch_size=task.batch, shuffle=True)
    epochs = options.epochs or task.epochs
    model = task.network() if local else sx.DistributedDataParallel(task.network())
    rate = options.rate * task.rates[kind]
    optimizer = (
        optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        if kind == "SGD"
        else optim.AdamW(model.parameters(), lr=rate)
    )
    schedule = optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=epochs * len(loader), pct_start=0.2, cycle_momentum=False
    )
    criterion = nn.CrossEntropyLoss()
    if isinstance(model, sx.DistributedDataParallel) and method != "exact":
        model.register_comm_hook(fp16_compress if method == "fp16" else PowerSGD(rank=16 if "16" in name else 4))

    def step(x: Any, y: Any) -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    workers: sx.LocalSGD | None = None
    overlap = "overlap" in name
    if method == "LocalSGD":
        hook = fp16_compress if "fp16" in name else None
        workers = sx.LocalSGD(model, optimizer, options.every, hook=hook, overlap=overlap)
    elif method == "DiLoCo":
        rate, momentum = options.outer
        outer = optim.SGD(model.parameters(), lr=rate, momentum=momentum, nesterov=momentum > 0)
        workers = sx.DiLoCo(model, optimizer, options.every, outer, overlap=overlap)
    for epoch in range(epochs):
        for xb, yb in loader:
            if workers is not None:
                workers.every = 1 if epoch < options.warmup else options.every
            for x, y in [(xb, yb)] if workers is None else workers.workers(xb, yb):
                step(x, y)
            schedule.step()
    if workers is not None:
        workers.synchronise()
    found = sx.evaluate(model, DataLoader(test, batch_size=500), sx.metrics.Accuracy())
    return 100 * float(found["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, help="train on this number of samples")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--every", type=int, default=16, help="batches between two sums of LocalSGD and DiLoCo")
    parser.add_argument("--warmup", type=int, default=0, help="epochs in which these two sum after every batch")
    parser.add_argument(
        "--outer", type=float, nargs=2, default=(0.7, 0.9), metavar=("RATE", "MOMENTUM"), help="of DiLoCo's outer SGD"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="a factor on all learning rates")
    parser.add_argument("--workers", type=int, default=4, help="virtual workers of LocalSGD and DiLoCo")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    options = parser.parse_args()
    task = TASKS[options.task]
    print(f"{options.task}: {vars(options)}", file=sys.stderr)
    accuracies: dict[str, Any] = {name: [] for name in options.methods}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.methods:
            accuracies[name] += run_threads(trained, options.ranks, (task, name, seed, options), timeout=36000)[:1]
            print(f"seed {seed}, {name}: {accuracies[name][-1]:.2f}", file=sys.stderr, flush=True)
    print("| | mean | spread | from exact |\n|---|---|---|---|")
    for name, found in accuracies.items():
        exact = accuracies.get("exact" if METHODS[name][0] == "SGD" else "exact, AdamW")
        difference = "–" if exact is None else f"{np.mean(np.subtract(found, exact)):+.2f}"
        print(f"| {name} | {np.mean(found):.2f} | {np.std(found, ddof=min(1, len(found) - 1)):.2f} | {difference} |")


if __name__ == "__main__":
    main()
