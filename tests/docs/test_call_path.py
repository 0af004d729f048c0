"""The files that `docs/how-it-works.md` lists are those that a gradient goes through."""

from __future__ import annotations

import re

from tests.support.launching import ROOT, needs_mpirun, run_ranks

# Rules of operations, the barrier, the watch, and one-line helpers: the page says that it leaves them out.
ASIDE = ("core/ops/", "comm/", "watchdog/", "core/capture.py", "core/flat.py", "core/graph.py")
MOST, MOST_LINES = 10, 1500


@needs_mpirun
def test_the_path_of_a_gradient():
    ended = run_ranks(2, str(ROOT / "docs" / "call_path.py"))
    assert ended.code == 0, ended.err
    entered = {line.partition(":")[0] for line in ended.out.splitlines()}
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    section = page[page.index("## The path of a gradient") : page.index("```text")]
    listed = set(re.findall(r"\*\*`([\w/]+\.py)`\*\*", section))
    assert listed == {file for file in entered if not file.startswith(ASIDE)}
    assert len(listed) <= MOST
    lines = {file: len((ROOT / "sorix_dist" / file).read_text().splitlines()) for file in listed}
    assert sum(lines.values()) <= MOST_LINES, lines
