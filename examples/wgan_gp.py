"""Trains a Wasserstein GAN with gradient penalty on handwritten digits: two wrapped networks, and a loss that holds the
gradient of one of them at points between real and generated images.

python examples/wgan_gp.py
sorix-dist run -n 4 examples/wgan_gp.py

Gulrajani et al., "Improved Training of Wasserstein GANs" (2017).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

DIGITS = Path(__file__).parent / "data" / "digits.npz"
LATENT, PENALTY = 16, 10.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=10)
    args = options.parse_args()

    sx.manual_seed(0)
    with np.load(DIGITS) as file:
        images = file["images"] / 16
    # In float64, so that rounding, which is another one on each number of ranks, does not grow into other digits.
    critic = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)).double()
    generator = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()).double()
    critic, generator = sx.DistributedDataParallel(critic), sx.DistributedDataParallel(generator)
    of_critic = optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    of_generator = optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    loader = DataLoader(Dataset(images), batch_size=100, shuffle=True)
    for epoch in range(args.epochs):
        distance = sx.metrics.Mean()
        for step, real in enumerate(loader):
            # Noise beside the batch's rows is drawn by their numbers in the global batch.
            noise = sx.randn_like(real[:, :LATENT])
            fake = generator(noise)

            critic.zero_grad()
            fixed = fake.detach()
            between = sx.rand_like(real[:, :1])
            middle = (real * between + fixed * (1 - between)).requires_grad_()
            (slope,) = sx.grad(critic(middle).sum(), [middle], create_graph=True)
            penalty = (((slope**2).sum(1) + 1e-12) ** 0.5 - 1) ** 2
            gap = critic(fixed).mean() - critic(real).mean()
            (gap + PENALTY * penalty.mean()).backward()
            of_critic.step()
            distance.update(-sx.global_value(gap).item())

            if step % 3 == 2:
                generator.zero_grad()
                (-critic(fake).mean()).backward()
                of_generator.step()
        sx.print(f"epoch {epoch + 1:2d}  estimated distance {distance.compute():.3f}")


if __name__ == "__main__":
    main()
