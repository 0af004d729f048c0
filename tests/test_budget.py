"""The budget of lines: what is too long is named, and so is a table that no longer fits the packages."""

from __future__ import annotations

from pathlib import Path

from tests.budget import complaints, measure


def test_what_is_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "nn" / "deep").mkdir(parents=True)
    (tmp_path / "top.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "nn" / "layers.py").write_text("a = 1\n" * 3)
    (tmp_path / "nn" / "deep" / "more.py").write_text("a = 1\n" * 4)
    sizes = measure(tmp_path)
    fits = {"top level": (2, 1), "nn": (7, 2)}
    assert list(complaints(sizes, fits, 4)) == []
    assert list(complaints(sizes, {**fits, "nn": (6, 1)}, 4)) == [
        "nn has 7 lines, 1 more than its budget of 6: make it shorter",
        "nn has 2 files, 1 more than its budget of 1: make it shorter",
    ]
    assert list(complaints(sizes, fits, 3)) == ["nn/deep/more.py has 4 lines; the most for a file is 3"]


def test_the_table_knows_all_packages_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "nn").mkdir()
    (tmp_path / "nn" / "layers.py").write_text("a = 1\n")
    assert list(complaints(measure(tmp_path), {"optim": (1, 1)}, 400)) == [
        "nn has no line in [tool.sorix_dist.budget] of pyproject.toml",
        "optim is gone: remove its line from [tool.sorix_dist.budget] of pyproject.toml",
    ]
