"""Every page that an error names is there."""

from __future__ import annotations

import re

from tests.support.launching import ROOT


def test_errors_name_sections_that_exist():
    sources = "".join(path.read_text() for path in (ROOT / "sorix_dist").rglob("*.py"))
    named = set(re.findall(r"\[docs: ([a-z-]+)\]", sources))
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    anchors = re.findall(r'<a id="([a-z-]+)"></a>', pages)
    assert len(anchors) == len(set(anchors))
    assert named == set(anchors)
    assert named == set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "failures.md").read_text(), re.MULTILINE))
