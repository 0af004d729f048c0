"""Ten losses that need the whole batch, each with the value and the gradient of one process on any number of ranks.

The mean over the ranks of what each computes from its own rows is wrong for all of them. They are written as usual.

python examples/any_loss.py --save /tmp/any_loss.json
mpirun -n 4 python examples/any_loss.py --compare /tmp/any_loss.json    # exit code 1 if a number differs
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import Tensor, autograd, nn
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset


@dataclass
class Decoded:
    """What the autoencoder below returns."""

    x: Tensor
    mean: Tensor
    log_variance: Tensor


class VAE(nn.Module):
    """A variational autoencoder with codes of 2 numbers."""

    def __init__(self) -> None:
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Decoded:
        mean, log_variance = self.encoder(x).chunk(2, axis=1)
        noise = sx.randn_like(mean)  # that of a row follows from its number in the global batch
        return Decoded(self.decoder(mean + (log_variance / 2).exp() * noise), mean, log_variance)


def vae(out: Decoded, x: Tensor) -> Tensor:
    """The squared error and the Kullback-Leibler divergence of a row, as means over the batch."""
    divergence = (out.mean.square() + out.log_variance.exp() - out.log_variance - 1).sum(axis=1) / 2
    return (out.x - x).square().sum(axis=1).mean() + divergence.mean()


def critic(model: nn.Module, x: Tensor) -> Tensor:
    """A mean score, and a penalty on gradients at the inputs whose length is not 1."""
    scores = model(x.requires_grad_())
    (slope,) = autograd.grad(scores.sum(), x, create_graph=True)
    return scores.mean() + (slope.square().sum(axis=1).sqrt() - 1).square().mean()


def contrastive(a: Tensor, b: Tensor) -> Tensor:
    """Which of the rows of b, those of all ranks, belongs to each row of a?"""
    a, b = (z / z.square().sum(axis=1, keepdims=True).sqrt() for z in (a, b))
    return F.cross_entropy(a @ b.T / 0.1, sx.arange(sx.global_rows(a)))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """How far the correlations of the features of two views are from those of features without redundancy."""
    a, b = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (a, b))
    return (a.T @ b / sx.global_rows(a) - sx.eye(3)).square().sum()


LOSSES = {
    "root of the mean square": lambda model, x, y: F.mse_loss(model(x), y).sqrt(),
    "logarithm of a mean": lambda model, x, y: (model(x) - y).square().mean().log(),
    "R squared": lambda model, x, y: 1 - (model(x) - y).square().sum() / (y - y.mean(axis=0)).square().sum(),
    "variance in the batch": lambda model, x, y: F.relu(1 - model(x).var(axis=0)).mean(),
    "weights by hand": lambda model, x, y: (x[:, :1].exp() * (model(x) - y).abs()).sum() / x[:, 0].exp().sum(),
    "masked rows": lambda model, x, y: F.mse_loss(model(x)[y[:, 0] > 0], y[y[:, 0] > 0]),
    "penalty on input gradients": lambda model, x, y: critic(model, x),
    "contrastive": lambda model, x, y: contrastive(model(x), model(x + 0.1 * sx.randn_like(x))),
    "correlation of two views": lambda model, x, y: correlation(model(x), model(x + 0.1 * sx.randn_like(x))),
    "VAE": lambda model, x, y: vae(model(x), x),
}


def value_and_gradient(name: str) -> tuple[float, float]:
    """The loss of one global batch, and the sum of |gradient| over all parameters."""
    sx.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((9, 4))
    model = VAE() if name == "VAE" else nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model = sx.DistributedDataParallel(model.double())
    ((xb, yb),) = DataLoader(Dataset(x, np.sin(2 * x[:, :3])), batch_size=9)  # on 4 ranks 3, 2, 2, 2
    loss = LOSSES[name](model, xb, yb)
    loss.backward()
    return loss.item(), sum(p.grad.abs().sum().item() for p in model.parameters() if p.grad is not None)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--save", metavar="FILE", type=Path, help="write the numbers")
    options.add_argument("--compare", metavar="FILE", type=Path, help="compare with saved ones, to 12 digits")
    args = options.parse_args()
    table = {name: value_and_gradient(name) for name in LOSSES}
    for name, (loss, gradient) in table.items():
        sx.print(f"{name:<27} loss {loss:14.10f}   sum of |gradient| {gradient:14.10f}")
    if args.save and sx.is_main_process():
        args.save.write_text(json.dumps(table))
    if args.compare:
        expected = json.loads(args.compare.read_text())
        different = [name for name in table if not np.allclose(table[name], expected[name], rtol=1e-12, atol=0)]
        sx.print(f"these differ: {', '.join(different)}" if different else f"the same as in {args.compare}")
        raise SystemExit(bool(different))
