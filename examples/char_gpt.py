"""Trains a small GPT to write like the licences of this system, letter by letter.

python examples/char_gpt.py
sorix-dist run -n 2 examples/char_gpt.py

The text is /usr/share/common-licenses of Debian, or any file: --text FILE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, Dataset

LICENCES = Path("/usr/share/common-licenses")
LENGTH, WIDTH, HEADS, LAYERS = 64, 96, 4, 2


class GPT(nn.Module):
    """Predicts the next letter at every place of a text (Radford et al. 2018)."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter, self.position = nn.Embedding(letters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, letters)

    def forward(self, text: sx.Tensor) -> sx.Tensor:
        """text: (N, L) numbers of letters; the result: (N, L, letters) logits."""
        length = text.shape[1]
        x = self.letter(text) + self.position(np.arange(length))
        allowed = np.tril(np.ones((length, length), bool))
        return self.head(self.layers(x, mask=~allowed, is_causal=True))


def write(model: nn.Module, start: str, alphabet: list[str], count: int) -> str:
    """`count` letters after `start`, drawn with a fixed seed."""
    rng, text = np.random.default_rng(0), [alphabet.index(letter) for letter in start]
    model.eval()
    with sx.no_grad():
        for _ in range(count):
            logits = model(sx.tensor(np.array([text[-LENGTH:]]))).numpy()[0, -1]
            weights = np.exp((logits - logits.max()) / 0.7)
            text.append(int(rng.choice(len(alphabet), p=weights / weights.sum())))
    model.train()
    return "".join(alphabet[letter] for letter in text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--text", type=Path, help="a file to learn from")
    options.add_argument("--steps", type=int, default=600)
    args = options.parse_args()
    files = [args.text] if args.text else sorted(path for path in LICENCES.glob("*") if not path.is_symlink())
    if not files:
        options.error("--text: there are no licences in /usr/share/common-licenses; name a file")

    sx.manual_seed(0)
    text = "\n".join(path.read_text(errors="replace") for path in files)
    alphabet = sorted(set(text))
    numbers = {letter: number for number, letter in enumerate(alphabet)}
    letters = np.array([numbers[letter] for letter in text])
    windows = np.lib.stride_tricks.sliding_window_view(letters, LENGTH + 1)[:: LENGTH // 2]
    model = sx.DistributedDataParallel(GPT(len(alphabet)))
    optimizer = optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    loader = DataLoader(Dataset(windows[:, :-1], windows[:, 1:]), batch_size=32, shuffle=True, drop_last=True)
    sx.print(f"{len(text):,} letters, {len(alphabet)} different ones")

    step, mean_loss = 0, sx.metrics.Mean()
    while step < args.steps:
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(xb).reshape(-1, len(alphabet)), yb.reshape(-1))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean_loss.update(loss.item(), len(yb))
            step += 1
            if step % 100 == 0:
                sx.print(f"step {step:4d}  loss {mean_loss.compute():.3f}")
                mean_loss.reset()
            if step == args.steps:
                break
    sx.print(write(model.module, "This program is ", alphabet, 200))


if __name__ == "__main__":
    main()
