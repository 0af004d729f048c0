"""The cross-entropy loss by hand-checkable numbers: its value, its gradient, and a training run of 51 steps.

python examples/cross_entropy.py
mpirun -n 2 python examples/cross_entropy.py
"""

from __future__ import annotations

import numpy as np

import sorix_dist as sx
from sorix_dist import nn, optim

LOGITS, TARGETS = [[2.0, 1.0, 0.1], [0.0, 5.0, 0.2]], [0, 1]


def softmax_minus_one_hot(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """P - Y: what the gradient of the cross-entropy at the logits is, before it is divided by the rows."""
    exps = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exps / exps.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[targets]


def value_and_gradient() -> None:
    """The loss of two rows and its gradient (softmax - one-hot) / 2."""
    logits, targets = sx.tensor(LOGITS, requires_grad=True), sx.tensor(TARGETS)
    loss = nn.CrossEntropyLoss()(logits, targets)
    loss.backward()
    sx.print(f"loss {loss.item():.4f}\ngradient\n{logits.grad}")
    expected = softmax_minus_one_hot(logits.numpy(), targets.numpy()) / len(TARGETS)
    np.testing.assert_allclose(loss.item(), 0.2159, atol=5e-5)
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-5)


def training() -> None:
    """One sample of class 2, learned by a Linear(3, 3) in 51 steps of gradient descent."""
    x, target = sx.tensor([[1.0, 0.0, 0.0]]), sx.tensor([2])
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.W)
    layer.W.data[0] = [-1.129986, 1.8432822, -0.88651246]  # x picks the first row: these are the first scores
    criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(layer.parameters(), lr=0.1)
    for step in range(51):
        optimizer.zero_grad()
        output = layer(x)
        loss = criterion(output, target)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            sx.print(f"step {step:2d}  loss {loss.item():.4f}  output {output.numpy()[0]}")
    sx.print(f"final output {layer(x).numpy()[0]}")


def global_batch() -> None:
    """The same two rows through a wrapped model: every rank's gradient is divided by the rows of all ranks."""
    sx.manual_seed(0)
    model = sx.DistributedDataParallel(nn.Linear(3, 3))
    mine = slice(sx.rank() * 2 // sx.size(), (sx.rank() + 1) * 2 // sx.size())
    logits = model(sx.tensor(np.float32(LOGITS)[mine]))
    logits.retain_grad()
    nn.CrossEntropyLoss()(logits, np.array(TARGETS)[mine]).backward()
    expected = softmax_minus_one_hot(logits.numpy(), np.array(TARGETS)[mine]) / 2
    np.testing.assert_allclose(logits.grad, expected, atol=1e-7)
    rows = sx.global_rows(logits)
    sx.print(f"wrapped: {rows} rows on {sx.size()} rank(s), the gradient at the logits is (P - Y) / {rows}")


if __name__ == "__main__":
    value_and_gradient()
    training()
    global_batch()
