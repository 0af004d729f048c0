"""Steps of many kinds, run as they are and captured: losses, weights and buffers must agree bit for bit.

python -m tests.support.train.compile_cases [VIRTUAL_SHARDS]    # on any number of ranks; prints what differs
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim
from sorix_dist.nn import functional as F
from sorix_dist.utils.data import DataLoader, Dataset

ROWS, EPOCHS = 150, 5
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((ROWS, 12)).astype(np.float32)
IMAGES = RNG.standard_normal((ROWS, 1, 6, 6)).astype(np.float32)
WORDS = RNG.integers(0, 20, (ROWS, 5))
LABELS = RNG.integers(0, 4, ROWS)
NUMBERS = RNG.standard_normal((ROWS, 1)).astype(np.float32)

Made = tuple[nn.Module, Callable[..., Any], Dataset]
Case = Callable[[], Made]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def clipped() -> Made:
    """Dropout, momentum, weight decay, clipping, a schedule."""
    model = sx.DistributedDataParallel(mlp())
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    criterion = nn.CrossEntropyLoss()

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        return loss

    return model, step, Dataset(VECTORS, LABELS)


def images() -> Made:
    """Convolution, batch norm, pooling, AdamW, label smoothing."""
    model = sx.DistributedDataParallel(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 4),
        )
    )  # fmt: skip
    optimizer = optim.AdamW(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        model.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return model, step, Dataset(IMAGES, LABELS)


def weighted() -> Made:
    """Class weights and ignored labels, whose denominators are other ones in each batch."""
    model = sx.DistributedDataParallel(nn.Linear(12, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss(weight=np.array([1, 2, 3, 4], np.float32), ignore_index=-1)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step, Dataset(VECTORS, np.where(np.arange(ROWS) % 5 == 0, -1, LABELS))


class Language(nn.Module):
    def __init__(self) -> None:
        self.words = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8))
        self.head = nn.Linear(8, 20)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.words(x), is_causal=True))


def language() -> Made:
    """Embedding, attention with a causal mask and dropout, layer norm."""
    model = sx.DistributedDataParallel(Language())
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).reshape(-1, 20), x.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss

    return model, step, Dataset(WORDS)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        self.words, self.cell, self.head = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        out, _ = self.cell(self.words(x))
        return self.head(out.mean(axis=1))


def recurrent() -> Made:
    """A GRU, and a root of a mean."""
    model = sx.DistributedDataParallel(Recurrent())
    optimizer = optim.RMSprop(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean() ** 0.5
        loss.backward()
        optimizer.step()
        return loss

    return model, step, Dataset(WORDS, NUMBERS)


class Noisy(nn.Module):
    def __init__(self) -> None:
        self.encoder, self.decoder = nn.Linear(12, 4), nn.Linear(4, 12)

    def forward(self, x: Any) -> Any:
        code = self.encoder(x)
        return self.decoder(code + 0.1 * sx.randn_like(code)), code


def noisy() -> Made:
    """Noise by row, several outputs, a loss of two means, numbers added to it; the global value without its graph."""
    model = sx.DistributedDataParallel(Noisy())
    optimizer = optim.SGD(model.parameters(), lr=0.05, nesterov=True, momentum=0.9)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        out, code = model(x)
        first, second = F.mse_loss(out, x), (code**2).mean()
        loss = first + 0.5 * second + 0.25
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step, Dataset(VECTORS, LABELS)


def two_models() -> Made:
    """A generator and a critic, each with its own optimizer, in one step."""
    generator = sx.DistributedDataParallel(nn.Sequential(nn.Linear(12, 12), nn.Tanh()))
    critic = sx.DistributedDataParallel(nn.Linear(12, 1))
    of_generator, of_critic = optim.Adam(generator.parameters()), optim.Adam(critic.parameters())

    def step(x: Any, y: Any) -> Any:
        of_critic.zero_grad()
        made = generator(x)
        loss = F.softplus(critic(made.detach())).mean() + F.softplus(-critic(x)).mean()
        loss.backward()
        of_critic.step()
        of_generator.zero_grad()
        other = F.softplus(-critic(made)).mean()
        other.backward()
        of_generator.step()
        return loss, other

    return nn.ModuleList([generator.module, critic.module]), step, Dataset(VECTORS, LABELS)


def accumulated() -> Made:
    """Two pieces of one size, one step."""
    model = sx.DistributedDataParallel(nn.Linear(12, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    held: list[Any] = []

    def pieces(first: Any, second: Any) -> Any:
        optimizer.zero_grad()
        for x, y in model.accumulate([first, second]):
            F.cross_entropy(model(x), y).backward()
        optimizer.step()

    compiled = {"step": pieces}

    def step(x: Any, y: Any) -> Any:
        held.append((x, y))
        if len(held) == 2:
            compiled["step"](*held)
            held.clear()
        return x

    step.inner = compiled  # type: ignore[attr-defined]
    return model, step, Dataset(VECTORS[:120], LABELS[:120])


CASES: list[Case] = [clipped, images, weighted, language, recurrent, noisy, two_models, accumulated]


def bits(model: nn.Module) -> bytes:
    return b"".join(np.ascontiguousarray(value).tobytes() for value in model.state_dict().values())


def trained(case: Case, capture: bool) -> tuple[list[bytes], bytes, Any]:
    """The results of each step, the state in the end, and the captured step."""
    sx.manual_seed(0)
    model, step, data = case()
    inner = getattr(step, "inner", None)
    compiled = sx.compile(inner["step"] if inner else step) if capture else step
    if inner and capture:
        inner["step"] = compiled
    run = step if inner else compiled
    results = []
    for _ in range(EPOCHS):
        for batch in DataLoader(data, batch_size=40, shuffle=True):
            result = run(*batch) if isinstance(batch, tuple | list) else run(batch)
            for x in result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]:
                results.append(np.asarray(x.numpy()).tobytes())
    return results, bits(model), compiled


def main() -> int:
    if len(sys.argv) > 1:
        sx.init(virtual_shards=int(sys.argv[1]))
    warnings.simplefilter("error")  # a step that is not captured warns
    failed = 0
    for case in CASES:
        plain, captured = trained(case, False), trained(case, True)
        same = plain[:2] == captured[:2]
        replays = sum(entry.runs for entry in captured[2]._programs.values())
        failed += not (same and replays)
        if not (same and replays):
            print(f"rank {sx.rank()}: {case.__name__}: same {same}, {replays} replays, {captured[2].reason}")
    sx.print(f"{len(CASES)} cases")
    return failed


if __name__ == "__main__":
    sys.exit(main())
