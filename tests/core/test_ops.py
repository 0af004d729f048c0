"""Every registered operation against plain NumPy and central differences, by the rows in tests/core/rows."""

from __future__ import annotations

import dis
import importlib
import pkgutil
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import sorix_dist.core.ops
from sorix_dist.core.op import REGISTRY
from tests.support.core import opcheck

ROWS = opcheck.all_rows()
CASES = [pytest.param(row, shapes, id=f"{row.title}-{shapes}") for row in ROWS for shapes in row.cases]
CHECKS = [opcheck.check_value, opcheck.check_first, opcheck.check_second, opcheck.check_memory]

for module in pkgutil.iter_modules(sorix_dist.core.ops.__path__):
    importlib.import_module(f"sorix_dist.core.ops.{module.name}")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@pytest.mark.parametrize(("row", "shapes"), CASES)
def test_operation(row: opcheck.Row, shapes: Any, check: Any) -> None:
    check(row, shapes)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_operation_has_rows(name: str) -> None:
    rows = [row for row in ROWS if name in row.names]
    assert rows, f"the operation '{name}' has no row in tests/core/rows"
    shapes = [shape for row in rows for case in row.cases for shape in case if shape is not None]
    excused = {what for row in rows for what, why in row.lacks.items() if why}
    assert "empty" in excused or any(0 in shape for shape in shapes), f"'{name}' has no case with an empty input"
    assert "0-d" in excused or () in shapes, f"'{name}' has no case with a 0-d input"


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_operation_rebinds_its_inputs(name: str) -> None:
    """A second derivative takes what a rule closes over under an input's name for that input."""
    about = REGISTRY[name]
    stored = {i.argval for i in dis.get_instructions(about.function) if i.opname.startswith("STORE_")}
    assert stored.isdisjoint(about.inputs)


def test_rows_name_registered_operations() -> None:
    wrong = defaultdict(list)
    for row in ROWS:
        for name in row.names:
            if name not in REGISTRY:
                wrong[row.title].append(name)
    assert not wrong


def test_the_checks_find_mistakes() -> None:
    """An operation with a wrong gradient, one that modifies its gradient, one that promotes: each is found."""
    from sorix_dist.core.op import op

    known = dict(REGISTRY)
    try:

        @op()
        def wrong_gradient(x: Any) -> Any:
            return x * x, (lambda g, out: g * x,)

        @op()
        def wrong_second(x: Any) -> Any:
            return x**3, (lambda g, out: 3 * (g.array if hasattr(g, "array") else g) * x * x,)

        @op()
        def modifies(x: Any) -> Any:
            return x * 2, (lambda g, out: np.multiply(g, 2, out=g),)

        @op()
        def promotes(x: Any) -> Any:
            return x * np.float64(2), (lambda g, out: g * 2,)

    finally:
        REGISTRY.clear()
        REGISTRY.update(known)
    for function, reference, check in (
        (wrong_gradient, lambda x: x * x, opcheck.check_first),
        (wrong_second, lambda x: x**3, opcheck.check_second),
        (modifies, lambda x: x * 2, opcheck.check_memory),
        (promotes, lambda x: x * 2, opcheck.check_value),
    ):
        with pytest.raises(AssertionError):
            check(opcheck.Row(function, reference, [((3,),)]), ((3,),))
