"""Errors that every rank must get to."""

from __future__ import annotations

import re

from sorix_dist.comm import run_threads


def on_all_ranks(work, error, message, size=3, hosts=1):
    """Runs `work` on thread ranks and asserts that each of them raises `error` with `message` in it; returns what
    they say."""

    def caught():
        try:
            work()
        except error as problem:
            return str(problem)
        return None

    said = run_threads(caught, size, hosts=hosts, timeout=60)
    assert all(text is not None and re.search(message, text) for text in said), said
    return said
