"""How long the package is, beside what it may be: `make budget`, which `make check` runs.

`[tool.sorix_dist.budget]` in pyproject.toml says how many lines and files each package of `sorix_dist` may have. Who
makes one shorter lowers its line; who must make one longer raises it, in a diff that a reviewer sees. Code in no file
may be longer than `longest_file` lines.
"""

from __future__ import annotations

import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = "top level"
"""The files of `sorix_dist/` itself."""

Sizes = dict[str, dict[Path, int]]


def measure(package: Path) -> Sizes:
    """The lines of each Python file below `package`, by subpackage."""
    sizes: Sizes = defaultdict(dict)
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        name = inside.parts[0] if len(inside.parts) > 1 else TOP
        sizes[name][inside] = len(path.read_text(encoding="utf-8").splitlines())
    return sizes


def complaints(sizes: Sizes, allowed: Mapping[str, tuple[int, int]], longest_file: int) -> Iterator[str]:
    """A line for each file and each subpackage that is too long, or that the table does not know or no longer needs."""
    for name in sorted({*sizes, *allowed}):
        if name not in allowed:
            yield f"{name} has no line in [tool.sorix_dist.budget] of pyproject.toml"
        elif name not in sizes:
            yield f"{name} is gone: remove its line from [tool.sorix_dist.budget] of pyproject.toml"
        else:
            for word, found, most in zip(("lines", "files"), _totals(sizes[name]), allowed[name], strict=True):
                if found > most:
                    yield f"{name} has {found} {word}, {found - most} more than its budget of {most}: make it shorter"
        for path, lines in sizes.get(name, {}).items():
            if lines > longest_file:
                yield f"{path} has {lines} lines; the most for a file is {longest_file}"


def _totals(files: Mapping[Path, int]) -> tuple[int, int]:
    return sum(files.values()), len(files)


def main() -> int:
    """Prints the table; 1 if something is too long."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["sorix_dist"]
    allowed = {name: (lines, files) for name, (lines, files) in settings["budget"].items()}
    sizes = measure(ROOT / "sorix_dist")
    print(f"{'package':12} {'lines':>6} {'budget':>7} {'files':>6} {'budget':>7}")
    for name, files in sorted(sizes.items()):
        (lines, count), (most_lines, most_files) = _totals(files), allowed.get(name, (0, 0))
        print(f"{name:12} {lines:6} {most_lines:7} {count:6} {most_files:7}")
    lines, count = (sum(totals) for totals in zip(*map(_totals, sizes.values())))
    most_lines, most_files = (sum(totals) for totals in zip(*allowed.values()))
    print(f"{'all':12} {lines:6} {most_lines:7} {count:6} {most_files:7}")
    found = list(complaints(sizes, allowed, settings["longest_file"]))
    for complaint in found:
        print(f"budget: {complaint}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
