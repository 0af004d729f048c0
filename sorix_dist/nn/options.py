"""The options of modules as text, so that ranks can compare them."""

from __future__ import annotations

from sorix_dist.core.fingerprint import as_text
from sorix_dist.nn.module import Module


def options_of(module: Module) -> dict[str, str]:
    """The module's own public attributes that are numbers, texts, None, functions or sequences of those, by name.

    What changes while it works is not among them: tensors, arrays, whether it trains.
    """
    found = {
        name: text
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (text := as_text(value)) is not None
    }
    if shown := module.extra_repr():
        found["extra_repr()"] = shown
    return found
