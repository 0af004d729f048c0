"""Trains a variational autoencoder on handwritten digits. Its loss is a sum of two means, and its noise is drawn for a
row by the row's number in the global batch: both are the same on any number of ranks.

python examples/vae.py
sorix-dist run -n 4 examples/vae.py

The model is that of Kingma and Welling, "Auto-Encoding Variational Bayes" (2014).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"


class VAE(nn.Module):
    """64 pixels, 8 latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(128, 8), nn.Linear(128, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: sx.Tensor) -> tuple[sx.Tensor, sx.Tensor, sx.Tensor]:
        """The logits of the pixels, and the mean and log-variance of each row's latent numbers."""
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + (log_variance / 2).exp() * sx.randn_like(mean)
        return self.decoder(z), mean, log_variance


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20)
    args = options.parse_args()

    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        images = file["images"].astype(np.float32) / 16
    model = sx.DistributedDataParallel(VAE())
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(Dataset(images), batch_size=100, shuffle=True)
    for epoch in range(args.epochs):
        reconstruction, divergence = sx.metrics.Mean(), sx.metrics.Mean()
        for xb in loader:
            optimizer.zero_grad()
            logits, mean, log_variance = model(xb)
            pixels = F.binary_cross_entropy_with_logits(logits, xb, reduction="none").sum(1)
            kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
            (pixels.mean() + kl.mean()).backward()
            optimizer.step()
            reconstruction.update(pixels)
            divergence.update(kl)
        sx.print(f"epoch {epoch + 1:2d}  reconstruction {reconstruction.compute():.1f}  KL {divergence.compute():.1f}")


if __name__ == "__main__":
    main()
