"""What a type checker says of a user's script: nothing, and it knows what the tensors are."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sorix_dist as sx

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]
SCRIPT = '''
"""Trains a small network."""

from __future__ import annotations

import sorix_dist as sx
import sorix_dist.nn.functional as F
from sorix_dist import nn, optim
from sorix_dist.utils.data import DataLoader, TensorDataset, random_split


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Sequential(nn.Linear(8 * 16, width), nn.ReLU(), nn.Linear(width, 10))
        self.scale = nn.Parameter(sx.ones(1))
        self.register_buffer("seen", sx.zeros(1))

    def forward(self, x: sx.Tensor) -> sx.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        y: sx.Tensor = self.head(self.drop(x.flatten(1)))
        return (y * self.scale).clamp(-50, 50)


def losses(x: sx.Tensor, y: sx.Tensor) -> sx.Tensor:
    focal = ((1 - F.softmax(x, 1)) ** 2 * -F.log_softmax(x, dim=1)).mean()
    mask = (y == 0) | (y > 5)
    rows = sx.cat([x, x[:, :1].expand(-1, 2)], dim=1).sum(1)
    return focal + sx.where(mask, rows, rows.exp()).mean() + sx.linalg.norm(x).sqrt()  # type: ignore[no-any-return]


def main() -> None:
    sx.manual_seed(0)
    x, y = sx.randn(64, 1, 8, 8), sx.randint(0, 10, (64,))
    train, valid = random_split(TensorDataset(x, y), [48, 16])
    loader = DataLoader(train, batch_size=16, shuffle=True)
    model = sx.DistributedDataParallel(Net(32))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    accuracy, mean = sx.metrics.Accuracy(), sx.metrics.Mean()
    for epoch in range(2):
        model.train()
        for xb, yb in loader:
            optimizer.zero_grad()
            loss: sx.Tensor = criterion(model(xb), yb)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            mean.update(loss)
        scheduler.step()
        model.eval()
        with sx.no_grad():
            for xb, yb in DataLoader(valid, batch_size=16):
                accuracy.update(model(xb), yb)
        sx.print(f"{epoch} {accuracy.compute():.3f} {scheduler.get_last_lr()[0]:.4f}")
        sx.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, "last.sx")
    state = sx.load("last.sx")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


if __name__ == "__main__":
    main()
'''
TENSORS = """
    sx.tensor([1.0]); sx.zeros(3); sx.randn(2, 3); sx.arange(3); sx.zeros_like(x); sx.exp(x); sx.softmax(x, 1)
    sx.cat([x, x]); sx.stack((x, x)); sx.reshape(x, (-1,)); x + 1; 1 - x; x @ x; x ** 2; -x; x[0]; x == x; x > 0
    ~(x > 0); x.T; x.sum(); x.mean(0); x.argmax(1); x.view(-1); x.float(); x.masked_fill(x > 0, 0.0); F.relu(x)
    F.cross_entropy(x, x); nn.utils.clip_grad_norm_([x], 1.0); sx.global_value(x); next(iter(x))
"""
OTHERS = {
    "x.shape": "Size", "x.grad": "Tensor | None", "sx.rank()": "int", "sx.exp([1.0])": "Any",
    "nn.Linear(2, 3)": "Linear", "optim.SGD([x], 0.1).param_groups": "list[dict[str, Any]]",
}  # fmt: skip


def checked(path: Path, script: str) -> str:
    """What mypy says of a script that uses the installed package, whose own lines are none of the user's business."""
    path.write_text(script)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env={"MYPYPATH": str(ROOT)})
    return done.stdout + done.stderr


def test_a_script_and_the_types_of_its_values(tmp_path: Path) -> None:
    wanted = {e.strip(): "Tensor" for e in re.split(r"[;\n]", TENSORS) if e.strip()} | OTHERS
    wrong = ["sx.tensr(3)", "sx.zeros(3).backward(1, 2, 3, 4)", "optim.SGD([x], lr='fast')"]
    script = SCRIPT + "\nx = sx.ones(2)\n" + "".join(f"reveal_type({e})\n" for e in wanted) + "\n".join(wrong)
    said = checked(tmp_path / "script.py", script)
    found = [re.sub(r"\b[a-z_]+\.", "", kind) for kind in re.findall(r'Revealed type is "(.*)"', said)]
    assert dict(zip(wanted, found, strict=True)) == wanted
    lines = script.splitlines()
    assert [lines[int(number) - 1] for number in re.findall(r"script.py:(\d+): error", said)] == wrong, said


def test_the_names_for_type_checkers_are_those_of_the_package() -> None:
    names: set[str] = set()
    for statement in ast.parse((ROOT / "sorix_dist" / "__init__.pyi").read_text()).body:
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            names.update(importlib.import_module(statement.module or "").__all__)
        elif isinstance(statement, ast.ImportFrom):
            names.update(str(alias.asname) for alias in statement.names)
    assert set(sx.__all__) <= names
    assert not {name for name in names if not hasattr(sx, name)}
