"""The API reference lists every public name, under the name that users type."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import operator
from pathlib import Path

import sorix_dist as sx

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


def test_every_function_and_class_is_listed():
    """On one page each."""
    listed = [name for page in ("training", "tensors") for name in reference.listed(page, sx)]
    routines = [name for name in sx.__all__ if inspect.isroutine(x := getattr(sx, name)) or inspect.isclass(x)]
    assert sorted(listed) == sorted(routines)
    assert {"DistributedDataParallel", "Checkpointer", "run", "matmul", "randn_like", "Tensor"} <= set(listed)


def test_entries_can_be_found():
    """Functions and constructors are where they say that they are: also those of a table, and below decorators."""
    for page, (_, modules) in reference.PAGES.items():
        for module in modules.values():
            for name in reference.listed(page, module):
                found = getattr(module, name)
                made = [found.__init__] if inspect.isfunction(getattr(found, "__init__", None)) else []
                for thing in (found, inspect.unwrap(found), *made):
                    module_of_its_own = importlib.import_module(thing.__module__)
                    assert callable(operator.attrgetter(thing.__qualname__)(module_of_its_own)), name


def test_parameters_become_a_list():
    text = """Does it.

    rows: how many; names, more: texts that
    go on here. It is fast.
    Other: words. axis: where.

        rows: code
    """
    expected = (
        "Does it.\n\n- `rows`: how many\n- `names, more`: texts that go on here. It is fast. Other: words.\n"
        "- `axis`: where.\n\n    rows: code"
    )
    assert reference.itemized(text, ["rows", "names", "more", "axis"]) == expected
    assert reference.itemized("Does it.", []) == "Does it."


def test_every_entry_has_a_docstring():
    for page, (_, modules) in reference.PAGES.items():
        for module in modules.values():
            missing = [name for name in reference.listed(page, module) if not getattr(module, name).__doc__]
            assert not missing, f"{module.__name__}: {missing}"
