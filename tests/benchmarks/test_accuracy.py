"""The script behind the accuracy table of the documentation learns something by each method."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks import accuracy


@pytest.mark.parametrize("name", accuracy.METHODS)
def test_each_method_learns(name, monkeypatch, capsys):
    arguments = ["digits", "--seeds", "1", "--epochs", "10", "--ranks", "2", "--every", "4", "--methods", name]
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments])
    accuracy.main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith(f"| {name} | ")
    assert float(row.split(" | ")[1]) > 60  # 10 by chance; DiLoCo begins slowly, with overlap more so
