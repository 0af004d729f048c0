"""The documentation does what it says: every Python block of a page is run, every command exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sorix_dist.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks(page: Path, tmp_path: Path):
    """The Python blocks of a page, one after the other, are a script that ends well."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=lambda page: page.stem)
def test_commands(page: Path):
    """Every `sorix-dist` command line parses, every target of make exists."""
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "sorix-dist":
            parser().parse_args([word for word in words[1:] if word != "..."])
        if words and words[0] == "make":
            assert words[1] in TARGETS, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_of_make(page: Path):
    """What the text calls `make X` is a target."""
    assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= TARGETS


@pytest.mark.parametrize("page", ["README.md", "examples/README.md", "examples/data/README.md"])
def test_links(page: str):
    """Files that the pages outside of the built documentation link to exist; mkdocs checks the others."""
    path = ROOT / page
    linked = [link for link in re.findall(r"\]\(([^)#]+)", path.read_text()) if "://" not in link]
    assert [link for link in linked if not (path.parent / link).exists()] == []


def test_examples_are_listed():
    """Each by a link in examples/README.md."""
    folder = ROOT / "examples"
    listed = re.findall(r"^\| \[.*\]\((.*?)\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.iterdir() if path.suffix in (".py", ".ipynb"))
