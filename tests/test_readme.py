"""What the README prints is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_script():
    """The script of the README trains."""
    text = (ROOT / "README.md").read_text()
    script = re.search(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(losses) == 10
    assert losses[-1] < 0.2 < losses[0]


def test_table_of_ranks():
    """The losses in the table are those that the example prints."""
    rows = re.findall(r"^\| (\d) \| (\S+) \| (\S+) \| (\S+) \| (\S+) % \|", (ROOT / "README.md").read_text(), re.M)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "7"]
    assert len({row[1:] for row in rows}) == 1
    done = subprocess.run(
        [sys.executable, "examples/train.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    lines = done.stdout.splitlines()
    printed = [float(re.search(r"loss (\S+)", lines[epoch])[1]) for epoch in (1, 10, 20)]
    # The last digits depend on the CPU's kernels.
    assert all(abs(p - float(w)) < 2e-4 for p, w in zip(printed, rows[0][1:4], strict=True))
